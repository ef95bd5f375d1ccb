"""Official raw files: decoding, checksums, and what is refused."""

import gzip
import io
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest

from jaxinterp.data import load
from jaxinterp.data import official as raw
from jaxinterp.errors import DataError

RNG = np.random.default_rng(0)
DIGITS = RNG.integers(0, 256, (20, 28, 28), dtype=np.uint8)
PHOTOS = RNG.integers(0, 256, (10, 32, 32, 3), dtype=np.uint8)
LABELS = np.arange(20, dtype=np.uint8) % 10


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return header + array.tobytes()


def batch(images, *labels):
    columns = [np.asarray(column, np.uint8)[:, None] for column in labels]
    return np.hstack([*columns, images.transpose(0, 3, 1, 2).reshape(len(images), -1)]).tobytes()


def archive(members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def test_the_table_of_sums_is_complete_and_without_repeats():
    sums = [value for table in raw.MD5.values() for value in table.values()]
    assert len(set(sums)) == len(sums) == 26
    assert all(re.fullmatch("[0-9a-f]{32}", value) for value in sums)
    assert set(raw.MD5) == set(raw.FOLDERS) == set(raw.ARCHIVES)


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize(
    ("name", "folder"), [("mnist", "MNIST/raw"), ("mnist", "."), ("fashion_mnist", "fashion_mnist")]
)
def test_idx_files_are_read_and_their_sums_reported(tmp_path, publish, name, folder, compress):
    end, pack = (".gz", gzip.compress) if compress else ("", bytes)
    images = publish(name, tmp_path / folder / f"t10k-images-idx3-ubyte{end}", pack(idx(DIGITS)))
    labels = publish(name, tmp_path / folder / f"t10k-labels-idx1-ubyte{end}", pack(idx(LABELS)))
    dataset = load(name, "test", tmp_path)
    np.testing.assert_array_equal(dataset.images, DIGITS[..., None])
    np.testing.assert_array_equal(dataset.labels, LABELS)
    assert dataset.labels.dtype == np.int32
    assert dataset.maximum == 255
    assert dataset.provenance["path"] == str(images.parent)
    for path in (images, labels):
        assert f"{path.name}={raw.MD5[name][path.name]}" in dataset.provenance["md5"]


def test_cifar10_batches_are_joined_in_order(tmp_path, publish):
    for number in range(5):
        content = batch(PHOTOS[2 * number : 2 * number + 2], LABELS[2 * number : 2 * number + 2])
        publish("cifar10", tmp_path / "cifar-10-batches-bin" / f"data_batch_{number + 1}.bin", content)
    dataset = load("cifar10", "train", tmp_path)
    np.testing.assert_array_equal(dataset.images, PHOTOS)
    np.testing.assert_array_equal(dataset.labels, LABELS[:10])
    assert dataset.classes[3] == "cat"
    (tmp_path / "cifar-10-batches-bin" / "data_batch_4.bin").unlink()
    with pytest.raises(DataError, match=r"data_batch_4\.bin is missing beside data_batch_1\.bin"):
        load("cifar10", "train", tmp_path)


def test_cifar100_takes_the_fine_label_also_from_the_archive(tmp_path, publish):
    content = batch(PHOTOS, LABELS[:10], LABELS[:10] + 80)
    packed = archive({"cifar-100-binary/train.bin": b"x", "cifar-100-binary/test.bin": content})
    publish("cifar100", tmp_path / "cifar100" / "cifar-100-binary.tar.gz", packed)
    dataset = load("cifar100", "test", tmp_path)
    np.testing.assert_array_equal(dataset.images, PHOTOS)
    np.testing.assert_array_equal(dataset.labels, np.arange(80, 90))
    assert dataset.provenance["md5"].startswith("cifar-100-binary.tar.gz=")
    with pytest.raises(DataError, match=r"train\.bin: 1 bytes are no whole number of CIFAR records of 3074"):
        load("cifar100", "train", tmp_path)


def test_an_archive_without_the_batch_is_refused(tmp_path, publish):
    publish("cifar10", tmp_path / "cifar-10-binary.tar.gz", archive({"data_batch_1.bin": b"x"}))
    with pytest.raises(DataError, match=r"cifar-10-binary\.tar\.gz: holds no test_batch\.bin"):
        load("cifar10", "test", tmp_path)


def test_wrong_sums_are_refused_and_foreign_files_recognized(tmp_path, publish, monkeypatch):
    publish("cifar10", tmp_path / "test_batch.bin", batch(PHOTOS, LABELS[:10]))
    (tmp_path / "test_batch.bin").write_bytes(batch(PHOTOS, LABELS[:10])[:-1])
    with pytest.raises(DataError, match=r"test_batch\.bin: md5 \w{32}, but .*truncated, altered or foreign"):
        load("cifar10", "test", tmp_path)
    content = idx(DIGITS)
    fashion = publish("fashion_mnist", tmp_path / "t10k-images-idx3-ubyte", content)
    publish("mnist", tmp_path / "t10k-labels-idx1-ubyte", idx(LABELS))
    with pytest.raises(DataError, match=f"{fashion}: .*: it is a file of fashion_mnist$"):
        load("mnist", "test", tmp_path)


def test_images_without_labels_are_refused(tmp_path, publish):
    publish("mnist", tmp_path / "mnist" / "train-images-idx3-ubyte.gz", gzip.compress(idx(DIGITS), mtime=0))
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte\.gz is missing beside train-images"):
        load("mnist", "train", tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (idx(LABELS)[:-1], r"19 bytes of data, but its header \(20,\) needs 20"),
        (idx(LABELS) + b"\0", "21 bytes of data"),
        (b"", "not an idx file of bytes .it starts with nothing"),
        (b"\x89PNG....", "not an idx file of bytes .it starts with 89 50 4e 47"),
        (bytes([0, 0, 8, 3, 0, 0]), "not an idx file"),
        (gzip.compress(idx(LABELS), mtime=0)[:-4], "truncated or damaged gzip file"),
    ],
)
def test_damaged_idx_files_are_named(content, message):
    with pytest.raises(DataError, match=f"^labels: {message}"):
        raw.read_idx(content, Path("labels"))


def test_labels_and_shapes_out_of_range_are_refused(tmp_path, publish):
    publish("mnist", tmp_path / "t10k-images-idx3-ubyte", idx(DIGITS))
    publish("mnist", tmp_path / "t10k-labels-idx1-ubyte", idx(LABELS[:7]))
    with pytest.raises(DataError, match=r"images \(20, 28, 28\) do not fit the labels \(7,\)"):
        load("mnist", "test", tmp_path)
    publish("mnist", tmp_path / "t10k-labels-idx1-ubyte", idx(LABELS + 1))
    with pytest.raises(DataError, match="labels from 1 to 10, mnist has 0 to 9"):
        load("mnist", "test", tmp_path)
    publish("mnist", tmp_path / "t10k-images-idx3-ubyte", idx(DIGITS[:, :8, :8]))
    with pytest.raises(DataError, match=r"images of shape \(8, 8, 1\), mnist has \(28, 28, 1\)"):
        load("mnist", "test", tmp_path)
