"""Batches of one size of arrays on the host, so that one compiled program serves them all."""

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxinterp.checks import require_at_least


def padded_batches(size: int, *arrays: np.ndarray | Array) -> Iterator[tuple[int, int, tuple[Array, ...]]]:
    """Yield batches on the device; the last one is padded by repeating its rows.

    Args:
        size: rows of a batch, at least 1; fewer rows than that make one smaller batch.
        *arrays: of one length along the first axis, at least one row.

    Yields:
        The batch's first row, its number of rows without the padding, and its part of each array.

    Example:
        >>> for start, real, (x,) in padded_batches(4, np.arange(6)):
        ...     print(start, real, x)
        0 4 [0 1 2 3]
        4 2 [4 5 4 5]
    """
    require_at_least("batch", size, 1)
    count = len(arrays[0])
    size = min(size, count)
    for start in range(0, count, size):
        real = min(size, count - start)
        rows = [array[start : start + real] for array in arrays]
        yield start, real, tuple(jnp.asarray(a if real == size else a[np.arange(size) % real]) for a in rows)
