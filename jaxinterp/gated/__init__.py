"""Deep gated networks and the neural path kernel (Lakshminarayanan and Singh, NeurIPS 2020).

The networks DGN, DLGN and DLGN-SF are `GatedNetwork` with `gating` "relu", "linear" and "shallow".
"""

from jaxinterp.gated.architecture import (
    Architecture,
    AvgPool,
    BatchNorm,
    Conv,
    Dense,
    Flatten,
    Gate,
    GlobalAvgPool,
    Residual,
    c4gap,
    fan_ins,
    fc,
    gate_count,
    gate_shapes,
    iter_layers,
    output_shape,
    resnet,
    vconv,
    vgg16,
)
from jaxinterp.gated.network import (
    GatedNetwork,
    GatingNetwork,
    Network,
    open_gates,
    permute_gates,
    tile_and_roll,
    weight_initializer,
)
from jaxinterp.gated.npk_regression import NPKRegressor
from jaxinterp.gated.path_network import PathNetwork
from jaxinterp.gated.paths import Filters, Paths, class_overlap, effective_filters, margins, strongest_paths

__all__ = [
    "Architecture",
    "AvgPool",
    "BatchNorm",
    "Conv",
    "Dense",
    "Filters",
    "Flatten",
    "Gate",
    "GatedNetwork",
    "GatingNetwork",
    "GlobalAvgPool",
    "NPKRegressor",
    "Network",
    "PathNetwork",
    "Paths",
    "Residual",
    "c4gap",
    "class_overlap",
    "effective_filters",
    "fan_ins",
    "fc",
    "gate_count",
    "gate_shapes",
    "iter_layers",
    "margins",
    "open_gates",
    "output_shape",
    "permute_gates",
    "resnet",
    "strongest_paths",
    "tile_and_roll",
    "vconv",
    "vgg16",
    "weight_initializer",
]
