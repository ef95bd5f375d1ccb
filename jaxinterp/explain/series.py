"""A polynomial network read order by order.

About a point x0, with d = x − x0 and g(t) = f(x0 + t d), the contribution of order m is the m-th coefficient of g,

    f(x0 + t d) = Σ_m t^m f_m(x),      f(x) = Σ_m f_m(x),      f_m(x0 + c d) = c^m f_m(x0 + d)

All f_m come out of one pass over the program that JAX traces (`propagation`), so any model and any function of sums,
products, linear maps and rearrangements can be read; loops are not followed.

Each f_m is homogeneous, so Euler's identity splits it over the entries of the input without remainder,

    f_m = Σ_i d_i ∂_i f_m / m,      ∂_i f_m = the coefficient of order m − 1 of ∂_i f along the same line

and the sum over orders is the integrated gradient from x0.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxinterp.checks import require, require_at_least, require_finite, require_labels
from jaxinterp.explain.decompose import Bound, Targets, bind
from jaxinterp.explain.propagation import NotPolynomialError as NotPolynomialError
from jaxinterp.explain.propagation import propagate as propagate
from jaxinterp.explain.tracing import in_chunks, split_at, unjitted


def _checked(
    model: Callable[..., Array], x: Any, x0: Any, max_order: int, targets: Targets, variables: Any, layer: str | None
) -> tuple[Bound, Array, Array]:
    """Check the arguments that all readings share; return the call, the inputs and the expansion points."""
    x = jnp.asarray(x)
    x0 = jnp.asarray(x0, x.dtype)
    require(x0.shape in (x.shape, x.shape[1:]), "x0", f"shape {x0.shape}", f"{x.shape[1:]} or {x.shape}")
    require_at_least("max_order", max_order, 0)
    require_finite("x", x)
    require_finite("x0", x0)
    if warn := getattr(getattr(model, "__self__", None), "warn_outside", None):
        warn(x)  # here, because traced values are not known
    return bind(model, x, targets, variables, (layer,)), x, jnp.broadcast_to(x0, x.shape)


def orders(
    model: Callable[..., Float[Array, "batch classes"]],
    x: Float[Array | np.ndarray, "batch ..."],
    x0: Float[Array | np.ndarray, "..."],
    max_order: int,
    *,
    variables: Any = None,
    layer: str | None = None,
    max_bytes: int = 2 << 30,
) -> Float[Array, "orders batch classes"]:
    """Return the contributions f_0, …, f_M of all orders to every logit, exact up to rounding.

    Args:
        model: x ↦ logits (batch, classes), a polynomial, examples independent of one another; or (variables, x) ↦
            logits where `variables` is given, compiled once for as long as the same function is passed.
        x: inputs, (batch, ...).
        x0: expansion point, of one example's shape or of the batch's.
        max_order: M ≥ 0; the degree of the polynomial for all of it.
        variables: the model's variables.
        layer: path of a Flax submodule: then orders in its output, about its output at x0; connections around the
            submodule are held at x0.
        max_bytes: bytes that one pass may take by estimate; larger batches run in equal chunks.

    Returns:
        (M + 1, batch, classes); the sum over orders is f(x) if M ≥ degree and nothing goes around the submodule.

    Raises:
        NotPolynomialError: an operation is not polynomial; the line names it and its module.

    Example:
        >>> square = lambda x: (x**2).sum(-1, keepdims=True)
        >>> orders(square, jnp.array([[3.0]]), jnp.array([1.0]), 2).ravel().tolist()
        [1.0, 4.0, 4.0]
    """
    with jax.default_matmul_precision("highest"):
        call, x, x0 = _checked(model, x, x0, max_order, None, variables, layer)
        run = partial(unjitted(_orders) if variables is None else _orders, call.model, layer, max_order)
        size = (max_order + 2) * call.size.bytes_each(1)
        return jnp.moveaxis(in_chunks(run, (x, x0), size, max_bytes), 1, 0)


@partial(jax.jit, static_argnums=(1, 2))
def _orders(model: Callable[..., Array], layer: str | None, max_order: int, x: Array, x0: Array) -> Array:
    """Return the orders of a chunk, examples first."""
    function, start, step = _line(model, layer, x, x0)
    return jnp.moveaxis(propagate(function, start, step, max_order), 0, 1)


def _line(
    model: Callable[..., Array], layer: str | None, x: Array, x0: Array
) -> tuple[Callable[..., Array], Array, Array]:
    """Return function, point and step of an expansion in the input, or in a submodule's output."""
    if layer is None:
        return model, x0, x - x0
    (zero,), added = split_at(model, x0, [layer])
    (here,), (there,) = added(zero)[1], split_at(model, x, [layer])[1](zero)[1]
    return lambda y: added(y)[0], zero, there - here


class OrderContributions(NamedTuple):
    """Result of `contributions`; T is the number of targets, M the largest order, `...` the input's shape.

    Attributes:
        orders: f_m, (batch, T, M + 1).
        contributions: of every entry of the input to every order from 1 to M, (batch, T, M, ...).
        remainder: f − Σ_{m ≤ M} f_m, the orders beyond M (and connections around the submodule), (batch, T).
        residual: f_m − Σ contributions_m for every order from 1 to M, (batch, T, M); zero up to rounding.
    """

    orders: Float[Array, "batch t m1"]
    contributions: Float[Array, "batch t m *shape"]
    remainder: Float[Array, "batch t"]
    residual: Float[Array, "batch t m"]


def contributions(
    model: Callable[..., Float[Array, "batch classes"]],
    x: Float[Array | np.ndarray, "batch ..."],
    x0: Float[Array | np.ndarray, "..."],
    max_order: int,
    targets: Targets = None,
    *,
    variables: Any = None,
    layer: str | None = None,
    max_bytes: int = 2 << 30,
) -> OrderContributions:
    """Return the contributions of every entry of the input, or of a submodule's output, to every order of every logit.

        c_{m,i} = d_i ∂_i f_m / m,      Σ_i c_{m,i} = f_m,      Σ_m c_{m,i} = integrated gradient of entry i from x0

    Takes the arguments of `orders`, M ≥ 1, and as `targets` None for all classes, an int, (batch,) or (batch, T).

    Example:
        >>> product = lambda x: x[:, :1] * x[:, 1:] + x[:, :1]
        >>> parts = contributions(product, jnp.array([[2.0, 3.0]]), jnp.zeros(2), 2)
        >>> parts.contributions[0, 0].tolist()
        [[2.0, 0.0], [3.0, 3.0]]

    Source: Euler's theorem on homogeneous functions; integrated gradients, Sundararajan et al., ICML 2017.
    """
    with jax.default_matmul_precision("highest"):
        require_at_least("max_order", max_order, 1)
        call, x, x0 = _checked(model, x, x0, max_order, targets, variables, layer)
        run = partial(unjitted(_contributions) if variables is None else _contributions, call.model, layer, max_order)
        size = 3 * (max_order + 2) * call.size.bytes_each(call.rows.shape[1])
        return in_chunks(run, (x, x0, call.rows), size, max_bytes)


def _with_gradients(function: Callable[..., Array], rows: Array, x: Array) -> tuple[Array, Array]:
    """Return the targets' logits, (batch, T), and their gradients, (batch, T, ...)."""
    logits, pullback = jax.vjp(function, x)
    cotangents = jax.nn.one_hot(rows.T, logits.shape[1], dtype=logits.dtype)
    return jnp.take_along_axis(logits, rows, axis=1), jnp.moveaxis(jax.vmap(pullback)(cotangents)[0], 0, 1)


@partial(jax.jit, static_argnums=(1, 2))
def _contributions(
    model: Callable[..., Array], layer: str | None, max_order: int, x: Array, x0: Array, rows: Array
) -> OrderContributions:
    function, start, step = _line(model, layer, x, x0)
    values, gradients = propagate(partial(_with_gradients, function, rows), start, step, max_order)
    order = jnp.arange(1, max_order + 1, dtype=x.dtype).reshape(-1, *(1,) * (gradients.ndim - 1))
    parts = jnp.moveaxis(step[None, :, None] * gradients[:-1] / order, 0, 2)
    terms = jnp.moveaxis(values, 0, 2)
    remainder = jnp.take_along_axis(model(x), rows, axis=1) - terms.sum(-1)
    return OrderContributions(terms, parts, remainder, terms[:, :, 1:] - parts.reshape(*parts.shape[:3], -1).sum(-1))


def pairs(
    model: Callable[..., Float[Array, "batch classes"]],
    x: Float[Array | np.ndarray, "batch height width channels"],
    x0: Float[Array | np.ndarray, "..."],
    pixels: Int[np.ndarray, "p 2"] | Sequence[tuple[int, int]] | None = None,
    targets: Targets = None,
    *,
    variables: Any = None,
    max_bytes: int = 2 << 30,
) -> Float[Array, "batch t p height width"]:
    """Return the contributions of pairs of pixels to order 2: ½ d_i H_ij d_j, H the Hessian at x0.

    Args:
        model: as in `orders`; any twice differentiable function.
        x: images, (batch, H, W, C).
        x0: expansion point.
        pixels: (y, x) of the pixels whose pairs are returned; all where None.
        targets: None for all classes, an int, (batch,) or (batch, T) classes.
        variables: as in `orders`.
        max_bytes: as in `orders`.

    Returns:
        (batch, T, P, H, W), summed over channels. The sum over the last two axes is the pixel's contribution to order
        2, and the sum over all pixels f_2; a pixel's square is at its own position.
    """
    with jax.default_matmul_precision("highest"):
        call, x, x0 = _checked(model, x, x0, 2, targets, variables, None)
        require(x.ndim == 4, "x", f"shape {x.shape}", "images (batch, H, W, C)")
        height, width = x.shape[1:3]
        chosen = np.asarray(list(np.ndindex(height, width)) if pixels is None else pixels)
        fits = len(chosen) > 0 and chosen.shape[1:] == (2,) and np.issubdtype(chosen.dtype, np.integer)
        inside = fits and chosen.min() >= 0 and (chosen < (height, width)).all()
        require(inside, "pixels", f"{chosen.tolist()[:3]} of shape {chosen.shape}", f"(y, x) within {height}x{width}")
        run = partial(unjitted(_pairs) if variables is None else _pairs, call.model, jnp.asarray(chosen, jnp.int32))
        count = call.rows.shape[1]
        maps = count * len(chosen) * height * width * x.dtype.itemsize
        return in_chunks(run, (x, x0, call.rows), 4 * call.size.bytes_each(count) + maps, max_bytes)


@jax.jit
def _pairs(model: Callable[..., Array], pixels: Array, x: Array, x0: Array, rows: Array) -> Array:
    step = x - x0

    def one(pixel: Array) -> Array:
        mask = jnp.zeros(x.shape[1:3], x.dtype).at[pixel[0], pixel[1]].set(1)
        row = jax.jvp(lambda x: _with_gradients(model, rows, x)[1], (x0,), (step * mask[None, :, :, None],))[1]
        return (row * step[:, None]).sum(-1) / 2

    return jnp.moveaxis(jax.lax.map(one, pixels), 0, 2)


def energy(terms: Float[Array | np.ndarray, "orders n classes"]) -> Float[np.ndarray, " orders"]:
    """Return the root mean square of every order of `orders`, less the mean over classes, which decides nothing."""
    values = np.asarray(terms, np.float64)
    return np.sqrt(((values - values.mean(-1, keepdims=True)) ** 2).mean((1, 2)))


def truncated_accuracy(
    terms: Float[Array | np.ndarray, "orders n classes"], labels: Int[np.ndarray, " n"]
) -> Float[np.ndarray, " orders"]:
    """Return the accuracy of f_0 + … + f_m for every m.

    Args:
        terms: f_0, …, f_M, from `orders`, finite.
        labels: classes in [0, classes).

    Example:
        >>> terms = np.array([[[0.0, 1.0]], [[3.0, 0.0]]])
        >>> truncated_accuracy(terms, np.array([0])).tolist()
        [0.0, 1.0]
    """
    _, images, classes = terms.shape
    require_labels("labels", labels, images, classes)
    require_finite("terms", terms)
    partial_sums = np.cumsum(np.asarray(terms, np.float64), axis=0)
    return (partial_sums.argmax(-1) == np.asarray(labels)).mean(1)


def order_penalty(terms: Float[Array, "orders n classes"], growth: float) -> Float[Array, ""]:
    """Return Σ_m c^m ⟨f_m²⟩ over m ≥ 1, averaged over images and classes: it moves weight to low orders where c > 1.

    Args:
        terms: f_0, …, f_M, from `propagate` or `orders`.
        growth: c > 0.
    """
    require(growth > 0, "growth", growth, "a positive number")
    weights = growth ** jnp.arange(1, len(terms), dtype=terms.dtype)
    return (weights * (terms[1:] ** 2).mean((1, 2))).sum()
