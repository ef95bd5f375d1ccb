"""Every operation against Pillow, on natural-looking, flat, two-level and gray images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps

from jaxinterp.data import pil_ops as ops


def make_images():
    rng = np.random.default_rng(0)
    waves = np.sin(np.linspace(0, 6, 24))[:, None, None] * np.cos(np.linspace(0, 9, 20))[None, :, None]
    natural = np.clip(100 + 60 * waves + rng.normal(0, 12, (24, 20, 3)), 0, 255).astype(np.uint8)
    noise, two = rng.integers(0, 256, (24, 20, 3), dtype=np.uint8), np.where(natural > 100, 130, 90).astype(np.uint8)
    flat, gray, tiny = np.full((24, 20, 3), 77, np.uint8), natural[..., :1], natural[:2, :2]
    return {"natural": natural, "noise": noise, "two": two, "flat": flat, "gray": gray, "tiny": tiny}


IMAGES = make_images()
COLORED = ("natural", "noise", "two")
each = pytest.mark.parametrize("name", IMAGES)


def pillow(image):
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def array(image):
    pixels = np.asarray(image)
    return pixels if pixels.ndim == 3 else pixels[..., None]


def levels_of(name):
    return jnp.asarray(IMAGES[name], jnp.int32)


def tabled(name, table):
    return np.asarray(ops.apply_table(levels_of(name), table))


def test_rounding_to_levels_and_back_is_exact():
    every = jnp.arange(256).reshape(16, 16, 1)
    np.testing.assert_array_equal(ops.to_levels(ops.from_levels(every)), every)
    np.testing.assert_array_equal(ops.to_levels(jnp.array([-1.0, 0.5, 2.0]).reshape(1, 3, 1)).ravel(), [0, 128, 255])


@each
def test_tables_are_exact_and_autocontrast_within_one_level(name):
    image, channels = IMAGES[name], IMAGES[name].shape[-1]
    for bits in (1, 3, 8):
        expected = array(ImageOps.posterize(pillow(image), bits))
        np.testing.assert_array_equal(tabled(name, ops.posterize_table(channels, jnp.int32(bits))), expected)
    assert not tabled(name, ops.posterize_table(channels, jnp.int32(0))).any()
    for threshold in (0.0, 85.3, 128.0, 256.0):  # 0 inverts
        expected = array(ImageOps.solarize(pillow(image), threshold))
        np.testing.assert_array_equal(tabled(name, ops.solarize_table(channels, jnp.float32(threshold))), expected)
    below = np.where(image < 128, np.minimum(image.astype(int) + 36, 255), image)
    table = ops.solarize_add_table(channels, jnp.float32(36), wrap=False)
    np.testing.assert_array_equal(tabled(name, table), below)
    added = np.clip(image + 36.7, 0, 255).astype(np.uint8)
    table = ops.solarize_add_table(channels, jnp.float32(36.7), wrap=True)
    np.testing.assert_array_equal(tabled(name, table), array(ImageOps.solarize(pillow(added), 128)))
    counts = ops.histogram(levels_of(name))
    np.testing.assert_array_equal(tabled(name, ops.equalize_table(counts)), array(ImageOps.equalize(pillow(image))))
    # Pillow multiplies in double precision and rounds down, so an exact level may come out one lower.
    higher = tabled(name, ops.autocontrast_table(counts)) - array(ImageOps.autocontrast(pillow(image))).astype(int)
    assert set(np.unique(higher)) <= {0, 1}
    assert (higher == 0).mean() > 0.9


@each
def test_degenerate_images_are_exact_and_blends_too_but_for_rounding(name):
    """Where the float product lies on a level a blend differs: by one level at most, in one pixel of a hundred."""
    image, levels = IMAGES[name], levels_of(name)
    luma = array(pillow(image).convert("L"))
    pairs = {
        ImageEnhance.Color: (ops.gray(levels), np.broadcast_to(luma, image.shape)),
        ImageEnhance.Contrast: (ops.mean_gray(levels), np.full(image.shape, int(luma.mean() + 0.5))),
        ImageEnhance.Brightness: (jnp.zeros_like(levels), np.zeros(image.shape)),
        ImageEnhance.Sharpness: (ops.smooth(levels), array(pillow(image).filter(ImageFilter.SMOOTH))),
    }
    for enhancer, (degenerate, expected) in pairs.items():
        np.testing.assert_array_equal(degenerate, expected)
        for factor in (0.1, 0.46, 1.0, 1.9):
            expected = array(enhancer(pillow(image)).enhance(factor)).astype(int)
            difference = np.abs(np.asarray(ops.blend(degenerate, levels, jnp.float32(factor))) - expected)
            assert difference.max() <= 1, (enhancer, factor)
            assert (difference == 0).mean() > 0.99, (enhancer, factor)


FILL = (10, 20, 30)
AFFINE = {  # an operation's place among `affine_matrices`, its argument, and Pillow's coefficients
    "shear_x": (1, 0.1, (1, 0.1, 0, 0, 1, 0)),
    "shear_y": (2, -0.27, (1, 0, 0, -0.27, 1, 0)),
    "translate_x": (3, 3.3, (1, 0, 3.3, 0, 1, 0)),
    "translate_out": (3, 33.3, (1, 0, 33.3, 0, 1, 0)),
    "translate_y": (4, -2.6, (1, 0, 0, 0, 1, -2.6)),
    "identity": (4, 0.0, (1, 0, 0, 0, 1, 0)),
    "rotate_left": (0, -30.0, None),
    "rotate_right": (0, 10.0, None),
}
METHODS = {None: Image.Resampling.NEAREST, False: Image.Resampling.BILINEAR, True: Image.Resampling.BICUBIC}
resample = jax.jit(
    lambda levels, value, index, cubic: ops.resample(
        levels, ops.affine_matrices(value, *levels.shape[:2])[index], jnp.array(FILL), cubic
    )
)


@pytest.mark.parametrize("cubic", METHODS)
@pytest.mark.parametrize("operation", AFFINE)
def test_affine_against_pillow(cubic, operation):
    """One level at most (interpolated values that lie on a level), but for pixels that lie on the border."""
    index, argument, coefficients = AFFINE[operation]
    for name in COLORED:
        image, method = pillow(IMAGES[name]), METHODS[cubic]
        if coefficients is None:
            expected = image.rotate(argument, method, fillcolor=FILL)
        else:
            expected = image.transform(image.size, Image.Transform.AFFINE, coefficients, method, fillcolor=FILL)
        moved = resample(levels_of(name), jnp.float32(argument), index, None if cubic is None else jnp.array(cubic))
        difference = np.abs(np.asarray(moved) - array(expected).astype(int))
        assert (difference.max(axis=-1) <= 1).mean() > 0.99
        assert (difference == 0).mean() > 0.9


@pytest.mark.parametrize(("left", "top", "side"), [(3, 5, 6.6), (0, 0, 40.0), (19, 23, 4.0)])
def test_box_against_pillow(left, top, side):
    expected, color = pillow(IMAGES["natural"]), (125, 123, 114)
    right, bottom = min(expected.width, left + side), min(expected.height, top + side)
    ImageDraw.Draw(expected).rectangle((left, top, right, bottom), color)
    place = jnp.int32(left), jnp.int32(top), jnp.float32(side)
    np.testing.assert_array_equal(ops.fill_box(levels_of("natural"), *place, jnp.array(color)), array(expected))
