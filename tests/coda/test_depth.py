import jax
import numpy as np
import pytest

from jaxinterp.coda.depth import interpretable_depth, level_names
from jaxinterp.coda.hybrid import Hybrid
from jaxinterp.coda.network import CoDANet
from jaxinterp.explain.decompose import decompose
from jaxinterp.explain.explainable import explainable
from jaxinterp.explain.metrics.localization import Grids, tile_grid
from jaxinterp.nn.baselines import CifarResNet, ResNetTrunk

HYBRID = Hybrid(ResNetTrunk(depth=8, blocks=2, width=2), CoDANet((3, 4), (2, 2), (3, 1), (1, 1), temperature=4.0))
RESNET = CifarResNet(depth=8, classes=4, width=2)
GRIDS = Grids(np.array([[0, 1, 2, 3], [3, 2, 1, 0]], np.int32), np.array([[0, 1, 2, 3], [3, 2, 1, 0]], np.int32), 4)


@pytest.fixture(scope="module")
def images():
    return jax.random.uniform(jax.random.key(0), (4, 4, 4, 3))


def started(model, images):
    """The network with shifts and statistics away from 0 and 1."""
    variables = jax.jit(model.init)(jax.random.key(1), images)
    variables = jax.tree.map(lambda leaf: leaf + 0.3 if leaf.ndim == 1 else leaf, variables)
    return explainable(model, variables)


@pytest.mark.slow
def test_hybrid_is_exact_down_to_its_trunk_and_no_further(images):
    net = started(HYBRID, images)
    assert level_names(net, images) == (
        *("input", "trunk/stem", "trunk/block_0", "trunk/block_1"),
        *("coda/layer_0", "coda/layer_1"),
    )
    curve = interpretable_depth(net, images, GRIDS)
    assert [level.shape for level in curve] == [(8, 8, 6), (8, 8, 2), (8, 8, 2), (4, 4, 4), (4, 4, 3), (4, 4, 4)]
    unexplained = [level.unexplained for level in curve]
    assert max(unexplained[3:]) <= 1e-4 < 1e-3 < min(unexplained[:3])
    for level in curve:
        assert level.localization.scores.shape == (2, 4)
        assert ((level.localization.scores >= 0) & (level.localization.scores <= 1)).all()


@pytest.mark.slow
def test_scores_are_those_of_each_levels_own_map(images):
    """By hand: decompose a grid at the level, enlarge bilinearly, count the positive part in the class' cell."""
    net = started(HYBRID, images)
    levels = ("trunk/block_1", "coda/layer_0")
    curve = interpretable_depth(net, images, GRIDS, levels)
    assert [level.name for level in curve] == list(levels)
    for level in curve:
        parts = decompose(net, tile_grid(images[GRIDS.images]), GRIDS.classes, layer=level.name)
        for g in range(2):
            for k in range(4):
                large = jax.image.resize(parts.contributions[g, k].sum(-1), (8, 8), "linear")
                positive = np.maximum(np.asarray(large), 0)
                row, column = 4 * (k % 2), 4 * (k // 2)
                own = positive[row : row + 4, column : column + 4].sum()
                expected = own / positive.sum() if positive.sum() > 0 else 0
                np.testing.assert_allclose(level.localization.scores[g, k], expected, atol=1e-5)


@pytest.mark.slow
def test_pure_resnet_is_the_reference(images):
    net = started(RESNET, images)
    names = level_names(net, images)
    assert names == ("input", "trunk/stem", *(f"trunk/block_{i}" for i in range(3)))
    below, top = interpretable_depth(net, images, GRIDS, names[-2:])
    assert top.unexplained == 0
    assert below.unexplained > 1e-3


def test_unknown_level_and_unfrozen_network_are_refused(images):
    net = started(HYBRID, images)
    with pytest.raises(ValueError, match=r"^layer: got trunk/block_9"):
        interpretable_depth(net, images, GRIDS, ("trunk/block_9",))
    with pytest.raises(ValueError, match=r"^levels: "):
        interpretable_depth(net, images, GRIDS, ())
    free = explainable(lambda variables, x: HYBRID.apply(variables, x), net.variables, freeze=False)
    with pytest.raises(ValueError, match=r"^network: got curvature"):
        interpretable_depth(free, images, GRIDS, ("coda/layer_0",))
