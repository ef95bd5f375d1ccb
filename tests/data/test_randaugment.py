import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from jaxinterp.data import rand_augment
from jaxinterp.data.pil_ops import from_levels
from jaxinterp.data.randaugment import OPERATIONS, _arguments, apply_operation
from jaxinterp.errors import ConfigError

PIXELS = np.random.default_rng(1).integers(0, 256, (36, 40, 3), dtype=np.uint8)
IMAGE = from_levels(jnp.asarray(PIXELS, jnp.int32))
UDA = {  # m = 10 of 30, written with Pillow as the list that CoDA Nets use is
    "autocontrast": ImageOps.autocontrast,
    "equalize": ImageOps.equalize,
    "invert": ImageOps.invert,
    "posterize": lambda image: ImageOps.posterize(image, int(4 / 3)),
    "solarize": lambda image: ImageOps.solarize(image, 256 / 3),
    "solarize_add": lambda image: ImageOps.solarize(
        Image.fromarray(np.clip(np.array(image) + 110 / 3, 0, 255).astype(np.uint8)), 128
    ),
    "color": lambda image: ImageEnhance.Color(image).enhance(0.7),
    "contrast": lambda image: ImageEnhance.Contrast(image).enhance(0.7),
    "brightness": lambda image: ImageEnhance.Brightness(image).enhance(0.7),
    "sharpness": lambda image: ImageEnhance.Sharpness(image).enhance(0.7),
    "rotate": lambda image, sign: image.rotate(sign * 10),
    "shear_x": lambda image, sign: image.transform(image.size, 0, (1, sign * 0.1, 0, 0, 1, 0)),
    "shear_y": lambda image, sign: image.transform(image.size, 0, (1, 0, 0, sign * 0.1, 1, 0)),
    "translate_x": lambda image, sign: image.transform(image.size, 0, (1, 0, sign * 100 / 3, 0, 1, 0)),
    "translate_y": lambda image, sign: image.transform(image.size, 0, (1, 0, 0, 0, 1, sign * 100 / 3)),
}


def candidates():
    """Every image that one uda operation at m = 10 may give, except the cutouts."""
    image = Image.fromarray(PIXELS)
    for name, operation in UDA.items():
        signed = OPERATIONS.index(name) >= OPERATIONS.index("rotate")
        for arguments in ((image, -1), (image, 1)) if signed else ((image,),):
            yield name, np.asarray(operation(*arguments)).astype(int)


def test_one_uda_operation_is_one_of_the_sixteen_equally_often():
    draws = jax.jit(jax.vmap(rand_augment(1, 10), (0, None)))(jax.random.split(jax.random.key(2), 480), IMAGE)
    options, counts = list(candidates()), dict.fromkeys(OPERATIONS, 0)
    for image in np.round(np.asarray(draws) * 255).astype(int):
        if ((image == PIXELS) | (image == (125, 123, 114))).all() and (image != PIXELS).any():
            counts["cutout"] += 1
            continue
        same = [(np.abs(image - other) <= 1).mean() for _, other in options]
        assert max(same) > 0.98
        counts[options[int(np.argmax(same))][0]] += 1
    assert min(counts.values()) > 12, counts
    assert max(counts.values()) < 55, counts


@jax.jit
def timm_operation(index, argument, cubic):
    levels = jnp.asarray(PIXELS, jnp.int32)
    place = jnp.zeros(2)
    return from_levels(apply_operation(levels, index, argument, place=place, cubic=cubic, fill=128, wrap=False))


def test_timm_operations_at_magnitude_2_are_applied_half_of_the_time():
    augment = jax.jit(jax.vmap(rand_augment(1, 2, "timm"), (0, None)))
    outcomes = [image.tobytes() for image in np.asarray(augment(jax.random.split(jax.random.key(5), 400), IMAGE))]
    assert 0.4 < outcomes.count(np.asarray(IMAGE).tobytes()) / 400 < 0.62

    def drawn(name, argument):
        options = [timm_operation(OPERATIONS.index(name), jnp.float32(argument), jnp.array(c)) for c in (True, False)]
        return any(np.asarray(option).tobytes() in outcomes for option in options)

    expected = {"posterize": 0, "solarize": 51, "solarize_add": 22, "brightness": 0.46}
    for name, argument in expected.items():
        assert drawn(name, argument), name
    for sign in (1, -1):
        assert drawn("rotate", 6.0 * sign)
        assert drawn("translate_x", 0.09 * 40 * sign)
    assert np.zeros(PIXELS.shape, np.float32).tobytes() in outcomes  # 0 bits: Coded ResNeXt's rand-m2 gives black


def test_timm_arguments_at_magnitude_4():
    sign, expected = jnp.float32(-1.0), [0, 0, 0, 1, 102, 44, *[0.82] * 4, -12, -0.12, -0.12, -7.2, -6.48, 16]
    np.testing.assert_allclose(_arguments("timm", 0.4, sign, 36, 40), expected, rtol=1e-6)


@pytest.mark.parametrize("augment", [rand_augment(2, 20), rand_augment(2, 9, "timm")])
def test_the_key_decides_and_gray_images_keep_their_shape_and_range(augment):
    keys, augment = jax.random.split(jax.random.key(6), 64), jax.jit(jax.vmap(augment, (0, None)))
    images = np.asarray(augment(keys, IMAGE[:8, :8, :1]))
    assert (images.shape, images.dtype) == ((64, 8, 8, 1), np.float32)
    assert 0 <= images.min() <= images.max() <= 1
    np.testing.assert_array_equal(augment(keys, IMAGE[:8, :8, :1]), images)
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
