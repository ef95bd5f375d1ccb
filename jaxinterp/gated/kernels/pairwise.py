"""Functions of all pairs of two sets of examples, in blocks that fit the cache."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxinterp.nn.platform import Target, by_platform

Pairs = Callable[[Any, Any], Float[Array, "rows columns"]]

BLOCK_BYTES: dict[Target, int] = {"cpu": 16 << 20, "accelerator": 1 << 30}
"""Bytes of the largest array of a block of pairs."""
PANELS = 8  # of a symmetric matrix


def rectangular(pairs: Pairs, left: Any, right: Any, bytes_each: int) -> Float[Array, "n m"]:
    """Evaluate `pairs`, (rows, columns) ↦ values, for n and m examples, pytrees of arrays with a common first axis.

    One pair takes `bytes_each` bytes in the largest array.
    """

    def blocks(kind: Target) -> Callable[[Any, Any], Array]:
        return partial(_in_blocks, pairs, max(1, BLOCK_BYTES[kind] // bytes_each))

    return by_platform(blocks("cpu"), blocks("accelerator"), left, right)


def _in_blocks(pairs: Pairs, block: int, left: Any, right: Any) -> Array:
    """Evaluate blocks of at most so many pairs one after another."""
    n, m = (len(jax.tree.leaves(side)[0]) for side in (left, right))
    columns = min(m, block)
    rows = min(n, max(1, block // columns))

    def row(part: Any) -> Array:
        if columns == m:
            return pairs(part, right)
        values = lax.map(partial(pairs, part), _split(right, m, columns))
        return jnp.moveaxis(values, 0, 1).reshape(rows, -1)[:, :m]

    return lax.map(row, _split(left, n, rows)).reshape(-1, m)[:n]


def _split(tree: Any, count: int, size: int) -> Any:
    """Split into blocks of one size along a new first axis, the last one padded with zeros."""
    pad = -count % size
    return jax.tree.map(
        lambda a: jnp.pad(a, ((0, pad), *((0, 0),) * (a.ndim - 1))).reshape(-1, size, *a.shape[1:]), tree
    )


def symmetric(pairs: Pairs, examples: Any, bytes_each: int | None = None) -> Float[Array, "n n"]:
    """Evaluate as `rectangular` a symmetric function of every pair of one set, about half of them by symmetry.

    Each panel of rows is evaluated at once if `bytes_each` is None.
    """
    first = jax.tree.leaves(examples)[0]
    n = len(first)
    panel = max(64, math.ceil(n / PANELS))
    k = jnp.zeros((n, n), first.dtype)
    for start in range(0, n, panel):
        rows = jax.tree.map(lambda a, s=start: a[s : s + panel], examples)
        rest = jax.tree.map(lambda a, s=start: a[s:], examples)
        values = pairs(rows, rest) if bytes_each is None else rectangular(pairs, rows, rest, bytes_each)
        size = len(values)
        corner = jnp.triu(values[:, :size])
        if start + size < n:
            k = lax.dynamic_update_slice(k, values[:, size:].T, (start + size, start))
        k = lax.dynamic_update_slice(k, values, (start, start))
        k = lax.dynamic_update_slice(k, corner + jnp.triu(corner, 1).T, (start, start))
    return k
