"""Deep gated networks and the neural path kernel (Lakshminarayanan and Singh, NeurIPS 2020).

The networks DGN, DLGN and DLGN-SF are `GatedNetwork` with `gating` "relu", "linear" and "shallow". The layers of which
architectures are made are in `jaxinterp.gated.architecture`, kernels in `jaxinterp.gated.kernels`.
"""

from jaxinterp.gated.architecture import c4gap, fc, gate_shapes, resnet, vconv, vgg16
from jaxinterp.gated.network import GatedNetwork, GatingNetwork, Network, open_gates
from jaxinterp.gated.npk_regression import NPKRegressor
from jaxinterp.gated.path_network import PathNetwork
from jaxinterp.gated.paths import class_overlap, effective_filters, margins, strongest_paths

__all__ = [
    "GatedNetwork",
    "GatingNetwork",
    "NPKRegressor",
    "Network",
    "PathNetwork",
    "c4gap",
    "class_overlap",
    "effective_filters",
    "fc",
    "gate_shapes",
    "margins",
    "open_gates",
    "resnet",
    "strongest_paths",
    "vconv",
    "vgg16",
]
