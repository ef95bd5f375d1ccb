"""Data distillation as a family of runs: a data set distilled level by level down to one image per class.

The other half of Yang, Xie & Yang (Chin. Phys. Lett. 40, 020501, 2023, arXiv 2211.01779), of which the abstract could
be read: the design is ours.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import jax
import numpy as np
from annotated_types import Ge
from flax import linen as nn
from jaxtyping import Array, Float

from jaxinterp.checks import require
from jaxinterp.explain.explainable import Explainable
from jaxinterp.figures.html import Section, picture
from jaxinterp.files import write_bytes
from jaxinterp.nn.losses import LossFn
from jaxinterp.provenance import commit
from jaxinterp.recipe.config import Count, Natural, NonNegative, Run
from jaxinterp.recipe.family import Family, Log, Report, TrainedRun
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
from jaxinterp.taylor.distill import report as distill_report
from jaxinterp.taylor.distill.flow import accuracies, fixed_point_error
from jaxinterp.taylor.family import TaylorModel, centered, expansion, explained_about, shrunk
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
        """The embedding has levels and no penalty, and something is compared."""
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
        return shrunk(run).replace(
            data={"max_images": 128},
            model={
                "merge_width": 2,
                "batch_levels": 1,
                "levels": 1,
                "counts": (1, 2),
                "condense_iterations": 1,
                "condense_batch": 2,
                "net_width": 2,
                "net_steps": 1,
                "net_seeds": 1,
            },
            train={"batch_size": 64, "grad_accum_steps": 1},
        )

    def build(self, run: Run[DistillModel], dtype: Literal["float32", "bfloat16"] = "float32") -> Distiller:
        """Return the network of a run; a batch must be large enough for its levels."""
        model, sizes = run.model, run.evaluate.grid_sizes
        require(not sizes, "evaluate.grid_sizes", sizes, "none: the expansion point has the image's size")
        references = model.classes * model.group**model.batch_levels
        size = run.train.batch_size // run.train.grad_accum_steps
        wanted = f"more than {model.classes} x {model.group}^{model.batch_levels} = {references} images, the references"
        require(size > references, "train.batch_size, model.batch_levels", f"{size} images at once", wanted)
        embedding = expansion(model, dtype)
        assert isinstance(embedding, TaylorNet)
        return Distiller(
            embedding=embedding,
            classes=model.classes,
            group=model.group,
            width=model.merge_width,
            dtype=embedding.dtype,
        )

    def loss(self, run: Run[DistillModel], network: nn.Module) -> LossFn:
        """Return the cross-entropy of similarities, at all levels of a batch."""
        assert isinstance(network, Distiller)
        return SimilarityLoss(network, run.model.batch_levels, run.model.fidelity)

    def init_from(self, run: Run[DistillModel], network: nn.Module, variables: Any, pretrained: Any, data: Any) -> Any:
        """Return random parameters, expanded about the mean training image.

        Raises:
            ConfigError: a class has fewer images than the levels or the baselines will need.
        """
        model = run.model
        most = best_levels(data.labels, model.classes, model.group)
        wanted = f"at most {most}: a level needs {model.group} times the images of every class"
        require(model.levels <= most, "model.levels", model.levels, wanted)
        fewest = int(np.bincount(data.labels, minlength=model.classes).min())
        wanted = f"at most {fewest}, the training images of the rarest class"
        require(max(model.counts) <= fewest, "model.counts", model.counts, wanted)
        stats = variables["batch_stats"]
        embedding = centered(model, {"batch_stats": stats["embedding"]}, data)
        return {**variables, "batch_stats": {**stats, "embedding": embedding["batch_stats"]}}

    def explainable(self, trained: TrainedRun[DistillModel]) -> Explainable:
        """Explain τ times cosines: affine in x − x0 once path and norm are held."""
        return explained_about(trained, lambda variables: variables["batch_stats"]["embedding"]["expansion_point"])

    def measure(self, trained: TrainedRun[DistillModel], log: Log) -> dict[str, Any]:
        """Distill the training images, write every level, and measure it beside the baselines on the test images."""
        network, run, variables, train = trained.network, trained.run, trained.variables, trained.train_data
        classes, seed, folder = run.model.classes, run.train.seed, trained.run_dir / distill_report.FOLDER
        images, labels = trained.test_data
        known = train.images.astype(np.float32) / np.float32(train.maximum)
        provenance = {**train.provenance, "run": trained.run_dir.name, "commit": commit() or "unknown"}
        levels = distill(network, variables, known, train.labels, run.model.levels, seed=seed, provenance=provenance)
        embed = jax.tree_util.Partial(_embedded, network)

        def embedded(x: Float[np.ndarray, "n h w c"]) -> np.ndarray:
            return predict(embed, variables, x)

        queries = embedded(images)
        metrics, rows = dict[str, float](), list[dict[str, Any]]()
        for level in levels:
            write_set(folder / f"level_{level.level}.npz", level)
            references = embedded(level.images).reshape(classes, -1, queries.shape[1])
            alone, nearest, mean = accuracies(queries, labels, references, seed=seed)
            count = references.shape[1]
            rows.append({"level": level.level, "images": count, "one": alone, "nearest": nearest, "mean": mean})
            log(f"level {level.level}, {count} images per class: one {alone:.2%}, nearest {nearest:.2%}")
        metrics["one_reference_accuracy"] = rows[-1]["one"]
        metrics["one_real_image_accuracy"] = rows[0]["one"]
        metrics["nearest_reference_accuracy_level_0"] = rows[0]["nearest"]
        metrics["fixed_point_distance"] = fixed_point_error(network, variables, levels[-1].images)
        means = class_means(levels[0].images, levels[0].labels, classes)
        metrics["distance_from_mean"] = float(np.sqrt(((levels[-1].images - means.images) ** 2).mean()))
        figure = picture(contact_sheet(levels, tuple(map(str, train.classes))), "", "", 1000)
        write_bytes(folder / "sheet.png", figure.png)
        table = []
        for name, chosen in _baselines(run, levels, known, train.labels, log):
            record = _worth(run, chosen, images, labels, queries, embedded)
            table.append({"set": name, **record})
            metrics |= {f"{name}_{key}": value for key, value in record.items() if key != "images"}
            log(f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in record.items()))
        return {"metrics": metrics, "levels": rows, "baselines": table}

    def report(self, report: Report) -> Sequence[Section]:
        """Return the sections: levels, their accuracy, the baselines."""
        return distill_report.sections(report, report.trained.network)


def _embedded(model: Distiller, variables: Any, x: Array) -> Array:
    found: Any = model.apply(variables, x, method="embed")
    return found


def _baselines(
    run: Run[DistillModel], levels: list[ImageSet], images: np.ndarray, labels: np.ndarray, log: Callable[[str], None]
) -> list[tuple[str, ImageSet]]:
    """Make the sets to compare: ours with at least as many images per class as each count, and the baselines."""
    sets = [("class_mean_1", class_means(images, labels, run.model.classes))]
    for count in run.model.counts:
        ours = next(
            one for one in reversed(levels) if (one.labels == 0).sum() >= min(count, (levels[0].labels == 0).sum())
        )
        sets.append((f"distilled_{(ours.labels == 0).sum()}", ours))
        sets.append((f"random_{count}", random_references(images, labels, run.model.classes, count, run.train.seed)))
        if count > 1:
            sets.append((f"k_means_{count}", k_means(images, labels, run.model.classes, count, run.train.seed)))
        if run.model.condense_iterations:
            log(f"condensing to {count} images per class")
            few = condense(
                images,
                labels,
                run.model.classes,
                count,
                jax.random.key(run.train.seed),
                iterations=run.model.condense_iterations,
                batch=run.model.condense_batch,
                width=run.model.net_width,
            )
            sets.append((f"condensed_{count}", few))
    return sets


def _worth(
    run: Run[DistillModel],
    few: ImageSet,
    images: np.ndarray,
    labels: np.ndarray,
    queries: np.ndarray,
    embedded: Callable[[np.ndarray], np.ndarray],
) -> dict[str, float]:
    """Measure accuracy by the nearest reference, in pixels and in the embedding, and of ConvNets trained on the set."""
    flat, own = images.reshape(len(images), -1), few.images.reshape(len(few.images), -1)
    keys = jax.random.split(jax.random.key(run.train.seed), run.model.net_seeds)
    trained = [
        train_on(few, images, labels, run.model.classes, key, steps=run.model.net_steps, width=run.model.net_width)
        for key in keys
    ]
    return {
        "images": float((few.labels == 0).sum()),
        "pixels": float((nearest_reference(flat, own, few.labels) == labels).mean()),
        "embedding": float((nearest_reference(queries, embedded(few.images), few.labels) == labels).mean()),
        "trained": float(np.mean(trained)),
    }
