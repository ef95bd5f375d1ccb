import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxinterp.explain.attribute import gradient, input_x_gradient, saliency
from jaxinterp.explain.decompose import decompose
from jaxinterp.explain.explainable import explainable


def net(params, x):
    hidden = jnp.tanh(x.reshape(len(x), -1) @ params["in"])
    return hidden @ params["out"]


@pytest.fixture
def params():
    keys = jax.random.split(jax.random.key(0))
    return {"in": jax.random.normal(keys[0], (12, 5)), "out": jax.random.normal(keys[1], (5, 3))}


@pytest.fixture
def x():
    return jax.random.uniform(jax.random.key(1), (4, 2, 3, 2))


def test_gradient_is_the_jacobian_of_each_example(params, x):
    jacobian = jax.vmap(jax.jacobian(lambda one: net(params, one[None])[0]))(x)
    found = gradient(explainable(net, params), x)
    np.testing.assert_allclose(found.contributions, jacobian, rtol=1e-5, atol=1e-6)
    assert found.residual is None
    np.testing.assert_allclose(
        input_x_gradient(explainable(net, params), x).contributions, x[:, None] * jacobian, rtol=1e-5, atol=1e-6
    )


def test_gradient_is_signed():
    weights = jnp.array([[1.0], [-2.0]])
    assert gradient(lambda x: x @ weights, jnp.ones((1, 2))).contributions.tolist() == [[[1.0, -2.0]]]


@pytest.mark.parametrize("targets", [1, [2, 0, 1, 1], np.array([[0, 2], [1, 1], [2, 0], [0, 1]])])
def test_targets_select_rows_of_all_classes(params, x, targets):
    everything = gradient(explainable(net, params), x).contributions
    rows = np.broadcast_to(np.array(targets).reshape(-1, np.ndim(targets) or 1), (4, max(1, np.ndim(targets))))
    chosen = gradient(explainable(net, params), x, targets).contributions
    np.testing.assert_allclose(chosen, everything[np.arange(4)[:, None], rows], rtol=1e-6)


def test_chunks_closure_and_jit_agree_with_one_pass(params, x):
    whole = gradient(explainable(net, params), x).contributions
    for other in (
        gradient(explainable(net, params), x, max_bytes=1).contributions,
        gradient(lambda x: net(params, x), x).contributions,
        jax.jit(lambda x: gradient(lambda x: net(params, x), x).contributions)(x),
    ):
        np.testing.assert_allclose(other, whole, rtol=1e-5, atol=1e-5 * float(jnp.abs(whole).max()))


def test_input_x_gradient_is_the_decomposition_of_a_linear_net_and_not_of_a_curved_one(params, x):
    def linear(x):
        return x.reshape(len(x), -1) @ params["in"] @ params["out"] + 0.7

    parts = decompose(linear, x)
    np.testing.assert_allclose(input_x_gradient(linear, x).contributions, parts.contributions, rtol=1e-5, atol=1e-6)

    curved = input_x_gradient(explainable(net, params), x).contributions.sum((2, 3, 4))
    assert float(jnp.abs(curved - net(params, x)).max()) > 0.1


@pytest.mark.parametrize(
    ("field", "net", "x", "targets"),
    [
        ("x", lambda x: x, jnp.ones((2, 3), jnp.int32), None),
        ("network", lambda x: x.sum(1), jnp.ones((2, 3)), None),
        ("targets", lambda x: x, jnp.ones((2, 3)), 3),
        ("variables", nn.Dense(2), jnp.ones((2, 3)), None),
        ("variables", nn.Dense(2).apply, jnp.ones((2, 3)), None),
    ],
)
def test_bad_input_is_one_line(field, net, x, targets):
    with pytest.raises(ValueError, match=rf"\A{field}: got .*\Z"):
        gradient(net, x, targets)


def test_saliency_is_the_size_of_the_gradient(params, x):
    found = saliency(explainable(net, params), x, [2, 0, 1, 1])
    expected = np.abs(gradient(explainable(net, params), x, [2, 0, 1, 1]).contributions)
    np.testing.assert_allclose(found.contributions, expected, rtol=1e-6)
    assert (found.method, found.residual) == ("saliency", None)


@pytest.mark.parametrize("count", [16, 17, 40])
def test_many_targets_run_in_parts_of_one_size(count):
    weights = jax.random.normal(jax.random.key(2), (3, 50))
    rows = np.stack([np.arange(count), np.arange(count)[::-1] + 5])

    def curved(x):
        return jnp.sin(x @ weights)

    found = gradient(explainable(curved), jnp.ones((2, 3)), rows)
    slopes = np.cos(weights.sum(0))[:, None] * np.asarray(weights).T
    np.testing.assert_allclose(found.contributions, slopes[rows], rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(found.targets, rows)
    np.testing.assert_allclose(found.logits, np.sin(weights.sum(0))[rows], rtol=1e-4, atol=1e-5)
