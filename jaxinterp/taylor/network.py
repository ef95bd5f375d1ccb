"""TaylorNet: a network that is a Taylor series, with its coarse-graining explicit. The design is ours.

After the abstract of Yang, Xie & Yang, "Exploring explicit coarse-grained structure in artificial neural networks"
(Chin. Phys. Lett. 40, 020501, 2023, arXiv 2211.01779); its full text and its code could not be had.

    z⁰ = (x − x0) / s,      u_p: block p of z^{l−1}, side k, stride s_l, d = k² C_{l−1} entries
    z^l_p = unit(u_p),      f(x) = unit(z^L)

with one of these units, all polynomials of order n in u (⊙ is the product of entries):

- dense:   b + W u + Σ_{m=2}^{n} Σ_{i1 ≤ … ≤ im} Q^m_{i1…im} u_{i1} ⋯ u_{im}
- cp:      b + W u + Σ_{m=2}^{n} C_m (A_{m1} u ⊙ ⋯ ⊙ A_{mm} u)
- ccp:     b + C h_n,     h_1 = A_1 u,     h_m = h_{m−1} + A_m u ⊙ h_{m−1}      (factors shared by all orders)
- tucker:  b + O Σ_{m=1}^{n} G_m(P u, …, P u)

There is no activation, no maximum and no norm that is not affine in evaluation: f is a polynomial whose degree is the
product of the orders, and `jaxinterp.explain.series` reads it order by order about x0, which is stored with the
parameters. The quadratic parts start small, so that a degree of 16 can be trained at all.

    cp of order 2 and ccp: the units of Chrysos et al., "Π-nets" (CVPR 2020); tucker: Zhao et al.'s "TaylorNet" (2022).
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from jaxinterp.explain.attribute.integrated import quadrature
from jaxinterp.nn.batchnorm import BatchNorm
from jaxinterp.nn.layers import Layer

Form = Literal["dense", "cp", "ccp", "tucker"]
Project = Callable[[Array, Array], Array]
"""(z, kernel (*sites, d, r)) ↦ kernelᵀu of every block u of z, (..., r)."""


def _normal(scale: float, fan_in: int) -> nn.initializers.Initializer:
    return nn.initializers.normal(scale / math.sqrt(fan_in))


class TaylorUnit(Layer):
    """A polynomial of one order in a vector, in one of the forms of this file's head.

    Attributes:
        features: outputs, C.
        order: n ≥ 1; the affine part alone where 1.
        form: dense, cp, ccp or tucker.
        rank: R of cp and ccp, r = r_o of tucker; `features` where None.
        quadratic: factor of the initial deviation of what multiplies products.
        sites: shape of the places that have weights of their own, (H, W); none where all places share them.
        gain: factor of the initial deviation of all that comes out; 0 for a unit that starts at zero.
    """

    features: int
    order: int = 2
    form: Form = "cp"
    rank: int | None = None
    quadratic: float = 0.5
    sites: tuple[int, ...] = ()
    gain: float = 1.0

    @nn.compact
    def __call__(self, z: Float[Array, "..."], project: Project | None = None, size: int | None = None) -> Array:
        """The polynomial's values.

        Args:
            z: vectors, (..., d); or what `project` takes blocks of.
            project: (z, kernel) ↦ kernelᵀu of every block u; kernelᵀz where None.
            size: d, where `project` is given.

        Returns:
            (..., features).

        Raises:
            ValueError: another form, or an order, rank or features below 1.
        """
        if self.form not in get_args(Form):
            raise ValueError(f"form: got {self.form!r}, expected one of {', '.join(get_args(Form))}")
        for name, value in (("features", self.features), ("order", self.order), ("rank", self.rank)):
            if value is not None and value < 1:
                raise ValueError(f"{name}: got {value}, expected at least 1")
        d, rank = size or z.shape[-1], self.rank or self.features
        project = project or _matrix_product
        one = {"dense": self._dense, "cp": self._cp, "ccp": self._ccp, "tucker": self._tucker}[self.form]
        bias = self.param("bias", nn.initializers.zeros, (*self.sites, self.features), self.param_dtype)
        out = one(lambda kernel: project(z, kernel), d, rank)
        return out + bias.astype(out.dtype).reshape((1,) * (out.ndim - bias.ndim) + bias.shape)

    def _weight(self, name: str, rows: int, columns: int, scale: float = 1.0) -> Array:
        """A matrix (rows, columns), or one for each site."""
        weight = self.param(name, _normal(scale, rows), (*self.sites, rows, columns), self.param_dtype)
        return weight if self.dtype is None else weight.astype(self.dtype)

    def _dense(self, of: Callable[[Array], Array], d: int, rank: int) -> Array:
        eye = jnp.broadcast_to(jnp.eye(d, dtype=self.param_dtype), (*self.sites, d, d))
        u = of(eye) if self.order > 1 else None
        out = of(self._weight("linear", d, self.features, self.gain))
        for m in range(2, self.order + 1):
            assert u is not None
            products: Array = jnp.ones_like(u[..., :1])
            for index in np.array(list(combinations_with_replacement(range(d), m))).T:
                products = products * u[..., index]
            out = out + _matrix_product(
                products, self._weight(f"order_{m}", products.shape[-1], self.features, self.quadratic * self.gain)
            )
        return out

    def _cp(self, of: Callable[[Array], Array], d: int, rank: int) -> Array:
        pairs = [(m, j) for m in range(2, self.order + 1) for j in range(m)]
        kernels = [self._weight("linear", d, self.features, self.gain)]
        kernels += [self._weight(f"factor_{m}_{j + 1}", d, rank) for m, j in pairs]
        # One product for all of them: the block is read once.
        parts = jnp.split(of(jnp.concatenate(kernels, -1)), np.cumsum([k.shape[-1] for k in kernels])[:-1], -1)
        out, factors = parts[0], dict(zip(pairs, parts[1:], strict=True))
        for m in range(2, self.order + 1):
            product = factors[m, 0]
            for j in range(1, m):
                product = product * factors[m, j]
            out = out + _matrix_product(
                product, self._weight(f"out_{m}", rank, self.features, self.quadratic * self.gain)
            )
        return out

    def _ccp(self, of: Callable[[Array], Array], d: int, rank: int) -> Array:
        kernels = [
            self._weight(f"factor_{m}", d, rank, 1.0 if m == 1 else self.quadratic) for m in range(1, self.order + 1)
        ]
        first, *others = jnp.split(of(jnp.concatenate(kernels, -1)), self.order, -1)
        h = first
        for factor in others:
            h = h + factor * h
        return _matrix_product(h, self._weight("out", rank, self.features, self.gain))

    def _tucker(self, of: Callable[[Array], Array], d: int, rank: int) -> Array:
        u = of(self._weight("factors", d, rank))
        power: Array = u
        total = _matrix_product(power, self._weight("core_1", rank, rank))
        for m in range(2, self.order + 1):
            power = (power[..., :, None] * u[..., None, :]).reshape(*u.shape[:-1], -1)
            total = total + _matrix_product(power, self._weight(f"core_{m}", rank**m, rank, self.quadratic))
        return _matrix_product(total, self._weight("out", rank, self.features, self.gain))


def _matrix_product(z: Float[Array, "..."], kernel: Float[Array, "..."]) -> Array:
    """kernelᵀz at every place, with one kernel (d, r) or one for each site (*sites, d, r)."""
    if kernel.ndim == 2:
        return (z.reshape(-1, z.shape[-1]) @ kernel).reshape(*z.shape[:-1], kernel.shape[-1])
    return jnp.einsum("n...d,...dr->n...r", z, kernel)


@dataclass(frozen=True)
class Level:
    """One level of coarse-graining.

    Attributes:
        features: C_l.
        rank: R_l; `features` where None.
        side: k, of the blocks in pixels of the level below.
        stride: from one block to the next, in the same; the blocks overlap where it is less than `side`.
        order: of the unit.
        form: of the unit.
        shared: one unit for all blocks, or one for each.
    """

    features: int
    rank: int | None = None
    side: int = 2
    stride: int = 2
    order: int = 2
    form: Form = "cp"
    shared: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.stride <= self.side or (self.side - self.stride) % 2:
            raise ValueError(
                f"side, stride: got {self.side}, {self.stride}, expected 1 <= stride <= side, an even number apart"
            )

    @property
    def pad(self) -> int:
        """Zeros on every side, so that a side of s pixels becomes s / stride."""
        return (self.side - self.stride) // 2


class TaylorLevel(Layer):
    """Blocks of a map, and a Taylor unit on each."""

    level: Level
    quadratic: float = 0.5
    gain: float = 1.0

    @nn.compact
    def __call__(self, z: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c2"]:
        """(N, H, W, C) ↦ (N, H/stride, W/stride, features).

        Raises:
            ValueError: H or W is not a multiple of the stride, or blocks are wider than twice the map.
        """
        level, (_, height, width, channels) = self.level, z.shape
        if height % level.stride or width % level.stride:
            raise ValueError(f"stride: got {level.stride} on a map of {height}x{width}, expected a divisor of both")
        if level.side > 2 * min(height, width):
            largest = 2 * min(height, width)  # a wider window sees the whole map from everywhere, and zeros
            raise ValueError(f"side: got {level.side} on a map of {height}x{width}, expected at most {largest}")
        size = level.side**2 * channels
        unit = TaylorUnit(
            level.features,
            level.order,
            level.form,
            level.rank,
            self.quadratic,
            () if level.shared else (height // level.stride, width // level.stride),
            self.gain,
            **self.shared,
            name="unit",
        )

        def project(z: Array, kernel: Array) -> Array:
            # A product of two matrices: a third less time for a training step on a CPU than a convolution of XLA's.
            return _matrix_product(blocks(z, level.side, level.stride), kernel.astype(z.dtype))

        return unit(z, project, size)


def blocks(z: Float[Array, "n h w c"], side: int, stride: int) -> Float[Array, "n h2 w2 d"]:
    """The blocks of a map side by side, entries in the order (y, x, channel).

    Args:
        z: (N, H, W, C), H and W multiples of `stride`.
        side: of a block, in pixels; `stride` or more by an even number, for zeros are added on both sides.
        stride: from one block to the next.

    Returns:
        (N, H/stride, W/stride, side² C).

    Example:
        >>> blocks(jnp.arange(16.0).reshape(1, 4, 4, 1), 2, 2)[0, 1, 0].tolist()
        [8.0, 9.0, 12.0, 13.0]
    """
    n, height, width, channels = z.shape
    rows, columns, pad = height // stride, width // stride, (side - stride) // 2
    z = jnp.pad(z, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    # Columns in the longest runs that blocks share whole, then rows: few, long copies, there and on the way back.
    run = math.gcd(side, stride)
    runs, step = z.reshape(n, height + 2 * pad, (width + 2 * pad) // run, run * channels), stride // run
    across, down = step * (columns - 1) + 1, stride * (rows - 1) + 1
    strips = jnp.concatenate([runs[:, :, i : i + across : step] for i in range(side // run)], -1)
    return jnp.concatenate([strips[:, i : i + down : stride] for i in range(side)], -1)


def block_means(z: Float[Array, "n h w c"], side: int) -> Float[Array, "n h2 w2 c"]:
    """The means of disjoint blocks of `side` pixels; last rows and columns that do not fill one are dropped."""
    n, height, width, channels = z.shape
    rows, columns = height // side, width // side
    whole = z[:, : rows * side, : columns * side]
    return whole.reshape(n, rows, side, columns, side, channels).mean((2, 4))


class Expansion(Layer, kw_only=True):
    """A polynomial of images about a point x0 that lies with its parameters.

    Attributes:
        scale: s, by which x − x0 is divided.
        bounds: least and largest pixel value of training; others are warned of, for a polynomial extrapolates badly.
    """

    scale: float = 1.0
    bounds: tuple[float, float] = (0.0, 1.0)

    @property
    def degree(self) -> int:
        """Degree of the polynomial."""
        raise NotImplementedError

    def point(self, shape: Sequence[int]) -> Array:
        """x0, (H, W, C): zeros until another one is put there, see `with_expansion_point`."""
        wide = np.promote_types(np.float32, self.param_dtype)
        return self.variable("batch_stats", "expansion_point", jnp.zeros, tuple(shape), wide).value

    def centered(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        """(x − x0) / s.

        Raises:
            ValueError: images of another shape than x0's, no positive scale, or bounds in the wrong order.
        """
        if not self.scale > 0:
            raise ValueError(f"scale: got {self.scale}, expected a positive number")
        if not self.bounds[0] < self.bounds[1]:
            raise ValueError(f"bounds: got {self.bounds}, expected the least value, then the largest")
        self.warn_outside(x)
        point = self.point(x.shape[1:])
        if point.shape != x.shape[1:]:
            raise ValueError(
                f"x: got images of shape {x.shape[1:]}, expected {point.shape}, that of the expansion point"
            )
        return (x - point.astype(x.dtype)[None]) / jnp.asarray(self.scale, x.dtype)

    def warn_outside(self, x: Array | np.ndarray) -> None:
        """Warn of images outside of the training range, where their values are known (not while they are traced)."""
        if isinstance(x, jax.core.Tracer) or x.size == 0:
            return
        values = np.asarray(x)  # what is known is not traced, even where other things are
        (low, high), (least, most) = (float(values.min()), float(values.max())), self.bounds
        margin = 1e-3 * (most - least)
        if not (low >= least - margin and high <= most + margin):
            warnings.warn(
                f"x: got values in [{low:.4g}, {high:.4g}], trained on [{least:g}, {most:g}]: "
                f"a polynomial of degree {self.degree} extrapolates badly",
                stacklevel=3,
            )

    def held(self, x: Float[Array, "n h w c"]) -> Float[Array, "n k"]:
        """The network in evaluation as an affine function of x, see `path_affine`."""
        self.warn_outside(x)
        free, variables = self.clone(parent=None), self.variables

        def evaluated(y: Array) -> Array:
            logits: Any = free.apply(variables, y)
            return logits

        return path_affine(evaluated, x, self.point(x.shape[1:]), self.degree)


def with_expansion_point(variables: Any, point: Float[Array | np.ndarray, "h w c"]) -> Any:
    """The same variables with another expansion point, such as the mean of the training images.

    Raises:
        ValueError: the point is not of an image's shape, or not finite.
    """
    stats = dict(variables["batch_stats"])
    old = stats["expansion_point"]
    if point.shape != old.shape:
        raise ValueError(f"point: got shape {point.shape}, expected {old.shape}, that of one image")
    if not np.isfinite(np.asarray(point)).all():
        raise ValueError("point: got NaN or infinite values, expected finite ones")
    return {**variables, "batch_stats": {**stats, "expansion_point": jnp.asarray(point, old.dtype)}}


def path_affine(
    function: Callable[[Array], Array], x: Float[Array, "n *shape"], x0: Float[Array, "*shape"], degree: int
) -> Float[Array, "n k"]:
    """A polynomial as an affine function of x, its coefficients averaged over the path from x0 and held.

        f(x) = f(x0) + W(x) (x − x0),     W(x) = ∫₀¹ Df(x0 + t (x − x0)) dt

    by Gauss–Legendre quadrature with ⌈degree/2⌉ nodes, which is exact. So W(x)ᵀe_k ⊙ (x − x0) are the integrated
    gradients of f_k from x0, without error (Sundararajan et al., ICML 2017; Aumann & Shapley, 1974).

    Args:
        function: a polynomial of that degree, examples independent of one another.
        x: inputs.
        x0: the point.
        degree: at least 1.
    """
    nodes, weights = quadrature("gauss-legendre", (degree + 1) // 2)
    start = jnp.broadcast_to(x0.astype(x.dtype)[None], x.shape)
    step = x - start
    held = lax.stop_gradient(step)

    def slope(t: Array) -> Array:
        return jax.jvp(function, (start + t * held,), (step,))[1]

    slopes = lax.map(jax.checkpoint(slope), jnp.asarray(nodes, x.dtype))
    return function(start) + jnp.einsum("t,tnk->nk", jnp.asarray(weights, x.dtype), slopes)


class TaylorNet(Expansion, kw_only=True):
    """Levels of coarse-graining, and a Taylor unit on the last of them: hierarchical, overlapping or direct.

    Attributes:
        levels: from fine to coarse; none for the direct expansion.
        classes: outputs.
        size: side of the square map in which the centered image lies, in the middle and surrounded by zeros; the
            image's own where None.
        pool: side of blocks that are averaged first, a linear coarse-graining.
        head_order: order of the last unit; 1 for a linear one.
        head_form: its form.
        head_rank: its rank.
        quadratic: factor of the initial deviation of what multiplies products.
    """

    levels: tuple[Level, ...]
    classes: int = 10
    size: int | None = None
    pool: int = 1
    head_order: int = 1
    head_form: Form = "cp"
    head_rank: int | None = None
    quadratic: float = 0.5

    @property
    def degree(self) -> int:
        """Product of the orders of all units."""
        return math.prod(level.order for level in self.levels) * self.head_order

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], train: bool = False, frozen: bool = False, features: bool = False
    ) -> Float[Array, "n k"]:
        """Logits, (N, classes).

        Args:
            x: images, (N, H, W, C), in `bounds`.
            train: changes nothing; training steps say it.
            frozen: as an affine function of x with the coefficients held, see `path_affine`.
            features: instead, all entries of the last level, which the last unit reads.

        Raises:
            ValueError: the levels do not fit the image, or are no `Level`.
        """
        for level in self.levels:
            if not isinstance(level, Level):
                raise ValueError(f"levels: got {level!r}, expected entries such as Level(8)")
        if frozen:
            return self.held(x)
        z = self.centered(x)
        height, width = z.shape[1:3]
        if self.pool != 1:
            if self.pool < 1 or height % self.pool or width % self.pool:
                raise ValueError(f"pool: got {self.pool} on {height}x{width} images, expected a divisor of both")
            z = block_means(z, self.pool)
        if self.size is not None:
            z = _placed(z, self.size)
        if self.dtype is not None:
            z = z.astype(self.dtype)
        for i, level in enumerate(self.levels):
            z = TaylorLevel(level=level, quadratic=self.quadratic, **self.shared, name=f"level_{i}")(z)
        z = z.reshape(len(z), -1)
        if features:
            return z
        unit = TaylorUnit(
            self.classes, self.head_order, self.head_form, self.head_rank, self.quadratic, **self.shared, name="head"
        )
        return unit(z).astype(np.promote_types(np.float32, z.dtype))


def _placed(z: Float[Array, "n h w c"], size: int) -> Float[Array, "n s s c"]:
    """A map in the middle of a larger one of zeros."""
    if size < max(z.shape[1:3]):
        raise ValueError(f"size: got {size}, expected at least {max(z.shape[1:3])}, the image's side")
    sides = [((size - side) // 2, (size - side + 1) // 2) for side in z.shape[1:3]]
    return jnp.pad(z, ((0, 0), *sides, (0, 0)))


class PolynomialBlock(Layer):
    """h + s + α BN(V (h ⊙ s)), h = BN(K₂ BN(K₁ x)), s the shortcut: a residual block of order 2.

    R-PolyNet's block (Chrysos et al., CVPR 2023) with ordinary BatchNorm, so that evaluation is an exact polynomial.

    Attributes:
        features: output channels.
        stride: of the first convolution and of the shortcut.
    """

    features: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool = False) -> Float[Array, "n h2 w2 c2"]:
        """(N, H, W, C) ↦ (N, H/stride, W/stride, features)."""

        def convolve(x: Array, side: int, stride: int, name: str) -> Array:
            pad = ((side - 1) // 2, (side - 1) // 2)
            return nn.Conv(
                self.features,
                (side, side),
                stride,
                padding=(pad, pad),
                use_bias=False,
                kernel_init=nn.initializers.he_normal(),
                dtype=self.dtype,
                param_dtype=self.param_dtype,
                name=name,
            )(x)

        h = BatchNorm(**self.shared, name="norm_1")(convolve(x, 3, self.stride, "conv_1"), train)
        h = BatchNorm(**self.shared, name="norm_2")(convolve(h, 3, 1, "conv_2"), train)
        s = x
        if x.shape[-1] != self.features or self.stride > 1:
            s = BatchNorm(**self.shared, name="norm_shortcut")(convolve(x, 1, self.stride, "shortcut"), train)
        product = BatchNorm(**self.shared, name="norm_product")(convolve(h * s, 1, 1, "product"), train)
        alpha = self.param("alpha", nn.initializers.zeros, (), self.param_dtype)
        return h + s + alpha.astype(h.dtype) * product


class PolynomialResNet(Expansion, kw_only=True):
    """Residual blocks of order 2, global average pooling, a linear head: a polynomial of degree 2^blocks.

    Attributes:
        depths: blocks of each stage; every stage but the first halves the map.
        widths: channels of each stage.
        classes: outputs.
    """

    depths: tuple[int, ...] = (2, 2, 2, 2)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    classes: int = 10

    @property
    def degree(self) -> int:
        """2^blocks."""
        return 2 ** sum(self.depths)

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool = False, frozen: bool = False) -> Float[Array, "n k"]:
        """Logits, (N, classes).

        Args:
            x: images, (N, H, W, C), in `bounds`.
            train: with the batch's statistics in BatchNorm, for which the network is no polynomial.
            frozen: in evaluation, as an affine function of x with the coefficients held, see `path_affine`.
        """
        if frozen:
            return self.held(x)
        if not len(self.depths) == len(self.widths) > 0:
            raise ValueError(
                f"depths, widths: got {len(self.depths)} and {len(self.widths)} entries, expected one of each per stage"
            )
        z = nn.Conv(
            self.widths[0],
            (3, 3),
            padding=((1, 1), (1, 1)),
            use_bias=False,
            kernel_init=nn.initializers.he_normal(),
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="stem",
        )(self.centered(x))
        z = BatchNorm(**self.shared, name="norm_stem")(z, train)
        for stage, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True)):
            for block in range(depth):
                stride = 2 if stage and not block else 1
                z = PolynomialBlock(features=width, stride=stride, **self.shared, name=f"block_{stage}_{block}")(
                    z, train
                )
        pooled = z.astype(np.promote_types(np.float32, z.dtype)).mean((1, 2))
        return nn.Dense(self.classes, param_dtype=self.param_dtype, name="classifier")(pooled)


def hierarchical(
    features: Sequence[int] = (8, 16, 32, 64), ranks: Sequence[int] | None = None, **fields: Any
) -> tuple[Level, ...]:
    """Levels of disjoint 2×2 blocks; ranks are the features where None, `fields` go to every `Level`."""
    return tuple(Level(c, r, **fields) for c, r in zip(features, ranks or features, strict=True))


def overlapping(
    features: Sequence[int] = (8, 16, 32, 48), ranks: Sequence[int] | None = None, **fields: Any
) -> tuple[Level, ...]:
    """Levels of 4×4 windows that overlap by half."""
    return hierarchical(features, ranks, side=4, stride=2, **fields)


@dataclass(frozen=True)
class LevelCount:
    """One row of `describe`.

    Attributes:
        name: of the level, or "whole network".
        sites: blocks, each with a unit's outputs.
        inputs: d, entries of a block.
        outputs: features.
        degree: of the outputs in the image.
        parameters: numbers that are trained.
        coefficients: those of a whole polynomial of the unit's order (of the network: degree) in the inputs, of every
            block where blocks have units of their own.
    """

    name: str
    sites: int
    inputs: int
    outputs: int
    degree: int
    parameters: int
    coefficients: int


def describe(model: TaylorNet, shape: Sequence[int]) -> list[LevelCount]:
    """Parameters beside the coefficients of the full expansion, level by level and of the whole network.

    A polynomial of order n in d inputs has C(d + n, n) coefficients for each output.

    Args:
        model: the network.
        shape: of an image, (H, W, C).

    Example:
        >>> rows = describe(TaylorNet(levels=hierarchical(), size=32), (28, 28, 1))
        >>> rows[-1].degree, rows[-1].parameters, len(str(rows[-1].coefficients))
        (16, 40482, 35)
    """
    image = jax.ShapeDtypeStruct((1, *shape), model.param_dtype)
    params: Any = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    rows, degree, channels = list[LevelCount](), 1, shape[-1]
    side = [model.size or s // model.pool for s in shape[:2]]
    for i, level in enumerate(model.levels):
        side, degree, d = [s // level.stride for s in side], degree * level.order, level.side**2 * channels
        sites, channels = math.prod(side), level.features
        full = _full(d, level.order, channels) * (1 if level.shared else sites)
        count = _count(params[f"level_{i}"])
        rows.append(LevelCount(f"level {i}", sites, d, channels, degree, count, full))
    d = math.prod(side) * channels
    head = _full(d, model.head_order, model.classes)
    degree *= model.head_order
    rows.append(LevelCount("head", 1, d, model.classes, degree, _count(params["head"]), head))
    pixels = math.prod(shape)
    whole = _full(pixels, degree, model.classes)
    return [*rows, LevelCount("whole network", 1, pixels, model.classes, degree, _count(params), whole)]


def _count(params: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def _full(inputs: int, order: int, outputs: int) -> int:
    return outputs * math.comb(inputs + order, order)
