"""Image sets of one's own that are files: folders of classes, and tables of paths and labels."""

import csv
import functools
import io
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxinterp.data.own import PART_NAMES, PARTS, BadFiles, Examples, OnBad, OwnSet, checked_classes, some, split_set
from jaxinterp.data.pictures import FORMATS, read_file
from jaxinterp.errors import DataError
from jaxinterp.files import printable, write_bytes

_COLUMNS = ("path", "label", "split")
_IGNORED = ("thumbs.db", "desktop.ini", "__macosx")  # left by operating systems, as are names with a leading dot


def find(place: str, data_dir: str | os.PathLike[str] | None = None) -> Path:
    """Return the absolute path of a folder or file: where it says, else within `data_dir`, else by its name there."""
    path = Path(place).expanduser()
    tries = [path.absolute()]
    if data_dir is not None:
        tries += [Path(data_dir).expanduser().absolute() / part for part in (path, path.name)]
    try:
        existing = [one for one in tries if one.exists()]
    except (OSError, ValueError):  # too long, or with a null character
        existing = []
    return existing[0] if existing else tries[0]


class _Row(NamedTuple):
    """A file as it was listed."""

    path: Path
    label: str
    part: str  # "" where the set has no parts
    size: int


class Found(NamedTuple):
    """Files, what cannot be used and why, and lines about the set."""

    rows: list[_Row]
    bad: list[tuple[str, str]]
    notes: list[str]


def list_folder(root: Path) -> Found:
    """List the files of a folder of classes, or of parts above classes."""
    if not root.is_dir():
        got = "something else" if root.exists() else "no such folder"
        raise DataError(f"{printable(root)}: got {got}, expected a folder of images for each class")
    folders, strays = _entries(root)
    parts = {folder: PART_NAMES.get(folder.name.casefold(), "") for folder in folders}
    training = [folder for folder, part in parts.items() if part == "train"]
    above = bool(training) and (all(parts.values()) or len(set(parts.values()) - {""}) > 1)
    if above and not all(parts.values()):
        others = ", ".join(printable(folder.name) for folder, part in parts.items() if not part)
        raise DataError(
            f"{printable(root)}: got the folder {others} beside {training[0].name}, expected train, val, test"
        )
    twice = [part for part, count in Counter(parts.values()).items() if above and count > 1]
    if twice:
        raise DataError(f"{printable(root)}: got two folders of the part {twice[0]}, expected one")
    known, rows, bad, empty = extensions(), list[_Row](), list[tuple[str, str]](), list[tuple[str, str]]()
    unlike = list[str]()
    for top in folders if above else [root]:
        classes, beside = _entries(top)
        strays = strays + beside if above else strays
        for folder in classes:
            images, passed = len(rows), len(unlike)
            for file in sorted(_walk(folder), key=str):
                name = file.relative_to(root).as_posix()
                if file.suffix.lower() not in known:
                    unlike.append(name)
                elif size := _size(file):
                    rows.append(_Row(file, folder.name, parts[top] if above else "", size))
                else:
                    bad.append((name, "empty" if size == 0 else "no such file"))
            if len(rows) == images:
                left = len(unlike) - passed
                why = f"a class without images, other files: {left}" if left else "a class without images"
                empty.append((folder.relative_to(root).as_posix(), why))
    if not rows and not bad and not empty:
        many = f"{len(strays)} files and no folder" if strays else "nothing"
        raise DataError(f"{printable(root)}: got {many}, expected a folder of images for each class")
    notes = [f"left out, beside the classes' folders: {some([path.name for path in strays])}"] if strays else []
    if unlike:
        notes.append(f"left out {len(unlike)}, no images by their names: {some(unlike)}")
    return Found(rows, [*bad, *empty], notes)


def _entries(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the folders and the files of a folder, sorted; without what operating systems leave."""
    try:
        entries = sorted((path for path in folder.iterdir() if not _ignored(path.name)), key=lambda path: path.name)
    except OSError as error:
        raise DataError(f"{printable(folder)}: got {error.strerror}, expected a folder that can be read") from error
    folders = [path for path in entries if path.is_dir()]
    return folders, [path for path in entries if path not in set(folders)]


def _walk(folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not _ignored(name)]
        yield from (Path(place, name) for name in files if not _ignored(name))


def _size(file: Path) -> int | None:
    """Return the bytes of a file; None where there is none, as behind a link to a file that was moved."""
    try:
        return file.stat().st_size if file.is_file() else None
    except (OSError, ValueError):  # too long, or with a null character
        return None


def _ignored(name: str) -> bool:
    return name.startswith(".") or name.casefold() in _IGNORED


@functools.cache
def extensions() -> frozenset[str]:
    """Return the extensions of files that are read."""
    from PIL import Image

    return frozenset(end for end, kind in Image.registered_extensions().items() if kind in (*FORMATS, "MPO"))


def list_table(path: Path) -> Found:
    """List the files of a table: path, label and perhaps split."""
    try:
        text = read_file(path).decode("utf-8-sig", "surrogateescape")
    except DataError as error:
        raise DataError(f"{printable(path)}: {error}") from error
    header = text.partition("\n")[0]
    delimiter = max(",;\t", key=header.count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows, bad, seen = list[_Row](), list[tuple[str, str]](), dict[Path, int]()
    try:
        columns = {str(name).strip().casefold(): name for name in reader.fieldnames or ()}
        if not {"path", "label"} <= set(columns):
            got = printable(", ".join(map(str, columns)) or "none")
            raise DataError(f"{printable(path)}: got the columns {got}, expected path, label and perhaps split")
        for record in reader:
            place, label, part = (str(record.get(columns.get(key, ""), "") or "").strip() for key in _COLUMNS)
            line, shown = f"{printable(path)}, line {reader.line_num}", printable(place)
            if not place or not label:
                raise DataError(f"{line}: got no {'label' if place else 'path'}, expected a path and its label")
            if "split" in columns and part.casefold() not in PART_NAMES:
                raise DataError(f"{line}: got the split {printable(part) or 'nothing'}, expected train, val or test")
            file = Path(os.path.normpath(path.parent / place))
            if file in seen:
                raise DataError(f"{line}: got {shown} a second time, after line {seen[file]}, expected it once")
            seen[file] = reader.line_num
            if size := _size(file):
                rows.append(_Row(file, label, PART_NAMES[part.casefold()] if "split" in columns else "", size))
            else:
                bad.append((place, "empty" if size == 0 else "no such file"))
    except csv.Error as error:
        line = f"{printable(path)}, line {reader.line_num + 1}"
        raise DataError(f"{line}: got {error}, expected a line of a CSV file") from error
    if not rows and not bad:
        raise DataError(f"{printable(path)}: got no row, expected a path and a label in each")
    return Found(rows, bad, [])


def listed_files(
    name: str, root: Path, found: Found, classes: Sequence[str], on_bad: OnBad, fraction: float, seed: int
) -> OwnSet:
    """Make a set of listed files: check its classes, number them, and split it."""
    shown, rows = printable(root), found.rows
    notes = [*found.notes, *BadFiles(on_bad)(shown, found.bad, len(rows) + len(found.bad))]
    if not rows:
        raise DataError(f"{shown}: got no image that can be used, expected at least one")
    present = sorted({row.label for row in rows}, key=_natural)
    names = checked_classes(shown, [printable(label) for label in present], classes)
    training = {printable(row.label) for row in rows if row.part in ("", "train")}
    strange = sorted({printable(row.label) for row in rows} - training)
    if strange:
        raise DataError(f"{shown}: got images of {some(strange)} to test and none to train, expected both")
    numbers = {name: number for number, name in enumerate(names)}
    labels = np.array([numbers[printable(row.label)] for row in rows], np.int32)

    top = Path(os.path.commonpath([row.path.parent for row in rows]))
    relative = [row.path.relative_to(top).as_posix() for row in rows]

    def fetch(place: int) -> tuple[bytes, int]:
        return read_file(rows[place].path), int(labels[place])

    def mark(place: int) -> str:
        return f"{labels[place]} {rows[place].size}"

    everything = Examples(np.arange(len(rows)), relative.__getitem__, fetch, mark, labels.__getitem__)
    parts = np.array([row.part for row in rows])
    given = {part: everything.take(np.flatnonzero(parts == part)) for part in PARTS if (parts == part).any()}
    given = given or {"train": everything}
    provenance = {"source": "files of one's own", "path": str(shown)}
    return split_set(OwnSet(name, names, given, "", tuple(notes), provenance, top), fraction, seed)


def _natural(label: str) -> tuple[int, int, str]:
    """Sort whole numbers as numbers, before other names."""
    number = int(label) if label.isdecimal() and label.isascii() and len(label) < 20 else -1
    return (0, number, label) if number >= 0 else (1, 0, label)


def write_split(own: OwnSet, path: Path) -> None:
    """Write the files of a set with their labels and parts as a table that csv:FILE reads: the same split anywhere."""
    box = io.StringIO(newline="")
    writer = csv.writer(box)
    writer.writerow(_COLUMNS)
    assert own.root is not None
    for part, examples in own.parts.items():
        labels = [own.classes[label] for label in examples.labels]
        writer.writerows(
            (own.root / examples.name(i), label, part) for i, label in zip(examples.index, labels, strict=True)
        )
    write_bytes(path, box.getvalue().encode("utf-8", "surrogateescape"))
