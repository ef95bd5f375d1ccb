"""The 2,000 test images of MNIST in the package."""

import numpy as np
import pytest

from jaxinterp.data import embedded, load
from jaxinterp.errors import ConfigError, DataError


def test_they_are_balanced_and_of_the_test_set():
    data = load("mnist-2000", "test")
    assert (data.images.shape, data.images.dtype, data.maximum) == ((2000, 28, 28, 1), np.uint8, 255)
    assert np.bincount(data.labels).tolist() == [200] * 10
    assert "CC BY-SA 3.0" in data.provenance["licence"]
    assert embedded.MNIST_2000.stat().st_size <= 700 << 10
    positions = np.load(embedded.MNIST_2000)["positions"]
    assert (np.diff(positions.astype(int)) > 0).all()
    assert positions[-1] < 10_000


def test_there_is_no_training_split_and_damage_is_noticed(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"^split: got train"):
        load("mnist-2000", "train")
    content = bytearray(embedded.MNIST_2000.read_bytes())
    content[1000] ^= 1
    (tmp_path / "damaged.npz").write_bytes(content)
    monkeypatch.setattr(embedded, "MNIST_2000", tmp_path / "damaged.npz")
    with pytest.raises(DataError, match="another checksum"):
        load("mnist-2000", "test")
