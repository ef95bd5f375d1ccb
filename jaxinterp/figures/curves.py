"""Plots of metrics of explanations and of training, as matplotlib figures without a window or global state."""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Array

from jaxinterp.checks import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from jaxinterp.figures.shown import ShownFigure
Numbers = float | Sequence[Any] | np.ndarray | Array

# Labels and the paper's colors of the methods, in its box plots and removal curves.
METHODS: dict[str, tuple[str, str]] = {
    "decomposition": ("Decomposition", "#42cafd"),
    "grad_cam": ("Grad-CAM", "#ffd23f"),
    "occlusion_5": ("Occlusion 5", "#8a8a8a"),
    "occlusion_9": ("Occlusion 9", "#1a1a1a"),
    "deep_lift": ("DeepLIFT", "#f28c28"),
    "integrated_gradients": ("Integrated Gradients", "#8e5ea2"),
    "input_x_gradient": ("Input × Gradient", "#d2b48c"),
    "gradient": ("Gradient", "#ffffff"),
}
OTHERS = ("#4daf7c", "#e15759", "#4e79a7", "#b07aa1", "#9c755f")
INK, FAINT, ORACLE, UNIFORM = "#333333", "#dddddd", "#1f5fbf", "#e69f00"


def blank(width: int | float, height: int | float) -> "ShownFigure":
    """Return an empty figure of that size in inches, which notebooks show."""
    from jaxinterp.figures.shown import ShownFigure

    return ShownFigure(figsize=(width, height), layout="constrained")


def localization_boxes(scores: Mapping[str, Numbers], cells: int) -> "ShownFigure":
    """Draw a box plot of localization scores, the best mean on top, with the uniform and the perfect score.

    Boxes are quartiles with the median, whiskers reach 1.5 quartile ranges, outliers are not drawn, a diamond marks the
    mean.

    Args:
        scores: method → scores in [0, 1], any shape; they count positive attribution only.
        cells: images in a grid, n².
    """
    values = {name: np.ravel(np.asarray(score)) for name, score in scores.items()}
    order = sorted(values, key=lambda name: float(values[name].mean()))
    labels, colors = zip(*map(method_style, order), strict=True)
    figure = blank(7, 0.42 * len(order) + 1.1)
    axes = figure.subplots()
    boxes = axes.boxplot(
        [values[name] for name in order],
        orientation="horizontal",
        widths=0.62,
        showfliers=False,
        patch_artist=True,
        tick_labels=labels,
        showmeans=True,
        meanprops={"marker": "D", "markersize": 4, "markerfacecolor": "white", "markeredgecolor": INK},
        medianprops={"color": INK, "linewidth": 1.6},
    )
    for color, box, median in zip(colors, boxes["boxes"], boxes["medians"], strict=True):
        box.set(facecolor=color, edgecolor=INK)
        median.set_color("white" if color == METHODS["occlusion_9"][1] else INK)
    _threshold(axes, 1.0, "oracle", ORACLE, zorder=0.5)
    _threshold(axes, 1 / cells, "uniform", UNIFORM, zorder=0.5)
    n = round(np.sqrt(cells))
    axes.set(xlim=(-0.02, 1.04), xlabel=f"positive evidence in the right cell, {n}×{n} grids")
    plain(axes, grid="x")
    return figure


def _threshold(axes: "Axes", x: int | float, text: str, color: str, zorder: int | float = 2) -> None:
    """Draw a dashed vertical line with its name above."""
    axes.axvline(x, color=color, linestyle="--", linewidth=1.2, zorder=zorder)
    offset: Any = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
    axes.annotate(text, (x, 1), (0, 3), ha="center", fontsize=9, color=color, **offset)


def removal_curves(curves: Mapping[str, Numbers], fractions: Numbers, order: str = "least") -> "ShownFigure":
    """Plot the label's probability against the share of pixels removed, one line per method, with its mean.

    Args:
        curves: method → mean label probability, (points,).
        fractions: share of the pixels removed, in [0, 1], (points,).
        order: the pixels removed first, "least" or "most" important.
    """
    figure = blank(7, 3.8)
    axes = figure.subplots()
    percent = 100 * np.asarray(fractions)
    style: Any = {"linewidth": 2, "marker": "o", "markersize": 5.5, "markeredgecolor": INK, "markeredgewidth": 0.7}
    every = 15 if len(percent) > 60 else max(1, len(percent) // 6)
    means = {name: float(np.mean(np.asarray(curve))) for name, curve in curves.items()}
    for name in sorted(curves, key=lambda name: -means[name]):
        label, color = method_style(name)
        axes.plot(percent, np.asarray(curves[name]), color=INK, linewidth=2.8)
        label = f"{label} ({means[name]:.3f})"
        axes.plot(percent, np.asarray(curves[name]), color=color, markevery=every, label=label, **style)
    axes.set(xlabel=f"pixels removed, {order} important first (%)", ylabel="mean probability of the label")
    axes.margins(x=0.02)
    plain(axes, grid="y")
    beside: Any = {"loc": "center left", "bbox_to_anchor": (1, 0.5)}
    axes.legend(title="mean of the curve", fontsize=8, title_fontsize=8, frameon=False, **beside)
    return figure


def residual_histogram(residuals: Numbers, tolerance: float | None = 1e-4) -> "ShownFigure":
    """Draw a histogram of |relative residual|, the distance of Σ contributions from the logit, on a logarithmic axis.

    Args:
        residuals: signed or not, relative to the logit's change, any shape; exact zeros are counted in the title.
        tolerance: a line to stay below; None for none.
    """
    sizes = np.abs(np.ravel(np.asarray(residuals, float)))
    positive = sizes[sizes > 0]
    figure = blank(6, 3)
    axes = figure.subplots()
    if len(positive):
        low, high = np.floor(np.log10(positive.min())), np.ceil(np.log10(positive.max()))
        edges = np.logspace(low, max(high, low + 1), 10 * int(max(high - low, 1)) + 1)
        axes.hist(positive, bins=edges.tolist(), color=METHODS["decomposition"][1], edgecolor="white", linewidth=0.5)
    axes.set_xscale("log")
    if tolerance is not None:
        _threshold(axes, tolerance, f"tolerance {tolerance:g}", UNIFORM)
    zeros = f", {len(sizes) - len(positive)} of them exactly zero" if len(positive) < len(sizes) else ""
    axes.set(xlabel="|logit − bias − Σ contributions|, relative", ylabel="logits")
    axes.set_title(f"{len(sizes)} logits{zeros}; largest {sizes.max(initial=0):.1e}", fontsize=10, loc="left", pad=16)
    plain(axes, grid="y")
    return figure


def training_curves(history: Sequence[Mapping[str, Any]]) -> "ShownFigure":
    """Plot loss and accuracy over the epochs; a loss that falls more than fivefold on a logarithmic axis.

    Args:
        history: one record per epoch with "epoch" and any of "loss", "val_loss", "test_loss", "accuracy", … .
    """
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    names = sorted({key for record in history for key in record})
    keys = {m: [key for key in names if re.fullmatch(rf"(\w+_)?{m}", key)] for m in ("loss", "accuracy")}
    shown = [measure for measure in keys if keys[measure]]
    require(shown, "history", "no loss and no accuracy", "one record per epoch")
    figure = blank(4.2 * len(shown), 3)
    colors = {"": "#8a8a8a", "train": "#8a8a8a", "val": UNIFORM, "test": ORACLE}
    for axes, measure in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        for key in keys[measure]:
            points = [(record["epoch"], record[key]) for record in history if key in record]
            part = key.removesuffix(measure).rstrip("_")
            label = {"": "train", "val": "validation"}.get(part, part)
            color, marker = colors.get(part, OTHERS[0]), "o" if len(points) < 3 else None
            axes.plot(*zip(*points, strict=True), label=label, color=color, linewidth=1.8, marker=marker)
        values = [record[key] for record in history for key in keys[measure] if key in record]
        if measure == "loss" and max(values) > 5 * min(values) > 0:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
        axes.set(xlabel="epoch", ylabel=measure)
        axes.legend(fontsize=9, frameon=False)
        plain(axes, grid="y")
    return figure


def overlap_matrices(overlaps: Numbers, names: Sequence[str], classes: Sequence[str]) -> "ShownFigure":
    """Draw heat maps of the overlap of the classes' open sub-networks, one per layer of gates with its own scale.

    Args:
        overlaps: (layers, classes, classes), shares of the layer's units; NaN without pairs.
        names: of the layers.
        classes: names of the classes.
    """
    values = np.asarray(overlaps)
    figure = blank(2.1 * len(values) + 0.4, 2.5)
    for axes, matrix, name in zip(figure.subplots(1, len(values), squeeze=False)[0], values, names, strict=True):
        known = matrix[np.isfinite(matrix)]
        low, high = (known.min(), known.max()) if known.size else (0, 1)
        axes.imshow(matrix, cmap="viridis", vmin=low, vmax=high)
        axes.set_title(f"{name}: {low:.2f} to {high:.2f}" if known.size else f"{name}: no pairs", fontsize=9)
        shown = list(classes) if len(classes) <= 12 else []
        axes.set_xticks(range(len(shown)), shown, fontsize=6, rotation=90)
        axes.set_yticks(range(len(shown)), shown, fontsize=6)
    return figure


def method_style(name: str) -> tuple[str, str]:
    """Return the printed label of a method's name, of `METHODS` or any other, and a color that depends on it only.

    Example:
        >>> method_style("occlusion_9"), method_style("occlusion_3")[0]
        (('Occlusion 9', '#1a1a1a'), 'Occlusion 3')
    """
    words = " ".join({"lrp": "LRP"}.get(word, word) for word in name.split("_"))
    other = words[:1].upper() + words[1:], OTHERS[sum(map(ord, name)) % len(OTHERS)]
    return METHODS.get(name, other)


def plain(axes: "Axes", grid: Literal["x", "y"]) -> None:
    """Remove the frame's top and right side, and draw a faint grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    axes.grid(axis=grid, color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)


def order_curves(energy: Numbers, accuracy: Numbers, chance: float) -> "ShownFigure":
    """Plot the energy of each order of a series in logits, and the accuracy, with chance, of the series up to it."""
    sizes, order = np.asarray(energy), np.arange(np.size(energy))
    figure = blank(9, 3.2)
    left, other = figure.subplots(1, 2)
    left.bar(order, np.maximum(sizes, 1e-9), color=METHODS["decomposition"][1], edgecolor=INK, linewidth=0.6)
    left.set(yscale="log", xlabel="order m", ylabel="energy (logits)")
    left.set_ylim(max(1e-6, float(sizes[sizes > 0].min(initial=1.0)) / 2), float(sizes.max(initial=1.0)) * 2)
    other.plot(order, np.asarray(accuracy), color=ORACLE, marker="o", markersize=4)
    other.axhline(chance, color=UNIFORM, linestyle="--", linewidth=1.2)
    other.annotate("chance", (len(order) - 1, chance), (0, 4), textcoords="offset points", ha="right", fontsize=9)
    other.set(ylim=(0, 1.03), xlabel="orders up to m", ylabel="accuracy")
    for axes in (left, other):
        axes.xaxis.get_major_locator().set_params(integer=True)
        plain(axes, grid="y")
    return figure


def level_curves(levels: Sequence[Mapping[str, Any]]) -> "ShownFigure":
    """Plot the accuracy by references of every level of abstraction.

    Args:
        levels: of each the `level`, `images` per class, and accuracies in [0, 1]: by `one` reference per class, by the
            `nearest` of all, and by the `mean` of their embeddings.
    """
    figure = blank(7, 3.2)
    axes = figure.subplots()
    place = [row["level"] for row in levels]
    names = {"one": "one reference per class", "nearest": "the nearest of all", "mean": "mean embedding"}
    for (key, name), color in zip(names.items(), OTHERS, strict=False):
        axes.plot(place, [row[key] for row in levels], marker="o", markersize=4, color=color, label=name)
    axes.set_xticks(place, [f"{row['level']}\n({row['images']:.0f})" for row in levels])
    axes.set(xlabel="level (images per class)", ylabel="accuracy")
    axes.legend(frameon=False, fontsize=9)
    plain(axes, grid="y")
    return figure
