"""Batches of a few sizes, and tiles of examples and targets that keep within a budget of memory."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jaxinterp.checks import require, require_at_least, require_classes
from jaxinterp.errors import ConfigError
from jaxinterp.explain.attribution import Attribution

Targets = None | int | Sequence[int] | Sequence[Sequence[int]] | Int[Array, "..."] | np.ndarray
MAX_BYTES = 2 << 30
"""Default budget of one pass."""
PLANS = 256
"""Plans of tiles that are kept."""
WORK = 1.25
"""Memory of a program over that of its intermediate values, all that compilers tell: convolutions take more."""
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
        return jax.device_put(np.tile(np.arange(classes, dtype=np.int32), (batch, 1)))
    if not isinstance(targets, jax.core.Tracer):
        try:
            values = np.asarray(targets)
        except ValueError as error:
            raise ConfigError("targets: got rows of several lengths, expected (batch, T)") from error
        require(np.issubdtype(values.dtype, np.integer), "targets", values.dtype, f"integers in [0, {classes})")
        require_classes("targets", values, classes)
    array = jnp if isinstance(targets, jax.core.Tracer) else np  # known ones without a program for each batch size
    rows = array.asarray(targets, dtype=np.int32)
    fits = rows.ndim == 0 or (rows.ndim <= 2 and rows.shape[0] == batch and 0 not in rows.shape[1:])
    require(fits, "targets", f"shape {rows.shape}", f"(), ({batch},) or ({batch}, T), T at least 1")
    return jax.device_put(rows if rows.ndim == 2 else array.broadcast_to(rows[..., None], (batch, 1)))


def as_array(values: Any) -> Array:
    """Return an array on the device: as `jnp.asarray`, which compiles a program for every new shape."""
    return values if isinstance(values, jax.Array) else jax.device_put(np.asarray(values))


def padded_size(count: int) -> int:
    """Return the size, a power of two, to which a batch is padded, so that few sizes are compiled."""
    return 1 << max(0, count - 1).bit_length()


def padded(x: Array, size: int | None = None) -> Array:
    """Repeat the last example until the batch has the padded size, or the one given."""
    missing = (padded_size(len(x)) if size is None else size) - len(x)
    if not missing:
        return x
    if _on_host(x):
        values = np.asarray(x)
        return jax.device_put(np.concatenate([values, np.broadcast_to(values[-1:], (missing, *x.shape[1:]))]))
    return _repeat_last(x, missing)


def _on_host(x: Array | np.ndarray) -> bool:
    """Whether values are known and at hand, so that a program of each batch size need not be compiled to cut them."""
    if isinstance(x, np.ndarray):
        return True
    known = not isinstance(x, jax.core.Tracer) and not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return known and [device.platform for device in x.devices()] == ["cpu"] and x.is_fully_addressable


@partial(jax.jit, static_argnums=1)
def _repeat_last(x: Array, times: int) -> Array:
    return jnp.concatenate([x, jnp.broadcast_to(x[-1:], (times, *x.shape[1:]))])


def repeated(x: Array, count: int) -> Array:
    """Return as many examples, from the first on, and from the first again after the last."""
    places = np.arange(count) % len(x)
    return jax.device_put(np.asarray(x)[places]) if _on_host(x) else _at(x, places)


@jax.jit
def _at(x: Array, places: Array) -> Array:
    return x[places]


def empty(size: int, x: Array) -> Array:
    """Return zeros, as many examples of the shape and type of those given, for a network to be traced with."""
    return jax.device_put(np.zeros((size, *x.shape[1:]), x.dtype))


def sliced(x: Array | np.ndarray, start: int, size: int) -> Array:
    """Return some examples: where values are not at hand, by one small program for all places."""
    if len(x) == size:
        return jnp.asarray(x)
    if _on_host(x):
        return jax.device_put(np.asarray(x)[start : start + size])
    return _slice(x, start, size)


@partial(jax.jit, static_argnums=2)
def _slice(x: Array, start: int | Array, size: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(x, start, size)


def cut(parts: Result, batch: int) -> Result:
    """Leave out padding: where values are not at hand, by one small program for all arrays of a batch size."""
    leaves = jax.tree.leaves(parts)
    if all(len(leaf) == batch for leaf in leaves):
        return parts
    if all(map(_on_host, leaves)):
        return jax.tree.map(lambda leaf: jax.device_put(np.asarray(leaf)[:batch]), parts)
    return _first(parts, batch)


@partial(jax.jit, static_argnums=1)
def _first(parts: Any, batch: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[:batch], parts)


def affordable(count: int, bytes_all: int | float, max_bytes: int) -> int:
    """Return the largest power of two, at most `count` (one itself), whose share of `bytes_all` is affordable."""
    require_at_least("max_bytes", max_bytes, 1)
    while count > 1 and bytes_all > max_bytes:
        count, bytes_all = count // 2, bytes_all / 2
    return count


def in_batches(
    run: Callable[..., Result],
    arrays: Sequence[Array | np.ndarray],
    batch: int,
    bytes_all: int | float,
    max_bytes: int,
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
    parts = [run(*(sliced(array, i, size) for array in arrays)) for i in range(0, batch, size)]
    first = parts[0]
    if isinstance(first, Attribution) and not isinstance(first.logits, jax.core.Tracer):
        _require_finite(parts, batch)
    return first if len(parts) == 1 and size == batch else _joined_examples(parts, batch)


def _joined_examples(parts: Sequence[Result], batch: int) -> Result:
    """Join parts of a batch, and leave out padding."""
    if len(parts) == 1:
        return cut(parts[0], batch)
    if all(map(_on_host, jax.tree.leaves(parts))):
        return jax.tree.map(lambda *leaves: jax.device_put(np.concatenate(leaves)[:batch]), *parts)
    return cut(jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts), batch)


def _require_finite(parts: Sequence[Any], batch: int) -> None:
    wrong = ~np.concatenate([_finite_examples(part) for part in parts])[:batch]
    refuse_examples(wrong, "logits", "NaN or infinity", f"finite logits and contributions of {parts[0].method}")


def refuse_examples(wrong: np.ndarray, name: str, got: str, expected: str) -> None:
    """Raise where something is wrong at some examples, and name the first of them."""
    places = np.flatnonzero(wrong)
    listed = ", ".join(map(str, places[:5])) + (", ..." if len(places) > 5 else "")
    require(not len(places), name, f"{got} at {len(places)} of {len(wrong)} examples ({listed})", expected)


def _finite_examples(part: Attribution) -> np.ndarray:
    """Look at values where they are at hand, else by one program for each shape."""
    values = part.contributions, part.logits
    if not all(map(_on_host, values)):
        return np.asarray(_finite(*values))
    logical = [np.isfinite(np.asarray(array)).reshape(len(array), -1).all(1) for array in values]
    return np.logical_and(*logical)


@jax.jit
def _finite(contributions: Array, logits: Array) -> Array:
    """Whether all values of an example are finite."""
    whole = contributions.reshape(len(contributions), -1)
    return jnp.isfinite(whole).all(1) & jnp.isfinite(logits).all(1)


TARGETS = 16
"""Most targets whose backward passes are written out in one program."""


def over_targets(run: Callable[[Array], Attribution], rows: Int[Array, "batch t"]) -> Attribution:
    """Explain all targets at once, or, if they are many, parts of one size after the other.

    Args:
        run: (batch, t) targets ↦ their `Attribution`, t at most `TARGETS`.
        rows: targets of the examples.
    """
    batch, count = rows.shape
    if count <= TARGETS:
        return run(rows)
    size = -(-count // -(-count // TARGETS))
    whole: Attribution | None = None
    for k in range(0, count, size):
        start = min(k, count - size)  # the last part reaches back
        part = run(_columns(rows, start, size))
        whole = _joined(_blank(part, batch, count) if whole is None else whole, part, 0, start, batch)
        del part
    assert whole is not None
    return whole


@partial(jax.jit, static_argnums=2)
def _columns(rows: Array, start: int | Array, size: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(rows, start, size, axis=1)


_BY_TARGET = ("contributions", "logits", "targets", "bias", "residual", "weights")
_plans: dict[Any, tuple[int, int]] = {}


def in_tiles(
    run: Callable[..., list[Attribution]],
    lower: Callable[..., jax.stages.Lowered],
    size: Callable[..., int],
    models: Callable[..., Any],
    arrays: Sequence[Array],
    rows: Int[Array, "batch t"],
    batch: int,
    max_bytes: int,
) -> list[Attribution]:
    """Decompose tile by tile: as many examples and targets at once as the budget allows.

    Args:
        run: (whether to check, models, rows, *arrays) ↦ decompositions, one per level.
        lower: the same arguments ↦ the program that `run` compiles, which is compiled once for both.
        size: (models, rows, *arrays) ↦ estimate of the bytes that `run` takes.
        models: (*arrays) ↦ the models, the first of them a traced one.
        arrays: examples, padded to a power of two.
        rows: their targets.
        batch: examples that are no padding.
        max_bytes: the budget.
    """
    count, found = rows.shape[1], models(*arrays)
    examples, targets = _plan(lower, size, models, found, arrays, rows, max_bytes)
    if (examples, targets) == rows.shape:
        return cut(run(True, found, rows, *arrays), batch)
    found = models(*(sliced(array, 0, examples) for array in arrays))
    wholes: list[Attribution] = []
    for i in range(0, batch, examples):
        tile = [sliced(array, i, examples) for array in arrays]
        for k in range(0, count, targets):
            start = min(k, count - targets)  # the last tile reaches back
            parts = run(k == 0, found, rows[i : i + examples, start : start + targets], *tile)
            wholes = wholes or [_blank(part, batch, count) for part in parts]
            real = min(examples, batch - i)
            wholes = [_joined(whole, part, i, start, real) for whole, part in zip(wholes, parts, strict=True)]
            del parts
    return wholes


def _plan(
    lower: Callable[..., jax.stages.Lowered],
    size: Callable[..., int],
    models: Callable[..., Any],
    found: Any,
    arrays: Sequence[Array],
    rows: Int[Array, "batch t"],
    max_bytes: int,
) -> tuple[int, int]:
    """Return examples and targets of a tile: halved until they fit, examples first; found once for a program.

    A tile that fits by estimate is compiled, as it will be run, and fits if its compiler says so.
    """
    key = (tuple(model and model.program for model in found), size, rows.shape, max_bytes)
    known_plan = _plans.get(key)
    if known_plan is not None:
        return known_plan
    examples, targets = rows.shape
    known = not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((found, rows, arrays)))
    total, most = found[0].program.memory
    if 3 * (total + targets * most) > max_bytes:  # else it fits by far, and nothing need be traced

        def needed() -> int:
            tile = [array[:examples] for array in arrays]
            tile = [models(*tile), rows[:examples, :targets], *tile]
            estimate = size(*tile)
            return _compiled_bytes(lower(True, *tile)) or estimate if known and estimate <= max_bytes else estimate

        while examples * targets > 1 and (bytes_all := needed()) > max_bytes:
            fewer = max(1, int((examples if examples > 1 else targets) * max_bytes / bytes_all))
            if examples > 1:
                examples = min(examples // 2, 1 << (fewer.bit_length() - 1))
            else:
                targets = min(-(-targets // 2), fewer)
        targets = -(-rows.shape[1] // -(-rows.shape[1] // targets))  # tiles of one size
    if len(_plans) >= PLANS:
        _plans.clear()
    _plans[key] = examples, targets
    return examples, targets  # another thread may have cleared the plans


def _compiled_bytes(lowered: jax.stages.Lowered) -> int | None:
    """Return the bytes that a program takes, results included; None where its compiler does not tell."""
    found = lowered.compile().memory_analysis()
    return found and int(WORK * found.temp_size_in_bytes + found.output_size_in_bytes)


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
def _write(whole: Array, part: Array, *start: int | Array) -> Array:
    return jax.lax.dynamic_update_slice(whole, part, (*start, *(0,) * (whole.ndim - len(start))))


def _fields(part: Attribution) -> list[str]:
    return [name for name in (*_BY_TARGET, "curvature", "discrepancy") if getattr(part, name) is not None]
