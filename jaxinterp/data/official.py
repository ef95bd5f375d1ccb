"""The official files of MNIST, Fashion-MNIST and CIFAR: read and downloaded, by a registry of their md5 sums."""

import gzip
import hashlib
import io
import os
import tarfile
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pooch
import requests
from jaxtyping import Int32, UInt8

from jaxinterp.checks import require, require_one_of
from jaxinterp.data.tfds import Split, data_folder, one_line, preparation_command
from jaxinterp.errors import DataError

# Where the files may lie below the data folder; the names are those of the archives and of torchvision.
FOLDERS = {
    "mnist": ("mnist", "mnist/raw", "MNIST/raw", "."),
    "fashion_mnist": ("fashion_mnist", "fashion_mnist/raw", "FashionMNIST/raw", "."),
    "cifar10": ("cifar10", "cifar10/cifar-10-batches-bin", "cifar-10-batches-bin", "."),
    "cifar100": ("cifar100", "cifar100/cifar-100-binary", "cifar-100-binary", "."),
}
_IDX: dict[str, tuple[str, ...]] = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_MEMBERS: dict[str, dict[str, tuple[str, ...]]] = {
    "mnist": _IDX,
    "fashion_mnist": _IDX,
    "cifar10": {"train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test": ("test_batch.bin",)},
    "cifar100": {"train": ("train.bin",), "test": ("test.bin",)},
}
_ARCHIVES = {"cifar10": "cifar-10-binary.tar.gz", "cifar100": "cifar-100-binary.tar.gz"}

FILES = pooch.create(path=".", base_url="")
FILES.load_registry(Path(__file__).with_name("registry.txt"))


def download(name: str, data_dir: str | os.PathLike[str] | None = None) -> list[Path]:
    """Download the official files of a data set into `data_dir/name`, where `load` finds them.

    Files that are there with the published md5 sum are left alone; others are replaced once the new file's sum has
    been verified.

    Args:
        name: mnist, fashion_mnist, cifar10 or cifar100.
        data_dir: the data folder; default $TFDS_DATA_DIR, then ~/tensorflow_datasets.

    Returns:
        The paths of the files.

    Raises:
        DataError: no network, or another file than the published one came; nothing is left of it.
    """
    embedded = "one that is downloaded: the digits are in the package"
    require(name != "digits", "name", name, embedded)
    command = preparation_command("imagenet2012", data_folder(data_dir))
    require(name != "imagenet2012", "name", name, f"one that is downloaded; prepare it by: {command}")
    require_one_of("name", name, FOLDERS)
    paths = []
    for file in (file for file in FILES.urls if file.startswith(f"{name}/")):
        path = data_folder(data_dir) / file
        fetch = pooch.HTTPDownloader(progressbar=True)
        try:
            pooch.retrieve(FILES.urls[file], FILES.registry[file], path.name, path.parent, downloader=fetch)
        except requests.ConnectionError as error:
            host = urlsplit(FILES.urls[file]).netloc
            raise DataError(f"{FILES.urls[file]}: download failed (no connection to {host})") from error
        except (OSError, ValueError) as error:  # of the connection, of the disk, or a wrong sum
            raise DataError(f"{FILES.urls[file]}: download failed ({one_line(error)})") from error
        paths.append(path)
    return paths


def read_official(name: str, split: str, data_dir: Path) -> Split | None:
    """Read the images, labels and provenance of a split from its official files, unpacked or as downloaded.

    None if there are none. Raises DataError for a file missing beside others, or without the published md5 sum.
    """
    members = _MEMBERS[name][split]
    for folder in (data_dir / place for place in FOLDERS[name]):
        choices = [[folder / file for file in (f"{member}.gz", member) if _md5(name, file)] for member in members]
        present = [[path for path in paths if path.is_file()] for paths in choices]
        files = [paths[0] for paths in present if paths]
        if files and not all(present):
            raise DataError(f"{name}: {choices[present.index([])][0]} is missing beside {files[0].name}")
        archive = folder / _ARCHIVES.get(name, "")
        if files:
            contents = [_verified(name, path) for path in files]
        elif name in _ARCHIVES and archive.is_file():
            files, contents = [archive], _unpack(_verified(name, archive), members)
        else:
            continue
        images, labels = _decode_cifar(b"".join(contents), name) if name in _ARCHIVES else _decode_idx(*contents)
        sums = ", ".join(f"{path.name}={_md5(name, path.name)}" for path in files)
        return images, labels, {"source": "official raw files", "path": str(files[0].parent), "md5": sums}
    return None


def _md5(name: str, file: str) -> str | None:
    """Return the published sum of a file, None of other files."""
    return FILES.registry.get(f"{name}/{file}", "").removeprefix("md5:") or None


def _verified(name: str, path: Path) -> bytes:
    """Read an official file and compare its md5 sum with the published one; what passes needs no other check."""
    content = path.read_bytes()
    actual, published = hashlib.md5(content).hexdigest(), _md5(name, path.name)
    if actual != published:
        owner = next((file.split("/")[0] for file, md5 in FILES.registry.items() if md5 == f"md5:{actual}"), None)
        why = f"it is a file of {owner}" if owner else "truncated, altered or foreign"
        raise DataError(f"{path}: got md5 {actual}, expected {name}'s {published}: {why}")
    return content


def _decode_idx(images: bytes, labels: bytes) -> tuple[UInt8[np.ndarray, "n 28 28 1"], Int32[np.ndarray, " n"]]:
    """Decode MNIST's pair of files: headers of 16 and 8 bytes, then the pixels by rows, and the labels."""
    images, labels = (gzip.decompress(file) if file[:2] == b"\x1f\x8b" else file for file in (images, labels))
    pixels = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28, 1)
    return pixels, np.frombuffer(labels, np.uint8, offset=8).astype(np.int32)


def _decode_cifar(records: bytes, name: str) -> tuple[UInt8[np.ndarray, "n 32 32 3"], Int32[np.ndarray, " n"]]:
    """Decode CIFAR's records: label byte(s), the fine one last, then 1,024 red, green and blue values by rows."""
    label_bytes = 2 if name == "cifar100" else 1
    rows = np.frombuffer(records, np.uint8).reshape(-1, label_bytes + 3072)
    images = rows[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), rows[:, label_bytes - 1].astype(np.int32)


def _unpack(archive: bytes, members: tuple[str, ...]) -> list[bytes]:
    """Read members of a verified tar.gz archive by their base name, in memory."""
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
        contents = {Path(info.name).name: tar.extractfile(info) for info in tar if Path(info.name).name in members}
        return [file.read() for member in members if (file := contents[member])]
