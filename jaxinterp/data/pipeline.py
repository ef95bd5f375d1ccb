"""From memory to batches on the device: order and draws are functions of (seed, epoch, index)."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding
from jaxtyping import Array, Int32, PRNGKeyArray

from jaxinterp.checks import require
from jaxinterp.data.augment import Augment
from jaxinterp.data.datasets import Dataset

_ORDER = np.uint32(2**32 - 1)  # folded in where examples fold in their index: no example has this one


def to_device(dataset: Dataset, sharding: Sharding | None = None) -> dict[str, Array]:
    """Put a data set on the device(s): {"image": (N, H, W, C) in its own type, "label": int32 (N,)}.

    Args:
        dataset: the split.
        sharding: a replicated one, whose mesh may span processes that each hold the data set; default one device.
    """
    arrays = {"image": dataset.images, "label": dataset.labels}
    if sharding is None:
        return jax.device_put(arrays)
    return {k: jax.make_array_from_callback(array.shape, sharding, array.__getitem__) for k, array in arrays.items()}


@partial(jax.jit, static_argnames=("size", "batch_size"))
def epoch_order(
    key: PRNGKeyArray, epoch: int | Int32[Array, ""], size: int, batch_size: int
) -> Int32[Array, "steps batch"]:
    """Draw the examples of every batch of one epoch, a function of (key, epoch) alone.

    Args:
        key: the run's data key.
        epoch: number of the epoch; may be traced, so that a new epoch does not recompile.
        size: examples in the data set.
        batch_size: examples per batch, from 1 to `size`; the incomplete last batch is dropped.

    Returns:
        int32 (size // batch_size, batch_size), each index at most once.

    >>> epoch_order(jax.random.key(0), 0, size=5, batch_size=2).shape
    (2, 2)
    """
    require(1 <= batch_size <= size, "batch_size", batch_size, f"between 1 and the {size} examples of the data set")
    steps = size // batch_size
    key = jax.random.fold_in(jax.random.fold_in(key, epoch), _ORDER)
    order = jax.random.permutation(key, jnp.arange(size, dtype=jnp.int32))
    return order[: steps * batch_size].reshape(steps, batch_size)


def draw_batch(
    data: dict[str, Array],
    order: Int32[Array, "steps batch"],
    step_in_epoch: int | Int32[Array, ""],
    key: PRNGKeyArray,
    epoch: int | Int32[Array, ""],
    augment: Augment,
    maximum: int | float,
) -> dict[str, Array]:
    """Gather, scale and augment one batch on the device; pure, to be called inside the jitted step.

    Example i of epoch e is augmented with `fold_in(fold_in(key, e), i)`: a function of (seed, epoch, index) alone.

    Args:
        data: what `to_device` returned.
        order: what `epoch_order` returned.
        step_in_epoch: row of `order`; may be traced.
        key: the run's data key.
        epoch: number of the epoch; may be traced.
        augment: (key, float32 (H, W, C) in [0, 1]) -> the same; vmapped here.
        maximum: pixel value that becomes 1 (`Dataset.maximum`).

    Returns:
        {"image": float32 (B, H, W, C) in [0, 1], "label": int32 (B,), "index": int32 (B,)}.
    """
    index = jnp.take(order, step_in_epoch, axis=0)
    epoch_key = jax.random.fold_in(key, epoch)
    keys = jax.vmap(lambda i: jax.random.fold_in(epoch_key, i))(index)
    image = jnp.take(data["image"], index, axis=0).astype(jnp.float32) / maximum
    return {"image": jax.vmap(augment)(keys, image), "label": jnp.take(data["label"], index, axis=0), "index": index}
