"""The official raw files: MNIST's idx files and CIFAR's binary batches, checked against md5 sums.

The sums of the downloads are their publishers' (the CIFAR page; the Fashion-MNIST page; for MNIST those that
the mirrors and torchvision use). The sums of the unpacked files are those that published readers of these
files pin.
"""

import gzip
import hashlib
import io
import tarfile
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from jaxinterp.errors import DataError

MD5: dict[str, dict[str, str]] = {
    "mnist": {
        "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
        "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
        "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    },
    "fashion_mnist": {
        "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
        "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
        "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
        "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
        "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
        "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
    },
    "cifar10": {
        "cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530",
        "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
        "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
        "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
        "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
        "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
        "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
    },
    "cifar100": {
        "cifar-100-binary.tar.gz": "03b5dce01913d631647c71ecec9e9cb8",
        "train.bin": "6172c7755cfe09b2fe270c85cebc1b15",
        "test.bin": "4499cfba6c016c1be1438163640a0898",
    },
}

# Where an official file may lie below the data folder; the names are those of the archives and of
# torchvision.
FOLDERS: dict[str, tuple[str, ...]] = {
    "mnist": ("mnist", "mnist/raw", "MNIST/raw", "."),
    "fashion_mnist": ("fashion_mnist", "fashion_mnist/raw", "FashionMNIST/raw", "."),
    "cifar10": ("cifar10", "cifar10/cifar-10-batches-bin", "cifar-10-batches-bin", "."),
    "cifar100": ("cifar100", "cifar100/cifar-100-binary", "cifar-100-binary", "."),
}

ARCHIVES: dict[str, str] = {
    "mnist": "train-*-ubyte.gz and t10k-*-ubyte.gz",
    "fashion_mnist": "train-*-ubyte.gz and t10k-*-ubyte.gz",
    "cifar10": "cifar-10-binary.tar.gz",
    "cifar100": "cifar-100-binary.tar.gz",
}

MEMBERS: dict[str, tuple[str, ...]] = {
    "cifar10/train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
    "cifar10/test": ("test_batch.bin",),
    "cifar100/train": ("train.bin",),
    "cifar100/test": ("test.bin",),
}

_TRUNCATED = (EOFError, gzip.BadGzipFile, zlib.error, tarfile.ReadError)


def verify(name: str, path: Path) -> bytes:
    """Read an official file and compare its md5 sum with the published one.

    Args:
        name: the data set, a key of `MD5`.
        path: the file, called as it was published.

    Returns:
        The file's bytes.

    Raises:
        DataError: the sum is not the published one.
    """
    content = path.read_bytes()
    found, published = hashlib.md5(content).hexdigest(), MD5[name][path.name]
    if found != published:
        owner = next((other for other, sums in MD5.items() if found in sums.values()), None)
        why = f"it is a file of {owner}" if owner else "truncated, altered or foreign"
        raise DataError(f"{path}: md5 {found}, but {name}'s {path.name} has {published}: {why}")
    return content


def read_idx(content: bytes, path: Path) -> UInt8[np.ndarray, "..."]:
    """Decode an idx file of bytes: 0, 0, 8 (uint8), the number of dimensions, their sizes (big-endian), the data.

    Args:
        content: the file's bytes, gzip-compressed or not.
        path: where they are from, for messages.

    Returns:
        uint8 array of the shape in the header.

    Raises:
        DataError: the file is truncated, too long or no idx file of bytes.

    >>> read_idx(bytes([0, 0, 8, 1, 0, 0, 0, 2, 7, 9]), Path("two")).tolist()
    [7, 9]
    """
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except _TRUNCATED as error:
            raise DataError(f"{path}: truncated or damaged gzip file ({error})") from error
    if len(content) < 4 or content[:3] != b"\0\0\x08" or len(content) < 4 + 4 * content[3]:
        raise DataError(f"{path}: not an idx file of bytes (it starts with {content[:4].hex(' ') or 'nothing'})")
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", count=content[3], offset=4))
    start = 4 + 4 * len(shape)
    expected = int(np.prod(shape, dtype=np.int64))
    if len(content) - start != expected:
        raise DataError(f"{path}: {len(content) - start} bytes of data, but its header {shape} needs {expected}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def read_cifar(content: bytes, path: Path, label_bytes: int) -> tuple[UInt8[np.ndarray, "n 32 32 3"], np.ndarray]:
    """Decode a CIFAR binary batch: records of label byte(s), then 1,024 red, green and blue values by rows.

    Args:
        content: the file's bytes.
        path: where they are from, for messages.
        label_bytes: 1 for CIFAR-10; 2 for CIFAR-100 (coarse, fine), of which the last, fine one counts.

    Returns:
        images uint8 (N, 32, 32, 3) and labels int32 (N,).

    Raises:
        DataError: the file is empty or not a whole number of records.
    """
    record = label_bytes + 3072
    if not content or len(content) % record:
        raise DataError(f"{path}: {len(content)} bytes are no whole number of CIFAR records of {record} bytes")
    rows = np.frombuffer(content, np.uint8).reshape(-1, record)
    images = rows[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), rows[:, label_bytes - 1].astype(np.int32)


def read_raw(name: str, split: str, data_dir: Path) -> tuple[np.ndarray, np.ndarray, dict[str, str]] | None:
    """Read one split from official raw files, if any of them lie in the data folder.

    Args:
        name: mnist, fashion_mnist, cifar10 or cifar100.
        split: "train" or "test".
        data_dir: the data folder; the sub-folders `FOLDERS[name]` are looked into.

    Returns:
        images uint8 (N, H, W, C), labels int32 (N,) and the provenance (path and md5 of each file); None if
        no file is there.

    Raises:
        DataError: a file of the split is missing beside the others, or is not the official one.
    """
    if name in ("mnist", "fashion_mnist"):
        return _read_mnist(name, split, data_dir)
    return _read_cifar_split(name, split, data_dir)


def _read_mnist(name: str, split: str, data_dir: Path) -> tuple[np.ndarray, np.ndarray, dict[str, str]] | None:
    prefix = "train" if split == "train" else "t10k"
    stems = [f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"]
    for folder in FOLDERS[name]:
        choices = [[data_dir / folder / f"{stem}.gz", data_dir / folder / stem] for stem in stems]
        files = _complete(name, choices)
        if files:
            images, labels = (read_idx(verify(name, path), path) for path in files)
            if images.ndim != 3 or labels.shape != images.shape[:1]:
                raise DataError(f"{files[0]}: images {images.shape} do not fit the labels {labels.shape} beside them")
            return images[..., None], labels.astype(np.int32), _provenance(name, files)
    return None


def _read_cifar_split(name: str, split: str, data_dir: Path) -> tuple[np.ndarray, np.ndarray, dict[str, str]] | None:
    label_bytes = 1 if name == "cifar10" else 2
    members = MEMBERS[f"{name}/{split}"]
    for folder in FOLDERS[name]:
        files = _complete(name, [[data_dir / folder / member] for member in members])
        archive = data_dir / folder / ARCHIVES[name]
        if files:
            parts = [read_cifar(verify(name, path), path, label_bytes) for path in files]
        elif archive.is_file():
            files = [archive]
            contents = _unpack(archive, verify(name, archive), members)
            parts = [read_cifar(content, archive / member, label_bytes) for member, content in contents.items()]
        else:
            continue
        images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return images, labels, _provenance(name, files)
    return None


def _complete(name: str, choices: list[list[Path]]) -> list[Path]:
    """The first existing file of every choice; empty if none of them is there, refused if only some are."""
    found = [[path for path in paths if path.is_file()] for paths in choices]
    there = [paths[0] for paths in found if paths]
    if there and len(there) < len(choices):
        absent = next(paths[0] for paths, existing in zip(choices, found, strict=True) if not existing)
        raise DataError(f"{name}: {absent} is missing beside {there[0].name}")
    return there


def _unpack(archive: Path, content: bytes, members: tuple[str, ...]) -> dict[str, bytes]:
    """Members of a tar.gz archive by their base name, in memory."""
    unpacked: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as tar:
            for info in tar:
                file = tar.extractfile(info) if Path(info.name).name in members else None
                if file is not None:
                    unpacked[Path(info.name).name] = file.read()
    except _TRUNCATED as error:
        raise DataError(f"{archive}: truncated or damaged archive ({error})") from error
    absent = [member for member in members if member not in unpacked]
    if absent:
        raise DataError(f"{archive}: holds no {absent[0]}")
    return {member: unpacked[member] for member in members}


def _provenance(name: str, files: list[Path]) -> dict[str, str]:
    checked = ", ".join(f"{path.name}={MD5[name][path.name]}" for path in files)
    return {"source": "official raw files", "path": str(files[0].parent), "md5": checked}
