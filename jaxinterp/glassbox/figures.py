"""Figures of the glass box: responses to orbits, which shift when the image turns, and templates that decided."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from jaxinterp.figures.maps import shared_limit

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def orbit_rows(
    images: Float[np.ndarray, "n h w c"], responses: Float[np.ndarray, "n g k"], names: Sequence[str]
) -> "Figure":
    """Draw images, and beside each its responses: one row per template, one column per group element.

    Args:
        images: in [0, 1], such as an image and moved ones.
        responses: E[g, k] of each.
        names: of the images.

    Returns:
        A matplotlib figure; all responses share one scale, red above and blue below 0.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.5 * len(images)), layout="constrained")
    axes = figure.subplots(len(images), 2, squeeze=False, width_ratios=[1, 5])
    limit = shared_limit(responses, 99.9)
    for (left, right), image, parts, name in zip(axes, images, responses, names, strict=True):
        left.imshow(image if image.shape[-1] == 3 else image[..., 0], cmap="gray", vmin=0, vmax=1)
        left.set_title(name, fontsize=8)
        right.imshow(parts.T, cmap="bwr", vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
        right.set_ylabel("template", fontsize=7)
        for axis in (left, right):
            axis.set_xticks([])
            axis.set_yticks([])
    axes[-1, 1].set_xlabel("group element", fontsize=8)
    return figure


def deciding_templates(
    images: Float[np.ndarray, "n h w c"],
    templates: Float[np.ndarray, "n m h w c"],
    values: Float[np.ndarray, "n m"],
    names: Sequence[str],
) -> "Figure":
    """Draw images, and beside each the templates that contributed most to its decision.

    Args:
        images: in [0, 1].
        templates: of each image, in [0, 1], as they were turned.
        values: contributions to the logit.
        names: of the images.

    Returns:
        A matplotlib figure; a frame is red for and blue against.
    """
    from matplotlib.figure import Figure

    columns = 1 + templates.shape[1]
    figure = Figure(figsize=(1.1 * columns, 1.35 * len(images)), layout="constrained")
    axes = figure.subplots(len(images), columns, squeeze=False)
    for row, image, pictures, parts, name in zip(axes, images, templates, values, names, strict=True):
        titles = [name, *(f"{value:+.2f}" for value in parts)]
        for i, (axis, picture, title) in enumerate(zip(row, [image, *pictures], titles, strict=True)):
            axis.imshow(picture if picture.shape[-1] == 3 else picture[..., 0], cmap="gray", vmin=0, vmax=1)
            axis.set_title(title, fontsize=8)
            axis.set_xticks([])
            axis.set_yticks([])
            if i:
                for spine in axis.spines.values():
                    spine.set(color="#d62728" if parts[i - 1] > 0 else "#1f5fbf", linewidth=2)
    return figure
