"""From memory to batches on the device: order and draws are functions of (seed, epoch, index)."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding
from jaxtyping import Array, Int32, PRNGKeyArray

from jaxinterp.data.augment import Augment
from jaxinterp.data.datasets import Dataset

_ORDER = np.uint32(2**32 - 1)  # folded in where examples fold in their index: no example has this one


def to_device(dataset: Dataset, sharding: Sharding | None = None) -> dict[str, Array]:
    """Put a whole data set on the device(s), as bytes.

    Args:
        dataset: the split, images uint8 (N, H, W, C).
        sharding: None for the default device; a `NamedSharding` replicates the set over its mesh, which may
            span processes (each of them then holds the whole set); any other sharding is used as it is.

    Returns:
        {"image": uint8 (N, H, W, C), "label": int32 (N,)}.
    """
    if sharding is None:
        return {"image": jax.device_put(dataset.images), "label": jax.device_put(dataset.labels)}
    if isinstance(sharding, NamedSharding):
        sharding = NamedSharding(sharding.mesh, PartitionSpec())
    arrays = {"image": dataset.images, "label": dataset.labels}
    return {
        name: jax.make_array_from_callback(array.shape, sharding, array.__getitem__) for name, array in arrays.items()
    }


@partial(jax.jit, static_argnames=("size", "batch_size", "shuffle"))
def epoch_order(
    key: PRNGKeyArray, epoch: int | Int32[Array, ""], size: int, batch_size: int, shuffle: bool = True
) -> Int32[Array, "steps batch"]:
    """The examples of every batch of one epoch, a function of (key, epoch) alone.

    Args:
        key: the run's data key.
        epoch: number of the epoch; may be traced, so that a new epoch does not recompile.
        size: examples in the data set.
        batch_size: examples per batch, at most `size`; the incomplete last batch is dropped.
        shuffle: False gives 0, 1, 2, ...

    Returns:
        int32 (size // batch_size, batch_size), each index at most once.

    Raises:
        ValueError: the batch is empty or larger than the data set.

    >>> epoch_order(jax.random.key(0), 0, size=5, batch_size=2, shuffle=False).tolist()
    [[0, 1], [2, 3]]
    """
    if not 1 <= batch_size <= size:
        raise ValueError(f"batch_size must be between 1 and the {size} examples of the data set, got {batch_size}")
    steps = size // batch_size
    order = jnp.arange(size, dtype=jnp.int32)
    if shuffle:
        order = jax.random.permutation(jax.random.fold_in(jax.random.fold_in(key, epoch), _ORDER), order)
    return order[: steps * batch_size].reshape(steps, batch_size)


def draw_batch(
    data: dict[str, Array],
    order: Int32[Array, "steps batch"],
    step_in_epoch: int | Int32[Array, ""],
    key: PRNGKeyArray,
    epoch: int | Int32[Array, ""],
    augment: Augment,
    maximum: int,
) -> dict[str, Array]:
    """Gather, scale and augment one batch on the device; pure, to be called inside the jitted step.

    Example i of epoch e is augmented with `fold_in(fold_in(key, e), i)`: a function of (seed, epoch, index),
    whatever the batch size, the step or the number of devices.

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
    return {
        "image": jax.vmap(augment)(keys, image),
        "label": jnp.take(data["label"], index, axis=0),
        "index": index,
    }
