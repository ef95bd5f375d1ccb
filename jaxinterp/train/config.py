"""Training configuration, its checks, and the fingerprint that a resumed run must match."""

import re
import zlib
from dataclasses import asdict, dataclass
from typing import Any

import flax.linen as nn
import numpy as np

from jaxinterp.checks import require, require_at_least, require_one_of
from jaxinterp.data.datasets import Dataset
from jaxinterp.train.loader import Stream
from jaxinterp.train.step import Mode


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Attributes:
        epochs: Epochs, at least 1.
        batch_size: Examples per step, over all devices and micro-batches.
        seed: Seed of everything random.
        grad_accum_steps: Micro-batches per step.
        mode: How the step is compiled.
        val_fraction: Part of the training data held out to choose the best epoch, in [0, 1); 0 for none.
        eval_every: Epochs between two evaluations on the held-out part (the last epoch is always evaluated).
        checkpoint_every: Epochs between two checkpoints (the best and the last epoch are always saved).
        keep: How many of the last checkpoints to keep, beside the best one.
        eval_batch: Examples per batch of an evaluation.
        eval_test_each_epoch: Evaluate on the test part after every epoch too, for papers that print the highest of
            these numbers; nothing is chosen by it.
    """

    epochs: int
    batch_size: int
    seed: int = 0
    grad_accum_steps: int = 1
    mode: Mode = "jit"
    val_fraction: float = 0.1
    eval_every: int = 1
    checkpoint_every: int = 1
    keep: int = 2
    eval_batch: int = 256
    eval_test_each_epoch: bool = False

    def __post_init__(self) -> None:
        positive = "epochs", "batch_size", "grad_accum_steps", "eval_every", "checkpoint_every", "keep", "eval_batch"
        for name in positive:
            require_at_least(name, getattr(self, name), 1)
        require(0 <= self.val_fraction < 1, "val_fraction", self.val_fraction, "a share in [0, 1)")
        require_one_of("mode", self.mode, ("jit", "pmap"))


def check_batches(config: TrainConfig, devices: int, steps_per_epoch: int) -> None:
    """Check that batches can be split over devices, and steps be counted.

    Raises:
        ConfigError: The batch size is no multiple of devices x micro-batches, there are fewer training images than a
            batch has, or more steps than an int32 counts.
    """
    size, parts = config.batch_size, devices * config.grad_accum_steps
    even = f"a multiple of {parts} ({devices} devices x grad_accum_steps={config.grad_accum_steps})"
    require(size % parts == 0, "batch_size", size, even)
    require(steps_per_epoch >= 1, "batch_size", size, "at most the number of training images")
    steps = f"fewer than 2**31 steps in all, of {steps_per_epoch} per epoch"
    require(config.epochs * steps_per_epoch < 2**31, "epochs", config.epochs, steps)


def describe(train: Dataset | Stream, model: nn.Module, config: TrainConfig) -> dict[str, Any]:
    """Return, as JSON values, what must not change between a run and its continuation."""
    data: dict[str, Any] = {"name": train.name}
    if isinstance(train, Dataset):
        data |= {"shape": list(train.images.shape), "maximum": train.maximum}
        data["crc32"] = [zlib.crc32(np.ascontiguousarray(array)) for array in (train.images, train.labels)]
    same = ("epochs", "batch_size", "seed", "grad_accum_steps", "val_fraction")
    return {
        "model": re.sub(r" at 0x[0-9a-f]+", "", repr(model)),
        "data": data,
        **{name: value for name, value in asdict(config).items() if name in same},
    }
