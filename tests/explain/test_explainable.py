"""The network seen from outside: maps, layers, methods and log-odds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxinterp.explain.explainable import OURS, softmax_explainable


class Net(nn.Module):
    """A convolution, a rectifier and pooled classes."""

    @nn.compact
    def __call__(self, x, frozen=False):
        return nn.Dense(3)(nn.relu(nn.Conv(2, (3, 3), strides=(2, 2), name="features")(x)).mean((1, 2)))


IMAGES = np.asarray(jax.random.uniform(jax.random.key(0), (2, 6, 6, 1)))


@pytest.fixture(scope="module")
def net():
    variables = Net().init(jax.random.key(1), IMAGES)
    return softmax_explainable(Net(), variables, occlusions=(3,), layers=("features",), pooled="features")


def test_maps_are_the_decomposition_at_every_layer(net):
    parts = net.decompose(IMAGES, 1)
    np.testing.assert_allclose(parts.logits[:, 0], net.apply(net.variables, jnp.asarray(IMAGES))[:, 1], rtol=1e-5)
    own, features = net.levels(IMAGES, 1)
    np.testing.assert_allclose(net.maps(IMAGES, 1), parts.contributions.sum(-1), rtol=1e-6)
    np.testing.assert_allclose(own, net.maps(IMAGES, 1), rtol=1e-5)
    assert features.shape == (2, 1, 6, 6)
    assert len(np.unique(np.asarray(features)[0, 0])) <= 9  # a 3×3 map, enlarged


def test_methods_return_maps_of_the_images(net):
    methods = net.methods()
    assert set(methods) == {OURS, "gradient", "input_x_gradient", "integrated_gradients", "occlusion_3", "grad_cam"}
    assert {method(IMAGES, 0).shape for method in methods.values()} == {(2, 1, 6, 6)}


def test_log_odds_are_those_of_the_softmax(net):
    logits = np.array([[1.0, -2.0, 0.5], [30.0, 0.0, 1.0]])
    p = np.asarray(jax.nn.softmax(logits[:1]))
    np.testing.assert_allclose(net.log_odds(logits)[:1], np.log(p / (1 - p)), rtol=1e-6)
    assert np.isfinite(net.log_odds(logits)).all()
    np.testing.assert_allclose(net.probabilities(logits), jax.nn.softmax(logits), rtol=1e-5)
    assert "Array" not in repr(net)


def test_half_precision_images_are_decomposed():
    images = jnp.asarray(IMAGES, jnp.float16)
    variables = Net().init(jax.random.key(1), IMAGES)
    with jax.numpy_dtype_promotion("standard"):
        parts = softmax_explainable(Net(), variables).decompose(images)
    assert float(jnp.abs(parts.residual).max()) < 1e-2
