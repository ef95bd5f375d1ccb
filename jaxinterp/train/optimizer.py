"""Learning-rate schedules of the papers, as functions of the step (counted from 0), and optimizers, from optax."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxinterp.checks import require, require_one_of

RAMP = ((400, 0.1), (32_000, 1.0), (48_000, 0.1), (64_000, 0.01))  # (until step, share of the peak), of 64,000 steps


def ramp(peak: float, total: int) -> optax.Schedule:
    """Ramp up from a tenth of the peak after 1/160 of the steps, then down to a tenth at 1/2 and a hundredth at 3/4.

    Source: "ResNets in TensorFlow 2", the training code that DLGN names (0.01, 0.1, 0.01, 0.001 of 64,000 steps).
    """
    last = RAMP[-1][0]
    boundaries = [round(total * step / last) for step, _ in RAMP[:-1]]
    return optax.join_schedules([optax.constant_schedule(peak * share) for _, share in RAMP], boundaries)


def coda_imagenet(steps_per_epoch: int, start: float = 2.5e-4, peak: float = 1e-3) -> optax.Schedule:
    """Warm up by epochs, then halve every 20 epochs: CoDA Nets on 100 ImageNet classes.

    The rate of epoch e is `start + (peak - start) e / 14` for e < 15, then `peak / 2 ** floor(e / 20)`; it changes
    once per epoch. (Böhle et al., CVPR 2021, training code: 2.5e-4 to 1e-3, 1e-3 up to epoch 19, 5e-4 up to 39, ...)

    >>> schedule = coda_imagenet(steps_per_epoch=10)
    >>> [f"{schedule(epoch * 10 + 9):.3e}" for epoch in (0, 14, 19, 20, 40)]
    ['2.500e-04', '1.000e-03', '1.000e-03', '5.000e-04', '2.500e-04']
    """
    halving = optax.exponential_decay(peak, 20, 0.5, staircase=True)
    by_epoch = optax.join_schedules([optax.linear_schedule(start, peak, 14), lambda epoch: halving(epoch + 15)], [15])
    return lambda step: by_epoch(step // steps_per_epoch)


def cosine_by_epoch(
    peak: float, epochs: int, steps_per_epoch: int, end_lr: float = 1e-5, warmup_epochs: int = 0, start: float = 1e-4
) -> optax.Schedule:
    """Follow half a cosine by epochs: in epoch e, `end_lr + (peak - end_lr) (1 + cos(pi e / epochs)) / 2`.

    In the first `warmup_epochs`, fewer than `epochs`, it is `start + (peak - start) e / warmup_epochs` instead (timm's
    schedule, as Coded ResNeXt uses it on ImageNet; arXiv 2202.05343, App. B and training code).

    >>> schedule = cosine_by_epoch(0.1, epochs=300, steps_per_epoch=10)
    >>> [f"{schedule(step):.3e}" for step in (0, 9, 1500, 2999)]
    ['1.000e-01', '1.000e-01', '5.000e-02', '1.274e-05']
    """
    require(0 <= warmup_epochs < epochs, "warmup_epochs", warmup_epochs, f"a number in [0, {epochs}), the epochs")
    cosine = optax.cosine_decay_schedule(peak, epochs, end_lr / peak)
    rising = optax.linear_schedule(start, peak, max(1, warmup_epochs))

    def by_epoch(step: Any) -> Any:
        epoch = step // steps_per_epoch
        return jnp.where(epoch < warmup_epochs, rising(epoch), cosine(epoch))

    return by_epoch


def make_schedule(
    name: str, *, learning_rate: float, epochs: int, steps_per_epoch: int, end_lr: float = 0.0, warmup_epochs: int = 0
) -> optax.Schedule:
    """Make a learning-rate schedule by its name.

    Args:
        name: `constant`; `staircase`, divided by 1.5 every 30 epochs (CoDA Nets on CIFAR-10; Böhle et al., CVPR 2021,
            training code); `warmup`, `coda_imagenet` from a quarter of the peak; `ramp` (DLGN); `cosine`, half a
            cosine down to 0; `cosine_by_epoch`; or `onecycle`, up for three tenths of the run, then down.
        learning_rate: Peak rate.
        epochs: Epochs of the run.
        steps_per_epoch: Steps per epoch.
        end_lr: Last rate of `cosine_by_epoch`.
        warmup_epochs: Epochs in which `cosine_by_epoch` rises from 1e-4.

    Returns:
        A schedule that computes in float32, under strict type promotion too.
    """
    total = epochs * steps_per_epoch
    schedules = {
        "constant": partial(optax.constant_schedule, learning_rate),
        "cosine": partial(optax.warmup_cosine_decay_schedule, learning_rate, learning_rate, 0, total),
        "cosine_by_epoch": partial(cosine_by_epoch, learning_rate, epochs, steps_per_epoch, end_lr, warmup_epochs),
        "onecycle": partial(optax.cosine_onecycle_schedule, total, learning_rate),
        "ramp": partial(ramp, learning_rate, total),
        "staircase": partial(optax.exponential_decay, learning_rate, 30 * steps_per_epoch, 1 / 1.5, staircase=True),
        "warmup": partial(coda_imagenet, steps_per_epoch, learning_rate / 4, learning_rate),
    }
    require_one_of("schedule", name, schedules)
    schedule = schedules[name]()

    def rate(step: Any) -> Any:
        with jax.numpy_dtype_promotion("standard"):  # optax mixes booleans and integers with floats
            return jnp.float32(schedule(jnp.asarray(step, jnp.float32)))

    return rate


def make_optimizer(
    name: str,
    schedule: optax.Schedule,
    *,
    epsilon: float = 1e-8,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    decay_all: bool = False,
    clip: float = 0.0,
    frozen: Callable[[str], bool] | None = None,
) -> optax.GradientTransformation:
    """Make Adam, AdamW or SGD, with weight decay and clipped gradients.

    Weight decay is added to gradients, as an L2 penalty of λ/2 ||w||² would; AdamW's is decoupled from them.

    Args:
        name: `adam`, `adamw` or `sgd`.
        schedule: The learning rate of a step.
        epsilon: Adam's ε.
        momentum: SGD's momentum; 0 for none.
        nesterov: Use Nesterov's form of it.
        weight_decay: λ; 0 for none.
        decay_all: Decay all parameters, not only those of two axes or more that are no biases.
        clip: Largest norm of the gradient of all parameters together; 0 for none.
        frozen: Whether a parameter is not trained, by its path, such as body/gating_network/linear_0/kernel.
    """
    mask = None if decay_all else _kernels
    optimizers = {
        "adam": partial(optax.adam, schedule, eps=epsilon),
        "adamw": partial(optax.adamw, schedule, eps=epsilon, weight_decay=weight_decay, mask=mask),
        "sgd": partial(optax.sgd, schedule, momentum=momentum or None, nesterov=nesterov),
    }
    require_one_of("optimizer", name, optimizers)
    tx = optimizers[name]()
    if weight_decay and name != "adamw":
        tx = optax.chain(optax.add_decayed_weights(weight_decay, mask=mask), tx)
    if clip:
        tx = optax.chain(optax.clip_by_global_norm(clip), tx)
    if frozen is None:
        return tx

    def label(keys: Any, _: Any) -> str:
        return "frozen" if frozen("/".join(str(key.key) for key in keys)) else "trained"

    labels = partial(jax.tree.map_with_path, label)
    return optax.multi_transform({"trained": tx, "frozen": optax.set_to_zero()}, labels)


def _kernels(tree: Any) -> Any:
    """Mark the parameters that multiply values: kernels and factors, not biases, scales or single numbers."""
    return jax.tree.map_with_path(lambda keys, leaf: leaf.ndim >= 2 and keys[-1].key not in ("b", "bias"), tree)
