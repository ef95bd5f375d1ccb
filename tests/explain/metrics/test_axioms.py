import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinterp.explain.attribute import gradient, input_x_gradient
from jaxinterp.explain.attribution import Attribution
from jaxinterp.explain.decompose import decompose
from jaxinterp.explain.explainable import explainable
from jaxinterp.explain.metrics import input_invariance, non_sensitivity


def predict(weights, x):
    return jax.nn.relu(jnp.einsum("bhwc,hwck->bk", x, weights) + 5.0)


@pytest.fixture
def given():
    weights = jax.random.normal(jax.random.key(0), (3, 4, 2, 3))
    weights = weights.at[0].set(0)  # the upper row does not matter
    x = jax.random.uniform(jax.random.key(1), (5, 3, 4, 2))
    return explainable(predict, weights), x, np.array([0, 1, 2, 0, 1])


def test_pixels_on_which_map_and_network_disagree_are_counted(given):
    net, x, labels = given
    assert non_sensitivity(net, input_x_gradient, x, labels, score="logit").scores.tolist() == [0.0] * 5
    maps = np.array(input_x_gradient(net, x, labels).contributions[:, 0].sum(-1))
    maps[0, 0, :3] = 1  # say that three pixels matter which do not
    maps[1, 2, :2] = 0  # and that two do not which do
    parts = Attribution(jnp.asarray(maps)[:, None, ..., None], jnp.zeros((5, 1)), jnp.asarray(labels)[:, None])
    assert non_sensitivity(net, parts, x, labels, score="logit").scores.tolist() == [3, 2, 0, 0, 0]


def test_a_shift_that_the_first_bias_takes_off_moves_contributions_but_no_slopes(given):
    net, x, labels = given
    still = input_invariance(net, gradient, x, labels, shift=2)
    assert still.holds.all()
    assert (still.scores < 1e-5).all()
    weights = np.moveaxis(np.asarray(net.variables)[..., labels], -1, 0)
    parts = np.asarray(x) * weights
    want = np.linalg.norm((2 * weights).reshape(5, -1), axis=1) / np.linalg.norm(parts.reshape(5, -1), axis=1)
    for method in (input_x_gradient, decompose):
        moved = input_invariance(net, method, x, labels, shift=2)
        np.testing.assert_allclose(moved.scores, want, rtol=1e-4)
        assert not moved.holds.any()
    encoded = explainable(predict, net.variables, encoding=lambda variables, x: x - 0.5)
    assert input_invariance(encoded, decompose, x, labels).holds.all()


def test_the_second_call_compiles_nothing_and_bad_input_is_a_line(given, compilations):
    net, x, labels = given
    input_invariance(net, gradient, x, labels)
    other, half = explainable(predict, 2 * net.variables), x / 2
    with compilations() as second:
        input_invariance(other, gradient, half, labels)
    assert second == []
    with pytest.warns(UserWarning, match=r"input_invariance: NaN at 5 of 5 examples: zero map \(0, 1, 2, 3, 4\)"):
        input_invariance(explainable(predict, 0 * net.variables), gradient, x, labels)
    for field, arguments in [
        ("shift", {"shift": 0}),
        ("labels", {"labels": labels[:2]}),
        ("method", {"method": gradient(net, x, labels)}),
        ("x", {"x": jnp.ones((5, 3, 4, 2), jnp.int32)}),
    ]:
        with pytest.raises(ValueError, match=rf"\A{field}: got [^\n]*\Z"):
            input_invariance(net, **{"method": gradient, "x": x, "labels": labels} | arguments)
