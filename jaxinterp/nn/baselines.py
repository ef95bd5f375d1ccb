"""Conventional image classifiers: CIFAR ResNets with option-A shortcuts, ResNet and ResNeXt, VGG, AlexNet.

He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, Sec. 4.2; Simonyan, Zisserman,
"Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015, Table 1; Krizhevsky, "One weird
trick for parallelizing convolutional neural networks", arXiv 1404.5997, as torchvision has it; Xie, Girshick, Dollár,
Tu, He, "Aggregated Residual Transformations for Deep Neural Networks", CVPR 2017. `nn.torch_weights` reads their
weights from PyTorch.

Convolution, BatchNorm in evaluation, pooling, addition and the classifier are affine, and a ReLU is linear where its
gate does not switch: at each input such a network *is* an affine map, f(x) = W(x) x + b(x). So `frozen=True` only
forces the evaluation statistics, whatever `train` is. Unlike a CoDA net's, b(x) depends on the input.

A ResNet or VGG is a `trunk` (with named activations `stem`, `block_0`, … or `conv_0`, …), global average pooling and a
linear `classifier`; the two commute, so the logits are the mean of per-position class maps. AlexNet has dense layers
on a map with positions, and dropout instead of BatchNorm. Weights start from N(0, 2 / fan-in) (He et al., ICCV 2015),
biases from 0; BatchNorm follows PyTorch's conventions.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from jaxinterp.checks import require, require_one_of
from jaxinterp.nn.batchnorm import BatchNorm
from jaxinterp.nn.layers import ConvNet, Layer
from jaxinterp.nn.pooling import Ties, adaptive_mean, max_pool

Images = Float[Array, "n h w c"]
Features = Float[Array, "n h2 w2 features"]

VGG_STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


RESNET_STAGES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


class ConvNorm(Layer):
    """Convolution without bias, BatchNorm, ReLU.

    Attributes:
        features: output channels.
        strides: step in pixels, in both directions; the padding is (kernel − 1) / 2.
        relu: whether to end with the ReLU.
        kernel: side of the filters in pixels, odd.
        groups: groups of channels that are convolved apart.
    """

    features: int
    strides: int = 1
    relu: bool = True
    kernel: int = 3
    groups: int = 1

    @nn.compact
    def __call__(self, x: Images, train: bool = False, frozen: bool = False) -> Features:
        """Convolve, normalize with the batch's statistics (train) or the running ones, rectify."""
        own: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype, "name": "conv"}
        own |= {"padding": self.kernel // 2, "use_bias": False, "feature_group_count": self.groups}
        init, (side, strides) = nn.initializers.he_normal(), ((n, n) for n in (self.kernel, self.strides))
        y = nn.Conv(self.features, side, strides, kernel_init=init, **own)(x)
        z = BatchNorm(name="norm", **self.shared)(y, train and not frozen)
        return nn.relu(z) if self.relu else z


def option_a(x: Images, features: int, strides: int) -> Features:
    """Apply the parameter-free shortcut: every `strides`-th pixel, zero channels on both sides up to `features` ≥ C.

    Example:
        >>> option_a(jnp.arange(1.0, 5.0).reshape(1, 2, 2, 1), 3, 2).tolist()
        [[[[0.0, 1.0, 0.0]]]]

    Source: He et al. 2016, Sec. 3.3, option A.
    """
    extra = features - x.shape[-1]
    return jnp.pad(x[:, ::strides, ::strides], ((0, 0), (0, 0), (0, 0), (extra // 2, extra - extra // 2)))


class BasicBlock(Layer):
    """Residual block, ReLU(option_a(x) + norm(conv(ReLU(norm(conv(x)))))); attributes as in `ConvNorm`.

    Source: He et al. 2016, Eq. 1 and Sec. 4.2.
    """

    features: int
    strides: int = 1

    @nn.compact
    def __call__(self, x: Images, train: bool = False, frozen: bool = False) -> Features:
        """Apply two convolutions, and the shortcut around them."""
        y = ConvNorm(self.features, self.strides, name="conv_0", **self.shared)(x, train, frozen)
        y = ConvNorm(self.features, relu=False, name="conv_1", **self.shared)(y, train, frozen)
        return nn.relu(y + option_a(x, self.features, self.strides).astype(y.dtype))


class ResNetTrunk(ConvNet):
    """The convolutional part of a CIFAR ResNet, or its first blocks.

    Attributes:
        depth: 6n + 2 of the whole network (20, 32, 44, 56, 110): three stages of n blocks.
        blocks: how many blocks to keep, 0 (stem only) to 3n; None for all.
        width: channels of the first stage; the next two have 2 and 4 times as many at half the resolution.

    Source: He et al. 2016, Sec. 4.2.
    """

    depth: int = 20
    blocks: int | None = None
    width: int = 16

    @nn.compact
    def __call__(self, x: Images, train: bool = False, frozen: bool = False) -> Features:
        """Return the features of images in [0, 1]."""
        per_stage, rest = divmod(self.depth - 2, 6)
        require(rest == 0 and per_stage > 0, "depth", self.depth, "6n + 2 with n >= 1: 8, 14, 20, 32, 44, 56, ...")
        blocks = 3 * per_stage if self.blocks is None else self.blocks
        require(0 <= blocks <= 3 * per_stage, "blocks", blocks, f"0 to {3 * per_stage} for depth {self.depth}")
        x = self.standardize(x)
        x = ConvNorm(self.width, name="stem", **self.shared)(x, train, frozen)
        for i in range(blocks):
            stage, position = divmod(i, per_stage)
            strides = 2 if stage > 0 and position == 0 else 1
            x = BasicBlock(self.width * 2**stage, strides, name=f"block_{i}", **self.shared)(x, train, frozen)
        return x


class VGGTrunk(ConvNet):
    """The convolutional part of a VGG network: five stages of 3×3 ConvNorm, each followed by 2×2 max pooling.

    The pooling is to floor(H / 2) × floor(W / 2).

    Attributes:
        depth: 11, 13, 16 or 19, the paper's configurations A, B, D, E (with one dense layer, not three, for 32×32).
        width: channels of the first stage; then 2, 4, 8, 8 times as many.
        ties: who has the derivative where maxima are equal; "first" as in PyTorch, see `max_pool`.

    Source: Simonyan and Zisserman 2015, Table 1, with BatchNorm after every convolution.
    """

    depth: int = 16
    width: int = 64
    ties: Ties = "shared"

    @nn.compact
    def __call__(self, x: Images, train: bool = False, frozen: bool = False) -> Features:
        """Return the features of images in [0, 1], at least 32×32."""
        require_one_of("depth", self.depth, VGG_STAGES)
        require(min(x.shape[1:3]) >= 32, "x", f"{x.shape[1]}x{x.shape[2]} pixels", "at least 32x32: five poolings")
        x = self.standardize(x)
        first = 0
        for stage, convolutions in enumerate(VGG_STAGES[self.depth]):
            features = self.width * 2 ** min(stage, 3)
            for i in range(first, first + convolutions):
                x = ConvNorm(features, name=f"conv_{i}", **self.shared)(x, train, frozen)
            x = max_pool(x, ties=self.ties)
            first += convolutions
        return x


class CifarResNet(ConvNet):
    """ResNet-20, -32, -44, -56, … for small images, with option-A shortcuts.

    269,722 parameters at depth 20 and 853,018 at depth 56 (width 16, RGB, 10 classes). Fully convolutional:
    any image size. Activations: `trunk`, `trunk/stem`, `trunk/block_0` … `trunk/block_{3n−1}`.

    Attributes:
        depth: 6n + 2.
        classes: number of classes.
        width: see `ResNetTrunk`, as the others.

    Source: He et al. 2016, Sec. 4.2.
    """

    depth: int = 20
    classes: int = 10
    width: int = 16

    @nn.compact
    def __call__(self, x: Images, train: bool = False, frozen: bool = False) -> Float[Array, "n classes"]:
        """Return the logits of images in [0, 1]; `frozen` forces the evaluation statistics."""
        trunk = ResNetTrunk(self.depth, width=self.width, name="trunk", mean=self.mean, std=self.std, **self.shared)
        return self.classify(trunk(x, train, frozen), self.classes)


class VGG(ConvNet):
    """VGG-11, -13, -16 or -19 for small images (32×32 or larger), with BatchNorm and one linear layer.

    Activations: `trunk`, `trunk/conv_0` … (after the ReLU). Attributes as in `VGGTrunk`, and `classes`. At depth 16:
    14,724,042 parameters (RGB, 10 classes; the convolutions have no bias, which BatchNorm would cancel).

    Source: Simonyan and Zisserman 2015, Table 1.
    """

    depth: int = 16
    classes: int = 10
    width: int = 64
    ties: Ties = "shared"

    @nn.compact
    def __call__(self, x: Images, train: bool = False, frozen: bool = False) -> Float[Array, "n classes"]:
        """Return the logits of images in [0, 1]; `frozen` forces the evaluation statistics."""
        own: dict[str, Any] = {"name": "trunk", "mean": self.mean, "std": self.std, **self.shared}
        trunk = VGGTrunk(self.depth, self.width, self.ties, **own)
        return self.classify(trunk(x, train, frozen), self.classes)


class DenseHead(ConvNet):
    """A network that ends with three dense layers on the last map, dropout before each hidden one."""

    def dense_layers(self, x: Features, hidden: int, classes: int, dropout: int | float) -> Float[Array, "n classes"]:
        """Return the logits, in float32 or wider; with dropout from the random stream of that name."""
        own: dict[str, Any] = {"kernel_init": nn.initializers.he_normal(), "param_dtype": self.param_dtype}
        x = x.reshape(len(x), -1)
        for i in range(2):
            x = nn.Dropout(dropout, deterministic=not dropout, name=f"dropout_{i}")(x)
            x = nn.relu(nn.Dense(hidden, dtype=self.dtype, name=f"dense_{i}", **own)(x))
        return nn.Dense(classes, name="classifier", **own)(x.astype(np.promote_types(np.float32, x.dtype)))


class AlexNet(DenseHead):
    """AlexNet: five convolutions, three overlapping poolings, three dense layers; torchvision's by default.

    As torchvision's, for images of 224×224, it has 61,100,840 parameters; `AlexNet.cifar` makes one for 32×32.
    Activations: `conv_0` … `conv_4` and `dense_0`, `dense_1`, all before the ReLU. Dropout is off unless `train`,
    and then needs the random stream "dropout".

    Attributes:
        classes: number of classes.
        widths: channels of the five convolutions; the last four are 5×5, 3×3, 3×3, 3×3, stride 1.
        kernel: side of the first convolution's filters in pixels.
        strides: its step in pixels, in both directions.
        padding: its padding in pixels, on every side.
        hidden: units of each hidden dense layer.
        side: height and width to which the last map is averaged, see `adaptive_mean`.
        dropout: rate before each hidden dense layer, in [0, 1).
        ties: who has the derivative of the 3×3 poolings where maxima are equal, which the values do not tell: "first"
            as in PyTorch, for its gradients on images with flat regions; see `max_pool`.

    Source: Krizhevsky 2014, arXiv 1404.5997, footnote 1; torchvision/models/alexnet.py.
    """

    classes: int = 1000
    widths: tuple[int, ...] = (64, 192, 384, 256, 256)
    kernel: int = 11
    strides: int = 4
    padding: int = 2
    hidden: int = 4096
    side: int = 6
    dropout: int | float = 0.5
    ties: Ties = "shared"

    @classmethod
    def cifar(cls, classes: int = 10, scale: int | float = 1, **fields: Any) -> "AlexNet":
        """Build the network for 32×32 images: 5×5 filters at every pixel, 128 hidden units on a 3×3 map.

        Args:
            classes: number of classes.
            scale: factor of the five widths, > 0; at 1 there are 2,764,106 parameters (RGB, 10 classes).
            **fields: further attributes; of images of 28×28 the last map has 2×2 pixels, which is a `side` to choose.

        Example:
            >>> AlexNet.cifar(scale=0.25).widths
            (16, 48, 96, 64, 64)
        """
        require(0 < scale < np.inf, "scale", scale, "a positive finite number")
        widths = tuple(max(1, round(scale * width)) for width in AlexNet.widths)
        small: dict[str, Any] = {"widths": widths, "kernel": 5, "strides": 1, "padding": 2, "hidden": 128, "side": 3}
        return cls(classes, **(small | fields))

    @nn.compact
    def __call__(self, x: Images, train: bool = False, frozen: bool = False) -> Float[Array, "n classes"]:
        """Return the logits of images in [0, 1]; `frozen` turns dropout off."""
        require(len(self.widths) == 5, "widths", self.widths, "5 numbers, one for each convolution")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "a rate in [0, 1)")
        height, width = (self._pooled(pixels) for pixels in x.shape[1:3])
        got = f"{x.shape[1]}x{x.shape[2]} pixels, a last map of {max(height, 0)}x{max(width, 0)}"
        require(min(height, width) >= 1, "x", got, "a map of at least one pixel")
        own: dict[str, Any] = {"kernel_init": nn.initializers.he_normal(), "param_dtype": self.param_dtype}
        x = self.standardize(x)
        for i, (features, kernel) in enumerate(zip(self.widths, (self.kernel, 5, 3, 3, 3), strict=True)):
            strides, padding = (self.strides, self.padding) if i == 0 else (1, kernel // 2)
            conv: dict[str, Any] = {"padding": padding, "dtype": self.dtype, "name": f"conv_{i}", **own}
            x = nn.relu(nn.Conv(features, (kernel, kernel), (strides, strides), **conv)(x))
            if i in (0, 1, 4):
                x = max_pool(x, (3, 3), (2, 2), ties=self.ties)
        x = adaptive_mean(x, self.side)
        return self.dense_layers(x, self.hidden, self.classes, self.dropout if train and not frozen else 0.0)

    def _pooled(self, pixels: int) -> int:
        """Height or width of the last map, before it is averaged."""
        pixels = (pixels + 2 * self.padding - self.kernel) // self.strides + 1
        for _ in range(3):
            pixels = (pixels - 3) // 2 + 1
        return pixels


class ResidualBlock(Layer):
    """Residual block of 1×1, 3×3 and 1×1 convolutions, or of two 3×3; a 1×1 convolution in the shortcut where needed.

    The step is the 3×3 convolution's, the first one's of two, as torchvision has it ("ResNet v1.5").

    Attributes:
        features: output channels.
        inner: channels before the last convolution.
        strides: step in pixels.
        groups: of the 3×3 convolution.
        bottleneck: three convolutions, not two.

    Source: He et al. 2016, Fig. 5; Xie et al. 2017, Fig. 3 (c).
    """

    features: int
    inner: int
    strides: int = 1
    groups: int = 1
    bottleneck: bool = True

    @nn.compact
    def __call__(self, x: Images, train: bool = False, frozen: bool = False) -> Features:
        """Apply the convolutions, and the shortcut around them."""
        rows = [(self.inner, self.strides, 3, self.groups), (self.features, 1, 3, 1)]
        if self.bottleneck:
            rows = [(self.inner, 1, 1, 1), rows[0], (self.features, 1, 1, 1)]
        y = x
        for i, (features, strides, kernel, groups) in enumerate(rows):
            relu = i + 1 < len(rows)
            y = ConvNorm(features, strides, relu, kernel, groups, name=f"conv_{i}", **self.shared)(y, train, frozen)
        if self.strides != 1 or x.shape[-1] != self.features:
            x = ConvNorm(self.features, self.strides, False, 1, name="shortcut", **self.shared)(x, train, frozen)
        return nn.relu(y + x.astype(y.dtype))


class ResNet(ConvNet):
    """ResNet-18, -34, -50, -101, -152 and ResNeXt for large images; ResNet-50 by default, 25,557,032 parameters.

    `ResNet.of(18)` makes the others; ResNeXt-50 (32×4d) is `ResNet(groups=32, group_width=4)`. Fully convolutional: any
    image size. Activations: `stem`, and `block_0`, `block_1`, … through all stages.

    Attributes:
        stages: blocks of each stage; all but the first begin with a step of 2 pixels.
        classes: number of classes.
        bottleneck: blocks of three convolutions, with 4 · width output channels, not of two.
        width: channels of the first stage, doubled from stage to stage.
        groups: of the 3×3 convolutions of bottlenecks.
        group_width: channels of each group in the first stage, where the width is 64.
        stem: kernel side and step of the first convolution, in pixels; a step of 2 is followed by 3×3 maxima, step 2.
        ties: who has the derivative where maxima are equal; "first" as in PyTorch, see `max_pool`.

    Source: He et al. 2016, Table 1; Xie et al. 2017, Table 1; torchvision/models/resnet.py.
    """

    stages: tuple[int, ...] = RESNET_STAGES[50]
    classes: int = 1000
    bottleneck: bool = True
    width: int = 64
    groups: int = 1
    group_width: int = 64
    stem: tuple[int, int] = (7, 2)
    ties: Ties = "shared"

    @classmethod
    def of(cls, depth: int, classes: int = 1000, **fields: Any) -> "ResNet":
        """Build the network of a depth in He et al.'s Table 1.

        Args:
            depth: 18, 34, 50, 101 or 152.
            classes: number of classes.
            **fields: further attributes.

        Example:
            >>> ResNet.of(34).stages, ResNet.of(34).bottleneck
            ((3, 4, 6, 3), False)
        """
        require_one_of("depth", depth, RESNET_STAGES)
        return cls(RESNET_STAGES[depth], classes, depth >= 50, **fields)

    @property
    def blocks(self) -> list[tuple[int, int]]:
        """Stage and place in the stage of every block, from the input up, both from 0."""
        return [(stage, i) for stage, blocks in enumerate(self.stages) for i in range(blocks)]

    @nn.compact
    def __call__(self, x: Images, train: bool = False, frozen: bool = False) -> Float[Array, "n classes"]:
        """Return the logits of images in [0, 1]; `frozen` forces the evaluation statistics."""
        side, strides = self.stem
        x = self.standardize(x)
        x = ConvNorm(self.width, strides, kernel=side, name="stem", **self.shared)(x, train, frozen)
        if strides > 1:
            x = max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)), ties=self.ties)
        for number, (stage, i) in enumerate(self.blocks):
            width, step = self.width * 2**stage, 2 if stage and i == 0 else 1
            inner = width * self.group_width // 64 * self.groups if self.bottleneck else width
            shape = (4 * width if self.bottleneck else width, inner, step, self.groups, self.bottleneck)
            x = ResidualBlock(*shape, name=f"block_{number}", **self.shared)(x, train, frozen)
        return self.classify(x, self.classes)


class ImageNetVGG(DenseHead):
    """VGG-11, -13, -16 or -19 with its three dense layers, with or without BatchNorm; torchvision's by default.

    At depth 16 it has 138,357,544 parameters. Activations: `conv_0`, `conv_1`, …, after the ReLU with BatchNorm, before
    it without; `dense_0` and `dense_1`, before it. Dropout is off unless `train`, and needs the stream "dropout".

    Attributes:
        depth: 11, 13, 16 or 19, the paper's configurations A, B, D, E.
        classes: number of classes.
        width: channels of the first stage; then 2, 4, 8, 8 times as many.
        norm: whether BatchNorm follows every convolution, which then has no bias.
        hidden: units of each hidden dense layer.
        side: height and width to which the last map is averaged, see `adaptive_mean`.
        dropout: rate before each hidden dense layer, in [0, 1).
        ties: who has the derivative where maxima are equal; "first" as in PyTorch, see `max_pool`.

    Source: Simonyan and Zisserman 2015, Table 1; torchvision/models/vgg.py.
    """

    depth: int = 16
    classes: int = 1000
    width: int = 64
    norm: bool = False
    hidden: int = 4096
    side: int = 7
    dropout: int | float = 0.5
    ties: Ties = "shared"

    @nn.compact
    def __call__(self, x: Images, train: bool = False, frozen: bool = False) -> Float[Array, "n classes"]:
        """Return the logits of images in [0, 1], at least 32×32; `frozen` turns dropout off."""
        require_one_of("depth", self.depth, VGG_STAGES)
        require(0 <= self.dropout < 1, "dropout", self.dropout, "a rate in [0, 1)")
        require(min(x.shape[1:3]) >= 32, "x", f"{x.shape[1]}x{x.shape[2]} pixels", "at least 32x32: five poolings")
        x = self.standardize(x)
        own: dict[str, Any] = {"kernel_init": nn.initializers.he_normal(), "param_dtype": self.param_dtype}
        i = 0
        for stage, convolutions in enumerate(VGG_STAGES[self.depth]):
            features = self.width * 2 ** min(stage, 3)
            for _ in range(convolutions):
                if self.norm:
                    x = ConvNorm(features, name=f"conv_{i}", **self.shared)(x, train, frozen)
                else:
                    x = nn.relu(nn.Conv(features, (3, 3), padding=1, dtype=self.dtype, name=f"conv_{i}", **own)(x))
                i += 1
            x = max_pool(x, ties=self.ties)
        x = adaptive_mean(x, self.side)
        return self.dense_layers(x, self.hidden, self.classes, self.dropout if train and not frozen else 0.0)
