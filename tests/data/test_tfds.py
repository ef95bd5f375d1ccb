"""Sets prepared by tensorflow-datasets: reading array_record shards, and damage."""

import re

import numpy as np
import pytest

from jaxinterp.data import load
from jaxinterp.data.tfds import decode, open_prepared
from jaxinterp.errors import DataError

RNG = np.random.default_rng(0)
PHOTOS = list(RNG.integers(0, 256, (9, 32, 32, 3), dtype=np.uint8))
LABELS = [index % 10 for index in range(9)]


def test_shards_are_read_in_order(tmp_path, write_prepared):
    write_prepared(tmp_path, "cifar10", "test", PHOTOS, LABELS)
    dataset = load("cifar10", "test", str(tmp_path))
    np.testing.assert_array_equal(dataset.images, PHOTOS)
    np.testing.assert_array_equal(dataset.labels, LABELS)
    assert dataset.provenance["version"] == "3.0.2"
    assert dataset.provenance["path"] == str(tmp_path / "cifar10" / "3.0.2")


def test_gray_images_keep_one_channel_and_the_environment_is_read(tmp_path, write_prepared, monkeypatch):
    images = [photo[:28, :28, :1] for photo in PHOTOS]
    write_prepared(tmp_path, "mnist", "train", images, LABELS, version="3.0.1")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    np.testing.assert_array_equal(load("mnist", "train").images, images)


def test_the_newest_version_that_holds_the_split_is_taken(tmp_path, write_prepared):
    for split, count, version in (("test", 2, "9.0.0"), ("test", 3, "10.0.0"), ("train", 4, "11.0.0")):
        write_prepared(tmp_path, "cifar10", split, PHOTOS[:count], [count] * count, version=version, shards=1)
    assert load("cifar10", "test", tmp_path).labels.tolist() == [3, 3, 3]


def test_missing_data_say_where_and_how(tmp_path):
    with pytest.raises(DataError) as error:
        load("cifar100", "train", tmp_path)
    message = str(error.value)
    assert message.startswith(f"cifar100 (train) is missing: looked in {tmp_path}")
    assert f"jaxinterp data get cifar100 --data-dir {tmp_path}, or pip" in message
    command = "pip install tensorflow-cpu tensorflow-datasets && tfds build cifar100 --file_format=array_record"
    assert f"{command} --data_dir={tmp_path}" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-40000],
        lambda content: content[:65536],  # array_record alone returns 45 other images, and no error
        lambda content: content[:50000] + bytes([content[50000] ^ 16]) + content[50001:],
        lambda content: b"not a shard" * 9000,
        lambda content: None,
    ],
    ids=["truncated", "truncated at 64 KiB", "flipped", "foreign", "missing"],
)
def test_a_damaged_shard_is_named(tmp_path, write_prepared, damage):
    many = [RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(90)]
    _, second = write_prepared(tmp_path, "cifar10", "test", many, [0] * 90)
    content = damage(second.read_bytes())
    second.unlink()
    if content:
        second.write_bytes(content)
    with pytest.raises(DataError, match=f"^{re.escape(str(second))}: .+$"):
        load("cifar10", "test", tmp_path)


def test_foreign_metadata_formats_and_images_are_named(tmp_path, write_prepared):
    shards = write_prepared(tmp_path, "cifar10", "test", PHOTOS, LABELS)
    info = shards[0].parent / "dataset_info.json"
    good = info.read_text()
    for text, message in (
        (good.replace('"5"', '"6"'), r"00000-of-00002: got 5 records, expected 6 by dataset_info\.json"),
        (good[:40], r"damaged or foreign dataset_info\.json"),
    ):
        info.write_text(text)
        with pytest.raises(DataError, match=message):
            load("cifar10", "test", tmp_path)
    write_prepared(tmp_path, "cifar100", "test", PHOTOS, LABELS, file_format="tfrecord")
    with pytest.raises(DataError, match="prepared as tfrecord, expected array_record; prepare it by: pip"):
        load("cifar100", "test", tmp_path)
    with pytest.raises(DataError, match="here: a record holds no readable image"):
        decode(b"no image", {"path": "here"})


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        ([PHOTOS[0], PHOTOS[1][:16]], [0, 1], "images of different sizes"),
        ([PHOTOS[0][:16]], [0], r"images: got 16,32,3, expected \(32, 32, 3\) for cifar10"),
        (PHOTOS[:2], [0, 10], r"labels: got 10, expected classes in \[0, 10\)"),
    ],
)
def test_other_images_and_labels_are_named(tmp_path, write_prepared, images, labels, message):
    write_prepared(tmp_path, "cifar10", "test", images, labels, shards=1)
    with pytest.raises(DataError, match=f"^{re.escape(str(tmp_path))}.*3\\.0\\.2: {message}"):
        load("cifar10", "test", tmp_path)


def test_imagenet_test_means_its_validation_images(tmp_path, write_prepared):
    write_prepared(tmp_path, "imagenet2012", "validation", PHOTOS, LABELS, version="5.1.0")
    opened = open_prepared("imagenet2012", "test", tmp_path)
    assert (opened.lengths, opened.provenance["version"]) == ([5, 4], "5.1.0")
    assert open_prepared("imagenet2012", "train", tmp_path) is None
