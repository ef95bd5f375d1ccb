"""Whether the logits of an example depend on the other examples of its batch, as they must not."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxinterp.checks import require
from jaxinterp.errors import ConfigError
from jaxinterp.explain.batches import affordable
from jaxinterp.explain.explainable import Explainable
from jaxinterp.explain.program import Model

MOVED = 1e-4
"""Largest change of logits, relative to them, that is taken for rounding."""


def require_independent(net: Explainable, x: Array, *given: Array, max_bytes: int) -> None:
    """Raise where logits change with other examples of the batch: BatchNorm left in training, a mean over the batch.

    All examples but one are exchanged for others, and the logits of that one compared, of the first and of the last:
    three forward passes, once for a program with its variables. Of a batch that is too large for the budget fewer are
    tried, two at least; a single example beside itself, where the network takes two. Traced values are not known, and
    pass.

    Raises:
        ConfigError: logits change.
    """
    arrays = (x, *given)
    model = net.program("logits", *arrays)
    if model.program.is_independent((model.constants, net.variables)):
        return
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((model, arrays))):
        return
    tried = model
    count = max(2, affordable(len(x), model.program.memory[1], max_bytes))
    if count != len(x):
        arrays = tuple(array[np.arange(count) % len(x)] for array in arrays)
        try:
            tried = net.program("logits", *arrays)
        except ConfigError:  # of one size only
            return
    with jax.default_matmul_precision("highest"):
        moved = float(_moved(tried, *arrays))
    independent = "examples independent of one another: BatchNorm as after training"
    require(not moved > MOVED, "network", f"logits that change by {moved:.1e} with other examples", independent)
    model.program.note_independent((model.constants, net.variables))


@jax.jit
def _moved(model: Model, x: Array, *given: Array) -> Float[Array, ""]:
    """Return the largest change of an example's logits with other examples beside it, over the largest logit."""
    turned = jnp.roll(x, 1, axis=0)
    others = (turned / 2 if jnp.issubdtype(x.dtype, jnp.floating) else turned).astype(x.dtype)
    logits = model(x, *given)
    changes = [jnp.abs(model(others.at[i].set(x[i]), *given)[i] - logits[i]).max() for i in (0, -1)]
    size = jnp.abs(logits).max()
    return jnp.stack(changes).max() / jnp.where(size > 0, size, 1)
