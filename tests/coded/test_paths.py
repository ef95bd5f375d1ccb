"""Shares of paths sum to the logits; removals remove what they should; specificity by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinterp.coded.codes import Code, load_code
from jaxinterp.coded.network import CodedResNeXt, Stage
from jaxinterp.coded.paths import accuracy_without, by_block, path_shares, sample_removal, specificity
from jaxinterp.explain.explainable import explainable

CODE = load_code("cifar10-3-of-10")
WORDS = Code(("1100", "0110", "0011"))
NET = CodedResNeXt(stages=(Stage(1, 8, 2, 3), Stage(2, 12, 3, 4, 2, WORDS)), classes=3, mean=(0.2,), std=(0.5,))
APPLY = jax.jit(NET.apply, static_argnames=("energies", "first", "last", "capture_intermediates"))
X = jax.random.uniform(jax.random.key(0), (6, 8, 8, 1))
LABELS = np.array([0, 1, 2, 1, 1, 2])


@pytest.fixture(scope="module")
def variables():
    start, rng = jax.jit(NET.init)(jax.random.key(1), X), np.random.default_rng(0)
    return jax.tree.map(lambda leaf: leaf + jnp.asarray(0.3 * rng.random(leaf.shape), leaf.dtype), start)


def test_shares_of_all_paths_sum_to_the_logits(variables):
    shares = path_shares(explainable(NET, variables), X, max_bytes=100_000)
    parts = by_block(NET, shares)
    assert [share.shape for share in parts.paths] == [(6, 3, 3), (6, 3, 4), (6, 3, 4)]
    size = float(jnp.abs(shares.logits).max())
    np.testing.assert_allclose(shares.logits, APPLY(variables, X), rtol=1e-4, atol=1e-4 * size)
    assert float(jnp.abs(shares.residual).max()) <= 1e-4 * size
    np.testing.assert_array_equal(shares.curvature, 0)
    assert float(shares.discrepancy.max()) < 1e-6
    explained = sum(share.sum(-1) for share in parts.paths) + parts.stem + parts.shift
    np.testing.assert_allclose(explained, shares.logits, rtol=1e-4, atol=1e-4 * size)
    np.testing.assert_allclose(explained, shares.contributions.sum(-1) + shares.bias, rtol=1e-4, atol=1e-4 * size)
    some = path_shares(explainable(NET, variables), X, LABELS)
    np.testing.assert_allclose(some.contributions[:, 0], shares.contributions[np.arange(6), LABELS], atol=1e-4 * size)


def test_only_a_coded_network_has_paths(variables):
    with pytest.raises(ValueError, match=r"^net: "):
        path_shares(lambda x: x.mean((1, 2)), X)


def test_shares_of_an_earlier_block_go_through_shortcuts_alone(variables):
    """Block 2 by hand: what its paths sum to, BatchNorm's factor, the gates of blocks 2 and 3, the classifier."""
    parts = by_block(NET, path_shares(explainable(NET, variables), X[:2]))
    _, seen = APPLY(variables, X[:2], capture_intermediates=True)
    inner = seen["intermediates"]
    v = np.asarray(inner["block_2"]["paths"]["__call__"][0]).reshape(2, 4, 4, 4, 3)
    block, stats = variables["params"]["block_2"], variables["batch_stats"]["block_2"]
    t = np.einsum("bhwnd,ndc->bhwnc", v, np.asarray(block["expand_kernel"]))
    factor = np.asarray(block["norm_expand"]["scale"]) / np.sqrt(np.asarray(stats["norm_expand"]["var"]) + 1e-5)
    gates = [np.asarray(inner[f"block_{i}"]["out"]["__call__"][0]) > 0 for i in (2, 3)]
    carried = t * factor * (gates[0] * gates[1])[:, :, :, None]
    want = carried.mean((1, 2)) @ np.asarray(variables["params"]["classifier"]["kernel"])  # (batch, paths, classes)
    np.testing.assert_allclose(parts.paths[1], want.swapaxes(1, 2), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("active", [True, False])
def test_removal_draws_without_replacement_among_the_right_paths(active):
    words = jnp.asarray(CODE.table, jnp.float32)[jnp.repeat(jnp.arange(10), 40)]
    for count in (0, 2, 3):
        keep = np.asarray(sample_removal(words, count, active, jax.random.key(0)))
        assert ((1 - keep).sum(1) == count).all()
        assert (np.asarray(words)[keep == 0] == active).all()
    removed = 1 - np.asarray(sample_removal(words, 1, True, jax.random.key(1)))[:40]
    assert (removed.sum(0)[CODE.table[0] == 1] > 3).all()  # 40 draws among 3


def test_accuracy_without_paths(variables):
    images = np.asarray(X)
    right = float((np.asarray(APPLY(variables, X)).argmax(1) == LABELS).mean())
    accuracy = accuracy_without(NET, variables, images, LABELS, 1, [0, 2], True, jax.random.key(0), batch=4)
    assert accuracy[0] == pytest.approx(right)
    keep = [None, jnp.asarray(1 - WORDS.table[LABELS].astype(np.float32))]
    gone = np.asarray(APPLY(variables, X, keep=keep)).argmax(1)
    assert accuracy[1] == pytest.approx((gone == LABELS).mean())


def test_specificity_is_accuracy_class_by_class(variables):
    images = np.asarray(X)
    results = specificity(NET, variables, images, LABELS, batch=4)
    right = np.asarray(APPLY(variables, X)).argmax(1) == LABELS
    ones = [1, 3, 4]
    assert results.accuracy[1] == pytest.approx(right[ones].mean())
    keep = [jnp.asarray(1 - WORDS.table[2].astype(np.float32))] * 2
    gone = np.asarray(APPLY(variables, X, keep=keep)).argmax(1) == LABELS
    assert results.lost[2, 1] == pytest.approx(right[ones].mean() - gone[ones].mean())
    assert results.overlap.tolist() == [[4, 2, 0], [2, 4, 2], [0, 2, 4]]
    some = specificity(NET, variables, images[1:2], LABELS[1:2], batch=4)
    assert np.isnan(some.accuracy).tolist() == [True, False, True]
