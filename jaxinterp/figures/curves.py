"""Plots of metrics of explanations and of training, as matplotlib figures.

matplotlib is imported where a figure is made, and no window or global state of it is touched.
"""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Array

from jaxinterp.checks import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
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


def blank(width: int | float, height: int | float) -> "Figure":
    """Return an empty figure of that size in inches, without a window or global state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def localization_boxes(scores: Mapping[str, Numbers], cells: int) -> "Figure":
    """Draw a box plot of localization scores, the best mean on top, with the uniform and the perfect score.

    Args:
        scores: method → scores in [0, 1], any shape; they count positive attribution only.
        cells: images in a grid, n².

    Returns:
        A matplotlib figure; boxes are quartiles with the median, whiskers reach 1.5 quartile ranges, outliers are
        not drawn, a diamond marks the mean.
    """
    order = sorted(scores, key=lambda name: float(np.mean(np.asarray(scores[name]))))
    values = [np.ravel(np.asarray(scores[name])) for name in order]
    figure = blank(7, 0.42 * len(order) + 1.1)
    axes = figure.subplots()
    boxes = axes.boxplot(
        values,
        orientation="horizontal",
        widths=0.62,
        showfliers=False,
        patch_artist=True,
        tick_labels=[method_style(name)[0] for name in order],
        showmeans=True,
        meanprops={"marker": "D", "markersize": 4, "markerfacecolor": "white", "markeredgecolor": INK},
        medianprops={"color": INK, "linewidth": 1.6},
    )
    for name, box, median in zip(order, boxes["boxes"], boxes["medians"], strict=True):
        box.set(facecolor=method_style(name)[1], edgecolor=INK)
        median.set_color("white" if method_style(name)[1] == METHODS["occlusion_9"][1] else INK)
    axes.axvline(1, color=ORACLE, linestyle="--", linewidth=1.2, zorder=0.5)
    axes.axvline(1 / cells, color=UNIFORM, linestyle="--", linewidth=1.2, zorder=0.5)
    for x, text, color in ((1, "oracle", ORACLE), (1 / cells, "uniform", UNIFORM)):
        axes.annotate(text, (x, 1), (0, 3), xycoords=("data", "axes fraction"), textcoords="offset points",
                      ha="center", fontsize=9, color=color)  # fmt: skip
    side = round(np.sqrt(cells))
    axes.set(xlim=(-0.02, 1.04), xlabel=f"positive evidence in the right cell, {side}×{side} grids")
    plain(axes, grid="x")
    return figure


def removal_curves(curves: Mapping[str, Numbers], fractions: Numbers, order: str = "least") -> "Figure":
    """Plot the label's probability against the share of pixels removed, one line per method.

    Args:
        curves: method → mean label probability, (points,).
        fractions: share of the pixels removed, in [0, 1], (points,).
        order: the pixels removed first, "least" or "most" important.

    Returns:
        A matplotlib figure; the legend gives each curve's mean.
    """
    figure = blank(7, 3.8)
    axes = figure.subplots()
    percent = 100 * np.asarray(fractions)
    for name, curve in sorted(curves.items(), key=lambda item: -float(np.mean(np.asarray(item[1])))):
        label, color = method_style(name)
        every = 15 if len(percent) > 60 else max(1, len(percent) // 6)
        axes.plot(percent, np.asarray(curve), color=INK, linewidth=2.8)
        axes.plot(percent, np.asarray(curve), color=color, linewidth=2, marker="o", markersize=5.5,
                  markevery=every, markeredgecolor=INK, markeredgewidth=0.7,
                  label=f"{label} ({float(np.mean(np.asarray(curve))):.3f})")  # fmt: skip
    axes.set(xlabel=f"pixels removed, {order} important first (%)", ylabel="mean probability of the label")
    axes.margins(x=0.02)
    plain(axes, grid="y")
    axes.legend(title="mean of the curve", fontsize=8, title_fontsize=8, frameon=False, loc="center left",
                bbox_to_anchor=(1, 0.5))  # fmt: skip
    return figure


def residual_histogram(residuals: Numbers, tolerance: float | None = 1e-4) -> "Figure":
    """Draw a histogram of |relative residual|, the distance of Σ contributions from the logit, on a logarithmic axis.

    Args:
        residuals: signed or not, relative to the logit's change, any shape; exact zeros are counted in the title.
        tolerance: a line to stay below; None for none.

    Returns:
        A matplotlib figure.
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
        axes.axvline(tolerance, color=UNIFORM, linestyle="--", linewidth=1.2)
        axes.annotate(f"tolerance {tolerance:g}", (tolerance, 1), (0, 3), xycoords=("data", "axes fraction"),
                      textcoords="offset points", ha="center", fontsize=9, color=UNIFORM)  # fmt: skip
    zeros = f", {len(sizes) - len(positive)} of them exactly zero" if len(positive) < len(sizes) else ""
    axes.set(xlabel="|logit − bias − Σ contributions|, relative", ylabel="logits")
    axes.set_title(f"{len(sizes)} logits{zeros}; largest {sizes.max(initial=0):.1e}", fontsize=10, loc="left", pad=16)
    plain(axes, grid="y")
    return figure


def training_curves(history: Sequence[Mapping[str, Any]]) -> "Figure":
    """Plot loss and accuracy over the epochs; a loss that falls more than fivefold on a logarithmic axis.

    Args:
        history: one record per epoch with "epoch" and any of "loss", "val_loss", "test_loss", "accuracy", … .

    Returns:
        A matplotlib figure.

    Raises:
        ConfigError: no record holds a loss or an accuracy.
    """
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    keys = {
        measure: sorted({key for record in history for key in record if re.fullmatch(rf"(\w+_)?{measure}", key)})
        for measure in ("loss", "accuracy")
    }
    shown = [measure for measure in keys if keys[measure]]
    require(shown, "history", "no loss and no accuracy", "one record per epoch")
    figure = blank(4.2 * len(shown), 3)
    colors = {"": "#8a8a8a", "train": "#8a8a8a", "val": UNIFORM, "test": ORACLE}
    for axes, measure in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        for key in keys[measure]:
            points = [(record["epoch"], record[key]) for record in history if key in record]
            part = key.removesuffix(measure).rstrip("_")
            label = {"": "train", "val": "validation"}.get(part, part)
            axes.plot(*zip(*points, strict=True), label=label, color=colors.get(part, OTHERS[0]), linewidth=1.8,
                      marker="o" if len(points) < 3 else None)  # fmt: skip
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


def overlap_matrices(
    overlaps: Sequence[Sequence[Sequence[float]]] | np.ndarray, names: Sequence[str], classes: Sequence[str]
) -> "Figure":
    """Draw heat maps of the overlap of the classes' open sub-networks, one for each layer of gates.

    Args:
        overlaps: (layers, classes, classes), shares of the layer's units; NaN without pairs.
        names: of the layers.
        classes: names of the classes.

    Returns:
        A matplotlib figure; each layer has its own color scale, with its ends printed above.
    """
    values = np.asarray(overlaps)
    figure = blank(2.1 * len(values) + 0.4, 2.5)
    for axes, matrix, name in zip(figure.subplots(1, len(values), squeeze=False)[0], values, names, strict=True):
        known = matrix[np.isfinite(matrix)]
        low, high = (known.min(), known.max()) if known.size else (0, 1)
        axes.imshow(matrix, cmap="viridis", vmin=low, vmax=high)
        axes.set_title(f"{name}: {low:.2f} to {high:.2f}" if known.size else f"{name}: no pairs", fontsize=9)
        if len(classes) <= 12:
            axes.set_xticks(range(len(classes)), classes, fontsize=6, rotation=90)
            axes.set_yticks(range(len(classes)), classes, fontsize=6)
        else:
            axes.set(xticks=[], yticks=[])
    return figure


def method_style(name: str) -> tuple[str, str]:
    """Return the label and color of a method's name, such as "grad_cam" or "occlusion_3".

    Args:
        name: a name of `METHODS`, or any other.

    Returns:
        The printed label, and a color that depends on the name only.

    Example:
        >>> method_style("occlusion_9"), method_style("occlusion_3")[0]
        (('Occlusion 9', '#1a1a1a'), 'Occlusion 3')
    """
    other = OTHERS[sum(map(ord, name)) % len(OTHERS)]
    return METHODS.get(name, (name.replace("_", " ").capitalize(), other))


def plain(axes: "Axes", grid: Literal["x", "y"]) -> None:
    """Remove the frame's top and right side, and draw a faint grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    axes.grid(axis=grid, color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)


def order_curves(energy: Numbers, accuracy: Numbers, chance: float) -> "Figure":
    """Plot the energy of each order of a series, and the accuracy of the series truncated after it.

    Args:
        energy: (M + 1,), from `jaxinterp.explain.series.energy`, in logits.
        accuracy: (M + 1,), in [0, 1].
        chance: accuracy of guessing.

    Returns:
        A matplotlib figure.
    """
    sizes, right = np.asarray(energy), np.asarray(accuracy)
    order = np.arange(len(sizes))
    figure = blank(9, 3.2)
    left, other = figure.subplots(1, 2)
    left.bar(order, np.maximum(sizes, 1e-9), color=METHODS["decomposition"][1], edgecolor=INK, linewidth=0.6)
    left.set(yscale="log", xlabel="order m", ylabel="energy (logits)")
    left.set_ylim(max(1e-6, float(sizes[sizes > 0].min(initial=1.0)) / 2), float(sizes.max(initial=1.0)) * 2)
    other.plot(order, right, color=ORACLE, marker="o", markersize=4)
    other.axhline(chance, color=UNIFORM, linestyle="--", linewidth=1.2)
    other.annotate("chance", (len(order) - 1, chance), (0, 4), textcoords="offset points", ha="right", fontsize=9)
    other.set(ylim=(0, 1.03), xlabel="orders up to m", ylabel="accuracy")
    for axes in (left, other):
        axes.xaxis.get_major_locator().set_params(integer=True)
        plain(axes, grid="y")
    return figure


def level_curves(levels: Sequence[Mapping[str, Any]]) -> "Figure":
    """Plot the accuracy by references of every level of abstraction.

    Args:
        levels: of each the `level`, `images` per class, and accuracies in [0, 1]: by `one` reference per class, by the
            `nearest` of all, and by the `mean` of their embeddings.

    Returns:
        A matplotlib figure.
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
