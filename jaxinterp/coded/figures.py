"""Figures of coded networks: paths beside their code, decoding by block, early exit, removals and specificity."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Integer

from jaxinterp.figures.curves import FAINT, INK, ORACLE, UNIFORM, blank, plain
from jaxinterp.figures.maps import shared_limit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MIN_LABEL_GAP = 0.05  # between labeled points, as a share of the axis
MAX_NAMES = 24  # classes whose names fit beside a matrix
OTHER = "#d62728"  # red, against the blue of ORACLE


def _finish(axes: "Axes", ylabel: str) -> None:
    """Label the y axis and put the legend over the plot, where it hides no point."""
    axes.set_ylabel(ylabel, fontsize=8)
    axes.legend(fontsize=7, frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=4, borderaxespad=0)
    plain(axes, "y")


def paths_beside_code(
    shares: Float[np.ndarray, "classes paths"], table: Integer[np.ndarray, "classes paths"], names: Sequence[str]
) -> "Figure":
    """Draw the contribution of every path to its class' logit (red for, blue against) beside the words of the code.

    Args:
        shares: contribution of each path to the logit of each class, of one image or the mean over several.
        table: 0 and 1, the class' word.
        names: names of the classes.
    """
    figure = blank(9, max(2.2, 0.26 * min(len(names), 60) + 0.9))
    left, right = figure.subplots(1, 2)
    limit = shared_limit(shares, 99.9)
    left.imshow(table, cmap="Grays", vmin=0, vmax=1.4, aspect="auto")
    drawn = right.imshow(shares, cmap="bwr", vmin=-limit, vmax=limit, aspect="auto")
    for axes, title in ((left, "code: active paths"), (right, "contribution of each path to its class' logit")):
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("path", fontsize=8)
        axes.set_xticks(np.arange(table.shape[1]), np.arange(1, table.shape[1] + 1), fontsize=7)
        axes.set_yticks([])
        axes.tick_params(length=0)
    if len(names) <= MAX_NAMES:
        left.set_yticks(np.arange(len(names)), names, fontsize=7)
    figure.colorbar(drawn, ax=right, fraction=0.05, pad=0.02).ax.tick_params(labelsize=7)
    return figure


def decoding_curve(
    accuracy: Mapping[str, float], final: float, paper: Mapping[str, float] | None = None, chance: float = 0.0
) -> "Figure":
    """Draw the accuracy decoded from each coded block's energies, beside the accuracy of the whole network.

    Args:
        accuracy: block's number → accuracy in [0, 1].
        final: accuracy of the logits.
        paper: the paper's accuracy, block → accuracy.
        chance: accuracy of guessing.
    """
    figure = blank(6, 3)
    axes = figure.subplots()
    blocks = list(accuracy)
    axes.plot(range(len(blocks)), list(accuracy.values()), "o-", color=ORACLE, label="decoded from energies")
    if paper:
        places = [blocks.index(block) for block in paper]
        axes.plot(places, list(paper.values()), "s:", color=INK, label="the paper's", alpha=0.6)
    axes.axhline(final, color=INK, linewidth=1, label="logits of the whole network")
    axes.axhline(chance, color=UNIFORM, linewidth=1, linestyle="--", label="chance")
    axes.set_xticks(range(len(blocks)), [f"block {block}" for block in blocks], fontsize=8)
    axes.set_xlim(-0.3, len(blocks) - 0.7)
    axes.set_ylim(0, 1.02)
    _finish(axes, "test accuracy")
    return figure


def exit_curve(exits: Mapping[str, Mapping[str, float]], whole: float) -> "Figure":
    """Draw accuracy against multiply-adds when images leave at the first block with a sufficient margin.

    Args:
        exits: points of accuracy allowed to be lost → `accuracy` and `compute`, a share of the whole network's.
        whole: accuracy of the whole network.
    """
    figure = blank(6, 3)
    axes = figure.subplots()
    points = [(value["compute"], value["accuracy"]) for value in exits.values()]
    axes.plot(*zip(*points, strict=True), "o-", color=ORACLE, label="early exit")
    span, last = 1 - min([*(x for x, _ in points), 1.0]), -np.inf
    for name, (x, y) in sorted(zip(exits, points, strict=True), key=lambda item: item[1][0]):
        if x - last < MIN_LABEL_GAP * span:
            continue  # its label would lie on the one before
        last = x
        axes.annotate(f"{100 * float(name):g}", (x, y), (4, -9), textcoords="offset points", fontsize=7, color=INK)
    axes.plot([1], [whole], "D", color=INK, label="whole network")
    axes.set_xlabel("multiply-adds, as a share of the whole network's", fontsize=8)
    axes.set_xlim(0.99 - 1.1 * span, 1.01 + 0.05 * span)
    _finish(axes, "test accuracy")
    return figure


def removal_lines(removed: Mapping[str, Mapping[str, float]]) -> "Figure":
    """Draw accuracy when paths of one block are removed: "active" and "inactive" → number of paths → accuracy."""
    figure = blank(6, 3)
    axes = figure.subplots()
    for (kind, values), color in zip(removed.items(), (OTHER, ORACLE), strict=True):
        axes.plot([int(k) for k in values], list(values.values()), "o-", color=color, label=f"{kind} paths")
    axes.set_xlabel("paths removed", fontsize=8)
    _finish(axes, "test accuracy")
    return figure


def specificity_matrix(
    lost: Float[np.ndarray, "classes classes"], overlap: Integer[np.ndarray, "classes classes"], names: Sequence[str]
) -> "Figure":
    """Draw the accuracy that each class loses without each class' paths, and the loss against the paths they share.

    Args:
        lost: (i, j), accuracy lost on class j without the paths of class i; NaN where there are no images.
        overlap: (i, j), number of paths that i and j share.
        names: names of the classes.
    """
    figure = blank(9, 3.6)
    left, right = figure.subplots(1, 2)
    limit = float(np.nanmax(np.abs(lost))) or 1.0
    drawn = left.imshow(lost, cmap="bwr", vmin=-limit, vmax=limit)
    left.set_xlabel("accuracy lost by class", fontsize=8)
    left.set_ylabel("paths removed of class", fontsize=8)
    shown = names if len(names) <= MAX_NAMES else []
    left.set_xticks(np.arange(len(shown)), shown, fontsize=7, rotation=90)
    left.set_yticks(np.arange(len(shown)), shown, fontsize=7)
    left.tick_params(length=0)
    figure.colorbar(drawn, ax=left, fraction=0.046, pad=0.02).ax.tick_params(labelsize=7)
    diagonal = np.eye(len(names), dtype=bool)
    for mask, color, label in ((~diagonal, ORACLE, "another class"), (diagonal, OTHER, "the class itself")):
        right.plot(overlap[mask], lost[mask], "o", markersize=3, color=color, alpha=0.6, label=label)
    right.set_xlabel("paths shared, over all coded blocks", fontsize=8)
    right.axhline(0, color=FAINT, linewidth=1, zorder=0)
    _finish(right, "accuracy lost")
    return figure
