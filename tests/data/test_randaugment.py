import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from jaxinterp.data import rand_augment, timm_rand_augment
from jaxinterp.data.pil_ops import from_levels
from jaxinterp.data.randaugment import OPERATIONS, apply_operation

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
    np.testing.assert_array_equal(jax.jit(rand_augment(3, 5, probability=0.0))(key, IMAGE), IMAGE)
    keys = jax.random.split(key, 16)
    augment = jax.jit(jax.vmap(rand_augment(2, 10), (0, None)))
    found = np.asarray(augment(keys, IMAGE))
    np.testing.assert_array_equal(augment(keys, IMAGE), found)
    assert len({image.tobytes() for image in found}) > 12
    np.testing.assert_allclose(jax.jit(rand_augment(2, 10))(keys[5], IMAGE), found[5], atol=1 / 254)


def test_timm_applies_half_of_the_operations():
    augment = jax.jit(jax.vmap(rand_augment(1, 9, "timm", increasing=True), (0, None)))
    found = np.asarray(augment(jax.random.split(jax.random.key(4), 300), IMAGE))
    unchanged = (found == np.asarray(IMAGE)[None]).all(axis=(1, 2, 3)).mean()
    assert 0.4 < unchanged < 0.62


def _outcomes(augment, draws=600):
    keys = jax.random.split(jax.random.key(5), draws)
    return {image.tobytes() for image in np.asarray(jax.jit(jax.vmap(augment, (0, None)))(keys, IMAGE))}


def _image(levels):
    return np.asarray(from_levels(jnp.asarray(levels, jnp.int32))).tobytes()


def _operation(name, argument):
    changed = apply_operation(
        LEVELS,
        OPERATIONS.index(name),
        argument,
        place=jnp.zeros(2),
        method="nearest",
        cubic=False,
        fill=128,
        wrap=False,
    )
    return _image(changed)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("magnitude", "increasing", "bits", "threshold", "factors"),
    [(2, False, 0, 51, (0.46,)), (4, False, 1, 102, (0.82,)), (9, True, 1, 26, (0.19, 1.81))],
)
def test_timm_magnitudes(magnitude, increasing, bits, threshold, factors):
    """Coded ResNeXt's rand-m2 posterizes to 0 bits (black), rand-m4 to 1; inc1 grows with m instead."""
    outcomes = _outcomes(rand_augment(1, magnitude, "timm", increasing=increasing, resample="nearest"))
    assert _operation("posterize", bits) in outcomes
    assert _operation("solarize", threshold) in outcomes
    assert _operation("solarize_add", int(11 * magnitude)) in outcomes
    assert _operation("rotate", 3.0 * magnitude) in outcomes
    assert _operation("rotate", -3.0 * magnitude) in outcomes
    for factor in factors:
        assert _operation("brightness", factor) in outcomes
    if bits == 0:
        assert _image(np.zeros(PIXELS.shape, int)) in outcomes


def test_timm_translates_by_a_share_of_the_side_and_fills():
    augment = rand_augment(1, 10, "timm", resample="nearest", fill=(1, 2, 3))
    shifted = np.full(PIXELS.shape, (1, 2, 3))
    shifted[:, : 40 - 18] = PIXELS[:, 18:]  # 0.45 * 40 pixels
    assert _image(shifted) in _outcomes(augment)


@pytest.mark.slow
def test_magnitude_noise_spreads_and_stays_in_range():
    spread = _outcomes(rand_augment(1, 9, "timm", magnitude_std=0.5, probability=1.0))
    fixed = _outcomes(rand_augment(1, 9, "timm", probability=1.0, resample="bilinear"))
    assert len(fixed) == 20  # ten without a sign, five with two
    assert len(spread) > 300


@pytest.mark.slow
def test_gray_images_and_digits_keep_their_shape_and_range():
    keys = jax.random.split(jax.random.key(6), 64)
    for augment in (rand_augment(2, 20), rand_augment(2, 9, "timm", magnitude_std=101)):
        found = jax.jit(jax.vmap(augment, (0, None)))(keys, IMAGE[:8, :8, :1])
        assert found.shape == (64, 8, 8, 1)
        assert found.dtype == jnp.float32
        assert 0 <= found.min() <= found.max() <= 1


def test_timm_notation():
    key = jax.random.key(7)
    expected = jax.jit(rand_augment(3, 9, "timm", magnitude_std=0.5, increasing=True, fill=7))(key, IMAGE)
    found = jax.jit(timm_rand_augment("rand-m9-n3-mstd0.5-inc1", fill=7))(key, IMAGE)
    np.testing.assert_array_equal(found, expected)
    for config in ("auto-m9", "rand-m", "rand-w0", "rand-mx"):
        with pytest.raises(ValueError, match="expected a config such as"):
            timm_rand_augment(config)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_ops": -1, "magnitude": 9}, "num_ops must not be negative"),
        ({"num_ops": 1, "magnitude": 31}, r"magnitude must be in \[0, 30\] for uda, got 31"),
        ({"num_ops": 1, "magnitude": 11, "table": "timm"}, r"magnitude must be in \[0, 10\] for timm"),
        ({"num_ops": 1, "magnitude": 9, "increasing": True}, "increasing is for the timm table only"),
        ({"num_ops": 1, "magnitude": 9, "probability": 2.0}, r"probability must be in \[0, 1\]"),
    ],
)
def test_arguments_out_of_range_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        rand_augment(**arguments)


def test_other_channel_counts_are_refused():
    with pytest.raises(ValueError, match="1 or 3 channels, got 2"):
        rand_augment(1, 5)(jax.random.key(0), jnp.zeros((4, 4, 2)))
