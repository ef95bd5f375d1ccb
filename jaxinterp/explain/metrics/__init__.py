"""Metrics of attributions: faithfulness, robustness, localization, complexity, randomization, axioms; and detection.

`metric(net, method, x, labels, ...)`, where `method` is (net, x, targets) ↦ `Attribution`, or, where nothing is
explained anew, an `Attribution` to the labels' logits. A result has `scores`, one of each example, and says which were
`eligible`.
"""

from jaxinterp.explain.metrics.axioms import Invariance, input_invariance, non_sensitivity
from jaxinterp.explain.metrics.completeness import Completeness, completeness
from jaxinterp.explain.metrics.complexity import complexity, effective_complexity, sparseness
from jaxinterp.explain.metrics.detection import Detection, best_threshold, detect
from jaxinterp.explain.metrics.explained import Scores
from jaxinterp.explain.metrics.faithfulness import (
    Curves,
    Monotonicity,
    deletion,
    faithfulness_correlation,
    faithfulness_estimate,
    infidelity,
    insertion,
    irof,
    monotonicity,
    monotonicity_correlation,
    pixel_flipping,
    region_perturbation,
    road,
    selectivity,
    sufficiency,
)
from jaxinterp.explain.metrics.localization import (
    Grids,
    Localization,
    attribution_localization,
    grid_pointing_game,
    grid_pointing_scores,
    localization_auc,
    pointing_game,
    relevance_mass_accuracy,
    relevance_rank_accuracy,
    sample_grids,
    tile_grid,
    top_k_intersection,
)
from jaxinterp.explain.metrics.perturbation import removal_ranks
from jaxinterp.explain.metrics.randomization import (
    Randomization,
    efficient_randomization,
    parameter_randomization,
    random_logit,
)
from jaxinterp.explain.metrics.removal import Removal, pixel_deletion, removal_counts
from jaxinterp.explain.metrics.robustness import (
    average_sensitivity,
    local_lipschitz,
    max_sensitivity,
    relative_input_stability,
    relative_output_stability,
)
from jaxinterp.lazy import public

__all__ = [
    "Completeness",
    "Curves",
    "Detection",
    "Grids",
    "Invariance",
    "Localization",
    "Monotonicity",
    "Randomization",
    "Removal",
    "Scores",
    "attribution_localization",
    "average_sensitivity",
    "best_threshold",
    "completeness",
    "complexity",
    "deletion",
    "detect",
    "effective_complexity",
    "efficient_randomization",
    "faithfulness_correlation",
    "faithfulness_estimate",
    "grid_pointing_game",
    "grid_pointing_scores",
    "infidelity",
    "input_invariance",
    "insertion",
    "irof",
    "local_lipschitz",
    "localization_auc",
    "max_sensitivity",
    "monotonicity",
    "monotonicity_correlation",
    "non_sensitivity",
    "parameter_randomization",
    "pixel_deletion",
    "pixel_flipping",
    "pointing_game",
    "random_logit",
    "region_perturbation",
    "relative_input_stability",
    "relative_output_stability",
    "relevance_mass_accuracy",
    "relevance_rank_accuracy",
    "removal_counts",
    "removal_ranks",
    "road",
    "sample_grids",
    "selectivity",
    "sparseness",
    "sufficiency",
    "tile_grid",
    "top_k_intersection",
]

__dir__ = public(__all__)
