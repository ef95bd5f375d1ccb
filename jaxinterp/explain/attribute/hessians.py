"""Contributions of pairs of inputs: the second derivatives that a logit consists of.

With d = x − x0, H the Hessian of a logit f, and f_m its part of order m along d (`series`):

    a polynomial's order m       P_ij = d_i d_j H_ij^(m−2) / (m (m − 1))        Σ_ij P_ij = f_m
    integrated Hessians, i ≠ j   P_ij = d_i d_j ∫ −t ln t H_ij(x0 + t d) dt     Σ_ij P_ij = f(x) − f(x0)
                         i = j   the same + d_i ∫ −ln t ∂_i f(x0 + t d) dt

where H^(k) is the coefficient of order k of H along d, H(x0) for k = 0. The double integral of the paper over α and β
is one over t = αβ, whose density is −ln t. A sum over j is the share of input i: d_i ∂_i f_m / m, or its integrated
gradient. A row of H d ⊙ is one Hessian-vector product, so that chosen rows need no Hessian.

Source: Janizek, Sturmfels, Lee, Explaining Explanations, JMLR 2021 (arXiv 2002.04138), Eqs. 4–7.
"""

import math
import weakref
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from jaxinterp.checks import require, require_whole
from jaxinterp.explain.attribute.backward import Call, checked, chosen, gradients_of, head, placed, shape_at
from jaxinterp.explain.attribute.integrated import quadrature
from jaxinterp.explain.attribution import Attribution
from jaxinterp.explain.batches import MAX_BYTES, Targets, in_batches
from jaxinterp.explain.meshes import on_automatic_axes
from jaxinterp.explain.program import INPUT, Model, Program, value_at
from jaxinterp.explain.propagation import NotPolynomialError, propagate

Line = tuple[Callable[[Array], Array], Array, Array]
"""A function of x, or of a layer's output, a point, and the step from there."""
Row = Callable[[Array], Array]
"""(batch, *shape) tangent v ↦ (batch, t, *shape), the mean of H v that the pairs consist of."""


@on_automatic_axes
def pairs(
    net: Any,
    x: Any,
    targets: Targets = None,
    *,
    order: int | None = 2,
    x0: ArrayLike = 0.0,
    pixels: Int[np.ndarray, "..."] | Sequence[tuple[int, ...]] | Sequence[int] | None = None,
    layer: str | None = None,
    steps: int = 20,
    max_bytes: int = MAX_BYTES,
) -> Attribution:
    """Return the contributions of pairs of positions to each target's logit.

    On a polynomial network, such as a TaylorNet, these are the pairs of one order, exact; on any other network, and
    where `order` is None, integrated Hessians, with the residual of the quadrature. Where second derivatives vanish
    almost everywhere, as of ReLU networks, they see no pairs, and the residual tells.

    Args:
        net: a network, see `explainable`.
        x: a batch, (batch, ..., channels) or (batch, n), floating.
        targets: None for all classes, an int, (batch,) or (batch, T) classes.
        order: m ≥ 2, the order of a polynomial; other networks take 2. None for integrated Hessians.
        x0: expansion point or baseline, a number or an array that broadcasts to `x`.
        pixels: positions whose pairs with all positions are returned, (P, axes) such as (y, x), or (P,) of vectors;
            None for all: the full matrix, if that of one example keeps within `max_bytes`.
        layer: name of a layer: then pairs of positions of its output; what goes around it is held at x0.
        steps: nodes of the quadrature of integrated Hessians, ≥ 1; exact on polynomials up to degree 2·steps.
        max_bytes: bytes that one pass may take by estimate; examples run in parts.

    Returns:
        An `Attribution`, method "pairs" or "integrated_hessians", with contributions (batch, T, P, *positions), summed
        over channels; a position's pair with itself is at its own place. The residual is what they miss of the part
        that they consist of, found without second derivatives: of f_m, or f(x) − f(x0), or the chosen positions' share
        of it. All else of the logit is the bias.

    Raises:
        NotPolynomialError: an order above 2 of a network that is no polynomial.

    Example:
        >>> product = lambda x: x[:, :1] * x[:, 1:] + x[:, :1]
        >>> found = pairs(product, jnp.array([[2.0, 3.0]]))
        >>> found.contributions[0, 0].tolist(), found.bias.tolist(), found.residual.tolist()
        ([[0.0, 3.0], [3.0, 0.0]], [[2.0]], [[0.0]])
        >>> pairs(product, jnp.array([[2.0, 3.0]]), order=None).contributions[0, 0, 1].round(1).tolist()
        [1.5, 1.5]
    """
    if order is not None:
        require_whole("order", order, 2)
    nodes = log_quadrature(steps)
    call = checked(net, x, targets, layer, max_bytes)
    base, places = placed(call, "x0", x0), _places(shape_at(call, layer))
    taken = _taken(pixels, places)
    each = call.rows.shape[1] * len(taken) * math.prod(places) * call.x.dtype.itemsize
    require(each <= max_bytes, "pixels", f"{len(taken)} of {places}, {each} bytes an example", "fewer, or max_bytes")
    if call.net.notice is not None:
        call.net.notice(call.x)
    if order is not None and not _is_polynomial(call, layer, base):
        if order > 2:
            raise NotPolynomialError(f"order: got {order}, expected 2: the network is no polynomial")
        order = None
    flat, whole = jnp.asarray(np.ravel_multi_index(tuple(taken.T), places), jnp.int32), pixels is None

    def explain(x: Array, x0: Array, rows: Array) -> Attribution:
        model = call.net.program("logits", x)
        if order is None:
            return _integrated(layer, whole, steps, model, flat, jnp.asarray(nodes, float), x, x0, rows)
        return _of_order(layer, whole, order, model, flat, x, x0, rows)

    with jax.default_matmul_precision("highest"):
        size = 4 * (order or 2) * (call.memory[0] + call.rows.shape[1] * call.memory[1]) + len(call.x) * each
        return in_batches(explain, (call.x, base, call.rows), call.batch, size, max_bytes)


@cache
def log_quadrature(steps: int) -> Float[np.ndarray, "steps 2"]:
    """Return nodes and weights of the Gauss rule ∫₀¹ −ln t g(t) dt, exact on polynomials up to degree 2·steps − 1.

    By the recurrence of the polynomials that are orthogonal in a fine rule, on which the logarithm is smooth, and the
    eigenvalues of its matrix (Golub and Welsch, Math. Comp. 23, 1969).

    Args:
        steps: number of nodes, ≥ 1.

    Example:
        >>> at, weight = log_quadrature(2).T
        >>> round(float(weight @ at**3), 12)
        0.0625
    """
    require_whole("steps", steps, 1)
    root, weight = quadrature("gauss-legendre", max(400, 8 * steps))
    at, mass = root**4, -16 * np.log(root) * root**3 * weight  # t = u⁴
    diagonal, beside = np.zeros(steps), np.zeros(steps)
    before, now = np.zeros_like(at), np.ones_like(at) / math.sqrt(mass.sum())
    for k in range(steps):
        diagonal[k] = mass @ (at * now**2)
        after = (at - diagonal[k]) * now - (beside[k - 1] * before if k else 0)
        beside[k] = math.sqrt(mass @ after**2)
        before, now = now, after / beside[k]
    values, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(beside[:-1], 1) + np.diag(beside[:-1], -1))
    return np.stack([values, vectors[0] ** 2 * mass.sum()], 1)


def _places(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the axes of positions: all but the batch and the channels, which vectors have not."""
    return shape[1:2] if len(shape) == 2 else shape[1:-1]


def _taken(pixels: Any, places: tuple[int, ...]) -> Int[np.ndarray, "p axes"]:
    """Return positions, (P, axes)."""
    if pixels is None:
        return np.indices(places).reshape(len(places), -1).T
    taken = np.asarray(pixels)
    taken = taken[:, None] if taken.ndim == 1 == len(places) else taken
    fits = len(taken) > 0 and taken.shape[1:] == (len(places),) and np.issubdtype(taken.dtype, np.integer)
    inside = fits and taken.min() >= 0 and (taken < places).all()
    wanted = f"({', '.join('yx' if len(places) == 2 else 'i' * len(places))}) within {'x'.join(map(str, places))}"
    require(inside, "pixels", f"{taken.tolist()[:3]} of shape {taken.shape}", wanted)
    return taken


_known: weakref.WeakKeyDictionary[Program, dict[str | None, bool]] = weakref.WeakKeyDictionary()


def _is_polynomial(call: Call, layer: str | None, x0: Array) -> bool:
    """Tell whether every operation, from a layer on, is polynomial; found once for a program."""
    model = call.net.program("logits", call.x)
    found = _known.setdefault(model.program, {})
    if layer not in found:

        def try_it(model: Model, x: Array, x0: Array) -> Array:
            return propagate(*expansion_line(model, layer, x, x0), 1)  # type: ignore[no-any-return]

        try:
            jax.eval_shape(try_it, model, call.x, x0)
            found[layer] = True
        except NotPolynomialError:
            found[layer] = False
    return found[layer]


def expansion_line(model: Model, layer: str | None, x: Array, x0: Array) -> Line:
    """Return function, point and step of an expansion in x, or in a layer's output, about its value at x0."""
    start = value_at(model, layer, x0)
    return lambda z: head(model, layer, z, x0), start, value_at(model, layer, x) - start


@partial(jax.jit, static_argnums=(0, 1, 2))
def _of_order(
    layer: str | None, whole: bool, order: int, model: Any, flat: Array, x: Array, x0: Array, rows: Array
) -> Attribution:
    function, start, step = line = expansion_line(model, layer, x, x0)
    slopes = partial(gradients_of, function, rows)
    values, gradients = propagate(slopes, start, step, order if whole else order - 1)
    total = values[-1] if whole else _sums(step, gradients[-1], flat) / order

    def row(tangent: Array) -> Array:
        def product(z: Array) -> Array:
            return jax.jvp(lambda z: slopes(z)[1], (z,), (tangent,))[1]

        return propagate(product, start, step, order - 2)[-1] / (order * (order - 1))  # type: ignore[no-any-return]

    return _told("pairs", layer, line, row, None, total, flat, chosen(model(x), rows), rows)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _integrated(
    layer: str | None, whole: bool, steps: int, model: Any, flat: Array, nodes: Array, x: Array, x0: Array, rows: Array
) -> Attribution:
    function, start, step = line = expansion_line(model, layer, x, x0)
    slopes = partial(gradients_of, function, rows)

    def mean(at: Callable[[Array], Array], nodes: Array) -> Array:
        """Sum a function of t over nodes and their weights, one node after the other."""

        def add(total: Array, node: Array) -> tuple[Array, None]:
            return total + node[1] * at(node[0]), None

        zero = jnp.zeros((*rows.shape, *step.shape[1:]), step.dtype)
        return jax.lax.scan(add, zero, nodes.astype(step.dtype))[0]

    def row(tangent: Array) -> Array:
        def product(t: Array) -> Array:
            return t * jax.jvp(lambda z: slopes(z)[1], (start + t * step,), (tangent,))[1]

        return mean(product, nodes)

    def gradient(t: Array) -> Array:
        return slopes(start + t * step)[1]

    if whole:
        total = chosen(function(start + step), rows) - chosen(function(start), rows)
    else:
        uniform = jnp.stack([jnp.asarray(part, step.dtype) for part in quadrature("gauss-legendre", steps)], 1)
        total = _sums(step, mean(gradient, uniform), flat)
    own = mean(gradient, nodes)
    return _told("integrated_hessians", layer, line, row, own, total, flat, chosen(model(x), rows), rows)


def _told(
    method: str,
    layer: str | None,
    line: Line,
    row: Row,
    own: Array | None,
    total: Array,
    flat: Int[Array, " p"],
    logits: Array,
    rows: Array,
) -> Attribution:
    """Return the pairs of positions, row by row, with what they miss of the part that they consist of."""
    step = line[2]
    places = _places(step.shape)
    channels = (-1,) if step.ndim > 2 else ()
    diagonal = None if own is None else (own * step[:, None]).sum(channels)

    def one(place: Array) -> Array:
        mask = jnp.zeros(math.prod(places), step.dtype).at[place].set(1).reshape(places)
        tangent = step * (mask[..., None] if channels else mask)[None]
        found = (row(tangent) * step[:, None]).sum(channels)
        return found if diagonal is None else found + diagonal * mask[None, None]

    parts = jnp.moveaxis(jax.lax.map(one, flat), 0, 2)
    residual = total - parts.reshape(*rows.shape, -1).sum(-1)
    return Attribution(parts, logits, rows, logits - total, residual, method=method, layer=layer or INPUT)


def _sums(step: Array, gradients: Array, flat: Array) -> Array:
    """Return the sum of step ⊙ gradient over the chosen positions, and their channels."""
    products = (gradients * step[:, None]).sum((-1,) if step.ndim > 2 else ())
    return products.reshape(*products.shape[:2], -1)[..., flat].sum(-1)
