"""What all metrics share: half precision, and where a warning points."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jaxinterp.explain import metrics
from jaxinterp.explain.attribution import Attribution
from jaxinterp.explain.metrics import explained
from jaxinterp.explain.metrics.similarity import similar

DRAWN = np.random.default_rng(0)
MAPS = DRAWN.standard_normal((2, 90, 90, 2)).cumsum(1)
MASK = DRAWN.random((2, 90, 90)) < 0.4
MASKED = (
    "pointing_game",
    "relevance_mass_accuracy",
    "attribution_localization",
    "top_k_intersection",
    "relevance_rank_accuracy",
    "localization_auc",
)
LABELS = np.zeros(2, int)


def given(contributions):
    return Attribution(contributions[:, None], jnp.zeros((2, 1)), jnp.zeros((2, 1), int))


def scores(name, contributions):
    masks = [MASK] if name in MASKED else []
    return getattr(metrics, name)(None, given(contributions), jnp.zeros((2, 90, 90, 2)), LABELS, *masks).scores


@pytest.mark.parametrize("kind", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("name", ["sparseness", "complexity", "effective_complexity", *MASKED])
def test_maps_of_half_precision_are_scored_in_float32(name, kind):
    half = jnp.asarray(MAPS, kind)
    np.testing.assert_allclose(scores(name, half), scores(name, half.astype(jnp.float32)), rtol=1e-6)


@pytest.mark.parametrize("kind", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("name", ["spearman", "pearson", "cosine", "ssim"])
def test_maps_of_half_precision_are_compared_in_float32(name, kind):
    a, b = jnp.asarray(MAPS[..., 0], kind), jnp.asarray(MAPS[..., 0] + 0.1 * MAPS[..., 1], kind)
    whole = similar(name, a.astype(jnp.float32), b.astype(jnp.float32))
    np.testing.assert_allclose(similar(name, a, b), whole, rtol=1e-6)


def test_a_warning_points_out_of_the_library():
    with pytest.warns(UserWarning, match="^sparseness: NaN at 2 of 2") as seen:
        scores("sparseness", jnp.zeros((2, 3, 3, 1)))
    assert Path(explained.__file__).parent != Path(seen[0].filename).parent
