"""What is measured of every trained network: accuracy, localization, pixel removal and completeness."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxinterp.errors import ConfigError
from jaxinterp.explain.decompose import Targets
from jaxinterp.explain.explainable import OURS, Explainable, Images, Method
from jaxinterp.explain.metrics import completeness, grid_pointing_game, pixel_deletion, sample_grids

Log = Callable[[str], None]
Maps = Float[np.ndarray, "classes height width"]


def measure(
    subject: Explainable,
    images: Float[np.ndarray, "n h w c"],
    labels: Int[np.ndarray, " n"],
    logits: Mapping[str, Float[np.ndarray, "n classes"]],
    *,
    sizes: Sequence[int],
    grids: int,
    eligible: str,
    removal_images: int,
    batch: int,
    seed: int,
    log: Log,
) -> tuple[dict[str, Any], dict[str, Maps]]:
    """Measure a trained network and all explanations of it on test images.

    Args:
        subject: the network of the last epoch.
        images: test images, float32 in [0, 1].
        labels: their classes.
        logits: of all images, with the variables of the epochs to compare: "last", and "best" where there is one.
        sizes: images along one side of the grids, such as 3 and 2.
        grids: most grids of each size.
        eligible: "right" or "all" images enter the grids.
        removal_images: how many images, in file order, pixel removal and completeness look at.
        batch: images of one pass of these.
        seed: seed of the grids.
        log: called with a line about each measurement.

    Returns:
        JSON values: `metrics` (name → number), and what they come from: `grid_pointing_game` (size → method → scores),
        `removal` (method → curve) at `fractions`, `residuals`. And every method's maps of the first grid of the first
        size, to be drawn: those of the classes in its first column, (n, n·H, n·W).

    Raises:
        ConfigError: too few images are predicted right for one grid.

    Source: CVPR 2021 (CoDA Nets), Sec. 5.2.
    """
    metrics = {f"test_accuracy{_suffix(k)}": float((v.argmax(1) == labels).mean()) for k, v in logits.items()}
    found: dict[str, Any] = {"metrics": metrics, "localization": {}, "grids": {}}
    first_maps: dict[str, Maps] = {}
    sure = subject.log_odds(logits["last"]) if eligible == "right" else 10 * np.eye(logits["last"].shape[1])[labels]
    for n in sizes:
        size = f"{n}x{n}"
        try:
            drawn = sample_grids(sure, labels, n=n, count=grids, key=jax.random.key(seed))
        except ValueError as error:
            raise ConfigError(f"localization {size}: {error}") from error
        found["grids"][size] = {
            "grids": len(drawn.images),
            "eligible_images": drawn.eligible,
            "first_images": drawn.images[0].tolist(),
            "first_classes": drawn.classes[0].tolist(),
        }
        found["localization"][size] = {}
        for name, method in subject.methods().items():
            start = time.perf_counter()
            watched = partial(_watched, method, partial(first_maps.setdefault, name), n) if n == sizes[0] else method
            scores = grid_pointing_game(watched, jnp.asarray(images), drawn)
            metrics[f"localization_{size}_median{_suffix(name)}"] = scores.quartiles[1]
            found["localization"][size][name] = scores.scores.ravel().round(6).tolist()
            spent = time.perf_counter() - start
            log(f"localization {size}, {len(drawn.images)} grids, {name}: {scores.quartiles[1]:.3f} ({spent:.1f} s)")

    images, labels = images[:removal_images], labels[:removal_images]
    found["removal"] = {}
    for name, method in subject.methods().items():
        start = time.perf_counter()
        parts = []
        for i in range(0, len(images), batch):
            x, y = jnp.asarray(images[i : i + batch]), jnp.asarray(labels[i : i + batch])
            maps = method(x, y)[:, 0]
            parts.append(
                pixel_deletion(
                    subject.predict,
                    subject.encode(x),
                    maps,
                    y,
                    probability=subject.probability,
                    variables=subject.variables,
                )
            )
        curve = np.concatenate([part.curves for part in parts]).mean(0)
        metrics[f"removal_curve_mean{_suffix(name)}"] = float(curve.mean())
        found["removal"][name] = curve.round(6).tolist()
        found["fractions"] = parts[0].fractions.tolist()
        spent = time.perf_counter() - start
        log(f"pixel removal, {len(images)} images, {name}: {curve.mean():.3f} ({spent:.1f} s)")

    residuals = np.concatenate(
        [relative_residuals(subject, images[i : i + batch]) for i in range(0, len(images), batch)]
    )
    metrics["completeness_residual"] = float(np.abs(residuals).max())
    found["residuals"] = residuals.ravel().tolist()
    log(f"completeness, {len(images)} images, all classes: largest residual {metrics['completeness_residual']:.1e}")
    return found, first_maps


def _watched(method: Method, see: Callable[[Maps], Any], count: int, images: Images, targets: Targets) -> Array:
    """What a method answers; the first classes' maps of the first image are seen."""
    maps = method(images, targets)
    see(np.asarray(maps[0, :count]))
    return maps


def relative_residuals(subject: Explainable, images: Float[np.ndarray, "n h w c"]) -> Float[np.ndarray, "n classes"]:
    """Signed residuals logit − bias − Σ contributions of all classes, over the largest |logit − bias| of the image.

    Where contributions and bias depend on the image alike, over the largest |logit|.
    """
    parts = subject.decompose(images)
    if subject.bias is None:
        residual, size = completeness(parts.contributions, parts.logits, parts.bias).residual, jnp.abs(parts.logits)
    else:
        residual = completeness(parts.contributions, parts.logits, subject.bias).residual
        size = jnp.abs(parts.logits - subject.bias)
    return np.asarray(residual / size.max(1, keepdims=True))


def _suffix(name: str) -> str:
    """The metrics of the last epoch and of the decomposition carry no suffix."""
    return "" if name in ("last", OURS) else f"_{name}"
