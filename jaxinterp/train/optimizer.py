"""How the runs of all papers step: the learning rate over time, and the optimizer."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxinterp.recipe.config import Run
from jaxinterp.train import coda_imagenet, cosine_by_epoch, staircase_decay, warmup_cosine

RAMP = ((400, 0.1), (32_000, 1.0), (48_000, 0.1), (64_000, 0.01))  # of 64,000 steps: until when, share of the peak


def ramp(peak: float, total: int) -> optax.Schedule:
    """A tenth of the peak for 1/160 of the steps, the peak until half, a tenth until three quarters, a hundredth.

    Source: "ResNets in TensorFlow 2", the training code that DLGN names (0.01, 0.1, 0.01, 0.001 of 64,000 steps).
    """
    last = RAMP[-1][0]
    boundaries = [round(total * step / last) for step, _ in RAMP[:-1]]
    return optax.join_schedules([optax.constant_schedule(peak * share) for _, share in RAMP], boundaries)


def schedule_of(config: Run, steps: int) -> optax.Schedule:
    """The learning rate as a function of the step, with so many steps in an epoch."""
    schedule = {
        "constant": partial(optax.constant_schedule, config.learning_rate),
        "cosine_by_epoch": partial(
            cosine_by_epoch, config.learning_rate, config.epochs, steps, config.floor, config.warmup_epochs
        ),
        "onecycle": partial(optax.cosine_onecycle_schedule, config.epochs * steps, config.learning_rate),
        "cosine": partial(warmup_cosine, config.learning_rate, config.epochs, steps),
        "ramp": partial(ramp, config.learning_rate, config.epochs * steps),
        "warmup": partial(coda_imagenet, steps, config.learning_rate / 4, config.learning_rate),
        "staircase": partial(staircase_decay, config.learning_rate, 1.5, 30, steps),
    }[config.schedule]()

    def rate(step: Any) -> Any:
        with jax.numpy_dtype_promotion("standard"):  # optax mixes booleans and integers with floats
            return jnp.float32(schedule(jnp.asarray(step, jnp.float32)))

    return rate


def optimizer_of(
    config: Run, schedule: Callable[[Any], Any], fixed: Callable[[str], bool] | None = None
) -> optax.GradientTransformation:
    """Adam, AdamW or SGD, on gradients that are clipped first where the run says so.

    Weight decay (of kernels, or all) is added to gradients, as an L2 penalty of λ/2 ||w||² would; AdamW's is not.

    Args:
        config: with the optimizer and its numbers.
        schedule: the learning rate of a step.
        fixed: tells by a parameter's path, such as body/gating_network/linear_0/kernel, whether it is not trained.
    """
    mask = None if config.decay_all else _matrices
    steps = {
        "adam": partial(optax.adam, schedule, eps=config.epsilon),
        "adamw": partial(optax.adamw, schedule, eps=config.epsilon, weight_decay=config.weight_decay, mask=mask),
        "sgd": partial(optax.sgd, schedule, momentum=config.momentum or None, nesterov=config.nesterov),
    }[config.optimizer]()
    if config.weight_decay and config.optimizer != "adamw":
        steps = optax.chain(optax.add_decayed_weights(config.weight_decay, mask=mask), steps)
    if config.clip:
        steps = optax.chain(optax.clip_by_global_norm(config.clip), steps)
    if fixed is None:
        return steps
    trained = _by_path(lambda path: "fixed" if fixed(path) else "trained")
    return optax.multi_transform({"trained": steps, "fixed": optax.set_to_zero()}, trained)


def _matrices(tree: Any) -> Any:
    """Which parameters multiply values: kernels and factors, not biases, scales or single numbers."""

    def told(keys: Any, leaf: Any) -> bool:
        return leaf.ndim >= 2 and keys[-1].key not in ("b", "bias")

    return jax.tree.map_with_path(told, tree)


def _by_path(tell: Callable[[str], Any]) -> Callable[[Any], Any]:
    """A function of trees that puts at every leaf what its path tells."""

    def told(tree: Any) -> Any:
        return jax.tree.map_with_path(lambda keys, _: tell("/".join(str(key.key) for key in keys)), tree)

    return told
