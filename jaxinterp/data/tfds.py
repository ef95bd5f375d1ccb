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
    folder = max(folders, key=_version)
    return _opened(_builder(folder), split, "image", preparation_command(name, data_dir))


def open_named(name: str, version: str, data_dir: Path) -> tuple[dict[str, Prepared], tuple[str, ...], tuple[str, str]]:
    """Open every split of any prepared image classification set.

    Args:
        name: its name in tensorflow-datasets, with "/CONFIG" where it has configurations.
        version: such as "3.0.1"; the newest that is there if empty.
        data_dir: the data folder.

    Returns:
        The splits by name, the classes' names, and the records' keys of the image and the label.

    Raises:
        DataError: not prepared, damaged, in another format than array_record, or without exactly one image and label.
    """
    import tensorflow_datasets as tfds

    place = data_dir / name
    versions = sorted((path.parent for path in place.glob("*/dataset_info.json")), key=_version)
    chosen = [folder for folder in versions if folder.name == version] if version else versions[-1:]
    command = preparation_command(f"{name}:{version}" if version else name, data_dir)
    if not chosen:
        configs = sorted({f"tfds:{name}/{path.parent.parent.name}" for path in place.glob("*/*/dataset_info.json")})
        found = [f"tfds:{name}:{folder.name}" for folder in versions] or configs
        got = f"{', '.join(found)} alone" if found else "nothing"
        where = place / version if version else place
        raise DataError(f"{where}: got {got}, expected a prepared data set; prepare it by: {command}")
    builder = _builder(chosen[0])
    features = dict(builder.info.features or {})
    images = [key for key, kind in features.items() if type(kind) is tfds.features.Image]
    labels = [key for key, kind in features.items() if isinstance(kind, tfds.features.ClassLabel)]
    labels = ["label"] if "label" in labels else labels
    if len(images) != 1 or len(labels) != 1:
        got = ", ".join(f"{key} ({type(kind).__name__})" for key, kind in features.items()) or "nothing"
        raise DataError(f"{chosen[0]}: got {got}, expected one Image and one ClassLabel")
    (image,), (label,) = images, labels
    names = tuple(features[label].names) or tuple(map(str, range(features[label].num_classes or 0)))
    opened = {split: _opened(builder, split, image, command) for split in builder.info.splits}
    return opened, names, (image, label)


def _version(folder: Path) -> list[int]:
    return [int(part) if part.isdigit() else -1 for part in folder.name.split(".")]


def _builder(folder: Path) -> Any:
    """Return the builder of a prepared version."""
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(str(folder))
        _ = builder.info.file_format.value
    except Exception as error:  # tfds has no exception of its own for damaged metadata
        raise DataError(f"{folder}: damaged or foreign dataset_info.json ({one_line(error)})") from error
    return builder


def _opened(builder: Any, split: str, image: str, command: str) -> Prepared:
    """Open a split whose images, at the key `image`, stay encoded; its shards' records are counted."""
    import tensorflow_datasets as tfds

    folder = str(builder.data_dir)
    try:
        info = builder.info.splits[split]
        shards, lengths = [Path(path) for path in info.filepaths], info.shard_lengths
    except Exception as error:
        raise DataError(f"{folder}: damaged or foreign dataset_info.json ({one_line(error)})") from error
    if (file_format := builder.info.file_format.value) != "array_record":
        raise DataError(f"{folder}: prepared as {file_format}, expected array_record; prepare it by: {command}")
    for shard, expected in zip(shards, lengths, strict=True):
        _check_count(shard, expected)
    provenance = {
        "source": "tensorflow-datasets, array_record",
        "path": folder,
        "version": str(builder.info.version),
        "md5": "not published; record hashes checked by array_record",
    }
    source = builder.as_data_source(split=split, decoders={image: tfds.decode.SkipDecoding()})
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
        with Image.open(io.BytesIO(encoded), formats=("PNG", "JPEG")) as image:
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
