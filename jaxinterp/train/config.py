"""How to train and what comes back; what is refused before it starts, and what a continuation must share."""

import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import flax.linen as nn
import numpy as np

from jaxinterp.data.datasets import Dataset
from jaxinterp.data.stream import Stream
from jaxinterp.errors import ConfigError
from jaxinterp.train.state import TrainState
from jaxinterp.train.step import Mode


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Attributes:
        epochs: Epochs, at least 1.
        batch_size: Examples per step, over all devices and micro-batches.
        seed: Seed of everything random.
        accumulate: Micro-batches per step.
        mode: How the step is compiled.
        validation: Part of the training data held out to choose the best epoch, in [0, 1); 0 for none.
        eval_every: Epochs between two evaluations on the held-out part (the last epoch is always evaluated).
        checkpoint_every: Epochs between two checkpoints (the last epoch is always saved).
        keep: How many of the last checkpoints to keep.
        eval_batch: Examples per batch of an evaluation.
        watch_test: Look at the test part after every epoch too, for papers that print the highest of these numbers;
            nothing is chosen by it.
    """

    epochs: int
    batch_size: int
    seed: int = 0
    accumulate: int = 1
    mode: Mode = "jit"
    validation: float = 0.1
    eval_every: int = 1
    checkpoint_every: int = 1
    keep: int = 2
    eval_batch: int = 256
    watch_test: bool = False


@dataclass(frozen=True)
class FitResult:
    """What `fit` returns.

    Attributes:
        state: The state at the end.
        best: Variables of the epoch that was best on the validation part; None without such a part.
        history: One record per finished epoch, as in metrics.jsonl.
        summary: `{"last": {...}, "best": {...}}`, each with `epoch`, `step` and, where there are such parts,
            `val_accuracy`, `val_loss`, `test_accuracy`, `test_loss`; with `watch_test` also `{"highest": {...}}`, the
            epoch of the highest test accuracy, which is chosen on the test part. Empty if the run was interrupted.
        interrupted: Name of the signal that stopped the run before its end; None where none did.
    """

    state: TrainState
    best: dict[str, Any] | None
    history: list[dict[str, Any]]
    summary: dict[str, dict[str, Any]]
    interrupted: str | None


def check(config: TrainConfig, size: int | None, devices: int) -> None:
    """Refuse what could not be trained, before anything starts."""
    for name in ("epochs", "batch_size", "accumulate", "eval_every", "checkpoint_every", "keep", "eval_batch"):
        if getattr(config, name) < 1:
            raise ConfigError(f"{name} must be at least 1, got {getattr(config, name)}")
    if not 0 <= config.validation < 1:
        raise ConfigError(f"validation must be in [0, 1), got {config.validation}")
    if config.mode not in ("jit", "pmap"):
        raise ConfigError(f"mode must be 'jit' or 'pmap', got {config.mode!r}")
    if config.batch_size % (devices * config.accumulate):
        raise ConfigError(
            f"batch_size={config.batch_size} does not divide evenly by {devices} devices x "
            f"accumulate={config.accumulate}; use a multiple of {devices * config.accumulate}"
        )
    if size is not None and config.batch_size > size:
        raise ConfigError(f"batch_size={config.batch_size} is more than the {size} training examples")
    check_steps(config.epochs, 1 if size is None else size // config.batch_size)


def check_steps(epochs: int, steps: int) -> None:
    """Refuse more steps than are counted: the state's step is an int32."""
    if epochs * steps >= 2**31:
        raise ConfigError(f"epochs: got {epochs} of {steps} steps each, expected fewer than 2**31 steps in all")


def describe(train: Dataset | Stream, model: nn.Module, config: TrainConfig) -> dict[str, Any]:
    """What must not change between a run and its continuation, as JSON values."""
    data: dict[str, Any] = {"name": train.name}
    if isinstance(train, Dataset):
        data |= {"shape": list(train.images.shape), "maximum": train.maximum}
        data["crc32"] = [zlib.crc32(np.ascontiguousarray(array)) for array in (train.images, train.labels)]
    same = ("epochs", "batch_size", "seed", "accumulate", "validation")
    return {
        "model": re.sub(r" at 0x[0-9a-f]+", "", repr(model)),
        "data": data,
        **{name: value for name, value in asdict(config).items() if name in same},
    }


def best_record(history: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The first of the epochs with the highest validation accuracy."""
    return max(
        (record for record in history if "val_accuracy" in record), key=lambda r: r["val_accuracy"], default=None
    )
