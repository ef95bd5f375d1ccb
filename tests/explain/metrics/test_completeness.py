import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinterp.explain.attribute import integrated_gradients
from jaxinterp.explain.decompose import decompose
from jaxinterp.explain.metrics import completeness


def test_the_residual_is_signed_and_relative_to_what_is_to_be_explained():
    contributions = jnp.array([[[1.0, 2.0], [4.0, 4.0]], [[-1.0, -1.0], [0.0, 0.0]]])
    found = completeness(contributions, jnp.array([[4.0, 6.0], [-2.0, 0.0]]))
    assert found.residual.tolist() == [[1.0, -2.0], [0.0, 0.0]]
    np.testing.assert_allclose(found.relative, [[1 / 4, 2 / 6], [0, 0]], rtol=1e-6)


def test_an_unexplained_zero_is_infinitely_wrong():
    assert completeness(jnp.ones((1, 1, 1)), jnp.ones((1, 1)), 1.0).relative.tolist() == [[np.inf]]


def test_it_agrees_with_the_methods_own_numbers():
    matrix = jax.random.normal(jax.random.key(0), (6, 3))
    x = jax.random.normal(jax.random.key(1), (4, 6))

    def net(x):
        return jax.nn.relu(x) @ matrix + 0.3

    parts = decompose(net, x)
    assert float(completeness(parts.contributions, parts.logits, parts.bias).relative.max()) < 1e-5

    rough = integrated_gradients(lambda x: jnp.tanh(x @ matrix), x, steps=1)
    found = completeness(rough.contributions, jnp.tanh(x @ matrix))
    np.testing.assert_allclose(found.residual, rough.gap, rtol=1e-5, atol=1e-6)
    assert float(jnp.abs(found.residual).max()) > 1e-2


def test_unfit_shapes_are_refused():
    with pytest.raises(ValueError, match="contributions"):
        completeness(jnp.ones((2, 3, 4)), jnp.ones((2, 2)))
    with pytest.raises(ValueError, match="reference"):
        completeness(jnp.ones((2, 3, 4)), jnp.ones((2, 3)), jnp.ones((2, 2, 3)))
