"""Metrics: of attributions, completeness, grid localisation and pixel removal; of one class' scores, detection."""

from jaxinterp.explain.metrics.completeness import Completeness, completeness
from jaxinterp.explain.metrics.detection import Detection, best_threshold, detect
from jaxinterp.explain.metrics.localisation import (
    Grids,
    Localisation,
    localisation,
    localisation_scores,
    sample_grids,
    tile,
)
from jaxinterp.explain.metrics.removal import Removal, pixel_removal, removal_counts, removal_ranks

__all__ = [
    "Completeness",
    "Detection",
    "Grids",
    "Localisation",
    "Removal",
    "best_threshold",
    "completeness",
    "detect",
    "localisation",
    "localisation_scores",
    "pixel_removal",
    "removal_counts",
    "removal_ranks",
    "sample_grids",
    "tile",
]
