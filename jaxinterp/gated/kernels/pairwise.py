"""Functions of all pairs of two sets of examples, tile by tile, written in place, on one device or a mesh of them.

The tiles depend on the numbers of examples and on the kind of platform alone, so that a mesh of any size, over any
number of processes, gives bit by bit what one device gives.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int32, Shaped

from jaxinterp.nn.platform import Target, by_platform


class Part(NamedTuple):
    """Consecutive examples of a set, a pytree of arrays with a common first axis; cut out when they are needed."""

    examples: Any
    start: Int32[Array, ""]
    size: int

    def cut(self, array: Shaped[Array, "n ..."]) -> Shaped[Array, "size ..."]:
        """Return the part of one of the arrays."""
        return lax.dynamic_slice_in_dim(array, self.start, self.size)


Pairs = Callable[[Part, Part], Float[Array, "rows columns"]]
Tile = Callable[..., Float[Array, "rows columns"]]  # of both sides, starts, and whether it is mirrored
Starts = Int32[np.ndarray, "_ 2"]

TILE_BYTES: dict[Target, int] = {"cpu": 1 << 20, "accelerator": 1 << 27}
"""Bytes of the largest array of a tile of pairs; on CPU a part of the cache. Over a mesh a device holds a tile of each
device at a time, and tiles may not depend on the mesh: with 64 devices these take 8 GiB at most, of a v5e's 16."""
SMALL_BYTES = 1 << 14
"""Bytes of a tile that is not cut further to evaluate less of a symmetric matrix."""
STRIP: dict[Target, int] = {"cpu": 64, "accelerator": 1 << 30}
"""Rows of a tile that are transposed at a time: on CPU so few that the lines read together stay in the first cache."""
PANELS: dict[Target, int] = {"cpu": 8, "accelerator": 16}
"""Of a symmetric matrix at least: 36 of 64 tiles are evaluated; or 136 of 256, smaller for the sake of a mesh, too."""


def rectangular(pairs: Pairs, left: Any, right: Any, bytes_each: int, mesh: Mesh | None = None) -> Float[Array, "n m"]:
    """Evaluate `pairs`, (rows, columns) ↦ values, for n and m examples.

    Args:
        pairs: the function of all pairs of a part of the rows and a part of the columns.
        left: examples of the rows, a pytree of arrays with a common first axis.
        right: examples of the columns, as well.
        bytes_each: bytes that one pair takes in the largest array.
        mesh: of automatic axes, over which the tiles are spread. So are the rows of the result if its size divides
            their number; otherwise the result is on every device.
    """
    return by_platform(*_branches(pairs, bytes_each, False, mesh), left, right)


def symmetric(pairs: Pairs, examples: Any, bytes_each: int, mesh: Mesh | None = None) -> Float[Array, "n n"]:
    """Evaluate as `rectangular` a symmetric function of every pair of one set, about half of them by symmetry."""
    return by_platform(*_branches(pairs, bytes_each, True, mesh), examples, examples)


def _branches(*options: Any) -> Iterator[Callable[[Any, Any], Array]]:
    kinds: tuple[Target, Target] = ("cpu", "accelerator")
    return (partial(_evaluate, kind, *options) for kind in kinds)


def _evaluate(
    kind: Target, pairs: Pairs, bytes_each: int, symmetric: bool, mesh: Mesh | None, left: Any, right: Any
) -> Array:
    """Evaluate all tiles. The last one of a row or a column starts early, so that all have one shape."""
    n, m = (len(jax.tree.leaves(side)[0]) for side in (left, right))
    sizes = rows, columns = _tile_shape(kind, n, m, bytes_each, symmetric)

    def tile(left: Any, right: Any, start: Int32[Array, "2"], mirrored: bool) -> Array:
        values = pairs(*map(Part, (left, right), start, sizes))
        return jnp.triu(values) + jnp.triu(values, 1).T if symmetric and not mirrored else values

    groups = list(_groups(_starts(n, rows), _starts(m, columns), symmetric))
    if mesh is not None:
        return _spread(kind, tile, groups, (n, m), max(sizes), mesh, left, right)
    k = jnp.zeros((n, m), _dtype(tile, left, right))
    for starts, mirrored in groups:

        def step(k: Array, start: Array, mirrored: bool = mirrored) -> tuple[Array, None]:
            return _put(kind, k, tile(left, right, start, mirrored), start, mirrored), None

        k, _ = lax.scan(step, k, jnp.asarray(starts))
    return k


def _spread(
    kind: Target,
    tile: Tile,
    groups: list[tuple[Starts, bool]],
    shape: tuple[int, int],
    margin: int,
    mesh: Mesh,
    left: Any,
    right: Any,
) -> Array:
    """Evaluate as many tiles at a time as there are devices, each of which keeps what falls in its rows."""
    (n, m), axes, height = shape, mesh.axis_names, math.ceil(shape[0] / mesh.size)
    dtype = _dtype(tile, left, right)

    def panel(left: Any, right: Any) -> Array:
        place = lax.axis_index(axes)
        top = place * height - margin  # rows of other devices are written to the margins, above and below
        k = jnp.zeros((height + 2 * margin, m), dtype)
        for starts, mirrored in groups:

            def evaluate(k: Array, starts: Array, mirrored: bool = mirrored) -> tuple[Array, None]:
                values = lax.all_gather(tile(left, right, starts[place], mirrored), axes)
                return lax.scan(lambda k, one: (_put(kind, k, *one, mirrored, top), None), k, (values, starts))

            k, _ = lax.scan(evaluate, k, jnp.asarray(_rounds(starts, mesh.size)))
        return k[margin : margin + height]

    whole, rows = PartitionSpec(), PartitionSpec(axes)
    k = jax.shard_map(panel, mesh=mesh, in_specs=(whole, whole), out_specs=rows, check_vma=False)(left, right)
    if len(k) == n:
        return k
    return lax.with_sharding_constraint(k[:n], NamedSharding(mesh, whole))


def _tile_shape(kind: Target, n: int, m: int, bytes_each: int, symmetric: bool) -> tuple[int, int]:
    """Return rows and columns of a tile, nearly a square if the matrix is large."""
    most = max(1, TILE_BYTES[kind] // bytes_each)
    rows = min(n, math.isqrt(most))
    if symmetric:
        rows = min(rows, max(math.ceil(n / PANELS[kind]), math.isqrt(SMALL_BYTES // bytes_each)))
        return rows, rows
    columns = min(m, most // rows)
    return min(n, most // columns), columns


def _starts(count: int, size: int) -> list[int]:
    """Return where the tiles of a side start."""
    return [min(start, count - size) for start in range(0, count, size)]


def _groups(rows: list[int], columns: list[int], symmetric: bool) -> Iterator[tuple[Starts, bool]]:
    """Yield starts of tiles, and whether each stands for its mirror image, too.

    The diagonal comes last: where the last tiles overlap, its values stand, which are symmetric.
    """
    if not symmetric:
        yield np.array([(i, j) for i in rows for j in columns], np.int32), False
        return
    if len(rows) > 1:
        yield np.array([(i, j) for i in rows for j in rows if i < j], np.int32), True
    yield np.array([(i, i) for i in rows], np.int32), False


def _rounds(starts: Starts, size: int) -> Int32[np.ndarray, "rounds size 2"]:
    """Split starts into rounds of one tile for each device, the last round filled up with the last tile."""
    return np.pad(starts, ((0, -len(starts) % size), (0, 0)), mode="edge").reshape(-1, size, 2)


def _put(kind: Target, k: Array, values: Array, start: Array, mirrored: bool, top: Any = 0) -> Array:
    """Write a tile, and its mirror image, into rows of a matrix from `top` on."""
    (i, j), size, strip = start, len(values), min(STRIP[kind], len(values))
    k = lax.dynamic_update_slice(k, values, (jnp.maximum(i - top, 0), j))
    if not mirrored:
        return k

    def transpose(k: Array, row: Array) -> tuple[Array, None]:
        part = lax.dynamic_slice_in_dim(values, row, strip).T
        return lax.dynamic_update_slice(k, part, (jnp.maximum(j - top, 0), i + row)), None

    return lax.scan(transpose, k, jnp.array(_starts(size, strip), jnp.int32))[0]


def _dtype(tile: Tile, left: Any, right: Any) -> Any:
    start = jax.ShapeDtypeStruct((2,), jnp.int32)
    return jax.eval_shape(lambda left, right, start: tile(left, right, start, False), left, right, start).dtype
