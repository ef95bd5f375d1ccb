"""Metrics of attributions (completeness, grid pointing game, pixel deletion) and of one class' scores (detection)."""

from jaxinterp.explain.metrics.completeness import Completeness, completeness
from jaxinterp.explain.metrics.detection import Detection, best_threshold, detect
from jaxinterp.explain.metrics.localization import (
    Grids,
    Localization,
    grid_pointing_game,
    grid_pointing_scores,
    sample_grids,
    tile_grid,
)
from jaxinterp.explain.metrics.removal import Removal, pixel_deletion, removal_counts, removal_ranks
from jaxinterp.lazy import public

__all__ = [
    "Completeness",
    "Detection",
    "Grids",
    "Localization",
    "Removal",
    "best_threshold",
    "completeness",
    "detect",
    "grid_pointing_game",
    "grid_pointing_scores",
    "pixel_deletion",
    "removal_counts",
    "removal_ranks",
    "sample_grids",
    "tile_grid",
]

__dir__ = public(__all__)
