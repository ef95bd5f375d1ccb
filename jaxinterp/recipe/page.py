"""The report of a trained run: what it learned, its maps, and its explanations measured against their baselines."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from matplotlib.figure import Figure

from jaxinterp.checks import shown
from jaxinterp.explain.explainable import Explainable, summed
from jaxinterp.explain.metrics import tile_grid
from jaxinterp.figures.curves import (
    localization_boxes,
    method_style,
    removal_curves,
    residual_histogram,
    training_curves,
)
from jaxinterp.figures.html import Page, Picture, Section, Table, picture
from jaxinterp.figures.maps import color_weights, panel
from jaxinterp.recipe.family import Report


def first_of_each_class(labels: Int[np.ndarray, " n"], count: int) -> Int[np.ndarray, " m"]:
    """Indices of the first image of each of the first `count` classes that occur.

    Example:
        >>> first_of_each_class(np.array([3, 3, 1, 0, 1]), 2).tolist()
        [0, 2]
    """
    return np.sort(np.unique(labels, return_index=True)[1])[:count]


def likeliest(logits: Float[np.ndarray, "n classes"], count: int = 3) -> Int[np.ndarray, "n count"]:
    """The classes with the largest logits, the largest first.

    Example:
        >>> likeliest(np.array([[0.1, 2.0, 1.0]]), 2).tolist()
        [[1, 2]]
    """
    return np.argsort(-logits, axis=1, kind="stable")[:, :count]


def top_maps(
    net: Explainable,
    images: Float[np.ndarray, "n h w c"],
    names: Sequence[str],
    logits: Float[np.ndarray, "n classes"],
    classes: Sequence[str],
    maps: Float[np.ndarray, "n count h w"],
) -> Figure:
    """Images under their names, and beside each the contribution maps of its `likeliest` classes."""
    top = likeliest(logits, maps.shape[1])
    chance = 1 / (1 + np.exp(-np.take_along_axis(net.log_odds(logits), top, 1).astype(float)))
    titles = [
        [f"{classes[k]}: p {p:.3f}" for k, p in zip(row, ps, strict=True)] for row, ps in zip(top, chance, strict=True)
    ]
    return panel(images, maps, titles, names)


def compose_page(report: Report) -> Page:
    """Compose the page of a run."""
    experiment = report.trained.experiment
    metrics, last = report.results["metrics"], report.history[-1] if report.history else {}
    residual = metrics["completeness_residual"]
    tiles = {"test accuracy, last epoch": f"{metrics['test_accuracy']:.2%}"}
    for size in list(report.results["localization"])[:1]:
        key = f"localization_{size}_median"
        baseline = max((k for k in metrics if k.startswith(f"{key}_")), key=lambda k: metrics[k])
        tiles[f"localization {size}, median"] = f"{metrics[key]:.3f}"
        tiles[f"best baseline: {method_style(baseline.removeprefix(f'{key}_'))[0]}"] = f"{metrics[baseline]:.3f}"
    constant = report.explainable.constant
    if report.explainable.bias is not None:
        constant = f"the constant {report.explainable.bias:.3f}"
    return Page(
        title=report.trained.name,
        subtitle=f"{experiment.source} · data set {report.run.data.name} · {len(report.labels)} test images · "
        f"seed {report.run.train.seed} · {last.get('epoch', '?')} epochs",
        exact=f"Exact: at every level the contributions of a class sum to its logit minus {constant}; the "
        f" largest relative residual measured is {residual:.1e}, which is float32 rounding. Accuracy, localization "
        "and removal are measurements on test images, and post-hoc maps are approximations.",
        tiles={
            **tiles,
            "removal, mean of the curve": f"{metrics['removal_curve_mean']:.3f}",
            "largest residual": f"{residual:.1e}",
        },
        sections=[
            _explanations(report),
            *([_levels(report)] if report.explainable.layers else []),
            *([_localization(report)] if report.results["localization"] else []),
            *report.trained.family.report(report),
            _removal(report),
            _completeness(report),
            _training(report),
            _beside_the_paper(report),
            _provenance(report),
        ],
    )


def _explanations(report: Report) -> Section:
    """The first test images, the first wrong ones, and the weights in color where images have colors."""
    chosen = first_of_each_class(report.labels, 5)
    wrong = np.flatnonzero(report.logits.argmax(1) != report.labels)[:5]
    both = np.concatenate([chosen, wrong])
    parts = report.explainable.decompose(report.images[both], likeliest(report.logits[both]))
    maps = np.asarray(summed(parts, report.images))

    def drawn(rows: slice, caption: str, alt: str) -> Picture:
        index = both[rows]
        names = [f"label {report.classes[label]}" for label in report.labels[index]]
        figure = top_maps(
            report.explainable, report.images[index], names, report.logits[index], report.classes, maps[rows]
        )
        return picture(figure, caption, alt, 495)

    pictures = [
        drawn(
            slice(len(chosen)),
            "The first test images of five classes, and what their pixels contribute to the three likeliest classes.",
            "Test images and their contribution maps, blue against and red for the class",
        )
    ]
    if len(wrong):
        caption = f"The first of {np.sum(report.logits.argmax(1) != report.labels)} test images that are misread."
        pictures.append(drawn(slice(len(chosen), None), caption, "Misread test images and their contribution maps"))
    if report.explainable.layer is None and parts.weights.shape[-1] == 6:
        shown = slice(len(chosen))
        pictures.append(_colors(report, chosen, parts.weights[shown, :1], parts.contributions[shown, :1]))
    return Section(
        "What speaks for and against each class",
        [
            "Each map splits a logit, without remainder, into contributions of the pixels: red adds to the class, blue "
            f"takes away. Maps in a row share their scale; p is the {report.explainable.probability} of the logits."
        ],
        pictures,
    )


def _colors(report: Report, chosen: Int[np.ndarray, " m"], weights: Array, contributions: Array) -> Picture:
    """The weights of the likeliest class, in the colors that they look for."""
    drawn = color_weights(np.asarray(weights), np.asarray(contributions.sum(-1)))
    titles = [[f"{report.classes[k]}: weights"] for k in report.logits[chosen].argmax(1)]
    return picture(
        panel(report.images[chosen], drawn, titles),
        "The dynamic weights of the likeliest class, in the colors that they look for; opaque where they matter.",
        "Test images and color renderings of their weights",
        300,
    )


def _levels(report: Report) -> Section:
    """The predicted class' contributions at the network's own level and at every layer above it."""
    chosen = first_of_each_class(report.labels, 4)
    images, top = report.images[chosen], report.logits[chosen].argmax(1)
    maps = np.concatenate([np.asarray(level) for level in report.explainable.levels(images, top)], axis=1)
    names = [report.explainable.layer or "input", *report.explainable.layers]
    titles = [[name.replace("layer_", "after layer ") for name in names]] * len(chosen)
    predicted = [f"as {report.classes[k]}" for k in top]
    figure = panel(images, maps, titles, predicted, scale="map")
    return Section(
        "The same decision at every level",
        [
            "The logit of the predicted class, split over the input and over each layer's output: "
            + (
                "the sums are equal."
                if report.explainable.bias is not None
                else "what biases above a layer add is left out."
            )
        ],
        [picture(figure, "Each map has its own scale.", "Contribution maps at every layer", 150 * (len(names) + 1))],
    )


def _localization(report: Report) -> Section:
    pictures = []
    for size, scores in report.results["localization"].items():
        grids = report.results["grids"][size]
        caption = (
            f"{size}: {grids['grids']} grids, {int(size[0]) ** 2} scores each, from {grids['eligible_images']} "
            "eligible images. Diamonds are means."
        )
        pictures.append(picture(localization_boxes(scores, int(size[0]) ** 2), caption, f"Box plot, {size} grids", 495))
    return Section(
        "Localization: is the evidence where the object is?",
        [
            "Confidently recognized test images of different classes are tiled into a grid. For every class in it, "
            "the score is the share of its positive evidence that lies on its own image: 1 is perfect, a uniform map "
            "scores 1/9 or 1/4. Only positive evidence counts. The baselines explain the same network."
        ],
        [*pictures, _one_grid(report)],
    )


def _one_grid(report: Report) -> Picture:
    """The first grid, and every method's map of three of its classes."""
    size, grids = next(iter(report.results["grids"].items()))
    members, classes = np.array(grids["first_images"]), np.array(grids["first_classes"])
    cells = np.arange(len(classes))[: int(size[0])]
    mosaic = np.asarray(tile_grid(jnp.asarray(report.images[members])[None]))
    maps = np.stack(list(report.first_maps.values()), axis=1)
    titles = [[method_style(name)[0] for name in report.first_maps]] * len(cells)
    names = [f"{report.classes[classes[k]]} (row {k % int(size[0]) + 1}, column 1)" for k in cells]
    images = np.repeat(mosaic, len(cells), axis=0)
    figure = panel(images, maps, titles, names, scale="map")
    caption = f"The first {size} grid: maps of the classes in its first column, by every method, each on its own scale."
    return picture(figure, caption, "A grid of test images and the maps of all methods", 1040)


def _removal(report: Report) -> Section:
    figure = removal_curves(report.results["removal"], report.results["fractions"])
    count = min(report.run.evaluate.removal_images, len(report.labels))
    return Section(
        "Pixel removal: do unimportant pixels matter?",
        [
            "The pixels that a method calls least important are taken out first (all channels of what the network "
            "reads become zero; of a CoDA Net's encoding that is not black). A map that knows what matters keeps the "
            "label's probability high."
        ],
        [picture(figure, f"Mean over the first {count} test images.", "Pixel removal curves", 700)],
    )


def _completeness(report: Report) -> Section:
    figure = residual_histogram(report.results["residuals"])
    return Section(
        "Completeness: what the contributions miss",
        [
            "For every class of every image: logit minus bias minus the sum of all contributions, relative to the "
            f"image's largest {'|logit minus bias|' if report.explainable.bias is not None else '|logit|'}."
        ],
        [picture(figure, "Float32 rounding, and nothing else.", "Histogram of residuals", 600)],
    )


def _training(report: Report) -> Section:
    metrics = report.results["metrics"]
    text = f"Test accuracy {metrics['test_accuracy']:.2%} with the last epoch"
    if "test_accuracy_best" in metrics:
        text += f", {metrics['test_accuracy_best']:.2%} with the epoch best on a held-out part of the training data"
    if "test_accuracy_highest" in metrics:
        text += (
            f". The highest of all epochs, {metrics['test_accuracy_highest']:.2%}, is chosen on the test images, as in "
            "the paper, and is there to be compared with its number only"
        )
    curves = picture(training_curves(report.history), "One point per epoch.", "Loss and accuracy by epoch", 840)
    return Section("Training", [f"{text}."], [curves])


def _beside_the_paper(report: Report) -> Section:
    metrics = report.results["metrics"]
    paper = report.paper or report.trained.experiment.reference
    if not paper:
        return Section(
            "What was measured",
            [],
            [],
            [Table(["metric", "ours"], [[k.replace("_", " "), f"{v:.4g}"] for k, v in metrics.items()])],
        )
    rows = [
        [name.replace("_", " "), f"{value:.4g}", f"{paper[name]:.4g}" if name in paper else "–"]
        for name, value in metrics.items()
    ]
    text = "The paper's numbers for this configuration."
    if not report.paper:
        reference = report.trained.experiment.reference_name
        text = f"The paper reports nothing for this run. For orientation only, its numbers for {reference}."
    return Section("Ours beside the paper's", [text], [], [Table(["metric", "ours", "paper"], rows)])


def _provenance(report: Report) -> Section:
    config = [[key, shown(value)] for key, value in report.run.fields().items()]
    device = report.info.get("device", {})
    facts = [["device", f"{device.get('count', '?')} x {device.get('kind', '?')}"]]
    facts += [[key, str(report.info.get(key))] for key in ("started", "commit")]
    facts += [
        [f"{part} images, {key}", text] for part, source in report.sources.items() for key, text in source.items()
    ]
    facts += [[name, version] for name, version in report.info.get("versions", {}).items()]
    return Section(
        "Configuration and versions",
        [],
        [],
        [Table(["field", "value"], config), Table(["made with", ""], facts)],
    )
