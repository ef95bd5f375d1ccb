"""On f = x², input × gradient is 2x², so every perturbed map is known."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from jaxinterp.explain.attribute import gradient, input_x_gradient
from jaxinterp.explain.explainable import explainable
from jaxinterp.explain.metrics import (
    average_sensitivity,
    local_lipschitz,
    max_sensitivity,
    relative_input_stability,
    relative_output_stability,
    robustness,
)

ALL = (max_sensitivity, average_sensitivity, local_lipschitz, relative_input_stability, relative_output_stability)
LABELS = np.array([0, 1, 2])


def square(variables, x):
    return variables * x**2


@pytest.fixture
def net():
    return explainable(square, jnp.ones(()))


@pytest.fixture
def x():
    return jnp.array([[1.0, -2.0, 0.5], [3.0, 0.25, 1.0], [0.1, 1.0, -4.0]])


def known(x, size, noise, samples=5):
    """x, x', map and perturbed map of the labels, (samples, batch, 3)."""
    steps = np.asarray(
        robustness._steps(noise, samples, jax.random.key(0), x, jnp.asarray(size), jnp.asarray(0)), float
    )
    here = np.asarray(x, float)
    moved, own = here + steps, np.eye(3)[LABELS]
    return here, moved, 2 * here**2 * own, 2 * moved**2 * own


def norm(values):
    return np.linalg.norm(values, axis=-1)


def test_sensitivity(net, x):
    here, moved, maps, there = known(x, 0.1, "uniform")
    assert abs(moved - here).max() <= 0.1
    change = norm(there - maps)
    for relative_to, size in (("map", norm(maps)), ("input", norm(here)), (None, 1)):
        keywords = {"radius": 0.1, "samples": 5, "relative_to": relative_to}
        found = max_sensitivity(net, input_x_gradient, x, LABELS, **keywords)
        np.testing.assert_allclose(found.scores, change.max(0) / size, rtol=1e-4)
        found = average_sensitivity(net, input_x_gradient, x, LABELS, **keywords)
        np.testing.assert_allclose(found.scores, change.mean(0) / size, rtol=1e-4)


def test_lipschitz_estimate(net, x):
    here, moved, maps, there = known(x, 0.3, "normal")
    found = local_lipschitz(net, input_x_gradient, x, LABELS, deviation=0.3, samples=5)
    np.testing.assert_allclose(found.scores, (norm(there - maps) / norm(moved - here)).max(0), rtol=1e-4)


def test_relative_stability_counts_points_of_the_same_prediction(net, x):
    here, moved, maps, there = known(x, 0.6, "uniform", 9)
    above = norm((there - maps) / np.where(maps == 0, 1e-6, maps))
    same = (moved**2).argmax(-1) == (here**2).argmax(-1)
    for metric, below in (
        (relative_input_stability, norm((moved - here) / here)),
        (relative_output_stability, norm(moved**2 - here**2)),
    ):
        found = metric(net, input_x_gradient, x, LABELS, radius=0.6, samples=9)
        np.testing.assert_allclose(found.scores, np.where(same, above / below, 0).max(0), rtol=1e-3)


def test_an_example_whose_prediction_always_changes_is_not_eligible(x):
    fickle = explainable(
        lambda x: jnp.stack([jnp.where(x[:, 0] == 1, 1, 0), jnp.where(x[:, 0] == 1, 0, 1)], 1) + 0 * x[:, :2]
    )
    with pytest.warns(UserWarning, match=r"NaN at 1 of 3 examples: another prediction everywhere \(0\)"):
        found = relative_output_stability(fickle, input_x_gradient, x, np.zeros(3, int))
    assert found.eligible.tolist() == [False, True, True]


@pytest.mark.parametrize("metric", ALL)
def test_samples_run_together_and_are_compiled_once(metric, net, x, compilations, monkeypatch):
    whole = metric(net, input_x_gradient, x, LABELS, samples=5).scores
    other, half = explainable(square, jnp.full((), 2.0, jnp.float32)), x / 2
    with compilations() as second:
        metric(other, input_x_gradient, half, LABELS, samples=5)
    assert second == []
    for few in (200, 1):  # two examples at a time, and one sample of one
        parts = metric(net, input_x_gradient, x, LABELS, samples=5, max_bytes=few).scores
        np.testing.assert_allclose(parts, whole, rtol=1e-5)
    monkeypatch.setattr(robustness, "TOGETHER", 6)  # two samples at a time
    np.testing.assert_allclose(metric(net, input_x_gradient, x, LABELS, samples=5).scores, whole, rtol=1e-5)
    other_key = metric(net, input_x_gradient, x, LABELS, samples=5, key=jax.random.key(1)).scores
    assert (other_key != whole).any()


def test_zero_maps_and_bad_input(net, x, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.warns(UserWarning, match=r"max_sensitivity: NaN at 1 of 3 examples: zero map \(1\)"):
        found = max_sensitivity(net, gradient, x.at[1, 1].set(0), LABELS)
    assert found.eligible.tolist() == [True, False, True]
    for metric in ALL:
        size = "deviation" if metric is local_lipschitz else "radius"
        for field, arguments in [
            ("method", {"method": gradient(net, x, LABELS)}),
            ("labels", {"labels": LABELS[:2]}),
            ("labels", {"labels": LABELS + 1}),
            ("radius, deviation", {size: 0.0}),
            ("radius, deviation", {size: "wide"}),
            ("key", {"key": 0}),
            ("samples", {"samples": 0}),
            ("max_bytes", {"max_bytes": 0}),
            ("x", {"x": x.at[0, 0].set(jnp.nan)}),
            ("x", {"x": jnp.ones((3, 3), jnp.int32)}),
        ]:
            with pytest.raises(ValueError, match=rf"\A{field}: got [^\n]*\Z"):
                metric(net, **{"method": gradient, "x": x, "labels": LABELS} | arguments)
