"""Coded ResNeXt: residual networks whose paths (subNNs) are switched on by class, as a code prescribes.

Avranas and Kountouris, "Towards Disentangling Information Paths with Coded ResNeXt", NeurIPS 2022 (arXiv 2202.05343).
Stages of blocks (see `block.py`), some with a code. A coded block's energies E_n are trained towards the word w_k of
the image's class k,

    L     = 1/N Σ_n (a E_n / Σ_j E_j − w_kn)⁴                                 coding loss               (Eq. 5, 6)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from jaxinterp.checks import require, require_at_least
from jaxinterp.coded.block import CodedBlock
from jaxinterp.coded.codes import Code, load_code
from jaxinterp.explain.explainable import Explainable, explainable
from jaxinterp.nn.batchnorm import BatchNorm
from jaxinterp.nn.layers import ConvNet

Keep = Sequence[Float[Array | np.ndarray, "..."] | None]


@dataclass(frozen=True)
class Stage:
    """Blocks of one resolution.

    Attributes:
        blocks: number of blocks.
        features: output channels C.
        width: channels d of a path.
        paths: N, the divisor of the energies.
        strides: step of the first block in pixels.
        code: the classes' words, of length N; None for ordinary blocks, whose paths serve every class.
        kept: paths left after others were removed; None for N.
    """

    blocks: int
    features: int
    width: int
    paths: int
    strides: int = 1
    code: Code | None = None
    kept: int | None = None

    def __post_init__(self) -> None:
        for name in ("blocks", "features", "width", "paths", "strides", "kept"):
            require_at_least(name, getattr(self, name), 1)
        require(isinstance(self.code, Code | None), "code", repr(self.code), "a Code")
        length = self.paths if self.code is None else self.code.length
        require(length == self.paths, "code", f"words of length {length}", f"one bit for each of {self.paths} paths")
        require(self.present <= self.paths, "kept", self.kept, f"1 to {self.paths}")

    @property
    def present(self) -> int:
        """Paths of a block, less those that were removed."""
        return self.paths if self.kept is None else self.kept


def coding_loss(
    energies: Float[Array, "batch paths"], words: Float[Array, "batch paths"], power: int | float = 4
) -> Float[Array, ""]:
    """Compare the shares of energy with the words: mean over batch and paths of |a E_n / Σ_j E_j − w_n|^power.

    It is 0 where the energy is shared equally by exactly the active paths. Without any energy all shares are 0.

    Args:
        energies: (B, N), ≥ 0, of all paths before any is dropped.
        words: word of each image's class, (B, N), 0 or 1, all of weight a.
        power: exponent; 4 in the paper.

    Example:
        >>> word = jnp.array([[1.0, 0.0, 1.0, 0.0]])
        >>> float(coding_loss(word, word)), float(coding_loss(jnp.ones((1, 4)), word))
        (0.0, 0.0625)

    Source: arXiv 2202.05343, Eq. 5 and 6, with r Ē_n = a E_n / Σ_j E_j.
    """
    total = energies.sum(1, keepdims=True)
    shares = energies / jnp.where(total > 0, total, 1)
    return (jnp.abs(words.sum(1, keepdims=True) * shares - words) ** power).mean()


class CodedResNeXt(ConvNet):
    """A residual network of stages of paths; a plain ResNeXt where no stage has a code.

    Attributes:
        stages: see `Stage`.
        classes: number of outputs.
        stem: kernel side and stride of the first convolution, in pixels.
        pool: whether 3×3 maxima, stride 2, follow it where its stride is not 1.
        drop: probability p of dropping a coded path in training, per image; blocks of one code share the draw.
        ghost: images that share BatchNorm's statistics in training; None for the whole batch.

    Source: arXiv 2202.05343, Table 1.
    """

    stages: tuple[Stage, ...]
    classes: int = 10
    stem: tuple[int, int] = (3, 1)
    pool: bool = True
    drop: float = 0.0
    ghost: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.stages, "stages", "none", "at least one")
        require(0 <= self.drop < 1, "drop", self.drop, "a probability in [0, 1)")
        for stage in self.stages:
            words = self.classes if stage.code is None or stage.kept is not None else stage.code.classes
            require(words == self.classes, "code", f"{words} words", f"one for each of {self.classes} classes")

    @property
    def blocks(self) -> list[tuple[Stage, int]]:
        """The stage of every block, from the input up, and its stride."""
        return [(stage, stage.strides if i == 0 else 1) for stage in self.stages for i in range(stage.blocks)]

    @property
    def codes(self) -> list[Code]:
        """The code of every coded block."""
        return [stage.code for stage, _ in self.blocks if stage.code is not None]

    @property
    def coded_blocks(self) -> list[int]:
        """Numbers of the coded blocks, counted from 1 at the input."""
        return [i for i, (stage, _) in enumerate(self.blocks, 1) if stage.code is not None]

    def __explainable__(self, variables: Any) -> Explainable:
        """Return the network as it is explained: from the image, and from the outputs of a few blocks."""
        blocks = len(self.blocks)
        levels = tuple(f"block_{int(i)}/out" for i in np.linspace(1, blocks, min(3, blocks)))
        return explainable(self, variables, keywords={}, levels=levels, pooled=levels[-1])

    def require_codes(self) -> None:
        """Raise ConfigError for a network without coded blocks."""
        require(self.codes, "model", "an ordinary ResNeXt", "a network with coded blocks")

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
            x: (N, H, W, C) in [0, 1]; with `first` > 0 the output of block `first`, counted from 1.
            train: BatchNorm with the batch's statistics, and dropped paths (from the `dropout` key).
            frozen: hold energies and BatchNorm: the logits are then piecewise linear in the input.
            energies: return the energies of the coded blocks too.
            keep: for each coded block None or 0 and 1, (paths,) or (N, paths); energies of removed paths are zero.
            shortcuts_only: see `CodedBlock`.
            first: blocks that `x` has passed already.
            last: stop after this block, counted from 1; None for the whole network.

        Returns:
            Logits (N, classes), or block `last`'s output; with `energies` the pair with a list of (N, paths).
        """
        images = x.ndim == 4 and 0 not in x.shape and jnp.issubdtype(x.dtype, jnp.floating)
        require(images, "x", f"{x.dtype}{x.shape}", "floating images (N, H, W, C) in [0, 1], no axis empty")
        blocks, count = self.blocks, len(self.codes)
        keeps: Keep = [None] * count if keep is None else keep
        require(len(keeps) == count, "keep", f"{len(keeps)} entries", f"one for each of {count} coded blocks")
        stop = len(blocks) if last is None else last
        inside = 0 <= first < stop <= len(blocks) or (last is None and first == stop)
        require(inside, "first, last", f"{first}, {last}", f"0 <= first < last <= {len(blocks)}")
        if first == 0:
            x = self._stem(self.standardize(x), train and not frozen)
        recorded: list[Array] = []
        masks: dict[Code | None, Array] = {}
        kept = dict(zip(self.coded_blocks, keeps, strict=True))
        for i, (stage, strides) in enumerate(blocks[first:stop], first + 1):
            if stage.code not in masks and stage.code is not None and train and not frozen and self.drop:
                alive = jax.random.bernoulli(self.make_rng("dropout"), 1 - self.drop, (len(x), stage.present))
                masks[stage.code] = alive.astype(self.param_dtype) / (1 - self.drop)
            x, energy = CodedBlock(
                stage.features,
                stage.width,
                stage.present,
                stage.paths,
                strides,
                stage.code is not None,
                self.ghost,
                name=f"block_{i}",
                **self.shared,
            )(x, train, frozen, masks.get(stage.code), kept.get(i), shortcuts_only)
            recorded += [] if energy is None else [energy]
        if last is None:
            x = x.astype(np.promote_types(np.float32, x.dtype)).mean((1, 2))
            bound = 1 / math.sqrt(x.shape[-1])
            init = nn.initializers.uniform(2 * bound)
            x = nn.Dense(
                self.classes,
                use_bias=False,
                kernel_init=lambda *args: init(*args) - jnp.asarray(bound, self.param_dtype),
                param_dtype=self.param_dtype,
                name="classifier",
            )(x)
        return (x, recorded) if energies else x

    def _stem(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n h2 w2 64"]:
        side, strides = self.stem
        x = nn.Conv(
            64,
            (side, side),
            strides,
            padding=(side - 1) // 2,
            use_bias=False,
            kernel_init=nn.initializers.normal(math.sqrt(2 / (64 * side**2))),
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="stem",
        )(x)
        x = nn.relu(BatchNorm(ghost=self.ghost, name="norm_stem", **self.shared)(x, train))
        pooled = self.pool and strides > 1
        return nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1))) if pooled else x


def coded_cifar10(coded: bool = True, **fields: Any) -> CodedResNeXt:
    """Make ResNeXt-29 (10×11d): 4,638,926 parameters; `experiments/coded.py` has the paper's other networks.

    Args:
        coded: whether stages c3 and c4 have the paper's codes 5/10 and 3/10; else the baseline.
        **fields: further fields of `CodedResNeXt`.

    Source: arXiv 2202.05343, Tables 1 and 3.
    """
    c3, c4 = (load_code(name) if coded else None for name in ("cifar10-5-of-10", "cifar10-3-of-10"))
    stages = Stage(3, 256, 11, 10), Stage(3, 512, 22, 10, 2, c3), Stage(3, 1024, 44, 10, 2, c4)
    return CodedResNeXt(stages=stages, **fields)
