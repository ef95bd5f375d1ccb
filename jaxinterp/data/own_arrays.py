"""Image sets of one's own that are arrays, from Python or an .npz file."""

import io
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from jaxinterp.checks import require, require_labels
from jaxinterp.data.own import PARTS, Examples, OwnSet, some, split_set
from jaxinterp.data.pictures import assumed_bits, read_file
from jaxinterp.errors import ConfigError, DataError
from jaxinterp.files import printable


def own_arrays(
    images: Shaped[np.ndarray, "..."],
    labels: Shaped[np.ndarray, "..."],
    *,
    test: tuple[np.ndarray, np.ndarray] | None = None,
    val: tuple[np.ndarray, np.ndarray] | None = None,
    classes: Sequence[str] = (),
    name: str = "arrays",
    test_fraction: float = 0.2,
    seed: int = 0,
) -> OwnSet:
    """Make a set of one's own of arrays; `load` and `read_part` convert them like files.

    Images become 8 bits: floats are rounded, uint16 is scaled by its bits, see `Conversion`. To train on floats as they
    are, at their own size, make a `Dataset`.

    Args:
        images: (N, H, W), or (N, H, W, C) with 1, 3 or (with transparency) 4 channels; uint8, uint16, bool, or floats
            in [0, 1].
        labels: integers from 0 on or texts, (N,) or (N, 1).
        test: images and labels of the test part; by default `test_fraction` of each class.
        val: images and labels of the validation part.
        classes: the classes' names, in the order of their labels; by default the numbers, or the texts, sorted.
        name: of the set.
        test_fraction: in (0, 1).
        seed: of the split.

    Raises:
        ConfigError: an array of another shape, type or range.

    Example:
        >>> images = np.zeros((20, 8, 6), np.uint8)
        >>> own_arrays(images, np.arange(20) % 2, classes=("cat", "dog"))
        OwnSet(arrays: 2 classes; 16 train, 4 test)
    """
    given = {"train": (images, labels), "val": val, "test": test}
    arrays = {part: tuple(map(np.asarray, pair)) for part, pair in given.items() if pair is not None}
    texts = arrays["train"][1].dtype.kind in "UST"
    found = sorted({str(label) for _, part in arrays.values() for label in part.ravel()}) if texts else []
    pieces, numbers = list[Any](), list[Any]()
    for part, (pixels, marks) in arrays.items():
        prefix = "" if part == "train" else f"{part}_"
        channels = pixels.ndim == 3 or (pixels.ndim == 4 and pixels.shape[-1] in (1, 3, 4))
        wanted = "(N, H, W) or (N, H, W, C) with 1, 3 or 4 channels, of uint8, uint16, bool or floats"
        known = pixels.dtype in (np.uint8, np.uint16, bool) or pixels.dtype.kind == "f"
        require(channels and known and pixels.size, f"{prefix}images", f"{pixels.dtype}{pixels.shape}", wanted)
        if pixels.dtype.kind == "f":
            low, high = float(pixels.min()), float(pixels.max())
            require(0 <= low <= high <= 1, f"{prefix}images", f"floats from {low:g} to {high:g}", "floats in [0, 1]")
        marks = marks[:, 0] if marks.ndim == 2 and marks.shape[1] == 1 else marks
        marks = _numbers(marks, tuple(classes) or tuple(found), prefix) if texts else marks
        require_labels(f"{prefix}labels", marks, len(pixels), len(classes) or None)
        pieces.append(pixels)
        numbers.append(marks.astype(np.int32))
    every, starts = np.concatenate(numbers), np.cumsum([0, *map(len, pieces)])
    names = tuple(classes) or tuple(found) or tuple(map(str, range(int(every.max()) + 1)))
    require(len(names) > 1, "labels", f"the class {names[0]} alone", "two classes")

    def fetch(place: int) -> tuple[Shaped[np.ndarray, "..."], int]:
        piece = int(np.searchsorted(starts, place, side="right")) - 1
        return pieces[piece][place - starts[piece]], int(every[place])

    def mark(place: int) -> str:
        pixels, label = fetch(place)
        return f"{label} {zlib.crc32(np.ascontiguousarray(pixels))}"

    places = {part: np.arange(a, b) for part, a, b in zip(arrays, starts[:-1], starts[1:], strict=True)}
    parts = {part: Examples(at, lambda i: f"row {i}", fetch, mark, every.__getitem__) for part, at in places.items()}
    deep = [float(pixels.max()) for pixels in pieces if pixels.dtype == np.uint16]
    bits = assumed_bits(max(deep)) if deep else 0
    provenance = {"source": "arrays of one's own", "path": printable(name)}
    return split_set(OwnSet(name, names, parts, "", (), provenance, bits=bits), test_fraction, seed)


def _numbers(texts: np.ndarray, names: Sequence[str], prefix: str) -> np.ndarray:
    known = {name: number for number, name in enumerate(names)}
    unknown = sorted({str(text) for text in texts.ravel()} - set(known))
    require(not unknown, f"{prefix}labels", some(unknown), f"one of {some(names, 10)}")
    return np.array([known[str(text)] for text in texts.ravel()], np.int32).reshape(texts.shape)


_LAYOUTS = (  # names of the arrays of a part: ours, with a part in front, and Keras's
    {"train": ("images", "labels")},
    {part: (f"{part}_images", f"{part}_labels") for part in PARTS},
    {part: (f"x_{part}", f"y_{part}") for part in PARTS},
)


def npz_set(name: str, path: Path, classes: Sequence[str], fraction: float, seed: int) -> OwnSet:
    """Read the arrays of an .npz file."""
    shown = printable(path)
    try:
        with np.load(io.BytesIO(read_file(path))) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise DataError("got one array, expected an .npz file")
            layout = next((layout for layout in _LAYOUTS if set(layout["train"]) <= set(file)), None)
            if layout is None:
                wanted = "images and labels, or train_images, train_labels, test_images, test_labels"
                raise DataError(f"got the arrays {some(list(file), 10) or 'none'}, expected {wanted}")
            arrays = {part: [file[key] for key in keys] for part, keys in layout.items() if set(keys) <= set(file)}
            names = tuple(classes) or (tuple(map(str, file["classes"])) if "classes" in file else ())
        (images, labels), rest = arrays.pop("train"), dict[str, Any](arrays)
        own = own_arrays(images, labels, classes=names, name=name, test_fraction=fraction, seed=seed, **rest)
    except (DataError, ConfigError) as error:
        raise DataError(f"{shown}: {error}") from error
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"{shown}: got {' '.join(str(error).split())}, expected an .npz file") from error
    return replace(own, provenance={"source": "npz", "path": shown})
