"""What only distillations show in their report: the levels as pictures, their accuracy, and the peers."""

import numpy as np
from flax import linen as nn

from experiments.page import Report
from experiments.run import Split
from jaxinterp.distill import Distiller, abstract, sheet
from jaxinterp.explain.plots import level_curves
from jaxinterp.report.page import Section, Table, picture


def sections(report: Report, model: Distiller, split: Split) -> list[Section]:
    """All of them."""
    return [_levels(report, model, split), _peers(report)]


def _levels(report: Report, model: nn.Module, split: Split) -> Section:
    assert isinstance(model, Distiller)
    train = split(report.config, "train")
    images = train.images.astype(np.float32) / np.float32(train.maximum)
    levels = abstract(
        model, report.subject.variables, images, train.labels, report.config.levels, seed=report.config.seed
    )
    rows, metrics = report.found["levels"], report.found["metrics"]
    text = (
        f"One learned map merges {model.group} images of a class into one, and the same map what came out, until "
        f"one image is left of {model.group**report.config.levels}. A test image is given the class of the reference "
        f"whose embedding is most like its own: with one reference per class {metrics['one_reference_accuracy']:.2%}, "
        f"with one random real image per class {metrics['one_real_image_accuracy']:.2%}. Merging copies of a reference "
        f"changes it by {metrics['fixed_point_distance']:.3f} (root mean square; pixels run from 0 to 1)."
    )
    return Section(
        "From images to archetypes",
        [text],
        [
            picture(
                sheet(levels, report.classes),
                "Images of every class at every level, real ones on the left, the last one on the right.",
                "Levels of abstraction",
                1000,
            ),
            picture(
                level_curves(rows), "Accuracy by references of each level, on test images.", "Accuracy by level", 700
            ),
        ],
    )


def _peers(report: Report) -> Section:
    keys = ("images", "pixels", "embedding", "trained")
    rows = [[row["set"].replace("_", " "), *(f"{row[key]:.4g}" for key in keys)] for row in report.found["peers"]]
    return Section(
        "Beside its peers",
        [
            "Accuracy on the test images by the nearest reference, in pixels and in our embedding, and of a ConvNet "
            f"trained on the set ({report.config.net_steps} steps, width {report.config.net_width}; mean of "
            f"{report.config.net_seeds} networks). Published, with networks of width 128 trained on the set: DC, MNIST "
            "91.7 % with 1 and 97.4 % with 10 images per class; CIFAR-10 28.3 % and 44.9 % (Zhao et al., readme)."
        ],
        [],
        [Table(["set", "images per class", "nearest in pixels", "nearest in the embedding", "ConvNet"], rows)],
    )
