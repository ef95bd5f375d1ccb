"""Sets of a few images that stand for a data set: files and sheets of them, plain ways to choose them, their worth."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import BadZipFile

import numpy as np
from jaxtyping import Float, Int

from jaxinterp.data.datasets import Dataset
from jaxinterp.errors import DataError
from jaxinterp.files import write_arrays

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images with their classes.

    Attributes:
        images: float32 (N, H, W, C) in [0, 1].
        labels: int32 (N,).
        level: of abstraction; 0 for real images.
        provenance: how and from what they were made.
    """

    images: Float[np.ndarray, "n h w c"]
    labels: Int[np.ndarray, " n"]
    level: int = 0
    provenance: Mapping[str, str] = field(default_factory=dict)

    def dataset(self, name: str, classes: Sequence[str]) -> Dataset:
        """The same as a data set of 8-bit images, to train on.

        Raises:
            DataError: a label is not one of so many classes, there is not one for each image, or an image is not in
                [0, 1].
        """
        if len(self.labels) != len(self.images):
            raise DataError(f"{name}: got {len(self.labels)} labels, expected {len(self.images)}, one for each image")
        if not 0 <= self.images.min() <= self.images.max() <= 1:
            seen = f"{self.images.min():g}..{self.images.max():g}"
            raise DataError(f"{name}: got distilled images in {seen}, expected [0, 1]")
        if not 0 <= self.labels.min() <= self.labels.max() < len(classes):
            wrong = self.labels.min() if self.labels.min() < 0 else self.labels.max()
            raise DataError(f"{name}: got a distilled image of class {wrong}, expected {len(classes)} classes")
        images = np.round(255 * self.images).astype(np.uint8)
        return Dataset(name, "distilled", images, self.labels.astype(np.int32), tuple(classes), 255, self.provenance)


def write_set(path: str | Path, one: ImageSet) -> None:
    """Write a set as .npz: images, labels, level, and its provenance as two arrays of words.

    Raises:
        DataError: what no data set is made of, see `read_set`.
    """
    _require_set(path, one.images, one.labels)
    words = {"keys": np.array(list(one.provenance.keys()), str), "values": np.array(list(one.provenance.values()), str)}
    write_arrays(
        Path(path), {"images": one.images, "labels": one.labels, "level": np.array(one.level, np.int32), **words}
    )


def read_set(path: str | Path) -> ImageSet:
    """A set that `write_set` wrote.

    Raises:
        DataError: the file is missing or damaged, or holds no images with labels.
    """
    try:
        with Path(path).open("rb") as file, np.load(file) as arrays:
            found = dict(arrays)
        told = dict(zip(found["keys"].tolist(), found["values"].tolist(), strict=True))
        images, labels, level = found["images"], found["labels"], int(found["level"])
    except (OSError, EOFError, ValueError, TypeError, KeyError, BadZipFile) as error:
        raise DataError(f"{path}: not a set of distilled images ({error})") from error
    _require_set(path, images, labels)
    return ImageSet(images, labels, level, told)


def _require_set(path: str | Path, images: np.ndarray, labels: np.ndarray) -> None:
    fits = images.ndim == 4 and labels.shape == images.shape[:1] and np.issubdtype(labels.dtype, np.integer)
    if not (fits and images.size and 0 <= images.min() <= images.max() <= 1 and labels.min() >= 0):
        raise DataError(
            f"{path}: got images {images.shape} and labels {labels.dtype}{labels.shape}, expected (N, H, W, C) in "
            "[0, 1] and N integers from 0 on, N at least 1"
        )


def contact_sheet(levels: Sequence[ImageSet], classes: Sequence[str], columns: int = 12) -> "Figure":
    """A picture of levels of abstraction: a row for each class, and from left to right ever fewer images.

    Args:
        levels: sets from fine to coarse, as `abstract` returns them.
        classes: names of the rows.
        columns: of single images, over all levels.

    Returns:
        A matplotlib figure.

    Raises:
        ValueError: no level, or no class.
    """
    from matplotlib.figure import Figure

    if not levels or not classes:
        raise ValueError(f"levels, classes: got {len(levels)} and {len(classes)}, expected at least one of each")
    each = max(1, columns // len(levels))
    shown = [min(each, int((one.labels == 0).sum())) for one in levels]
    figure = Figure(figsize=(0.62 * (sum(shown) + 1), 0.66 * len(classes) + 0.4), layout="constrained")
    axes = figure.subplots(len(classes), sum(shown), squeeze=False)
    place = 0
    for one, count in zip(levels, shown, strict=True):
        for row in range(len(classes)):
            of_class = one.images[one.labels == row][:count]
            for i in range(count):
                picture = of_class[i] if of_class.shape[-1] == 3 else of_class[i, ..., 0]
                at = axes[row, place + i]
                at.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
                at.set(xticks=[], yticks=[])
                if place + i == 0:
                    at.set_ylabel(classes[row], rotation=0, ha="right", va="center", fontsize=9)
        axes[0, place].set_title(f"level {one.level}", fontsize=9, loc="left")
        place += count
    return figure


def class_means(images: Float[np.ndarray, "n h w c"], labels: Int[np.ndarray, " n"], classes: int) -> ImageSet:
    """The mean image of every class.

    Raises:
        ValueError: a class has no image, or a label is no class.
    """
    require_of_each(labels, classes, 1)
    means = np.stack([images[labels == c].mean(0) for c in range(classes)]).astype(np.float32)
    return ImageSet(means, np.arange(classes, dtype=np.int32), provenance={"method": "class mean"})


def random_references(
    images: Float[np.ndarray, "n h w c"], labels: Int[np.ndarray, " n"], classes: int, count: int, seed: int = 0
) -> ImageSet:
    """So many random images of every class.

    Raises:
        ValueError: a class has fewer, or a label is no class.
    """
    drawn = np.random.default_rng(seed)
    require_of_each(labels, classes, count)
    places = np.concatenate([drawn.permutation(np.flatnonzero(labels == c))[:count] for c in range(classes)])
    told = {"method": "random", "seed": str(seed)}
    return ImageSet(images[places], np.repeat(np.arange(classes, dtype=np.int32), count), provenance=told)


def k_means(
    images: Float[np.ndarray, "n h w c"], labels: Int[np.ndarray, " n"], classes: int, count: int, seed: int = 0
) -> ImageSet:
    """Centers of so many clusters of every class' images, by scikit-learn's k-means on pixels.

    Raises:
        ValueError: a class has fewer images, or a label is no class.
    """
    from sklearn.cluster import KMeans

    require_of_each(labels, classes, count)
    centers = [
        KMeans(count, n_init=1, random_state=seed).fit(images[labels == c].reshape((labels == c).sum(), -1))
        for c in range(classes)
    ]
    found = np.concatenate([one.cluster_centers_ for one in centers]).reshape(-1, *images.shape[1:])
    told = {"method": "k-means", "seed": str(seed)}
    return ImageSet(
        np.clip(found, 0, 1).astype(np.float32), np.repeat(np.arange(classes, dtype=np.int32), count), provenance=told
    )


def require_classes(labels: Int[np.ndarray, " n"], classes: int) -> None:
    """Refuse labels out of [0, classes).

    Raises:
        ValueError: which range they have.
    """
    if not len(labels) or not 0 <= labels.min() <= labels.max() < classes:
        seen = f"{labels.min()}..{labels.max()}" if len(labels) else "none"
        raise ValueError(f"labels: got {seen}, expected classes in [0, {classes})")


def require_of_each(labels: Int[np.ndarray, " n"], classes: int, count: int) -> None:
    """Refuse labels out of range, and classes with fewer than so many images.

    Raises:
        ValueError: which class has how many.
    """
    require_classes(labels, classes)
    counts = np.bincount(labels, minlength=classes)
    if not 1 <= count <= counts.min():
        least = f"class {int(counts.argmin())} has {counts.min()} images"
        raise ValueError(f"count: got {count}, expected 1 to {counts.min()}: {least}")


def nearest_reference(
    queries: Float[np.ndarray, "n d"], references: Float[np.ndarray, "r d"], labels: Int[np.ndarray, " r"]
) -> Int[np.ndarray, " n"]:
    """Class of the nearest reference (L2) of every query, both as vectors of pixels or of an embedding.

    Raises:
        ValueError: vectors of another length, or another number of labels than of references.

    Example:
        >>> nearest_reference(np.array([[0.9]]), np.array([[0.0], [1.0]]), np.array([7, 3])).tolist()
        [3]
    """
    if references.shape[1] != queries.shape[1]:
        raise ValueError(f"references: got vectors of {references.shape[1]}, expected {queries.shape[1]} as of queries")
    if not 0 < len(labels) == len(references):
        raise ValueError(
            f"labels: got {len(labels)}, expected one for each of {len(references)} references, 1 at least"
        )
    squares = (references**2).sum(1)[None] - 2 * queries @ references.T
    return labels[squares.argmin(1)]
