"""Training: one pure step on any number of devices, checkpoints that survive a kill, logs without gaps."""

from jaxinterp.nn.losses import (
    ClassificationLoss,
    LogitsLoss,
    LossFn,
    classification_loss,
    sigmoid_bce,
    softmax_cross_entropy,
)
from jaxinterp.train.checkpoint import Checkpoints, load_variables
from jaxinterp.train.config import FitResult, TrainConfig
from jaxinterp.train.distributed import initialize
from jaxinterp.train.evaluate import Evaluation, predict
from jaxinterp.train.feed import InMemoryLoader, Loader, Stream, StreamLoader
from jaxinterp.train.loop import fit
from jaxinterp.train.progress import ProgressMeter
from jaxinterp.train.schedules import coda_imagenet, cosine_by_epoch, staircase_decay, warmup_cosine
from jaxinterp.train.state import TrainState, init_state
from jaxinterp.train.step import compile_step, device_mesh, train_step

__all__ = [
    "Checkpoints",
    "ClassificationLoss",
    "Evaluation",
    "FitResult",
    "InMemoryLoader",
    "Loader",
    "LogitsLoss",
    "LossFn",
    "ProgressMeter",
    "Stream",
    "StreamLoader",
    "TrainConfig",
    "TrainState",
    "classification_loss",
    "coda_imagenet",
    "compile_step",
    "cosine_by_epoch",
    "device_mesh",
    "fit",
    "init_state",
    "initialize",
    "load_variables",
    "predict",
    "sigmoid_bce",
    "softmax_cross_entropy",
    "staircase_decay",
    "train_step",
    "warmup_cosine",
]
