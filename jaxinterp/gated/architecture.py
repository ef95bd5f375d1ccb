"""Architectures as data: one description shared by ReLU, gating and value networks and by the kernels.

An architecture is a tuple of layers from the input to the output. `Gate` marks where a ReLU network rectifies, a
gating network is read and a value network is masked; the l-th `Gate`, in order, takes the l-th gate.

The named ones are those of Lakshminarayanan & Singh, "Neural Path Features and Neural Path Kernel" (NeurIPS 2020,
arXiv 2006.10529, "NPF") and "Disentangling deep neural networks with rectified linear units using duality" (arXiv
2110.03403, "DLGN").
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import product
from typing import Literal, Union, get_args

import numpy as np
from jaxtyping import Array, Shaped

from jaxinterp.checks import require, require_at_least, require_one_of

Padding = Literal["zero", "circular", "none"]
ValueInput = Literal["x", "ones"]


@dataclass(frozen=True)
class Dense:
    """A fully connected layer: x ↦ Θᵀx (+ bias)."""

    features: int
    bias: bool = False

    def __post_init__(self) -> None:
        require_at_least("features", self.features, 1)


@dataclass(frozen=True)
class Conv:
    """A convolution of k_y × k_x windows, padded with zeros or circularly to keep the size, or not padded."""

    features: int
    kernel_size: tuple[int, int] = (3, 3)
    strides: tuple[int, int] = (1, 1)
    padding: Padding = "zero"
    bias: bool = False

    def __post_init__(self) -> None:
        require_one_of("padding", self.padding, get_args(Padding))
        for name in ("features", "kernel_size", "strides"):
            require_at_least(name, getattr(self, name), 1)

    @property
    def pads(self) -> tuple[tuple[int, int], ...]:
        """Pixels added to both axes: (k − 1) // 2 before and k // 2 after, which keeps the size."""
        return tuple((0, 0) if self.padding == "none" else ((k - 1) // 2, k // 2) for k in self.kernel_size)


@dataclass(frozen=True)
class Gate:
    """A rectifier, the pre-activation of a gate, or a mask, depending on the network."""


@dataclass(frozen=True)
class BatchNorm:
    """Batch normalization of each channel."""


@dataclass(frozen=True)
class AvgPool:
    """The average over disjoint windows; incomplete windows are dropped."""

    window: tuple[int, int] = (2, 2)

    def __post_init__(self) -> None:
        require_at_least("window", self.window, 1)


@dataclass(frozen=True)
class GlobalAvgPool:
    """The average over all positions."""


@dataclass(frozen=True)
class Flatten:
    """All positions and channels in one vector, in the order (y, x, channel)."""


@dataclass(frozen=True)
class Residual:
    """The sum `body(x) + shortcut(x)`; an empty shortcut is the identity."""

    body: tuple["Layer", ...]
    shortcut: tuple["Layer", ...] = ()


Layer = Union[Dense, Conv, Gate, BatchNorm, AvgPool, GlobalAvgPool, Flatten, Residual]  # noqa: UP007 (recursive)
Architecture = tuple[Layer, ...]
Gates = Sequence[Shaped[Array | np.ndarray, "..."]]
"""One array for each `Gate`, (N, ...) as the activation there."""


def iter_layers(layers: Architecture) -> Iterator[Layer]:
    """Iterate over all layers in order, a residual's body before its shortcut."""
    for layer in layers:
        yield layer
        if isinstance(layer, Residual):
            yield from iter_layers((*layer.body, *layer.shortcut))


def gate_count(layers: Architecture) -> int:
    """Count the gates of an architecture."""
    return sum(isinstance(layer, Gate) for layer in iter_layers(layers))


def output_shape(layer: Layer, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of one example after a layer, from that before it, (features,) or (height, width, channels)."""
    name, got = type(layer).__name__, f"an example of shape {shape}"
    if isinstance(layer, Dense):
        require(len(shape) == 1, name, got, "(features,); flatten or pool it first")
        return (layer.features,)
    if isinstance(layer, Conv | AvgPool | GlobalAvgPool):
        require(len(shape) == 3, name, got, "(height, width, channels)")
    if isinstance(layer, Conv):
        axes = zip(shape, layer.pads, layer.kernel_size, layer.strides, strict=False)
        sides = [(size + sum(pad) - kernel) // stride + 1 for size, pad, kernel, stride in axes]
        require(min(sides) >= 1, name, got, f"room for windows of {layer.kernel_size}")
        return (*sides, layer.features)
    if isinstance(layer, AvgPool):
        sides = [size // window for size, window in zip(shape, layer.window, strict=False)]
        require(min(sides) >= 1, name, got, f"room for windows of {layer.window}")
        return (*sides, shape[-1])
    if isinstance(layer, GlobalAvgPool):
        return shape[-1:]
    if isinstance(layer, Flatten):
        return (math.prod(shape),)
    if isinstance(layer, Residual):
        body, shortcut = (reduce(lambda s, one: output_shape(one, s), b, shape) for b in (layer.body, layer.shortcut))
        require(body == shortcut, name, f"body {body} and shortcut {shortcut}", "equal shapes")
        return body
    return shape


def _shapes(layers: Architecture, shape: tuple[int, ...]) -> Iterator[tuple[Layer, tuple[int, ...]]]:
    """Iterate over all layers with the shape of one example before each."""
    for layer in layers:
        yield layer, shape
        if isinstance(layer, Residual):
            yield from _shapes(layer.body, shape)
            yield from _shapes(layer.shortcut, shape)
        shape = output_shape(layer, shape)


def gate_shapes(layers: Architecture, shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Return the shapes of all gates of one example, in order, from its `shape` at the input.

    Example:
        >>> gate_shapes(c4gap(8), (32, 32, 3))
        ((32, 32, 8), (32, 32, 8), (32, 32, 8), (32, 32, 8))
    """
    return tuple(before for layer, before in _shapes(layers, shape) if isinstance(layer, Gate))


def fan_ins(layers: Architecture, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the fan-in of every `Dense` and `Conv`, in order."""
    linear = [(layer, before) for layer, before in _shapes(layers, shape) if isinstance(layer, Dense | Conv)]
    return tuple(c[-1] * (math.prod(layer.kernel_size) if isinstance(layer, Conv) else 1) for layer, c in linear)


def is_biasless(layers: Architecture) -> bool:
    """Whether no layer adds anything to what passes through it: no bias, no BatchNorm.

    Example:
        >>> is_biasless(fc(8, 1)), is_biasless(fc(8, 1, bias=True))
        (True, False)
    """
    return all(
        is_biasless(layer.body) and is_biasless(layer.shortcut)
        if isinstance(layer, Residual)
        else not isinstance(layer, BatchNorm) and not getattr(layer, "bias", False)
        for layer in layers
    )


def fc(width: int = 128, hidden: int = 5, classes: int = 10, bias: bool = False, flatten: bool = False) -> Architecture:
    """Build `hidden` gated layers and a linear head (NPF's code: 5 × 128, with biases); `flatten` for images."""
    first: Architecture = (Flatten(),) if flatten else ()
    return (*first, *((Dense(width, bias), Gate()) * hidden), Dense(classes, bias))


def c4gap(
    width: int = 128, classes: int = 10, depth: int = 4, padding: Padding = "zero", stride: int = 1
) -> Architecture:
    """Build DLGN's C4GAP: gated 3×3 convolutions, global average pooling, a linear head; C1GAP with `depth` 1.

    The first convolution steps by `stride` pixels, 1 in the paper.
    """
    first = (Conv(width, strides=(stride, stride), padding=padding), Gate())
    return (*first, *((Conv(width, padding=padding), Gate()) * (depth - 1)), GlobalAvgPool(), Dense(classes))


def vconv(classes: int = 10, pooled: bool = False) -> Architecture:
    """Build NPF's VCONV, or GCONV if `pooled`: four gated 3×3 convolutions, two gated layers of 256, biases."""
    convolutions = tuple(layer for width in (64, 64, 128, 128) for layer in (Conv(width, bias=True), Gate()))
    pool = GlobalAvgPool() if pooled else Flatten()
    return (*convolutions, pool, *((Dense(256, True), Gate()) * 2), Dense(classes, True))


def vgg16(classes: int = 10, width: int = 64) -> Architecture:
    """Build DLGN's VGG16: 13 convolutions with bias, BatchNorm and gate, 2×2 average pooling after each stage."""
    layers: list[Layer] = []
    for times, factor in ((2, 1), (2, 2), (3, 4), (3, 8), (3, 8)):
        layers += [*(Conv(width * factor, bias=True), BatchNorm(), Gate()) * times, AvgPool()]
    return (*layers, GlobalAvgPool(), Dense(classes, True))


def resnet(depth: int = 110, classes: int = 10, width: int = 16, stride: int = 1) -> Architecture:
    """Build the pre-activation ResNet of DLGN's code base: three groups, option-B shortcuts, `depth` 6n + 2.

    The first convolution steps by `stride` pixels, 1 there.
    """
    blocks, rest = divmod(depth - 2, 6)
    require(not rest and blocks >= 1, "depth", depth, "6n + 2: 8, 14, 20, ..., 110")
    layers: list[Layer] = [Conv(width, strides=(stride, stride))]
    for group, block in product(range(3), range(blocks)):
        features, first = width * 2**group, group > 0 and block == 0
        strides = (2, 2) if first else (1, 1)
        body = (BatchNorm(), Gate(), Conv(features, strides=strides), BatchNorm(), Gate(), Conv(features))
        layers.append(Residual(body, (Conv(features, (1, 1), strides),) if first else ()))
    return (*layers, BatchNorm(), Gate(), GlobalAvgPool(), Dense(classes, True))
