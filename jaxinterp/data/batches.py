"""A host's array cut into batches of one size, so that one compiled program serves them all."""

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array


def padded_batches(size: int, *arrays: np.ndarray | Array) -> Iterator[tuple[int, int, tuple[Array, ...]]]:
    """Batches on the device; the last is filled up with its own rows again.

    Args:
        size: rows of a batch; of fewer rows in all, one batch is made of these.
        *arrays: of one length along the first axis, at least one row.

    Yields:
        Where the batch starts, how many of its rows are not repetitions, and that part of each array.

    Raises:
        ValueError: `size` is less than 1.

    Example:
        >>> for start, real, (x,) in padded_batches(4, np.arange(6)):
        ...     print(start, real, x)
        0 4 [0 1 2 3]
        4 2 [4 5 4 5]
    """
    if size < 1:
        raise ValueError(f"batch: got {size}, expected at least 1")
    count = len(arrays[0])
    size = min(size, count)
    for start in range(0, count, size):
        real = min(size, count - start)
        rows = [array[start : start + real] for array in arrays]
        yield start, real, tuple(jnp.asarray(a if real == size else a[np.arange(size) % real]) for a in rows)
