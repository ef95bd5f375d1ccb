"""Data sets held in memory: embedded digits, sets prepared by tensorflow-datasets, and official raw files."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int, Int32, UInt8

from jaxinterp.data.class_names import CLASSES
from jaxinterp.data.official import ARCHIVES, FOLDERS, read_raw
from jaxinterp.data.tfds import preparation_command, read_prepared
from jaxinterp.errors import DataError

NAMES: tuple[str, ...] = ("digits", "mnist", "fashion_mnist", "cifar10", "cifar100", "imagenet2012")

_SHAPES = {
    "mnist": (28, 28, 1),
    "fashion_mnist": (28, 28, 1),
    "cifar10": (32, 32, 3),
    "cifar100": (32, 32, 3),
}


@dataclass(frozen=True, eq=False)
class Dataset:
    """One split of a data set, held in memory.

    Attributes:
        name: one of `NAMES`, or a name of your own.
        split: "train", "test", or a part of one, such as "train[held out]".
        images: uint8 (N, H, W, C).
        labels: int32 (N,), each in [0, len(classes)).
        classes: the classes' names, in the order of the labels.
        maximum: the pixel value that becomes 1: float image = images / maximum.
        provenance: where it came from: source, path, version, md5 sums.
    """

    name: str
    split: str
    images: UInt8[np.ndarray, "n h w c"]
    labels: Int32[np.ndarray, " n"]
    classes: tuple[str, ...]
    maximum: int = 255
    provenance: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)


def load(name: str, split: str, data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """Load one split of a small data set.

    `digits` is embedded (scikit-learn's 1,797 8 x 8 digits, pixel values 0 to 16, split 1,437 / 360,
    stratified). The others are looked for in `data_dir`: first as prepared by tensorflow-datasets
    (array_record), then as official raw files (idx, idx.gz, CIFAR binary batches or their tar.gz), whose md5
    sums are checked. Nothing is downloaded.

    Args:
        name: one of `NAMES` except imagenet2012, which is streamed: see `jaxinterp.data.stream`.
        split: "train" or "test".
        data_dir: the data folder; default $TFDS_DATA_DIR, then ~/tensorflow_datasets.

    Returns:
        The split.

    Raises:
        ValueError: unknown name or split.
        DataError: the data are missing (with the command that gets them), truncated, foreign or have a wrong
            checksum.

    >>> digits = load("digits", "test")
    >>> digits.images.shape, digits.maximum, len(digits.classes)
    ((360, 8, 8, 1), 16, 10)
    """
    if name not in NAMES:
        raise ValueError(f"unknown data set {name!r}, expected one of {', '.join(NAMES)}")
    if split not in ("train", "test"):
        raise ValueError(f"unknown split {split!r}, expected 'train' or 'test'")
    if name == "imagenet2012":
        raise ValueError("imagenet2012 does not fit into memory, use jaxinterp.data.stream")
    if name == "digits":
        return _digits(split)
    folder = data_folder(data_dir)
    read = read_prepared(name, split, folder) or read_raw(name, split, folder)
    if read is None:
        raise missing(name, split, folder)
    images, labels, provenance = read
    classes = CLASSES[name]
    if images.shape[1:] != _SHAPES[name]:
        raise DataError(f"{provenance['path']}: images of shape {images.shape[1:]}, {name} has {_SHAPES[name]}")
    if labels.min() < 0 or labels.max() >= len(classes):
        found = f"labels from {labels.min()} to {labels.max()}"
        raise DataError(f"{provenance['path']}: {found}, {name} has 0 to {len(classes) - 1}")
    return Dataset(name, split, images, labels, classes, provenance=provenance)


def hold_out(dataset: Dataset, fraction: float, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Split a data set in two, each class in proportion (by largest remainders), for validation.

    Args:
        dataset: usually a training split.
        fraction: share of examples held out, in (0, 1); round(fraction * N) of them exactly.
        seed: the draw; same seed, same split, on any machine and with any NumPy.

    Returns:
        (rest, held out), both in the original order.

    Raises:
        ValueError: `fraction` is outside (0, 1), or leaves one part empty.

    >>> rest, held = hold_out(load("digits", "train"), 0.1)
    >>> len(rest), len(held)
    (1293, 144)
    """
    count = round(fraction * len(dataset)) if 0 < fraction < 1 else 0
    if not 0 < count < len(dataset):
        raise ValueError(f"fraction must leave both parts of the {len(dataset)} examples non-empty, got {fraction}")
    held = _stratified(dataset.labels, count, seed)
    return _part(dataset, ~held, f"{dataset.split}[rest]"), _part(dataset, held, f"{dataset.split}[held out]")


def data_folder(data_dir: str | os.PathLike[str] | None = None) -> Path:
    """The folder of data sets: `data_dir`, else $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    return Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def missing(name: str, split: str, folder: Path) -> DataError:
    """The one line for data that are not there: what, where it was looked for, and how to get it."""
    places = [str(folder / name / "VERSION")]
    places += [str(folder / place) for place in FOLDERS.get(name, ())]
    files = f", or the official {ARCHIVES[name]} in one of these folders" if name in ARCHIVES else ""
    return DataError(
        f"{name} ({split}) is missing: looked in {', '.join(places)}; "
        f"get it by: {preparation_command(name, folder)}{files}"
    )


def _digits(split: str) -> Dataset:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    whole = Dataset(
        name="digits",
        split=split,
        images=bunch.images.astype(np.uint8)[..., None],
        labels=bunch.target.astype(np.int32),
        classes=CLASSES["digits"],
        maximum=16,
        provenance={
            "source": "scikit-learn, embedded",
            "path": "sklearn.datasets.load_digits",
            "md5": "not published",
        },
    )
    test = _stratified(whole.labels, 360, seed=0)
    return _part(whole, test if split == "test" else ~test, split)


def _part(dataset: Dataset, chosen: Bool[np.ndarray, " n"], split: str) -> Dataset:
    return replace(dataset, split=split, images=dataset.images[chosen], labels=dataset.labels[chosen])


def _stratified(labels: Int[np.ndarray, " n"], count: int, seed: int) -> Bool[np.ndarray, " n"]:
    """Choose `count` examples, each class in proportion: a function of labels, count and seed alone."""
    sizes = np.bincount(labels)
    shares = sizes * count / len(labels)
    quotas = np.floor(shares).astype(np.int64)
    quotas[np.argsort(quotas - shares, kind="stable")[: count - quotas.sum()]] += 1
    # NumPy never changes the bits of a bit generator; what it makes of them, it may.
    order = np.argsort(np.random.PCG64(seed).random_raw(len(labels)), kind="stable")
    by_class = order[np.argsort(labels[order], kind="stable")]
    starts = np.cumsum(sizes) - sizes
    rank = np.arange(len(labels)) - np.repeat(starts, sizes)
    chosen = np.zeros(len(labels), bool)
    chosen[by_class[rank < np.repeat(quotas, sizes)]] = True
    return chosen
