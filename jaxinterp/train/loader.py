"""Loaders: a data set in the devices' memory, or a stream that is sent to them one batch ahead."""

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int32, PRNGKeyArray

from jaxinterp.data.augment import Augment
from jaxinterp.data.datasets import Dataset
from jaxinterp.data.pipeline import draw_batch, epoch_order, to_device
from jaxinterp.data.stream import Stream
from jaxinterp.nn.losses import Batch
from jaxinterp.train.step import AXIS, Mode, SampleBatch


def sampling(steps: int, augment: Augment, maximum: int | float) -> SampleBatch:
    """Return what gathers and augments the batch of a step, with `steps` in an epoch, from a data set on the devices.

    Its inputs are {"data": what `to_device` returns, "order": what `epoch_order` returns}.
    """

    def sample_batch(inputs: Any, step: Int32[Array, ""], key: PRNGKeyArray) -> Batch:
        epoch, row = jnp.divmod(step, jnp.int32(steps))
        return draw_batch(inputs["data"], inputs["order"], row, key, epoch, augment, maximum)

    return sample_batch


def scaling(steps: int, augment: Augment, maximum: int | float) -> SampleBatch:
    """Return what scales and augments a streamed batch: {"image": integers up to `maximum`, "label", "index"}."""

    def sample_batch(inputs: Any, step: Int32[Array, ""], key: PRNGKeyArray) -> Batch:
        key = jax.random.fold_in(key, step // jnp.int32(steps))
        keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(inputs["index"])
        image = inputs["image"].astype(jnp.float32) / maximum
        return {**inputs, "image": jax.vmap(augment)(keys, image)}

    return sample_batch


class InMemoryLoader:
    """A data set in the devices' memory: order, gathering and augmentation happen there, nothing is copied per step."""

    def __init__(
        self, dataset: Dataset, augment: Augment, batch_size: int, key: PRNGKeyArray, mesh: Mesh, mode: Mode
    ) -> None:
        """Send the data set to the devices; `batch_size` is over all of them, and the run's key replicated."""
        self.steps = len(dataset.labels) // batch_size
        self.axes = {"data": None, "order": 1}
        self.sample_batch = sampling(self.steps, augment, dataset.maximum)
        self._replicated = jax.NamedSharding(mesh, jax.P())
        self._data, self._key = to_device(dataset, self._replicated), key

        def order(key: PRNGKeyArray, number: Int32[Array, ""]) -> Int32[Array, "steps ..."]:
            key = jax.random.fold_in(key, 0)  # the key that compile_step hands to sample_batch
            rows = epoch_order(key, number, len(dataset.labels), batch_size)
            return rows.reshape(self.steps, mesh.size, -1) if mode == "pmap" else rows

        self._order = jax.jit(order, out_shardings=jax.NamedSharding(mesh, jax.P(None, AXIS)))

    def epoch(self, number: int, start: int) -> Iterator[Any]:
        """Yield the inputs of every step of an epoch, always the same: the data, and the order of the epoch."""
        order = self._order(self._key, jax.device_put(np.int32(number), self._replicated))
        for _ in range(start, self.steps):
            yield {"data": self._data, "order": order}


class StreamLoader:
    """A `Stream` whose next batch travels to the devices while they work on the present one."""

    def __init__(self, stream: Stream, augment: Augment, mesh: Mesh, mode: Mode) -> None:
        """Wrap a stream."""
        self.steps, self.axes = stream.steps, 0
        self.sample_batch = scaling(self.steps, augment, stream.maximum)
        self._stream = stream
        self._sharding = jax.NamedSharding(mesh, jax.P(AXIS))
        self._axes = (len(mesh.local_devices), -1) if mode == "pmap" else (-1,)

    def _send(self, batch: Mapping[str, np.ndarray]) -> dict[str, Array]:
        leaves = {k: batch[k].reshape(*self._axes, *batch[k].shape[1:]) for k in ("image", "label", "index")}
        return {k: jax.make_array_from_process_local_data(self._sharding, leaf) for k, leaf in leaves.items()}

    def epoch(self, number: int, start: int) -> Iterator[Any]:
        """Yield the batches of an epoch, the next one always under way."""
        ahead = None
        for batch in islice(self._stream.batches(number), start, self.steps):
            present, ahead = ahead, self._send(batch)
            if present is not None:
                yield present
        if ahead is not None:
            yield ahead


Loader = InMemoryLoader | StreamLoader
"""A source of a step's inputs: `steps` per epoch, `axes` of the inputs under `pmap`, `sample_batch` and `epoch`."""
