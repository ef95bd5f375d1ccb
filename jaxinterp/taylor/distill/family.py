"""Data distillation as a family of runs: a data set distilled level by level down to one image per class."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import jax
import numpy as np
from annotated_types import Ge
from flax import linen as nn

from jaxinterp.checks import require
from jaxinterp.data.image_set import ImageSet, write_set
from jaxinterp.explain.explainable import Explainable, explainable
from jaxinterp.figures.html import Section, picture
from jaxinterp.files import write_bytes
from jaxinterp.nn.losses import LossFn
from jaxinterp.provenance import commit
from jaxinterp.recipe.config import Count, Natural, NonNegative, Run
from jaxinterp.recipe.data import require_plain_labels
from jaxinterp.recipe.family import Family, Log, Report, TrainedRun
from jaxinterp.taylor.distill import report as distill_report
from jaxinterp.taylor.distill.condense import condense, train_on
from jaxinterp.taylor.distill.flow import Distiller, SimilarityLoss, accuracies, best_levels, distill, fixed_point_error
from jaxinterp.taylor.distill.references import (
    class_means,
    contact_sheet,
    k_means,
    nearest_reference,
    random_references,
)
from jaxinterp.taylor.family import TaylorModel, centered, expansion, shrunk
from jaxinterp.taylor.network import TaylorNet
from jaxinterp.train import predict


@dataclass(frozen=True)
class DistillModel(TaylorModel):
    """The embedding (a TaylorNet), the merging map, and what is compared.

    Attributes:
        group: b, images that are merged into one.
        merge_width: channels within the merging map.
        batch_levels: levels in a training batch, of group^batch_levels images of every class.
        levels: L, of the distillation of the training set.
        fidelity: weight of ⟨(G − mean)²⟩ in the loss.
        counts: images per class of the baselines.
        condense_iterations: networks that dataset condensation matches; no condensation if 0.
        condense_batch: real images of a class in each.
        net_width: channels of its ConvNet, and of those trained on the images.
        net_steps: steps of those.
        net_seeds: how many of them are trained on each set.
    """

    group: Annotated[int, Ge(2)] = 4
    merge_width: Count = 16
    batch_levels: Count = 2
    levels: Count = 6
    fidelity: NonNegative = 0.0
    counts: tuple[Count, ...] = (1, 10)
    condense_iterations: Natural = 100
    condense_batch: Count = 64
    net_width: Count = 32
    net_steps: Count = 300
    net_seeds: Count = 3

    def check(self) -> None:
        """Require an embedding with levels and without penalty, and something to compare."""
        super().check()
        require(self.design == "levels", "design", self.design, "levels in a distillation")
        require(not self.penalty, "penalty", self.penalty, "0 in a distillation")
        require(self.counts, "counts", "none", "at least one number of images per class")


class DistillFamily(Family[DistillModel]):
    """Coarse-grained data distillation."""

    title = "data distillation"
    Model = DistillModel

    def smoke(self, run: Run[DistillModel]) -> Run[DistillModel]:
        """Shrink a run to seconds: few features, one level."""
        ones = dict.fromkeys(("batch_levels", "levels", "condense_iterations", "net_steps", "net_seeds"), 1)
        twos = dict.fromkeys(("merge_width", "condense_batch", "net_width"), 2)
        train = {"batch_size": 64, "grad_accum_steps": 1}
        model = {**ones, **twos, "counts": (1, 2)}
        return shrunk(run).replace(data={"max_images": 128}, model=model, train=train)

    def build(self, run: Run[DistillModel], dtype: Literal["float32", "bfloat16"] = "float32") -> Distiller:
        """Return the network of a run; a batch must be large enough for its levels."""
        model, embedding = run.model, expansion(run, dtype)
        assert isinstance(embedding, TaylorNet)
        references = model.classes * model.group**model.batch_levels
        size = run.train.batch_size // run.train.grad_accum_steps
        wanted = f"more than {model.classes} x {model.group}^{model.batch_levels} = {references} images, the references"
        require(size > references, "train.batch_size, model.batch_levels", f"{size} images at once", wanted)
        fields: dict[str, Any] = {"classes": model.classes, "group": model.group, "width": model.merge_width}
        return Distiller(embedding=embedding, dtype=embedding.dtype, **fields)

    def loss(self, run: Run[DistillModel], network: nn.Module) -> LossFn:
        """Return the cross-entropy of similarities, at all levels of a batch."""
        require_plain_labels(run, "a reference has one class")
        assert isinstance(network, Distiller)
        return SimilarityLoss(network, run.model.batch_levels, run.model.fidelity)

    def init_from(self, run: Run[DistillModel], network: nn.Module, variables: Any, pretrained: Any, data: Any) -> Any:
        """Return random parameters, expanded about the mean training image; there must be images for all levels."""
        model = run.model
        most = best_levels(data.labels, model.classes, model.group)
        fewest = int(np.bincount(data.labels, minlength=model.classes).min())
        wanted = f"at most {most}: the rarest class has {fewest} training images"
        require(model.levels <= most, "model.levels", model.levels, wanted)
        require(max(model.counts) <= fewest, "model.counts", model.counts, f"at most {fewest} of the rarest class")
        stats = variables["batch_stats"]
        embedding = centered(model, {"batch_stats": stats["embedding"]}, data)
        return {**variables, "batch_stats": {**stats, "embedding": embedding["batch_stats"]}}

    def explainable(self, trained: TrainedRun[DistillModel]) -> Explainable:
        """Explain τ times cosines: affine in x − x0 once path and norm are held."""
        return explainable(trained.network, trained.variables)

    def measure(self, trained: TrainedRun[DistillModel], log: Log) -> dict[str, Any]:
        """Distill the training images, write every level, and measure it beside the baselines on the test images."""
        network, run, variables, train = trained.network, trained.run, trained.variables, trained.train_data
        seed, folder, (images, labels) = run.train.seed, trained.run_dir / distill_report.FOLDER, trained.test_data
        embed = partial(predict, partial(network.apply, method="embed"), variables)
        known = train.floats()
        provenance = {**train.provenance, "run": trained.run_dir.name, "commit": commit() or "unknown"}
        levels = distill(network, variables, known, train.labels, run.model.levels, seed=seed, provenance=provenance)
        write_bytes(folder / "sheet.png", picture(contact_sheet(levels, train.classes), "", "").png)
        queries, rows, table = embed(images), list[dict[str, Any]](), list[dict[str, Any]]()
        for level in levels:
            write_set(folder / f"level_{level.level}.npz", level)
            references = embed(level.images).reshape(run.model.classes, -1, queries.shape[1])
            one, nearest, mean = accuracies(queries, labels, references, seed=seed)
            count = references.shape[1]
            rows.append({"level": level.level, "images": count, "one": one, "nearest": nearest, "mean": mean})
            log(f"level {level.level}, {count} images per class: one {one:.2%}, nearest {nearest:.2%}")
        means = class_means(levels[0].images, levels[0].labels, run.model.classes)
        metrics = {
            "one_reference_accuracy": rows[-1]["one"],
            "one_real_image_accuracy": rows[0]["one"],
            "nearest_reference_accuracy_level_0": rows[0]["nearest"],
            "fixed_point_distance": fixed_point_error(network, variables, levels[-1].images),
            "distance_from_mean": float(np.sqrt(((levels[-1].images - means.images) ** 2).mean())),
        }
        for name, image_set in _baselines(run.model, seed, levels, known, train.labels, log).items():
            record = _measure_set(trained, image_set, queries, embed(image_set.images))
            table.append({"set": name, **record})
            metrics |= {f"{name}_{key}": value for key, value in record.items() if key != "images"}
            log(f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in record.items()))
        return {"metrics": metrics, "levels": rows, "baselines": table}

    def report(self, report: Report) -> Sequence[Section]:
        """Return the sections: levels, their accuracy, the baselines."""
        return distill_report.sections(report)


def _baselines(
    model: DistillModel, seed: int, levels: list[ImageSet], images: np.ndarray, labels: np.ndarray, log: Log
) -> dict[str, ImageSet]:
    """Make the sets to compare: ours with at least as many images per class as each count, and the baselines."""
    classes, options = model.classes, {"batch": model.condense_batch, "width": model.net_width}
    sets = {"class_mean_1": class_means(images, labels, classes)}
    sizes = {len(level.labels) // classes: level for level in levels}
    for count in model.counts:
        size = min((n for n in sizes if n >= count), default=max(sizes))
        sets[f"distilled_{size}"] = sizes[size]
        sets[f"random_{count}"] = random_references(images, labels, classes, count, seed)
        if count > 1:
            sets[f"k_means_{count}"] = k_means(images, labels, classes, count, seed)
        if iterations := model.condense_iterations:
            log(f"condensing to {count} images per class")
            key = jax.random.key(seed)
            sets[f"condensed_{count}"] = condense(images, labels, classes, count, key, iterations=iterations, **options)
    return sets


def _measure_set(
    trained: TrainedRun[DistillModel], references: ImageSet, queries: np.ndarray, embedded: np.ndarray
) -> dict[str, float]:
    """Measure accuracy by the nearest reference, in pixels and in the embedding, and of ConvNets trained on the set."""
    (images, labels), model = trained.test_data, trained.run.model

    def accuracy(queries: np.ndarray, vectors: np.ndarray) -> float:
        return float((nearest_reference(queries, vectors, references.labels) == labels).mean())

    keys = jax.random.split(jax.random.key(trained.run.train.seed), model.net_seeds)
    options = {"steps": model.net_steps, "width": model.net_width}
    return {
        "images": float((references.labels == 0).sum()),
        "pixels": accuracy(images.reshape(len(images), -1), references.images.reshape(len(embedded), -1)),
        "embedding": accuracy(queries, embedded),
        "trained": float(np.mean([train_on(references, images, labels, model.classes, k, **options) for k in keys])),
    }
