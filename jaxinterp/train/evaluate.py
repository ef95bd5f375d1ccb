"""Loss and accuracy of a classifier on a data set, and its logits on images."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from jaxinterp.checks import require
from jaxinterp.data.batches import padded_batches
from jaxinterp.data.datasets import Dataset
from jaxinterp.data.pipeline import to_device
from jaxinterp.nn.losses import LogitsLoss
from jaxinterp.train.step import AXIS


@partial(jax.jit, static_argnums=0)
def _apply(
    model: nn.Module | Callable[[Any, Array], Any], variables: Any, images: Float[Array, "batch h w c"]
) -> Float[Array, "batch classes"]:
    logits: Any = model.apply(variables, images) if isinstance(model, nn.Module) else model(variables, images)
    return logits


def laid_out(size: int, batch_size: int, devices: int) -> tuple[int, int]:
    """Return how many batches there are of `size` examples, and of how many, a multiple of the devices.

    Example:
        >>> laid_out(100, 30, 4)
        (4, 32)
    """
    whole = -(-min(batch_size, size) // devices) * devices
    return -(-size // whole), whole


def counting(
    model: nn.Module, loss: LogitsLoss | None, size: int, maximum: int | float, mesh: Mesh
) -> Callable[[dict[str, Array], Any, Any], dict[str, Array]]:
    """Return what adds a batch to the totals: (totals, variables, inputs) ↦ totals.

    Args:
        model: the classifier.
        loss: a mean over a batch of (logits, labels), or None.
        size: examples of the data set; a row of indices beyond it is padded.
        maximum: pixel value that becomes 1.
        mesh: devices over which a batch is split.
    """

    def add(totals: dict[str, Array], variables: Any, inputs: Any) -> dict[str, Array]:
        index = jnp.take(inputs["index"], totals["row"], axis=0)
        mask = (index < size).astype(jnp.float32)
        index = jnp.minimum(index, size - 1)
        image = jnp.take(inputs["data"]["image"], index, axis=0).astype(jnp.float32) / maximum
        label = jnp.take(inputs["data"]["label"], index, axis=0)
        image, label = lax.with_sharding_constraint((image, label), jax.NamedSharding(mesh, jax.P(AXIS)))
        logits = _apply(model, variables, image)
        new = {"row": totals["row"] + 1}
        new["accuracy"] = totals["accuracy"] + mask @ (logits.argmax(-1) == label).astype(jnp.float32)
        if loss is not None:
            each = jax.vmap(lambda logit, one: loss(logit[None], one[None]))(logits, label)
            new["loss"] = totals["loss"] + mask @ each.astype(jnp.float32)
        return new

    return add


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
        replicated = jax.NamedSharding(mesh, jax.P())
        self._rows, self._size = rows, size
        rows_split = jax.device_put(index, jax.NamedSharding(mesh, jax.P(None, AXIS)))
        self._inputs = {"data": to_device(dataset, replicated), "index": rows_split}
        totals = {"row": np.int32(0), "accuracy": np.float32(0)} | ({} if loss is None else {"loss": np.float32(0)})
        self._totals = jax.device_put(totals, replicated)

        add = counting(model, loss, size, dataset.maximum, mesh)
        self._add: Any = jax.jit(add, out_shardings=replicated)

    def compile(self, variables: Any) -> "Evaluation":
        """Compile for variables, or for their shapes, dtypes and shardings (`jax.ShapeDtypeStruct`)."""
        self._add = self._add.lower(self._totals, variables, self._inputs).compile()
        return self

    def __call__(self, variables: Any) -> dict[str, float]:
        """Return mean loss (if one was given) and accuracy, in [0, 1], of the given variables."""
        totals = self._totals
        for _ in range(self._rows):
            totals = self._add(totals, variables, self._inputs)
        return {name: float(total) / self._size for name, total in jax.device_get(totals).items() if name != "row"}


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
    batches = padded_batches(batch_size, images)
    return np.concatenate([np.asarray(_apply(model, dict(variables), x))[:real] for _, real, (x,) in batches])
