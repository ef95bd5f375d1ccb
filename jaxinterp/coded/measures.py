"""Measures of a trained coded ResNeXt: decoding, classifiers of one class, early exit, removals, specificity."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxinterp.coded.early_exit import (
    BlockPredictions,
    EarlyExit,
    choose_thresholds,
    compute_share,
    decode_blocks,
    exit_blocks,
)
from jaxinterp.coded.export import export_network
from jaxinterp.coded.network import CodedResNeXt
from jaxinterp.coded.paths import accuracy_without, specificity
from jaxinterp.coded.surgery import Cost, binary_classifier, costs, keep_only
from jaxinterp.data import Dataset
from jaxinterp.data.images import take
from jaxinterp.explain.metrics import best_threshold, detect
from jaxinterp.train import predict

POINTS = (0.0, 0.0025, 0.005, 0.01, 0.02, 0.05)  # of accuracy, that early exit may lose
HEADLINE_POINTS = 0.005  # the early exit reported among the metrics
NEGATIVES = 9  # for each positive, where classes are many (arXiv 2202.05343, Sec. 4.3)
TIMED_ROUNDS = 3
TIMED_BATCHES = 4
COMPARED_IMAGES = 16  # on which a classifier is compared with the masked network
MAX_REMOVED = 8  # paths of a block
MAX_SPECIFICITY_CLASSES = 100  # above this the class × class ablation is skipped
CLASSIFIERS = "classifiers"  # folder, within a run's, of the networks of one class

Log = Callable[[str], None]
Images = Float[np.ndarray, "n h w c"]


@dataclass(frozen=True)
class Measurement:
    """How a coded network is measured.

    Attributes:
        classifiers: classes whose classifiers are cut out and measured.
        classifier_images: training images on which their thresholds are chosen.
        path_images: test images on which removals are measured.
        batch: images per pass.
        seed: of the removed paths.
    """

    classifiers: int = 10
    classifier_images: int = 10_000
    path_images: int = 2000
    batch: int = 256
    seed: int = 0


class _Case(NamedTuple):
    """The arguments that every measure shares."""

    model: CodedResNeXt
    variables: Any
    images: Images
    labels: Int[np.ndarray, " n"]
    options: Measurement
    log: Log


def measure_paths(
    model: CodedResNeXt,
    variables: Any,
    *,
    train: Dataset,
    held: Dataset | None,
    test_images: Images,
    test_labels: Int[np.ndarray, " n"],
    foreign: Images | None = None,
    folder: Path,
    options: Measurement,
    log: Log,
) -> dict[str, Any]:
    """Measure a trained network with codes.

    Args:
        model: the network, in float32.
        variables: its variables.
        train: training images, without those held out; thresholds of the classifiers are chosen on the first of them.
        held: held-out images, on which the thresholds of early exit are chosen; None to leave early exit out.
        test_images: float32 in [0, 1].
        test_labels: their classes.
        foreign: images in [0, 1] of classes that the network does not know, negatives of every classifier.
        folder: the run's folder; the classifiers of one class are written into it.
        options: see `Measurement`.
        log: called with a line about each measurement.

    Returns:
        JSON values: `metrics`; `decoding` (block → accuracy); `classifiers` (a record each); `exits` (points lost at
        most → accuracy, compute, time), where images were held out; `removed` (number of removed paths of a block →
        accuracy); `specificity`, of at most 100 classes.

    Raises:
        ConfigError: a network without codes, no images, NaN, or labels that do not fit.
    """
    labels = test_labels.astype(int)
    case = _Case(model, variables, test_images, labels, options, log)
    predictions = decode_blocks(model, variables, test_images, options.batch)
    accuracy = (predictions.classes == labels).mean(1)
    decoding = {str(block): float(a) for block, a in zip(model.coded_blocks, accuracy[:-1], strict=True)}
    metrics = {f"decoding_accuracy_block_{block}": a for block, a in decoding.items()}
    log("decoding: " + ", ".join(f"block {block} {a:.4f}" for block, a in decoding.items()))
    results: dict[str, Any] = {"metrics": metrics, "decoding": decoding}
    results["classifiers"] = _measure_classifiers(case, train, foreign, folder / CLASSIFIERS, metrics)
    if held is not None:
        results["exits"] = _measure_early_exit(case, held, predictions, metrics)
    case = case._replace(images=test_images[: options.path_images], labels=labels[: options.path_images])
    results["removed"] = _measure_removals(case)
    if model.classes <= MAX_SPECIFICITY_CLASSES:
        results["specificity"] = _measure_specificity(case, metrics)
    return results


def to_unit_floats(data: Dataset) -> Images:
    """Return the images of a data set as float32 in [0, 1]."""
    return data.images.astype(np.float32) / np.float32(data.maximum)


def _measure_classifiers(
    case: _Case, train: Dataset, foreign: Images | None, folder: Path, metrics: dict[str, float]
) -> list[dict[str, float]]:
    """Cut out classifiers, choose thresholds on training images, measure on test images, write them to files."""
    model, variables, images, labels, options, log = case
    chosen = take(train, options.classifier_images)
    train_images, train_labels = to_unit_floats(chosen), chosen.labels.astype(int)
    odds = NEGATIVES if model.classes > NEGATIVES + 1 else None
    records, difference = [], 0.0
    for k in range(min(options.classifiers, model.classes)):
        if not ((train_labels == k).any() and (labels == k).any()):
            log(f"classifier of class {k}: no image among {len(train_labels)} training or {len(labels)} test images")
            continue
        small, cut = binary_classifier(model, variables, k)
        export_network(folder / f"{k}.npz", small, cut)
        on_train, on_test = (predict(small, cut, x, options.batch)[:, 0] for x in (train_images, images))
        masked = _masked(model, variables, jnp.asarray(images[:COMPARED_IMAGES]), keep_only(model, k))
        difference = max(difference, float(np.abs(np.asarray(masked)[:, k] - on_test[:COMPARED_IMAGES]).max()))
        threshold = best_threshold(on_train, train_labels == k, odds)
        record = {"class": k, "threshold": threshold, **detect(on_test, labels == k, threshold, odds)._asdict()}
        if foreign is not None:
            positives, negatives = on_test[labels == k], predict(small, cut, foreign, options.batch)[:, 0]
            is_positive = np.arange(len(positives) + len(negatives)) < len(positives)
            detection = detect(np.concatenate([positives, negatives]), is_positive, threshold, odds)
            record["foreign_precision"] = detection.precision
        records.append(record)
    if not records:
        return []
    keys = [key for key in records[0] if key not in ("class", "threshold")]
    means = {key: float(np.mean([record[key] for record in records])) for key in keys}
    metrics |= {f"classifier_{key}": value for key, value in means.items()}
    small, cut = binary_classifier(model, variables, 0)
    shape = images.shape[1:]

    def kept(count: Callable[[Cost], int]) -> float:
        return sum(map(count, costs(small, shape))) / sum(map(count, costs(model, shape)))

    metrics["parameters_kept"] = kept(lambda part: part.parameters)
    metrics["parameters_kept_without_shortcuts"] = kept(lambda part: part.parameters - part.shortcut)
    metrics["multiply_adds_kept"] = kept(lambda part: part.multiply_adds)
    metrics["classifier_difference"] = difference
    batch = jnp.asarray(images[: options.batch])
    metrics["classifier_time_share"] = _time_share(
        lambda: predict(small, cut, batch, len(batch)), lambda: predict(model, variables, batch, len(batch))
    )
    log(
        f"classifiers of {len(records)} classes: precision {means['precision']:.3f}, recall {means['recall']:.3f}; "
        f"{metrics['parameters_kept']:.1%} of the parameters, {metrics['multiply_adds_kept']:.1%} of the "
        f"multiply-adds, {metrics['classifier_time_share']:.1%} of the time; logits differ from the masked network's "
        f"by {difference:.1e}"
    )
    return records


@partial(jax.jit, static_argnums=0)
def _masked(model: CodedResNeXt, variables: Any, images: Array, keep: Any) -> Array:
    logits: Array = model.apply(variables, images, keep=keep)  # type: ignore[assignment]
    return logits


def _measure_early_exit(
    case: _Case, held: Dataset, predictions: BlockPredictions, metrics: dict[str, float]
) -> dict[str, dict[str, float]]:
    """Choose thresholds on held-out images; measure accuracy, compute and time on test images."""
    model, variables, images, labels, options, log = case
    held_predictions = decode_blocks(model, variables, to_unit_floats(held), options.batch)
    size = min(options.batch, len(images))
    starts = range(0, min(TIMED_BATCHES * size, len(images) - size + 1), size)
    batches = [jnp.asarray(images[start : start + size]) for start in starts]
    curve: dict[str, dict[str, float]] = {}
    times: dict[tuple[float, ...], float] = {}
    for points in POINTS:
        thresholds = choose_thresholds(held_predictions, held.labels.astype(int), points)
        stops, classes = exit_blocks(predictions, thresholds)
        key = tuple(thresholds.tolist())
        if key not in times:
            early = EarlyExit(model, variables, thresholds)
            times[key] = _time_share(
                lambda: [early(batch) for batch in batches],  # noqa: B023
                lambda: [predict(model, variables, batch, size) for batch in batches],
            )
        curve[str(points)] = {
            "accuracy": float((classes == labels).mean()),
            "compute": compute_share(model, stops, images.shape[1:]),
            "time": times[key],
        }
    headline = curve[str(HEADLINE_POINTS)]
    metrics |= {f"early_exit_{key}": value for key, value in headline.items()}
    log(
        f"early exit, {HEADLINE_POINTS:.1%} allowed: accuracy {headline['accuracy']:.4f} with "
        f"{headline['compute']:.1%} of the multiply-adds, in {headline['time']:.1%} of the time"
    )
    return curve


def _time_share(part: Callable[[], Any], reference: Callable[[], Any]) -> float:
    """Time one job relative to another: the median of alternating rounds, after a first that compiles."""
    shares = []
    for _ in range(1 + TIMED_ROUNDS):
        seconds = []
        for job in (part, reference):
            start = time.perf_counter()
            jax.block_until_ready(job())
            seconds.append(time.perf_counter() - start)
        shares.append(seconds[0] / seconds[1])
    return statistics.median(shares[1:])


def _measure_removals(case: _Case) -> dict[str, dict[str, float]]:
    """Measure accuracy without k active or inactive paths of the last block of the first code (paper, Fig. 2a)."""
    model, variables, images, labels, options, log = case
    block = max(i for i, code in enumerate(model.codes) if code == model.codes[0])
    code, removed = model.codes[block], {}
    for kind, paths in (("active", code.weight), ("inactive", code.length - code.weight)):
        counts, key = range(min(paths, MAX_REMOVED) + 1), jax.random.key(options.seed)
        accuracy = accuracy_without(
            model, variables, images, labels, block, counts, kind == "active", key, options.batch
        )
        removed[kind] = {str(count): float(a) for count, a in zip(counts, accuracy, strict=True)}
    last = {kind: list(values.values())[-1] for kind, values in removed.items()}
    log(f"most paths removed, active: {last['active']:.4f}, inactive: {last['inactive']:.4f}")
    return removed


def _measure_specificity(case: _Case, metrics: dict[str, float]) -> dict[str, Any]:
    """Measure the accuracy that class j loses without the paths of class i, beside the number of paths they share."""
    model, variables, images, labels, options, log = case
    accuracy, lost, overlap = specificity(model, variables, images, labels, batch=options.batch)
    others = ~np.eye(model.classes, dtype=bool) & np.isfinite(lost)
    shared, losses = overlap[others], lost[others]
    diagonal, other = float(np.nanmean(np.diag(lost))), float(losses.mean())
    varied = shared.std() > 0 and losses.std() > 0
    correlation = float(np.corrcoef(shared, losses)[0, 1]) if varied else 0.0  # undefined for a constant
    metrics |= {"specificity_own": diagonal, "specificity_others": other, "specificity_correlation": correlation}
    log(
        f"specificity: a class loses {diagonal:.3f} without its own paths, {other:.3f} without another's; correlation "
        f"with shared paths {correlation:.2f}"
    )

    def to_json(values: np.ndarray) -> Any:
        return np.where(np.isfinite(values), values, np.full(values.shape, None)).tolist()  # JSON has no NaN

    return {"accuracy": to_json(accuracy), "lost": to_json(lost), "overlap": overlap.tolist()}
