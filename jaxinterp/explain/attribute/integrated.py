"""Integrated gradients: the gradient averaged along the path from a baseline to the input."""

import math
from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from jaxinterp.checks import require_one_of, require_whole
from jaxinterp.explain.attribute.backward import (
    checked,
    chosen,
    completed,
    fitting_examples,
    logits_at,
    placed,
    repeated,
    slopes_at,
)
from jaxinterp.explain.attribute.coalitions import many_program
from jaxinterp.explain.attribution import Attribution
from jaxinterp.explain.batches import MAX_BYTES, Targets, as_array, in_batches, over_targets
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
    base = placed(call, "baseline", baseline)
    count, size, max_bytes = fitting_examples(call, 2 * call.rows.shape[1], steps, max_bytes)
    passes = math.ceil(steps / count)
    # The last node again, with weight zero, fills up the last pass, so that one compiled program serves all.
    fill = (0, count * passes - steps)
    blocks = np.stack([np.pad(at, fill, mode="edge"), np.pad(weight, fill)], 1).reshape(passes, count, 2)

    def explain(x: Array, base: Array, rows: Array) -> Attribution:
        model, many = call.net.program("logits", x), many_program(call, x, count)
        around = None if layer is None else repeated(x, count)
        ends = value_of(model, layer, base), value_of(model, layer, x)
        bias, logits = (logits_at(model, layer, end, x) for end in ends)

        def run(rows: Array) -> Attribution:
            sums = None
            for block in blocks:
                points, steps, tiled = _path(ends, rows, as_array(block))
                _, slopes = slopes_at(many, layer, points, points if around is None else around, tiled)
                sums = _add(sums, slopes, steps)
            return _finish(layer, logits, bias, rows, sums)

        return over_targets(run, rows)

    with jax.default_matmul_precision("highest"):
        return in_batches(explain, (call.x, base, call.rows), call.batch, size, max_bytes)


@jax.jit
def _path(
    ends: tuple[Array, Array], rows: Int[Array, "batch t"], block: Float[Array, "nodes 2"]
) -> tuple[Float[Array, "n_batch *shape"], Float[Array, "n batch *shape"], Int[Array, "n_batch t"]]:
    """Return the points of a block of nodes α on the straight path, steps with their weights, and targets of each."""
    start, z = ends
    alpha, weight = (column.reshape(-1, *(1,) * z.ndim).astype(z.dtype) for column in block.T)
    step = (z - start)[None]
    points = start[None] + alpha * step
    return points.reshape(-1, *z.shape[1:]), weight * step, jnp.tile(rows, (len(block), 1))


@partial(jax.jit, donate_argnums=0)
def _add(
    sums: Float[Array, "batch t *shape"] | None,
    slopes: Float[Array, "n_batch t *shape"],
    steps: Float[Array, "n batch *shape"],
) -> Float[Array, "batch t *shape"]:
    """Add Σ_s steps_s ⊙ ∂f_k/∂z(points_s)."""
    each = slopes.reshape(*steps.shape[:2], *slopes.shape[1:])
    part: Array = (each * steps[:, :, None]).sum(0)
    return part if sums is None else sums + part


@partial(jax.jit, static_argnums=0)
def _finish(layer: str | None, logits: Array, bias: Array, rows: Array, contributions: Array) -> Attribution:
    found = chosen(logits, rows), chosen(bias, rows)
    return completed("integrated_gradients", layer, *found, rows, contributions)
