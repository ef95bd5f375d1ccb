"""Image sets of one's own: what there is, by part, before it is read."""

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int, Int32, Shaped

from jaxinterp.checks import require
from jaxinterp.data.pictures import Bits
from jaxinterp.errors import DataError
from jaxinterp.files import printable

KINDS = {"folder": "PATH", "csv": "FILE", "npz": "FILE", "tfds": "NAME[:VERSION]"}
PARTS = ("train", "val", "test")
PART_NAMES = {
    **{"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val"},
    **{"test": "test", "testing": "test"},
}
OnBad = Literal["raise", "skip"]
FEW = 10  # images of a class, fewer of which are said
_NAMED = 3  # of many files at fault, how many are named


def is_own(name: str) -> bool:
    """Tell whether a data set's name is a place: folder:PATH, csv:FILE, npz:FILE or tfds:NAME[:VERSION]."""
    kind, colon, place = name.partition(":")
    return bool(kind in KINDS and colon and place)


@dataclass(frozen=True, eq=False)
class Examples:
    """The examples of a part, not read yet.

    Attributes:
        index: their places in the listing, (N,).
        name: place -> a name for people, unique in the set.
        fetch: place -> (encoded file or pixels, label).
        mark: place -> what tells, without reading, that the example is another one: its label, and its size or sum.
        labels_at: places -> labels, without reading pictures where that is possible.
    """

    index: Int[np.ndarray, " n"]
    name: Callable[[int], str]
    fetch: Callable[[int], tuple[bytes | Shaped[np.ndarray, "..."], int]]
    mark: Callable[[int], str]
    labels_at: Callable[[Int[np.ndarray, " n"]], Int32[np.ndarray, " n"]]

    def __len__(self) -> int:
        return len(self.index)

    @functools.cached_property
    def labels(self) -> Int32[np.ndarray, " n"]:
        """Labels, (N,); of a set prepared by tensorflow-datasets every record is read for them."""
        return self.labels_at(self.index)

    @property
    def sha256(self) -> str:
        """A sum of the names and marks, in their order."""
        total = hashlib.sha256()
        for place in self.index.tolist():
            total.update(f"{self.name(place)}\0{self.mark(place)}\0".encode("utf-8", "surrogateescape"))
        return total.hexdigest()

    def take(self, chosen: Shaped[np.ndarray, " m"] | slice) -> "Examples":
        """Return some of the examples, by a mask, places or a slice."""
        return replace(self, index=self.index[chosen])


@dataclass(frozen=True, eq=False, repr=False)
class OwnSet:
    """An image classification set of one's own: what there is, by part, read when it is asked for.

    Attributes:
        name: as in `data.name`, such as "folder:photos".
        classes: the classes' names, in the order of the labels.
        parts: "train", "test" and perhaps "val"; "test" of a set without one is drawn from the others.
        split: how the parts came about, in words.
        notes: what was noticed and left out, a line each.
        provenance: where it came from.
        root: folder that the examples' names are relative to, if they are files.
        bits: of deep gray values, where they are known; 0 where not.
    """

    name: str
    classes: tuple[str, ...]
    parts: Mapping[str, Examples]
    split: str
    notes: tuple[str, ...]
    provenance: Mapping[str, str]
    root: Path | None = None
    bits: Bits = 0

    def __repr__(self) -> str:
        sizes = ", ".join(f"{len(examples):,} {part}" for part, examples in self.parts.items())
        return f"OwnSet({printable(self.name)}: {len(self.classes)} classes; {sizes})"

    def part(self, name: str) -> Examples:
        """Return a part; DataError if the set has none of this name."""
        if name not in self.parts:
            raise DataError(f"{printable(self.name)}: got the parts {', '.join(self.parts)}, expected one named {name}")
        return self.parts[name]

    def select(self, classes: Sequence[int]) -> "OwnSet":
        """Select some different classes, numbered anew in the order given; all if there are none."""
        if not classes:
            return self
        known = len(set(classes)) == len(classes) and set(classes) <= set(range(len(self.classes)))
        require(known, "class_subset", tuple(classes), f"different classes in [0, {len(self.classes)})")
        numbers = np.full(len(self.classes), -1, np.int32)
        numbers[list(classes)] = np.arange(len(classes))

        def renumbered(examples: Examples) -> Examples:
            fetch, labels_at = examples.fetch, examples.labels_at
            return replace(
                examples.take(np.isin(examples.labels, classes)),
                fetch=lambda i: ((one := fetch(i))[0], int(numbers[one[1]])),
                labels_at=lambda index: numbers[labels_at(index)],
            )

        parts = {part: renumbered(examples) for part, examples in self.parts.items()}
        return replace(self, classes=tuple(self.classes[k] for k in classes), parts=parts)


def checked_classes(shown: str, found: Sequence[str], classes: Sequence[str]) -> tuple[str, ...]:
    """Return the classes' names: those given, which must cover those found, or those found, at least two."""
    names = tuple(classes) or tuple(found)
    unknown = [name for name in found if name not in set(names)]
    if unknown:
        raise DataError(f"{shown}: got the label {some(unknown)}, expected one of {some(names, 10)}")
    if len(names) < 2:
        raise DataError(f"{shown}: got {f'the class {names[0]} alone' if names else 'no image'}, expected two classes")
    folded: dict[str, str] = {}
    for name in names:
        if (other := folded.setdefault(name.casefold(), name)) is not name:
            raise DataError(
                f"{shown}: got the classes {other} and {name}, expected names that differ beyond their case"
            )
    return names


def split_set(own: OwnSet, fraction: float, seed: int, mixed: bool = False) -> OwnSet:
    """Order the examples by hashes, make a test part if there is none, and say which classes have few images."""

    def ordered(part: str, examples: Examples) -> Examples:
        keys = [
            hashlib.sha256(f"{seed}:{examples.name(i)}".encode("utf-8", "surrogateescape")).digest()
            for i in examples.index.tolist()
        ]
        return examples.take(np.array(sorted(range(len(keys)), key=keys.__getitem__), np.int64))

    parts = dict(own.parts)
    if not (mixed and {"test", "val"} & set(parts)):
        parts = {part: ordered(part, examples) for part, examples in parts.items()}
    split, notes, shown = "as it was found", list(own.notes), printable(own.name)
    if "test" not in parts and "val" in parts:
        parts["test"] = parts.pop("val")
        split = "the validation part is the test part"
    elif "test" not in parts:
        labels = parts["train"].labels
        counts = np.bincount(labels[labels >= 0], minlength=len(own.classes))
        single = [own.classes[k] for k in np.flatnonzero(counts == 1)]
        if single:
            raise DataError(f"{shown}: got 1 image of {some(single)}, expected at least 2, to train and to test")
        quota = np.maximum(np.rint(fraction * counts), 1).astype(np.int64)
        quota = np.minimum(quota, np.maximum(counts - 1, 0))
        test = np.zeros(len(labels), bool)
        for label in range(len(own.classes)):
            test[np.flatnonzero(labels == label)[: quota[label]]] = True
        parts = {"train": parts["train"].take(~test), "test": parts["train"].take(test)}
        split = f"made: {fraction:.0%} of each class to test, seed {seed}"
        notes.append(f"split {split} ({len(parts['train'])} and {len(parts['test'])} images)")
    if own.root is not None:
        counts = np.bincount(parts["train"].labels, minlength=len(own.classes))
        few = [f"{own.classes[k]} ({counts[k]})" for k in np.flatnonzero(counts < FEW)]
        if few:
            notes.append(f"fewer than {FEW} images to train: {some(few)}")
        if untested := sorted(set(range(len(own.classes))) - set(parts["test"].labels.tolist())):
            notes.append(f"no image to test: {some([own.classes[k] for k in untested])}")
    ordered_parts = {part: parts[part] for part in PARTS if part in parts}
    return replace(own, parts=ordered_parts, split=split, notes=tuple(notes))


def some(names: Sequence[str], most: int = _NAMED) -> str:
    """List the first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(printable(name) for name in names[:most]) + more


class BadFiles:
    """What becomes of files that cannot be used: an error that names the first and counts all, or a note."""

    def __init__(self, on_bad: OnBad) -> None:
        self.on_bad = on_bad

    def __call__(self, shown: str, bad: Sequence[tuple[str, str]], total: int) -> list[str]:
        """Raise for bad (name, why) among `total` of a set, or return the note."""
        if not bad:
            return []
        line = f"{len(bad)} of {total}: {some([f'{name} ({why})' for name, why in bad])}"
        if self.on_bad == "raise":
            hint = "to leave these out, add data.on_bad=skip to the command, in Python on_bad='skip'"
            raise DataError(f"{shown}: got {line}, expected images that can be used; {hint}")
        return [f"left out {line}"]


def hold_out_examples(examples: Examples, fraction: float) -> tuple[Examples, Examples]:
    """Split examples in two, each class in proportion: the first ones of each, in their order, are held out."""
    labels, held = examples.labels, np.zeros(len(examples), bool)
    for label in np.unique(labels):
        places = np.flatnonzero(labels == label)
        held[places[: round(fraction * len(places))]] = True
    require(0 < held.sum() < len(held), "val_fraction", fraction, f"a share that splits {len(held)} images in two")
    return examples.take(~held), examples.take(held)
