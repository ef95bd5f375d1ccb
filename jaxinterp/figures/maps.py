"""Drawings of explanations, as arrays in [0, 1] and matplotlib figures.

Contribution maps are drawn from blue (against the class) over white to red (for it), with limits symmetric about
zero; their negative part is shown, while the metrics of grids and the color drawings count the positive part only.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Array, Float

from jaxinterp.checks import require
from jaxinterp.figures.curves import FAINT, Numbers, blank

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from jaxinterp.figures.shown import ShownFigure
# Of gray images: weights for black are drawn nearly black, weights for white amber, visible on white paper.
DARK, BRIGHT = np.array([0.1, 0.1, 0.1]), np.array([1.0, 0.7, 0.1])


def shared_limit(maps: Numbers, percentile: float = 99.75) -> float:
    """Return one color limit above zero for many maps: a percentile of |map| over all of them.

    Args:
        maps: any shape, in logits.
        percentile: in [0, 100]; the paper's shared scale takes 99.75.

    Example:
        >>> shared_limit([-3.0, 1.0, 2.0], percentile=100.0)
        3.0
    """
    return float(np.percentile(np.abs(np.asarray(maps)), percentile)) or 1.0


def contribution_map(
    maps: Float[Array | np.ndarray, "*batch height width"], limit: Numbers | None = None, percentile: float = 99.99
) -> Float[np.ndarray, "*batch height width 3"]:
    """Draw channel-summed contributions: blue is negative, white is zero, red is positive.

    Args:
        maps: signed contributions, (..., H, W).
        limit: value of full color, a number or one per map; None for each map's percentile of |map|.
        percentile: for the maps' limits, in [0, 100].

    Returns:
        RGB in [0, 1], (..., H, W, 3), on matplotlib's "bwr".

    Example:
        >>> contribution_map(np.array([[-2.0, 0.0, 1.0]]), limit=2.0).tolist()
        [[[0.0, 0.0, 1.0], [1.0, 1.0, 1.0], [1.0, 0.5, 0.5]]]

    Source: CVPR 2021 (CoDA Nets), Fig. 5 and 8; settings of the released drawing code.
    """
    values = np.asarray(maps, float)
    limits = np.percentile(np.abs(values), percentile, axis=(-2, -1)) if limit is None else np.asarray(limit, float)
    limits = np.broadcast_to(limits, values.shape[:-2])[..., None, None]
    t = np.clip(values / np.where(limits > 0, limits, 1), -1, 1)
    return np.stack([1 + np.minimum(t, 0), 1 - np.abs(t), 1 - np.maximum(t, 0)], axis=-1)


def color_weights(
    weights: Float[Array | np.ndarray, "*batch height width two_channels"],
    contributions: Float[Array | np.ndarray, "*batch height width"],
    smooth: int | None = None,
    percentile: float = 99.5,
) -> Float[np.ndarray, "*batch height width 4"]:
    """Draw the dynamic weights of an encoded image, [x, 1 − x], in the colors to which they align.

    A pixel's weights ω are divided by max |ω| and clipped at 0; each color is ω_x / (ω_x + ω_{1−x}). The opacity is
    ‖ω‖₂ where the pixel contributes to the class and 0 elsewhere, averaged over a box, divided by its percentile and
    clipped to [0, 1]. Weights of a gray image run from nearly black (aligned to black) to amber (to white).

    Args:
        weights: rows of W(x) at the encoded input, (..., H, W, 6), or (..., H, W, 2) of gray images.
        contributions: channel-summed, (..., H, W).
        smooth: side of the box in pixels, odd; None for 15 at 224 pixels and in proportion, 3 at 32, none at 8.
        percentile: of the opacity that is drawn as fully opaque, in [0, 100].

    Returns:
        RGBA in [0, 1], (..., H, W, 4), for a white background.

    Source: Böhle, Fritz, Schiele, "B-cos Networks", CVPR 2022, and its released drawing code.
    """
    from scipy.ndimage import uniform_filter

    omega = np.asarray(weights, float)
    require(omega.shape[-1] in (2, 6), "weights", f"{omega.shape[-1]} channels", "6 (color) or 2 (gray)")
    side = round(min(omega.shape[-3:-1]) * 15 / 224) | 1 if smooth is None else smooth
    require(side >= 1 and side % 2 == 1, "smooth", smooth, "an odd number of pixels")
    evidence = np.maximum(omega / (np.abs(omega).max(-1, keepdims=True) + 1e-12), 0)
    seen, unseen = np.split(evidence, 2, axis=-1)
    color = seen / (seen + unseen + 1e-12)
    if omega.shape[-1] == 2:
        color = DARK + color * (BRIGHT - DARK)
    opacity = np.where(np.asarray(contributions) < 0, 0, np.linalg.norm(omega, axis=-1))
    opacity = uniform_filter(opacity, side, mode="constant", axes=(-2, -1))
    opaque = np.percentile(opacity, percentile, axis=(-2, -1), keepdims=True)
    opacity = np.clip(opacity / np.where(opaque > 0, opaque, 1), 0, 1)
    return np.concatenate([color, opacity[..., None]], axis=-1)


def panel(
    images: Float[Array | np.ndarray, "rows h w c"],
    maps: Float[Array | np.ndarray, "rows columns *shape"],
    titles: Sequence[Sequence[str]],
    image_titles: Sequence[str] = (),
    scale: Literal["row", "map", "all"] = "row",
) -> "ShownFigure":
    """Draw a table of pictures: each image, and beside it its contribution maps, with their titles.

    Args:
        images: (rows, H, W, C) in [0, 1], gray or RGB.
        maps: signed contributions (rows, columns, H', W'), or drawn ones (rows, columns, H', W', 3 or 4).
        titles: of each map, rows × columns.
        image_titles: of each image; none by default.
        scale: full color is one value per "row" (maps of an image compare), per "map", or one for "all".
    """
    from matplotlib.cm import ScalarMappable

    pictures = np.asarray(maps)
    rows, columns = pictures.shape[:2]
    _require_titles(titles, rows, columns)
    signed = pictures.ndim == 4
    if not signed and pictures.size:
        low, high = float(pictures.min()), float(pictures.max())
        wanted = "colors in [0, 1]; contributions are summed over channels, as by Attribution.maps"
        require(low >= 0 and high <= 1, "maps", f"{pictures.shape[-1]} channels from {low:.3g} to {high:.3g}", wanted)
    if signed:
        row = np.percentile(np.abs(pictures), 99.99, axis=(1, 2, 3))[:, None]
        pictures = contribution_map(pictures, {"row": row, "map": None, "all": shared_limit(pictures)}[scale])
    shown = np.broadcast_to(images, (*np.shape(images)[:-1], 3))
    tall = 1.5 * shown.shape[1] / shown.shape[2]
    lines = 1 + max((title.count("\n") for row in titles for title in row), default=0)
    figure = blank(1.55 * (columns + 1), (tall + 0.16 + 0.15 * lines) * rows + 0.5 * signed)
    figure.set_layout_engine("constrained", h_pad=0.06)
    grid = figure.subplots(rows, columns + 1, squeeze=False)
    for i in range(rows):
        _picture(grid[i, 0], shown[i], image_titles[i] if len(image_titles) else "")
    for i, j in np.ndindex(rows, columns):
        _picture(grid[i, j + 1], pictures[i, j], titles[i][j])
    if signed:
        what = {"row": "each row's largest", "map": "each map's largest", "all": "the largest"}[scale]
        place: Any = {"location": "bottom", "aspect": 60, "pad": 0.01, "fraction": 0.04}
        bar = figure.colorbar(ScalarMappable(cmap="bwr"), ax=grid, ticks=[0, 0.5, 1], **place)
        bar.ax.set_xticklabels(["against the class", "0", "for the class"], fontsize=8)
        bar.ax.get_xticklabels()[0].set_horizontalalignment("left")
        bar.ax.get_xticklabels()[2].set_horizontalalignment("right")
        bar.set_label(f"contribution to the logit, full color: {what}", fontsize=8)
        bar.outline.set_edgecolor(FAINT)
    return figure


def _require_titles(titles: Sequence[Sequence[str]], rows: int, columns: int) -> None:
    lengths = [len(row) for row in titles]
    require(lengths == [columns] * rows, "titles", f"rows of {lengths}", f"{rows} of {columns}")


def _picture(axes: "Axes", picture: np.ndarray, title: str) -> None:
    """Show pixels as they are, without ticks, in a thin frame."""
    axes.set_facecolor("white")
    axes.imshow(picture, interpolation="nearest", vmin=0, vmax=1)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(color=FAINT)
    if title:
        axes.set_title(title, fontsize=9, pad=3, parse_math=False)  # a `$` in a name is no formula


def image_rows(rows: Sequence[Float[np.ndarray, "_ h w c"]], names: Sequence[str]) -> "ShownFigure":
    """Draw rows of images in [0, 1], all of one size, with a name beside each row; rows may differ in length.

    Images of three channels are drawn in color, of any other number by their mean over channels.
    """
    longest, (height, width, channels) = max(map(len, rows)), rows[0].shape[1:]
    gap = 1 + width // 32
    canvas = np.ones((len(rows), height + gap, longest, width + gap, 3), np.float32)
    for line, images in zip(canvas, rows, strict=True):
        colored = images if channels == 3 else images.mean(-1, keepdims=True)
        line[:height, : len(images), :width] = colored.transpose(1, 0, 2, 3)
    figure = blank(0.7 * longest * width / max(height, width) + 1, 0.7 * len(rows) * height / max(height, width) + 0.1)
    axes = figure.subplots()
    axes.imshow(canvas.reshape(len(rows) * (height + gap), -1, 3), interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks((np.arange(len(rows)) * (height + gap) + (height - 1) / 2).tolist(), list(names), fontsize=8)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure
