"""Kernel regression against its definitions."""

import numpy as np
import pytest

from jaxinterp.errors import ConfigError
from jaxinterp.gated.kernels import conjugate_gradients, kernel_ridge, nystrom, one_hot

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 3))
NEW = RNG.normal(size=(5, 3))


def rbf(a, b):
    return np.exp(-0.5 * ((a[:, None] - b[None]) ** 2).sum(-1))


K, Y = rbf(X, X), np.stack([np.sin(X[:, 0]), X[:, 1] ** 2], 1) + 0.1 * RNG.normal(size=(40, 2))


def test_leave_one_out_is_what_leaving_one_out_gives():
    ridges = (1e-3, 1e-2, 1e-1, 1.0)
    found = kernel_ridge(K, Y, ridges)
    for ridge in ridges:
        errors = []
        centered = Y - Y.mean(0)
        for i in range(len(K)):
            rest = np.arange(len(K)) != i
            alpha = np.linalg.solve(K[rest][:, rest] + ridge * np.eye(39), centered[rest])
            errors.append((K[i, rest] @ alpha - centered[i]) ** 2)
        np.testing.assert_allclose(found.errors[ridge], np.mean(errors), rtol=1e-8)
    assert found.ridge == min(found.errors, key=found.errors.get)


def test_predictions_are_the_sum_of_the_shares_of_the_training_examples():
    solved = kernel_ridge(K, Y)
    k_new = rbf(NEW, X)
    want = k_new @ np.linalg.solve(K + solved.ridge * np.eye(40), Y - Y.mean(0)) + Y.mean(0)
    np.testing.assert_allclose(solved.predict(k_new), want, rtol=1e-6)
    shares = solved.shares(k_new)
    assert shares.shape == (5, 40, 2)
    np.testing.assert_allclose(shares.sum(1) + solved.offset, solved.predict(k_new), rtol=1e-12)


def test_conjugate_gradients_with_and_without_a_preconditioner():
    ridge = 1e-4
    want = np.linalg.solve(K + ridge * np.eye(40), Y)
    plain, many = conjugate_gradients(lambda a: K @ a, Y, ridge, tolerance=1e-10, steps=1000)
    chosen = RNG.permutation(40)[:30]
    approximation = nystrom(K[:, chosen], chosen)
    fast, few = conjugate_gradients(lambda a: K @ a, Y, ridge, approximation, tolerance=1e-10, steps=1000)
    for found in (plain, fast):
        np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5 * np.abs(want).max())
    assert few < many / 2
    np.testing.assert_allclose(approximation.vectors.T @ approximation.vectors, np.eye(30), atol=1e-8)
    np.testing.assert_allclose(
        approximation.vectors * approximation.values @ approximation.vectors.T,
        K[:, chosen] @ np.linalg.solve(K[chosen][:, chosen], K[chosen]),
        atol=1e-6,
    )


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("k", lambda: kernel_ridge(K[:, :3], Y)),
        ("k", lambda: kernel_ridge(K * np.nan, Y)),
        ("k", lambda: kernel_ridge(-K, Y, (1e-3,))),
        ("k", lambda: kernel_ridge(np.triu(K), Y)),
        ("k", lambda: kernel_ridge(0 * K, Y)),
        ("targets", lambda: kernel_ridge(K, Y[:3])),
        ("ridges", lambda: kernel_ridge(K, Y, (0.0,))),
        ("ridges", lambda: kernel_ridge(K, Y, (1e-2, np.nan))),
        ("labels", lambda: one_hot(np.array([1, -1]), 3)),
        ("steps", lambda: conjugate_gradients(lambda a: K @ a, Y, 1e-4, steps=2)),
        ("ridge, tolerance, steps", lambda: conjugate_gradients(lambda a: K @ a, Y, 1e-4, steps=0)),
        ("ridge, tolerance, steps", lambda: conjugate_gradients(lambda a: K @ a, Y, -1.0)),
        ("targets", lambda: conjugate_gradients(lambda a: K @ a, Y * np.nan, 1.0)),
    ],
)
def test_arguments_that_do_not_fit_raise_in_one_line(name, call):
    with pytest.raises(ConfigError, match=f"^{name}: ") as error:
        call()
    assert "\n" not in str(error.value)
