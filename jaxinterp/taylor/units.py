"""Taylor units: polynomials of a vector, and levels that apply one to every block of a map.

A unit of order n maps u ∈ ℝ^d to one of (⊙ is the entrywise product)

- dense:   b + W u + Σ_{m=2}^{n} Σ_{i1 ≤ … ≤ im} Q^m_{i1…im} u_{i1} ⋯ u_{im}
- cp:      b + W u + Σ_{m=2}^{n} C_m (A_{m1} u ⊙ ⋯ ⊙ A_{mm} u)
- ccp:     b + C h_n,     h_1 = A_1 u,     h_m = h_{m−1} + A_m u ⊙ h_{m−1}      (factors shared by all orders)
- tucker:  b + O Σ_{m=1}^{n} G_m(P u, …, P u)

Source: cp of order 2 and ccp are the units of Chrysos et al., "Π-nets" (CVPR 2020); tucker is the unit of Zhao et al.,
"TaylorNet" (2022).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import combinations_with_replacement
from operator import mul
from typing import Any, Literal, get_args

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from jaxinterp.checks import require, require_at_least, require_one_of
from jaxinterp.nn.layers import Layer

Form = Literal["dense", "cp", "ccp", "tucker"]


class TaylorUnit(Layer):
    """A polynomial of a vector, in one of the forms of this module's docstring.

    Attributes:
        features: outputs, C.
        order: n ≥ 1; 1 for an affine map.
        form: dense, cp, ccp or tucker.
        rank: R of cp and ccp, or the number of factors of tucker; `features` if None.
        quadratic: scale of the initial weights that multiply products.
        sites: (H, W), to give every site weights of its own; empty if all sites share them.
        gain: scale of the initial output weights; 0 makes the unit start at zero.
    """

    features: int
    order: int = 2
    form: Form = "cp"
    rank: int | None = None
    quadratic: float = 0.5
    sites: tuple[int, ...] = ()
    gain: float = 1.0

    @nn.compact
    def __call__(self, u: Float[Array, "... d"]) -> Float[Array, "... c"]:
        """Map vectors (..., d) to (..., features)."""
        require_one_of("form", self.form, get_args(Form))
        for name in ("features", "order", "rank"):
            require_at_least(name, getattr(self, name), 1)
        evaluate = {"dense": self._dense, "cp": self._cp, "ccp": self._ccp, "tucker": self._tucker}[self.form]
        bias = self.param("bias", nn.initializers.zeros, (*self.sites, self.features), self.param_dtype)
        out = evaluate(u, self.rank or self.features)
        return out + bias.astype(out.dtype).reshape((1,) * (out.ndim - bias.ndim) + bias.shape)

    def _weight(self, name: str, rows: int, columns: int, scale: float = 1.0) -> Array:
        """Create a matrix (rows, columns), or one for each site."""
        init = nn.initializers.normal(scale / math.sqrt(rows))
        weight = self.param(name, init, (*self.sites, rows, columns), self.param_dtype)
        return weight if self.dtype is None else weight.astype(self.dtype)

    def _dense(self, u: Array, rank: int) -> Array:
        d = u.shape[-1]
        out = _project(u, self._weight("linear", d, self.features, self.gain))
        for m in range(2, self.order + 1):
            monomials: Array = jnp.ones_like(u[..., :1])
            for index in np.array(list(combinations_with_replacement(range(d), m))).T:
                monomials = monomials * u[..., index]
            scale = self.quadratic * self.gain
            out = out + _project(monomials, self._weight(f"order_{m}", monomials.shape[-1], self.features, scale))
        return out

    def _cp(self, u: Array, rank: int) -> Array:
        d = u.shape[-1]
        pairs = [(m, j) for m in range(2, self.order + 1) for j in range(m)]
        kernels = [self._weight("linear", d, self.features, self.gain)]
        kernels += [self._weight(f"factor_{m}_{j + 1}", d, rank) for m, j in pairs]
        # A single matrix product reads u once.
        parts = jnp.split(_project(u, jnp.concatenate(kernels, -1)), np.cumsum([k.shape[-1] for k in kernels])[:-1], -1)
        out, factors = parts[0], dict(zip(pairs, parts[1:], strict=True))
        for m in range(2, self.order + 1):
            product = reduce(mul, [factors[m, j] for j in range(m)])
            out = out + _project(product, self._weight(f"out_{m}", rank, self.features, self.quadratic * self.gain))
        return out

    def _ccp(self, u: Array, rank: int) -> Array:
        d, orders = u.shape[-1], range(1, self.order + 1)
        kernels = [self._weight(f"factor_{m}", d, rank, 1.0 if m == 1 else self.quadratic) for m in orders]
        h, *factors = jnp.split(_project(u, jnp.concatenate(kernels, -1)), self.order, -1)
        for factor in factors:
            h = h + factor * h
        return _project(h, self._weight("out", rank, self.features, self.gain))

    def _tucker(self, u: Array, rank: int) -> Array:
        factors = _project(u, self._weight("factors", u.shape[-1], rank))
        power: Array = factors
        total = _project(power, self._weight("core_1", rank, rank))
        for m in range(2, self.order + 1):
            power = (power[..., :, None] * factors[..., None, :]).reshape(*factors.shape[:-1], -1)
            total = total + _project(power, self._weight(f"core_{m}", rank**m, rank, self.quadratic))
        return _project(total, self._weight("out", rank, self.features, self.gain))


def _project(u: Float[Array, "..."], kernel: Float[Array, "..."]) -> Array:
    """Compute kernelᵀu at every site, with one kernel (d, r) or one for each site (*sites, d, r)."""
    if kernel.ndim == 2:
        return (u.reshape(-1, u.shape[-1]) @ kernel).reshape(*u.shape[:-1], kernel.shape[-1])
    return jnp.einsum("n...d,...dr->n...r", u, kernel)


@dataclass(frozen=True)
class Level:
    """One level of coarse-graining: the blocks of a map and the unit that reads them.

    Attributes:
        features: outputs of the unit.
        rank: of the unit; `features` if None.
        side: side of a block, in pixels of the level below; `stride` plus an even number.
        stride: distance between blocks in pixels, from 1 to `side`; blocks overlap if it is less.
        order: of the unit.
        form: of the unit.
        shared: whether all blocks share one unit.
    """

    features: int
    rank: int | None = None
    side: int = 2
    stride: int = 2
    order: int = 2
    form: Form = "cp"
    shared: bool = True

    def __post_init__(self) -> None:
        fits = 1 <= self.stride <= self.side and (self.side - self.stride) % 2 == 0
        require(fits, "side, stride", f"{self.side}, {self.stride}", "1 <= stride <= side, an even number apart")


def hierarchical(
    features: Sequence[int] = (8, 16, 32, 64), ranks: Sequence[int] | None = None, **fields: Any
) -> tuple[Level, ...]:
    """Return levels of disjoint 2×2 blocks; ranks default to the features, `fields` go to every `Level`."""
    return tuple(Level(c, r, **fields) for c, r in zip(features, ranks or features, strict=True))


def overlapping(
    features: Sequence[int] = (8, 16, 32, 48), ranks: Sequence[int] | None = None, **fields: Any
) -> tuple[Level, ...]:
    """Return levels of 4×4 blocks that overlap by half, otherwise as `hierarchical`."""
    return hierarchical(features, ranks, side=4, stride=2, **fields)


class TaylorLevel(Layer):
    """A Taylor unit on every block of a map; `quadratic` and `gain` are the unit's."""

    level: Level
    quadratic: float = 0.5
    gain: float = 1.0

    @nn.compact
    def __call__(self, z: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c2"]:
        """Map (N, H, W, C), H and W multiples of the stride, to (N, H/stride, W/stride, features)."""
        level, (height, width) = self.level, z.shape[1:3]
        size, most = f"on a map of {height}x{width}", 2 * min(height, width)
        divides = height % level.stride == width % level.stride == 0
        require(divides, "stride", f"{level.stride} {size}", "a divisor of both")
        # Wider blocks would all contain the whole map.
        require(level.side <= most, "side", f"{level.side} {size}", f"at most {most}")
        sites = () if level.shared else (height // level.stride, width // level.stride)
        unit = TaylorUnit(
            level.features,
            level.order,
            level.form,
            level.rank,
            self.quadratic,
            sites,
            self.gain,
            **self.shared,
            name="unit",
        )
        # Blocks and a matrix product take a third less time per training step on a CPU than XLA's convolution.
        return unit(blocks(z, level.side, level.stride))


def blocks(z: Float[Array, "n h w c"], side: int, stride: int) -> Float[Array, "n h2 w2 d"]:
    """Gather the blocks of a map, entries in the order (row, column, channel).

    Args:
        z: (N, H, W, C), H and W multiples of `stride`.
        side: side of a block in pixels; `stride` plus an even number, half of it zeros before and half after the map.
        stride: distance between blocks in pixels.

    Returns:
        (N, H/stride, W/stride, side² C).

    Example:
        >>> blocks(jnp.arange(16.0).reshape(1, 4, 4, 1), 2, 2)[0, 1, 0].tolist()
        [8.0, 9.0, 12.0, 13.0]
    """
    n, height, width, channels = z.shape
    rows, columns, pad = height // stride, width // stride, (side - stride) // 2
    z = jnp.pad(z, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    # Columns first, in the longest runs that all blocks share, then rows: few long copies, also in the gradient.
    run = math.gcd(side, stride)
    runs, step = z.reshape(n, height + 2 * pad, (width + 2 * pad) // run, run * channels), stride // run
    across, down = step * (columns - 1) + 1, stride * (rows - 1) + 1
    strips = jnp.concatenate([runs[:, :, i : i + across : step] for i in range(side // run)], -1)
    return jnp.concatenate([strips[:, i : i + down : stride] for i in range(side)], -1)


def block_means(z: Float[Array, "n h w c"], side: int) -> Float[Array, "n h2 w2 c"]:
    """Average disjoint blocks of `side` pixels; trailing rows and columns that do not fill a block are dropped."""
    n, height, width, channels = z.shape
    rows, columns = height // side, width // side
    cropped = z[:, : rows * side, : columns * side]
    return cropped.reshape(n, rows, side, columns, side, channels).mean((2, 4))
