"""All pairs of two sets of examples, in blocks that stay in the cache, and half of them where the sets are the same."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

Pairs = Callable[[Any, Any], Float[Array, "rows columns"]]

BLOCK = {"cpu": 16 << 20}  # bytes of the largest array of a block of pairs: what stays in the cache
LARGE_BLOCK = 1 << 30  # on accelerators: what keeps them busy
PANELS = 8  # of a symmetric matrix


def rectangular(pairs: Pairs, left: Any, right: Any, bytes_each: int) -> Float[Array, "n m"]:
    """A function of every pair.

    Args:
        pairs: (rows, columns) ↦ values of their pairs; both are pytrees of arrays with a common first axis.
        left: n examples.
        right: m examples.
        bytes_each: of the largest array that one pair asks for.
    """
    n, m = (len(jax.tree.leaves(side)[0]) for side in (left, right))
    most = max(1, BLOCK.get(jax.default_backend(), LARGE_BLOCK) // bytes_each)
    columns = min(m, most)
    rows = min(n, max(1, most // columns))

    def row(block: Any) -> Array:
        if columns == m:
            return pairs(block, right)
        found = lax.map(partial(pairs, block), _cut(right, m, columns))
        return jnp.moveaxis(found, 0, 1).reshape(rows, -1)[:, :m]

    return lax.map(row, _cut(left, n, rows)).reshape(-1, m)[:n]


def _cut(tree: Any, count: int, size: int) -> Any:
    """Blocks of one size along a new first axis, the last one filled with zeros."""
    parts = math.ceil(count / size)
    pad = parts * size - count
    return jax.tree.map(
        lambda a: jnp.pad(a, ((0, pad), *((0, 0),) * (a.ndim - 1))).reshape(parts, size, *a.shape[1:]), tree
    )


def symmetric(pairs: Pairs, examples: Any, bytes_each: int | None = None) -> Float[Array, "n n"]:
    """A symmetric function of every pair of one set: panels of rows from the diagonal on, and their mirror images.

    Args:
        pairs: as in `rectangular`.
        examples: n examples.
        bytes_each: as there; None computes each panel as a whole, where pairs ask for no more than their value.
    """
    first = jax.tree.leaves(examples)[0]
    n = len(first)
    panel = max(64, math.ceil(n / PANELS))
    k = jnp.zeros((n, n), first.dtype)
    for start in range(0, n, panel):
        rows = jax.tree.map(lambda a, s=start: a[s : s + panel], examples)
        rest = jax.tree.map(lambda a, s=start: a[s:], examples)
        found = pairs(rows, rest) if bytes_each is None else rectangular(pairs, rows, rest, bytes_each)
        size = len(found)
        corner = jnp.triu(found[:, :size])
        if start + size < n:
            k = lax.dynamic_update_slice(k, found[:, size:].T, (start + size, start))
        k = lax.dynamic_update_slice(k, found, (start, start))
        k = lax.dynamic_update_slice(k, corner + jnp.triu(corner, 1).T, (start, start))
    return k
