"""Batches of a few sizes, and tiles of examples and targets: fewer programs, the same numbers."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinterp.explain import batches
from jaxinterp.explain.attribute import gradient
from jaxinterp.explain.batches import affordable, padded, padded_size, select_targets
from jaxinterp.explain.decompose import _pass, decompose
from jaxinterp.explain.explainable import explainable

KEYS = jax.random.split(jax.random.key(0), 3)
VARIABLES = {"in": jax.random.normal(KEYS[0], (6, 16)), "out": jax.random.normal(KEYS[1], (16, 5))}
X = jax.random.normal(KEYS[2], (8, 6))


def net(v, x):
    return jax.nn.relu(x @ v["in"]) @ v["out"] - 0.25


def test_batches_of_five_to_eight_are_one_program(caplog):
    explained = explainable(lambda v, x: 0.75 * net(v, x), VARIABLES)

    def run(x):
        return decompose(explained, x), gradient(explained, x), explained.logits(x)

    def compiled():  # but for single operations: padding, cutting
        names = {name for line in caplog.messages for name in re.findall(r"Compiling jit\((\w+)\)", line)}
        caplog.clear()
        return names & {"_pass", "gradients_at", "called"}

    with jax.log_compiles():
        whole = run(X)
        assert len(compiled()) == 3
        for count in (7, 6, 5):
            found = run(X[:count])
            assert compiled() == set()
            for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(whole), strict=True):
                np.testing.assert_array_equal(ours, theirs[:count])


def test_sizes_of_one_class_share_what_is_traced():
    sizes = []

    def watched(v, x):
        sizes.append(len(x))
        return net(v, x) * 1.5

    explained = explainable(watched, VARIABLES)
    for count in (5, 6, 7, 8, 3, 4):
        decompose(explained, X[:count])
    assert sizes == [8, 4]


@pytest.mark.parametrize("max_bytes", [1, 1_500, 8_000])
def test_tiles_are_the_whole(max_bytes):
    explained, x = explainable(net, VARIABLES), X[:7]
    whole, tiled = decompose(explained, x), decompose(explained, x, max_bytes=max_bytes)
    for name in ("contributions", "logits", "targets", "bias", "residual", "weights", "curvature", "discrepancy"):
        np.testing.assert_allclose(getattr(tiled, name), getattr(whole, name), rtol=1e-5, atol=1e-5)
    rows = np.array([[4, 0, 4]] * 3 + [[1, 2, 3]] * 4)
    chosen = decompose(explained, x, rows, max_bytes=max_bytes)
    assert chosen.targets.tolist() == rows.tolist()
    want = np.asarray(whole.contributions)[np.arange(7)[:, None], rows]
    np.testing.assert_allclose(chosen.contributions, want, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(chosen.bias, np.asarray(whole.bias)[np.arange(7)[:, None], rows], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("max_bytes", [4_000, 10_000])
def test_a_tile_fits_by_what_its_compiler_says(max_bytes):
    explained, rows = explainable(net, VARIABLES), np.tile(np.arange(5, dtype=np.int32), (8, 1))
    decompose(explained, X, max_bytes=max_bytes)
    found = {key[3]: tile for key, tile in batches._plans.items() if key[3] == max_bytes}
    examples, targets = found[max_bytes]
    model = explained.program("frozen", X[:examples])
    with jax.default_matmul_precision("highest"):
        tile = rows[:examples, :targets], X[:examples]
        lowered = _pass.lower(("input",), True, (model, None), *tile, biases=(None,))
    assert 1 < examples * targets < 40
    assert batches._compiled_bytes(lowered) <= max_bytes


def test_what_is_wrong_in_a_later_tile_is_found():
    x = jnp.ones((5, 1)).at[3].set(-1.0)
    with pytest.raises(ValueError, match=r"network: .* \(3\)"):
        decompose(explainable(lambda x: jnp.where(x > 0, x, x**2), freeze=False), x, max_bytes=1)


def test_padding_repeats_the_last_example():
    assert [padded_size(n) for n in (1, 2, 3, 5, 8, 9)] == [1, 2, 4, 8, 8, 16]
    assert padded(jnp.array([1, 2, 3])).tolist() == [1, 2, 3, 3]
    assert padded(jnp.array([1, 2, 4, 5, 6])).tolist() == [1, 2, 4, 5, 6, 6, 6, 6]
    assert [affordable(8, 80, m) for m in (1, 10, 39, 40, 80, 1000)] == [1, 1, 2, 4, 8, 8]


def test_select_targets():
    assert select_targets(1, 3, 4).tolist() == [[1], [1], [1]]
    assert select_targets(np.array([[0, 3], [1, 1]]), 2, 4).tolist() == [[0, 3], [1, 1]]
    for wrong in (np.array([0.5]), [4], [-1], np.array([[0], [1]])):
        with pytest.raises(ValueError, match=r"\Atargets: got "):
            select_targets(wrong, 1, 4)


def test_plans_that_another_thread_clears_are_not_missed(monkeypatch):
    class Cleared(dict):
        def __setitem__(self, key, value):
            self.clear()

    monkeypatch.setattr(batches, "_plans", Cleared())
    assert decompose(explainable(net, VARIABLES), X).logits.shape == (8, 5)
