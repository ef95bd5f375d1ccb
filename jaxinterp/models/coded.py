"""Coded ResNeXt: residual networks whose paths (subNNs) are switched on by class, as a code prescribes.

Avranas and Kountouris, "Towards Disentangling Information Paths with Coded ResNeXt", NeurIPS 2022 (arXiv 2202.05343).
A block has N paths of width d; path n answers t_n = W_n u_n, with u_n what its 1×1 and grouped 3×3 convolutions made of
the block's input. In a coded block (Sec. 3)

    E_n   = mean over positions and channels of t_n²                          energy of a path
    ρ     = √(1/N Σ_n E_n)        t̄_n = t_n / ρ                               energy normalisation      (Eq. 2, 3)
    L     = 1/N Σ_n (a E_n / Σ_j E_j − w_kn)⁴                                 coding loss of class k     (Eq. 5, 6)
    y     = Σ_n m_n t̄_n                                                       m: paths dropped or removed

followed by BatchNorm (the only one after the sum), the shortcut and a ReLU. W_n is linear and without bias, and ρ and m
are numbers per image and path, so the (B, H, W, N, C) tensor of all t_n is never formed:

    E_n   = <Σ_hw u_n u_nᵀ, W_n W_nᵀ> / (C H W)        y = [u_n m_n / ρ]_n [W_n]_n, one dense product

At each input the network is affine once ρ is held (`frozen=True`); ReLUs hold their own gates.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from jaxinterp.codes import Code, named
from jaxinterp.models.baselines import ConvNet, Layer

TINY = 1e-12  # of the mean energy, where the original has nothing and divides 0 by 0

Energies = list[Float[Array, "batch paths"]]
Keep = Sequence[Float[Array | np.ndarray, "..."] | None]


@dataclass(frozen=True)
class Stage:
    """Blocks of one resolution.

    Attributes:
        blocks: how many.
        features: output channels C.
        width: channels d of a path.
        paths: N, as the energies are normalised.
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

    Args:
        x: (N, H, W, C).
        kernel: (3, 3, d, C), output channels group by group.
        strides: step in pixels.

    Returns:
        (N, ⌈H / strides⌉, ⌈W / strides⌉, C).
    """
    d = kernel.shape[2]
    groups = x.shape[3] // d
    if jax.default_backend() != "cpu" or groups == 1:
        return lax.conv_general_dilated(
            x,
            kernel,
            (strides, strides),
            ((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )
    parts = zip(jnp.split(x, groups, axis=3), jnp.split(kernel, groups, axis=3), strict=True)
    return jnp.concatenate(
        [
            lax.conv_general_dilated(
                part, taps, (strides, strides), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            for part, taps in parts
        ],
        axis=3,
    )


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


class BatchNorm(Layer):
    """BatchNorm as PyTorch's, with statistics of ghost batches where these are asked for.

    y = γ (x − μ) / √(σ² + 1e-5) + β. In training μ and σ² are those of the batch, or of each part of `ghost` images of
    it; the running statistics keep 0.9 of themselves per step and take σ² with n − 1 as PyTorch does. Parts that share
    a batch hand on their mean.

    Attributes:
        zero: start from γ = 0 instead of 1.
        ghost: images that share statistics in training; None for the whole batch.
    """

    zero: bool = False
    ghost: int | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool = False) -> Float[Array, "n h w c"]:
        """Normalise with the batch's statistics (train) or the running ones, in float32 or wider."""
        channels, wide = x.shape[-1], np.promote_types(np.float32, self.param_dtype)
        init = nn.initializers.zeros if self.zero else nn.initializers.ones
        scale = self.param("scale", init, (channels,), wide)
        bias = self.param("bias", nn.initializers.zeros, (channels,), wide)
        mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), wide)
        var = self.variable("batch_stats", "var", jnp.ones, (channels,), wide)
        y = x.astype(np.promote_types(wide, x.dtype))
        if not train:
            factor = scale * lax.rsqrt(var.value + 1e-5)
            shift = bias - mean.value * factor
            return (y * factor[None, None, None] + shift[None, None, None]).astype(x.dtype)
        size = len(x) if self.ghost is None else self.ghost
        if len(x) % size:
            raise ValueError(f"ghost: got {size}, expected a divisor of the batch, {len(x)}")
        parts = y.reshape(-1, size, *y.shape[1:])
        mu = parts.mean((1, 2, 3))
        square = (parts**2).mean((1, 2, 3))
        if self.axis_name is not None and self.ghost is None and not self.is_initializing():
            mu, square = lax.pmean((mu, square), self.axis_name)
        sigma2 = jnp.maximum(square - mu**2, 0)
        factor = scale[None] * lax.rsqrt(sigma2 + 1e-5)
        shift = bias[None] - mu * factor
        if not self.is_initializing():
            devices = 1 if self.axis_name is None or self.ghost is not None else lax.axis_size(self.axis_name)
            count = devices * size * x.shape[1] * x.shape[2]
            mean.value = 0.9 * mean.value + 0.1 * mu.mean(0)
            var.value = 0.9 * var.value + 0.1 * sigma2.mean(0) * (count / max(1, count - 1))
        spread = (slice(None), None, None, None)
        return (parts * factor[spread] + shift[spread]).reshape(y.shape).astype(x.dtype)


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
    """One residual block; with `normalise` its paths' energies are normalised, which is what a coded block does.

    Attributes:
        features: output channels C.
        width: channels d of a path.
        paths: paths that are there.
        divisor: N, by which the sum of the energies is divided; `paths` unless some were removed.
        strides: step of the 3×3 convolution in pixels.
        normalise: energy normalisation; an ordinary ResNeXt block without.
        ghost: see `BatchNorm`.

    Source: arXiv 2202.05343, Fig. 1 and Sec. 3.1; initialisation is the authors' (He, fan out, as PyTorch counts it).
    """

    features: int
    width: int
    paths: int
    divisor: int
    strides: int = 1
    normalise: bool = True
    ghost: int | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "n h w c"],
        train: bool = False,
        frozen: bool = False,
        mask: Float[Array, "n paths"] | None = None,
        keep: Float[Array | np.ndarray, "..."] | None = None,
        alone: bool = False,
    ) -> tuple[Float[Array, "n h2 w2 features"], Float[Array, "n paths"] | None]:
        """Run the block.

        Args:
            x: input, (N, H, W, C).
            train: BatchNorm with the batch's statistics.
            frozen: hold ρ under differentiation, and BatchNorm in evaluation.
            mask: what every path is multiplied with after the normalisation (dropSubNNs), (N, paths).
            keep: what every path is multiplied with before it, (paths,) or (N, paths): 0 removes one.
            alone: hold the paths' inputs too, so that only the shortcut hands on derivatives.

        Returns:
            The output, and the energies of all paths, (N, paths), float32 or wider; None of an ordinary block.
        """
        train = train and not frozen
        inner, size = self.paths * self.width, self.divisor * self.width
        own = {"ghost": self.ghost, **self.shared}
        u = lax.stop_gradient(x) if alone else x
        u = nn.relu(BatchNorm(name="norm_reduce", **own)(self.dense("reduce", inner, size)(u), train))
        kernel = self.param(
            "inner_kernel",
            nn.initializers.normal(math.sqrt(2 / (9 * size))),
            (3, 3, self.width, inner),
            self.param_dtype,
        )
        u, kernel = nn.dtypes.promote_dtype(u, kernel, dtype=self.dtype)
        u = nn.relu(BatchNorm(name="norm_inner", **own)(grouped_conv(u, kernel, self.strides), train))
        fan_out = self.features * (self.divisor if self.normalise else 1)
        shape = (self.paths, self.width, self.features)
        expand = self.param("expand_kernel", nn.initializers.normal(math.sqrt(2 / fan_out)), shape, self.param_dtype)
        u = u.reshape(*u.shape[:3], self.paths, self.width)
        wide = np.promote_types(np.float32, u.dtype)
        scale, energies = jnp.ones((len(x), self.paths), wide), None
        kept = None if keep is None else jnp.broadcast_to(keep, (len(x), self.paths)).astype(wide)
        if self.normalise:
            energies = path_energies(u, expand) * (1 if kept is None else kept)
            rho = lax.rsqrt(energies.sum(1, keepdims=True) / self.divisor + TINY)
            scale = scale * (lax.stop_gradient(rho) if frozen else rho)
        for factor in (mask, kept):
            scale = scale if factor is None else scale * factor.astype(wide)
        v, stacked = nn.dtypes.promote_dtype(Paths(name="paths")(u, scale), expand.reshape(inner, -1), dtype=self.dtype)
        y = BatchNorm(zero=True, name="norm_expand", **own)(v @ stacked, train)
        if self.strides != 1 or x.shape[-1] != self.features:
            x = x[:, :: self.strides, :: self.strides]
            x = BatchNorm(name="norm_skip", **own)(self.dense("skip", self.features, self.features)(x), train)
        return Out(name="out")(y + x.astype(y.dtype)), energies

    def dense(self, name: str, features: int, fan_out: int) -> nn.Dense:
        """A 1×1 convolution without bias."""
        init = nn.initializers.normal(math.sqrt(2 / fan_out))
        return nn.Dense(
            features, use_bias=False, kernel_init=init, dtype=self.dtype, param_dtype=self.param_dtype, name=name
        )


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
        alone: bool = False,
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
            alone: see `CodedBlock`.
            first: blocks that `x` has passed already.
            last: stop after this block, counted from 1; None for the whole network.

        Returns:
            Logits (N, classes), or block `last`'s output; with `energies` the pair with a list of (N, paths).

        Raises:
            ValueError: `keep` has not one entry for each coded block, or the blocks asked for are not there.
        """
        blocks, count = self.blocks, len(self.codes)
        if keep is not None and len(keep) != count:
            raise ValueError(f"keep: got {len(keep)} entries, expected one for each of {count} coded blocks")
        stop = len(blocks) if last is None else last
        if not (0 <= first < stop <= len(blocks) or (last is None and first == stop)):
            raise ValueError(f"first, last: got {first}, {last}, expected 0 <= first < last <= {len(blocks)}")
        if first == 0:
            x = self._stem(self.standardise(x), train and not frozen)
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
            )(x, train, frozen, mask, kept, alone)
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
    c3, c4 = (named(name) if coded else None for name in codes)
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
    c4, c5 = (named(name) if coded else None for name in ("imagenet-16-of-32", "imagenet-8-of-32"))
    stages = (
        Stage(3, 256, 4, 32),
        Stage(4, 512, 8, 32, 2),
        Stage(6, 1024, 16, 32, 2, c4),
        Stage(3, 2048, 32, 32, 2, c5),
    )
    return CodedResNeXt(stages=stages, **{"classes": 1000, "stem": (7, 2), **fields})


def binary_classifier(model: CodedResNeXt, variables: Any, class_index: int) -> tuple[CodedResNeXt, Any]:
    """The part of a trained network that serves one class, as a smaller network with one logit.

    In every coded block the paths that the class does not use are removed, with their parameters; energies are still
    divided by N, as in the whole network with the energies of those paths at zero. Everything else, BatchNorm's
    statistics too, is kept, and of the classifier one column.

    Args:
        model: the network, with its codes.
        variables: its variables.
        class_index: the class, in [0, classes).

    Returns:
        The smaller network and its variables.

    Raises:
        ValueError: `class_index` out of range, a network without codes, or one of which paths were removed before.

    Source: arXiv 2202.05343, Sec. 4.3.
    """
    if not 0 <= class_index < model.classes:
        raise ValueError(f"class_index: got {class_index}, expected 0 to {model.classes - 1}")
    model.require_codes()
    if any(stage.kept is not None for stage in model.stages):
        raise ValueError("model: paths were removed from it before, expected the whole network")
    params = dict(variables["params"])
    stats = dict(variables["batch_stats"])
    for i, (stage, _) in enumerate(model.blocks, 1):
        if stage.code is None:
            continue
        name = f"block_{i}"
        paths = np.flatnonzero(stage.code.table[class_index])
        channels = (paths[:, None] * stage.width + np.arange(stage.width)).ravel()
        block = dict(params[name])
        block["reduce"] = {"kernel": block["reduce"]["kernel"][:, channels]}
        block["inner_kernel"] = block["inner_kernel"][..., channels]
        block["expand_kernel"] = block["expand_kernel"][paths]
        norms = {key: jax.tree.map(lambda leaf: leaf[channels], block[key]) for key in ("norm_reduce", "norm_inner")}  # noqa: B023
        params[name] = block | norms
        kept = {key: jax.tree.map(lambda leaf: leaf[channels], stats[name][key]) for key in norms}  # noqa: B023
        stats[name] = dict(stats[name]) | kept
    params["classifier"] = {"kernel": params["classifier"]["kernel"][:, class_index : class_index + 1]}
    stages = tuple(s if s.code is None else replace(s, kept=s.code.weight) for s in model.stages)
    return model.clone(stages=stages, classes=1, drop=0.0, ghost=None), {"params": params, "batch_stats": stats}


def keep_only(model: CodedResNeXt, class_index: int) -> list[Float[np.ndarray, " paths"]]:
    """The `keep` argument that leaves a whole network only the paths of one class: its word, for each coded block."""
    return [code.table[class_index].astype(np.float32) for code in model.codes]


@dataclass(frozen=True)
class Cost:
    """What a part of a network costs.

    Attributes:
        name: "stem", "block_1", ..., "classifier".
        parameters: trained numbers of the part.
        shortcut: those of them in a projection shortcut and its BatchNorm.
        multiply_adds: of its convolutions and products for one image, energies and normalisation left out.
    """

    name: str
    parameters: int
    shortcut: int
    multiply_adds: int


def costs(model: CodedResNeXt, image_shape: tuple[int, int, int]) -> list[Cost]:
    """Parameters and multiply-adds of every part of a network.

    Args:
        model: the network, whole or with paths removed.
        image_shape: (H, W, C) of one image in pixels.

    Returns:
        One entry for the stem, each block and the classifier.
    """
    height, width, channels = image_shape
    side, strides = model.stem

    def shrunk(size: int, by: int) -> int:
        return -(-size // by)

    height, width = shrunk(height, strides), shrunk(width, strides)
    found = [Cost("stem", 64 * (side**2 * channels + 2), 0, height * width * 64 * side**2 * channels)]
    if strides != 1:
        height, width = shrunk(height, 2), shrunk(width, 2)
    channels = 64
    for i, (stage, step) in enumerate(model.blocks, 1):
        before = height * width
        height, width = shrunk(height, step), shrunk(width, step)
        after, inner, d, c = height * width, stage.present * stage.width, stage.width, stage.features
        products = before * channels * inner, after * 9 * d * inner, after * inner * c
        parameters = inner * channels + 2 * inner + 9 * d * inner + 2 * inner + inner * c + 2 * c
        shortcut = channels * c + 2 * c if step != 1 or channels != c else 0
        adds = sum(products) + (after * channels * c if shortcut else 0)
        found.append(Cost(f"block_{i}", parameters + shortcut, shortcut, adds))
        channels = c
    found.append(Cost("classifier", channels * model.classes, 0, channels * model.classes))
    return found
