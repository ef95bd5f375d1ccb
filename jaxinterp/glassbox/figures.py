"""Figures of the glass box: responses to orbits, which shift when the image turns, and templates that decided."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from jaxinterp.figures.curves import blank
from jaxinterp.figures.maps import shared_limit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def orbit_rows(
    images: Float[np.ndarray, "n h w c"], responses: Float[np.ndarray, "n g k"], names: Sequence[str]
) -> "Figure":
    """Draw images in [0, 1], and beside each its responses E[g, k]: one row per template, one column per element.

    All responses share one scale, red above and blue below 0.
    """
    figure = blank(8, 1.5 * len(images))
    axes = figure.subplots(len(images), 2, squeeze=False, width_ratios=[1, 5])
    limit = shared_limit(responses, 99.9)
    for (left, right), image, parts, name in zip(axes, images, responses, names, strict=True):
        _draw(left, image, name)
        right.imshow(parts.T, cmap="bwr", vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
        right.set(ylabel="template", xticks=[], yticks=[])
        right.yaxis.label.set_size(7)
    axes[-1, 1].set_xlabel("group element", fontsize=8)
    return figure


def deciding_templates(
    images: Float[np.ndarray, "n h w c"],
    templates: Float[np.ndarray, "n m h w c"],
    values: Float[np.ndarray, "n m"],
    names: Sequence[str],
) -> "Figure":
    """Draw images in [0, 1], and beside each the templates that contributed most to its logit, and by how much.

    Templates are drawn as they were turned; a frame is red for and blue against.
    """
    columns = 1 + templates.shape[1]
    figure = blank(1.1 * columns, 1.35 * len(images))
    axes = figure.subplots(len(images), columns, squeeze=False)
    for row, image, turned, parts, name in zip(axes, images, templates, values, names, strict=True):
        _draw(row[0], image, name)
        for panel, template, value in zip(row[1:], turned, parts, strict=True):
            _draw(panel, template, f"{value:+.2f}")
            panel.spines[:].set(color="#d62728" if value > 0 else "#1f5fbf", linewidth=2)
    return figure


def _draw(axes: "Axes", image: Float[np.ndarray, "h w c"], title: str) -> None:
    axes.imshow(image if image.shape[-1] == 3 else image[..., 0], cmap="gray", vmin=0, vmax=1)
    axes.set_title(title, fontsize=8, parse_math=False)
    axes.set(xticks=[], yticks=[])
