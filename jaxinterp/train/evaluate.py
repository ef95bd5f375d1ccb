"""Loss and accuracy of a classifier on a data set, and its logits on images."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int32

from jaxinterp.checks import require
from jaxinterp.data.batches import padded_batches
from jaxinterp.data.datasets import Dataset
from jaxinterp.data.pipeline import to_device
from jaxinterp.nn.losses import Batch, LogitsLoss
from jaxinterp.nn.platform import target, target_of
from jaxinterp.train.step import AXIS


def _logits(
    model: nn.Module | Callable[[Any, Array], Any], variables: Any, images: Float[Array, "batch h w c"]
) -> Float[Array, "batch classes"]:
    logits: Any = model.apply(variables, images) if isinstance(model, nn.Module) else model(variables, images)
    return logits


_apply = jax.jit(_logits, static_argnums=0)


def _program(function: Any, *static: Any) -> Any:
    """Return a jitted function of the rest of its arguments; one of its own if those that are static have no hash."""
    try:
        hash(static)
    except TypeError:
        return partial(jax.jit(partial(function.__wrapped__, *static)))
    return partial(function, *static)


def batch_for(most: int, sizes: Sequence[int]) -> int:
    """Return a number of examples per batch that fits several parts, so that one compiled program measures them all.

    It is that of the smallest part, unless others would then take more than four times as many batches.

    Example:
        >>> batch_for(256, [150, 1000]), batch_for(256, [10, 1000])
        (150, 256)
    """
    least = min([most, *sizes])
    return least if 4 * least >= min(most, max(sizes, default=most)) else most


def laid_out(size: int, batch_size: int, devices: int) -> tuple[int, int]:
    """Return how many batches there are of `size` examples, and of how many, a multiple of the devices.

    Example:
        >>> laid_out(100, 30, 4)
        (4, 32)
    """
    whole = -(-min(batch_size, size) // devices) * devices
    return -(-size // whole), whole


class Evaluation:
    """Loss and accuracy on a data set that lies on the devices, each example counted once."""

    def __init__(
        self, model: nn.Module, loss: LogitsLoss | None, dataset: Dataset, batch_size: int, mesh: Mesh
    ) -> None:
        """Send the data to the devices, over which batches are split (their size is rounded up to a multiple).

        `loss` is a mean over a batch of (logits, labels); None for the accuracy alone.
        """
        size = len(dataset.labels)
        rows, batch_size = laid_out(size, batch_size, mesh.size)
        index = np.arange(rows * batch_size, dtype=np.int32).reshape(rows, batch_size)
        replicated, split = jax.NamedSharding(mesh, jax.P()), jax.NamedSharding(mesh, jax.P(AXIS))
        self._rows, self._size = rows, size
        rows_split = jax.device_put(index, jax.NamedSharding(mesh, jax.P(None, AXIS)))
        data = to_device(dataset, replicated)
        self._inputs = {**data, "index": rows_split, "maximum": jax.device_put(np.float32(dataset.maximum), replicated)}
        names = ("accuracy",) if loss is None else ("accuracy", "loss")
        row, *totals = jax.device_put([np.int32(0), *(np.float32(0) for _ in names)], replicated)
        self._start = row, dict(zip(names, totals, strict=True))
        self._gather: Any = partial(_gathered, split)
        self._add: Any = _program(add_batch, model, loss, split)

    def compile(self, variables: Any) -> "Evaluation":
        """Compile for variables, or for their shapes, dtypes and shardings (`jax.ShapeDtypeStruct`)."""
        row, totals = self._start
        gather = self._gather.func.lower(*self._gather.args, row, self._inputs).compile()
        _, batch = gather(row, self._inputs)
        self._add = self._add.func.lower(*self._add.args, totals, variables, batch).compile()
        self._gather = gather
        return self

    def __call__(self, variables: Any) -> dict[str, float]:
        """Return mean loss (if one was given) and accuracy, in [0, 1], of the given variables."""
        row, totals = self._start
        for _ in range(self._rows):
            row, batch = self._gather(row, self._inputs)
            totals = self._add(totals, variables, batch)
        return {name: float(total) / self._size for name, total in jax.device_get(totals).items()}


@partial(jax.jit, static_argnums=0)
def _gathered(
    split: jax.NamedSharding, row: Int32[Array, ""], inputs: Mapping[str, Array]
) -> tuple[Int32[Array, ""], Batch]:
    """Return the next row, and a row's examples with their mask, split over the devices."""
    size = len(inputs["label"])
    index = jnp.take(inputs["index"], row, axis=0)
    mask = (index < size).astype(jnp.float32)
    index = jnp.minimum(index, size - 1)
    image = jnp.take(inputs["image"], index, axis=0).astype(jnp.float32) / inputs["maximum"]
    batch = {"image": image, "label": jnp.take(inputs["label"], index, axis=0), "mask": mask}
    replicated = jax.NamedSharding(split.mesh, jax.P())
    return lax.with_sharding_constraint((row + 1, batch), (replicated, dict.fromkeys(batch, split)))


@partial(jax.jit, static_argnums=(0, 1, 2))
def add_batch(
    model: nn.Module,
    loss: LogitsLoss | None,
    split: jax.NamedSharding,
    totals: dict[str, Array],
    variables: Any,
    batch: Batch,
) -> dict[str, Array]:
    """Add a batch's accuracy and loss to the totals: one program for all data whose batches have one size.

    Args:
        model: the classifier.
        loss: a mean over a batch of (logits, labels), or None.
        split: places a batch on the devices.
        totals: name → sum over the examples so far.
        variables: of the model.
        batch: image in [0, 1], label, and mask: 1 for an example, 0 for padding.
    """
    label, mask = batch["label"], batch["mask"]
    logits = _logits(model, variables, batch["image"])
    new = {"accuracy": totals["accuracy"] + mask @ (logits.argmax(-1) == label).astype(jnp.float32)}
    if loss is not None:
        each = jax.vmap(lambda logit, one: loss(logit[None], one[None]))(logits, label)
        new["loss"] = totals["loss"] + mask @ each.astype(jnp.float32)
    return lax.with_sharding_constraint(new, jax.NamedSharding(split.mesh, jax.P()))


Evaluations = Mapping[str, Evaluation | None]


def measure(evaluations: Evaluations, variables: Any) -> dict[str, float]:
    """Return `{"<part>_loss": ..., "<part>_accuracy": ...}` of every part that there is."""
    present = {part: evaluation(variables) for part, evaluation in evaluations.items() if evaluation is not None}
    return {f"{part}_{name}": value for part, metrics in present.items() for name, value in metrics.items()}


def predict(
    model: nn.Module | Callable[[Any, Array], Any],
    variables: Mapping[str, Any],
    images: np.ndarray | Array,
    batch_size: int = 256,
) -> np.ndarray:
    """Compute logits of images, batch by batch; the last batch is padded, so that one compilation serves them all.

    Args:
        model: Called as `model.apply(variables, images)`; or a function, called as `model(variables, images)`.
        variables: `{"params": ..., "batch_stats": ...}`.
        images: Float (N, H, W, C) in [0, 1], at least one.
        batch_size: Images per batch, at least 1.

    Returns:
        Logits (N, classes), in the model's dtype.
    """
    fits = images.ndim == 4 and len(images) and jnp.issubdtype(images.dtype, jnp.floating)
    require(fits, "images", f"{images.dtype} {images.shape}", "floats (N > 0, H, W, C) in [0, 1]")
    batches, apply = padded_batches(batch_size, images), _program(_apply, model)
    with target(target_of(variables)):
        return np.concatenate([np.asarray(apply(dict(variables), x))[:real] for _, real, (x,) in batches])
