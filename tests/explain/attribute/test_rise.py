from importlib import import_module

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from jaxinterp.explain.attribute import rise
from jaxinterp.explain.attribute.rise import _add, random_masks
from jaxinterp.explain.explainable import explainable

WEIGHTS = jax.random.normal(jax.random.key(0), (9 * 7 * 2, 3))
X = jax.random.uniform(jax.random.key(1), (3, 9, 7, 2))


def logits(weights, x):
    return jnp.tanh(x.reshape(len(x), -1) @ weights)


NET = explainable(logits, WEIGHTS)


def test_masks_are_enlarged_grids_that_are_shifted():
    """Against the definition: an image enlarged whole, and every place where it can be cut out."""
    masks = np.asarray(random_masks(jax.random.key(0), jnp.arange(50), (9, 7), 2, 0.5))
    assert masks.shape == (50, 9, 7)
    grids = [np.reshape([i >> k & 1 for k in range(4)], (2, 2)).astype(np.float32) for i in range(16)]
    cuts = [
        whole[i : i + 9, j : j + 7]
        for whole in (np.asarray(jax.image.resize(grid, (15, 12), "linear")) for grid in grids)
        for i in range(5)
        for j in range(4)
    ]
    assert all(min(np.abs(mask - cut).max() for cut in cuts) < 1e-5 for mask in masks)
    assert len(np.unique(masks.round(4), axis=0)) > 30
    many = random_masks(jax.random.key(1), jnp.arange(4000), (9, 7), 3, 0.3)
    np.testing.assert_allclose(many.mean(0), 0.3, atol=0.04)


@pytest.mark.parametrize("max_bytes", [2 << 30, 10_000, 1])
def test_rise_is_the_weighted_mean_of_masks(max_bytes):
    key, base = jax.random.key(5), np.linspace(0, 1, 14, dtype=np.float32).reshape(1, 7, 2)
    masks = np.asarray(random_masks(key, jnp.arange(7), (9, 7), 3, 0.4))
    expected = np.zeros((3, 2, 9, 7))
    for mask in masks:
        kept = mask[None, :, :, None]
        expected += np.asarray(logits(WEIGHTS, kept * X + (1 - kept) * base))[:, [2, 0], None, None] * mask / 7 / 0.4
    options = {"masks": 7, "cells": 3, "probability": 0.4, "baseline": base, "key": key}
    found = rise(NET, X, [[2, 0]] * 3, **options, max_bytes=max_bytes)
    np.testing.assert_allclose(found.maps(), expected, rtol=1e-4, atol=1e-5)
    assert found.residual is None


def test_at_a_layer_its_output_is_masked():
    layered = explainable({"first": lambda w, x: x**2, "then": logits}, WEIGHTS)
    found = rise(layered, X, layer="first", masks=5, cells=2)
    np.testing.assert_allclose(found.maps(), rise(NET, X**2, masks=5, cells=2).maps(), rtol=1e-4, atol=1e-5)


def test_a_pass_keeps_within_the_budget_however_many_masks(monkeypatch):
    """8,000 masks of a large image: the compiled part takes no more temporary memory than it may."""
    kernel = jax.random.normal(jax.random.key(2), (3, 3, 3, 8))

    def network(kernel, x):
        maps = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return jax.nn.relu(maps).mean((1, 2))

    sizes = []

    def measured(*args):
        program = _add.lower(*args).compile().memory_analysis()
        sizes.append((args[1], program.temp_size_in_bytes))
        return args[3]

    monkeypatch.setattr(import_module("jaxinterp.explain.attribute.rise"), "_add", measured)
    limit = 8 << 20
    rise(explainable(network, kernel), jnp.ones((1, 64, 64, 3)), masks=160, max_bytes=limit)
    assert len(sizes) == -(-160 // sizes[0][0]) > 1
    assert limit / 4 < sizes[0][1] < limit


def test_bad_input(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    for name, value in (("probability", 0), ("probability", 1.0), ("masks", 0), ("cells", 0), ("cells", 8)):
        with pytest.raises(ValueError, match=f"^{name}:"):
            rise(NET, X, **{name: value})
    with pytest.raises(ValueError, match=r"^x:"):
        rise(lambda x: x, jnp.ones((2, 5)))


def test_half_precision_sums_in_single():
    """A sum of 600 ones would stop at 256 in bfloat16."""
    x = jnp.ones((1, 4, 4, 1), jnp.bfloat16)
    found = rise(lambda x: 0 * x[:, 0, 0] + 1, x, masks=600, cells=2, max_bytes=4096)
    assert found.contributions.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(found.contributions, float), 1, atol=0.15)
