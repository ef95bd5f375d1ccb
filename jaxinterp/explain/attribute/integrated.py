"""Integrated gradients: the gradient averaged along the path from a baseline to the input."""

import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from jaxinterp.checks import require, require_at_least, require_one_of
from jaxinterp.explain.attribute.attribution import MAX_BYTES, Attribution, target_gradients
from jaxinterp.explain.decompose import Targets, bind
from jaxinterp.explain.tracing import in_chunks, unjitted

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
    require_at_least("steps", steps, 1)
    require_one_of("nodes", nodes, get_args(Nodes))
    if nodes == "gauss-legendre":
        at, weight = np.polynomial.legendre.leggauss(steps)
        return (at + 1) / 2, weight / 2
    return (np.arange(steps) + (nodes == "riemann")) / steps, np.full(steps, 1 / steps)


def integrated_gradients(
    model: Callable[..., Float[Array, "batch classes"]],
    x: Array,
    targets: Targets = None,
    *,
    steps: int = 20,
    nodes: Nodes = "gauss-legendre",
    baseline: ArrayLike = 0.0,
    variables: Any = None,
    max_bytes: int = MAX_BYTES,
) -> Attribution:
    """Compute integrated gradients of each target's logit, with the gap of the quadrature.

        contributions_k = (x − x') ⊙ ∫₀¹ ∂f_k/∂x (x' + α (x − x')) dα          Σ contributions_k = f_k(x) − f_k(x')

    Exact for polynomials of degree d with ⌈d/2⌉ Gauss–Legendre nodes; on a network with kinks no number of nodes
    makes it exact, and the gap measures the error.

    Args:
        model: x ↦ logits (batch, classes), or (variables, x) ↦ logits where `variables` is given; see `gradient`.
        x: input, (batch, ...), floating.
        targets: None for all classes, an int, (batch,) or (batch, T) classes.
        steps: number of nodes, ≥ 1.
        nodes: quadrature rule, see `quadrature`.
        baseline: x', a number or an array that broadcasts to `x`.
        variables: the model's variables, any pytree.
        max_bytes: bytes that one pass may take by estimate; images, then nodes, run in chunks.

    Returns:
        An `Attribution` on the shape of `x`, with gap f_k(x) − f_k(x') − Σ contributions_k.

    Example:
        >>> cube = integrated_gradients(lambda x: x**3, jnp.array([[2.0, 1.0]]), 0, steps=2)
        >>> cube.contributions.round(4).tolist(), abs(cube.gap.item()) < 1e-5
        ([[[8.0, 0.0]]], True)

    Source: Sundararajan, Taly, Yan, arXiv 1703.01365, Eq. 1 (definition), Proposition 1 (completeness), Eq. 3.
    """
    at, weight = quadrature(nodes, steps)
    base = jnp.asarray(baseline, x.dtype)
    fits = base.ndim <= x.ndim and all(b in (1, n) for b, n in zip(base.shape[::-1], x.shape[::-1], strict=False))
    require(fits, "baseline", f"shape {base.shape}", f"one that broadcasts to {x.shape}")
    base = jnp.broadcast_to(base, x.shape)
    with jax.default_matmul_precision("highest"):
        bound, rows, size = bind(model, x, targets, variables)
        bytes_each = size.bytes_each(rows.shape[1])
        passes = math.ceil(steps / max(1, max_bytes // max(1, bytes_each)))
        count = math.ceil(steps / passes)
        # The last node again, with weight zero, fills up the last pass, so that one compiled program serves all.
        fill = (0, count * passes - steps)
        table = np.stack([np.pad(at, fill, mode="edge"), np.pad(weight, fill)], 1).reshape(passes, count, 2)
        blocks, compiled = tuple(jnp.asarray(table, x.dtype)), variables is not None

        def explain(x: Array, base: Array, rows: Array) -> Attribution:
            mean = jnp.zeros((*rows.shape, *x.shape[1:]), x.dtype)
            for block in blocks:
                slopes = target_gradients(bound, _points(x, base, block), jnp.tile(rows, (count, 1)), compiled)
                mean = _add_weighted(mean, slopes, block)
            return (_finish if compiled else unjitted(_finish))(bound, x, base, rows, mean)

        return in_chunks(explain, (x, base, rows), bytes_each * count, max_bytes)


@jax.jit
def _points(x: Array, base: Array, block: Float[Array, "nodes 2"]) -> Float[Array, "nodes_batch *shape"]:
    """Return the points of the straight path from the baseline to the input at some nodes α, as one batch."""
    alpha = block[:, 0].reshape(-1, *(1,) * x.ndim)
    return (base[None] + alpha * (x - base)[None]).reshape(-1, *x.shape[1:])


@jax.jit
def _add_weighted(mean: Array, slopes: Array, block: Float[Array, "nodes 2"]) -> Array:
    """Add the gradients of a block of nodes, each with its weight."""
    return mean + jnp.tensordot(block[:, 1], slopes.reshape(len(block), *mean.shape), axes=1)


@jax.jit
def _finish(model: Callable[[Array], Array], x: Array, base: Array, rows: Array, mean: Array) -> Attribution:
    """Multiply the mean gradient by x − x', and compare the sum with the change of the logit."""
    contributions = mean * (x - base)[:, None]
    change = jnp.take_along_axis(model(x) - model(base), rows, axis=1)
    return Attribution(contributions, change - contributions.reshape(*rows.shape, -1).sum(-1))
