"""Learning-rate schedules of the papers, as functions of the step, from optax."""

from typing import Any

import jax.numpy as jnp
import optax


def staircase_decay(init_value: float, factor: float, every_epochs: int, steps_per_epoch: int) -> optax.Schedule:
    """Divide the rate by a factor every so many epochs: `init_value * factor ** -floor(epoch / every_epochs)`.

    CoDA Nets on CIFAR-10: `staircase_decay(2.5e-4, 1.5, 30, steps)` (Böhle et al., CVPR 2021, training code).

    Args:
        init_value: Rate of the first epochs.
        factor: > 1 to decay.
        every_epochs: Length of a stair, in epochs.
        steps_per_epoch: Steps per epoch.

    Returns:
        A schedule of the step, counted from 0.

    >>> schedule = staircase_decay(2.5e-4, 1.5, 30, steps_per_epoch=10)
    >>> [f"{schedule(step):.3e}" for step in (0, 299, 300, 1999)]
    ['2.500e-04', '2.500e-04', '1.667e-04', '2.195e-05']
    """
    return optax.exponential_decay(init_value, every_epochs * steps_per_epoch, 1 / factor, staircase=True)


def coda_imagenet(
    steps_per_epoch: int, start: float = 2.5e-4, peak: float = 1e-3, warmup_epochs: int = 15, halve_epochs: int = 20
) -> optax.Schedule:
    """CoDA Nets on 100 ImageNet classes: warm-up by epochs, then halved every 20 epochs.

    The rate of epoch e is `start + (peak - start) e / 14` for e < 15, then `peak / 2 ** floor(e / 20)`; it changes
    once per epoch. (Böhle et al., CVPR 2021, training code: 2.5e-4 to 1e-3, 1e-3 up to epoch 19, 5e-4 up to 39, ...)

    Args:
        steps_per_epoch: Steps per epoch.
        start: Rate of the first epoch.
        peak: Rate of the last epoch of the warm-up.
        warmup_epochs: Epochs of the warm-up, at least 2.
        halve_epochs: The rate is halved at each multiple of this epoch.

    Returns:
        A schedule of the step, counted from 0.

    >>> schedule = coda_imagenet(steps_per_epoch=10)
    >>> [f"{schedule(epoch * 10 + 9):.3e}" for epoch in (0, 14, 19, 20, 40)]
    ['2.500e-04', '1.000e-03', '1.000e-03', '5.000e-04', '2.500e-04']
    """
    warmup = optax.linear_schedule(start, peak, warmup_epochs - 1)
    halving = optax.exponential_decay(peak, halve_epochs, 0.5, staircase=True)
    by_epoch = optax.join_schedules([warmup, lambda epoch: halving(epoch + warmup_epochs)], [warmup_epochs])
    return lambda step: by_epoch(step // steps_per_epoch)


def cosine_by_epoch(
    peak: float,
    epochs: int,
    steps_per_epoch: int,
    floor: float = 1e-5,
    warmup_epochs: int = 0,
    start: float = 1e-4,
) -> optax.Schedule:
    """Half a cosine that changes once per epoch: `floor + (peak - floor) (1 + cos(pi e / epochs)) / 2` in epoch e.

    In the first `warmup_epochs` it is `start + (peak - start) e / warmup_epochs` instead (timm's schedule, as Coded
    ResNeXt uses it on ImageNet; arXiv 2202.05343, App. B and training code).

    Args:
        peak: Rate of the first epoch without warm-up.
        epochs: Epochs of the run.
        steps_per_epoch: Steps per epoch.
        floor: Rate that the cosine falls to.
        warmup_epochs: Epochs of the warm-up, less than `epochs`.
        start: Rate of the first epoch of the warm-up.

    Returns:
        A schedule of the step, counted from 0.

    >>> schedule = cosine_by_epoch(0.1, epochs=300, steps_per_epoch=10)
    >>> [f"{schedule(step):.3e}" for step in (0, 9, 1500, 2999)]
    ['1.000e-01', '1.000e-01', '5.000e-02', '1.274e-05']
    """
    if not 0 <= warmup_epochs < epochs:
        raise ValueError(f"warmup_epochs must be in [0, epochs={epochs}), got {warmup_epochs}")
    cosine = optax.cosine_decay_schedule(peak, epochs, floor / peak)
    rising = optax.linear_schedule(start, peak, max(1, warmup_epochs))

    def by_epoch(step: Any) -> Any:
        epoch = step // steps_per_epoch
        return jnp.where(epoch < warmup_epochs, rising(epoch), cosine(epoch))

    return by_epoch


def warmup_cosine(peak: float, epochs: int, steps_per_epoch: int, warmup_epochs: float = 0.0) -> optax.Schedule:
    """Linear warm-up from 0, then half a cosine down to 0 at the end of the run.

    Args:
        peak: Rate at the end of the warm-up.
        epochs: Epochs of the run.
        steps_per_epoch: Steps per epoch.
        warmup_epochs: Epochs of the warm-up, less than `epochs`.

    Returns:
        A schedule of the step, counted from 0.

    >>> schedule = warmup_cosine(1.0, epochs=5, steps_per_epoch=10, warmup_epochs=1.0)
    >>> [round(float(schedule(step)), 3) for step in (0, 5, 10, 30, 50)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    if not 0 <= warmup_epochs < epochs:
        raise ValueError(f"warmup_epochs must be in [0, epochs={epochs}), got {warmup_epochs}")
    total, warmup = epochs * steps_per_epoch, round(warmup_epochs * steps_per_epoch)
    return optax.warmup_cosine_decay_schedule(0.0 if warmup else peak, peak, warmup, total)
