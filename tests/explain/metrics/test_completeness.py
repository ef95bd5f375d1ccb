import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from jaxinterp.explain.attribute import gradient, integrated_gradients
from jaxinterp.explain.attribution import Attribution
from jaxinterp.explain.decompose import decompose
from jaxinterp.explain.metrics import completeness


def by_hand(contributions, logits, bias=None):
    targets = jnp.broadcast_to(jnp.arange(logits.shape[1], dtype=jnp.int32), logits.shape)
    return Attribution(contributions, logits, targets, bias)


def test_the_residual_is_signed_and_relative_to_what_is_to_be_explained():
    contributions = jnp.array([[[1.0, 2.0], [4.0, 4.0]], [[-1.0, -1.0], [0.0, 0.0]]])
    found = completeness(None, by_hand(contributions, jnp.array([[4.0, 6.0], [-2.0, 0.0]])))
    assert found.residual.tolist() == [[1.0, -2.0], [0.0, 0.0]]
    np.testing.assert_allclose(found.relative, [[1 / 4, 2 / 6], [0, 0]], rtol=1e-6)


def test_an_unexplained_zero_is_infinitely_wrong():
    parts = by_hand(jnp.ones((1, 1, 1)), jnp.ones((1, 1)), jnp.ones((1, 1)))
    assert completeness(None, parts).relative.tolist() == [[np.inf]]


def test_it_agrees_with_the_methods_own_numbers():
    matrix = jax.random.normal(jax.random.key(0), (6, 3))
    x = jax.random.normal(jax.random.key(1), (4, 6))

    def net(x):
        return jax.nn.relu(x) @ matrix + 0.3

    parts = decompose(net, x)
    assert float(completeness(net, parts).relative.max()) < 1e-5
    assert float(completeness(net, decompose, x, 1).relative.max()) < 1e-5

    def curved(x):
        return jnp.tanh(x @ matrix)

    rough = integrated_gradients(curved, x, steps=1)
    found = completeness(curved, lambda *given: integrated_gradients(*given, steps=1), x)
    np.testing.assert_allclose(found.residual, rough.residual, rtol=1e-5, atol=1e-6)
    assert float(jnp.abs(found.residual).max()) > 1e-2
    # A method without a bias is measured against the whole logit.
    slopes = completeness(curved, gradient, x)
    np.testing.assert_allclose(
        slopes.residual, curved(x) - gradient(curved, x).contributions.sum(-1), rtol=1e-4, atol=1e-5
    )


def test_what_is_no_attribution_is_refused(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    for method in (3, lambda net, x, targets: x):
        with pytest.raises(ValueError, match=r"\Amethod: got .*\Z"):
            completeness(lambda x: x, method, jnp.ones((2, 3)))
