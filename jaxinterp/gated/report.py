"""What only gated networks show in their report: who decided in the regression, what gates see, what classes share."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Float

from jaxinterp.data import Dataset
from jaxinterp.figures.curves import overlap_matrices
from jaxinterp.figures.html import Section, Table, picture
from jaxinterp.figures.maps import filter_sheet, panel
from jaxinterp.gated.paths import Filters, effective_filters
from jaxinterp.recipe.family import Report

DRAWN = 8  # filters of a layer


def regression(report: Report, train: Dataset) -> Section:
    """Accuracy of the NPK regression beside its value network's, and the training images that decided."""
    found, images, labels, classes = report.results, report.images, report.labels, report.classes
    metrics, deciding = found["metrics"], found["deciding"]
    rows, titles, names = [], [], []
    blank = np.ones((*images.shape[1:3], 3), np.float32)
    for one in deciding:
        shares = [*one["for"], *one["against"]]
        drawn = [_rgb(train.images[i] / np.float32(train.maximum)) for i, _ in shares]
        words = [f"{classes[int(train.labels[i])]}: {share:+.3f}" for i, share in shares]
        rows.append(np.stack([*drawn, *[blank] * (8 - len(drawn))]))
        titles.append([*words, *[""] * (8 - len(drawn))])
        names.append(f"label {classes[int(labels[one['image']])]}, read {classes[one['class']]}")
    figure = panel(images[[one["image"] for one in deciding]], np.stack(rows), titles, names)
    table = [
        [str(one["image"]), classes[one["class"]]]
        + [f"{one[key]:.4f}" for key in ("prediction", "offset", "sum")]
        + [f"{one['prediction'] - one['offset'] - one['sum']:.0e}"]
        for one in deciding
    ]
    return Section(
        "Regression with the neural path kernel: which training images decided",
        [
            f"Kernel ridge regression with this network's gates, on {metrics['npk_images']:.0f} training images, reads "
            f"{metrics['npk_test_accuracy']:.2%} of {metrics['npk_test_images']:.0f} test images right; the value "
            f"network itself, of which {report.run.train.val_fraction:.0%} of the training images were held back, "
            f"{metrics['npk_value_network_accuracy']:.2%} of the same. A prediction of the regression is a sum over "
            "training images, so every image's share is known exactly: the four largest for the predicted class, then "
            "the four largest against it."
        ],
        [picture(figure, "Test images, and training images with their label and their share.", "Deciding images", 900)],
        [Table(["test image", "class", "prediction", "constant", "sum of all shares", "missed by rounding"], table)],
    )


def filters(preactivations: Sequence[Callable[[Any], Any]], shape: Sequence[int], names: Sequence[str]) -> Section:
    """What gates look at in the input, where their pre-activations are affine: filters of the longest vectors."""
    rows, titles = [], []
    for preactivation in preactivations:
        units = int(np.prod(np.shape(preactivation(jnp.zeros((1, *shape), jnp.float32)))[1:]))
        some = np.linspace(0, units - 1, min(units, 256)).astype(int)
        found: Filters = effective_filters(preactivation, shape, some)
        flat = np.linalg.norm(np.asarray(found.weights).reshape(len(some), -1), axis=1)
        best = np.argsort(-flat, kind="stable")[:DRAWN]
        best = np.resize(best, DRAWN)
        rows.append(np.asarray(found.weights)[best].sum(-1))
        titles.append([f"unit {some[i]}" for i in best])
    figure = filter_sheet(np.stack(rows), names, titles)
    summed = "Summed over colors, e" if shape[-1] > 1 else "E"
    return Section(
        "What the gates look at",
        [
            "Before each gate the gating network is affine in the image, whatever its depth, so that a gate is a "
            "half-space, and its filter can be read off exactly: those of the largest norm, among 256 units of a layer."
        ],
        [picture(figure, f"{summed}ach on its own scale; red where light opens.", "Gate filters", 900)],
    )


def overlaps(report: Report) -> Section:
    """Open sub-networks that classes share."""
    found, classes = report.results, report.classes
    names = [f"gate {i}" for i in range(len(found["overlap"]))]
    figure = overlap_matrices(found["overlap"], names, classes)
    return Section(
        "Which sub-networks classes share",
        ["Mean over pairs of test images of the share of units that are open for both, class by class."],
        [picture(figure, "Every layer has its own colors, from the least to the most.", "Overlap of gates", 900)],
    )


def _rgb(image: np.ndarray) -> Float[np.ndarray, "h w 3"]:
    return np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image


def linear_gates(model: nn.Module, variables: Any, count: int) -> list[Callable[[Any], Any]]:
    """Pre-activations of a linear gating network, layer by layer, as functions of what `encode` makes of images."""

    def layer(index: int) -> Callable[[Any], Any]:
        return lambda x: model.apply(variables, x, method="preactivations")[index]

    return [layer(index) for index in range(count)]
