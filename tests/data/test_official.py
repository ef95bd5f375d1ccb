"""Official files: decoding, checksums, downloads, and damage."""

import gzip
import hashlib
import io
import re
import tarfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from jaxinterp.app.cli import main
from jaxinterp.data import download, load
from jaxinterp.data.official import FILES
from jaxinterp.errors import ConfigError, DataError

RNG = np.random.default_rng(0)
DIGITS = RNG.integers(0, 256, (20, 28, 28), dtype=np.uint8)
PHOTOS = RNG.integers(0, 256, (10, 32, 32, 3), dtype=np.uint8)
LABELS = np.arange(20, dtype=np.uint8) % 10
ARCHIVE = "cifar-10-binary.tar.gz"


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


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


def test_registry_has_a_sum_for_each_file_and_addresses_for_the_downloads():
    assert len(set(FILES.registry.values())) == len(FILES.registry) == 26
    assert all(re.fullmatch("md5:[0-9a-f]{32}", md5) for md5 in FILES.registry.values())
    assert set(FILES.urls) == {file for file in FILES.registry if file.endswith(".gz")}
    assert all(url.endswith("/" + file.split("/")[1]) for file, url in FILES.urls.items())


@pytest.mark.parametrize(("end", "pack"), [(".gz", gzip.compress), ("", bytes)])
@pytest.mark.parametrize(
    ("name", "folder"), [("mnist", "MNIST/raw"), ("mnist", "."), ("fashion_mnist", "fashion_mnist")]
)
def test_idx_files_are_read_and_their_sums_reported(tmp_path, publish, name, folder, end, pack):
    images = publish(name, tmp_path / folder / f"t10k-images-idx3-ubyte{end}", pack(idx(DIGITS)))
    labels = publish(name, tmp_path / folder / f"t10k-labels-idx1-ubyte{end}", pack(idx(LABELS)))
    dataset = load(name, "test", tmp_path)
    np.testing.assert_array_equal(dataset.images, DIGITS[..., None])
    np.testing.assert_array_equal(dataset.labels, LABELS)
    assert (dataset.labels.dtype, dataset.maximum) == (np.int32, 255)
    assert dataset.provenance["path"] == str(images.parent)
    for path in (images, labels):
        assert f"{path.name}={hashlib.md5(path.read_bytes()).hexdigest()}" in dataset.provenance["md5"]


def test_cifar10_batches_are_joined_in_order(tmp_path, publish):
    folder = tmp_path / "cifar-10-batches-bin"
    for number in range(5):
        part = slice(2 * number, 2 * number + 2)
        publish("cifar10", folder / f"data_batch_{number + 1}.bin", batch(PHOTOS[part], LABELS[part]))
    dataset = load("cifar10", "train", tmp_path)
    np.testing.assert_array_equal(dataset.images, PHOTOS)
    np.testing.assert_array_equal(dataset.labels, LABELS[:10])
    assert dataset.classes[3] == "cat"
    (folder / "data_batch_4.bin").unlink()
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


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b"", lambda b: b[:40] + bytes([b[40] ^ 1]) + b[41:]])
def test_damaged_files_are_named_with_both_sums(tmp_path, publish, damage):
    path = publish("mnist", tmp_path / "t10k-images-idx3-ubyte.gz", gzip.compress(idx(DIGITS)))
    publish("mnist", tmp_path / "t10k-labels-idx1-ubyte.gz", gzip.compress(idx(LABELS)))
    good = path.read_bytes()
    path.write_bytes(damage(good))
    actual, published = (hashlib.md5(content).hexdigest() for content in (damage(good), good))
    with pytest.raises(DataError, match=f"^{re.escape(str(path))}: got md5 {actual}, expected mnist's {published}"):
        load("mnist", "test", tmp_path)


def test_a_file_of_another_data_set_and_missing_labels_are_named(tmp_path, publish):
    fashion = publish("fashion_mnist", tmp_path / "t10k-images-idx3-ubyte", idx(DIGITS))
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte\.gz is missing beside t10k-images"):
        load("mnist", "test", tmp_path)
    publish("mnist", tmp_path / "t10k-labels-idx1-ubyte", idx(LABELS))
    with pytest.raises(DataError, match=f"^{fashion}: .*: it is a file of fashion_mnist$"):
        load("mnist", "test", tmp_path)


class Handler(SimpleHTTPRequestHandler):
    """Serve a folder in silence; beside a file called `cut`, half of the announced bytes."""

    def log_message(self, *arguments):
        pass

    def copyfile(self, source, outputfile):
        content = source.read()
        outputfile.write(content[: len(content) // 2] if Path(self.directory, "cut").exists() else content)


@pytest.fixture
def published(tmp_path, publish, monkeypatch):
    """CIFAR-10's archive, served by this machine."""
    content = archive({"cifar-10-batches-bin/test_batch.bin": batch(PHOTOS, LABELS[:10])})
    path = publish("cifar10", tmp_path / "published" / ARCHIVE, content)
    http = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=path.parent))
    monkeypatch.setitem(FILES.urls, f"cifar10/{ARCHIVE}", f"http://127.0.0.1:{http.server_port}/{ARCHIVE}")
    thread = Thread(target=http.serve_forever)
    thread.start()
    yield path
    http.shutdown()
    thread.join()
    http.server_close()


def test_download_fetches_what_load_reads(published, tmp_path):
    with pytest.raises(DataError, match=re.escape(f"jaxinterp data get cifar10 --data-dir {tmp_path}")):
        load("cifar10", "test", tmp_path)
    (path,) = download("cifar10", tmp_path)
    assert path == tmp_path / "cifar10" / ARCHIVE
    np.testing.assert_array_equal(load("cifar10", "test", tmp_path).images, PHOTOS)
    published.unlink()
    assert download("cifar10", tmp_path) == [path]  # not fetched again


@pytest.mark.parametrize("fault", ["altered", "cut", "missing", "no server"])
def test_a_failed_download_is_one_line_and_leaves_nothing(published, tmp_path, monkeypatch, fault):
    if fault == "altered":
        published.write_bytes(published.read_bytes() + b"x")
    elif fault == "cut":
        published.with_name("cut").touch()
    elif fault == "missing":
        published.unlink()
    else:
        monkeypatch.setitem(FILES.urls, f"cifar10/{ARCHIVE}", f"http://127.0.0.1:9/{ARCHIVE}")
    with pytest.raises(DataError, match=r"^http://127\.0\.0\.1:\d+/cifar-10-binary\.tar\.gz: download failed \(.+\)$"):
        download("cifar10", tmp_path)
    assert not list((tmp_path / "cifar10").glob("*"))


@pytest.mark.parametrize(
    ("name", "message"), [("digits", "in the package"), ("imagenet2012", "tfds build"), ("mnits", "mnist")]
)
def test_sets_that_are_not_downloaded_say_why(name, message):
    with pytest.raises(ConfigError, match=f"^name: got {name}, expected .*{message}"):
        download(name)


def test_the_command_downloads_and_says_in_one_line_what_fails(published, tmp_path, capsys, monkeypatch):
    words = ["data", "get", "cifar10", "--data-dir", str(tmp_path)]
    main(words)
    assert capsys.readouterr().out == f"cifar10: {tmp_path / 'cifar10' / ARCHIVE}\n"
    (tmp_path / "cifar10" / ARCHIVE).unlink()
    monkeypatch.setitem(FILES.urls, f"cifar10/{ARCHIVE}", f"http://127.0.0.1:9/{ARCHIVE}")
    with pytest.raises(SystemExit, match="2"):
        main(words)
    line = f"jaxinterp: http://127.0.0.1:9/{ARCHIVE}: download failed (no connection to 127.0.0.1:9)"
    assert capsys.readouterr().err.splitlines()[-1] == line
    assert not list((tmp_path / "cifar10").glob("*"))
