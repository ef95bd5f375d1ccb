from functools import partial

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from jaxinterp.explain.attribute import (
    gradient,
    input_x_gradient,
    integrated_gradients,
    noise_tunnel,
    shapley_values,
    smooth_grad,
    smooth_grad_squared,
    vargrad,
)
from jaxinterp.explain.explainable import explainable

X = jnp.array([[0.5, -1.0, 2.0], [1.0, 0.0, -0.5], [3.0, 3.0, 3.5]])


def square(x):
    return jnp.stack([(x**2).sum(1), (x[:, 0] - x[:, 1]) ** 3], 1)


def drawn(samples, seed=0):
    """The noise that is documented: sample i by `fold_in`, the same for every example."""
    keys = [jax.random.fold_in(jax.random.key(seed), i) for i in range(samples)]
    return np.stack([jax.random.normal(key, (3,)) for key in keys])


@pytest.mark.parametrize("max_bytes", [1, 3_000, 1 << 30])
@pytest.mark.parametrize("relative", [False, True])
def test_moments_are_those_of_single_gradients(max_bytes, relative):
    scale = 0.3 * (X.max(1) - X.min(1) if relative else jnp.ones(3))
    singles = np.stack([gradient(square, X + scale[:, None] * ε[None]).contributions for ε in drawn(7)])
    options = {"samples": 7, "noise": 0.3, "relative": relative, "max_bytes": max_bytes}
    for method, expected in (
        (smooth_grad, singles.mean(0)),
        (smooth_grad_squared, (singles**2).mean(0)),
        (vargrad, singles.var(0)),
    ):
        found = method(square, X, **options)
        np.testing.assert_allclose(found.contributions, expected, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found.logits, square(X), rtol=1e-6)


def test_the_tunnel_goes_around_any_method_at_any_layer():
    net = explainable({"twice": lambda x: 2 * x, "square": square})
    found = noise_tunnel(net, X, 0, method=input_x_gradient, layer="twice", samples=4, noise=0.5)
    noisy = 2 * (np.asarray(X)[None] + 0.5 * drawn(4)[:, None])
    np.testing.assert_allclose(found.contributions[:, 0], (2 * noisy**2).mean(0), rtol=1e-5)
    assert (found.method, found.layer) == ("smoothgrad of input_x_gradient", "twice")
    assert found.residual is None


def test_the_expectation_of_a_quadratic_is_reached():
    """The slope of x² under noise is 2(x + ε): mean 2x, variance 4σ², mean square 4x² + 4σ²."""
    run = {"samples": 4096, "noise": 0.5, "key": jax.random.key(5)}
    x = jnp.array([[1.0, -2.0, 0.0]])
    np.testing.assert_allclose(smooth_grad(square, x, 0, **run).contributions[0, 0], 2 * x[0], atol=0.06)
    np.testing.assert_allclose(vargrad(square, x, 0, **run).contributions[0, 0], 1, rtol=0.1)
    np.testing.assert_allclose(
        smooth_grad_squared(square, x, 0, **run).contributions[0, 0], 4 * x[0] ** 2 + 1, rtol=0.1
    )


def test_options_may_have_a_value_for_each_example():
    """Of three examples, padded to four, in blocks of 2 and 1 samples."""
    base, masks = X[::-1] / 2, np.array([[0, 0, 1], [0, 1, 1], [1, 0, 1]])
    tunnel = partial(noise_tunnel, samples=3, noise=0.2)
    for method, name, values in ((integrated_gradients, "baseline", base), (shapley_values, "mask", masks)):
        for max_bytes in (1, 1 << 30):
            found = tunnel(square, X, method=method, max_bytes=max_bytes, **{name: values}).contributions
            inside = tunnel(square, X, method=partial(method, max_bytes=1 << 20, **{name: values})).contributions
            for i in range(3):
                alone = tunnel(square, X[i : i + 1], method=method, **{name: values[i : i + 1]}).contributions[0]
                np.testing.assert_allclose(found[i], alone, rtol=1e-4, atol=1e-4)
                np.testing.assert_allclose(inside[i], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("kind", {"kind": "mean"}),
        ("samples", {"samples": 0}),
        ("samples", {"samples": 2.5}),
        ("noise", {"noise": -1.0}),
        ("noise", {"noise": "much"}),
        ("noise", {"noise": np.ones(3)}),
        ("method", {"method": None}),
        ("key", {"key": 0}),
        ("x", {"x": np.array([[0, 1], [2, 0]]), "layer": "embed"}),
    ],
)
def test_bad_input_is_one_line(field, change, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    net = explainable({"embed": lambda x: 1.0 * x, "square": square})
    with pytest.raises(ValueError, match=rf"\A{field}: got [^\n]*\Z"):
        noise_tunnel(net, **{"x": X, **change})


def test_a_misspelled_argument_is_named():
    for method in (smooth_grad, smooth_grad_squared, vargrad, noise_tunnel):
        with pytest.raises(TypeError, match=r"unexpected keyword argument 'sample'"):
            method(square, X, sample=3)
