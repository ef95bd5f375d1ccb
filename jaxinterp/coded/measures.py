"""Measures of a trained coded ResNeXt: decoding, classifiers of one class, early exit, removals, specificity."""

import statistics
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, PRNGKeyArray

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
from jaxinterp.coded.paths import accuracy_without, masked_logits, specificity
from jaxinterp.coded.surgery import Cost, binary_classifier, costs, keep_only
from jaxinterp.data import Dataset
from jaxinterp.data.images import take
from jaxinterp.explain.metrics import best_threshold, detect
from jaxinterp.recipe.family import Log
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

Images = Float[np.ndarray, "n h w c"]


class _Case(NamedTuple):
    """The arguments that every measure shares."""

    model: CodedResNeXt
    variables: Any
    images: Images
    labels: Int[np.ndarray, " n"]
    batch: int
    log: Log


def measure_paths(
    model: CodedResNeXt,
    variables: Any,
    *,
    train: Dataset,
    held: Dataset | None,
    test_images: Images,
    test_labels: Int[np.ndarray, " n"],
    foreign: Float[np.ndarray, "m h w c"] | None = None,
    folder: Path,
    classifiers: int = 10,
    classifier_images: int = 10_000,
    path_images: int = 2000,
    batch: int = 256,
    seed: int = 0,
    log: Log = print,
) -> dict[str, Any]:
    """Measure a trained network with codes.

    Args:
        model: the network, in float32.
        variables: its variables.
        train: training images, without those held out.
        held: held-out images, on which the thresholds of early exit are chosen; None to leave early exit out.
        test_images: float32 in [0, 1].
        test_labels: their classes.
        foreign: images in [0, 1] of classes that the network does not know, negatives of every classifier.
        folder: the run's folder; the classifiers of one class are written into it.
        classifiers: classes whose classifiers are cut out and measured.
        classifier_images: the first training images, on which their thresholds are chosen.
        path_images: the first test images, on which removals are measured.
        batch: images per pass.
        seed: of the removed paths.
        log: called with a line about each measurement.

    Returns:
        JSON values: `metrics`; `decoding` (block → accuracy); `classifiers` (a record each); `exits` (points lost at
        most → accuracy, compute, time), where images were held out; `removed` (number of removed paths of a block →
        accuracy); `specificity`, of at most 100 classes.
    """
    labels = test_labels.astype(int)
    case = _Case(model, variables, test_images, labels, batch, log)
    predictions = decode_blocks(model, variables, test_images, batch)
    accuracy = (predictions.classes == labels).mean(1)
    decoding = {str(block): float(a) for block, a in zip(model.coded_blocks, accuracy[:-1], strict=True)}
    metrics = {f"decoding_accuracy_block_{block}": a for block, a in decoding.items()}
    log("decoding: " + ", ".join(f"block {block} {a:.4f}" for block, a in decoding.items()))
    results: dict[str, Any] = {"metrics": metrics, "decoding": decoding}
    count, train = min(classifiers, model.classes), take(train, classifier_images)
    results["classifiers"] = _measure_classifiers(case, count, train, foreign, folder / CLASSIFIERS, metrics)
    if held is not None:
        results["exits"] = _measure_early_exit(case, held, predictions, metrics)
    case = case._replace(images=test_images[:path_images], labels=labels[:path_images])
    results["removed"] = _measure_removals(case, jax.random.key(seed), metrics)
    if model.classes <= MAX_SPECIFICITY_CLASSES:
        results["specificity"] = _measure_specificity(case, metrics)
    return results


def to_unit_floats(data: Dataset) -> Images:
    """Return the images of a data set as float32 in [0, 1]."""
    return data.floats()


def _measure_classifiers(
    case: _Case, count: int, train: Dataset, foreign: Images | None, folder: Path, metrics: dict[str, float]
) -> list[dict[str, Any]]:
    """Cut out classifiers, choose thresholds on training images, measure on test images, write them to files."""
    model, variables, images, labels, batch, log = case
    train_images, train_labels = to_unit_floats(train), train.labels.astype(int)
    odds = NEGATIVES if model.classes > NEGATIVES + 1 else None
    records, difference = [], 0.0
    for k in range(count):
        if not ((train_labels == k).any() and (labels == k).any()):
            log(f"classifier of class {k}: no image among {len(train_labels)} training or {len(labels)} test images")
            continue
        small, cut = binary_classifier(model, variables, k)
        export_network(folder / f"{k}.npz", small, cut)
        on_train, on_test = (predict(small, cut, x, batch)[:, 0] for x in (train_images, images))
        masked = masked_logits(model, variables, jnp.asarray(images[:COMPARED_IMAGES]), keep_only(model, k))
        difference = max(difference, float(np.abs(np.asarray(masked)[:, k] - on_test[:COMPARED_IMAGES]).max()))
        threshold = best_threshold(on_train, train_labels == k, odds)
        record = {"class": k, "threshold": threshold, **detect(on_test, labels == k, threshold, odds)._asdict()}
        if foreign is not None:
            scores = np.concatenate([on_test[labels == k], predict(small, cut, foreign, batch)[:, 0]])
            positive = np.arange(len(scores)) < len(scores) - len(foreign)
            record["foreign_precision"] = detect(scores, positive, threshold, odds).precision
        records.append(record)
    if not records:
        return []
    keys = [key for key in records[0] if key not in ("class", "threshold")]
    metrics |= {f"classifier_{key}": float(np.mean([record[key] for record in records])) for key in keys}
    small, cut = binary_classifier(model, variables, 0)

    def kept(count: Callable[[Cost], int]) -> float:
        part, total = (sum(map(count, costs(net, images.shape[1:]))) for net in (small, model))
        return part / total

    metrics["parameters_kept"] = kept(lambda part: part.parameters)
    metrics["parameters_kept_without_shortcuts"] = kept(lambda part: part.parameters - part.shortcut)
    metrics["multiply_adds_kept"] = kept(lambda part: part.multiply_adds)
    metrics["classifier_difference"] = difference
    x = jnp.asarray(images[:batch])
    metrics["classifier_time_share"] = _time_share(
        lambda: predict(small, cut, x, len(x)), lambda: predict(model, variables, x, len(x))
    )
    log(
        f"classifiers of {len(records)} classes: precision {metrics['classifier_precision']:.3f}, recall "
        f"{metrics['classifier_recall']:.3f}; {metrics['parameters_kept']:.1%} of the parameters, "
        f"{metrics['multiply_adds_kept']:.1%} of the multiply-adds, {metrics['classifier_time_share']:.1%} of the "
        f"time; logits differ from the masked network's by {difference:.1e}"
    )
    return records


def _measure_early_exit(
    case: _Case, held: Dataset, predictions: BlockPredictions, metrics: dict[str, float]
) -> dict[str, dict[str, float]]:
    """Choose thresholds on held-out images; measure accuracy, compute and time on test images."""
    model, variables, images, labels, batch, log = case
    held_predictions = decode_blocks(model, variables, to_unit_floats(held), batch)
    size = min(batch, len(images))
    starts = range(0, min(TIMED_BATCHES * size, len(images) - size + 1), size)
    batches = [jnp.asarray(images[start : start + size]) for start in starts]

    @cache  # several points may have the same thresholds
    def measure_time(*thresholds: float) -> float:
        early = EarlyExit(model, variables, thresholds)
        return _time_share(
            lambda: [early(x) for x in batches], lambda: [predict(model, variables, x, size) for x in batches]
        )

    curve: dict[str, dict[str, float]] = {}
    for points in POINTS:
        thresholds = choose_thresholds(held_predictions, held.labels.astype(int), points)
        stops, classes = exit_blocks(predictions, thresholds)
        curve[str(points)] = {
            "accuracy": float((classes == labels).mean()),
            "compute": compute_share(model, stops, images.shape[1:]),
            "time": measure_time(*thresholds.tolist()),
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

    def seconds(job: Callable[[], Any]) -> float:
        start = time.perf_counter()
        jax.block_until_ready(job())
        return time.perf_counter() - start

    return statistics.median([seconds(part) / seconds(reference) for _ in range(1 + TIMED_ROUNDS)][1:])


def _measure_removals(case: _Case, key: PRNGKeyArray, metrics: dict[str, float]) -> dict[str, dict[str, float]]:
    """Measure accuracy without k active or inactive paths of the last block of the first code (paper, Fig. 2a)."""
    model, variables, images, labels, batch, log = case
    block = max(i for i, code in enumerate(model.codes) if code == model.codes[0])
    code, removed = model.codes[block], {}
    for kind, paths in (("active", code.weight), ("inactive", code.length - code.weight)):
        counts = range(min(paths, MAX_REMOVED) + 1)
        accuracy = accuracy_without(model, variables, images, labels, block, counts, kind == "active", key, batch)
        removed[kind] = {str(count): float(a) for count, a in enumerate(accuracy)}
    last = {kind: list(values.values())[-1] for kind, values in removed.items()}
    metrics["accuracy_none_removed"] = removed["active"]["0"]
    metrics |= {f"accuracy_{kind}_removed": accuracy for kind, accuracy in last.items()}
    log(f"most paths removed, active: {last['active']:.4f}, inactive: {last['inactive']:.4f}")
    return removed


def _measure_specificity(case: _Case, metrics: dict[str, float]) -> dict[str, Any]:
    """Measure the accuracy that class j loses without the paths of class i, beside the number of paths they share."""
    model, variables, images, labels, batch, log = case
    accuracy, lost, overlap = specificity(model, variables, images, labels, batch=batch)
    others = ~np.eye(model.classes, dtype=bool) & np.isfinite(lost)
    shared, losses = overlap[others], lost[others]
    diagonal, other = float(np.nanmean(np.diag(lost))), float(losses.mean())
    varied = shared.std() > 0 and losses.std() > 0  # else the correlation is undefined
    correlation = float(np.corrcoef(shared, losses)[0, 1]) if varied else 0.0
    metrics |= {"specificity_own": diagonal, "specificity_others": other, "specificity_correlation": correlation}
    log(
        f"specificity: a class loses {diagonal:.3f} without its own paths, {other:.3f} without another's; correlation "
        f"with shared paths {correlation:.2f}"
    )

    accuracy, lost = (np.where(np.isfinite(a), a, np.full(a.shape, None)) for a in (accuracy, lost))  # JSON has no NaN
    return {"accuracy": accuracy.tolist(), "lost": lost.tolist(), "overlap": overlap.tolist()}
