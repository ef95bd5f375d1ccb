from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from jaxinterp.errors import ConfigError
from jaxinterp.explain.attribute import excitation_backprop, lrp
from jaxinterp.explain.attribute.backward import checked
from jaxinterp.explain.attribute.lrp import COMPOSITES, AlphaBeta, Composite, Epsilon, Gamma
from jaxinterp.explain.attribute.relevance import in_parts
from jaxinterp.explain.attribution import Attribution
from jaxinterp.explain.explainable import explainable


class Residual(nn.Module):
    bias: bool = False

    @nn.compact
    def __call__(self, x):
        def conv(x):
            return nn.Conv(4, (3, 3), use_bias=self.bias, bias_init=nn.initializers.normal(0.3))(x)

        x = nn.relu(conv(x))
        x = nn.relu(x + conv(nn.relu(conv(x))))
        x = nn.max_pool(x, (2, 2), (2, 2)).mean((1, 2))
        return nn.Dense(20, use_bias=self.bias)(x)


def made(bias):
    x = jax.random.normal(jax.random.key(1), (3, 6, 6, 2))
    return explainable(Residual(bias), Residual(bias).init(jax.random.key(0), x)), x


def bounds(name):
    return {"low": -3, "high": 3} if name == "epsilon_gamma_box" else {}


@pytest.mark.parametrize("name", COMPOSITES)
def test_without_biases_the_sum_is_the_logit(name):
    net, x = made(bias=False)
    found = lrp(net, x, [[0, 3]] * 3, composite=name, **bounds(name))
    if name != "epsilon_alpha2_beta1":  # a unit without a negative part has nothing to give −βR to
        np.testing.assert_allclose(found.residual, 0, atol=1e-5 * float(jnp.abs(found.logits).max()))
    assert found.contributions.shape == (3, 2, 6, 6, 2)


@pytest.mark.parametrize(("sign", "share"), [(1, 2), (-1, -1)])
def test_alpha_and_beta_of_a_neuron_of_one_sign(sign, share):
    x, w = jnp.array([[1.0, 2.0]]), sign * jnp.array([[1.0], [3.0]])
    found = lrp(lambda x: x @ w, x, composite=Composite(dense=AlphaBeta(2.0, 1.0)))
    np.testing.assert_allclose(found.contributions, share * (x * w.T)[None], rtol=1e-5)


def test_what_biases_take_is_the_residual():
    net, x = made(bias=True)
    found = lrp(net, x, 1)
    total = found.contributions.sum((2, 3, 4)) + found.residual
    np.testing.assert_allclose(total, found.logits, rtol=1e-4, atol=1e-5)
    assert float(jnp.abs(found.residual).max()) > 1e-2


def test_many_targets_and_parts_change_nothing():
    net, x = made(bias=True)
    whole = lrp(net, x)  # of 20 classes: mapped over
    few = lrp(net, x, [[4, 19]] * 3)  # written out
    np.testing.assert_allclose(few.contributions, whole.contributions[:, [4, 19]], rtol=1e-4, atol=1e-6)
    parts = lrp(net, x, max_bytes=100_000)
    np.testing.assert_allclose(parts.contributions, whole.contributions, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(parts.residual, whole.residual, rtol=1e-3, atol=1e-5)


def test_bounds_may_be_arrays_and_are_those_of_the_layer():
    net, x = made(bias=True)
    number = lrp(net, x, 0, composite="epsilon_gamma_box", low=-3, high=3)
    array = lrp(net, x, 0, composite="epsilon_gamma_box", low=jnp.array([-3.0, -3.0]), high=jnp.full(x.shape, 3.0))
    np.testing.assert_allclose(array.contributions, number.contributions, rtol=1e-5, atol=1e-7)
    at = lrp(net, x, 0, composite="epsilon_gamma_box", low=0, high=jnp.full(4, 5.0), layer="Conv_1")
    assert at.contributions.shape == (3, 1, 6, 6, 4)
    for name, given in (
        ("epsilon_gamma_box", {}),
        ("epsilon_gamma_box", {"low": 0}),
        ("epsilon", {"low": 0, "high": 1}),
    ):
        with pytest.raises(ConfigError, match=r"^low, high:"):
            lrp(net, x, 0, composite=name, **given)
    with pytest.raises(ConfigError, match=r"^low:"):
        lrp(net, x, 0, composite="epsilon_gamma_box", low=jnp.zeros(3), high=1)


def test_skip_connections_may_pass_relevance_to_both():
    def function(x):
        return (x + jnp.tanh(x))[:, :1]

    x = jnp.array([[2.0, 1.0]])
    value = 2 + np.tanh(2.0)
    shared = lrp(function, x, composite="epsilon").contributions
    both = lrp(function, x, composite=Composite(add="gradient")).contributions
    np.testing.assert_allclose(shared[0, 0], [value, 0], rtol=1e-5)
    np.testing.assert_allclose(both[0, 0], [2 * value, 0], rtol=1e-5)


def test_excitation_is_a_distribution():
    net, x = made(bias=True)
    found = excitation_backprop(net, jnp.abs(x), [[0, 1]] * 3, layer="Conv_0")
    np.testing.assert_allclose(found.contributions.sum((2, 3, 4)), 1, rtol=1e-3)
    assert found.residual is None
    biased = excitation_backprop(net, jnp.abs(x), [[0, 1]] * 3, bias=True).contributions.sum((2, 3, 4))
    assert float(biased.max()) < 1


@pytest.mark.parametrize(("budget", "part"), [(1 << 30, (16, 20)), (0.3, (4, 20)), (0.04, (1, 10)), (1, (1, 1))])
def test_fewer_examples_before_fewer_targets(budget, part):
    net, x = made(bias=False)
    call, shapes = checked(net, jnp.tile(x, (5, 1, 1, 1)), None, None, 1), set()
    total, most = call.memory
    whole = 3 * total + most + 20 * (2 * most + 2 * call.x.nbytes)

    def run(model, x, rows):
        shapes.add(rows.shape)
        blank = jnp.zeros(rows.shape)
        return Attribution(blank, blank, rows, method="lrp", layer="input")

    found = in_parts(call, run, (), budget if budget >= 1 else int(budget * whole))
    assert shapes == {part}
    assert found.targets.shape == (15, 20)


@pytest.mark.parametrize("name", ["excitation", *COMPOSITES])
def test_half_precision_at_a_black_region_is_finite_and_close(name):
    x = jax.random.uniform(jax.random.key(2), (1, 6, 6, 2)).at[:, :4].set(0)
    kernel, dense = (
        jax.random.normal(jax.random.key(3), (3, 3, 2, 4)),
        jnp.abs(jax.random.normal(jax.random.key(4), (4, 3))),
    )

    def net(x):
        numbers = ("NHWC", "HWIO", "NHWC")
        h = jax.lax.conv_general_dilated(x, kernel.astype(x.dtype), (1, 1), "SAME", dimension_numbers=numbers)
        return jax.nn.relu(h + jnp.asarray(0.5, x.dtype)).mean((1, 2)) @ dense.astype(x.dtype)

    method = excitation_backprop if name == "excitation" else partial(lrp, composite=name, **bounds(name))
    half, single = (method(net, x.astype(kind)).contributions for kind in (jnp.float16, jnp.float32))
    assert half.dtype == jnp.float16
    np.testing.assert_allclose(half.astype(jnp.float32), single, rtol=0.03, atol=0.01 * float(jnp.abs(single).max()))


def test_bad_input_is_one_clear_line(monkeypatch):
    net, x = made(bias=False)
    with pytest.raises(ConfigError, match=r"^composite:"):
        lrp(net, x, composite="epsilon_pluss")
    with pytest.raises(ConfigError, match=r"^composite:"):
        lrp(net, x, composite=Gamma())
    with pytest.raises(ConfigError, match=r"^alpha, beta:"):
        AlphaBeta(2.0, 0.5)
    with pytest.raises(ConfigError, match=r"^composite:"):
        lrp(net, x, composite=None)
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    for name, wrong in (("softmax", "foo"), ("add", "x"), ("dense", "epsilon"), ("first", Gamma), ("epsilon", -1.0)):
        with pytest.raises(ConfigError, match=rf"^{name}: got .*"):
            Composite(**{name: wrong})
    for rule, name in ((Epsilon, "epsilon"), (Gamma, "gamma")):
        with pytest.raises(ConfigError, match=rf"^{name}:"):
            rule(-1.0)
