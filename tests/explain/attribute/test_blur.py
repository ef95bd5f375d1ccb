from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinterp.explain.attribute import blur_integrated_gradients
from jaxinterp.explain.attribute.blur import blurred
from jaxinterp.explain.explainable import explainable

X = jax.random.uniform(jax.random.key(0), (3, 6, 5, 2))
WEIGHTS = jax.random.normal(jax.random.key(1), (6, 5, 2, 2))


def power(degree):
    return lambda x: jnp.einsum("bhwc,hwck->bk", x**degree, WEIGHTS)


def test_a_blurred_pixel_is_the_gaussian_mean_of_all():
    found = blurred(X, jnp.array([0.0, 0.8, 1e4]))
    np.testing.assert_array_equal(found[0], X)
    np.testing.assert_allclose(found[2], jnp.broadcast_to(X.mean((1, 2), keepdims=True), X.shape), rtol=1e-5)
    for place in ((0, 0), (3, 2)):
        rows, columns = np.indices((6, 5))
        weights = np.exp(-((rows - place[0]) ** 2 + (columns - place[1]) ** 2) / (2 * 0.8**2))
        mean = np.einsum("hw,bhwc->bc", weights / weights.sum(), X)
        np.testing.assert_allclose(found[1][(slice(None), *place)], mean, rtol=1e-5)
    near = blurred(jnp.arange(9.0).reshape(1, 1, 9, 1), jnp.array([1.0]), cut=3)[0, 0, 0, 0, 0]
    np.testing.assert_allclose(near, np.arange(4) @ (w := np.exp(-(np.arange(4) ** 2) / 2)) / w.sum(), rtol=1e-5)


@pytest.mark.parametrize("degree", [1, 2])
@pytest.mark.parametrize(("steps", "max_bytes"), [(1, 1 << 30), (5, 1), (5, 10_000)])
def test_complete_on_quadratics_for_any_steps(degree, steps, max_bytes):
    found = blur_integrated_gradients(power(degree), X, steps=steps, max_sigma=3.0, max_bytes=max_bytes)
    np.testing.assert_allclose(found.bias, power(degree)(blurred(X, jnp.array([3.0]))[0]), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.residual, 0, atol=2e-5)
    np.testing.assert_allclose(found.contributions.sum((2, 3, 4)), found.logits - found.bias, atol=2e-5)


def test_the_residual_of_other_powers_shrinks_with_the_square_of_the_steps():
    most = [jnp.abs(blur_integrated_gradients(power(4), X, steps=s, max_sigma=3.0).residual).max() for s in (16, 64)]
    assert 0 < most[1] < most[0] / 8


def test_single_pieces_are_summed():
    widths = 3.0 * (np.arange(5)[::-1] / 4) ** 2
    images = [np.asarray(blurred(X, jnp.array([w], jnp.float32))[0]) for w in widths]
    expected = 0
    for start, end in pairwise(images):
        slope = 3 * ((start + end) / 2)[..., None] ** 2 * np.asarray(WEIGHTS)[None]
        expected = expected + np.moveaxis((end - start)[..., None] * slope, -1, 1)
    found = blur_integrated_gradients(power(3), X, steps=4, max_sigma=3.0)
    np.testing.assert_allclose(found.contributions, expected, rtol=1e-3, atol=1e-5)


def test_at_a_layer_it_is_complete_for_the_layer():
    net = explainable({"square": jnp.square, "top": power(2)})
    found = blur_integrated_gradients(net, X, layer="square", steps=3, max_sigma=2.0)
    assert found.layer == "square"
    np.testing.assert_allclose(found.bias, power(4)(blurred(X, jnp.array([2.0]))[0]), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(found.residual, 0, atol=2e-5)


@pytest.mark.parametrize(("field", "change"), [("steps", 0), ("max_sigma", 0.0), ("x", jnp.ones((2, 3)))])
def test_bad_input_is_one_line(field, change):
    with pytest.raises(ValueError, match=f"^{field}: got"):
        blur_integrated_gradients(**{"net": lambda x: x.reshape(len(x), -1), "x": X, field: change})
