"""Sets prepared by tensorflow-datasets: reading array_record shards, and what is refused."""

import re
import time

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
    write_prepared(tmp_path, "cifar10", "test", PHOTOS[:2], [1, 1], version="9.0.0", shards=1)
    write_prepared(tmp_path, "cifar10", "test", PHOTOS[:3], [2, 2, 2], version="10.0.0", shards=1)
    write_prepared(tmp_path, "cifar10", "train", PHOTOS[:4], [3] * 4, version="11.0.0", shards=1)
    assert load("cifar10", "test", tmp_path).labels.tolist() == [2, 2, 2]


def test_missing_data_say_where_and_how_at_once(tmp_path):
    start = time.perf_counter()
    with pytest.raises(DataError) as error:
        load("cifar100", "train", tmp_path)
    assert time.perf_counter() - start < 1
    message = str(error.value)
    assert message.startswith(f"cifar100 (train) is missing: looked in {tmp_path}")
    assert f"tfds build cifar100 --file_format=array_record --data_dir={tmp_path}" in message
    assert "cifar-100-binary.tar.gz" in message
    assert "\n" not in message


def _damage_truncate(path):
    path.write_bytes(path.read_bytes()[:-40000])


def _damage_flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 4] ^= 16
    path.write_bytes(bytes(content))


def _damage_foreign(path):
    path.write_bytes(b"not a shard" * 9000)


@pytest.mark.parametrize("damage", [_damage_truncate, _damage_flip, _damage_foreign])
def test_a_damaged_shard_is_named(tmp_path, write_prepared, damage):
    many = [RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(90)]
    _, second = write_prepared(tmp_path, "cifar10", "test", many, [0] * 90)
    damage(second)
    pattern = f"^{re.escape(str(second))}: .*damaged.* array_record shard"
    with pytest.raises(DataError, match=pattern):
        load("cifar10", "test", tmp_path)


def test_a_missing_shard_is_named(tmp_path, write_prepared):
    first, _ = write_prepared(tmp_path, "cifar10", "test", PHOTOS, LABELS)
    first.unlink()
    with pytest.raises(DataError, match=f"^{re.escape(str(first))} is missing, 1 of 2 shards in all"):
        load("cifar10", "test", tmp_path)


def test_foreign_metadata_formats_and_images_are_refused(tmp_path, write_prepared):
    shards = write_prepared(tmp_path, "cifar10", "test", PHOTOS, LABELS)
    info = shards[0].parent / "dataset_info.json"
    good = info.read_text()
    info.write_text(good.replace('"5"', '"6"'))
    with pytest.raises(DataError, match=r"00000-of-00002: 5 records, but dataset_info\.json has 6"):
        load("cifar10", "test", tmp_path)
    info.write_text(good[:40])
    with pytest.raises(DataError, match=r"damaged or foreign dataset_info\.json"):
        load("cifar10", "test", tmp_path)
    write_prepared(tmp_path, "cifar100", "test", PHOTOS, LABELS, file_format="tfrecord")
    with pytest.raises(DataError, match="prepared as tfrecord, expected array_record; mend it by: pip"):
        load("cifar100", "test", tmp_path)
    with pytest.raises(DataError, match="here: a record holds no readable image"):
        decode(b"no image", {"path": "here"})


def test_images_of_different_sizes_are_for_streaming(tmp_path, write_prepared):
    write_prepared(tmp_path, "cifar10", "test", [PHOTOS[0], PHOTOS[1][:16]], [0, 1])
    with pytest.raises(DataError, match="images of different sizes"):
        load("cifar10", "test", tmp_path)


def test_imagenet_test_means_its_validation_images(tmp_path, write_prepared):
    write_prepared(tmp_path, "imagenet2012", "validation", PHOTOS, LABELS, version="5.1.0")
    opened = open_prepared("imagenet2012", "test", tmp_path)
    assert opened.lengths == [5, 4]
    assert opened.provenance["version"] == "5.1.0"
    assert open_prepared("imagenet2012", "train", tmp_path) is None
