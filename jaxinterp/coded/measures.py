"""Measures of a trained coded ResNeXt: decoding, classifiers of one class, early exit, removals, specificity."""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jaxinterp.coded.early_exit import (
    BlockPredictions,
    EarlyExit,
    choose_thresholds,
    compute_spent,
    decode_blocks,
    exit_blocks,
)
from jaxinterp.coded.export import export_network
from jaxinterp.coded.network import CodedResNeXt
from jaxinterp.coded.paths import accuracy_without, specificity
from jaxinterp.coded.surgery import binary_classifier, costs, keep_only
from jaxinterp.data import Dataset, hold_out
from jaxinterp.data.images import take
from jaxinterp.errors import DataError
from jaxinterp.explain.metrics import best_threshold, detect
from jaxinterp.recipe.config import Split
from jaxinterp.train import predict

if TYPE_CHECKING:
    from jaxinterp.coded.family import CodedRun

POINTS = (0.0, 0.0025, 0.005, 0.01, 0.02, 0.05)  # of accuracy, that early exit may lose
ALLOWED = 0.005  # of these the one whose time is measured
NEGATIVES = 9  # for each positive, where classes are many (arXiv 2202.05343, Sec. 4.3)
TIMED = 3  # rounds
MATRIX = 100  # classes, with more of which nobody waits for a removal of each
CLASSIFIERS = "classifiers"  # folder, within a run's, of the networks of one class

Log = Callable[[str], None]
Images = Float[np.ndarray, "n h w c"]


class _Case(NamedTuple):
    """What every measurement is about: a run's network, its test images with their classes, and who is told."""

    config: "CodedRun"
    model: CodedResNeXt
    variables: Any
    images: Images
    labels: Int[np.ndarray, " n"]
    log: Log


def measured(
    config: "CodedRun",
    model: CodedResNeXt,
    variables: Any,
    run_dir: Path,
    test: Images,
    labels: Int[np.ndarray, " n"],
    split: Split,
    log: Log,
) -> dict[str, Any]:
    """Measure a trained network with codes.

    Args:
        config: the run.
        model: its network, in float32.
        variables: its variables.
        run_dir: the run's folder; the classifiers of one class are written into it.
        test: test images, float32 in [0, 1].
        labels: their classes.
        split: (run, "train" or "test") ↦ its data set.
        log: called with a line about each measurement.

    Returns:
        JSON values: `metrics`; `decoding` (block → accuracy); `classifiers` (a record each); `exits` (points lost at
        most → accuracy, compute), where images were held out; `removed` (paths of a block that are removed → accuracy);
        `specificity`, of at most 100 classes.
    """
    train_set, labels = split(config, "train"), labels.astype(int)
    case = _Case(config, model, variables, test, labels, log)
    held: Dataset | None = None
    if config.validation:
        train_set, held = hold_out(train_set, config.validation, config.seed)
    blocks = [i for i, (stage, _) in enumerate(model.blocks, 1) if stage.code is not None]
    seen = decode_blocks(model, variables, test, config.eval_batch)
    accuracy = (seen.classes == labels).mean(1)
    decoding = {str(block): float(a) for block, a in zip(blocks, accuracy[:-1], strict=True)}
    metrics = {f"decoding_accuracy_block_{block}": a for block, a in decoding.items()}
    log("decoding: " + ", ".join(f"block {block} {a:.4f}" for block, a in decoding.items()))
    found: dict[str, Any] = {"metrics": metrics, "decoding": decoding}
    foreign = _foreign(config, split, log)
    found["classifiers"] = _classifiers(case, run_dir, train_set, foreign, metrics)
    if held is not None:
        found["exits"] = _early_exit(case, held, seen, metrics)
    few = case._replace(images=test[: config.path_images], labels=labels[: config.path_images])
    found["removed"] = _removals(few)
    if config.classes <= MATRIX:
        found["specificity"] = _specificity(few, metrics)
    return found


def _floats(data: Dataset) -> Images:
    return data.images.astype(np.float32) / np.float32(data.maximum)


def _classifiers(
    case: _Case, run_dir: Path, train_set: Dataset, foreign: Images | None, metrics: dict[str, float]
) -> list[dict[str, float]]:
    """Cut out, choose thresholds on training images, measure on test images, keep as files."""
    config, model, variables, test, labels, log = case
    chosen_from = take(train_set, config.classifier_images)
    chosen, known = _floats(chosen_from), chosen_from.labels.astype(int)
    odds = NEGATIVES if config.classes > NEGATIVES + 1 else None
    records, difference = [], 0.0
    for k in range(min(config.classifiers, config.classes)):
        if not ((known == k).any() and (labels == k).any()):
            log(f"classifier of class {k}: no image of it among {len(known)} training or {len(labels)} test images")
            continue
        small, sliced = binary_classifier(model, variables, k)
        export_network(run_dir / CLASSIFIERS / f"{k}.npz", small, sliced)
        on_train, on_test = (predict(small, sliced, images, config.eval_batch)[:, 0] for images in (chosen, test))
        masked = np.asarray(_masked(model, variables, jnp.asarray(test[:16]), keep_only(model, k)))[:, k]
        difference = max(difference, float(np.abs(masked - on_test[:16]).max()))
        threshold = best_threshold(on_train, known == k, odds)
        one = detect(on_test, labels == k, threshold, odds)
        record = {"class": k, "threshold": threshold, **one._asdict()}
        if foreign is not None:
            strange = predict(small, sliced, foreign, config.eval_batch)[:, 0]
            both = np.concatenate([on_test[labels == k], strange])
            own = np.arange(len(both)) < (labels == k).sum()
            record["foreign_precision"] = detect(both, own, threshold, odds).precision
        records.append(record)
    if not records:
        return []
    keys = [key for key in records[0] if key not in ("class", "threshold")]
    means = {key: float(np.mean([record[key] for record in records])) for key in keys}
    metrics |= {f"classifier_{key}": value for key, value in means.items()}
    small, sliced = binary_classifier(model, variables, 0)
    whole_costs, kept = costs(model, config.image_shape), costs(small, config.image_shape)

    def share(count: Callable[[Any], int]) -> float:
        return sum(map(count, kept)) / sum(map(count, whole_costs))

    metrics["parameters_kept"] = share(lambda part: part.parameters)
    metrics["parameters_kept_without_shortcuts"] = share(lambda part: part.parameters - part.shortcut)
    metrics["multiply_adds_kept"] = share(lambda part: part.multiply_adds)
    metrics["classifier_difference"] = difference
    batch = jnp.asarray(test[: config.eval_batch])
    metrics["classifier_time_share"] = _time_share(
        lambda: predict(small, sliced, batch, len(batch)), lambda: predict(model, variables, batch, len(batch))
    )
    shares = (metrics[key] for key in ("parameters_kept", "multiply_adds_kept", "classifier_time_share"))
    log(
        f"classifiers of {len(records)} classes: precision {means['precision']:.3f}, recall {means['recall']:.3f}; "
        "{:.1%} of the parameters, {:.1%} of the multiply-adds, {:.1%} of the time; ".format(*shares)
        + f"logits differ from the masked network's by {difference:.1e}"
    )
    return records


@partial(jax.jit, static_argnums=0)
def _masked(model: CodedResNeXt, variables: Any, images: jax.Array, keep: Any) -> jax.Array:
    logits: jax.Array = model.apply(variables, images, keep=keep)  # type: ignore[assignment]
    return logits


def _foreign(config: "CodedRun", split: Split, log: Log) -> Images | None:
    """Test images of a data set that the network does not know; None where the run names none or it is not there."""
    if not config.foreign:
        return None
    other = replace(config, dataset=config.foreign, foreign="", image_size=config.image_shape[0])
    try:
        return _floats(split(other, "test"))
    except DataError as error:
        log(f"foreign images: {error}; left out")
        return None


def _early_exit(
    case: _Case, held: Dataset, seen: BlockPredictions, metrics: dict[str, float]
) -> dict[str, dict[str, float]]:
    """Thresholds chosen on held-out images; accuracy and compute on test images, and the time that is really taken."""
    config, model, variables, test, labels, log = case
    there = decode_blocks(model, variables, _floats(held), config.eval_batch)
    batches = list(_whole_batches(test, config.eval_batch))
    curve: dict[str, dict[str, float]] = {}
    timed: dict[tuple[float, ...], float] = {}
    for points in POINTS:
        thresholds = choose_thresholds(there, held.labels.astype(int), points)
        stops, classes = exit_blocks(seen, thresholds)
        same = tuple(thresholds.tolist())
        if same not in timed:
            early = EarlyExit(model, variables, thresholds)
            timed[same] = _time_share(
                lambda: [early(batch) for batch in batches],  # noqa: B023
                lambda: [predict(model, variables, batch, len(batch)) for batch in batches],
            )
        curve[str(points)] = {
            "accuracy": float((classes == labels).mean()),
            "compute": compute_spent(model, stops, config.image_shape),
            "time": timed[same],
        }
    at = curve[str(ALLOWED)]
    metrics |= {f"early_exit_{key}": at[key] for key in at}
    log(
        f"early exit, {ALLOWED:.1%} allowed: accuracy {at['accuracy']:.4f} with {at['compute']:.1%} of the "
        f"multiply-adds, in {at['time']:.1%} of the time"
    )
    return curve


def _whole_batches(images: Images, size: int) -> Iterator[jax.Array]:
    """At most four batches of one size, on the device."""
    size = min(size, len(images))
    for start in range(0, min(4 * size, len(images) - size + 1), size):
        yield jnp.asarray(images[start : start + size])


def _time_share(part: Callable[[], Any], whole: Callable[[], Any]) -> float:
    """Time of one job over that of another, the median of alternating rounds, after a first that compiles."""
    shares = []
    for _ in range(1 + TIMED):
        spent = []
        for job in (part, whole):
            start = time.perf_counter()
            jax.block_until_ready(job())
            spent.append(time.perf_counter() - start)
        shares.append(spent[0] / spent[1])
    return statistics.median(shares[1:])


def _removals(case: _Case) -> dict[str, dict[str, float]]:
    """Accuracy without k active or inactive paths of the last block of the first code (paper, Fig. 2a)."""
    config, model, variables, test, labels, log = case
    block = max(i for i, code in enumerate(model.codes) if code == model.codes[0])
    code, found = model.codes[block], {}
    for kind, most in (("active", code.weight), ("inactive", code.length - code.weight)):
        counts = range(min(most, 8) + 1)
        key = jax.random.key(config.seed)
        accuracy = accuracy_without(
            model, variables, test, labels, block, counts, kind == "active", key, config.eval_batch
        )
        found[kind] = {str(count): float(a) for count, a in zip(counts, accuracy, strict=True)}
    worst = {kind: list(values.values())[-1] for kind, values in found.items()}
    log(f"as many paths removed as are measured, active: {worst['active']:.4f}, inactive: {worst['inactive']:.4f}")
    return found


def _specificity(case: _Case, metrics: dict[str, float]) -> dict[str, Any]:
    """Accuracy that class j loses with the paths of class i, and how many paths they share."""
    config, model, variables, test, labels, log = case
    found = specificity(model, variables, test, labels, batch=config.eval_batch)
    others = ~np.eye(config.classes, dtype=bool) & np.isfinite(found.lost)
    shared, losses = found.overlap[others], found.lost[others]
    own, other = float(np.nanmean(np.diag(found.lost))), float(losses.mean())
    varied = shared.std() > 0 and losses.std() > 0
    correlation = float(np.corrcoef(shared, losses)[0, 1]) if varied else 0.0  # of a constant there is none
    metrics |= {"specificity_own": own, "specificity_others": other, "specificity_correlation": correlation}
    log(
        f"specificity: a class loses {own:.3f} with its own paths, {other:.3f} with another's; correlation with shared "
        f"paths {correlation:.2f}"
    )

    def listed(values: np.ndarray) -> Any:
        found: Any = values.astype(object)
        found[~np.isfinite(values)] = None  # JSON has no NaN
        return found.tolist()

    return {"accuracy": listed(found.accuracy), "lost": listed(found.lost), "overlap": found.overlap.tolist()}
