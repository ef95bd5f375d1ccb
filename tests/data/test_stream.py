"""Streaming a tiny prepared set: order, windows, shards, and what raises."""

import numpy as np
import pytest
from PIL import Image

from jaxinterp.data import stream
from jaxinterp.data.stream import resize_and_crop
from jaxinterp.errors import ConfigError, DataError

RNG = np.random.default_rng(0)
PHOTOS = [RNG.integers(0, 256, (int(h), int(w), 3), dtype=np.uint8) for h, w in RNG.integers(12, 30, (23, 2))]
LABELS = [index % 7 for index in range(23)]
SIZES = {"image_size": 8, "shorter_side": 10, "num_threads": 2}


@pytest.fixture
def folder(tmp_path, write_prepared):
    write_prepared(tmp_path, "imagenet2012", "train", PHOTOS, LABELS, shards=3, version="5.1.0")
    write_prepared(tmp_path, "imagenet2012", "validation", PHOTOS[:5], LABELS[:5], version="5.0.0")
    return tmp_path


def epoch_of(folder, split="train", **options):
    settings = {"batch_size": 4, "seed": 0, "epoch": 0, "data_dir": folder, **SIZES, **options}
    return list(stream("imagenet2012", split, **settings))


def order(batches):
    return np.concatenate([batch["index"] for batch in batches]).tolist()


def by_index(batches):
    return {int(i): image for batch in batches for i, image in zip(batch["index"], batch["image"], strict=True)}


def test_an_epoch_is_a_function_of_seed_and_epoch(folder):
    first, again, later, other = (
        epoch_of(folder, seed=seed, epoch=epoch) for seed, epoch in ((0, 0), (0, 0), (0, 1), (1, 0))
    )
    for one, two in zip(first, again, strict=True):
        assert all((one[name] == two[name]).all() for name in ("image", "label", "index"))
    orders = [order(run) for run in (first, later, other)]
    assert all(len(set(numbers)) == 20 for numbers in orders)
    assert orders[0] != orders[1] != orders[2]
    assert [batch["image"].shape for batch in first] == [(4, 8, 8, 3)] * 5
    for batch in first:
        assert batch["label"].dtype == batch["index"].dtype == np.int32
        np.testing.assert_array_equal(batch["label"], batch["index"] % 7)


def test_windows_depend_on_seed_epoch_and_index_alone(folder):
    whole, small = by_index(epoch_of(folder)), by_index(epoch_of(folder, batch_size=3))
    for index in set(whole) & set(small):
        np.testing.assert_array_equal(whole[index], small[index])
    for index, image in whole.items():
        draw = np.random.default_rng((0, 0, index))
        np.testing.assert_array_equal(image, resize_and_crop(PHOTOS[index], 10, 8, draw))
    later = by_index(epoch_of(folder, epoch=1))
    assert any((whole[index] != later[index]).any() for index in set(whole) & set(later))


def test_shards_share_an_epoch_without_overlap(folder):
    runs = [epoch_of(folder, batch_size=3, shard=(i, 2)) for i in range(2)]
    assert [len(run) for run in runs] == [3, 3]
    assert sorted(order(runs[0]) + order(runs[1])) == sorted(order(epoch_of(folder, batch_size=6)))


def test_test_images_come_in_order_cut_from_the_center(folder):
    batches = epoch_of(folder, "test")
    assert [len(batch["label"]) for batch in batches] == [4, 1]
    assert order(batches) == [0, 1, 2, 3, 4]
    for index, image in by_index(batches).items():
        picture = Image.fromarray(PHOTOS[index])
        width, height = (10 * side // min(picture.size) for side in picture.size)
        left, top = round((width - 8) / 2), round((height - 8) / 2)
        expected = picture.resize((width, height), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(image, expected.crop((left, top, left + 8, top + 8)))


def test_random_windows_reach_every_corner():
    ramp = np.arange(12, dtype=np.uint8)[None, :, None] + np.zeros((10, 1, 1), np.uint8)
    draws = [resize_and_crop(ramp, 10, 10, np.random.default_rng(seed)) for seed in range(60)]
    assert {int(window[0, 0, 0]) for window in draws} == {0, 1, 2}
    assert draws[0].shape == (10, 10, 3)


@pytest.mark.parametrize(
    ("name", "value"), [("batch_size", 0), ("batch_size", 24), ("image_size", 11), ("shard", (2, 2)), ("split", "x")]
)
def test_wrong_arguments_are_named(folder, name, value):
    with pytest.raises(ConfigError, match=name):
        epoch_of(folder, **{name: value})


def test_missing_data_are_one_line(folder):
    with pytest.raises(DataError, match=r"^imagenet2012 \(train\) is missing: .*tfds build .* --manual_dir=\w+$"):
        epoch_of(folder / "elsewhere")
