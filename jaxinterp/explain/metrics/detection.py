"""How well a score tells one class from the rest: the threshold of best F1, precision, recall, balanced accuracy."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float


class Detection(NamedTuple):
    """What `detect` returns; all in [0, 1], NaN where nothing is to be divided by.

    Attributes:
        precision: share of positives among those that are called so.
        recall: share of the positives that are called so.
        f1: harmonic mean of the two.
        balanced_accuracy: mean of the recall and of the share of negatives that are called so.
    """

    precision: float
    recall: float
    f1: float
    balanced_accuracy: float


def _check(scores: np.ndarray, positive: np.ndarray) -> None:
    if scores.shape != positive.shape or scores.ndim != 1:
        raise ValueError(f"positive: got shape {positive.shape}, expected that of scores, {scores.shape}")
    if not (positive.any() and not positive.all()):
        raise ValueError(f"positive: got {positive.sum()} of {len(positive)}, expected some of both kinds")
    wrong = int((~np.isfinite(scores)).sum())
    if wrong:
        raise ValueError(f"scores: got {wrong} NaN or infinite values, expected finite ones")


def best_threshold(scores: Float[np.ndarray, " n"], positive: Bool[np.ndarray, " n"]) -> float:
    """The threshold above which calling a score positive has the largest F1 on these examples.

    Args:
        scores: finite, (n,).
        positive: what they are, (n,).

    Returns:
        A number halfway between the two scores that it parts; the lowest score less 1 where all are called positive.

    Raises:
        ValueError: shapes that differ, scores that are not finite, or examples of one kind only.

    Example:
        >>> best_threshold(np.array([0.0, 1.0, 2.0, 3.0]), np.array([False, False, True, True]))
        1.5

    Source: arXiv 2202.05343, Sec. 4.3 (which looks at 100 thresholds between the medians of both kinds).
    """
    from sklearn.metrics import precision_recall_curve

    _check(scores, positive)
    precision, recall, thresholds = precision_recall_curve(positive, scores)
    total = precision[:-1] + recall[:-1]
    f1 = np.divide(2 * precision[:-1] * recall[:-1], total, out=np.zeros_like(total), where=total > 0)
    lowest = float(thresholds[int(f1.argmax())])  # a score that is called positive
    below = scores[scores < lowest]
    return (lowest + float(below.max())) / 2 if len(below) else lowest - 1


def detect(scores: Float[np.ndarray, " n"], positive: Bool[np.ndarray, " n"], threshold: float) -> Detection:
    """Precision, recall, F1 and balanced accuracy of calling scores above a threshold positive.

    Args:
        scores: finite, (n,).
        positive: what they are, (n,).
        threshold: a score equal to it is negative.

    Returns:
        The four numbers; a precision of nothing called positive is NaN.

    Raises:
        ValueError: as `best_threshold`.

    Example:
        >>> detect(np.array([0.0, 1.0, 2.0, 3.0]), np.array([False, True, False, True]), 0.5).precision.__round__(3)
        0.667
    """
    from sklearn.metrics import balanced_accuracy_score, precision_recall_fscore_support

    _check(scores, positive)
    precision, recall, f1, _ = precision_recall_fscore_support(
        positive, scores > threshold, average="binary", zero_division=np.nan
    )
    return Detection(
        float(precision), float(recall), float(f1), float(balanced_accuracy_score(positive, scores > threshold))
    )
