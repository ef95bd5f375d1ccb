"""Segments of an image: squares of a grid, or superpixels."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import numpy as np
from jaxtyping import Int

from jaxinterp.checks import require_whole
from jaxinterp.errors import ConfigError

Superpixels = Literal["felzenszwalb", "quickshift", "slic"]


def squares(size: tuple[int, int], cells: int = 1, *, side: int | None = None) -> Int[np.ndarray, "height width"]:
    """Return the square of each pixel, of a grid with `cells` along each side, or as many as there are pixels.

    With `side`, squares have that many pixels along each side instead; those at the right and lower border may be cut.

    Example:
        >>> squares((4, 4), 2).tolist()
        [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]
        >>> squares((2, 3), side=2).tolist()
        [[0, 0, 1], [0, 0, 1]]
    """
    if side is None:
        require_whole("cells", cells, 1)
        row, column = (np.arange(pixels) * min(cells, pixels) // pixels for pixels in size)
        return row[:, None] * cells + column
    require_whole("side", side, 1)
    row, column = (np.arange(pixels) // side for pixels in size)
    return row[:, None] * -(-size[1] // side) + column


def superpixels(field: str, name: Superpixels, count: int) -> Callable[[np.ndarray], Any]:
    """Return an algorithm of scikit-image with its own settings, (H, W, C) ↦ integers (H, W).

    Args:
        field: argument that a missing scikit-image is reported of.
        name: of the algorithm.
        count: segments that "slic" is asked for.

    Raises:
        ConfigError: scikit-image is not installed.
    """
    try:
        from skimage import segmentation
    except ModuleNotFoundError as error:
        hint = "it to be installed: pip install scikit-image"
        raise ConfigError(f"{field}: got {name} without scikit-image, expected {hint}") from error
    if name == "slic":
        return partial(segmentation.slic, n_segments=count, start_label=0, channel_axis=-1)
    return partial(getattr(segmentation, name), channel_axis=-1)
