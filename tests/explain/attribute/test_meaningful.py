import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from jaxinterp.explain.attribute import extremal_perturbation, meaningful_perturbation
from jaxinterp.explain.attribute.meaningful import _misses_area, _smooth_maximum, _variation
from jaxinterp.explain.explainable import explainable

X = jax.random.uniform(jax.random.key(0), (3, 8, 8, 1), minval=0.8)


def logits(scale, x):
    """Class 0 sees the upper left quarter, class 1 the lower right one."""
    return scale * jnp.stack([x[:, :4, :4, 0].mean((1, 2)), x[:, 4:, 4:, 0].mean((1, 2))], axis=1)


NET = explainable(logits, jnp.asarray(20.0))


def test_the_deleted_region_is_the_evidence():
    options = {"baseline": 0.0, "cells": 4, "steps": 150}
    found = meaningful_perturbation(NET, X, **options)
    maps = np.asarray(found.maps())
    assert found.contributions.shape == (3, 2, 8, 8, 1)
    assert maps.min() >= 0
    assert maps.max() <= 1
    for k, own in enumerate([np.s_[:, :3, :3], np.s_[:, 5:, 5:]]):
        assert maps[:, k][own].mean() > 0.3
        assert maps[:, k].mean() < 0.4
    np.testing.assert_allclose(found.logits, logits(20.0, X), rtol=1e-5)
    parts = meaningful_perturbation(NET, X, 1, **options, max_bytes=1)  # image by image
    np.testing.assert_allclose(parts.maps()[:, 0], maps[:, 1], atol=1e-4)


def test_its_terms_are_those_of_the_paper():
    m = jnp.array([[[0.0, 0.5], [1.0, 1.0]]])
    np.testing.assert_allclose(_variation(m), (0.5**3 + 0 + 1 + 0.5**3) / 4, rtol=1e-6)
    area = _misses_area(m, jnp.asarray(0.5))
    np.testing.assert_allclose(area, 0.25 / 4, rtol=1e-6)
    v = jnp.array([0.2, 0.9, 0.1])
    np.testing.assert_allclose(_smooth_maximum(v), (v * jnp.exp(v * 20)).sum() / jnp.exp(v * 20).sum(), rtol=1e-5)


def test_an_extremal_mask_has_the_area_and_keeps_the_logit():
    found = extremal_perturbation(NET, X, area=0.25, baseline=0.0, cells=4, radius=1.0, steps=400)
    maps = np.asarray(found.maps())
    np.testing.assert_allclose(maps.mean((2, 3)), 0.25, atol=0.07)
    assert maps[:, 0, :4, :4].mean() > 0.6
    assert maps[:, 1, 4:, 4:].mean() > 0.6
    layered = explainable({"first": lambda s, x: x, "then": logits}, jnp.asarray(20.0))
    again = extremal_perturbation(layered, X, 0, layer="first", area=0.25, baseline=0.0, cells=4, radius=1.0, steps=400)
    np.testing.assert_allclose(again.maps()[:, 0], maps[:, 0], atol=1e-3)


def test_bad_input(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    for name, value in (("steps", 0), ("cells", 0), ("rate", 0.0), ("sigma", 0.0), ("baseline", "black")):
        for method in (meaningful_perturbation, extremal_perturbation):
            with pytest.raises(ValueError, match=f"^{name}:"):
                method(NET, X, **{name: value})
    for area in (0, 1.0):
        with pytest.raises(ValueError, match=r"^area:"):
            extremal_perturbation(NET, X, area=area)
    with pytest.raises(ValueError, match=r"^radius:"):
        extremal_perturbation(NET, X, radius=0.0)
    with pytest.raises(ValueError, match=r"^sparsity:"):
        meaningful_perturbation(NET, X, sparsity=-1.0)
