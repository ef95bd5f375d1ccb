"""Separability of classes in a representation: distances between class means over distances within classes."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxinterp.checks import require, require_finite


class Separability(NamedTuple):
    """Result of `separability`.

    Attributes:
        between: mean distance of two classes' means.
        within: mean over the classes of the mean distance of an example from its class' mean.
        ratio: J = between / within, infinite where every class is one point. A larger J need not mean better
            classification; report the accuracy with it.
    """

    between: float
    within: float
    ratio: float


def separability(features: Float[np.ndarray, "n f"], labels: Int[np.ndarray, " n"]) -> Separability:
    """Compute J = mean_{a<b} ‖μ_a − μ_b‖ / mean_c mean_{x in c} ‖Φ(x) − μ_c‖.

    Args:
        features: Φ(x), (N, F).
        labels: (N,), at least two classes.

    Example:
        >>> separability(np.array([[0.0], [2.0], [10.0], [12.0]]), np.array([0, 0, 1, 1]))
        Separability(between=10.0, within=1.0, ratio=10.0)
    """
    classes = np.unique(labels)
    got = f"{len(labels)} of {len(classes)} classes"
    require(len(features) == len(labels) and len(classes) > 1, "labels", got, f"{len(features)} of at least 2 classes")
    require_finite("features", features)
    means = np.stack([features[labels == c].mean(0, dtype=np.float64) for c in classes])
    apart = np.linalg.norm(means[:, None] - means, axis=-1)
    between = float(apart[np.triu_indices(len(classes), 1)].mean())
    spreads = (np.linalg.norm(features[labels == c] - m, axis=1).mean() for c, m in zip(classes, means, strict=True))
    within = float(np.mean(list(spreads)))
    return Separability(between, within, between / within if within else float("inf"))
