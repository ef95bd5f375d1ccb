"""Streaming a tiny prepared set: order, windows, shards, and what is refused."""

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


def _epoch(folder, batch_size=4, seed=0, epoch=0, shard=(0, 1), split="train"):
    batches = stream(
        "imagenet2012", split, batch_size=batch_size, seed=seed, epoch=epoch, data_dir=folder, shard=shard, **SIZES
    )
    return list(batches)


def _by_index(batches):
    return {int(i): image for batch in batches for i, image in zip(batch["index"], batch["image"], strict=True)}


def test_an_epoch_is_a_function_of_seed_and_epoch(folder):
    first, again, later, other = (
        _epoch(folder, seed=seed, epoch=epoch) for seed, epoch in ((0, 0), (0, 0), (0, 1), (1, 0))
    )
    assert len(first) == 5
    for one, two in zip(first, again, strict=True):
        assert all((one[name] == two[name]).all() for name in ("image", "label", "index"))
    orders = [np.concatenate([batch["index"] for batch in run]) for run in (first, later, other)]
    assert all(len(set(order)) == 20 for order in orders)
    assert orders[0].tolist() != orders[1].tolist() != orders[2].tolist()
    assert first[0]["image"].shape == (4, 8, 8, 3)
    assert {first[0][name].dtype for name in ("label", "index")} == {np.dtype(np.int32)}
    for batch in first:
        np.testing.assert_array_equal(batch["label"], batch["index"] % 7)


def test_windows_depend_on_seed_epoch_and_index_alone(folder):
    whole, small = _by_index(_epoch(folder, 4)), _by_index(_epoch(folder, 3))
    for index in set(whole) & set(small):
        np.testing.assert_array_equal(whole[index], small[index])
    for index, found in whole.items():
        draw = np.random.default_rng((0, 0, index))
        np.testing.assert_array_equal(found, resize_and_crop(PHOTOS[index], 10, 8, draw))
    later = _by_index(_epoch(folder, 4, epoch=1))
    assert any((whole[index] != later[index]).any() for index in set(whole) & set(later))


def test_shards_share_an_epoch_without_overlap(folder):
    runs = [_epoch(folder, batch_size=3, shard=(i, 2)) for i in range(2)]
    assert [len(run) for run in runs] == [3, 3]
    seen = [set(_by_index(run)) for run in runs]
    assert not seen[0] & seen[1]
    whole = np.concatenate([batch["index"] for batch in _epoch(folder, batch_size=6)])
    assert seen[0] | seen[1] == set(whole.tolist())


def test_test_images_come_in_order_cut_from_the_center(folder):
    batches = _epoch(folder, split="test")
    assert [len(batch["label"]) for batch in batches] == [4, 1]
    assert np.concatenate([batch["index"] for batch in batches]).tolist() == [0, 1, 2, 3, 4]
    for index, found in _by_index(batches).items():
        picture = Image.fromarray(PHOTOS[index])
        width, height = (10 * side // min(picture.size) for side in picture.size)
        left, top = round((width - 8) / 2), round((height - 8) / 2)
        expected = picture.resize((width, height), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(found, expected.crop((left, top, left + 8, top + 8)))


def test_random_windows_reach_every_corner():
    ramp = np.arange(12, dtype=np.uint8)[None, :, None] + np.zeros((10, 1, 1), np.uint8)
    draws = [resize_and_crop(ramp, 10, 10, np.random.default_rng(seed)) for seed in range(60)]
    assert {int(window[0, 0, 0]) for window in draws} == {0, 1, 2}
    assert draws[0].shape == (10, 10, 3)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("batch_size", {"batch_size": 0}),
        ("batch_size", {"batch_size": 24}),
        ("image_size", {"shorter_side": 7}),
        ("shard", {"shard": (2, 2)}),
        ("split", {"split": "validation"}),
    ],
)
def test_wrong_arguments_are_named(folder, name, change):
    arguments = {"split": "train", "batch_size": 4, "image_size": 8, "seed": 0, "epoch": 0, "data_dir": folder}
    with pytest.raises(ConfigError, match=name):
        stream("imagenet2012", **{**arguments, **change})


def test_missing_data_are_one_line(folder):
    with pytest.raises(DataError, match=r"^imagenet2012 \(train\) is missing: .*tfds build .* --manual_dir=\w+$"):
        _epoch(folder / "elsewhere")
