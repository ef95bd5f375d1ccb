"""Data sets prepared by tensorflow-datasets, read from their array_record shards without TensorFlow."""

import io
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Int32, UInt8

from jaxinterp.errors import DataError

_CHUNK = 4096  # records fetched at once
Split: TypeAlias = tuple[UInt8[np.ndarray, "n h w c"], Int32[np.ndarray, " n"], dict[str, str]]


def data_folder(data_dir: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder of data sets: `data_dir`, else $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    return Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def preparation_command(name: str, data_dir: Path) -> str:
    """Return the shell command that downloads and prepares a data set; it needs TensorFlow, reading does not."""
    manual = " --manual_dir=FOLDER_OF_THE_IMAGENET_TAR_FILES" if name == "imagenet2012" else ""
    build = f"tfds build {name} --file_format=array_record --data_dir={shlex.quote(str(data_dir))}{manual}"
    return f"pip install tensorflow-cpu tensorflow-datasets && {build}"


class Prepared(NamedTuple):
    """An opened split: random access to encoded records, its shards with their lengths, and its provenance."""

    source: Any
    shards: list[Path]
    lengths: list[int]
    provenance: dict[str, str]

    def fetch(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Read records {"image": encoded bytes, "label": int, ...}; `DataError` names a damaged shard."""
        try:
            many = len(indices) > 1  # array_record starts a thread for every call of __getitems__
            return self.source.__getitems__([*map(int, indices)]) if many else [self.source[int(indices[0])]]
        except RuntimeError as error:
            if len(indices) > 1:
                return [self.fetch([index])[0] for index in indices]
            shard = self.shards[int(np.searchsorted(np.cumsum(self.lengths), indices[0], side="right"))]
            raise DataError(f"{shard}: damaged array_record shard ({one_line(error)})") from error


def open_prepared(name: str, split: str, data_dir: Path) -> Prepared | None:
    """Open a prepared split, in the newest `data_dir/name/version` that holds it; None if there is none."""
    split = "validation" if (name, split) == ("imagenet2012", "test") else split  # its test labels are not published
    folders = [path.parent for path in (data_dir / name).glob("*/dataset_info.json")]
    folders = [folder for folder in folders if any(folder.glob(f"{name}-{split}.*-of-*"))]
    if not folders:
        return None
    folder = max(folders, key=lambda path: [int(part) if part.isdigit() else -1 for part in path.name.split(".")])

    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(str(folder))
        info = builder.info.splits[split]
        shards, lengths = [Path(path) for path in info.filepaths], info.shard_lengths
        file_format = builder.info.file_format.value
    except Exception as error:  # tfds has no exception of its own for damaged metadata
        raise DataError(f"{folder}: damaged or foreign dataset_info.json ({one_line(error)})") from error
    if file_format != "array_record":
        command = preparation_command(name, data_dir)
        raise DataError(f"{folder}: prepared as {file_format}, expected array_record; prepare it by: {command}")
    for shard, expected in zip(shards, lengths, strict=True):
        _check_count(shard, expected)
    provenance = {
        "source": "tensorflow-datasets, array_record",
        "path": str(folder),
        "version": str(builder.info.version),
        "md5": "not published; record hashes checked by array_record",
    }
    source = builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})
    return Prepared(source, shards, lengths, provenance)


def read_prepared(name: str, split: str, data_dir: Path) -> Split | None:
    """Read the images (of one size), labels and provenance of a prepared split; None if there is none."""
    opened = open_prepared(name, split, data_dir)
    if opened is None:
        return None
    images, labels, total = [], [], sum(opened.lengths)
    for start in range(0, total, _CHUNK):
        records = opened.fetch(range(start, min(start + _CHUNK, total)))
        images += [decode(record["image"], opened.provenance) for record in records]
        labels += [int(record["label"]) for record in records]
    if len({image.shape for image in images}) != 1:
        raise DataError(f"{opened.provenance['path']}: images of different sizes, or none")
    return np.stack(images), np.asarray(labels, np.int32), opened.provenance


def decode(encoded: bytes, provenance: dict[str, str]) -> UInt8[np.ndarray, "h w c"]:
    """Decode a PNG or JPEG as it is stored: one channel for gray images, three for all others."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(encoded)) as image:
            pixels = np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB"))
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"{provenance['path']}: a record holds no readable image ({one_line(error)})") from error
    return pixels if pixels.ndim == 3 else pixels[..., None]


def one_line(error: BaseException) -> str:
    """Return an exception's message as one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _check_count(shard: Path, expected: int) -> None:
    """Count the records by the shard's footer: of a file cut at 64 KiB, array_record returns other images."""
    from array_record.python.array_record_module import ArrayRecordReader

    try:
        reader = ArrayRecordReader(str(shard))
        count = int(reader.num_records())
        reader.close()
    except RuntimeError as error:
        raise DataError(f"{shard}: missing, truncated or damaged array_record shard ({one_line(error)})") from error
    if count != expected:
        raise DataError(f"{shard}: got {count} records, expected {expected} by dataset_info.json")
