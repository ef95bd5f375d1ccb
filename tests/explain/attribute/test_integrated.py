import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinterp.explain.attribute import input_x_gradient, integrated_gradients
from jaxinterp.explain.attribute.integrated import quadrature
from jaxinterp.explain.explainable import explainable


def relu_net(params, x):
    return jax.nn.relu(x @ params["in"] + params["bias"]) @ params["out"]


@pytest.fixture
def params():
    keys = jax.random.split(jax.random.key(0), 3)
    return {
        "in": jax.random.normal(keys[0], (3, 8)),
        "bias": jax.random.normal(keys[1], (8,))[None],
        "out": jax.random.normal(keys[2], (8, 2)),
    }


@pytest.mark.parametrize("degree", [1, 2, 3, 4, 5, 7])
def test_half_the_degree_in_nodes_is_exact_on_a_polynomial(degree):
    x = jnp.array([[0.5, -1.5, 2.0], [1.0, 0.25, -0.5]])

    def power(x):
        return (x.sum(1, keepdims=True) ** degree).astype(x.dtype)

    found = integrated_gradients(power, x, steps=(degree + 1) // 2)
    # ∫ ∂f/∂x_i (αx) dα = s^(d−1) with s = Σx, so the contributions share s^d in proportion to x.
    expected = x[:, None] * (x.sum(1) ** (degree - 1))[:, None, None]
    np.testing.assert_allclose(found.contributions, expected, rtol=1e-5)
    np.testing.assert_allclose(found.residual, 0, atol=1e-5 * float(jnp.abs(power(x)).max()))
    if degree > 2:
        one_fewer = integrated_gradients(power, x, steps=(degree + 1) // 2 - 1)
        assert float(jnp.abs(one_fewer.residual).max()) > 1e-3


def test_the_residual_on_a_relu_net_is_reported_and_shrinks(params):
    x = jax.random.normal(jax.random.key(1), (5, 3))
    residuals = {}
    for steps in (3, 300):
        found = integrated_gradients(explainable(relu_net, params), x, steps=steps)
        np.testing.assert_allclose(found.bias, relu_net(params, jnp.zeros_like(x)), rtol=1e-5, atol=1e-6)
        change = relu_net(params, x) - found.bias
        np.testing.assert_allclose(found.residual, change - found.contributions.sum(-1), rtol=1e-4, atol=1e-5)
        residuals[steps] = float(jnp.abs(found.residual).max())
    assert residuals[3] > 1e-2
    assert residuals[300] < residuals[3] / 10


@pytest.mark.parametrize(
    ("nodes", "alphas"), [("riemann", [0.25, 0.5, 0.75, 1]), ("riemann-left", [0, 0.25, 0.5, 0.75])]
)
def test_riemann_sums_are_means_over_their_steps(params, nodes, alphas):
    x = jax.random.normal(jax.random.key(1), (2, 3))
    slopes = [jax.jacobian(lambda one: relu_net(params, one[None])[0]) for _ in alphas]
    mean = np.mean([jax.vmap(slope)(a * x) for a, slope in zip(alphas, slopes, strict=True)], 0)
    found = integrated_gradients(explainable(relu_net, params), x, steps=4, nodes=nodes)
    np.testing.assert_allclose(found.contributions, x[:, None] * mean, rtol=1e-5, atol=1e-6)


def test_on_a_linear_net_it_is_input_x_gradient_and_a_baseline_shifts_it():
    weights = jnp.array([[1.0, -2.0], [3.0, 0.5]])
    x = jnp.array([[1.0, 2.0], [-1.0, 4.0]])

    def linear(x):
        return x @ weights + 3.0

    found = integrated_gradients(linear, x, steps=3)
    np.testing.assert_allclose(found.contributions, input_x_gradient(linear, x).contributions, rtol=1e-6)
    for baseline in (0.5, jnp.array([0.5, 0.5]), 0.5 * jnp.ones((2, 2))):
        shifted = integrated_gradients(linear, x, steps=3, baseline=baseline)
        np.testing.assert_allclose(shifted.contributions, (x - 0.5)[:, None] * weights.T[None], rtol=1e-6)
        np.testing.assert_allclose(shifted.residual, 0, atol=1e-5)


@pytest.mark.parametrize("max_bytes", [1, 2_000, 1 << 30])
def test_chunks_over_images_and_nodes_change_nothing(params, max_bytes):
    x = jax.random.normal(jax.random.key(2), (5, 3))
    whole = integrated_gradients(lambda x: relu_net(params, x), x, steps=7)
    found = integrated_gradients(explainable(relu_net, params), x, steps=7, max_bytes=max_bytes)
    np.testing.assert_allclose(found.contributions, whole.contributions, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.residual, whole.residual, atol=1e-5)


def test_a_pass_stays_within_the_chunk(params):
    sizes = []

    def watched(params, x):
        sizes.append(len(x))
        return relu_net(params, x)

    integrated_gradients(explainable(watched, params), jnp.ones((4, 3)), steps=20, max_bytes=1)
    assert sizes == [4, 2, 1]  # the whole batch of 4 was only looked at in the abstract, two tried for independence


def test_the_baseline_itself_is_not_a_node():
    """√x has no slope at 0; nodes that fill up the last pass must not bring it in."""
    x = jnp.full((1, 2), 4.0)
    found = integrated_gradients(lambda x: jnp.sqrt(x).sum(1, keepdims=True), x, steps=19, max_bytes=100)
    np.testing.assert_allclose(found.contributions.sum(), 4.0, rtol=0.05)


@pytest.mark.parametrize("steps", [1, 2, 5, 20])
def test_quadratures_integrate_powers(steps):
    for degree in range(2 * steps):
        at, weight = quadrature("gauss-legendre", steps)
        assert (weight * at**degree).sum() == pytest.approx(1 / (degree + 1), abs=1e-14)
    at, weight = quadrature("riemann", steps)
    assert (weight * at).sum() == pytest.approx((steps + 1) / (2 * steps))
    assert sum(quadrature("riemann-left", steps)[1]) == pytest.approx(1)


def test_bad_input_is_one_clear_line():
    x = jnp.ones((2, 3))
    with pytest.raises(ValueError, match="steps"):
        integrated_gradients(lambda x: x, x, steps=0)
    for shape in ((4, 2, 3), (1, 2, 3), (2, 4), (2,)):
        with pytest.raises(ValueError, match="baseline"):
            integrated_gradients(lambda x: x, x, baseline=jnp.ones(shape))
