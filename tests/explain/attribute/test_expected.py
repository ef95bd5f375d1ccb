import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinterp.explain.attribute import expected_gradients, integrated_gradients
from jaxinterp.explain.explainable import explainable

WEIGHTS = jnp.array([[2.0, 0.5], [-1.0, 1.0], [0.0, 3.0]])
X = jnp.array([[0.5, -1.0, 2.0], [1.0, 0.0, -0.5]])
BASELINES = np.array([[0.0, 1.0, 0.0], [1.0, 1.0, -1.0], [2.0, -2.0, 0.5]], np.float32)


def quadratic(x):
    return (x**2) @ WEIGHTS + 1


@pytest.mark.parametrize("max_bytes", [1, 4_000, 1 << 30])
def test_of_a_linear_net_they_are_the_way_from_the_mean_baseline(max_bytes):
    def linear(x):
        return x @ WEIGHTS + 1

    found = expected_gradients(linear, X, baselines=BASELINES, samples=6, max_bytes=max_bytes)
    expected = (np.asarray(X) - BASELINES.mean(0))[:, None] * np.asarray(WEIGHTS).T[None]
    np.testing.assert_allclose(found.contributions, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.bias, np.tile(linear(BASELINES).mean(0), (2, 1)), rtol=1e-5)
    np.testing.assert_allclose(found.residual, 0, atol=1e-5)


def test_many_samples_are_integrated_gradients_averaged_over_the_baselines():
    found = expected_gradients(quadratic, X, baselines=BASELINES, samples=30_000, noise=0.0)
    single = [integrated_gradients(quadratic, X, baseline=b[None], steps=1).contributions for b in BASELINES]
    np.testing.assert_allclose(found.contributions, np.mean(single, 0), atol=0.1)
    change = found.logits - found.bias - found.contributions.sum(-1)
    np.testing.assert_allclose(found.residual, change, atol=1e-4)
    assert 0 < float(jnp.abs(found.residual).max()) < 0.1


def test_noise_moves_the_end_of_the_path_and_the_key_the_draws():
    run = {"baselines": BASELINES, "samples": 3}
    plain, noisy, other = (
        expected_gradients(quadratic, X, **run, noise=noise, key=jax.random.key(seed)).contributions
        for noise, seed in ((0.0, 0), (0.5, 0), (0.0, 1))
    )
    assert float(jnp.abs(plain - noisy).min(2).max()) > 1e-3
    assert float(jnp.abs(plain - other).max()) > 1e-3


def test_at_a_layer_the_paths_run_between_its_outputs():
    net = explainable({"twice": lambda x: 2 * x, "top": lambda z: (z**2) @ WEIGHTS + 1})
    found = expected_gradients(net, X, baselines=BASELINES, samples=6, layer="twice")
    above = expected_gradients(lambda z: (z**2) @ WEIGHTS + 1, 2 * X, baselines=2 * BASELINES, samples=6)
    for ours, theirs in ((found.contributions, above.contributions), (found.residual, above.residual)):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("baselines", np.zeros((0, 3), np.float32)),
        ("baselines", np.zeros((2, 4), np.float32)),
        ("baselines", np.full((2, 3), np.nan, np.float32)),
        ("samples", 0),
        ("noise", -1.0),
    ],
)
def test_bad_input_is_one_line(field, change):
    with pytest.raises(ValueError, match=f"^{field}: got"):
        expected_gradients(quadratic, X, **{"baselines": BASELINES, field: change})
