"""Every operation against Pillow, on natural-looking, flat, two-level, gray and tiny images; then the random choice."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from jaxinterp.data import rand_augment
from jaxinterp.data.pil_ops import from_levels, to_levels
from jaxinterp.data.randaugment import OPERATIONS, _arguments, apply_operation
from jaxinterp.errors import ConfigError


def make_images():
    rng = np.random.default_rng(0)
    waves = np.sin(np.linspace(0, 6, 24))[:, None, None] * np.cos(np.linspace(0, 9, 20))[None, :, None]
    natural = np.clip(100 + 60 * waves + rng.normal(0, 12, (24, 20, 3)), 0, 255).astype(np.uint8)
    noise, two = rng.integers(0, 256, (24, 20, 3), dtype=np.uint8), np.where(natural > 100, 130, 90).astype(np.uint8)
    flat, gray, tiny = np.full((24, 20, 3), 77, np.uint8), natural[..., :1], natural[:2, :2]
    return {"natural": natural, "noise": noise, "two": two, "flat": flat, "gray": gray, "tiny": tiny}


IMAGES = make_images()
FILL = (10, 20, 30)
BICUBIC, BILINEAR, NEAREST = Image.Resampling.BICUBIC, Image.Resampling.BILINEAR, Image.Resampling.NEAREST


def pillow(image):
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def array(image):
    pixels = np.asarray(image).astype(int)
    return pixels if pixels.ndim == 3 else pixels[..., None]


@partial(jax.jit, static_argnames=("fill", "wrap"))
def apply(levels, name, argument, cubic=None, place=(0.5, 0.5), fill=FILL, wrap=True):
    fill = fill[: levels.shape[-1]]
    return apply_operation(levels, name, argument, place=jnp.array(place), cubic=cubic, fill=fill, wrap=wrap)


def applied(image, name, argument, **options):
    return array(apply(jnp.asarray(image, jnp.int32), OPERATIONS.index(name), jnp.float32(argument), **options))


def solarize_add(image, addition):
    added = np.clip(np.array(image) + addition, 0, 255).astype(np.uint8)
    return ImageOps.solarize(Image.fromarray(added), 128)


TABLES = {
    "autocontrast": (lambda image, _: ImageOps.autocontrast(image), (0,)),
    "equalize": (lambda image, _: ImageOps.equalize(image), (0,)),
    "invert": (lambda image, _: ImageOps.invert(image), (0,)),
    "posterize": (lambda image, bits: ImageOps.posterize(image, bits) if bits else image.point(lambda v: 0), (0, 1, 8)),
    "solarize": (ImageOps.solarize, (0.0, 85.3, 128.0, 256.0)),
    "solarize_add": (solarize_add, (36.7,)),
}
BLENDS = {
    "color": ImageEnhance.Color,
    "contrast": ImageEnhance.Contrast,
    "brightness": ImageEnhance.Brightness,
    "sharpness": ImageEnhance.Sharpness,
}


@pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES)
def test_tables_and_blends_against_pillow(image):
    for name, (operation, arguments) in TABLES.items():
        for argument in arguments:
            difference = applied(image, name, argument) - array(operation(pillow(image), argument))
            # Pillow stretches in double precision and rounds down, so an exact level may come out one lower.
            assert set(np.unique(difference)) <= ({0, 1} if name == "autocontrast" else {0}), (name, argument)
            assert (difference == 0).mean() > 0.9
    below = np.where(image < 128, np.minimum(image.astype(int) + 36, 255), image)
    np.testing.assert_array_equal(applied(image, "solarize_add", 36, wrap=False), below)
    for name, enhancer in BLENDS.items():
        for factor in (0.0, 0.1, 0.46, 1.0, 1.9):  # 0: the degenerate image, exactly
            difference = np.abs(applied(image, name, factor) - array(enhancer(pillow(image)).enhance(factor)))
            assert difference.max() <= (factor > 0), (name, factor)  # where the float product lies on a level
            assert (difference == 0).mean() > 0.99, (name, factor)


AFFINE = [  # an operation, its argument, and Pillow's coefficients
    ("shear_x", 0.1, (1, 0.1, 0, 0, 1, 0)),
    ("shear_y", -0.27, (1, 0, 0, -0.27, 1, 0)),
    ("translate_x", 3.3, (1, 0, 3.3, 0, 1, 0)),
    ("translate_x", 33.3, (1, 0, 33.3, 0, 1, 0)),
    ("translate_y", -2.6, (1, 0, 0, 0, 1, -2.6)),
    ("translate_y", 0.0, (1, 0, 0, 0, 1, 0)),
    ("rotate", -30.0, None),
    ("rotate", 10.0, None),
]


@pytest.mark.parametrize(("cubic", "method"), [(None, NEAREST), (False, BILINEAR), (True, BICUBIC)])
def test_resamplings_against_pillow(cubic, method):
    """One level at most (interpolated values that lie on a level), but for pixels that lie on the border."""
    for name, argument, coefficients in AFFINE:
        for image in (IMAGES["natural"], IMAGES["noise"], IMAGES["two"]):
            picture = pillow(image)
            if coefficients is None:
                expected = picture.rotate(argument, method, fillcolor=FILL)
            else:
                expected = picture.transform(picture.size, 0, coefficients, method, fillcolor=FILL)
            moved = applied(image, name, argument, cubic=None if cubic is None else jnp.array(cubic))
            difference = np.abs(moved - array(expected))
            assert (difference.max(axis=-1) <= 1).mean() > 0.99, (name, argument)
            assert (difference == 0).mean() > 0.9, (name, argument)


@pytest.mark.parametrize(("place", "side", "corner"), [((0.3, 0.5), 6.6, (2, 8)), ((0.0, 0.9), 40.0, (0, 1))])
def test_the_cutout_against_pillow(place, side, corner):
    expected = pillow(IMAGES["natural"])
    end = min(expected.width, corner[0] + side), min(expected.height, corner[1] + side)
    ImageDraw.Draw(expected).rectangle((*corner, *end), (125, 123, 114))
    np.testing.assert_array_equal(applied(IMAGES["natural"], "cutout", side, place=place), array(expected))


def test_rounding_to_levels_and_back_is_exact():
    every = jnp.arange(256).reshape(16, 16, 1)
    np.testing.assert_array_equal(to_levels(from_levels(every)), every)
    np.testing.assert_array_equal(to_levels(jnp.array([-1.0, 0.5, 2.0]).reshape(1, 3, 1)).ravel(), [0, 128, 255])


ARGUMENTS = {  # of 24 x 20 images, with the sign -1
    ("uda", 10 / 30): [0, 0, 0, 1, 256 / 3, 110 / 3, *[0.7] * 4, -10, -0.1, -0.1, -100 / 3, -100 / 3, 40 / 3],
    ("timm", 0.2): [0, 0, 0, 0, 51, 22, *[0.46] * 4, -6, -0.06, -0.06, -1.8, -2.16, 8],  # 0 bits: black
    ("timm", 0.4): [0, 0, 0, 1, 102, 44, *[0.82] * 4, -12, -0.12, -0.12, -3.6, -4.32, 16],
}


@pytest.mark.parametrize(("table", "f"), ARGUMENTS)
def test_the_arguments_of_a_magnitude(table, f):
    arguments = _arguments(table, f, jnp.float32(-1), 24, 20)
    np.testing.assert_allclose(arguments, ARGUMENTS[table, f], rtol=1e-6)


@pytest.mark.parametrize(("table", "magnitude", "count"), [("uda", 10, 16), ("timm", 2, 15)])
def test_one_operation_is_one_of_the_list_equally_often(table, magnitude, count):
    image, uda = np.random.default_rng(1).integers(20, 236, (36, 40, 3), dtype=np.uint8), table == "uda"
    keys, scaled = jax.random.split(jax.random.key(2), 480), jnp.asarray(image, jnp.float32) / 255
    draws = jax.jit(jax.vmap(rand_augment(1, magnitude, table), (0, None)))(keys, scaled)
    arguments, options = _arguments(table, magnitude / (30 if uda else 10), jnp.float32(1), 36, 40), []
    for place, name in enumerate(OPERATIONS[:15]):
        for sign in (1, -1) if place >= 10 else (1,):
            for cubic in (None,) if uda else (jnp.array(True), jnp.array(False)):
                fill = (0, 0, 0) if uda else (128, 128, 128)
                moved = applied(image, name, sign * arguments[place], cubic=cubic, fill=fill, wrap=uda)
                options.append((name, moved))
    counts = dict.fromkeys((*OPERATIONS[:count], "none"), 0)
    for draw in np.round(np.asarray(draws) * 255).astype(int):
        name = "none" if (draw == image).all() else "cutout"
        if not ((draw == image) | (draw == (125, 123, 114))).all():
            same = [(np.abs(draw - option) <= 1).mean() for _, option in options]
            assert max(same) > 0.98
            name = options[int(np.argmax(same))][0]
        counts[name] += 1
    skipped = counts.pop("none")
    assert skipped == 0 if uda else 190 < skipped < 290  # timm applies half of its draws
    expected = (480 - skipped) / count
    assert min(counts.values()) > 0.4 * expected, counts
    assert max(counts.values()) < 1.8 * expected, counts


@pytest.mark.parametrize("augment", [rand_augment(2, 20), rand_augment(2, 9, "timm")])
def test_the_key_decides_and_gray_images_keep_their_shape_and_range(augment):
    keys, image = jax.random.split(jax.random.key(6), 64), jnp.asarray(IMAGES["noise"][:8, :8, :1] / np.float32(255))
    augment = jax.jit(jax.vmap(augment, (0, None)))
    images = np.asarray(augment(keys, image))
    assert (images.shape, images.dtype) == ((64, 8, 8, 1), np.float32)
    assert 0 <= images.min() <= images.max() <= 1
    np.testing.assert_array_equal(augment(keys, image), images)
    assert len({image.tobytes() for image in images}) > 24


@pytest.mark.parametrize(
    ("name", "arguments"), [("num_ops", (-1, 9)), ("magnitude", (1, 31)), ("magnitude", (1, 11, "timm"))]
)
def test_arguments_out_of_range_are_named(name, arguments):
    with pytest.raises(ConfigError, match=name):
        rand_augment(*arguments)


def test_other_channel_counts_are_named():
    with pytest.raises(ConfigError, match="image: got 2 channels, expected 1 or 3"):
        rand_augment(1, 5)(jax.random.key(0), jnp.zeros((4, 4, 2)))
