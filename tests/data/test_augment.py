import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinterp.data import color_jitter, compose, crop, flip, identity, rotate
from jaxinterp.data.images import rotated
from jaxinterp.errors import ConfigError

IMAGE = jnp.arange(1.0, 61.0).reshape(4, 5, 3) / 60
KEYS = jax.random.split(jax.random.key(0), 400)


def test_what_does_nothing_changes_nothing():
    for augment in (identity, compose(), flip(0.0), crop(0)):
        np.testing.assert_array_equal(augment(KEYS[0], IMAGE), IMAGE)


def test_flip_mirrors_columns_half_of_the_time():
    images = np.asarray(jax.vmap(flip(), (0, None))(KEYS, IMAGE))
    mirrored = (images == np.fliplr(IMAGE)[None]).all(axis=(1, 2, 3))
    kept = (images == np.asarray(IMAGE)[None]).all(axis=(1, 2, 3))
    assert (mirrored ^ kept).all()
    assert 150 < mirrored.sum() < 250


def test_crop_draws_every_window_of_the_zero_padded_image_equally():
    padded = np.pad(IMAGE, [(1, 1), (1, 1), (0, 0)])
    counts = {padded[y : y + 4, x : x + 5].tobytes(): 0 for y in range(3) for x in range(3)}
    for image in np.asarray(jax.jit(jax.vmap(crop(1), (0, None)))(KEYS, IMAGE)):
        counts[image.tobytes()] += 1
    assert min(counts.values()) > 20
    assert max(counts.values()) < 75


def test_compose_gives_each_operation_its_own_key_in_order():
    def add(key, image):
        return image + jax.random.uniform(key)

    noise = [jax.random.uniform(jax.random.fold_in(KEYS[0], position)) for position in (0, 2)]
    composed = compose(add, lambda key, image: 2 * image, add)(KEYS[0], IMAGE)
    np.testing.assert_allclose(composed, 2 * (IMAGE + noise[0]) + noise[1], rtol=1e-6)


@pytest.mark.parametrize(("augment", "value", "name"), [(flip, 1.5, "probability"), (crop, -1, "padding")])
def test_arguments_out_of_range_are_named(augment, value, name):
    with pytest.raises(ConfigError, match=name):
        augment(value)


def test_rotations_are_drawn_from_both_sides_and_black_outside():
    square = IMAGE[:, :4]
    np.testing.assert_allclose(rotate(0)(KEYS[0], IMAGE), IMAGE, atol=1e-6)
    images = jax.jit(jax.vmap(rotate(90), (0, None)))(KEYS, square)
    angles = jax.vmap(lambda key: jax.random.uniform(key, (), jnp.float32, -90, 90))(KEYS) * jnp.pi / 180
    np.testing.assert_allclose(images, rotated(jnp.broadcast_to(square, (400, *square.shape)), angles), atol=1e-5)
    assert float(angles.min()) < -1.4
    assert float(angles.max()) > 1.4


def test_color_jitter_scales_about_black_the_mean_and_gray():
    bright, contrast, saturation = (color_jitter(*(0.5 * np.eye(3)[k]).tolist()) for k in range(3))
    half, gray = IMAGE / 2, IMAGE.mean(-1, keepdims=True)
    factors = jax.vmap(lambda key: 1 + 0.5 * jax.random.uniform(key, (3,), jnp.float32, -1, 1))(KEYS[:3])
    for key, (b, c, s) in zip(KEYS, factors, strict=False):
        np.testing.assert_allclose(bright(key, half), b * half, atol=1e-6)
        np.testing.assert_allclose(
            contrast(key, half), jnp.clip(half.mean() + c * (half - half.mean()), 0, 1), atol=1e-6
        )
        np.testing.assert_allclose(saturation(key, IMAGE), jnp.clip(gray + s * (IMAGE - gray), 0, 1), atol=1e-6)
    black = color_jitter(1, 1, 1)(KEYS[0], jnp.ones((2, 2, 1)))
    assert 0 <= float(black.min()) <= float(black.max()) <= 1


@pytest.mark.parametrize(
    ("make", "name"), [(lambda: rotate(181), "degrees"), (lambda: color_jitter(0, 2, 0), "contrast")]
)
def test_what_is_out_of_range_is_refused(make, name):
    with pytest.raises(ConfigError, match=f"^{name}:"):
        make()
