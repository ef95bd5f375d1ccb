"""Data sets held in memory: embedded digits, sets prepared by tensorflow-datasets, and official raw files."""

import math
import os
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from jaxinterp.checks import require, require_at_least, require_labels, require_one_of
from jaxinterp.data.class_names import CLASSES
from jaxinterp.data.embedded import read_mnist_2000
from jaxinterp.data.official import FOLDERS, read_official
from jaxinterp.data.tfds import data_folder, preparation_command, read_prepared
from jaxinterp.errors import ConfigError, DataError

if TYPE_CHECKING:
    from jaxinterp.figures.shown import ShownFigure

NAMES: tuple[str, ...] = ("digits", "mnist", "fashion_mnist", "cifar10", "cifar100", "imagenet2012")


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """One split of a data set, held in memory.

    Attributes:
        name: one of `NAMES`, or a name of your own.
        split: "train", "test", or a part of one, such as "train[held out]".
        images: uint8, uint16, float or bool (N, H, W, C), each value in [0, maximum].
        labels: integers (N,), each in [0, len(classes)); held as int32.
        classes: the classes' names, all different, in the order of the labels.
        maximum: the pixel value that becomes 1; by default (0) the type's, 255, 65,535, or 1 for float and bool, which
            only that of floats may exceed.
        provenance: where it came from: source, path, version, md5 sums.

    >>> Dataset("dots", "train", np.zeros((2, 4, 4, 1), np.uint8), np.array([0, 1]), ("a", "b"))
    Dataset(dots, train: 2 images uint8 4x4x1, 2 classes, maximum 255)
    """

    name: str
    split: str
    images: Shaped[np.ndarray, "n h w c"]
    labels: Int[np.ndarray, " n"]
    classes: tuple[str, ...]
    maximum: int | float = 0
    provenance: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        wanted, images = "uint8, uint16, float or bool (N, H, W, C)", self.images
        require(isinstance(images, np.ndarray), "images", f"a {type(images).__name__}", f"a NumPy array, {wanted}")
        dtype = images.dtype
        known = dtype in (np.uint8, np.uint16, bool) or np.issubdtype(dtype, np.floating)
        require(known and images.ndim == 4, "images", f"{dtype}{images.shape}", wanted)
        require(len(images), "images", "none", "at least one")
        classes, maximum = _class_names(self.classes), _maximum(self.maximum, dtype)
        require_labels("labels", self.labels, len(images), len(classes))
        for name, value in (("classes", classes), ("maximum", maximum), ("labels", np.asarray(self.labels, np.int32))):
            object.__setattr__(self, name, value)
        if dtype.kind == "f" or maximum < _maximum(0, dtype):
            low, high = float(images.min()), float(images.max())
            require(low >= 0 and high <= maximum, "images", f"{low:g}..{high:g}", f"values in [0, {maximum}]")

    def floats(self, chosen: Any = slice(None)) -> Float[np.ndarray, "n h w c"]:
        """Return the images, or those at some places, as float32 in [0, 1].

        Example:
            >>> images = np.full((2, 1, 1, 1), 51, np.uint8)
            >>> Dataset("dots", "test", images, np.array([0, 1], np.int32), ("a", "b")).floats(slice(1)).ravel()
            array([0.2], dtype=float32)
        """
        return self.images[chosen].astype(np.float32) / np.float32(self.maximum)

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        images = f"{len(self)} images {self.images.dtype} {'x'.join(map(str, self.images.shape[1:]))}"
        return f"Dataset({self.name}, {self.split}: {images}, {len(self.classes)} classes, maximum {self.maximum})"

    def _repr_html_(self) -> str:
        from jaxinterp.figures.html import Picture, Table, fragment
        from jaxinterp.figures.maps import image_rows

        size = "×".join(map(str, self.images.shape[1:]))
        some = ", ".join(self.classes[:10]) + (", …" if len(self.classes) > 10 else "")
        rows = [
            ("images", f"{len(self):,} of {size}, {self.images.dtype}, maximum {self.maximum}"),
            ("classes", f"{len(self.classes)}: {some}"),
            *((key, self.provenance[key]) for key in ("source", "path") if key in self.provenance),
        ]
        strip = image_rows([self._drawn(range(len(self))[:10])], [""])
        picture = Picture(strip._repr_png_(), "", f"the first images of {self.name}", 700)
        return fragment(Table(("data set", f"{self.name}, {self.split}"), rows), [picture])

    def plot(self, classes: int = 10, columns: int = 10) -> "ShownFigure":
        """Draw the first images of the first classes, a row for each class that has images.

        Args:
            classes: largest number of rows, at least 1.
            columns: largest number of images in a row, at least 1.
        """
        from jaxinterp.figures.maps import image_rows

        require_at_least("classes", classes, 1)
        require_at_least("columns", columns, 1)
        shown = np.unique(self.labels)[:classes]
        rows = [self._drawn(np.flatnonzero(self.labels == label)[:columns]) for label in shown]
        return image_rows(rows, [self.classes[label] for label in shown])

    def _drawn(self, chosen: Sequence[int] | Int[np.ndarray, " m"]) -> Float[np.ndarray, "m h w c"]:
        """Return some images in [0, 1]."""
        return np.asarray(self.images[np.asarray(chosen)], np.float32) / np.float32(self.maximum)


def _class_names(classes: Any) -> tuple[str, ...]:
    """Return the names of classes as a tuple, different texts."""
    names = tuple(classes) if isinstance(classes, Sequence | np.ndarray) and not isinstance(classes, str) else ()
    texts = names and all(isinstance(name, str) for name in names)
    require(texts, "classes", classes, "the classes' names, a tuple of texts")
    twice = [name for name, count in Counter(names).items() if count > 1]
    require(not twice, "classes", f"{', '.join(twice)} more than once", "different names")
    return names


def _maximum(maximum: Any, dtype: np.dtype) -> int | float:
    """Return the pixel value that becomes 1: what was given, else the type's."""
    top = np.iinfo(dtype).max if dtype.kind == "u" else 1
    bound, wanted = (np.inf, "a finite number") if dtype.kind == "f" else (top, f"at most {top}, as {dtype} holds")
    fits = isinstance(maximum, Real) and 0 <= float(maximum) <= bound and math.isfinite(float(maximum))
    require(fits, "maximum", maximum, f"from 0 on, {wanted}")
    return maximum or top


def load_named(name: str, split: str, data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """Load one split of a set of `NAMES`, or of mnist-2000: see `jaxinterp.data.load`."""
    require_one_of("name", name, (*NAMES, "mnist-2000"))
    require_one_of("split", split, ("train", "test"))
    require(name != "imagenet2012", "name", name, "a set that fits into memory; use jaxinterp.data.stream")
    if name == "digits":
        return _digits(split)
    if name == "mnist-2000":
        require(split == "test", "split", split, "test: of mnist-2000 there are no training images")
        images, labels, provenance = read_mnist_2000()
        return Dataset(name, split, images, labels, CLASSES["mnist"], provenance=provenance)
    folder = data_folder(data_dir)
    parts = read_prepared(name, split, folder) or read_official(name, split, folder)
    if parts is None:
        raise missing(name, split, folder)
    images, labels, provenance = parts
    shape = (32, 32, 3) if name.startswith("cifar") else (28, 28, 1)
    try:
        require(images.shape[1:] == shape, "images", images.shape[1:], f"{shape} for {name}")
        return Dataset(name, split, images, labels, CLASSES[name], provenance=provenance)
    except ConfigError as error:
        raise DataError(f"{provenance['path']}: {error}") from error


def hold_out(dataset: Dataset, fraction: float, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Split a data set in two, each class in proportion (by largest remainders), for validation.

    Args:
        dataset: usually a training split.
        fraction: share of examples held out, in (0, 1); round(fraction * N) of them exactly.
        seed: the draw; same seed, same split, on any machine and with any NumPy.

    Returns:
        (rest, held out), both in the original order, neither empty.

    >>> rest, held = hold_out(load_named("digits", "train"), 0.1)
    >>> len(rest), len(held)
    (1293, 144)
    """
    count = round(fraction * len(dataset)) if 0 < fraction < 1 else 0
    require(0 < count < len(dataset), "fraction", fraction, f"in (0, 1), no part of {len(dataset)} images empty")
    held = _stratified(dataset.labels, count, seed)
    return _part(dataset, ~held, f"{dataset.split}[rest]"), _part(dataset, held, f"{dataset.split}[held out]")


def missing(name: str, split: str, folder: Path) -> DataError:
    """Return the error for missing data: what, where it was looked for, and how to get it."""
    places = [str(folder / name / "VERSION"), *(str(folder / place) for place in FOLDERS.get(name, ()))]
    call = f"jaxinterp data get {name} --data-dir {shlex.quote(str(folder))}, or " if name in FOLDERS else ""
    how = f"{call}{preparation_command(name, folder)}"
    return DataError(f"{name} ({split}) is missing: looked in {', '.join(places)}; get it by: {how}")


def _digits(split: str) -> Dataset:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    source = {"source": "scikit-learn, embedded", "path": "sklearn.datasets.load_digits", "md5": "not published"}
    images, labels = bunch.images.astype(np.uint8)[..., None], bunch.target.astype(np.int32)
    digits = Dataset("digits", split, images, labels, CLASSES["digits"], 16, source)
    test = _stratified(digits.labels, 360, seed=0)
    return _part(digits, test if split == "test" else ~test, split)


def _part(dataset: Dataset, chosen: Bool[np.ndarray, " n"], split: str) -> Dataset:
    return replace(dataset, split=split, images=dataset.images[chosen], labels=dataset.labels[chosen])


def _stratified(labels: Int[np.ndarray, " n"], count: int, seed: int) -> Bool[np.ndarray, " n"]:
    """Choose `count` examples, each class in proportion: a function of labels, count and seed alone."""
    shares = np.bincount(labels) * count / len(labels)
    quotas = np.floor(shares).astype(np.int64)
    quotas[np.argsort(quotas - shares, kind="stable")[: count - quotas.sum()]] += 1
    # Raw bits are stable across NumPy versions; `permutation` is not.
    order = np.argsort(np.random.PCG64(seed).random_raw(len(labels)), kind="stable")
    chosen = np.zeros(len(labels), bool)
    for label, quota in enumerate(quotas):
        chosen[order[labels[order] == label][:quota]] = True
    return chosen
