"""Distilled image sets: contact sheets, simple baselines, nearest-reference accuracy."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from jaxinterp.checks import require, require_labels
from jaxinterp.data.image_set import ImageSet
from jaxinterp.figures.curves import blank

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def contact_sheet(levels: Sequence[ImageSet], classes: Sequence[str], columns: int = 12) -> "Figure":
    """Draw levels of distillation: a row for each class, from left to right fewer and fewer images.

    Args:
        levels: sets from fine to coarse, as `distill` returns them.
        classes: names of the rows.
        columns: single images in a row, over all levels.
    """
    require(levels and classes, "levels, classes", f"{len(levels)} and {len(classes)}", "at least one of each")
    each = max(1, columns // len(levels))
    counts = [min(each, int((level.labels == 0).sum())) for level in levels]
    figure = blank(0.62 * (sum(counts) + 1), 0.66 * len(classes) + 0.4)
    axes = figure.subplots(len(classes), sum(counts), squeeze=False)
    for level, count, start in zip(levels, counts, np.cumsum([0, *counts]), strict=False):
        axes[0, start].set_title(f"level {level.level}", fontsize=9, loc="left")
        for row in range(len(classes)):
            for ax, image in zip(axes[row, start:], level.images[level.labels == row][:count], strict=False):
                picture = image if image.shape[-1] == 3 else image[..., 0]
                ax.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
                ax.set(xticks=[], yticks=[])
    for ax, name in zip(axes[:, 0], classes, strict=True):
        ax.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    return figure


def class_means(images: Float[np.ndarray, "n h w c"], labels: Int[np.ndarray, " n"], classes: int) -> ImageSet:
    """Return the mean image of every class."""
    means = np.stack([images[members].mean(0) for members in _members(labels, classes, 1)]).astype(np.float32)
    return ImageSet(means, np.arange(classes, dtype=np.int32), provenance={"method": "class mean"})


def random_references(
    images: Float[np.ndarray, "n h w c"], labels: Int[np.ndarray, " n"], classes: int, count: int, seed: int = 0
) -> ImageSet:
    """Draw `count` images of every class at random, without replacement."""
    rng = np.random.default_rng(seed)
    indices = np.concatenate([rng.permutation(members)[:count] for members in _members(labels, classes, count)])
    provenance = {"method": "random", "seed": str(seed)}
    return ImageSet(images[indices], labels[indices].astype(np.int32), provenance=provenance)


def k_means(
    images: Float[np.ndarray, "n h w c"], labels: Int[np.ndarray, " n"], classes: int, count: int, seed: int = 0
) -> ImageSet:
    """Return the centers of `count` clusters of every class, by scikit-learn's k-means on pixels."""
    from sklearn.cluster import KMeans

    vectors, means = images.reshape(len(images), -1), KMeans(count, n_init=1, random_state=seed)
    centers = [means.fit(vectors[members]).cluster_centers_ for members in _members(labels, classes, count)]
    centers = np.clip(np.concatenate(centers), 0, 1).astype(np.float32)
    of_class, provenance = (
        np.repeat(np.arange(classes, dtype=np.int32), count),
        {"method": "k-means", "seed": str(seed)},
    )
    return ImageSet(centers.reshape(-1, *images.shape[1:]), of_class, provenance=provenance)


def _members(labels: Int[np.ndarray, " n"], classes: int, count: int) -> list[np.ndarray]:
    """Return the indices of every class's images, of which there must be `count`."""
    require_labels("labels", labels, len(labels), classes)
    members = [np.flatnonzero(labels == c) for c in range(classes)]
    fewest = min(map(len, members))
    require(1 <= count <= fewest, "count", count, f"1 to {fewest}, the images of the rarest class")
    return members


def nearest_reference(
    queries: Float[np.ndarray, "n d"], references: Float[np.ndarray, "r d"], labels: Int[np.ndarray, " r"]
) -> Int[np.ndarray, " n"]:
    """Classify every query as its nearest reference (L2), both as vectors of pixels or of an embedding.

    Example:
        >>> nearest_reference(np.array([[0.9]]), np.array([[0.0], [1.0]]), np.array([7, 3])).tolist()
        [3]
    """
    d = queries.shape[1]
    require(references.shape[1] == d, "references", f"vectors of {references.shape[1]}", f"{d}, as the queries")
    require_labels("labels", labels, len(references))
    squares = (references**2).sum(1)[None] - 2 * queries @ references.T
    return labels[squares.argmin(1)]
