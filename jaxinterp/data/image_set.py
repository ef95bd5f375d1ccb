"""Sets of a few images that stand for a data set, and their files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from jaxtyping import Float, Int

from jaxinterp.checks import require, require_labels
from jaxinterp.data.datasets import Dataset
from jaxinterp.errors import DataError
from jaxinterp.files import write_arrays


@dataclass(frozen=True, eq=False, repr=False)
class ImageSet:
    """Images with their classes.

    Attributes:
        images: float (N, H, W, C) in [0, 1], at least one.
        labels: integers (N,), from 0 on.
        level: how often the images were merged; 0 for real ones.
        provenance: how and from what they were made.
    """

    images: Float[np.ndarray, "n h w c"]
    labels: Int[np.ndarray, " n"]
    level: int = 0
    provenance: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(self.images.ndim == 4, "images", f"shape {self.images.shape}", "(N, H, W, C)")
        require_labels("labels", self.labels, len(self.images))
        require_unit_range(self.images)

    def __repr__(self) -> str:
        size, classes = "x".join(map(str, self.images.shape[1:])), len(np.unique(self.labels))
        return f"ImageSet({len(self.labels)} images {size} of {classes} classes, level {self.level})"

    def dataset(self, name: str, classes: Sequence[str]) -> Dataset:
        """Return the set as a data set of 8-bit images, to train on; labels beyond the classes raise DataError."""
        label = self.labels.max()
        if label >= len(classes):
            raise DataError(f"{name}: got a distilled image of class {label}, expected {len(classes)} classes")
        images = np.round(255 * self.images).astype(np.uint8)
        return Dataset(name, "distilled", images, self.labels.astype(np.int32), tuple(classes), 255, self.provenance)


def require_unit_range(images: Float[np.ndarray, "n h w c"]) -> None:
    """Raise ConfigError unless images are in [0, 1]; NaN is not."""
    low, high = images.min(), images.max()
    require(0 <= low <= high <= 1, "images", f"values in {low:g}..{high:g}", "[0, 1]")


def write_set(path: str | Path, image_set: ImageSet) -> None:
    """Write a set as .npz: images, labels, level, and its provenance as two arrays of words."""
    level, words = np.array(image_set.level, np.int32), image_set.provenance
    keys, values = (np.array(list(column), str) for column in (words.keys(), words.values()))
    arrays = {"images": image_set.images, "labels": image_set.labels, "level": level, "keys": keys, "values": values}
    write_arrays(Path(path), arrays)


def read_set(path: str | Path) -> ImageSet:
    """Read a set that `write_set` wrote; DataError names a file that is missing, damaged or another."""
    try:
        with Path(path).open("rb") as file, np.load(file) as arrays:
            provenance = dict(zip(arrays["keys"].tolist(), arrays["values"].tolist(), strict=True))
            return ImageSet(arrays["images"], arrays["labels"], int(arrays["level"]), provenance)
    except (OSError, EOFError, ValueError, TypeError, KeyError, BadZipFile) as error:
        raise DataError(f"{path}: not a set of distilled images ({error})") from error
