"""Integrated gradients: the gradient averaged along the path from a baseline to the input."""

import math
from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from jaxinterp.checks import require, require_one_of, require_whole
from jaxinterp.explain.attribute.backward import X, checked, chosen, head, target_gradients
from jaxinterp.explain.attribution import Attribution
from jaxinterp.explain.batches import MAX_BYTES, Targets, in_batches, padded
from jaxinterp.explain.meshes import on_automatic_axes
from jaxinterp.explain.program import value_of

Nodes = Literal["gauss-legendre", "riemann", "riemann-left"]


def quadrature(nodes: Nodes, steps: int) -> tuple[Float[np.ndarray, " steps"], Float[np.ndarray, " steps"]]:
    """Return nodes in [0, 1] and weights, which sum to 1, of a quadrature rule, in float64.

    Args:
        nodes: "gauss-legendre", exact on polynomials up to degree 2·steps − 1; "riemann", the right sum k/steps for
            k = 1..steps of the paper's Eq. 3; or "riemann-left", k = 0..steps − 1.
        steps: number of nodes, ≥ 1.

    Example:
        >>> at, weight = quadrature("gauss-legendre", 2)
        >>> round(float((weight * at**3).sum()), 12)
        0.25
    """
    require_whole("steps", steps, 1)
    require_one_of("nodes", nodes, get_args(Nodes))
    if nodes == "gauss-legendre":
        at, weight = np.polynomial.legendre.leggauss(steps)
        return (at + 1) / 2, weight / 2
    return (np.arange(steps) + (nodes == "riemann")) / steps, np.full(steps, 1 / steps)


@on_automatic_axes
def integrated_gradients(
    net: Any,
    x: Any,
    targets: Targets = None,
    *,
    layer: str | None = None,
    steps: int = 20,
    nodes: Nodes = "gauss-legendre",
    baseline: ArrayLike = 0.0,
    max_bytes: int = MAX_BYTES,
) -> Attribution:
    """Compute integrated gradients of each target's logit, with the residual of the quadrature.

        contributions_k = (x − x') ⊙ ∫₀¹ ∂f_k/∂x (x' + α (x − x')) dα          Σ contributions_k = f_k(x) − f_k(x')

    Exact for polynomials of degree d with ⌈d/2⌉ Gauss–Legendre nodes; on a network with kinks no number of nodes
    makes it exact, and the residual measures the error.

    Args:
        net: a network, see `explainable`.
        x: a batch, (batch, ...), floating.
        targets: None for all classes, an int, (batch,) or (batch, T) classes.
        layer: name of a layer: the path then runs straight between its outputs for x' and for x, and what goes around
            the layer is that of x.
        steps: number of nodes, ≥ 1.
        nodes: quadrature rule, see `quadrature`.
        baseline: x', a number or an array that broadcasts to `x`.
        max_bytes: bytes that one pass may take by estimate; examples, then nodes, run in parts.

    Returns:
        An `Attribution` on the shape of `x` or of the layer's output, with bias f_k(x') and residual
        f_k(x) − f_k(x') − Σ contributions_k.

    Example:
        >>> cube = integrated_gradients(lambda x: x**3, jnp.array([[2.0, 1.0]]), 0, steps=2)
        >>> cube.contributions.round(4).tolist(), abs(cube.residual.item()) < 1e-5
        ([[[8.0, 0.0]]], True)

    Source: Sundararajan, Taly, Yan, arXiv 1703.01365, Eq. 1 (definition), Proposition 1 (completeness), Eq. 3.
    """
    at, weight = quadrature(nodes, steps)
    call = checked(net, x, targets, layer, max_bytes)
    shape = (call.batch, *call.x.shape[1:])
    base = jnp.asarray(baseline, call.x.dtype)
    fits = base.ndim <= len(shape) and all(b in (1, n) for b, n in zip(base.shape[::-1], shape[::-1], strict=False))
    require(fits, "baseline", f"shape {base.shape}", f"one that broadcasts to {shape}")
    base = padded(jnp.broadcast_to(base, shape))
    total, most = (size / len(call.x) for size in call.memory)
    each = total + 2 * most + 2 * call.rows.shape[1] * call.x[:1].size * call.x.dtype.itemsize
    passes = math.ceil(steps / max(1, int(max_bytes // max(1, each))))
    count = math.ceil(steps / passes)
    # The last node again, with weight zero, fills up the last pass, so that one compiled program serves all.
    fill = (0, count * passes - steps)
    table = np.stack([np.pad(at, fill, mode="edge"), np.pad(weight, fill)], 1).reshape(passes, count, 2)
    blocks = tuple(jnp.asarray(table, float))

    def explain(x: Array, base: Array, rows: Array) -> Attribution:
        model = call.net.program("logits", x)
        z, start = value_of(model, layer, x), value_of(model, layer, base)
        mean = jnp.zeros((*rows.shape, *z.shape[1:]), z.dtype)
        for block in blocks:
            points, around = _points(z, start, block), jnp.tile(x, (count, *(1,) * (x.ndim - 1)))
            many = call.net.program("logits", around)
            _, slopes = target_gradients(many, layer, points, around, jnp.tile(rows, (count, 1)))
            mean = _add_weighted(mean, slopes, block)
        return _finish(layer, model, z, start, x, rows, mean)

    with jax.default_matmul_precision("highest"):
        return in_batches(explain, (call.x, base, call.rows), call.batch, each * len(call.x) * count, max_bytes)


@jax.jit
def _points(z: Array, start: Array, block: Float[Array, "nodes 2"]) -> Float[Array, "nodes_batch *shape"]:
    """Return the points of the straight path from the start to z at some nodes α, as one batch."""
    alpha = block[:, 0].reshape(-1, *(1,) * z.ndim).astype(z.dtype)
    return (start[None] + alpha * (z - start)[None]).reshape(-1, *z.shape[1:])


@jax.jit
def _add_weighted(mean: Array, slopes: Array, block: Float[Array, "nodes 2"]) -> Array:
    """Add the gradients of a block of nodes, each with its weight."""
    return mean + jnp.tensordot(block[:, 1].astype(mean.dtype), slopes.reshape(len(block), *mean.shape), axes=1)


@partial(jax.jit, static_argnums=0)
def _finish(layer: str | None, model: Any, z: Array, start: Array, x: Array, rows: Array, mean: Array) -> Attribution:
    """Multiply the mean gradient by the step, and compare the sum with the change of the logit."""
    contributions = mean * (z - start)[:, None]
    logits, bias = (chosen(head(model, layer, value, x), rows) for value in (z, start))
    residual = logits - bias - contributions.reshape(*rows.shape, -1).sum(-1).astype(logits.dtype)
    return Attribution(contributions, logits, rows, bias, residual, method="integrated_gradients", layer=layer or X)
