"""How well a score tells one class from the rest: the threshold of best F1, precision, recall, balanced accuracy."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float


class Detection(NamedTuple):
    """What `detect` returns; all in [0, 1].

    Attributes:
        precision: share of positives among those that are called so; 0 where none is.
        recall: share of the positives that are called so.
        f1: harmonic mean of the two.
        balanced_accuracy: mean of the recall and of the share of negatives that are called so.
    """

    precision: float
    recall: float
    f1: float
    balanced_accuracy: float


def _weights(scores: np.ndarray, positive: np.ndarray, negatives: int | float | None) -> np.ndarray:
    """1 for every positive, and such a weight for the negatives that there are so many for each positive."""
    if scores.shape != positive.shape or scores.ndim != 1:
        raise ValueError(f"positive: got shape {positive.shape}, expected that of scores, {scores.shape}")
    if not (positive.any() and not positive.all()):
        raise ValueError(f"positive: got {positive.sum()} of {len(positive)}, expected some of both kinds")
    wrong = int((~np.isfinite(scores)).sum())
    if wrong:
        raise ValueError(f"scores: got {wrong} NaN or infinite values, expected finite ones")
    if negatives is not None and not 0 < negatives < np.inf:
        raise ValueError(f"negatives: got {negatives}, expected a positive finite number")
    weight = 1.0 if negatives is None else negatives * positive.sum() / (~positive).sum()
    return np.where(positive, 1.0, weight)


def best_threshold(
    scores: Float[np.ndarray, " n"], positive: Bool[np.ndarray, " n"], negatives: int | float | None = None
) -> float:
    """The threshold above which calling a score positive has the largest F1 on these examples.

    Args:
        scores: finite, (n,).
        positive: what they are, (n,).
        negatives: how many there are to be for each positive: those that are there are weighted so; None for as they
            are.

    Returns:
        A number between the two scores that it parts; one below all where all are called positive.

    Raises:
        ValueError: shapes that differ, scores that are not finite, or examples of one kind only.

    Example:
        >>> best_threshold(np.array([0.0, 1.0, 2.0, 3.0]), np.array([False, False, True, True]))
        1.5

    Source: arXiv 2202.05343, Sec. 4.3 (which looks at 100 thresholds between the medians of both kinds, and where
    classes are many draws nine negatives for each positive, ten times, instead of weighting them).
    """
    from sklearn.metrics import precision_recall_curve

    weights = _weights(scores, positive, negatives)
    precision, recall, thresholds = precision_recall_curve(positive, scores, sample_weight=weights)
    total = precision[:-1] + recall[:-1]
    f1 = np.divide(2 * precision[:-1] * recall[:-1], total, out=np.zeros_like(total), where=total > 0)
    lowest = float(thresholds[int(f1.argmax())])  # a score that is called positive
    below = scores[scores < lowest]
    if not len(below):
        return lowest - 1
    middle = (lowest + float(below.max())) / 2
    return middle if middle < lowest else float(below.max())  # neighboring numbers have none between them


def detect(
    scores: Float[np.ndarray, " n"],
    positive: Bool[np.ndarray, " n"],
    threshold: float,
    negatives: int | float | None = None,
) -> Detection:
    """Precision, recall, F1 and balanced accuracy of calling scores above a threshold positive.

    Args:
        scores: finite, (n,).
        positive: what they are, (n,).
        threshold: a score equal to it is negative.
        negatives: as in `best_threshold`.

    Returns:
        The four numbers.

    Raises:
        ValueError: as `best_threshold`.

    Example:
        >>> detect(np.array([0.0, 1.0, 2.0, 3.0]), np.array([False, True, False, True]), 0.5).precision.__round__(3)
        0.667
    """
    from sklearn.metrics import balanced_accuracy_score, precision_recall_fscore_support

    weights = _weights(scores, positive, negatives)
    called = scores > threshold
    precision, recall, f1, _ = precision_recall_fscore_support(
        positive, called, average="binary", sample_weight=weights, zero_division=0.0
    )
    balanced = balanced_accuracy_score(positive, called, sample_weight=weights)
    return Detection(float(precision), float(recall), float(f1), float(balanced))
