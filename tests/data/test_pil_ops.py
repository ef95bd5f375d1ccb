"""Every operation against Pillow, on natural-looking, flat, two-level and gray images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from jaxinterp.data import pil_ops as ops


def _images():
    rng = np.random.default_rng(0)
    waves = np.sin(np.linspace(0, 6, 24))[:, None, None] * np.cos(np.linspace(0, 9, 20))[None, :, None]
    natural = np.clip(100 + 60 * waves + rng.normal(0, 12, (24, 20, 3)), 0, 255).astype(np.uint8)
    two = np.where(natural > 100, 130, 90).astype(np.uint8)
    return {
        "natural": natural,
        "noise": rng.integers(0, 256, (16, 16, 3), dtype=np.uint8),
        "two": two,
        "flat": np.full((8, 8, 3), 77, np.uint8),
        "gray": natural[..., :1],
        "tiny": natural[:2, :2],
    }


IMAGES = _images()
COLORED = ("natural", "noise", "two")
each = pytest.mark.parametrize("name", IMAGES)


def _pillow(image):
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def _array(image):
    array = np.asarray(image)
    return array if array.ndim == 3 else array[..., None]


def _levels(name):
    return jnp.asarray(IMAGES[name], jnp.int32)


def _table(name, table):
    return np.asarray(ops.apply_table(_levels(name), table))


def test_rounding_to_levels_and_back_is_exact():
    every = jnp.arange(256).reshape(16, 16, 1)
    np.testing.assert_array_equal(ops.to_levels(ops.from_levels(every)), every)
    np.testing.assert_array_equal(ops.to_levels(jnp.array([-1.0, 0.5, 2.0]).reshape(1, 3, 1)).ravel(), [0, 128, 255])


@each
def test_invert_posterize_solarize(name):
    image, channels = IMAGES[name], IMAGES[name].shape[-1]
    np.testing.assert_array_equal(_table(name, ops.invert_table(channels)), _array(ImageOps.invert(_pillow(image))))
    for bits in (1, 3, 8):
        expected = _array(ImageOps.posterize(_pillow(image), bits))
        np.testing.assert_array_equal(_table(name, ops.posterize_table(channels, jnp.int32(bits))), expected)
    assert not _table(name, ops.posterize_table(channels, jnp.int32(0))).any()
    for threshold in (0.0, 85.3, 128.0, 256.0):
        expected = _array(ImageOps.solarize(_pillow(image), threshold))
        found = _table(name, ops.solarize_table(channels, jnp.float32(threshold)))
        np.testing.assert_array_equal(found, expected)


@each
def test_solarize_add_both_ways(name):
    image = IMAGES[name].astype(int)
    below = np.where(image < 128, np.minimum(image + 36, 255), image)
    added = np.clip(image + 36.7, 0, 255).astype(np.uint8)
    everywhere = _array(ImageOps.solarize(_pillow(added), 128))
    table = ops.solarize_add_table(image.shape[-1], jnp.float32(36), wrap=False)
    np.testing.assert_array_equal(_table(name, table), below)
    table = ops.solarize_add_table(image.shape[-1], jnp.float32(36.7), wrap=True)
    np.testing.assert_array_equal(_table(name, table), everywhere)


@each
def test_equalize_is_exact(name):
    expected = _array(ImageOps.equalize(_pillow(IMAGES[name])))
    np.testing.assert_array_equal(_table(name, ops.equalize_table(ops.histogram(_levels(name)))), expected)


@each
def test_autocontrast_is_within_one_level(name):
    """Pillow multiplies in double precision and rounds down, so an exact level may come out one lower."""
    expected = _array(ImageOps.autocontrast(_pillow(IMAGES[name]))).astype(int)
    found = _table(name, ops.autocontrast_table(ops.histogram(_levels(name))))
    assert np.abs(found - expected).max() <= 1
    assert (found >= expected).all()
    assert (found == expected).mean() > 0.9


@each
@pytest.mark.parametrize("factor", [0.1, 0.46, 1.0, 1.9])
def test_blends(name, factor):
    """Exact but where the float product lies on a level: one level at most, in one pixel of a hundred."""
    image, levels = IMAGES[name], _levels(name)
    pairs = {
        ImageEnhance.Color: ops.gray(levels),
        ImageEnhance.Contrast: ops.mean_gray(levels),
        ImageEnhance.Brightness: jnp.zeros_like(levels),
        ImageEnhance.Sharpness: ops.smooth(levels),
    }
    for enhancer, degenerate in pairs.items():
        expected = _array(enhancer(_pillow(image)).enhance(factor)).astype(int)
        found = np.asarray(ops.blend(degenerate, levels, jnp.float32(factor)))
        assert np.abs(found - expected).max() <= 1, enhancer
        assert (found == expected).mean() > 0.99, enhancer


@each
def test_degenerate_images_are_exact(name):
    image, levels = IMAGES[name], _levels(name)
    luma = _array(_pillow(image).convert("L"))
    np.testing.assert_array_equal(ops.gray(levels), np.broadcast_to(luma, image.shape))
    np.testing.assert_array_equal(ops.mean_gray(levels), np.full(image.shape, int(luma.mean() + 0.5)))
    np.testing.assert_array_equal(ops.smooth(levels), _array(_pillow(image).filter(ImageFilter.SMOOTH)))


AFFINE = {  # an operation's place among `affine_matrices`, its argument, and Pillow's coefficients
    "shear_x": (1, 0.1, (1, 0.1, 0, 0, 1, 0)),
    "shear_y": (2, -0.27, (1, 0, 0, -0.27, 1, 0)),
    "translate_x": (3, 3.3, (1, 0, 3.3, 0, 1, 0)),
    "translate_out": (3, 33.3, (1, 0, 33.3, 0, 1, 0)),
    "translate_y": (4, -2.6, (1, 0, 0, 0, 1, -2.6)),
    "identity": (4, 0.0, (1, 0, 0, 0, 1, 0)),
}
METHODS = {
    None: Image.Resampling.NEAREST,
    False: Image.Resampling.BILINEAR,
    True: Image.Resampling.BICUBIC,
}


def _close(found, expected):
    """One level at most (interpolated values that lie on a level), but for pixels that lie on the border."""
    difference = np.abs(np.asarray(found) - expected.astype(int))
    assert (difference.max(axis=-1) <= 1).mean() > 0.99
    assert (difference == 0).mean() > 0.9


def _resampled(name, operation, argument, cubic):
    height, width, _ = IMAGES[name].shape
    matrix = ops.affine_matrices(jnp.float32(argument), height, width)[operation]
    cubic = None if cubic is None else jnp.array(cubic)
    return ops.resample(_levels(name), matrix, jnp.array([10, 20, 30]), cubic)


@pytest.mark.parametrize("name", COLORED)
@pytest.mark.parametrize("cubic", METHODS)
@pytest.mark.parametrize("operation", AFFINE)
def test_affine_against_pillow(name, cubic, operation):
    index, argument, coefficients = AFFINE[operation]
    image = _pillow(IMAGES[name])
    expected = image.transform(image.size, Image.Transform.AFFINE, coefficients, METHODS[cubic], fillcolor=(10, 20, 30))
    _close(_resampled(name, index, argument, cubic), _array(expected))


@pytest.mark.parametrize("name", COLORED)
@pytest.mark.parametrize("cubic", METHODS)
@pytest.mark.parametrize("degrees", [-30.0, 10.0])
def test_rotation_against_pillow(name, cubic, degrees):
    expected = _pillow(IMAGES[name]).rotate(degrees, METHODS[cubic], fillcolor=(10, 20, 30))
    _close(_resampled(name, 0, degrees, cubic), _array(expected))


@pytest.mark.parametrize(("left", "top", "side"), [(3, 5, 6.6), (0, 0, 40.0), (19, 23, 4.0)])
def test_box_against_pillow(left, top, side):
    from PIL import ImageDraw

    expected = _pillow(IMAGES["natural"])
    right, bottom = min(expected.width, left + side), min(expected.height, top + side)
    ImageDraw.Draw(expected).rectangle((left, top, right, bottom), (125, 123, 114))
    found = ops.fill_box(
        _levels("natural"), jnp.int32(left), jnp.int32(top), jnp.float32(side), jnp.array((125, 123, 114))
    )
    np.testing.assert_array_equal(found, _array(expected))


def test_operations_vmap_and_jit_to_the_same_levels():
    batch = jnp.stack([_levels("noise"), 255 - _levels("noise")])
    table = jax.jit(jax.vmap(lambda image: ops.equalize_table(ops.histogram(image))))(batch)
    for image, found in zip(batch, table, strict=True):
        np.testing.assert_array_equal(found, ops.equalize_table(ops.histogram(image)))
