"""Whether the logits of an example depend on the other examples of its batch, as they must not."""

from contextlib import suppress

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxinterp.checks import require
from jaxinterp.errors import ConfigError
from jaxinterp.explain.batches import affordable, empty, repeated
from jaxinterp.explain.explainable import Explainable
from jaxinterp.explain.program import Model
from jaxinterp.nn.platform import jit_once

MOVED = 1e-4
"""Largest change of logits, relative to them, that is taken for rounding."""
RESIZED = 3e-2
"""The same in a batch of another size, which is another program with other rounding, in half precision too."""


def require_independent(net: Explainable, x: Array, *given: Array, max_bytes: int) -> None:
    """Raise where logits change with other examples of the batch: BatchNorm left in training, a mean over the batch.

    One example, drawn at random, has to keep its logits where all others are exchanged, and a half of them where they
    are a batch of their own: logits that depend on the batch's size, as padding would change them, are noticed too.
    That is less than three forward passes, once for a program with its variables. A network with an own `frozen`
    function is not traced a third time for it, nor one that reads one size only: another example is tried as the first.
    Of a batch that is too large for the budget fewer are tried, two at least; a single example beside itself, where the
    network takes two. Traced values are not known, and pass.

    Raises:
        ConfigError: logits change.
    """
    arrays = (x, *given)
    model = net.program("logits", *arrays)
    if model.program.is_independent((model.constants, net.variables)):
        return
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((model, arrays))):
        return
    tried, part = model, None
    count = max(2, affordable(len(x), model.program.memory[1], max_bytes))
    if count != len(x):
        arrays = tuple(repeated(array, count) for array in arrays)
        try:
            tried = net.program("logits", *arrays)
        except ConfigError:  # of one size only
            return
    order = np.random.default_rng(0).permutation(count)
    one, rest = order[:1], order[count - count // 2 :]
    if len(x) == 1 or net.held == net.network:
        with suppress(ConfigError):
            part = model if len(x) == 1 else net.program("logits", *(empty(len(rest), array) for array in arrays))
    with jax.default_matmul_precision("highest"):
        looked = jit_once(_moved, arrays, level=0)(tried, part, one, rest, *arrays)
        moved, resized = map(float, looked)
    independent = "examples independent of one another: BatchNorm as after training"
    require(not moved > MOVED, "network", f"logits that change by {moved:.1e} with other examples", independent)
    got = f"logits that change by {resized:.1e} in a batch of another size"
    require(not resized > RESIZED, "network", got, "the same logits of an example in every batch")
    for shown in (model, *filter(None, [part])):
        shown.program.note_independent((shown.constants, net.variables))


def _moved(
    model: Model, part: Model | None, one: Array, rest: Array, x: Array, *given: Array
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return the largest change of an example's logits, over the largest logit, with others beside it, and by size."""
    turned = jnp.roll(x, 1, axis=0)
    others = turned / 2  # of equal examples too another one
    if not jnp.issubdtype(x.dtype, jnp.floating):
        others = jax.random.randint(jax.random.key(0), x.shape, 0, jnp.maximum(x.max().astype(int) + 1, 2))
    others, logits = others.astype(x.dtype), model(x, *given)
    size = jnp.abs(logits).max()

    def change(found: Array, places: Array) -> Array:
        return jnp.abs(found - logits[places]).max() / jnp.where(size > 0, size, 1)

    def beside(places: Array) -> Array:
        return change(model(others.at[places].set(x[places]), *given)[places], places)

    if part is None:
        return jnp.maximum(beside(one), beside(rest[-1:])), jnp.zeros_like(size)
    return beside(one), change(part(x[rest], *(array[rest] for array in given)), rest)
