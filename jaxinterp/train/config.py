"""Training configuration, its checks, and the fingerprint that a resumed run must match."""

import re
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Ge, Lt

from jaxinterp.checks import Checked, require
from jaxinterp.data.datasets import Dataset
from jaxinterp.data.stream import Stream
from jaxinterp.train.step import Mode

Positive = Annotated[int, Ge(1)]


@dataclass(frozen=True)
class TrainConfig(Checked):
    """Training configuration.

    Attributes:
        epochs: Epochs.
        batch_size: Examples per step, over all devices and micro-batches.
        seed: Seed of everything random; JAX keeps 32 bits, and a larger one would alias another.
        grad_accum_steps: Micro-batches per step.
        dtype: Type of the large products in training; measures and explanations run in float32.
        mode: How the step is compiled.
        val_fraction: Part of the training data held out to choose the best epoch; 0 for none.
        eval_every: Epochs between two evaluations on the held-out part (the last epoch is always evaluated).
        checkpoint_every: Epochs between two checkpoints (the best and the last epoch are always saved).
        keep: How many of the last checkpoints to keep, beside the best one.
        eval_batch: Examples per batch of an evaluation.
        eval_test_each_epoch: Evaluate on the test part after every epoch too; nothing is chosen by it.
    """

    epochs: Positive
    batch_size: Positive
    seed: Annotated[int, Ge(0), Lt(2**32)] = 0
    grad_accum_steps: Positive = 1
    dtype: Literal["float32", "bfloat16"] = "float32"
    mode: Mode = "jit"
    val_fraction: Annotated[float, Ge(0), Lt(1)] = 0.1
    eval_every: Positive = 1
    checkpoint_every: Positive = 1
    keep: Positive = 2
    eval_batch: Positive = 256
    eval_test_each_epoch: bool = False


def check_batches(config: TrainConfig, devices: int, steps_per_epoch: int) -> None:
    """Raise ConfigError unless an epoch has a batch, which splits over the devices, and an int32 counts all steps."""
    size, parts = config.batch_size, devices * config.grad_accum_steps
    even = f"a multiple of {parts} ({devices} devices x grad_accum_steps={config.grad_accum_steps})"
    require(size % parts == 0, "batch_size", size, even)
    require(steps_per_epoch >= 1, "batch_size", size, "at most the number of training images")
    steps = f"fewer than 2**31 steps in all, of {steps_per_epoch} per epoch"
    require(config.epochs * steps_per_epoch < 2**31, "epochs", config.epochs, steps)


def check_outputs(model: nn.Module, image_shape: Sequence[int], *parts: Dataset | Stream | None) -> None:
    """Raise ConfigError unless a model has as many outputs as each data set has classes; a stream does not tell."""
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    output, _ = jax.eval_shape(model.init_with_output, jax.eval_shape(jax.random.key, 0), image)
    got = f"outputs ({', '.join(['batch', *map(str, output.shape[1:])])})" if hasattr(output, "shape") else "no array"
    for part in parts:
        if isinstance(part, Dataset):
            wanted = f"(batch, {len(part.classes)}), one for each class of {part.name} ({part.split})"
            require(getattr(output, "shape", None) == (1, len(part.classes)), "model", got, wanted)


def describe(train: Dataset | Stream, model: nn.Module, config: TrainConfig) -> dict[str, Any]:
    """Return, as JSON values, what must not change between a run and its continuation; it may have more epochs."""
    data: dict[str, Any] = {"name": train.name}
    if isinstance(train, Dataset):
        data |= {"shape": list(train.images.shape), "maximum": train.maximum}
        data["crc32"] = [zlib.crc32(np.ascontiguousarray(array)) for array in (train.images, train.labels)]
    elif "listing" in train.provenance:
        data["listing"] = train.provenance["listing"]
    same = ("batch_size", "seed", "grad_accum_steps", "val_fraction")
    return {
        "model": re.sub(r" at 0x[0-9a-f]+", "", repr(model)),
        "data": data,
        **{name: value for name, value in asdict(config).items() if name in same},
    }
