import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from jaxinterp.data import rand_augment
from jaxinterp.data.pil_ops import from_levels
from jaxinterp.data.randaugment import OPERATIONS, apply_operation
from jaxinterp.errors import ConfigError

RNG = np.random.default_rng(1)
PIXELS = RNG.integers(0, 256, (36, 40, 3), dtype=np.uint8)
LEVELS = jnp.asarray(PIXELS, jnp.int32)
IMAGE = from_levels(LEVELS)
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


def _candidates():
    """Every image that one uda operation at m = 10 may give, except the cutouts."""
    image = Image.fromarray(PIXELS)
    for name, operation in UDA.items():
        signs = (-1, 1) if OPERATIONS.index(name) >= OPERATIONS.index("rotate") else (None,)
        for sign in signs:
            yield name, np.asarray(operation(image) if sign is None else operation(image, sign)).astype(int)


def _is_cutout(found):
    return ((found == PIXELS) | (found == (125, 123, 114))).all() and (found != PIXELS).any()


def test_one_uda_operation_is_one_of_the_sixteen_equally_often():
    draws = jax.jit(jax.vmap(rand_augment(1, 10), (0, None)))(jax.random.split(jax.random.key(2), 480), IMAGE)
    found = np.round(np.asarray(draws) * 255).astype(int)
    candidates = list(_candidates())
    counts = dict.fromkeys(OPERATIONS, 0)
    for image in found:
        if _is_cutout(image):
            counts["cutout"] += 1
            continue
        same = [(np.abs(image - other) <= 1).mean() for _, other in candidates]
        assert max(same) > 0.98
        counts[candidates[int(np.argmax(same))][0]] += 1
    assert min(counts.values()) > 12, counts
    assert max(counts.values()) < 55, counts


def test_the_number_of_operations_and_the_key_decide():
    key = jax.random.key(3)
    np.testing.assert_array_equal(jax.jit(rand_augment(0, 10))(key, IMAGE), IMAGE)
    keys = jax.random.split(key, 16)
    augment = jax.jit(jax.vmap(rand_augment(2, 10), (0, None)))
    found = np.asarray(augment(keys, IMAGE))
    np.testing.assert_array_equal(augment(keys, IMAGE), found)
    assert len({image.tobytes() for image in found}) > 12
    np.testing.assert_allclose(jax.jit(rand_augment(2, 10))(keys[5], IMAGE), found[5], atol=1 / 254)


def _operation(name, argument, cubic=None):
    place = jnp.zeros(2)
    index = OPERATIONS.index(name)
    changed = apply_operation(LEVELS, index, argument, place=place, cubic=cubic, fill=128, wrap=False)
    return np.asarray(from_levels(changed)).tobytes()


@pytest.mark.parametrize(("magnitude", "bits", "threshold", "factor"), [(2, 0, 51, 0.46), (4, 1, 102, 0.82)])
def test_timm_magnitudes(magnitude, bits, threshold, factor):
    """Coded ResNeXt's rand-m2 posterizes to 0 bits (black), rand-m4 to 1."""
    augment = jax.jit(jax.vmap(rand_augment(1, magnitude, "timm"), (0, None)))
    outcomes = [image.tobytes() for image in np.asarray(augment(jax.random.split(jax.random.key(5), 400), IMAGE))]
    assert 0.4 < outcomes.count(np.asarray(IMAGE).tobytes()) / 400 < 0.62  # each is applied with probability 1/2
    assert _operation("posterize", bits) in outcomes
    assert _operation("solarize", threshold) in outcomes
    assert _operation("solarize_add", int(11 * magnitude)) in outcomes
    assert _operation("brightness", factor) in outcomes
    for sign in (1, -1):
        turned = {_operation("rotate", sign * 3.0 * magnitude, jnp.array(cubic)) for cubic in (True, False)}
        assert turned & set(outcomes)
        moved = {_operation("translate_x", sign * 0.045 * magnitude * 40, jnp.array(c)) for c in (True, False)}
        assert moved & set(outcomes)
    assert (np.zeros(PIXELS.shape, np.float32).tobytes() in outcomes) == (bits == 0)


@pytest.mark.parametrize("augment", [rand_augment(2, 20), rand_augment(2, 9, "timm")])
def test_gray_images_keep_their_shape_and_range(augment):
    keys = jax.random.split(jax.random.key(6), 64)
    found = jax.jit(jax.vmap(augment, (0, None)))(keys, IMAGE[:8, :8, :1])
    assert found.shape == (64, 8, 8, 1)
    assert found.dtype == jnp.float32
    assert 0 <= found.min() <= found.max() <= 1


@pytest.mark.parametrize(
    ("name", "arguments"), [("num_ops", (-1, 9)), ("magnitude", (1, 31)), ("magnitude", (1, 11, "timm"))]
)
def test_arguments_out_of_range_are_named(name, arguments):
    with pytest.raises(ConfigError, match=name):
        rand_augment(*arguments)


def test_other_channel_counts_are_named():
    with pytest.raises(ConfigError, match="image: got 2 channels, expected 1 or 3"):
        rand_augment(1, 5)(jax.random.key(0), jnp.zeros((4, 4, 2)))
