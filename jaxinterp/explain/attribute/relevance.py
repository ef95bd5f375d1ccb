"""What the methods of local rules share: one forward pass, and a pass back for each target."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxinterp.explain.attribute.backward import Call, chosen, head
from jaxinterp.explain.attribution import Attribution
from jaxinterp.explain.batches import affordable, in_batches
from jaxinterp.explain.program import Model
from jaxinterp.explain.rules import Rules, with_references

UNROLLED = 16
"""Targets whose passes back are written out one by one, which is faster than `vmap` and slower to compile."""


def passed_back(
    layer: str | None,
    composite: Rules,
    model: Model,
    z: Array,
    x: Array,
    rows: Array,
    references: Sequence[Array] = (),
    from_logits: bool = False,
) -> tuple[Array, Array, list[Array]]:
    """Return what comes back to z from each target, the targets' logits, and the logits at the references.

    Args:
        layer: name of the layer whose output is z; None where z is x.
        composite: the rules.
        model: the network.
        z: (batch, ...).
        x: (batch, ...).
        rows: targets, (batch, t).
        references: of the shape of z.
        from_logits: whether a target's logit goes back, else one.

    Returns:
        (batch, t, ...), (batch, t), and (batch, classes) each.
    """

    def run(z: Array) -> tuple[Array, list[Array]]:
        given = [(ref,) for ref in references]
        return with_references(lambda z: head(model, layer, z, x), composite, (z,), given)

    logits, back, others = jax.vjp(run, z, has_aux=True)
    own = chosen(logits, rows)
    start = jax.nn.one_hot(rows.T, logits.shape[1], dtype=logits.dtype)
    start = start * own.T[:, :, None] if from_logits else start
    if len(start) > UNROLLED:
        return jax.vmap(lambda one: back(one)[0], out_axes=1)(start), own, others
    return jnp.stack([back(one)[0] for one in start], axis=1), own, others


def in_parts(call: Call, run: Callable[..., Attribution], arrays: Sequence[Array], max_bytes: int) -> Attribution:
    """Explain some examples at a time and, of one that does not fit, some targets, each part within the budget.

    Args:
        call: the checked arguments.
        run: (model, x, rows, *part of each array) ↦ the attribution; compiled.
        arrays: further arrays of the examples.
        max_bytes: the budget.
    """
    total, most = call.memory
    count, fixed, each = call.rows.shape[1], 3 * total + most, 2 * most + 2 * call.x.nbytes
    share = affordable(len(call.x), fixed + count * each, max_bytes) / len(call.x)  # each part of targets runs forward
    targets = max(1, min(count, int((max_bytes - share * fixed) // (share * each))))

    def explain(x: Array, rows: Array, *arrays: Array) -> Attribution:
        model, parts = call.net.program("logits", x), []
        for k in range(0, count, targets):
            start = min(k, count - targets)  # the last part reaches back
            part = run(model, x, rows[:, start : start + targets], *arrays)
            parts.append(part if start == k else jax.tree.map(lambda leaf, k=k, s=start: leaf[:, k - s :], part))
        return parts[0] if len(parts) == 1 else jax.tree.map(lambda *leaves: jnp.concatenate(leaves, 1), *parts)

    with jax.default_matmul_precision("highest"):
        size = fixed + targets * each
        return in_batches(explain, (call.x, call.rows, *arrays), call.batch, size, max_bytes)
