"""Measures of every trained network: accuracy, grid pointing game, pixel deletion and completeness."""

import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from jaxinterp.errors import ConfigError
from jaxinterp.explain.attribution import Attribution
from jaxinterp.explain.batches import Targets
from jaxinterp.explain.decompose import decompose
from jaxinterp.explain.explainable import Explainable
from jaxinterp.explain.methods import OURS, compared
from jaxinterp.explain.metrics import grid_pointing_game, pixel_deletion, sample_grids
from jaxinterp.explain.metrics.explained import Method
from jaxinterp.recipe.family import Log, TrainedRun

Maps = Float[np.ndarray, "cells height width"]


def measure(
    trained: TrainedRun[Any],
    data: tuple[Float[np.ndarray, "n h w c"], Int[np.ndarray, " n"]],
    logits: Mapping[str, Float[np.ndarray, "n classes"]],
    log: Log,
) -> tuple[dict[str, Any], dict[str, Maps]]:
    """Measure a trained network and all explanations of it.

    Args:
        trained: the run, with the variables of the last epoch.
        data: test images in [0, 1], and their labels.
        logits: of all of them, with the variables of the epochs to compare: "last", and "best" if there is one.
        log: called with a line about each measurement.

    Returns:
        JSON values: `metrics` (name → number), and what they come from: `localization` (size → method → scores),
        `removal` (method → curve) at `fractions`, `residuals`. And every method's maps of the first grid of the first
        size, to be drawn: those of the classes in its first column, (n, n·H, n·W).

    Sizes of grids for which too few images are predicted right are left out, and said so.

    Source: CVPR 2021 (CoDA Nets), Sec. 5.2.
    """
    options, batch, net = trained.run.evaluate, trained.run.train.eval_batch, trained.explainable
    images, labels = data
    metrics = {f"test_accuracy{_suffix(k)}": float((v.argmax(1) == labels).mean()) for k, v in logits.items()}
    results: dict[str, Any] = {"metrics": metrics, "localization": {}, "grids": {}}
    first_maps: dict[str, Maps] = {}
    methods = compared(net, options.occlusion, options.occlusion_stride)
    confident = options.eligible == "right"
    odds = net.log_odds(logits["last"]) if confident else 10 * np.eye(logits["last"].shape[1])[labels]
    for n in options.grid_sizes:
        size = f"{n}x{n}"
        try:
            grids = sample_grids(odds, labels, n=n, count=options.grids, key=jax.random.key(trained.run.train.seed))
        except ConfigError as error:
            log(f"localization {size}: {error}; left out")
            continue
        first = not results["localization"]
        results["grids"][size] = {
            "grids": len(grids.images),
            "eligible_images": grids.eligible,
            "first_images": grids.images[0].tolist(),
            "first_classes": grids.classes[0].tolist(),
        }
        results["localization"][size] = {}
        for name, method in methods.items():
            start = time.perf_counter()
            record = partial(first_maps.setdefault, name)
            played = partial(_recording, method, record, n) if first else method
            with _said_in_the_log():
                scores = grid_pointing_game(net, played, images, grids=grids)
            median = scores.quartiles[1] if scores.eligible.any() else 0.0  # no map shows anything
            metrics[f"localization_{size}_median{_suffix(name)}"] = median
            results["localization"][size][name] = scores.scores[scores.eligible].round(6).tolist()
            seconds = time.perf_counter() - start
            scored = f"{scores.eligible.sum()} of {scores.eligible.size} cells of {len(grids.images)} grids"
            log(f"localization {size}, {scored}, {name}: {median:.3f} ({seconds:.1f} s)")

    images, labels = images[: options.removal_images], labels[: options.removal_images]
    slices = [slice(i, i + batch) for i in range(0, len(images), batch)]
    results["removal"] = {}
    for name, method in methods.items():
        start = time.perf_counter()
        with _said_in_the_log():
            removed = [pixel_deletion(net, method, images[rows], labels[rows]) for rows in slices]
        ordered = np.concatenate([part.eligible for part in removed])  # by maps that are not constant
        curves = np.concatenate([part.curves for part in removed])
        curve = curves[ordered if ordered.any() else slice(None)].mean(0)
        metrics[f"removal_curve_mean{_suffix(name)}"] = float(curve.mean())
        results["removal"][name] = curve.round(6).tolist()
        results["fractions"] = removed[0].fractions.tolist()
        seconds = time.perf_counter() - start
        log(f"pixel deletion, {ordered.sum()} of {len(images)} images, {name}: {curve.mean():.3f} ({seconds:.1f} s)")

    parts = [exactness(net, images[rows]) for rows in slices]
    found = Exactness(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
    numbers = [float(np.abs(array).max()) for array in found]
    metrics |= dict(zip(("completeness_residual", "curvature", "discrepancy"), numbers, strict=True))
    results["residuals"] = found.residuals.ravel().tolist()
    largest = "relative residual {:.1e}, curvature {:.1e}, discrepancy {:.1e}".format(*numbers)
    log(f"completeness, {len(images)} images, all classes: largest {largest}")
    return results, first_maps


@contextmanager
def _said_in_the_log() -> Iterator[None]:
    """Within, what cannot be scored is not warned of: the log says how many were scored."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"(grid_pointing_game|pixel_deletion): NaN at", category=UserWarning)
        yield


def _recording(
    method: Method, record: Callable[[Maps], Any], count: int, net: Explainable, x: Array, targets: Targets
) -> Attribution:
    """Call a method and record the first `count` maps of the first image."""
    parts = method(net, x, targets)
    record(np.asarray(parts.maps(x.shape[1:3])[0, :count]))
    return parts


class Exactness(NamedTuple):
    """How exactly images are explained.

    Attributes:
        residuals: signed logit − bias − Σ contributions, over the image's largest |logit − bias|; where the bias is not
            one number, over its largest |logit|.
        curvature: as of `Attribution`.
        discrepancy: as of `Attribution`.
    """

    residuals: Float[np.ndarray, "n classes"]
    curvature: Float[np.ndarray, " n"]
    discrepancy: Float[np.ndarray, " n"]


def exactness(net: Explainable, images: Float[np.ndarray, "n h w c"]) -> Exactness:
    """Decompose the logits of all classes and return how exactly that went.

    Raises:
        ConfigError: the network is not affine at some images, or freezing changes its logits.
    """
    parts = decompose(net, images)
    constant = net.bias if isinstance(net.bias, float) else 0.0
    residuals = np.asarray(parts.residual) / np.abs(np.asarray(parts.logits) - constant).max(1, keepdims=True)
    return Exactness(residuals, np.asarray(parts.curvature), np.asarray(parts.discrepancy))


def _suffix(name: str) -> str:
    """Return the suffix of a metric's name: none for the last epoch and for the decomposition."""
    return "" if name in ("last", OURS) else f"_{name}"
