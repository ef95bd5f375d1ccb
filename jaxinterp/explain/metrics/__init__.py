"""Metrics of attributions: completeness, grid localisation and pixel removal."""

from jaxinterp.explain.metrics.completeness import Completeness, completeness
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
    "Grids",
    "Localisation",
    "Removal",
    "completeness",
    "localisation",
    "localisation_scores",
    "pixel_removal",
    "removal_counts",
    "removal_ranks",
    "sample_grids",
    "tile",
]
