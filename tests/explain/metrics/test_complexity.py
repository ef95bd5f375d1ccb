import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import entropy

from jaxinterp.explain.attribution import Attribution
from jaxinterp.explain.metrics import complexity, effective_complexity, sparseness


def given(maps):
    """Images of two channels, whose sum is the map."""
    parts = jnp.asarray(np.stack([2 * maps, -maps], -1), jnp.float32)[:, None]
    return Attribution(parts, jnp.zeros((len(maps), 1)), jnp.zeros((len(maps), 1), int))


@pytest.fixture
def maps():
    return np.random.default_rng(0).standard_normal((3, 4, 5))


LABELS = np.zeros(3, int)


def test_gini_is_the_mean_absolute_difference(maps):
    flat = abs(maps).reshape(3, -1)
    apart = abs(flat[:, :, None] - flat[:, None]).sum((1, 2)) / (2 * flat.shape[1] * flat.sum(1))
    np.testing.assert_allclose(sparseness(None, given(maps), maps, LABELS).scores, apart, rtol=1e-4)


def test_entropy(maps):
    want = entropy(abs(maps).reshape(3, -1), axis=1)
    np.testing.assert_allclose(complexity(None, given(maps), maps, LABELS).scores, want, rtol=1e-4)
    one = np.zeros((3, 4, 5))
    one[:, 0, 0] = -2
    assert complexity(None, given(one), maps, LABELS).scores.tolist() == [0] * 3
    np.testing.assert_allclose(complexity(None, given(one * 0 + 1), maps, LABELS).scores, np.log(20), rtol=1e-6)


def test_count_of_large_entries(maps):
    large = abs(maps).max((1, 2), keepdims=True)
    for normalize, unit in ((True, large), (False, 1)):
        found = effective_complexity(None, given(maps), maps, LABELS, epsilon=0.3, normalize=normalize)
        np.testing.assert_array_equal(found.scores, (abs(maps) > 0.3 * unit).sum((1, 2)))


@pytest.mark.parametrize("metric", [sparseness, complexity, effective_complexity])
def test_zero_maps_are_nan_bad_input_is_a_line_and_nothing_is_compiled_again(metric, maps, compilations):
    maps[1] = 0
    with pytest.warns(UserWarning, match=rf"{metric.__name__}: NaN at 1 of 3 examples: zero map \(1\)"):
        found = metric(None, given(maps), maps, LABELS)
    assert found.eligible.tolist() == [True, False, True]
    maps[1] = 7
    other = given(2 * maps)
    jax.block_until_ready(other)
    with compilations() as second:
        metric(None, other, maps, LABELS)
    assert second == []
    for field, arguments in (("labels", {"labels": LABELS[:2]}), ("maps", {"method": given(maps * np.nan)})):
        with pytest.raises(ValueError, match=rf"\A{field}: got [^\n]*\Z"):
            metric(None, **{"method": given(maps), "x": maps, "labels": LABELS} | arguments)
