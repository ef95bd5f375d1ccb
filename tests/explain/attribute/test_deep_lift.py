from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinterp.errors import ConfigError
from jaxinterp.explain.attribute import deconvolution, deep_lift, deep_lift_shap
from jaxinterp.explain.explainable import explainable


class Mlp(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.gelu(nn.Dense(8)(x.reshape(len(x), -1)))
        return nn.Dense(3)(nn.LayerNorm()(x))


class Cnn(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.max_pool(nn.relu(nn.Conv(4, (3, 3))(x)), (2, 2), (2, 2))
        x = nn.relu(x + nn.BatchNorm(use_running_average=True)(nn.Conv(4, (3, 3))(x)))
        return nn.Dense(3)(x.max((1, 2)))


X = jax.random.normal(jax.random.key(1), (3, 6, 6, 2))


def made(module):
    return explainable(module, module.init(jax.random.key(0), X))


@pytest.mark.parametrize("module", [Mlp(), Cnn()])
@pytest.mark.parametrize("layer", [None, 0])
def test_contributions_sum_to_the_change_of_the_logit(module, layer):
    net = made(module)
    name = None if layer is None else next(name for name in net.layers(X) if name != "input")
    found = deep_lift(net, X, baseline=jnp.roll(X, 1, 0) / 2, layer=name)
    np.testing.assert_allclose(found.bias, net.logits(jnp.roll(X, 1, 0) / 2), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.residual, 0, atol=2e-5)
    np.testing.assert_allclose(
        found.contributions.reshape(3, 3, -1).sum(-1), net.logits(X) - found.bias, rtol=1e-4, atol=2e-5
    )


@pytest.mark.parametrize("larger", [
    lambda a, b: jnp.where((b > a) | jnp.isnan(b), b, a), lambda a, b: jnp.where(a <= b, b, a),
    lambda a, b: jnp.where(a > b, a, b), lambda a, b: -(lambda a, b: jnp.where(a > b, b, a))(-a, -b),
])  # fmt: skip
def test_a_maximum_that_is_written_as_a_selection(larger):
    def net(x, choose):
        return choose(x[:, :2] ** 2, 3 * x[:, 2:])

    x, base = jax.random.normal(jax.random.key(3), (2, 4, 4))
    found, want = (deep_lift(partial(net, choose=f), x, baseline=base).contributions for f in (larger, jnp.maximum))
    np.testing.assert_allclose(found, want, rtol=1e-5)


def test_a_unit_that_does_not_change_has_its_derivative():
    found = deep_lift(lambda x: jnp.tanh(x) + 0 * x, jnp.array([[0.5, 1.0]]), baseline=jnp.array([[0.5, 0.0]]))
    np.testing.assert_allclose(found.contributions[0, 0, 0], 0)
    np.testing.assert_allclose(found.contributions[0, 1, 1], np.tanh(1), rtol=1e-6)


def test_over_baselines_it_is_the_mean():
    net = made(Cnn())
    baselines = jnp.stack([jnp.zeros((6, 6, 2)), X[0], X[1] / 2])
    found = deep_lift_shap(net, X, 1, baselines=baselines)
    each = [deep_lift(net, X, 1, baseline=base) for base in baselines]
    np.testing.assert_allclose(
        found.contributions, np.mean([part.contributions for part in each], 0), rtol=1e-4, atol=1e-6
    )
    np.testing.assert_allclose(found.bias, np.mean([part.bias for part in each], 0), rtol=1e-5)
    np.testing.assert_allclose(found.residual, 0, atol=2e-5)
    for wrong in (X[:0], X[0], jnp.zeros((2, 5, 6, 2)), X * jnp.nan):
        with pytest.raises(ConfigError, match=r"^baselines:"):
            deep_lift_shap(net, X, baselines=wrong)
    with pytest.raises(ConfigError, match=r"^baseline:"):
        deep_lift(net, X, baseline=jnp.zeros(3))


def test_deconvolution_does_not_look_at_the_input():
    w, u = jax.random.normal(jax.random.key(0), (4, 5)), jax.random.normal(jax.random.key(1), (5, 2))
    found = deconvolution(lambda x: jax.nn.relu(x @ w) @ u, jax.random.normal(jax.random.key(2), (3, 4))).contributions
    expected = jnp.broadcast_to((w @ jnp.maximum(u, 0)).T[None], found.shape)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
