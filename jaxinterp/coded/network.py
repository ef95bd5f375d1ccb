"""Coded ResNeXt: residual networks whose paths (subNNs) are switched on by class, as a code prescribes.

Avranas and Kountouris, "Towards Disentangling Information Paths with Coded ResNeXt", NeurIPS 2022 (arXiv 2202.05343).
A block has N paths of width d; path n answers t_n = W_n u_n, with u_n what its 1×1 and grouped 3×3 convolutions made of
the block's input. In a coded block (Sec. 3)

    E_n   = mean over positions and channels of t_n²                          energy of a path
    ρ     = √(1/N Σ_n E_n)        t̄_n = t_n / ρ                               energy normalization      (Eq. 2, 3)
    L     = 1/N Σ_n (a E_n / Σ_j E_j − w_kn)⁴                                 coding loss of class k     (Eq. 5, 6)
    y     = Σ_n m_n t̄_n                                                       m: paths dropped or removed

followed by BatchNorm (the only one after the sum), the shortcut and a ReLU. W_n is linear and without bias, and ρ and m
are numbers per image and path, so the (B, H, W, N, C) tensor of all t_n is never formed:

    E_n   = <Σ_hw u_n u_nᵀ, W_n W_nᵀ> / (C H W)        y = [u_n m_n / ρ]_n [W_n]_n, one dense product

At each input the network is affine once ρ is held (`frozen=True`); ReLUs hold their own gates.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from jaxinterp.coded.codes import Code, load_code
from jaxinterp.nn.batchnorm import BatchNorm
from jaxinterp.nn.layers import ConvNet, Layer

TINY = 1e-12  # of the mean energy, where the original has nothing and divides 0 by 0

FEW = 1 << 29  # multiply-adds of a dense convolution that is quicker made than many small ones

Energies = list[Float[Array, "batch paths"]]
Keep = Sequence[Float[Array | np.ndarray, "..."] | None]


@dataclass(frozen=True)
class Stage:
    """Blocks of one resolution.

    Attributes:
        blocks: how many.
        features: output channels C.
        width: channels d of a path.
        paths: N, as the energies are normalized.
        strides: step of the first block in pixels.
        code: the classes' words, of length N; None for ordinary blocks, whose paths serve every class.
        kept: paths that are really there, where others were removed; None for N.
    """

    blocks: int
    features: int
    width: int
    paths: int
    strides: int = 1
    code: Code | None = None
    kept: int | None = None

    def __post_init__(self) -> None:
        """Refuse numbers that no stage can have.

        Raises:
            ValueError: in one line, which field, what came and what was expected.
        """
        for name in ("blocks", "features", "width", "paths", "strides"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least 1")
        if not isinstance(self.code, Code | None):
            raise ValueError(f"code: got {self.code!r}, expected a Code")
        if self.code is not None and self.code.length != self.paths:
            raise ValueError(f"code: got words of length {self.code.length}, expected one bit for each of {self.paths}")
        if self.kept is not None and not 1 <= self.kept <= self.paths:
            raise ValueError(f"kept: got {self.kept}, expected 1 to {self.paths}")

    @property
    def present(self) -> int:
        """Paths that are really there."""
        return self.paths if self.kept is None else self.kept


def grouped_conv(
    x: Float[Array, "n h w c"], kernel: Float[Array, "3 3 d c"], strides: int = 1
) -> Float[Array, "n h2 w2 c"]:
    """3×3 convolution of C/d groups of d channels each, zero padding 1.

    On a CPU the groups are convolutions of their own: XLA's grouped one has a backward pass that is a hundred times
    slower, a dense one with zeros between the groups takes four times as long, products batched over the groups twice.
    Of few images or channels it is the dense one nevertheless, which is compiled in a tenth of the time.

    Args:
        x: (N, H, W, C).
        kernel: (3, 3, d, C), output channels group by group.
        strides: step in pixels.

    Returns:
        (N, ⌈H / strides⌉, ⌈W / strides⌉, C).
    """
    d = kernel.shape[2]
    groups = x.shape[3] // d
    convolve = partial(
        lax.conv_general_dilated,
        window_strides=(strides, strides),
        padding=((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    if jax.default_backend() != "cpu" or groups == 1:
        return convolve(x, kernel, feature_group_count=groups)
    if x.size // strides**2 * 9 * x.shape[3] <= FEW:
        own = jnp.eye(groups, dtype=kernel.dtype)[None, None, :, None, :, None]
        apart = own * kernel.reshape(3, 3, 1, d, groups, -1)
        return convolve(x, apart.reshape(3, 3, x.shape[3], -1))
    parts = zip(jnp.split(x, groups, axis=3), jnp.split(kernel, groups, axis=3), strict=True)
    return jnp.concatenate([convolve(part, taps) for part, taps in parts], axis=3)


def path_energies(
    u: Float[Array, "batch h w paths d"], expand: Float[Array, "paths d c"]
) -> Float[Array, "batch paths"]:
    """E_n = mean over positions and channels of (W_n u_n)², in the Gram form of this file's head.

    Args:
        u: (B, H, W, N, d).
        expand: W, (N, d, C).

    Returns:
        Energies ≥ 0, (B, N), float32 or wider.

    Source: arXiv 2202.05343, Eq. 2; the Gram form is ours.
    """
    wide = np.promote_types(np.float32, u.dtype)
    u, expand = u.astype(wide), expand.astype(wide)
    second = jnp.einsum("bhwnd,bhwne->bnde", u, u, precision=lax.Precision.HIGHEST)
    gram = jnp.einsum("ndc,nec->nde", expand, expand, precision=lax.Precision.HIGHEST)
    energies = jnp.einsum("bnde,nde->bn", second, gram, precision=lax.Precision.HIGHEST)
    return jnp.maximum(energies, 0) / (expand.shape[2] * u.shape[1] * u.shape[2])


def coding_loss(
    energies: Float[Array, "batch paths"], words: Float[Array, "batch paths"], power: int | float = 4
) -> Float[Array, ""]:
    """How far the shares of energy are from the words: mean over batch and paths of |a E_n / Σ_j E_j − w_n|^power.

    Args:
        energies: (B, N), ≥ 0, of all paths before any is dropped.
        words: word of each image's class, (B, N), 0 or 1, all of weight a.
        power: exponent; 4 in the paper.

    Returns:
        A scalar ≥ 0; 0 where the energy is shared equally by exactly the active paths.

    Example:
        >>> word = jnp.array([[1.0, 0.0, 1.0, 0.0]])
        >>> float(coding_loss(word, word)), float(coding_loss(jnp.ones((1, 4)), word))
        (0.0, 0.0625)

    Source: arXiv 2202.05343, Eq. 5 and 6, with r Ē_n = a E_n / Σ_j E_j.
    """
    shares = energies / (energies.sum(1, keepdims=True) + TINY * energies.shape[1])
    miss = jnp.abs(words.sum(1, keepdims=True) * shares - words)
    return (miss**power).mean()


class Pointwise(Layer):
    """A 1×1 convolution without bias, as a product of two matrices.

    Of operands with more than two axes XLA's CPU backend copies one, transposed and value by value, for the gradient of
    the weights, which took a third of a step's time.

    Attributes:
        features: output channels.
        fan_out: by which the variance 2 / fan_out of the initial weights is counted.
    """

    features: int
    fan_out: int

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w features"]:
        """Mix the channels of every pixel."""
        init = nn.initializers.normal(math.sqrt(2 / self.fan_out))
        kernel = self.param("kernel", init, (x.shape[3], self.features), self.param_dtype)
        x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype)
        return (x.reshape(-1, x.shape[3]) @ kernel).reshape(*x.shape[:3], self.features)


class Paths(nn.Module):
    """What the paths hand on, u_n m_n / ρ: the activation at which a path's share of a logit is read."""

    def __call__(self, u: Float[Array, "batch h w paths d"], scale: Float[Array, "batch paths"]) -> Array:
        """(B, H, W, N·d), path by path."""
        return (u * scale[:, None, None, :, None].astype(u.dtype)).reshape(*u.shape[:3], -1)


class Out(nn.Module):
    """A block's output, ReLU(y + shortcut); a module so that it has a name at which it can be decomposed."""

    def __call__(self, y: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        """Rectify."""
        return nn.relu(y)


class CodedBlock(Layer):
    """One residual block; with `normalize` its paths' energies are normalized, which is what a coded block does.

    Attributes:
        features: output channels C.
        width: channels d of a path.
        paths: paths that are there.
        divisor: N, by which the sum of the energies is divided; `paths` unless some were removed.
        strides: step of the 3×3 convolution in pixels.
        normalize: energy normalization; an ordinary ResNeXt block without.
        ghost: see `BatchNorm`.

    Source: arXiv 2202.05343, Fig. 1 and Sec. 3.1; initialization is the authors' (He, fan out, as PyTorch counts it).
    """

    features: int
    width: int
    paths: int
    divisor: int
    strides: int = 1
    normalize: bool = True
    ghost: int | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "n h w c"],
        train: bool = False,
        frozen: bool = False,
        mask: Float[Array, "n paths"] | None = None,
        keep: Float[Array | np.ndarray, "..."] | None = None,
        shortcuts_only: bool = False,
    ) -> tuple[Float[Array, "n h2 w2 features"], Float[Array, "n paths"] | None]:
        """Run the block.

        Args:
            x: input, (N, H, W, C).
            train: BatchNorm with the batch's statistics.
            frozen: hold ρ under differentiation, and BatchNorm in evaluation.
            mask: what every path is multiplied with after the normalization (dropSubNNs), (N, paths).
            keep: what every path is multiplied with before it, (paths,) or (N, paths): 0 removes one.
            shortcuts_only: hold the paths' inputs too, so that only the shortcut hands on derivatives.

        Returns:
            The output, and the energies of all paths, (N, paths), float32 or wider; None of an ordinary block.
        """
        train = train and not frozen
        inner, size = self.paths * self.width, self.divisor * self.width
        own = {"ghost": self.ghost, **self.shared}
        u = lax.stop_gradient(x) if shortcuts_only else x
        u = nn.relu(
            BatchNorm(name="norm_reduce", **own)(Pointwise(inner, size, name="reduce", **self.shared)(u), train)
        )
        kernel = self.param(
            "inner_kernel",
            nn.initializers.normal(math.sqrt(2 / (9 * size))),
            (3, 3, self.width, inner),
            self.param_dtype,
        )
        u, kernel = nn.dtypes.promote_dtype(u, kernel, dtype=self.dtype)
        u = nn.relu(BatchNorm(name="norm_inner", **own)(grouped_conv(u, kernel, self.strides), train))
        fan_out = self.features * (self.divisor if self.normalize else 1)
        shape = (self.paths, self.width, self.features)
        expand = self.param("expand_kernel", nn.initializers.normal(math.sqrt(2 / fan_out)), shape, self.param_dtype)
        u = u.reshape(*u.shape[:3], self.paths, self.width)
        wide = np.promote_types(np.float32, u.dtype)
        scale, energies = jnp.ones((len(x), self.paths), wide), None
        kept = None
        if keep is not None:
            if jnp.shape(keep) not in ((self.paths,), scale.shape):
                raise ValueError(f"keep: got shape {jnp.shape(keep)}, expected ({self.paths},) or {scale.shape}")
            kept = jnp.broadcast_to(jnp.asarray(keep), scale.shape).astype(wide)
        if self.normalize:
            energies = path_energies(u, expand) * (1 if kept is None else kept)
            rho = lax.rsqrt(energies.sum(1, keepdims=True) / self.divisor + TINY)
            scale = scale * (lax.stop_gradient(rho) if frozen else rho)
        for factor in (mask, kept):
            scale = scale if factor is None else scale * factor.astype(wide)
        v, stacked = nn.dtypes.promote_dtype(Paths(name="paths")(u, scale), expand.reshape(inner, -1), dtype=self.dtype)
        y = (v.reshape(-1, inner) @ stacked).reshape(*v.shape[:3], -1)
        y = BatchNorm(zero=True, name="norm_expand", **own)(y, train)
        if self.strides != 1 or x.shape[-1] != self.features:
            x = x[:, :: self.strides, :: self.strides]
            x = BatchNorm(name="norm_skip", **own)(
                Pointwise(self.features, self.features, name="skip", **self.shared)(x), train
            )
        return Out(name="out")(y + x.astype(y.dtype)), energies


class CodedResNeXt(ConvNet):
    """A residual network of stages of paths; a plain ResNeXt where no stage has a code.

    Attributes:
        stages: see `Stage`.
        classes: number of outputs.
        stem: kernel side and stride of the first convolution, in pixels; (7, 2) is followed by 3×3 maxima, stride 2.
        drop: probability p with which a coded path is dropped in training, for each image; blocks of one code share it.
        ghost: images that share BatchNorm's statistics in training; None for the whole batch.

    Source: arXiv 2202.05343, Table 1.
    """

    stages: tuple[Stage, ...]
    classes: int = 10
    stem: tuple[int, int] = (3, 1)
    drop: float = 0.0
    ghost: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.stages:
            raise ValueError("stages: got none, expected at least one")
        if not 0 <= self.drop < 1:
            raise ValueError(f"drop: got {self.drop}, expected a probability in [0, 1)")
        for stage in self.stages:
            if stage.code is not None and stage.kept is None and stage.code.classes != self.classes:
                raise ValueError(
                    f"code: got {stage.code.classes} words, expected one for each of {self.classes} classes"
                )

    @property
    def blocks(self) -> list[tuple[Stage, int]]:
        """The stage of every block, from the input up, and its stride."""
        return [(stage, stage.strides if i == 0 else 1) for stage in self.stages for i in range(stage.blocks)]

    @property
    def codes(self) -> list[Code]:
        """The code of every coded block."""
        return [stage.code for stage, _ in self.blocks if stage.code is not None]

    def require_codes(self) -> None:
        """Refuse, for what is read off coded blocks, a network without any.

        Raises:
            ValueError: no stage has a code.
        """
        if not self.codes:
            raise ValueError("model: got an ordinary ResNeXt, expected a network with coded blocks")

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "n h w c"],
        train: bool = False,
        frozen: bool = False,
        energies: bool = False,
        keep: Keep | None = None,
        shortcuts_only: bool = False,
        first: int = 0,
        last: int | None = None,
    ) -> Any:
        """Classify images, or run some of the blocks.

        Args:
            x: (N, H, W, C) in [0, 1]; with `first` > 0 the output of block `first`, counted from 1, which may be the
                last.
            train: BatchNorm with the batch's statistics, and dropped paths (from the `dropout` key).
            frozen: hold energies and BatchNorm: the logits are then piecewise linear in the input.
            energies: return the energies of the coded blocks too.
            keep: for each coded block None or 0 and 1, (paths,) or (N, paths): paths to keep; the energies of others
                count as zero.
            shortcuts_only: see `CodedBlock`.
            first: blocks that `x` has passed already.
            last: stop after this block, counted from 1; None for the whole network.

        Returns:
            Logits (N, classes), or block `last`'s output; with `energies` the pair with a list of (N, paths).

        Raises:
            ValueError: `x` is not a batch of floating images, `keep` has not one entry for each coded block, or the
                blocks asked for are not there.
        """
        if x.ndim != 4 or 0 in x.shape or not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(
                f"x: got {x.dtype}{x.shape}, expected floating images (N, H, W, C) in [0, 1], none of them 0"
            )
        blocks, count = self.blocks, len(self.codes)
        if keep is not None and len(keep) != count:
            raise ValueError(f"keep: got {len(keep)} entries, expected one for each of {count} coded blocks")
        stop = len(blocks) if last is None else last
        if not (0 <= first < stop <= len(blocks) or (last is None and first == stop)):
            raise ValueError(f"first, last: got {first}, {last}, expected 0 <= first < last <= {len(blocks)}")
        if first == 0:
            x = self._stem(self.standardize(x), train and not frozen)
        found: Energies = []
        masks: dict[Code, Array] = {}
        index = sum(stage.code is not None for stage, _ in blocks[:first])
        for i, (stage, strides) in enumerate(blocks[first:stop], first + 1):
            coded, mask, kept = stage.code is not None, None, None
            if stage.code is not None:
                kept, index = None if keep is None else keep[index], index + 1
                if train and not frozen and self.drop:
                    if stage.code not in masks:
                        shape = (len(x), stage.present)
                        alive = jax.random.bernoulli(self.make_rng("dropout"), 1 - self.drop, shape)
                        masks[stage.code] = alive.astype(self.param_dtype) / (1 - self.drop)
                    mask = masks[stage.code]
            x, energy = CodedBlock(
                stage.features,
                stage.width,
                stage.present,
                stage.paths,
                strides,
                coded,
                self.ghost,
                name=f"block_{i}",
                **self.shared,
            )(x, train, frozen, mask, kept, shortcuts_only)
            found += [] if energy is None else [energy]
        if last is None:
            pooled = x.astype(np.promote_types(np.float32, x.dtype)).mean((1, 2))
            bound = 1 / math.sqrt(x.shape[-1])
            init = nn.initializers.uniform(2 * bound)
            x = nn.Dense(
                self.classes,
                use_bias=False,
                kernel_init=lambda *args: init(*args) - jnp.asarray(bound, self.param_dtype),
                param_dtype=self.param_dtype,
                name="classifier",
            )(pooled)
        return (x, found) if energies else x

    def _stem(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n h2 w2 64"]:
        side, strides = self.stem
        pad = (side - 1) // 2
        x = nn.Conv(
            64,
            (side, side),
            (strides, strides),
            padding=((pad, pad), (pad, pad)),
            use_bias=False,
            kernel_init=nn.initializers.normal(math.sqrt(2 / (64 * side**2))),
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="stem",
        )(x)
        x = nn.relu(BatchNorm(ghost=self.ghost, name="norm_stem", **self.shared)(x, train))
        if strides == 1:
            return x
        return nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))


def coded_cifar10(coded: bool = True, **fields: Any) -> CodedResNeXt:
    """ResNeXt-29 (10×11d): 4,638,926 parameters.

    Args:
        coded: whether stages c3 and c4 have the paper's codes 5/10 and 3/10; else the baseline.
        **fields: further fields of `CodedResNeXt`.

    Source: arXiv 2202.05343, Tables 1 and 3.
    """
    return _cifar(10, 11, ("cifar10-5-of-10", "cifar10-3-of-10"), coded, classes=10, **fields)


def coded_cifar100(coded: bool = True, **fields: Any) -> CodedResNeXt:
    """ResNeXt-29 (20×6d): 4,749,136 parameters; codes 8/20 and 4/20, with tables of ours.

    Source: arXiv 2202.05343, Table 1.
    """
    return _cifar(20, 6, ("cifar100-8-of-20", "cifar100-4-of-20"), coded, classes=100, **fields)


def _cifar(paths: int, width: int, codes: tuple[str, str], coded: bool, **fields: Any) -> CodedResNeXt:
    c3, c4 = (load_code(name) if coded else None for name in codes)
    stages = (
        Stage(3, 256, width, paths),
        Stage(3, 512, 2 * width, paths, 2, c3),
        Stage(3, 1024, 4 * width, paths, 2, c4),
    )
    return CodedResNeXt(stages=stages, **fields)


def coded_imagenet(coded: bool = True, **fields: Any) -> CodedResNeXt:
    """ResNeXt-50 (32×4d) for 160×160 images: 25,027,904 parameters; codes 16/32 and 8/32, with tables of ours.

    Source: arXiv 2202.05343, Table 1.
    """
    c4, c5 = (load_code(name) if coded else None for name in ("imagenet-16-of-32", "imagenet-8-of-32"))
    stages = (
        Stage(3, 256, 4, 32),
        Stage(4, 512, 8, 32, 2),
        Stage(6, 1024, 16, 32, 2, c4),
        Stage(3, 2048, 32, 32, 2, c5),
    )
    return CodedResNeXt(stages=stages, **{"classes": 1000, "stem": (7, 2), **fields})
