import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinterp.nn.patches import patches


def test_patches_by_brute_force():
    x = jax.random.normal(jax.random.key(2), (1, 5, 6, 2))
    rows = patches(x, (3, 2), (2, 1), ((1, 0), (0, 0)))
    padded = np.pad(np.asarray(x), ((0, 0), (1, 0), (0, 0), (0, 0)))
    assert rows.shape == (1, 2, 5, 12)
    np.testing.assert_array_equal(rows[0, 1, 3], padded[0, 2:5, 3:5].ravel())


def test_a_filter_larger_than_the_image_raises():
    with pytest.raises(ValueError, match=r"^x: "):
        patches(jnp.ones((1, 2, 2, 1)), (3, 1))
