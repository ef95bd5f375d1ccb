"""Detection of one class by a score: the threshold of best F1, precision, recall, balanced accuracy."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from jaxinterp.checks import require, require_finite


class Detection(NamedTuple):
    """Result of `detect`, all in [0, 1]; the precision is 0 where none is called."""

    precision: float
    recall: float
    f1: float
    balanced_accuracy: float


def _weights(scores: np.ndarray, positive: np.ndarray, negatives: int | float | None) -> np.ndarray:
    """Return 1 for every positive, and a weight for the negatives that makes them `negatives` per positive."""
    require(scores.ndim == 1 and scores.shape == positive.shape, "positive", positive.shape, f"shape {scores.shape}")
    mixed = positive.any() and not positive.all()
    require(mixed, "positive", f"{positive.sum()} of {len(positive)}", "examples of both kinds")
    require_finite("scores", scores)
    require(negatives is None or 0 < negatives < np.inf, "negatives", negatives, "a positive finite number")
    weight = 1.0 if negatives is None else negatives * positive.sum() / (~positive).sum()
    return np.where(positive, 1.0, weight)


def best_threshold(
    scores: Float[np.ndarray, " n"], positive: Bool[np.ndarray, " n"], negatives: int | float | None = None
) -> float:
    """Find the threshold above which calling a score positive has the largest F1 on these examples.

    Args:
        scores: finite, (n,).
        positive: the truth, (n,).
        negatives: number of negatives per positive to which the examples are weighted; None for no weights.

    Returns:
        A number between two neighboring scores, or below all of them where all are called positive.

    Example:
        >>> best_threshold(np.array([0.0, 1.0, 2.0, 3.0]), np.array([False, False, True, True]))
        1.5

    Source: arXiv 2202.05343, Sec. 4.3 (there over 100 thresholds between the medians of both kinds; with many classes,
    nine negatives are drawn for each positive, ten times, instead of weights).
    """
    from sklearn.metrics import precision_recall_curve

    weights = _weights(scores, positive, negatives)
    precision, recall, thresholds = precision_recall_curve(positive, scores, sample_weight=weights)
    total = precision[:-1] + recall[:-1]
    f1 = np.divide(2 * precision[:-1] * recall[:-1], total, out=np.zeros_like(total), where=total > 0)
    lowest = float(thresholds[int(f1.argmax())])
    below = float(scores[scores < lowest].max(initial=-np.inf))
    if below == -np.inf:
        return lowest - 1
    middle = (lowest + below) / 2
    return middle if middle < lowest else below  # neighboring floats


def detect(
    scores: Float[np.ndarray, " n"],
    positive: Bool[np.ndarray, " n"],
    threshold: float,
    negatives: int | float | None = None,
) -> Detection:
    """Measure precision, recall, F1 and balanced accuracy of calling scores above a threshold positive.

    Args:
        scores: finite, (n,).
        positive: the truth, (n,).
        threshold: a score equal to it is negative.
        negatives: as in `best_threshold`.

    Example:
        >>> detect(np.array([0.0, 1.0, 2.0, 3.0]), np.array([False, True, False, True]), 0.5).recall
        1.0
    """
    from sklearn.metrics import balanced_accuracy_score, precision_recall_fscore_support

    weights = _weights(scores, positive, negatives)
    called = scores > threshold
    precision, recall, f1, _ = precision_recall_fscore_support(
        positive, called, average="binary", sample_weight=weights, zero_division=0.0
    )
    balanced = balanced_accuracy_score(positive, called, sample_weight=weights)
    return Detection(float(precision), float(recall), float(f1), float(balanced))
