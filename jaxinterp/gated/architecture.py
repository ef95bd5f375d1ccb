"""Architectures as data: one description that the ReLU twin, the gating and value networks and the kernels share.

An architecture is a tuple of layers, read from the input to the output. `Gate` marks where a ReLU network rectifies,
a gating network is read and a value network is masked; the l-th `Gate`, in order, takes the l-th gate.

The named ones are those of Lakshminarayanan & Singh, "Neural Path Features and Neural Path Kernel" (NeurIPS 2020,
arXiv 2006.10529, "NPF") and "Disentangling deep neural networks with rectified linear units using duality" (arXiv
2110.03403, "DLGN").
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Union, get_args

import numpy as np
from jaxtyping import Array, Shaped

Padding = Literal["zero", "circular", "none"]


def _positive(name: str, *values: int) -> None:
    if min(values) < 1:
        raise ValueError(f"{name}: got {', '.join(map(str, values))}, expected at least 1")


@dataclass(frozen=True)
class Dense:
    """A fully connected layer: x ↦ Θᵀx (+ bias)."""

    features: int
    bias: bool = False

    def __post_init__(self) -> None:
        _positive("features", self.features)


@dataclass(frozen=True)
class Conv:
    """A convolution: k_y × k_x windows, padded by (k − 1) // 2 zeros or pixels from the other side, or not at all."""

    features: int
    kernel_size: tuple[int, int] = (3, 3)
    strides: tuple[int, int] = (1, 1)
    padding: Padding = "zero"
    bias: bool = False

    def __post_init__(self) -> None:
        if self.padding not in get_args(Padding):
            raise ValueError(f"padding: got {self.padding!r}, expected one of {', '.join(get_args(Padding))}")
        _positive("features", self.features)
        _positive("kernel_size", *self.kernel_size)
        _positive("strides", *self.strides)

    @property
    def pads(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Pixels added on both sides of both axes: (k − 1) // 2 before, k // 2 after, so that the size stays."""
        if self.padding == "none":
            return (0, 0), (0, 0)
        (ky, kx) = self.kernel_size
        return ((ky - 1) // 2, ky // 2), ((kx - 1) // 2, kx // 2)


@dataclass(frozen=True)
class Gate:
    """The place of a rectifier, of a gate's pre-activation, or of a mask."""


@dataclass(frozen=True)
class BatchNorm:
    """Batch normalization of each channel."""


@dataclass(frozen=True)
class AvgPool:
    """The average of disjoint windows; rows and columns that do not fill one are dropped."""

    window: tuple[int, int] = (2, 2)

    def __post_init__(self) -> None:
        _positive("window", *self.window)


@dataclass(frozen=True)
class GlobalAvgPool:
    """The average over all positions."""


@dataclass(frozen=True)
class Flatten:
    """All positions and channels side by side, in the order (y, x, channel)."""


@dataclass(frozen=True)
class Residual:
    """The sum of two branches: `body(x) + shortcut(x)`, the shortcut being x itself where it is empty."""

    body: tuple["Layer", ...]
    shortcut: tuple["Layer", ...] = ()


Layer = Union[Dense, Conv, Gate, BatchNorm, AvgPool, GlobalAvgPool, Flatten, Residual]  # noqa: UP007 (recursive)
Architecture = tuple[Layer, ...]
Gates = Sequence[Shaped[Array | np.ndarray, "..."]]
"""One array for each `Gate`, (N, ...) as the activation there."""


def iter_layers(layers: Architecture) -> Iterator[Layer]:
    """Every layer in order, those of a residual's body before those of its shortcut."""
    for layer in layers:
        yield layer
        if isinstance(layer, Residual):
            yield from iter_layers(layer.body)
            yield from iter_layers(layer.shortcut)


def gate_count(layers: Architecture) -> int:
    """How many gates an architecture has.

    Example:
        >>> gate_count(vgg16())
        13
    """
    return sum(isinstance(layer, Gate) for layer in iter_layers(layers))


def output_shape(layer: Layer, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of one example after a layer, from its shape before it: (features,) or (height, width, channels).

    Raises:
        ValueError: the layer does not fit the shape.

    Example:
        >>> output_shape(Conv(8, strides=(2, 2)), (32, 32, 3))
        (16, 16, 8)
    """
    name = type(layer).__name__
    if isinstance(layer, Conv | AvgPool | GlobalAvgPool) and len(shape) != 3:
        raise ValueError(f"{name} expects (height, width, channels), got an example of shape {shape}")
    if isinstance(layer, Dense):
        if len(shape) != 1:
            raise ValueError(f"Dense expects (features,), got an example of shape {shape}; flatten or pool it first")
        return (layer.features,)
    if isinstance(layer, Conv):
        sides = [
            (size + sum(pad) - kernel) // stride + 1
            for size, pad, kernel, stride in zip(shape, layer.pads, layer.kernel_size, layer.strides, strict=False)
        ]
        if min(sides) < 1:
            raise ValueError(f"Conv with windows of {layer.kernel_size} does not fit an example of shape {shape}")
        return (*sides, layer.features)
    if isinstance(layer, AvgPool):
        sides = [size // window for size, window in zip(shape, layer.window, strict=False)]
        if min(sides) < 1:
            raise ValueError(f"AvgPool of {layer.window} does not fit an example of shape {shape}")
        return (*sides, shape[-1])
    if isinstance(layer, GlobalAvgPool):
        return shape[-1:]
    if isinstance(layer, Flatten):
        return (int(np.prod(shape)),)
    if isinstance(layer, Residual):
        through, around = shape, shape
        for inner in layer.body:
            through = output_shape(inner, through)
        for inner in layer.shortcut:
            around = output_shape(inner, around)
        if through != around:
            raise ValueError(f"Residual: its body gives {through} and its shortcut {around}, expected equal shapes")
        return through
    return shape


def _shapes(layers: Architecture, shape: tuple[int, ...]) -> Iterator[tuple[Layer, tuple[int, ...]]]:
    for layer in layers:
        yield layer, shape
        if isinstance(layer, Residual):
            yield from _shapes(layer.body, shape)
            yield from _shapes(layer.shortcut, shape)
        shape = output_shape(layer, shape)


def gate_shapes(layers: Architecture, shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Shapes of all gates of an example, in order.

    Args:
        layers: the architecture.
        shape: shape of an example at the input, (features,) or (height, width, channels).

    Example:
        >>> gate_shapes(c4gap(8), (32, 32, 3))
        ((32, 32, 8), (32, 32, 8), (32, 32, 8), (32, 32, 8))
    """
    return tuple(before for layer, before in _shapes(layers, shape) if isinstance(layer, Gate))


def fan_ins(layers: Architecture, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Fan-in of every `Dense` and `Conv`, in order: inputs of one output unit.

    Example:
        >>> fan_ins(fc(128, 3), (784,))
        (784, 128, 128, 128)
    """
    return tuple(
        before[-1] * (int(np.prod(layer.kernel_size)) if isinstance(layer, Conv) else 1)
        for layer, before in _shapes(layers, shape)
        if isinstance(layer, Dense | Conv)
    )


def fc(width: int = 128, hidden: int = 5, classes: int = 10, bias: bool = False, flatten: bool = False) -> Architecture:
    """`hidden` gated layers of one width and a linear head; `flatten` for images. NPF's code: 5 × 128, with biases."""
    first: Architecture = (Flatten(),) if flatten else ()
    return (*first, *((Dense(width, bias), Gate()) * hidden), Dense(classes, bias))


def c4gap(width: int = 128, classes: int = 10, depth: int = 4, padding: Padding = "zero") -> Architecture:
    """DLGN's C4GAP (C1GAP with `depth` 1): gated 3×3 convolutions, global average pooling, a linear head."""
    return (*((Conv(width, padding=padding), Gate()) * depth), GlobalAvgPool(), Dense(classes))


def vconv(classes: int = 10, pooled: bool = False) -> Architecture:
    """NPF's VCONV: four gated 3×3 convolutions (64, 64, 128, 128), two gated layers of 256, biases; GCONV if pooled."""
    convolutions = tuple(layer for width in (64, 64, 128, 128) for layer in (Conv(width, bias=True), Gate()))
    return (
        *convolutions,
        GlobalAvgPool() if pooled else Flatten(),
        *((Dense(256, True), Gate()) * 2),
        Dense(classes, True),
    )


def vgg16(classes: int = 10, width: int = 64) -> Architecture:
    """DLGN's VGG16: 13 convolutions with bias, BatchNorm and gate, 2×2 average pooling after each stage."""
    layers: list[Layer] = []
    for times, factor in ((2, 1), (2, 2), (3, 4), (3, 8), (3, 8)):
        stage: Architecture = (Conv(width * factor, bias=True), BatchNorm(), Gate())
        layers += (*(stage * times), AvgPool())
    return (*layers, GlobalAvgPool(), Dense(classes, True))


def resnet(depth: int = 110, classes: int = 10, width: int = 16) -> Architecture:
    """The pre-activation CIFAR ResNet of DLGN's code base: three groups of two-convolution blocks, option-B shortcuts.

    Raises:
        ValueError: `depth` is not 6n + 2.
    """
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1:
        raise ValueError(f"depth: got {depth}, expected 6n + 2: 8, 14, 20, ..., 110")
    layers: list[Layer] = [Conv(width)]
    for group in range(3):
        features = width * 2**group
        for block in range(blocks):
            first = group > 0 and block == 0
            strides = (2, 2) if first else (1, 1)
            body = (BatchNorm(), Gate(), Conv(features, strides=strides), BatchNorm(), Gate(), Conv(features))
            layers.append(Residual(body, (Conv(features, (1, 1), strides),) if first else ()))
    return (*layers, BatchNorm(), Gate(), GlobalAvgPool(), Dense(classes, True))
