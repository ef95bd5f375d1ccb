"""Batches of a few sizes, and tiles of examples and targets that keep within a budget of memory."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jaxinterp.checks import require, require_at_least
from jaxinterp.explain.attribution import Attribution

Targets = None | int | Sequence[int] | Int[Array, "..."] | np.ndarray
MAX_BYTES = 2 << 30
"""Default budget of one pass."""
Result = TypeVar("Result")


def select_targets(targets: Targets, batch: int, classes: int) -> Int[Array, "batch t"]:
    """Return the classes to explain, one row per example.

    Args:
        targets: None (all classes), one int (for every example), (batch,) ints (one each) or (batch, T) ints.
        batch: number of examples.
        classes: number of classes; targets lie in [0, classes).

    Returns:
        (batch, T) int32.

    Example:
        >>> select_targets(None, 2, 3).tolist(), select_targets([2, 0], 2, 3).tolist()
        ([[0, 1, 2], [0, 1, 2]], [[2], [0]])
    """
    if targets is None:
        return jnp.broadcast_to(jnp.arange(classes, dtype=jnp.int32), (batch, classes))
    if not isinstance(targets, jax.core.Tracer):
        values = np.asarray(targets)
        require(np.issubdtype(values.dtype, np.integer), "targets", values.dtype, f"integers in [0, {classes})")
        if values.size:
            low, high = values.min(), values.max()
            require(low >= 0 and high < classes, "targets", f"{low}..{high}", f"classes in [0, {classes})")
    rows = jnp.asarray(targets, dtype=jnp.int32)
    fits = rows.ndim == 0 or (rows.ndim <= 2 and rows.shape[0] == batch and 0 not in rows.shape[1:])
    require(fits, "targets", f"shape {rows.shape}", f"(), ({batch},) or ({batch}, T), T at least 1")
    return rows if rows.ndim == 2 else jnp.broadcast_to(rows[..., None], (batch, 1))


def padded_size(count: int) -> int:
    """Return the size, a power of two, to which a batch is padded, so that few sizes are compiled."""
    return 1 << max(0, count - 1).bit_length()


def padded(x: Array, size: int | None = None) -> Array:
    """Repeat the last example until the batch has the padded size, or the one given."""
    missing = (padded_size(len(x)) if size is None else size) - len(x)
    return x if not missing else x[np.minimum(np.arange(len(x) + missing), len(x) - 1)]


def affordable(count: int, bytes_all: int | float, max_bytes: int) -> int:
    """Return the largest power of two, at most `count` (one itself), whose share of `bytes_all` is affordable."""
    require_at_least("max_bytes", max_bytes, 1)
    while count > 1 and bytes_all > max_bytes:
        count, bytes_all = count // 2, bytes_all / 2
    return count


def in_batches(
    run: Callable[..., Result], arrays: Sequence[Array], batch: int, bytes_all: int | float, max_bytes: int
) -> Result:
    """Apply a function of padded arrays to equal parts of them, each within the budget, and join the examples.

    Args:
        run: (part of each array) ↦ pytree of arrays with the examples first.
        arrays: with a common first axis, padded to a power of two.
        batch: examples that are no padding.
        bytes_all: estimate of the bytes that all examples take at once.
        max_bytes: the budget.
    """
    size = affordable(len(arrays[0]), bytes_all, max_bytes)
    parts = [run(*(array[i : i + size] for array in arrays)) for i in range(0, batch, size)]
    if len(parts) == 1:
        return jax.tree.map(lambda leaf: leaf if len(leaf) == batch else leaf[:batch], parts[0])
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves)[:batch], *parts)


FORWARD, CELL = 1.0, 3.0
"""Bytes of a forward pass by those of all its values, and of a target by the most that are alive at once."""
_BY_TARGET = ("contributions", "logits", "targets", "bias", "residual", "weights")


def in_tiles(
    run: Callable[..., tuple[list[Attribution], Array | None]],
    models: Callable[..., Any],
    arrays: Sequence[Array],
    rows: Int[Array, "batch t"],
    batch: int,
    max_bytes: int,
) -> tuple[list[Attribution], Array | None]:
    """Decompose tile by tile: as many examples and targets at once as the budget allows.

    Args:
        run: (whether to check, models, rows, *arrays) ↦ decompositions, one per level, and how examples are coupled.
        models: (*arrays) ↦ the models, the first of them a traced one.
        arrays: examples, padded to a power of two.
        rows: their targets.
        batch: examples that are no padding.
        max_bytes: the budget.
    """
    found = models(*arrays)
    padded_batch, count = rows.shape
    total, most = (size / padded_batch for size in found[0].program.memory)
    forward, each = FORWARD * total, CELL * most
    examples = affordable(padded_batch, padded_batch * (forward + count * each), max_bytes)
    targets = count if examples > 1 else max(1, min(count, int((max_bytes - forward) // max(each, 1))))
    targets = -(-count // -(-count // targets))  # tiles of one size
    if (examples, targets) == (padded_batch, count):
        parts, coupled = run(True, found, rows, *arrays)
        return jax.tree.map(lambda leaf: leaf if len(leaf) == batch else leaf[:batch], parts), coupled
    found = models(*(array[:examples] for array in arrays))
    wholes: list[Attribution] = []
    coupled = None
    for i in range(0, batch, examples):
        tile = [array[i : i + examples] for array in arrays]
        for k in range(0, count, targets):
            k = min(k, count - targets)  # the last tile reaches back
            parts, together = run(k == 0, found, rows[i : i + examples, k : k + targets], *tile)
            coupled = together if coupled is None else coupled if together is None else jnp.maximum(coupled, together)
            wholes = wholes or [_blank(part, batch, count) for part in parts]
            wholes = [
                _joined(whole, part, i, k, min(examples, batch - i)) for whole, part in zip(wholes, parts, strict=True)
            ]
    return wholes, coupled


def _blank(part: Attribution, batch: int, count: int) -> Attribution:
    """Return a decomposition without values, of all examples and targets."""
    changed: dict[str, Any] = {}
    for name in _fields(part):
        value, lead = getattr(part, name), (batch, count) if name in _BY_TARGET else (batch,)
        changed[name] = jnp.zeros((*lead, *value.shape[len(lead) :]), value.dtype)
    return replace(part, **changed)


def _joined(whole: Attribution, part: Attribution, i: int, k: int, real: int) -> Attribution:
    """Write one tile into the whole, in place."""
    changed: dict[str, Any] = {}
    for name in _fields(part):
        value, start = getattr(part, name), (i, k) if name in _BY_TARGET else (i,)
        changed[name] = _write(getattr(whole, name), value if len(value) == real else value[:real], *start)
    return replace(whole, **changed)


@partial(jax.jit, donate_argnums=0)
def _write(whole: Array, part: Array, *start: int | Array) -> Array:  # traced, they are arrays
    return jax.lax.dynamic_update_slice(whole, part, (*start, *(0,) * (whole.ndim - len(start))))


def _fields(part: Attribution) -> list[str]:
    return [name for name in (*_BY_TARGET, "curvature", "discrepancy") if getattr(part, name) is not None]
