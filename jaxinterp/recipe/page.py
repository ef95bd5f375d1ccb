"""The report of a trained run: what it learned, its maps, and its explanations measured against their baselines."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from matplotlib.figure import Figure

from jaxinterp.checks import shown
from jaxinterp.explain.audit import DISTANCES, SHOWN, Audit
from jaxinterp.explain.decompose import decompose
from jaxinterp.explain.explainable import Explainable
from jaxinterp.explain.metrics import tile_grid
from jaxinterp.explain.program import INPUT
from jaxinterp.figures import charts
from jaxinterp.figures.curves import method_style
from jaxinterp.figures.explorer import Explorable
from jaxinterp.figures.html import Box, Cell, Drawing, MapTable, Page, Section, Table
from jaxinterp.figures.maps import color_weights, panel
from jaxinterp.recipe.explored import chosen_images, explored
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


def maps_beside(
    net: Explainable,
    images: Float[np.ndarray, "n h w c"],
    labels: Int[np.ndarray, " n"],
    logits: Float[np.ndarray, "n classes"],
    classes: Sequence[str],
    maps: Float[np.ndarray, "n count height width"],
    titles: Sequence[Sequence[str]],
    caption: str,
    alt: str,
    **options: Any,
) -> MapTable:
    """Return rows of an image, which says what it is and how it is read, and its maps."""
    shares, best = net.probabilities(logits), logits.argmax(1)
    rows = []
    for image, label, k, share, own, names in zip(images, labels, best, shares, maps, titles, strict=True):
        read = f"a {classes[label]}, read as {classes[k]} with p {share[k]:.2f}"
        cells = [Cell(name, map=one, alt=f"{name}, of {read}") for name, one in zip(names, own, strict=True)]
        rows.append([Cell(f"label {classes[label]},\nread {classes[k]}", image=image, alt=read), *cells])
    return MapTable(rows, caption, alt, **options)


def data_name(name: str) -> str:
    """Return the name of a data set for a page that is sent on: of own files their name, without their place.

    Example:
        >>> data_name("mnist"), data_name("folder:/home/a/photos")
        ('mnist', 'folder:photos')
    """
    kind, _, place = name.partition(":")
    return f"{kind}:{Path(place).resolve().name}" if place and kind != "tfds" else name


def words(key: str) -> str:
    """Return the name of a measurement in words.

    Example:
        >>> words("localization_3x3_median_grad_cam"), words("test_accuracy_best")
        ('localization in 3×3 grids, median of Grad-CAM', 'test accuracy, epoch best on held-out images')
        >>> words("removal_curve_mean"), words("npk_ridge")
        ('pixel removal, mean of the curve', 'NPK: ridge')
    """
    if (found := re.fullmatch(r"localization_(\d)x\1_median(?:_(\w+))?", key)) is not None:
        own = f" of {method_style(found[2])[0]}" if found[2] else ""
        return f"localization in {found[1]}×{found[1]} grids, median{own}"
    if (found := re.fullmatch(r"removal_curve_mean(?:_(\w+))?", key)) is not None:
        return "pixel removal, mean of the curve" + (f" of {method_style(found[1])[0]}" if found[1] else "")
    known = {
        "test_accuracy": "test accuracy, last epoch",
        "test_accuracy_best": "test accuracy, epoch best on held-out images",
        "test_accuracy_highest": "test accuracy, highest of all epochs",
        "completeness_residual": "largest relative residual",
        "discrepancy": "largest discrepancy of frozen and free logits",
        "curvature": "largest curvature",
    }
    if key in known:
        return known[key]
    spoken = key.replace("orders_le_", "of orders up to ").replace("_", " ")
    return re.sub(r"^npk ", "NPK: ", spoken)


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
    tiles |= {"largest relative residual": residual, "curvature": small(metrics, "curvature")}
    tiles["discrepancy"] = small(metrics, "discrepancy")
    bias = f"{net.bias:.3f}" if isinstance(net.bias, float) else net.constant
    return Page(
        title=report.trained.name,
        subtitle=f"{experiment.source} · data set {data_name(report.run.data.name)} · "
        f"{len(report.labels)} test images · seed {report.run.train.seed}" + (f" · {trained}" if trained else ""),
        exact=f"Exact: at every level the contributions of a class and its bias ({bias}) sum to its logit. What "
        f"they miss, the residual, is at most {residual}, relative, which is float32 rounding. Accuracy, "
        "localization and removal are measurements on test images, and post-hoc maps are approximations.",
        tiles=tiles,
        explorer=explore(report.trained, report.images, report.labels, report.logits, results),
        sections=[
            *_colors(report),
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
    maps = _audited(trained, found)
    tiles = {"methods": str(len(found.methods)), "images": str(len(found.labels))}
    if found.distances:
        cosine = float(np.nanmean(found.distances[found.methods[0]]["cosine"]))
        tiles |= {"nearest to the truth": found.methods[0], "its cosine": f"{cosine:.3f}"}
    return Page(
        title=f"{trained.name}: which explanation to believe",
        subtitle=f"{trained.experiment.source} · data set {data_name(trained.run.data.name)} · "
        "explained: the labels' logits",
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


def _audited(trained: TrainedRun[Any], found: Audit) -> MapTable:
    """Draw the methods' maps of the first images beside the truth, with their cosines."""
    shown, names = slice(SHOWN), [*(["truth"] if found.distances else []), *found.methods]
    maps = np.stack([found.maps[name][shown] for name in names], axis=1)
    labels, images = found.labels[shown], np.asarray(found.x[shown])
    titles = [[found.title(name, i) for name in names] for i in range(len(labels))]
    logits = np.asarray(trained.explainable.logits(images))
    given = trained.explainable, images, labels, logits, trained.classes, maps, titles
    return maps_beside(*given, "Each map has its own scale.", "Maps of all methods", scale="map")


def explore(
    trained: TrainedRun[Any],
    images: Float[np.ndarray, "n h w c"],
    labels: Int[np.ndarray, " n"],
    logits: Float[np.ndarray, "n classes"],
    results: Mapping[str, Any] | None = None,
) -> Explorable:
    """Return what can be explored of a run on some of these images, misread ones among them."""
    rows = chosen_images(labels, logits, min(Explorable.MAX_IMAGES, trained.run.evaluate.removal_images))
    own = trained.family.explore(trained, images[rows], logits[rows].argmax(1), rows, results)
    names = [f"test image {row}" for row in rows]
    return explored(trained.explainable, images[rows], trained.classes, labels[rows].astype(int), names, panels=own)


def _colors(report: Report) -> list[Section]:
    """Draw the weights of encoded color images in color."""
    if report.explainable.layer != INPUT or report.run.data.image_shape[-1] != 3:
        return []
    first = first_of_each_class(report.labels, 5)
    top = report.logits[first].argmax(1)
    parts = decompose(report.explainable, report.images[first], top)
    if parts.contributions.shape[-1] != 6:
        return []
    colors = color_weights(np.asarray(parts.weights[:, 0]), np.asarray(parts.contributions[:, 0].sum(-1)))
    on_white = colors[..., :3] * colors[..., 3:] + 1 - colors[..., 3:]
    names = [report.classes[k] for k in top]
    rows = [
        [
            Cell(f"read {name}", image=image, alt=f"An image read as {name}"),
            Cell(f"{name}: weights", image=drawn, alt=f"What the weights of {name} look for in it"),
        ]
        for image, drawn, name in zip(report.images[first], on_white, names, strict=True)
    ]
    caption = "The dynamic weights of the likeliest class, in the colors that they look for; opaque where they matter."
    table = MapTable(rows, caption, f"Weights in color of {', '.join(names)}", cell=140)
    return [Section("What the weights look for", [], [table])]


def _localization(report: Report) -> Section:
    """Draw the scores of the grid pointing game, and every method's maps of one grid."""
    drawn = list[Drawing]()
    for size, scores in report.results["localization"].items():
        grids, cells = report.results["grids"][size], int(size[0]) ** 2
        caption = (
            f"{size}: {grids['grids']} grids, {cells} scores each, from {grids['eligible_images']} eligible images. "
            "Boxes are quartiles, whiskers 1.5 quartile ranges, diamonds means."
        )
        drawn.append(charts.localization(scores, cells, caption))
    text = (
        "Confidently recognized test images of different classes are tiled into a grid. For every class in it, the "
        "score is the share of its positive evidence that lies on its own image: 1 is perfect, a uniform map scores "
        "1/9 or 1/4. Only positive evidence counts. The baselines explain the same network."
    )
    return Section("Localization: is the evidence where the object is?", [text], [*drawn, _first_grid(report)])


def _first_grid(report: Report) -> MapTable:
    """Draw the first grid and every method's maps of its first column's classes, the cell that counts outlined."""
    size, grids = next(iter(report.results["grids"].items()))
    n = int(size[0])
    classes = grids["first_classes"][:n]
    (mosaic,) = tile_grid(report.images[grids["first_images"]][None])
    rows = []
    for row, label in enumerate(classes):
        name = report.classes[label]
        box: Box = (row / n, 0.0, (row + 1) / n, 1 / n)
        cells = [Cell(f"{name},\nrow {row + 1} of column 1", image=mosaic, alt=f"a grid of {n}×{n} images")]
        for method, maps in report.first_maps.items():
            style, own = method_style(method)[0], maps[row]
            positive = np.maximum(own, 0)
            high, wide = (side // n for side in own.shape)
            inside = positive[row * high : (row + 1) * high, :wide].sum() / (positive.sum() or 1)
            alt = f"{style}, map of {name}: {inside:.0%} of the positive evidence in the outlined cell"
            cells.append(Cell(f"{style}\n{inside:.0%} in its cell", map=own, alt=alt, outline=box))
        rows.append(cells)
    caption = (
        f"The first {size} grid: maps of the classes in its first column, by every method, each on its own scale. The "
        "cell that counts is outlined."
    )
    return MapTable(rows, caption, "Maps of the first grid", "map")


def _removal(report: Report) -> Section:
    """Plot the label's probability against the share of pixels removed."""
    count = min(report.run.evaluate.removal_images, len(report.labels))
    text = (
        "The pixels that a method calls least important are taken out first (all channels of what the network reads "
        "become zero; of a CoDA Net's encoding that is not black). A map that knows what matters keeps the label's "
        "probability high."
    )
    caption = f"Mean over the first {count} test images."
    curves = charts.removal(report.results["removal"], report.results["fractions"], caption)
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
    histogram = charts.residuals(report.results["residuals"], "Float32 rounding, and nothing else.")
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
    return Section("Training", [f"{text}."], charts.training(report.history, caption))


def _beside_the_paper(report: Report) -> Section:
    """List every metric, beside the paper's number where the paper measures the same data set."""
    experiment, ours = report.trained.experiment, report.results["metrics"]
    paper, text = report.paper or experiment.reference, "The paper's numbers for this configuration."
    if not report.paper:
        text = "The paper reports nothing for this very run. For orientation only, its numbers for "
        text += f"{experiment.reference_name}."
    same = bool(report.paper) or _same_data(report.run.data.name, experiment.reference_name)
    rows = [[words(name), f"{value:.4g}"] for name, value in ours.items()]
    if not paper or not same:  # digits beside CIFAR-10 would say nothing
        return Section("What was measured", tables=[Table(["measure", "ours"], rows)])
    printed = [f"{paper[name]:.4g}" if name in paper else "–" for name in ours]
    rows = [[*row, one] for row, one in zip(rows, printed, strict=True)]
    return Section("Ours beside the paper's", [text], tables=[Table(["measure", "ours", "paper"], rows)])


def _same_data(name: str, reference: str) -> bool:
    """Return whether a reference, such as "CIFAR-10, CoDA-S", is to runs of the same images."""
    kept = [re.sub(r"[^a-z0-9]", "", text.lower()) for text in (name, reference)]
    return re.search(re.escape(kept[0]) + r"(?!\d)", kept[1]) is not None


def _provenance(report: Report) -> Section:
    """List every field of the configuration, and what the run was made with."""
    fields = {**report.run.fields(), "data.name": data_name(report.run.data.name)}
    config = [[key, shown(value)] for key, value in fields.items()]
    device, versions = report.info.get("device", {}), report.info.get("versions", {})
    facts = [["device", f"{device.get('count', '?')} x {device.get('kind', '?')}"]]
    facts += [[key, str(report.info.get(key))] for key in ("started", "commit")]
    facts += [[f"{part} images, {key}", text] for part, data in report.sources.items() for key, text in data.items()]
    facts += [[name, version] for name, version in versions.items()]
    tables = [Table(["field", "value"], config), Table(["made with", ""], facts)]
    return Section("Configuration and versions", tables=tables)
