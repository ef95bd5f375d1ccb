"""A polynomial network read order by order.

About a point x0, with d = x − x0 and g(t) = f(x0 + t d), the contribution of order m is the m-th coefficient of g,

    f(x0 + t d) = Σ_m t^m f_m(x),      f(x) = Σ_m f_m(x),      f_m(x0 + c d) = c^m f_m(x0 + d)

All f_m come out of one pass over the program that JAX traces (`propagation`), so any model and any function of sums,
products, linear maps and rearrangements can be read; loops are not followed.

Each f_m is homogeneous, so Euler's identity splits it over the entries of the input without remainder,

    f_m = Σ_i d_i ∂_i f_m / m,      ∂_i f_m = the coefficient of order m − 1 of ∂_i f along the same line

and the sum over orders is the integrated gradient from x0.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxinterp.checks import require, require_finite, require_labels, require_whole
from jaxinterp.explain.attribute.backward import Call, checked, chosen, gradients_of
from jaxinterp.explain.attribute.hessians import expansion_line, pairs
from jaxinterp.explain.attribution import Attribution
from jaxinterp.explain.batches import MAX_BYTES, Targets, in_batches, padded
from jaxinterp.explain.meshes import on_automatic_axes
from jaxinterp.explain.program import INPUT
from jaxinterp.explain.propagation import NotPolynomialError, propagate
from jaxinterp.lazy import public

__all__ = [
    "NotPolynomialError",
    "contributions",
    "energy",
    "order_penalty",
    "orders",
    "pairs",
    "propagate",
    "truncated_accuracy",
]

__dir__ = public(__all__)


def _checked(
    net: Any, x: Any, x0: Any, max_order: int, targets: Targets, layer: str | None, max_bytes: int
) -> tuple[Call, Array]:
    """Check the arguments that all readings share; return the call and the padded expansion points."""
    require_whole("max_order", max_order, 0)
    call = checked(net, x, targets, layer, max_bytes)
    if call.net.notice is not None:
        call.net.notice(call.x)
    x0, shape = jnp.asarray(x0, call.x.dtype), (call.batch, *call.x.shape[1:])
    require(x0.shape in (shape, shape[1:]), "x0", f"shape {x0.shape}", f"{shape[1:]} or {shape}")
    require_finite("x0", x0)
    return call, padded(jnp.broadcast_to(x0, shape))


@on_automatic_axes
def orders(
    net: Any,
    x: Any,
    targets: Targets = None,
    *,
    x0: Float[Array | np.ndarray, "..."],
    max_order: int,
    layer: str | None = None,
    max_bytes: int = MAX_BYTES,
) -> Attribution:
    """Return the contributions f_0, …, f_M of all orders to every logit, exact up to rounding.

    Args:
        net: a network that is a polynomial, see `explainable`.
        x: a batch, (batch, ...).
        targets: None for all classes, an int, (batch,) or (batch, T) classes.
        x0: expansion point, of one example's shape or of the batch's.
        max_order: M ≥ 0; the degree of the polynomial for all of it.
        layer: name of a layer: then orders in its output, about its output at x0; what goes around it is held at x0.
        max_bytes: bytes that one pass may take by estimate; larger batches run in equal parts.

    Returns:
        An `Attribution` with contributions (batch, T, M + 1), f_m at m; its residual, f − Σ_{m ≤ M} f_m, is what
        orders beyond M add (and what goes around the layer), rounding if M is the degree.

    Raises:
        NotPolynomialError: an operation is not polynomial; the line names it and its module.

    Example:
        >>> square = lambda x: (x**2).sum(-1, keepdims=True)
        >>> orders(square, jnp.array([[3.0]]), x0=jnp.array([1.0]), max_order=2).contributions.ravel().tolist()
        [1.0, 4.0, 4.0]
    """
    call, x0 = _checked(net, x, x0, max_order, targets, layer, max_bytes)

    def explain(x: Array, x0: Array, rows: Array) -> Attribution:
        return _orders(layer, max_order, call.net.program("logits", x), x, x0, rows)

    with jax.default_matmul_precision("highest"):
        size = (max_order + 2) * call.memory[1] * 2
        return in_batches(explain, (call.x, x0, call.rows), call.batch, size, max_bytes)


@partial(jax.jit, static_argnums=(0, 1))
def _orders(layer: str | None, max_order: int, model: Any, x: Array, x0: Array, rows: Array) -> Attribution:
    function, start, step = expansion_line(model, layer, x, x0)
    terms = jnp.moveaxis(propagate(function, start, step, max_order), 0, 2)
    parts = jnp.take_along_axis(terms, rows[:, :, None], axis=1)
    logits = chosen(model(x), rows)
    return Attribution(
        parts, logits, rows, jnp.zeros_like(logits), logits - parts.sum(-1), method="orders", layer=layer or INPUT
    )


@on_automatic_axes
def contributions(
    net: Any,
    x: Any,
    targets: Targets = None,
    *,
    x0: Float[Array | np.ndarray, "..."],
    max_order: int,
    layer: str | None = None,
    max_bytes: int = MAX_BYTES,
) -> Attribution:
    """Return the contributions of every entry of the input, or of a layer's output, to every order of every logit.

        c_{m,i} = d_i ∂_i f_m / m,      Σ_i c_{m,i} = f_m,      Σ_m c_{m,i} = integrated gradient of entry i from x0

    Takes the arguments of `orders`, M ≥ 1.

    Returns:
        An `Attribution` with contributions (batch, T, M, ...), those to order m at m − 1, and bias f_0; its residual
        is what orders beyond M add (and what goes around the layer), rounding if M is the degree.

    Example:
        >>> product = lambda x: x[:, :1] * x[:, 1:] + x[:, :1]
        >>> parts = contributions(product, jnp.array([[2.0, 3.0]]), x0=jnp.zeros(2), max_order=2)
        >>> parts.contributions[0, 0].tolist()
        [[2.0, 0.0], [3.0, 3.0]]

    Source: Euler's theorem on homogeneous functions; integrated gradients, Sundararajan et al., ICML 2017.
    """
    require_whole("max_order", max_order, 1)
    call, x0 = _checked(net, x, x0, max_order, targets, layer, max_bytes)

    def explain(x: Array, x0: Array, rows: Array) -> Attribution:
        return _contributions(layer, max_order, call.net.program("logits", x), x, x0, rows)

    with jax.default_matmul_precision("highest"):
        size = 3 * (max_order + 2) * (call.memory[0] + call.rows.shape[1] * call.memory[1])
        return in_batches(explain, (call.x, x0, call.rows), call.batch, size, max_bytes)


@partial(jax.jit, static_argnums=(0, 1))
def _contributions(layer: str | None, max_order: int, model: Any, x: Array, x0: Array, rows: Array) -> Attribution:
    function, start, step = expansion_line(model, layer, x, x0)
    values, gradients = propagate(partial(gradients_of, function, rows), start, step, max_order)
    order = jnp.arange(1, max_order + 1, dtype=x.dtype).reshape(-1, *(1,) * (gradients.ndim - 1))
    parts = jnp.moveaxis(step[None, :, None] * gradients[:-1] / order, 0, 2)
    logits = chosen(model(x), rows)
    residual = logits - values[0] - parts.reshape(*rows.shape, -1).sum(-1)
    return Attribution(parts, logits, rows, values[0], residual, method="contributions", layer=layer or INPUT)


def energy(terms: Float[Array | np.ndarray, "n classes orders"]) -> Float[np.ndarray, " orders"]:
    """Return the root mean square of every order of `orders`, less the mean over classes, which decides nothing."""
    values = np.asarray(terms, np.float64)
    return np.sqrt(((values - values.mean(1, keepdims=True)) ** 2).mean((0, 1)))


def truncated_accuracy(
    terms: Float[Array | np.ndarray, "n classes orders"], labels: Int[np.ndarray, " n"]
) -> Float[np.ndarray, " orders"]:
    """Return the accuracy of f_0 + … + f_m for every m.

    Args:
        terms: f_0, …, f_M, contributions of `orders` to all classes, finite.
        labels: classes in [0, classes).

    Example:
        >>> terms = np.array([[[0.0, 3.0], [1.0, 0.0]]])
        >>> truncated_accuracy(terms, np.array([0])).tolist()
        [0.0, 1.0]
    """
    images, classes, _ = terms.shape
    require_labels("labels", labels, images, classes)
    require_finite("terms", terms)
    partial_sums = np.cumsum(np.asarray(terms, np.float64), axis=-1)
    return (partial_sums.argmax(1) == np.asarray(labels)[:, None]).mean(0)


def order_penalty(terms: Float[Array, "orders n classes"], growth: float) -> Float[Array, ""]:
    """Return Σ_m c^m ⟨f_m²⟩ over m ≥ 1, averaged over images and classes: it moves weight to low orders where c > 1.

    Args:
        terms: f_0, …, f_M, from `propagate`.
        growth: c > 0.
    """
    require(growth > 0, "growth", growth, "a positive number")
    weights = growth ** jnp.arange(1, len(terms), dtype=terms.dtype)
    return (weights * (terms[1:] ** 2).mean((1, 2))).sum()
