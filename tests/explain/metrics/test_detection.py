"""Thresholds of best F1 by trying them all, and the four numbers by hand."""

import numpy as np
import pytest
from jaxtyping import config

from jaxinterp.explain.metrics import best_threshold, detect


@pytest.mark.parametrize("seed", range(5))
def test_the_best_threshold_is_that_of_all(seed):
    rng = np.random.default_rng(seed)
    positive = rng.random(60) < 0.3
    scores = (rng.normal(size=60) + positive).round(1)

    def f1(threshold):
        called = scores > threshold
        return 2 * (called & positive).sum() / (called.sum() + positive.sum())

    best = best_threshold(scores, positive)
    assert f1(best) == max(f1(t) for t in (*(scores - 0.01), *(scores + 0.01)))
    found = detect(scores, positive, best)
    called = scores > best
    assert found.f1 == pytest.approx(f1(best))
    assert found.precision == pytest.approx(positive[called].mean())
    assert found.recall == pytest.approx(called[positive].mean())
    assert found.balanced_accuracy == pytest.approx((called[positive].mean() + (~called)[~positive].mean()) / 2)


def test_weighted_negatives_are_the_mean_of_draws():
    rng = np.random.default_rng(0)
    positive = np.arange(4000) < 40
    scores = rng.normal(size=4000) + 2 * positive
    found = detect(scores, positive, 1.0, negatives=9)
    draws = []
    for _ in range(300):
        rows = np.concatenate([np.arange(40), 40 + rng.choice(3960, 360, replace=False)])
        draws.append(detect(scores[rows], positive[rows], 1.0))
    np.testing.assert_allclose(found, np.mean(draws, axis=0), rtol=0.02)
    assert best_threshold(scores, positive, 9) < best_threshold(scores, positive)


def test_edges(monkeypatch):
    monkeypatch.setattr(config, "jaxtyping_disable", True)
    assert best_threshold(np.array([1.0, 1.0]), np.array([True, False])) == 0.0
    assert detect(np.array([0.0, 1.0]), np.array([True, False]), 5.0).precision == 0
    close = np.array([1.0, np.nextafter(np.float32(1), np.float32(2))], np.float32)
    assert detect(close, np.array([False, True]), best_threshold(close, np.array([False, True]))).f1 == 1
    for field, scores, positive in (
        ("scores", np.array([1.0, np.nan]), np.array([True, False])),
        ("positive", np.array([1.0, 2.0]), np.array([True, True])),
        ("positive", np.array([1.0, 2.0]), np.array([True])),
    ):
        with pytest.raises(ValueError, match=field):
            best_threshold(scores, positive)
