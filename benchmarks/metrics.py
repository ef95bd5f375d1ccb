"""Our metrics with the options by which they are Quantus', for the comparison and for tests without PyTorch."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

import jaxinterp


def _scores(result: Any) -> Any:
    return result.scores


def _after_the_first(result: Any) -> Any:
    return result.curves[:, 1:]  # Quantus does not read the image as it is


class Same(NamedTuple):
    """A metric of ours.

    Attributes:
        name: in `jaxinterp.metrics`.
        options: its keywords.
        of: what of its result is Quantus' value.
        objects: whether it takes masks of the true objects.
        convention: of what the two differ in by choice, in words; empty where they share one.
    """

    name: str
    options: dict[str, Any]
    of: Callable[[Any], Any] = _scores
    objects: bool = False
    convention: str = ""


LOGIT = {"score": "logit"}
PIXELS = {"steps": 72, **LOGIT}  # two of 144 pixels at a time, six numbers
NO_BASELINE = "Quantus replaces its baseline by the same baseline, so that every example is monotone"
METRICS = {
    "sparseness": Same("sparseness", {}),
    "complexity": Same("complexity", {}),
    "effective_complexity": Same("effective_complexity", {"epsilon": 0.05, "normalize": False}),
    "pointing_game": Same("pointing_game", {}, objects=True),
    "attribution_localisation": Same("attribution_localization", {}, objects=True),
    "top_k_intersection": Same("top_k_intersection", {"k": 20}, objects=True),
    "relevance_mass_accuracy": Same("relevance_mass_accuracy", {"part": "absolute"}, objects=True),
    "relevance_rank_accuracy": Same("relevance_rank_accuracy", {}, objects=True),
    "auc": Same("localization_auc", {}, objects=True),
    "pixel_flipping": Same("pixel_flipping", PIXELS, _after_the_first),
    "monotonicity": Same("monotonicity", PIXELS, lambda result: result.holds, convention=NO_BASELINE),
    "faithfulness_estimate": Same("faithfulness_estimate", PIXELS),
    "selectivity": Same("selectivity", {"side": 4, **LOGIT}, _after_the_first),
    "sufficiency": Same("sufficiency", {"threshold": 17, "relative": False}),
}
"""By Quantus' names."""


def ours(name: str, net: Any, x: np.ndarray, maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Return our values of one of `METRICS`, of maps (examples, H, W) of class 0."""
    same, labels = METRICS[name], np.zeros(len(x), int)
    parts = jaxinterp.Attribution(
        jnp.asarray(maps)[:, None, :, :, None], jnp.zeros((len(x), 1)), jnp.asarray(labels)[:, None]
    )
    metric = getattr(jaxinterp.metrics, same.name)
    return np.asarray(same.of(metric(net, parts, x, labels, *([masks] if same.objects else []), **same.options)), float)
