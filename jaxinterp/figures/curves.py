"""Curves of training and styles of methods, as matplotlib figures without a window or global state."""

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

# Labels and the paper's colors of the methods.
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
