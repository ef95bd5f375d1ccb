"""Coalitions of groups of entries: the logits of x with some groups present and all others at the baseline.

    v_k(S) = f_k(x on the groups of S, x' elsewhere)        v(all) = f(x)        v(∅) = f(x')

Ablation, LIME and Shapley values all are sums of such values; they differ in which coalitions they look at, and how
these are weighted. All targets are read from the same forward passes.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxinterp.checks import require
from jaxinterp.explain.attribute.backward import Call, checked, chosen, head, in_cache, placed, shape_at
from jaxinterp.explain.attribution import Attribution
from jaxinterp.explain.batches import Targets, empty, in_batches, padded
from jaxinterp.explain.program import INPUT, Model, value_of

Mask = Any
"""Integers, the group of each entry, see `grouped`; None for a group of its own of every entry."""
Coalitions = Callable[..., Bool[Array, "n groups"]]
"""(indices (n,), *data) ↦ which groups are present."""
Solve = Callable[..., Float[Array, "batch t groups"]]
"""(values (N, batch, t), logits, bias, groups, *data) ↦ the groups' contributions."""


class Game(NamedTuple):
    """Checked arguments of a method on groups of entries, padded to a batch of a few sizes.

    Attributes:
        groups: group of each entry, from 0 on; the first axis is 1 where all examples share them, the last where
            channels do.
        players: number of groups.
        base: x', (batch, *shape).
    """

    call: Call
    layer: str | None
    groups: Int[Array, "shared_or_batch *places"]
    players: int
    base: Array


def game(net: Any, x: Any, targets: Targets, layer: str | None, mask: Any, baseline: Any, max_bytes: int) -> Game:
    """Check what all methods on groups take; mask and baseline are those of x, or of the layer's output."""
    call = checked(net, x, targets, layer, max_bytes)
    shape = shape_at(call, layer)
    groups, players = grouped(mask, shape)
    whole = jnp.asarray(groups) if len(groups) == 1 else padded(jnp.asarray(groups), len(call.x))
    return Game(call, layer, whole, players, placed(call, "baseline", baseline, layer))


def grouped(mask: Any, shape: tuple[int, ...]) -> tuple[Int[np.ndarray, "shared_or_batch *places"], int]:
    """Return the group of each entry, counted from 0 without gaps, and the number of groups.

    Args:
        mask: integers of the shape of one example, or of a batch, with the last axis (channels) or without; None for
            a group of its own of every entry.
        shape: (batch, ...).

    Raises:
        ConfigError: the mask has no integers, or another shape.

    Example:
        >>> groups, players = grouped(np.array([[7, 7], [9, 7]]), (4, 2, 2, 3))
        >>> groups[..., 0].tolist(), groups.shape, players
        ([[[0, 0], [1, 0]]], (1, 2, 2, 1), 2)
    """
    batch, *inner = shape
    if mask is None:
        return np.arange(math.prod(inner), dtype=np.int32).reshape(1, *inner), math.prod(inner)
    mask = np.asarray(mask)
    require(np.issubdtype(mask.dtype, np.integer), "mask", mask.dtype, "integers, the group of each entry")
    places = {tuple(inner): (1, *inner), (batch, *inner): shape}
    if len(inner) > 1:
        outer = inner[:-1]
        places = {tuple(outer): (1, *outer, 1), (batch, *outer): (batch, *outer, 1)} | places
    wanted = f"one of {tuple(inner)}, with or without channels, or one for each of {batch} examples"
    require(mask.shape in places, "mask", f"shape {mask.shape}", wanted)
    names, groups = np.unique(mask, return_inverse=True)
    return groups.reshape(places[mask.shape]).astype(np.int32), len(names)


def at_once(call: Call, layer: str | None, count: int, max_bytes: int) -> tuple[int, float, int]:
    """Return how many changed versions of one example run at once, in equal parts, bytes of each, and the budget."""
    entries = max(math.prod(call.x.shape[1:]), math.prod(shape_at(call, layer)[1:]))
    each = call.memory[1] / len(call.x) + 4 * entries * call.x.dtype.itemsize
    max_bytes = in_cache(call, each, max_bytes)
    most = max(1, min(count, int(max_bytes // each)))
    return math.ceil(count / math.ceil(count / most)), each, max_bytes


def many_program(call: Call, x: Array, count: int) -> Model:
    """Return the network for a number of versions of every example, in one batch."""
    return call.net.program("logits", empty(count * len(x), x))


def logits_of_versions(
    model: Model, layer: str | None, versions: Float[Array, "n batch *shape"], x: Array, rows: Int[Array, "batch t"]
) -> Float[Array, "n batch t"]:
    """Return the targets' logits of n versions of every example, all in one batch."""
    n, batch = versions.shape[:2]
    around = jnp.tile(x, (n, *(1,) * (x.ndim - 1)))
    logits = head(model, layer, versions.reshape(-1, *versions.shape[2:]), around).reshape(n, batch, -1)
    return jnp.take_along_axis(logits, jnp.broadcast_to(rows[None], (n, *rows.shape)), axis=-1)


def play(
    method: str,
    game: Game,
    count: int,
    coalitions: Coalitions,
    solve: Solve,
    *data: Array,
    spread: bool,
    complete: bool,
    max_bytes: int,
) -> Attribution:
    """Look at coalitions, in equal parts by one compiled program, and solve for the contributions of the groups.

    Args:
        method: name of the method.
        game: checked arguments.
        count: number N of coalitions.
        coalitions: (indices, *data) ↦ which groups are present; a function of a module, so that it is compiled once.
        solve: (values (N, batch, t), logits, bias, groups, *data) ↦ contributions of the groups, (batch, t, groups).
        *data: arrays.
        spread: whether a group's contribution is divided among its entries, or each of them has the whole.
        complete: whether contributions and bias v(∅) sum to the logit; the bias is zero for `solve` where not.
        max_bytes: bytes that one pass may take by estimate; examples, then coalitions, run in parts.
    """
    call, layer, shared = game.call, game.layer, len(game.groups) == 1
    part, each, max_bytes = at_once(call, layer, count, max_bytes)

    def explain(x: Array, rows: Array, base: Array, *own: Array) -> Attribution:
        model, many = call.net.program("logits", x), many_program(call, x, part)
        groups, z = game.groups if shared else own[0], value_of(model, layer, x)
        values = jnp.zeros((count, *rows.shape), model.program.output.dtype)
        for start in range(0, count, part):
            start = min(start, count - part)  # the last part reaches back
            values = _look(coalitions, layer, part, values, start, many, z, base, x, rows, groups, *data)
        kinds = (solve, method, layer, spread, complete)
        return _solved(*kinds, model, z, base, x, rows, groups, values, *data)

    kept = 4 * count * call.rows.shape[1] * call.x.dtype.itemsize
    arrays = (call.x, call.rows, game.base, *(() if shared else (game.groups,)))
    with jax.default_matmul_precision("highest"):
        return in_batches(explain, arrays, call.batch, (each * part + kept) * len(call.x), max_bytes)


@partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=3)
def _look(
    coalitions: Coalitions,
    layer: str | None,
    part: int,
    values: Float[Array, "N batch t"],
    start: int | Array,
    model: Model,
    z: Array,
    base: Array,
    x: Array,
    rows: Array,
    groups: Array,
    *data: Array,
) -> Float[Array, "N batch t"]:
    """Write the targets' logits of one part of the coalitions into the whole."""
    present = coalitions(start + jnp.arange(part, dtype=jnp.int32), *data)
    versions = jnp.where(present[:, groups], z[None], base[None])
    logits = logits_of_versions(model, layer, versions, x, rows)
    return jax.lax.dynamic_update_slice(values, logits, (start, 0, 0))


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _solved(
    solve: Solve,
    method: str,
    layer: str | None,
    spread: bool,
    complete: bool,
    model: Model,
    z: Array,
    base: Array,
    x: Array,
    rows: Array,
    groups: Array,
    values: Float[Array, "N batch t"],
    *data: Array,
) -> Attribution:
    """Solve for the groups' contributions, and give them to their entries."""
    logits = chosen(head(model, layer, z, x), rows)
    bias = chosen(head(model, layer, base, x), rows) if complete else jnp.zeros_like(logits)
    wide = np.promote_types(values.dtype, np.float32)  # of which linear systems are solved
    parts = solve(*(array.astype(wide) for array in (values, logits, bias)), groups, *data)
    if spread:
        parts = parts / jnp.maximum(sizes(groups, parts.shape[-1]), 1)[:, None].astype(parts.dtype)
    places = jnp.broadcast_to(groups.reshape(len(groups), 1, -1), (*rows.shape, math.prod(groups.shape[1:])))
    contributions = jnp.take_along_axis(parts, places, axis=2).reshape(*rows.shape, *groups.shape[1:])
    contributions = contributions.astype(values.dtype)
    if not complete:
        return Attribution(contributions, logits, rows, method=method, layer=layer or INPUT)
    residual = logits - bias - contributions.reshape(*rows.shape, -1).sum(-1)
    return Attribution(contributions, logits, rows, bias, residual, method=method, layer=layer or INPUT)


def sizes(groups: Int[Array, "shared_or_batch *places"], players: int) -> Int[Array, "shared_or_batch groups"]:
    """Return the number of entries of each group."""
    return jax.vmap(partial(jnp.bincount, length=players))(groups.reshape(len(groups), -1))


def listed(indices: Int[Array, " n"], table: Bool[Array, "N groups"], *rest: Array) -> Bool[Array, "n groups"]:
    """Return coalitions of a table."""
    return table[indices]


def subsets(indices: Int[Array, " n"], players: Int[Array, " groups"], *rest: Array) -> Bool[Array, "n groups"]:
    """Return coalitions by number: group g is present in coalition i if the binary digit g of i is 1."""
    return (indices[:, None] >> players[None]) & 1 == 1
