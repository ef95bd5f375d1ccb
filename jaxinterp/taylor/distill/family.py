"""Coarse-grained data distillation: a data set abstracted level by level down to one image per class.

The other half of Yang, Xie & Yang (Chin. Phys. Lett. 40, 020501, 2023, arXiv 2211.01779), of which the abstract could
be read: design and recipes are ours, and no number of it is quoted (see `experiments/taylornet.py`).

    jaxinterp train distill/mnist              learns the embedding and the map that merges images
    jaxinterp evaluate runs/distill-mnist      abstracts the training set, measures every level and the baselines
    jaxinterp report runs/distill-mnist        report.html

The images lie in the run's folder, distilled/level_<k>.npz (with labels, level and provenance) and distilled/sheet.png;
`distilled=FILE` trains any run on such a file in the place of its data set's training images.

Baselines in the same table: random images, class means, k-means centers, and dataset condensation (DC; Zhao et al.,
ICLR 2021), each as references and as what a ConvNet is trained on. Published numbers of that literature are for networks
trained on the images (MNIST, 1 and 10 per class: DC 91.7 and 97.4 %; CIFAR-10: 28.3 and 44.9 %, its readme).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from jaxinterp.data import Dataset
from jaxinterp.errors import ConfigError
from jaxinterp.explain.explainable import Explainable
from jaxinterp.figures.html import Section, picture
from jaxinterp.files import write_bytes
from jaxinterp.provenance import commit
from jaxinterp.recipe.config import Experiment, Split, at_least
from jaxinterp.recipe.page import Report
from jaxinterp.taylor import family as taylornet
from jaxinterp.taylor.distill import (
    Distiller,
    ImageSet,
    SimilarityLoss,
    best_levels,
    class_means,
    condense,
    contact_sheet,
    distill,
    k_means,
    nearest_reference,
    random_references,
    train_on,
    write_set,
)
from jaxinterp.taylor.distill import report as distillation_page
from jaxinterp.taylor.distill.flow import accuracies, fixed_point_error
from jaxinterp.taylor.family import MINI, MNIST, TaylorRun
from jaxinterp.taylor.network import TaylorNet
from jaxinterp.train import LossFn, predict


@dataclass(frozen=True)
class DistillRun(TaylorRun):
    """The embedding (a `TaylorRun`'s network), the merging map, and what is compared.

    Attributes:
        group: b, images that are merged into one.
        merge_width: channels within the merging map.
        batch_levels: levels in a training batch, of group^batch_levels images of every class.
        levels: L, of the abstraction of the training set.
        fidelity: weight of ⟨(G − mean)²⟩ in the loss.
        counts: images per class of the baselines.
        condense_iterations: networks that dataset condensation matches; no condensation where 0.
        condense_batch: real images of a class in each.
        net_width: channels of its ConvNet, and of those trained on the images.
        net_steps: steps of those.
        net_seeds: how many of them are trained on each set.
    """

    group: int = 4
    merge_width: int = 16
    batch_levels: int = 2
    levels: int = 6
    fidelity: float = 0.0
    counts: tuple[int, ...] = (1, 10)
    condense_iterations: int = 100
    condense_batch: int = 64
    net_width: int = 32
    net_steps: int = 300
    net_seeds: int = 3
    epochs: int = 20
    batch_size: int = 512

    def __post_init__(self) -> None:
        """Refuse values that no run can have.

        Raises:
            ConfigError: in one line, which field, what came and what was expected.
        """
        super().__post_init__()
        at_least(self, 1, "merge_width", "batch_levels", "levels", "counts", "condense_batch", "net_width")
        at_least(self, 1, "net_steps", "net_seeds")
        at_least(self, 0, "condense_iterations")
        if not 0 <= self.fidelity < math.inf:
            raise ConfigError(f"fidelity: got {self.fidelity}, expected a finite number, at least 0")
        at_least(self, 2, "group")
        if not self.counts:
            raise ConfigError("counts: got none, expected at least one number of images per class")


def _distill(config: TaylorRun, **fields: Any) -> DistillRun:
    """The distillation with the embedding of a Taylor run."""
    own = ("epochs", "batch_size")
    return DistillRun(**{**{k: v for k, v in vars(config).items() if k not in own}, **fields})


REFERENCE_NAME, REFERENCE = taylornet.REFERENCE_NAME, taylornet.REFERENCE
RUNS: dict[str, Experiment[DistillRun]] = {
    "distill/mnist": Experiment(
        _distill(MNIST), "ours: one reference per class out of 4096 images", time="10 min on 2 CPU cores"
    ),
    "distill/cifar10": Experiment(
        _distill(MINI, epochs=60, net_width=128, condense_iterations=1000, condense_batch=256),
        "ours: one reference per class out of 4096 images",
    ),
}


def smoke(config: DistillRun) -> DistillRun:
    """The same run in seconds: few features, one level."""
    return replace(
        taylornet.smoke(config),
        images=128,
        batch_size=64,
        accumulate=1,
        merge_width=2,
        batch_levels=1,
        levels=1,
        counts=(1, 2),
        condense_iterations=1,
        condense_batch=2,
        net_width=2,
        net_steps=1,
        net_seeds=1,
    )


def build(config: DistillRun) -> Distiller:
    """The network of a run.

    Raises:
        ConfigError: fields that do not fit one another, or a batch too small for its levels.
    """
    embedding = taylornet.build(config)
    if not isinstance(embedding, TaylorNet):
        raise ConfigError(f"design: got {config.design}, expected levels")
    need, size = config.classes * config.group**config.batch_levels, config.batch_size // config.accumulate
    if size <= need:
        raise ConfigError(
            f"batch_size, batch_levels: got {size} images at once and {config.batch_levels} levels, expected more than "
            f"{config.classes} x {config.group}^{config.batch_levels} = {need} images, which are references"
        )
    return Distiller(
        embedding=embedding, classes=config.classes, group=config.group, width=config.merge_width, dtype=embedding.dtype
    )


def initial(config: DistillRun, variables: Any, prior: Any | None, data: Dataset) -> Any:
    """Where training starts: random parameters, expanded about the mean training image.

    Raises:
        ConfigError: a class has fewer images than the levels or the baselines will need.
    """
    most = best_levels(data.labels, config.classes, config.group)
    if config.levels > most:
        raise ConfigError(
            f"levels: got {config.levels}, which need {config.group**config.levels} images of every class, the rarest "
            f"is enough for {most}"
        )
    fewest = int(np.bincount(data.labels, minlength=config.classes).min())
    if max(config.counts) > fewest:
        raise ConfigError(f"counts: got {max(config.counts)}, a class has {fewest} training images")
    stats = variables["batch_stats"]
    started = taylornet.initial(config, {"batch_stats": stats["embedding"]}, prior, data)
    return {**variables, "batch_stats": {**stats, "embedding": started["batch_stats"]}}


def loss_of(config: DistillRun, model: nn.Module) -> LossFn:
    """Cross-entropy of similarities, at all levels of a batch.

    Raises:
        ConfigError: the order penalty, which is not of this loss.
    """
    assert isinstance(model, Distiller)
    if config.penalty:
        raise ConfigError(f"penalty: got {config.penalty}, expected 0 in a distillation")
    return SimilarityLoss(model, config.batch_levels, config.fidelity)


def subject(config: DistillRun, model: nn.Module, variables: Any) -> Explainable:
    """A trained network as it is examined: τ times cosines, affine in x − x0 once path and norm are held."""
    return taylornet.subject_about(
        config, model, variables, lambda variables: variables["batch_stats"]["embedding"]["expansion_point"]
    )


def measure(
    config: DistillRun,
    variables: Any,
    run_dir: Path,
    images: Float[np.ndarray, "n h w c"],
    labels: Int[np.ndarray, " n"],
    split: Split,
    log: Callable[[str], None],
) -> dict[str, Any]:
    """Abstract the training images, write every level, and measure it beside the baselines on the test images."""
    model, classes = build(replace(config, dtype="float32")), config.classes
    train = split(config, "train")
    known = train.images.astype(np.float32) / np.float32(train.maximum)
    provenance = {**train.provenance, "run": run_dir.name, "commit": commit() or "unknown"}
    try:
        levels = distill(model, variables, known, train.labels, config.levels, seed=config.seed, provenance=provenance)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    embed = jax.tree_util.Partial(_embedded, model)

    def embedded(x: Float[np.ndarray, "n h w c"]) -> np.ndarray:
        return predict(embed, variables, x)

    queries = embedded(images)
    metrics, rows = dict[str, float](), list[dict[str, Any]]()
    for one in levels:
        write_set(run_dir / distillation_page.FOLDER / f"level_{one.level}.npz", one)
        references = embedded(one.images).reshape(classes, -1, queries.shape[1])
        alone, nearest, mean = accuracies(queries, labels, references, seed=config.seed)
        rows.append({"level": one.level, "images": references.shape[1], "one": alone, "nearest": nearest, "mean": mean})
        log(f"level {one.level}, {references.shape[1]} images per class: one {alone:.2%}, nearest {nearest:.2%}")
    metrics["one_reference_accuracy"] = rows[-1]["one"]
    metrics["one_real_image_accuracy"] = rows[0]["one"]
    metrics["nearest_reference_accuracy_level_0"] = rows[0]["nearest"]
    metrics["fixed_point_distance"] = fixed_point_error(model, variables, levels[-1].images)
    means = class_means(levels[0].images, levels[0].labels, classes)
    metrics["distance_from_mean"] = float(np.sqrt(((levels[-1].images - means.images) ** 2).mean()))
    names = tuple(map(str, train.classes))
    figure = picture(contact_sheet(levels, names), "", "", 1000)
    write_bytes(run_dir / distillation_page.FOLDER / "sheet.png", figure.png)
    table = []
    for name, few in _baselines(config, levels, known, train.labels, log):
        record = _worth(config, few, images, labels, queries, embedded)
        table.append({"set": name, **record})
        metrics |= {f"{name}_{key}": value for key, value in record.items() if key != "images"}
        log(f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in record.items()))
    return {"metrics": metrics, "levels": rows, "baselines": table}


def _embedded(model: Distiller, variables: Any, x: Array) -> Array:
    found: Any = model.apply(variables, x, method="embed")
    return found


def _baselines(
    config: DistillRun, levels: list[ImageSet], images: np.ndarray, labels: np.ndarray, log: Callable[[str], None]
) -> list[tuple[str, ImageSet]]:
    """Sets to compare: ours with at least as many images per class as each of the counts, and the baselines."""
    found = [("class_mean_1", class_means(images, labels, config.classes))]
    for count in config.counts:
        ours = next(
            one for one in reversed(levels) if (one.labels == 0).sum() >= min(count, (levels[0].labels == 0).sum())
        )
        found.append((f"distilled_{(ours.labels == 0).sum()}", ours))
        found.append((f"random_{count}", random_references(images, labels, config.classes, count, config.seed)))
        if count > 1:
            found.append((f"k_means_{count}", k_means(images, labels, config.classes, count, config.seed)))
        if config.condense_iterations:
            log(f"condensing to {count} images per class")
            few = condense(
                images,
                labels,
                config.classes,
                count,
                jax.random.key(config.seed),
                iterations=config.condense_iterations,
                batch=config.condense_batch,
                width=config.net_width,
            )
            found.append((f"condensed_{count}", few))
    return found


def _worth(
    config: DistillRun,
    few: ImageSet,
    images: np.ndarray,
    labels: np.ndarray,
    queries: np.ndarray,
    embedded: Callable[[np.ndarray], np.ndarray],
) -> dict[str, float]:
    """Accuracy by the nearest reference, in pixels and in the embedding, and of ConvNets trained on the set."""
    flat, own = images.reshape(len(images), -1), few.images.reshape(len(few.images), -1)
    keys = jax.random.split(jax.random.key(config.seed), config.net_seeds)
    trained = [
        train_on(few, images, labels, config.classes, key, steps=config.net_steps, width=config.net_width)
        for key in keys
    ]
    return {
        "images": float((few.labels == 0).sum()),
        "pixels": float((nearest_reference(flat, own, few.labels) == labels).mean()),
        "embedding": float((nearest_reference(queries, embedded(few.images), few.labels) == labels).mean()),
        "trained": float(np.mean(trained)),
    }


def sections(report: Report, split: Split) -> list[Section]:
    """What the report of a distillation shows besides: its levels, their accuracy, the baselines."""
    return distillation_page.sections(report, build(replace(report.config, dtype="float32")))
