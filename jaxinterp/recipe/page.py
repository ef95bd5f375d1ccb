"""The report of a trained run: what it learned, its maps, and its explanations measured against their baselines."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from matplotlib.figure import Figure

from jaxinterp.checks import shown
from jaxinterp.explain.audit import DISTANCES, Audit
from jaxinterp.explain.decompose import decompose
from jaxinterp.explain.explainable import Explainable
from jaxinterp.explain.metrics import tile_grid
from jaxinterp.explain.program import INPUT
from jaxinterp.figures.curves import (
    localization_boxes,
    method_style,
    removal_curves,
    residual_histogram,
    training_curves,
)
from jaxinterp.figures.html import Page, Picture, Section, Table, picture
from jaxinterp.figures.maps import color_weights, panel
from jaxinterp.recipe.family import Report, TrainedRun
from jaxinterp.recipe.run_folder import MAX_LINES


def first_of_each_class(labels: Int[np.ndarray, " n"], count: int) -> Int[np.ndarray, " m"]:
    """Return the indices of the first image of each of the first `count` classes that occur.

    Example:
        >>> first_of_each_class(np.array([3, 3, 1, 0, 1]), 2).tolist()
        [0, 2]
    """
    return np.sort(np.unique(labels, return_index=True)[1])[:count]


def likeliest(logits: Float[np.ndarray, "n classes"], count: int = 3) -> Int[np.ndarray, "n count"]:
    """Return the classes with the largest logits, the largest first.

    Example:
        >>> likeliest(np.array([[0.1, 2.0, 1.0]]), 2).tolist()
        [[1, 2]]
    """
    return np.argsort(-logits, axis=1, kind="stable")[:, :count]


def small(metrics: Mapping[str, float], name: str, form: str = ".1e") -> str:
    """Write a number near 0; – where a run was measured before there was such a number.

    Example:
        >>> small({"curvature": 0.0}, "curvature"), small({}, "curvature")
        ('0', '–')
    """
    value = metrics.get(name)
    return "–" if value is None else f"{value:{form}}" if value else "0"


def top_maps(
    net: Explainable,
    images: Float[np.ndarray, "n h w c"],
    names: Sequence[str],
    logits: Float[np.ndarray, "n classes"],
    classes: Sequence[str],
    maps: Float[np.ndarray, "n count h w"],
) -> Figure:
    """Draw images under their names, and beside each the contribution maps of its `likeliest` classes."""
    top = likeliest(logits, maps.shape[1])
    shares = np.take_along_axis(net.probabilities(logits), top, 1)
    titles = [
        [f"{classes[k]}: p {p:.3f}" for k, p in zip(*pair, strict=True)] for pair in zip(top, shares, strict=True)
    ]
    return panel(images, maps, titles, names)


def compose_page(report: Report) -> Page:
    """Compose the page of a run."""
    experiment, results, net = report.trained.experiment, report.results, report.explainable
    metrics, last = results["metrics"], report.history[-1] if report.history else {}
    residual = small(metrics, "completeness_residual")
    trained = results.get("unfinished") or (f"{last['epoch']} epochs" if last else "")
    tiles = {"test accuracy, last epoch": f"{metrics['test_accuracy']:.2%}"}
    for size in list(results["localization"])[:1]:
        key = f"localization_{size}_median"
        baseline = max((k for k in metrics if k.startswith(f"{key}_")), key=lambda k: metrics[k])
        tiles[f"localization {size}, median"] = f"{metrics[key]:.3f}"
        tiles[f"best baseline: {method_style(baseline.removeprefix(f'{key}_'))[0]}"] = f"{metrics[baseline]:.3f}"
    tiles["removal, mean of the curve"] = f"{metrics['removal_curve_mean']:.3f}"
    tiles |= {"largest residual": residual, "curvature": small(metrics, "curvature")}
    tiles["discrepancy"] = small(metrics, "discrepancy")
    constant = f"the constant {net.bias:.3f}" if isinstance(net.bias, float) else net.constant
    return Page(
        title=report.trained.name,
        subtitle=f"{experiment.source} · data set {report.run.data.name} · {len(report.labels)} test images · "
        f"seed {report.run.train.seed}" + (f" · {trained}" if trained else ""),
        exact=f"Exact: at every level the contributions of a class sum to its logit minus {constant}; the largest "
        f"relative residual measured is {residual}, which is float32 rounding. Accuracy, localization and removal are "
        "measurements on test images, and post-hoc maps are approximations.",
        tiles=tiles,
        sections=[
            _explanations(report),
            *_levels(report),
            *([_localization(report)] if results["localization"] else []),
            *report.trained.family.report(report),
            _removal(report),
            _completeness(report),
            *([_training(report)] if report.history else []),
            _beside_the_paper(report),
            _provenance(report),
        ],
    )


def audit_page(trained: TrainedRun[Any], found: Audit) -> Page:
    """Compose the page of an audit: the table, how metrics rank methods, and maps beside the truth."""
    whole = found.table()
    split = 2 + (len(DISTANCES) if found.distances else 0)  # method, distances and gap; then metrics and time
    near = [[*row[:split], row[-1]] for row in whole.rows[: len(found.methods)]]
    scored = [[row[0], *row[split:-1]] for row in whole.rows]
    against = [f"{name.replace('_', ' ')}: {words}." for name, words in DISTANCES.items()] if found.distances else []
    text = [
        " ".join([*against, "gap: what the contributions leave of the logit minus the method's bias, relative to it."]),
        *(f"Not computed: {name} ({reason})." for name, reason in found.skipped.items()),
    ]
    ranked = (
        "The last row is Spearman's rank correlation, over the methods, of the metric with the cosine to the truth, "
        "signed so that 1 is a metric that ranks methods as the truth does."
    )
    maps = picture(found.plot(classes=trained.classes), "Each map has its own scale.", "Maps of all methods", 1040)
    tiles = {"methods": str(len(found.methods)), "images": str(len(found.labels))}
    if found.distances:
        cosine = float(np.nanmean(found.distances[found.methods[0]]["cosine"]))
        tiles |= {"nearest to the truth": found.methods[0], "its cosine": f"{cosine:.3f}"}
    return Page(
        title=f"{trained.name}: which explanation to believe",
        subtitle=f"{trained.experiment.source} · data set {trained.run.data.name} · explained: the labels' logits",
        exact=f"{found.caption}.",
        tiles=tiles,
        sections=[
            Section("How far methods are from the truth", text, tables=[Table([*whole.header[:split], "ms"], near)]),
            Section(
                "What popular metrics say",
                ["Means over the images; the arrow says what is good.", *([ranked] if found.distances else [])],
                tables=[Table(["method", *whole.header[split:-1]], scored)],
            ),
            Section("Maps", ["The labels' maps of the first images, by every method."], [maps]),
        ],
    )


def _explanations(report: Report) -> Section:
    """Draw the maps of the first test images and the first misread ones, and the weights of color images in color."""
    misread = np.flatnonzero(report.logits.argmax(1) != report.labels)
    first = first_of_each_class(report.labels, 5)
    rows = np.concatenate([first, misread[:5]])
    parts = decompose(report.explainable, report.images[rows], likeliest(report.logits[rows]))
    maps = np.asarray(parts.maps(report.images.shape[1:3]))

    def draw(part: slice, caption: str, alt: str) -> Picture:
        chosen = rows[part]
        images, logits = report.images[chosen], report.logits[chosen]
        names = [f"label {report.classes[label]}" for label in report.labels[chosen]]
        figure = top_maps(report.explainable, images, names, logits, report.classes, maps[part])
        return picture(figure, caption, alt, 495)

    head = slice(len(first))
    caption = "The first test images of five classes, and what their pixels contribute to the three likeliest classes."
    pictures = [draw(head, caption, "Test images and their contribution maps, blue against and red for the class")]
    if len(misread):
        caption = f"The first of {len(misread)} test images that are misread."
        pictures.append(draw(slice(len(first), None), caption, "Misread test images and their contribution maps"))
    if report.explainable.layer == INPUT and parts.contributions.shape[-1] == 6:
        colors = color_weights(np.asarray(parts.weights[head, :1]), np.asarray(parts.contributions[head, :1].sum(-1)))
        titles = [[f"{report.classes[k]}: weights"] for k in report.logits[first].argmax(1)]
        caption = (
            "The dynamic weights of the likeliest class, in the colors that they look for; opaque where they matter."
        )
        figure = panel(report.images[first], colors, titles)
        pictures.append(picture(figure, caption, "Test images and color renderings of their weights", 300))
    text = (
        "Each map splits a logit, without remainder, into contributions of the pixels: red adds to the class, blue "
        f"takes away. Maps in a row share their scale; p is the {report.explainable.probability} of the logits."
    )
    return Section("What speaks for and against each class", [text], pictures)


def _levels(report: Report) -> list[Section]:
    """Draw the predicted class' contributions at the network's own level and at every layer of maps above it."""
    net, first = report.explainable, first_of_each_class(report.labels, 4)
    images, top = report.images[first], report.logits[first].argmax(1)
    shapes = net.layers(images[:1])
    layers = [name for name in dict.fromkeys((net.layer, *net.levels)) if len(shapes[name]) == 4]
    if len(layers) < 2:
        return []
    parts = decompose(net, images, top, layer=layers)
    maps = np.concatenate([np.asarray(part.maps(images.shape[1:3])) for part in parts], axis=1)
    names = [name.replace("layer_", "after layer ") for name in layers]
    figure = panel(images, maps, [names] * len(first), [f"as {report.classes[k]}" for k in top], scale="map")
    sums = "the sums are equal." if net.bias is not None else "what biases above a layer add is left out."
    section = Section(
        "The same decision at every level",
        [f"The logit of the predicted class, split over the input and over each layer's output: {sums}"],
        [picture(figure, "Each map has its own scale.", "Contribution maps at every layer", 150 * (len(names) + 1))],
    )
    return [section]


def _localization(report: Report) -> Section:
    """Draw the scores of the grid pointing game, and every method's maps of one grid."""
    pictures = []
    for size, scores in report.results["localization"].items():
        grids, cells = report.results["grids"][size], int(size[0]) ** 2
        caption = (
            f"{size}: {grids['grids']} grids, {cells} scores each, from {grids['eligible_images']} eligible images. "
            "Diamonds are means."
        )
        pictures.append(picture(localization_boxes(scores, cells), caption, f"Box plot, {size} grids", 495))
    text = (
        "Confidently recognized test images of different classes are tiled into a grid. For every class in it, the "
        "score is the share of its positive evidence that lies on its own image: 1 is perfect, a uniform map scores "
        "1/9 or 1/4. Only positive evidence counts. The baselines explain the same network."
    )
    return Section("Localization: is the evidence where the object is?", [text], [*pictures, _first_grid(report)])


def _first_grid(report: Report) -> Picture:
    """Draw the first grid, and every method's maps of the classes in its first column."""
    size, grids = next(iter(report.results["grids"].items()))
    classes = grids["first_classes"][: int(size[0])]
    mosaic = tile_grid(report.images[grids["first_images"]][None])
    maps = np.stack(list(report.first_maps.values()), axis=1)
    titles = [[method_style(name)[0] for name in report.first_maps]] * len(classes)
    names = [f"{report.classes[label]} (row {row}, column 1)" for row, label in enumerate(classes, 1)]
    figure = panel(np.repeat(mosaic, len(classes), axis=0), maps, titles, names, scale="map")
    caption = f"The first {size} grid: maps of the classes in its first column, by every method, each on its own scale."
    return picture(figure, caption, "A grid of test images and the maps of all methods", 1040)


def _removal(report: Report) -> Section:
    """Plot the label's probability against the share of pixels removed."""
    figure = removal_curves(report.results["removal"], report.results["fractions"])
    count = min(report.run.evaluate.removal_images, len(report.labels))
    text = (
        "The pixels that a method calls least important are taken out first (all channels of what the network reads "
        "become zero; of a CoDA Net's encoding that is not black). A map that knows what matters keeps the label's "
        "probability high."
    )
    curves = picture(figure, f"Mean over the first {count} test images.", "Pixel removal curves", 700)
    return Section("Pixel removal: do unimportant pixels matter?", [text], [curves])


def _completeness(report: Report) -> Section:
    """Draw the histogram of relative residuals, and say what they, curvature and discrepancy prove."""
    net, metrics = report.explainable, report.results["metrics"]
    size = "|logit minus bias|" if isinstance(net.bias, float) else "|logit|"
    proves = (
        "the bias is known in closed form, so a wrong weight anywhere would show here."
        if net.bias is not None
        else "it proves that the sum is computed right, as the bias is what the weights leave of the logit."
    )
    text = [
        "Residual: logit minus bias minus the sum of all contributions, for every class of every image, relative to "
        f"the image's largest {size}; {proves}",
        f"Curvature, at most {small(metrics, 'curvature')}: the second derivative of the network with its coefficients "
        "held, relative to the first; 0 proves that it is affine at the images, so that weights explain all of it.",
        f"Discrepancy, at most {small(metrics, 'discrepancy')}: how far its logits are from those of the free network, "
        "relative to the largest; 0, but for rounding, proves that what is explained is the network itself.",
    ]
    figure = residual_histogram(report.results["residuals"])
    histogram = picture(figure, "Float32 rounding, and nothing else.", "Histogram of residuals", 600)
    return Section("Completeness: what the contributions miss", text, [histogram])


def _training(report: Report) -> Section:
    """Plot loss and accuracy by epoch."""
    metrics = report.results["metrics"]
    text = f"Test accuracy {metrics['test_accuracy']:.2%} with the last epoch"
    if "test_accuracy_best" in metrics:
        text += f", {metrics['test_accuracy_best']:.2%} with the epoch best on a held-out part of the training data"
    if "test_accuracy_highest" in metrics:
        text += (
            f". The highest of all epochs, {metrics['test_accuracy_highest']:.2%}, is chosen on the test images, as in "
            "the paper, and is there to be compared with its number only"
        )
    caption = f"One point per epoch, of {MAX_LINES} at most."
    curves = picture(training_curves(report.history), caption, "Loss and accuracy by epoch", 840)
    return Section("Training", [f"{text}."], [curves])


def _beside_the_paper(report: Report) -> Section:
    """List every metric beside the paper's number."""
    experiment = report.trained.experiment
    paper, text = report.paper or experiment.reference, "The paper's numbers for this configuration."
    if not report.paper:
        text = "The paper reports nothing for this run. For orientation only, its numbers for "
        text += f"{experiment.reference_name}."
    rows = [[name.replace("_", " "), f"{value:.4g}"] for name, value in report.results["metrics"].items()]
    if not paper:
        return Section("What was measured", tables=[Table(["metric", "ours"], rows)])
    numbers = [f"{paper[name]:.4g}" if name in paper else "–" for name in report.results["metrics"]]
    rows = [[*row, number] for row, number in zip(rows, numbers, strict=True)]
    return Section("Ours beside the paper's", [text], tables=[Table(["metric", "ours", "paper"], rows)])


def _provenance(report: Report) -> Section:
    """List every field of the configuration, and what the run was made with."""
    config = [[key, shown(value)] for key, value in report.run.fields().items()]
    device, versions = report.info.get("device", {}), report.info.get("versions", {})
    facts = [["device", f"{device.get('count', '?')} x {device.get('kind', '?')}"]]
    facts += [[key, str(report.info.get(key))] for key in ("started", "commit")]
    facts += [[f"{part} images, {key}", text] for part, data in report.sources.items() for key, text in data.items()]
    facts += [[name, version] for name, version in versions.items()]
    tables = [Table(["field", "value"], config), Table(["made with", ""], facts)]
    return Section("Configuration and versions", tables=tables)
