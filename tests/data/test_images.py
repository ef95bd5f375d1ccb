import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError
from PIL import Image

from jaxinterp.data import Dataset, load
from jaxinterp.data.images import read_images, resize, rotate_dataset, rotate_randomly, rotated, select_classes, take
from jaxinterp.errors import ConfigError, DataError


def test_resize_repeats_pixels_and_channels():
    digits = load("digits", "test")
    large = resize(digits, 32, 3)
    assert large.images.shape == (360, 32, 32, 3)
    np.testing.assert_array_equal(large.images[:, ::4, ::4, 1], digits.images[..., 0])
    np.testing.assert_array_equal(large.images[:, 3::4, 3::4, 2], digits.images[..., 0])
    with pytest.raises((ConfigError, TypeCheckError), match="channels"):
        resize(large, None, 1)


def test_take_and_select_classes_keep_images_with_their_labels():
    images, labels = np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1), np.array([0, 1, 2, 2, 1, 0], np.int32)
    data = Dataset("dots", "train", images, labels, ("a", "b", "c"))
    assert take(data, 2).labels.tolist() == [0, 1]
    assert len(take(data, None)) == 6
    some = select_classes(data, (2, 0))
    assert (some.images.ravel().tolist(), some.labels.tolist(), some.classes) == (
        [0, 2, 3, 5],
        [1, 0, 0, 1],
        ("c", "a"),
    )
    assert select_classes(data, ()) is data
    for wrong in ((0, 3), (1, 1)):
        with pytest.raises(ConfigError, match="class_subset"):
            select_classes(data, wrong)


def test_rotations_are_quarter_turns_drawn_from_a_seed_and_black_outside(monkeypatch):
    images = np.random.default_rng(0).random((5, 6, 6, 2), np.float32)
    turned = rotated(jnp.asarray(images[:1]), jnp.array([jnp.pi / 2]))
    np.testing.assert_allclose(turned, np.rot90(images[:1], axes=(1, 2)), atol=1e-5)
    corner = rotated(jnp.ones((1, 6, 6, 1)), jnp.array([jnp.pi / 4]))[0, 0, 0, 0]
    assert corner == 0
    angles = np.random.default_rng(3).uniform(0, 2 * np.pi, 5).astype(np.float32)
    expected = rotated(jnp.asarray(images), jnp.asarray(angles))
    monkeypatch.setattr("jaxinterp.data.images.ROTATION_BATCH", 2)
    np.testing.assert_allclose(rotate_randomly(images, 3), expected, atol=1e-6)
    with pytest.raises(ConfigError, match="x"):
        rotated(jnp.ones((1, 6, 4, 1)), jnp.zeros(1))


def test_a_rotated_data_set_keeps_its_type_and_range():
    levels = take(load("digits", "test"), 20)
    floats = Dataset("dots", "test", (levels.images / 16).astype(np.float32), levels.labels, levels.classes)
    for data in (levels, floats):
        once, again = rotate_dataset(data), rotate_dataset(data)
        np.testing.assert_array_equal(once.images, again.images)
        assert once.images.dtype == data.images.dtype
        assert (once.images != data.images).any(axis=(1, 2, 3)).all()
        assert once.images.max() <= data.maximum


def test_images_are_converted_and_scaled(tmp_path):
    Image.new("RGBA", (6, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("L", (8, 8), 51).save(tmp_path / "gray.png")
    images, lines = read_images([tmp_path / "clear.png", tmp_path / "gray.png"], 8, 8, 3)
    np.testing.assert_allclose(images, np.stack([np.zeros((8, 8, 3)), np.full((8, 8, 3), 0.2)]))
    assert lines[0].endswith("clear.png: 6x4 RGBA -> 8x8 RGB (transparent parts over black, cut to its center)")
    (tmp_path / "words.png").write_text("no image")
    for wrong, message in (
        ("no.png", "got no such file"),
        ("words.png", "got another kind of file, expected an image"),
    ):
        with pytest.raises(DataError, match=f"{wrong}: {message}"):
            read_images([tmp_path / wrong], 8, 8, 3)
    with pytest.raises(ConfigError, match="paths"):
        read_images([], 8, 8, 3)


def test_deep_gray_images_are_scaled_and_not_clipped(tmp_path):
    values = np.array([[0, 13107], [32768, 65535]])
    files = {
        "16.png": values.astype(np.uint16),
        "16.tiff": values.astype(np.uint16),
        "32.tiff": values.astype(np.int32),
        "bytes.tiff": (values / 65535 * 255).astype(np.int32),
        "float.tiff": (values / 65535).astype(np.float32),
    }
    for name, pixels in files.items():
        Image.fromarray(pixels).save(tmp_path / name)
    images, lines = read_images([tmp_path / name for name in files], 2, 2, 3)
    expected = np.repeat((values / 65535)[..., None], 3, axis=-1)
    np.testing.assert_allclose(images, np.stack([expected] * len(files)), atol=1 / 255)
    assert [line.split()[2] for line in lines] == ["I;16", "I;16", "I", "I", "F"]
    for pixels, message in [
        (np.full((2, 2), 7.5, np.float32), "F values from 7.5 to 7.5, expected 0 to 1"),
        (np.full((2, 2), np.nan, np.float32), "F values from nan to nan, expected 0 to 1"),
        (np.full((2, 2), 65536, np.int32), "I values from 65536 to 65536, expected 0 to 65535"),
        (np.full((2, 2), -1, np.int32), "I values from -1 to -1, expected 0 to 255"),
    ]:
        Image.fromarray(pixels).save(tmp_path / "wrong.tiff")
        with pytest.raises(DataError, match=rf"wrong\.tiff: got {message}"):
            read_images([tmp_path / "wrong.tiff"], 2, 2, 1)
