"""Sets of a few images that stand for a data set, and their files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from jaxtyping import Float, Int

from jaxinterp.data.datasets import Dataset
from jaxinterp.errors import DataError
from jaxinterp.files import write_arrays


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
