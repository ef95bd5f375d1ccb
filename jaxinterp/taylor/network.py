"""TaylorNet: a network that is a polynomial of the image, with explicit coarse-graining. The design is ours.

After the abstract of Yang, Xie & Yang, "Exploring explicit coarse-grained structure in artificial neural networks"
(Chin. Phys. Lett. 40, 020501, 2023, arXiv 2211.01779); its full text and its code could not be had.

    z⁰ = (x − x0) / s,      z^l_p = unit(u_p),      f(x) = unit(z^L)

with u_p block p of z^{l−1} and a polynomial unit of `jaxinterp.taylor.units`. There is no activation, no maximum and no
norm that is not affine in evaluation: f is a polynomial whose degree is the product of the orders, and
`jaxinterp.explain.series` reads it order by order about x0, which is stored with the parameters. The quadratic parts
start small, so that a degree of 16 can be trained at all.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from jaxinterp.checks import require, require_finite, warn
from jaxinterp.explain.attribute.integrated import quadrature
from jaxinterp.explain.explainable import Explainable, explainable
from jaxinterp.nn.batchnorm import BatchNorm
from jaxinterp.nn.layers import Layer
from jaxinterp.nn.weights import variable_shapes
from jaxinterp.taylor.units import Form, Level, TaylorLevel, TaylorUnit, block_means


class Expansion(Layer, kw_only=True):
    """Base class of polynomials of images about a point x0 that is stored with the parameters.

    Attributes:
        scale: s, by which x − x0 is divided.
        bounds: smallest and largest pixel value of training; values outside raise a warning.
    """

    scale: float = 1.0
    bounds: tuple[float, float] = (0.0, 1.0)

    @property
    def degree(self) -> int:
        """Degree of the polynomial."""
        raise NotImplementedError

    def __explainable__(self, variables: Any) -> Explainable:
        """Return the network as it is explained, in x − x0."""
        fields: dict[str, Any] = {"constant": "the logit at the expansion point", "notice": self.warn_outside}
        return explained_from(self, variables, ("batch_stats", "expansion_point"), **fields)

    def expansion_point(self, shape: Sequence[int]) -> Float[Array, "h w c"]:
        """Return x0, (H, W, C); zeros until `with_expansion_point` sets another."""
        wide = np.promote_types(np.float32, self.param_dtype)
        return self.variable("batch_stats", "expansion_point", jnp.zeros, tuple(shape), wide).value

    def centered(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        """Compute (x − x0) / s."""
        require(self.scale > 0, "scale", self.scale, "a positive number")
        require(self.bounds[0] < self.bounds[1], "bounds", self.bounds, "the smallest value, then the largest")
        self.warn_outside(x)
        x0, shape = self.expansion_point(x.shape[1:]), x.shape[1:]
        require(x0.shape == shape, "x", f"images of shape {shape}", f"{x0.shape}, the shape of the expansion point")
        x = self.widen(x)
        return (x - x0.astype(x.dtype)[None]) / jnp.asarray(self.scale, x.dtype)

    def warn_outside(self, x: Array | np.ndarray) -> None:
        """Warn about images outside of `bounds`; traced images have no values yet and pass."""
        if isinstance(x, jax.core.Tracer) or x.size == 0:
            return
        values = np.asarray(x)  # NumPy, because JAX would trace the comparison where other values are traced
        (low, high), (smallest, largest) = (float(values.min()), float(values.max())), self.bounds
        margin = 1e-3 * (largest - smallest)
        if not (low >= smallest - margin and high <= largest + margin):
            warn(
                f"x: got values in [{low:.4g}, {high:.4g}], trained on [{smallest:g}, {largest:g}]: "
                f"a polynomial of degree {self.degree} extrapolates badly"
            )

    def frozen_logits(self, x: Float[Array, "n h w c"]) -> Float[Array, "n k"]:
        """Evaluate the network as an affine function of x with frozen coefficients, see `path_affine`."""
        self.warn_outside(x)
        apply: Any = partial(self.clone(parent=None).apply, self.variables)
        return path_affine(apply, x, self.expansion_point(x.shape[1:]), self.degree)


@dataclass(frozen=True)
class FromPoint:
    """A network as a function of x − x0, x0 among the variables; as of an `Explainable`.

    Attributes:
        network: (variables, x) ↦ logits.
        path: of x0 in the variables.
    """

    network: Callable[..., Any]
    path: tuple[str, ...]

    def __call__(self, variables: Any, step: Float[Array, "n h w c"]) -> Any:
        """Return the logits of x0 + step."""
        return self.network(variables, step + at_path(variables, self.path).astype(step.dtype)[None])


@dataclass(frozen=True)
class Step:
    """x − x0, as the encoding of an `Explainable`; see `FromPoint`."""

    path: tuple[str, ...]

    def __call__(self, variables: Any, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        """Return the step from the expansion point."""
        return x - at_path(variables, self.path).astype(x.dtype)[None]


def at_path(variables: Any, path: Sequence[str]) -> Array:
    """Return an entry of nested mappings."""
    return reduce(lambda part, name: part[name], path, variables)  # type: ignore[no-any-return]


def explained_from(network: nn.Module, variables: Any, path: Sequence[str], **fields: Any) -> Explainable:
    """Return a network explained in x − x0: affine once its path is held (integrated gradients, exactly)."""
    whole, path = explainable(network, variables, keywords={}), tuple(path)
    parts: dict[str, Any] = {
        "network": FromPoint(whole.network, path),
        "held": FromPoint(whole.held, path),
        "encoding": Step(path),
    }
    return replace(whole, **parts, **fields)


def expansion_point(variables: Any) -> Float[Array, "h w c"]:
    """Return x0 of a polynomial's variables."""
    return at_path(variables, ("batch_stats", "expansion_point"))


def with_expansion_point(variables: Any, point: Float[Array | np.ndarray, "h w c"]) -> Any:
    """Return the variables with another expansion point, such as the mean of the training images."""
    stats = dict(variables["batch_stats"])
    old = stats["expansion_point"]
    require(point.shape == old.shape, "point", f"shape {point.shape}", f"{old.shape}, the shape of one image")
    require_finite("point", point)
    return {**variables, "batch_stats": {**stats, "expansion_point": jnp.asarray(point, old.dtype)}}


def path_affine(
    function: Callable[[Array], Array], x: Float[Array, "n *shape"], x0: Float[Array, "*shape"], degree: int
) -> Float[Array, "n k"]:
    """Evaluate a polynomial as an affine function of x whose coefficients are averaged over the path from x0.

        f(x) = f(x0) + W(x) (x − x0),     W(x) = ∫₀¹ Df(x0 + t (x − x0)) dt

    W(x) is under `stop_gradient`. Gauss–Legendre quadrature with ⌈degree/2⌉ nodes is exact, so W(x)ᵀe_k ⊙ (x − x0) are
    the integrated gradients of f_k from x0, without error.

    Args:
        function: a polynomial, batch in, batch out, examples independent of one another.
        x: inputs, (N, ...).
        x0: the expansion point.
        degree: of the polynomial, at least 1.

    Returns:
        f(x), (N, K).

    Source: Aumann & Shapley (1974); Sundararajan, Taly & Yan, ICML 2017.
    """
    nodes, weights = quadrature("gauss-legendre", (degree + 1) // 2)
    start = jnp.broadcast_to(x0.astype(x.dtype)[None], x.shape)
    step = x - start
    frozen_step = lax.stop_gradient(step)

    def slope(t: Array) -> Array:
        return jax.jvp(function, (start + t * frozen_step,), (step,))[1]

    slopes = lax.map(jax.checkpoint(slope), jnp.asarray(nodes, x.dtype))
    return function(start) + jnp.einsum("t,tnk->nk", jnp.asarray(weights, x.dtype), slopes)


class TaylorNet(Expansion, kw_only=True):
    """Levels of coarse-graining and a Taylor unit on the last of them: hierarchical, overlapping or direct.

    Attributes:
        levels: from fine to coarse; empty for the direct expansion.
        classes: outputs.
        size: side of the square map of zeros in whose middle the centered image is placed; the image's own if None.
        pool: side of the blocks that are averaged first, a linear coarse-graining.
        head_order: order of the last unit; 1 for a linear one.
        head_form: its form.
        head_rank: its rank.
        quadratic: scale of the initial weights that multiply products.
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
        """Compute logits, (N, classes).

        Args:
            x: images, (N, H, W, C), in `bounds`.
            train: no effect; accepted because training steps pass it.
            frozen: compute them as an affine function of x with frozen coefficients, see `path_affine`.
            features: return the flattened last level instead, which the last unit reads.
        """
        for level in self.levels:
            require(isinstance(level, Level), "levels", level, "entries such as Level(8)")
        if frozen:
            return self.frozen_logits(x)
        z = self.centered(x)
        height, width = z.shape[1:3]
        if self.pool != 1:
            fits = self.pool >= 1 and height % self.pool == width % self.pool == 0
            require(fits, "pool", f"{self.pool} on {height}x{width} images", "a divisor of both")
            z = block_means(z, self.pool)
        if self.size is not None:
            longest = max(z.shape[1:3])
            require(self.size >= longest, "size", self.size, f"at least {longest}, the side of the image")
            sides = [((self.size - side) // 2, (self.size - side + 1) // 2) for side in z.shape[1:3]]
            z = jnp.pad(z, ((0, 0), *sides, (0, 0)))
        if self.dtype is not None:
            z = z.astype(self.dtype)
        for i, level in enumerate(self.levels):
            z = TaylorLevel(level=level, quadratic=self.quadratic, **self.shared, name=f"level_{i}")(z)
        z = z.reshape(len(z), -1)
        if features:
            return z
        order, form, rank = self.head_order, self.head_form, self.head_rank
        unit = TaylorUnit(self.classes, order, form, rank, self.quadratic, **self.shared, name="head")
        return unit(z).astype(np.promote_types(np.float32, z.dtype))


def _conv_norm(layer: Layer, x: Array, features: int, side: int, stride: int, name: str, train: bool) -> Array:
    """Convolve with odd kernels, padded to keep the size at stride 1, and normalize."""
    types: dict[str, Any] = {"dtype": layer.dtype, "param_dtype": layer.param_dtype}
    init, pad = nn.initializers.he_normal(), (side - 1) // 2
    conv = nn.Conv(features, (side, side), stride, pad, use_bias=False, kernel_init=init, **types, name=name)
    return BatchNorm(**layer.shared, name=f"norm_{name.removeprefix('conv_')}")(conv(x), train)


class PolynomialBlock(Layer):
    """h + s + α BN(V (h ⊙ s)), h = BN(K₂ BN(K₁ x)), s the shortcut: a residual block of order 2.

    The block of R-PolyNet (Chrysos et al., CVPR 2023) with ordinary BatchNorm, so that evaluation is a polynomial.

    Attributes:
        features: output channels.
        stride: of the first convolution and of the shortcut.
    """

    features: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool = False) -> Float[Array, "n h2 w2 c2"]:
        """Map (N, H, W, C) to (N, H/stride, W/stride, features)."""

        def conv_norm(x: Array, side: int, stride: int, name: str) -> Array:
            return _conv_norm(self, x, self.features, side, stride, name, train)

        h = conv_norm(conv_norm(x, 3, self.stride, "conv_1"), 3, 1, "conv_2")
        same = x.shape[-1] == self.features and self.stride == 1
        s = x if same else conv_norm(x, 1, self.stride, "shortcut")
        product = conv_norm(h * s, 1, 1, "product")
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
        """Compute logits as `TaylorNet` does; with `train` by the batch's statistics, which is not a polynomial."""
        entries = len(self.depths), len(self.widths)
        require(entries[0] == entries[1] > 0, "depths, widths", entries, "as many entries in both, at least one")
        if frozen:
            return self.frozen_logits(x)
        z = _conv_norm(self, self.centered(x), self.widths[0], 3, 1, "stem", train)
        for stage, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True)):
            for i in range(depth):
                stride = 2 if stage and not i else 1
                block = PolynomialBlock(features=width, stride=stride, **self.shared, name=f"block_{stage}_{i}")
                z = block(z, train)
        pooled = z.astype(np.promote_types(np.float32, z.dtype)).mean((1, 2))
        return nn.Dense(self.classes, param_dtype=self.param_dtype, name="classifier")(pooled)


@dataclass(frozen=True)
class LevelCount:
    """One row of `describe`.

    Attributes:
        name: of the level, or "whole network".
        sites: blocks, each with a unit's outputs.
        inputs: d, entries of a block.
        outputs: features.
        degree: of the outputs as polynomials of the image.
        parameters: trained numbers.
        coefficients: numbers in full polynomials of the unit's order (of the network: its degree), one for each unit.
    """

    name: str
    sites: int
    inputs: int
    outputs: int
    degree: int
    parameters: int
    coefficients: int


def describe(model: TaylorNet, shape: Sequence[int]) -> list[LevelCount]:
    """Count parameters, and coefficients of the full expansion, level by level and of the whole network.

    A polynomial of order n in d inputs has C(d + n, n) coefficients for each output. `shape` is an image's, (H, W, C).

    Example:
        >>> from jaxinterp.taylor import hierarchical
        >>> rows = describe(TaylorNet(levels=hierarchical(), size=32), (28, 28, 1))
        >>> rows[-1].degree, rows[-1].parameters, len(str(rows[-1].coefficients))
        (16, 40482, 35)
    """
    params = variable_shapes(model, shape, model.param_dtype)["params"]

    def row(name: str, sites: int, inputs: int, outputs: int, order: int, part: Any, units: int = 1) -> LevelCount:
        parameters = sum(leaf.size for leaf in jax.tree.leaves(part))
        coefficients = units * outputs * math.comb(inputs + order, order)
        return LevelCount(name, sites, inputs, outputs, degree, parameters, coefficients)

    rows, degree, channels = list[LevelCount](), 1, shape[-1]
    side = [model.size or s // model.pool for s in shape[:2]]
    for i, level in enumerate(model.levels):
        side, degree, inputs = [s // level.stride for s in side], degree * level.order, level.side**2 * channels
        sites, channels, part = math.prod(side), level.features, params[f"level_{i}"]
        rows.append(row(f"level {i}", sites, inputs, channels, level.order, part, 1 if level.shared else sites))
    degree = model.degree
    head = row("head", 1, math.prod(side) * channels, model.classes, model.head_order, params["head"])
    return [*rows, head, row("whole network", 1, math.prod(shape), model.classes, degree, params)]
