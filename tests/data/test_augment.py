import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinterp.data import compose, crop, flip, identity

IMAGE = jnp.arange(1.0, 61.0).reshape(4, 5, 3) / 60
KEYS = jax.random.split(jax.random.key(0), 400)


def test_identity_and_empty_composition_change_nothing():
    for augment in (identity, compose()):
        np.testing.assert_array_equal(augment(KEYS[0], IMAGE), IMAGE)


def test_flip_mirrors_columns_half_of_the_time():
    found = np.asarray(jax.vmap(flip(), (0, None))(KEYS, IMAGE))
    mirrored = (found == np.fliplr(IMAGE)[None]).all(axis=(1, 2, 3))
    kept = (found == np.asarray(IMAGE)[None]).all(axis=(1, 2, 3))
    assert (mirrored ^ kept).all()
    assert 150 < mirrored.sum() < 250
    np.testing.assert_array_equal(flip(0.0)(KEYS[0], IMAGE), IMAGE)


def test_crop_draws_every_window_of_the_zero_padded_image_equally():
    padding = 1
    padded = np.pad(IMAGE, [(padding, padding), (padding, padding), (0, 0)])
    windows = {padded[y : y + 4, x : x + 5].tobytes(): (y, x) for y in range(3) for x in range(3)}
    found = np.asarray(jax.jit(jax.vmap(crop(padding), (0, None)))(KEYS, IMAGE))
    counts = dict.fromkeys(windows.values(), 0)
    for image in found:
        counts[windows[image.tobytes()]] += 1
    assert min(counts.values()) > 20
    assert max(counts.values()) < 75
    np.testing.assert_array_equal(crop(0)(KEYS[0], IMAGE), IMAGE)


def test_compose_gives_each_operation_its_own_key_in_order():
    def add(key, image):
        return image + jax.random.uniform(key)

    def double(key, image):
        return 2 * image

    key = KEYS[0]
    noise = jax.random.uniform(jax.random.fold_in(key, 0)), jax.random.uniform(jax.random.fold_in(key, 2))
    expected = 2 * (IMAGE + noise[0]) + noise[1]
    np.testing.assert_allclose(compose(add, double, add)(key, IMAGE), expected, rtol=1e-6)


def test_arguments_out_of_range_are_named():
    with pytest.raises(ValueError, match="probability"):
        flip(1.5)
    with pytest.raises(ValueError, match="padding"):
        crop(-1)
