"""Training: one pure step on any number of devices, checkpoints that survive a kill, logs without gaps.

`jaxinterp.train(run)` trains a `jaxinterp.Run`, or all runs of `run.sweep(...)`; see `jaxinterp.train_runs`.
"""

import sys
from types import ModuleType
from typing import Any

from jaxinterp.lazy import public
from jaxinterp.nn.losses import ClassificationLoss, sigmoid_bce, softmax_cross_entropy
from jaxinterp.train.checkpoint import Checkpoints, load_variables
from jaxinterp.train.closed_form import fit_closed_form
from jaxinterp.train.config import TrainConfig
from jaxinterp.train.distributed import initialize
from jaxinterp.train.evaluate import Evaluation, predict
from jaxinterp.train.loop import fit
from jaxinterp.train.optimizer import coda_imagenet, cosine_by_epoch, make_optimizer, make_schedule
from jaxinterp.train.progress import ProgressMeter
from jaxinterp.train.result import FitResult
from jaxinterp.train.step import TrainState, compile_step, device_mesh, init_state, train_step

__all__ = [
    "Checkpoints",
    "ClassificationLoss",
    "Evaluation",
    "FitResult",
    "ProgressMeter",
    "TrainConfig",
    "TrainState",
    "coda_imagenet",
    "compile_step",
    "cosine_by_epoch",
    "device_mesh",
    "fit",
    "fit_closed_form",
    "init_state",
    "initialize",
    "load_variables",
    "make_optimizer",
    "make_schedule",
    "predict",
    "sigmoid_bce",
    "softmax_cross_entropy",
    "train_step",
]


class _Training(ModuleType):
    """The module, which can be called: `jaxinterp.train(run)`."""

    def __call__(self, run: Any, run_dir: Any = None, **options: Any) -> Any:
        """Train a run, or all runs of a sweep: see `jaxinterp.train_runs`."""
        import jaxinterp

        return jaxinterp.train_runs(run, run_dir, **options)


__dir__ = public(__all__)
sys.modules[__name__].__class__ = _Training
