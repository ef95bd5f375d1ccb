"""Kernel regression against its definitions."""

import numpy as np
import pytest

from jaxinterp.gated.kernels.regression import (
    conjugate_gradients,
    gaussian_process,
    kernel_ridge,
    nystrom,
    one_hot,
    support_vectors,
)

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


def test_gaussian_process_is_the_conditional_normal():
    noise = 0.1
    mean, variance = gaussian_process(K, Y, rbf(NEW, X), np.ones(5), noise)
    inverse = np.linalg.inv(K + noise * np.eye(40))
    np.testing.assert_allclose(mean, rbf(NEW, X) @ inverse @ Y, rtol=1e-8)
    np.testing.assert_allclose(variance, np.diagonal(rbf(NEW, NEW) - rbf(NEW, X) @ inverse @ rbf(X, NEW)), rtol=1e-8)


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
    for options, says in (
        ({"ridge": ridge, "steps": 2}, "steps: 2 did not reach"),
        ({"ridge": ridge, "steps": 0}, "steps: got 0.0001, 1e-06, 0, expected positive"),
        ({"ridge": -1.0}, "ridge, tolerance, steps: got -1.0"),
        ({"ridge": 1.0, "targets": Y * np.nan}, r"targets: got \(40, 2\), expected finite"),
    ):
        with pytest.raises(ValueError, match=says):
            conjugate_gradients(lambda a: K @ a, **{"targets": Y, **options})


def test_support_vectors_separate_what_can_be_separated():
    labels = (X[:, 0] > 0).astype(int)
    machine = support_vectors(K, labels, cost=1e4)
    assert (machine.predict(K) == labels).all()
    np.testing.assert_array_equal(one_hot(labels, 2).sum(1), 0)


@pytest.mark.parametrize(
    ("k", "y", "ridges", "says"),
    [
        (K[:, :3], Y, (1.0,), r"k: got shape \(40, 3\), expected a square"),
        (K, Y[:3], (1.0,), r"targets: got shape \(3, 2\), expected \(40, classes\)"),
        (K * np.nan, Y, (1.0,), "k: expected finite values"),
        (K, Y, (0.0,), r"ridges: got \(0.0,\), expected positive"),
        (K, Y, (1e-2, np.nan), "expected positive finite numbers"),
        (-K, Y, (1e-3,), "k: not positive semidefinite"),
        (np.triu(K), Y, (1e-3,), "k: expected a symmetric matrix other than 0"),
        (0 * K, Y, (1e-3,), "k: expected a symmetric matrix other than 0"),
    ],
)
def test_bad_input_is_refused_in_one_line(k, y, ridges, says):
    with pytest.raises(ValueError, match=says) as error:
        kernel_ridge(k, y, ridges)
    assert "\n" not in str(error.value)


def test_other_bad_input_is_refused_in_one_line():
    with pytest.raises(ValueError, match=r"labels: got -1 to 1, expected classes in \[0, 3\)"):
        one_hot(np.array([1, -1]), 3)
    with pytest.raises(ValueError, match="k: not positive semidefinite"):
        gaussian_process(-K, Y, rbf(NEW, X), np.ones(5), 0.1)
    with pytest.raises(ValueError, match=r"got shapes \(5, 39\) and \(5,\), expected \(m, 40\) and \(m,\)"):
        gaussian_process(K, Y, rbf(NEW, X)[:, 1:], np.ones(5), 0.1)
