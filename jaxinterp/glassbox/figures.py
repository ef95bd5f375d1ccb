"""A figure of the glass box: templates that decided."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from jaxinterp.figures.curves import blank

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


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
