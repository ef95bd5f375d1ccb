"""The result of every post-hoc method, and the gradients of many logits in one pass."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxinterp.explain.tracing import unjitted

MAX_BYTES = 2 << 30  # default budget of one pass


class Attribution(NamedTuple):
    """Result of a post-hoc method; T is the number of targets.

    Attributes:
        contributions: signed, (batch, T, ...) on the shape of one input; (batch, T, H, W, 1) of methods that score
            pixels. The sum over the last axis is the map of figures and metrics.
        gap: f_k(x) − f_k(baseline) − Σ contributions, signed, (batch, T), of methods that claim completeness; None
            for the others.
    """

    contributions: Float[Array, "batch t *shape"]
    gap: Float[Array, "batch t"] | None = None


def target_gradients(
    model: Callable[[Array], Array], x: Float[Array, "batch *shape"], rows: Int[Array, "batch t"], compiled: bool
) -> Float[Array, "batch t *shape"]:
    """Compute the gradients of the targets' logits: one forward pass, then one backward pass per target.

    The backward passes are one compiled program in a Python loop. Under `vmap` the intermediate values of all targets
    are alive at once, which took twice as long on a ResNet and eight times on a CoDA Net (2 CPU cores, 9 targets).
    Where not `compiled` they run operation by operation, or inside the caller's jit.
    """
    logits, pullback = (_forward if compiled else jax.vjp)(model, x)
    return pull_targets(logits, pullback, rows, compiled)


def pull_targets(
    logits: Float[Array, "batch classes"], pullback: Callable[[Array], tuple[Array]], rows: Array, compiled: bool
) -> Float[Array, "batch t *shape"]:
    """Run the second half of `target_gradients`, from the results of `jax.vjp`."""
    cotangents = jax.nn.one_hot(rows.T, logits.shape[1], dtype=logits.dtype)
    pull = _pull if compiled else unjitted(_pull)
    return jnp.stack([pull(pullback, cotangent) for cotangent in cotangents], axis=1)


_forward = jax.jit(jax.vjp)


@jax.jit
def _pull(pullback: Callable[[Array], tuple[Array]], cotangent: Array) -> Array:
    return pullback(cotangent)[0]
