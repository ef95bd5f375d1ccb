from functools import partial
from itertools import permutations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinterp.explain.attribute import kernel_shap, shapley_sampling, shapley_values
from jaxinterp.explain.explainable import explainable

WEIGHTS = jax.random.normal(jax.random.key(0), (5, 3))
X = jax.random.normal(jax.random.key(1), (3, 5))
BASE = np.linspace(-1, 1, 5, dtype=np.float32)


def logits(weights, x):
    return jnp.tanh(x @ weights) + x[:, :1] * x[:, 1:2] * x[:, 2:3]


NET = explainable(logits, WEIGHTS)


def by_all_orders(x, groups):
    """Average what each group adds over all orders in which they come in."""
    names = sorted(set(groups))
    values = {}
    for bits in range(2 ** len(names)):
        present = np.isin(groups, [name for i, name in enumerate(names) if bits >> i & 1])
        values[bits] = np.asarray(logits(WEIGHTS, jnp.where(present[None], x, BASE[None])), float)
    total = np.zeros((len(x), 3, len(names)))
    orders = list(permutations(range(len(names))))
    for order in orders:
        before = 0
        for player in order:
            total[:, :, player] += values[before | 1 << player] - values[before]
            before |= 1 << player
    return total / len(orders)


@pytest.mark.parametrize("method", [shapley_values, kernel_shap], ids=["exact", "kernel"])
def test_all_coalitions_are_all_orders(method):
    found = method(NET, X, baseline=BASE)
    np.testing.assert_allclose(found.contributions, by_all_orders(X, np.arange(5)), atol=2e-5)
    np.testing.assert_allclose(found.bias, logits(WEIGHTS, jnp.tile(BASE, (3, 1))), atol=1e-6)
    assert abs(found.residual).max() < 1e-5


@pytest.mark.parametrize("method", [shapley_values, kernel_shap, partial(shapley_sampling, samples=60)])
def test_entries_of_a_group_have_equal_parts_of_its_value(method):
    groups = np.array([1, 0, 1, 2, 0])
    found = method(NET, X, mask=groups, baseline=BASE, key=jax.random.key(2)) if method.__class__ is partial else (
        method(NET, X, mask=groups, baseline=BASE))  # fmt: skip
    assert abs(found.residual).max() < 1e-5
    expected = by_all_orders(X, groups)[..., groups] / np.bincount(groups)[groups]
    np.testing.assert_allclose(found.contributions, expected, atol=0.3 if method.__class__ is partial else 2e-5)


def test_sampling_converges():
    exact = shapley_values(NET, X, baseline=BASE).contributions
    errors = {}
    for samples in (20, 2000):
        found = shapley_sampling(NET, X, baseline=BASE, samples=samples)
        assert abs(found.residual).max() < 1e-5
        errors[samples] = float(jnp.sqrt(jnp.square(found.contributions - exact).mean()))
    assert errors[2000] < 0.03 < errors[20]


def test_drawn_coalitions_converge_and_are_complete():
    """Of 9 entries, four of which play no part, 300 of 510 coalitions; a linear net is exact with any that span."""
    x = jnp.concatenate([X, X[:, :4]], axis=1)
    net = explainable(lambda w, x: logits(w, x[:, :5]), WEIGHTS)
    exact = shapley_values(net, x).contributions
    found = kernel_shap(net, x, samples=300)
    assert abs(found.residual).max() < 1e-5
    np.testing.assert_allclose(found.contributions, exact, atol=0.25)
    assert abs(found.contributions - exact).mean() < 0.05
    linear = kernel_shap(explainable(lambda w, x: x[:, :5] @ w, WEIGHTS), x, samples=60).contributions
    np.testing.assert_allclose(linear[:, :, :5], X[:, None] * WEIGHTS.T[None], atol=1e-4)


@pytest.mark.parametrize("method", [shapley_values, kernel_shap, shapley_sampling])
def test_parts_and_targets_change_nothing(method):
    whole = method(NET, X).contributions
    found = method(NET, X, [[2, 0]] * 3, max_bytes=1).contributions
    np.testing.assert_allclose(found, whole[:, np.array([2, 0])], atol=2e-5)


def test_bad_input():
    many = jnp.ones((1, 17))
    with pytest.raises(ValueError, match=r"^mask: got 17 groups"):
        shapley_values(lambda x: x, many)
    with pytest.raises(ValueError, match=r"^samples:"):
        shapley_sampling(NET, X, samples=0)
    with pytest.raises(ValueError, match=r"^samples:"):
        kernel_shap(NET, X, samples=1)
    with pytest.raises(ValueError, match=r"^mask: got one group"):
        kernel_shap(NET, X, mask=np.zeros(5, int))
    with pytest.raises(ValueError, match=r"^mask:"):
        shapley_sampling(NET, X, mask=np.zeros(4, int))
