"""Pairs of inputs against the Hessian, the double integral of the paper, and closed forms."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from jaxinterp.explain import attribute, series
from jaxinterp.explain.attribute import integrated_gradients, pairs
from jaxinterp.explain.attribute.hessians import log_quadrature
from jaxinterp.explain.explainable import explainable
from jaxinterp.explain.propagation import NotPolynomialError


def smooth(v, x):
    return jnp.tanh(x.reshape(len(x), -1) @ v["in"]) @ v["out"]


@pytest.fixture
def given():
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(0), 4)
        v = {"in": jax.random.normal(keys[0], (8, 6)) / 2, "out": jax.random.normal(keys[1], (6, 3))}
        yield explainable(smooth, v), jax.random.normal(keys[2], (3, 2, 2, 2)), jax.random.normal(keys[3], (2, 2, 2))


def test_the_rule_integrates_polynomials_times_the_logarithm():
    for steps in (1, 2, 7, 40):
        at, weight = log_quadrature(steps).T
        powers = np.arange(2 * steps)
        np.testing.assert_allclose(weight @ at[:, None] ** powers, 1 / (powers + 1) ** 2, rtol=1e-12)


def test_integrated_hessians_are_the_double_integral(given):
    net, x, x0 = given
    found = pairs(net, x, [2, 0, 1], x0=x0, order=None)
    assert (found.method, found.contributions.shape) == ("integrated_hessians", (3, 1, 4, 2, 2))
    at, weight = np.polynomial.legendre.leggauss(60)
    at, weight = (at + 1) / 2, weight / 2
    for n, k in enumerate([2, 0, 1]):
        d = np.asarray(x[n] - x0).ravel()

        def logit(z, k=k):
            return smooth(net.variables, z[None])[0, k]

        products = (at[:, None] * at).ravel()  # αβ
        points = np.asarray(x0).ravel() + products[:, None] * d
        hessians, slopes = jax.vmap(jax.hessian(logit))(points), jax.vmap(jax.grad(logit))(points)
        both = np.outer(weight, weight).ravel()
        want = np.einsum("s,sij->ij", both * products, hessians) * np.outer(d, d) + np.diag(d * (both @ slopes))
        want = want.reshape(4, 2, 4, 2).sum((1, 3))
        np.testing.assert_allclose(found.contributions[n, 0].reshape(4, 4), want, atol=1e-5)  # ln t is hard for these
    np.testing.assert_allclose(found.residual, 0, atol=1e-8)
    np.testing.assert_allclose(found.bias[:, 0], smooth(net.variables, x0[None])[0, jnp.array([2, 0, 1])], atol=1e-8)


def test_sums_over_partners_are_integrated_gradients(given):
    net, x, x0 = given
    some = pairs(net, x, x0=x0, order=None, pixels=[(1, 0), (0, 1)], steps=30)
    want = integrated_gradients(net, x, baseline=x0, steps=60).contributions.sum(-1)
    np.testing.assert_allclose(some.contributions.sum((-1, -2)), want[:, :, (1, 0), (0, 1)], atol=1e-8)
    np.testing.assert_allclose(some.residual, 0, atol=1e-8)
    np.testing.assert_allclose(some.bias + some.contributions.sum((2, 3, 4)) + some.residual, some.logits, atol=1e-12)


def test_a_network_that_is_no_polynomial_has_integrated_hessians(given):
    net, x, x0 = given
    by_default, asked = pairs(net, x, 0, x0=x0), pairs(net, x, 0, x0=x0, order=None)
    assert by_default.method == asked.method == "integrated_hessians"
    np.testing.assert_array_equal(by_default.contributions, asked.contributions)
    with pytest.raises(NotPolynomialError, match="order"):
        pairs(net, x, 0, x0=x0, order=3)


def test_orders_of_a_polynomial_are_their_closed_form():
    def cubic(x):
        return (x[:, :1] ** 2 * x[:, 1:2] + 5 * x[:, :1] * x[:, 2:] + 7 * x[:, 1:2]) * jnp.ones((1, 2))

    a, b, c = 2.0, 3.0, 0.5
    x = jnp.array([[a, b, c]])
    second = pairs(cubic, x, 0)
    np.testing.assert_allclose(second.contributions[0, 0], [[0, 0, 2.5], [0, 0, 0], [2.5, 0, 0]], atol=1e-6)
    assert (second.bias.item(), second.residual.item()) == (33.0, 0.0)
    third = pairs(cubic, x, 0, order=3)  # of a²b: d_i d_j ∂_ij / 6
    np.testing.assert_allclose(third.contributions[0, 0], [[4, 4, 0], [4, 0, 0], [0, 0, 0]], atol=1e-6)
    one = pairs(cubic, x, 0, order=3, pixels=[0])
    np.testing.assert_allclose(one.contributions[0, 0], [[4, 4, 0]], atol=1e-6)
    assert abs(one.residual.item()) < 1e-6


def test_relus_are_seen_by_the_residual():
    found = pairs(lambda x: jax.nn.relu(x - 1.0), jnp.array([[3.0]]))
    assert abs(found.residual.item()) > 0.1


def test_of_a_layer_with_no_compilation_at_a_second_call(compilations):
    def double(v, x):
        return x @ v

    net = explainable({"one": double, "two": lambda v, z: jnp.stack([z[:, 0] * z[:, 1], z[:, 0]], 1)}, jnp.eye(2) * 3)
    x = jnp.array([[1.0, 2.0], [2.0, 2.0], [0.0, 1.0]])
    found = pairs(net, x, layer="one")
    np.testing.assert_allclose(found.contributions[:, 0, 0, 1], [9, 18, 0])
    other = x + 1
    with compilations() as compiled:
        pairs(net, other, layer="one")
    assert not compiled


def test_maps_of_pairs_are_sums_over_partners(given):
    """All pairs: the map of integrated gradients; of chosen pixels, what these contribute with each pixel."""
    net, x, x0 = given
    whole = pairs(net, x, x0=x0, order=None, steps=30)
    want = integrated_gradients(net, x, baseline=x0, steps=60).maps()
    np.testing.assert_allclose(whole.maps(), want, atol=1e-8)
    some = pairs(net, x, x0=x0, order=None, pixels=[(1, 0)], steps=30)
    np.testing.assert_allclose(some.maps(), whole.contributions[:, :, 2], atol=1e-8)
    assert some.maps((4, 4)).shape == (3, 3, 4, 4)
    assert len(some.plot().axes) >= 9
    assert "<iframe srcdoc=" in some._repr_html_()


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("order", {"order": 1}),
        ("order", {"order": 2.0}),
        ("x0", {"x0": np.zeros((2, 3))}),
        ("x0", {"x0": np.nan}),
        ("pixels", {"pixels": [(2, 0)]}),
        ("pixels", {"pixels": [0, 1]}),
        ("pixels", {"max_bytes": 100}),
        ("steps", {"steps": 0}),
    ],
)
def test_bad_input_is_one_line(field, change, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=rf"\A{field}: got .*\Z"):
        pairs(lambda x: x.reshape(1, -1) ** 2, jnp.ones((1, 2, 2, 1)), **change)


def test_one_function_under_both_names():
    assert series.pairs is attribute.pairs
