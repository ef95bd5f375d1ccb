"""What every post-hoc method takes and returns, and the gradients of many logits in one pass."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxinterp.checks import require_batch
from jaxinterp.explain.decompose import Targets, select_targets

MEMORY = 2 << 30  # bytes that one pass may take by estimate, unless told otherwise


class Attribution(NamedTuple):
    """What a post-hoc method answers; T is the number of targets.

    Attributes:
        contributions: signed, (batch, T, ...) on the shape of one input; (batch, T, H, W, 1) where a method speaks
            of whole pixels. The sum over the last axis is the map of the field's figures and metrics.
        gap: f_k(x) − f_k(baseline) − Σ contributions, signed, (batch, T), of methods that claim it to be zero;
            None for the others.
    """

    contributions: Float[Array, "batch t *shape"]
    gap: Float[Array, "batch t"] | None = None


def bind(
    apply: Callable[..., Array], x: Array, targets: Targets, variables: Any
) -> tuple[jax.tree_util.Partial, Int[Array, "batch t"]]:
    """Check the arguments that all methods share, and tie the variables to the function.

    Args:
        apply: x ↦ logits, or (variables, x) ↦ logits where `variables` is given.
        x: input, (batch, ...), floating.
        targets: see `select_targets`.
        variables: any pytree, or None.

    Returns:
        x ↦ logits as a pytree whose leaves are the variables, and the classes to explain, (batch, T).

    Raises:
        ValueError: `x` is not a floating batch, `apply` does not answer (batch, classes), or `targets` do not fit.
    """
    require_batch(x)
    bound = jax.tree_util.Partial(apply) if variables is None else jax.tree_util.Partial(apply, variables)
    logits = jax.eval_shape(bound, x)
    if len(logits.shape) != 2 or logits.shape[0] != x.shape[0]:
        raise ValueError(f"apply: got output {logits.shape}, expected ({x.shape[0]}, classes)")
    return bound, select_targets(targets, *logits.shape)


def target_gradients(
    apply: Callable[[Array], Array], x: Float[Array, "batch *shape"], rows: Int[Array, "batch t"], compiled: bool
) -> Float[Array, "batch t *shape"]:
    """Gradients of the targets' logits: one forward pass, then one backward pass per target.

    The backward passes are one compiled program in a Python loop. Mapped by `vmap` instead, the network's
    intermediate values are needed once per target at the same time, which took twice as long on a ResNet and eight
    times on a CoDA Net (2 CPU cores, 9 targets).

    Args:
        apply: x ↦ logits (batch, classes), examples independent of one another, a pytree where `compiled`.
        x: input, (batch, ...).
        rows: classes, (batch, T).
        compiled: compile the passes, or run them operation by operation (or inside the caller's jit).

    Returns:
        ∂f_k/∂x, (batch, T, ...).
    """
    logits, pullback = (_forward_compiled if compiled else jax.vjp)(apply, x)
    return pull_targets(logits, pullback, rows, compiled)


def pull_targets(
    logits: Float[Array, "batch classes"],
    pullback: Callable[[Array], tuple[Array]],
    rows: Int[Array, "batch t"],
    compiled: bool,
) -> Float[Array, "batch t *shape"]:
    """The second half of `target_gradients`, from what `jax.vjp` answers."""
    cotangents = jax.nn.one_hot(rows.T, logits.shape[1], dtype=logits.dtype)
    pull = _pull_compiled if compiled else _pull
    return jnp.stack([pull(pullback, cotangent) for cotangent in cotangents], axis=1)


def _pull(pullback: Callable[[Array], tuple[Array]], cotangent: Array) -> Array:
    return pullback(cotangent)[0]


_forward_compiled = jax.jit(jax.vjp)
_pull_compiled = jax.jit(_pull)
