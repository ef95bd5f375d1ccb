from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinterp.explain.attribute import occlusion
from jaxinterp.explain.attribute.occlusion import covered
from jaxinterp.explain.explainable import explainable


def net(weights, x):
    return jnp.tanh(x.reshape(len(x), -1) @ weights)


@pytest.fixture
def weights():
    return jax.random.normal(jax.random.key(0), (6 * 6 * 2, 3))


@pytest.fixture
def x():
    return jax.random.uniform(jax.random.key(1), (3, 6, 6, 2))


def spread_loop(weights, x, bounds, value=0.0):
    """Every window in its own Python loop, with slices; `bounds` are (start, stop) along one axis."""
    x, clean = np.array(x), np.array(net(weights, x))
    out = np.zeros((len(x), 3, 6, 6))
    for top, bottom in bounds:
        for left, right in bounds:
            window = np.s_[max(0, top) : bottom, max(0, left) : right]
            hidden = x.copy()
            hidden[(slice(None), *window)] = value
            drop = clean - np.array(net(weights, hidden))
            pixels = np.zeros((6, 6))[window].size
            out[(slice(None), slice(None), *window)] += drop[:, :, None, None] / pixels
    return out


def mean_loop(weights, x, windows, base):
    """The mean of the drops over all windows, slices of (H, W, C), that cover an entry."""
    x, clean = np.array(x), np.array(net(weights, x))
    drops, counts = np.zeros((len(x), 3, 6, 6, 2)), np.zeros((6, 6, 2))
    for window in windows:
        hidden = x.copy()
        hidden[(slice(None), *window)] = np.broadcast_to(base, x.shape)[(slice(None), *window)]
        drops[(slice(None), slice(None), *window)] += (clean - np.array(net(weights, hidden)))[:, :, None, None, None]
        counts[window] += 1
    return drops / counts


@pytest.mark.parametrize(("window", "bounds"), [(3, [(-1, 2), (1, 4), (3, 6)]), (4, [(-2, 2), (0, 4), (2, 6)])])
def test_spread_is_the_explicit_loop(weights, x, window, bounds):
    found = occlusion(explainable(net, weights), x, window=window, stride=2, rule="spread").contributions
    assert found.shape == (3, 3, 6, 6, 1)
    np.testing.assert_allclose(found[..., 0], spread_loop(weights, x, bounds), rtol=1e-4, atol=1e-6)


def test_mean_is_the_explicit_loop(weights, x):
    base = np.linspace(0, 1, 6 * 2, dtype=np.float32).reshape(1, 6, 2)
    found = occlusion(explainable(net, weights), x, window=(3, 4), stride=(2, 3), baseline=base).contributions
    windows = [np.s_[i : i + 3, j : j + 4, :] for i in (0, 2, 4) for j in (0, 3)]
    np.testing.assert_allclose(found[..., 0], mean_loop(weights, x, windows, base)[..., 0], rtol=1e-4, atol=1e-6)
    found = occlusion(explainable(net, weights), x, window=(3, 3, 1), stride=(2, 3, 1), baseline=base).contributions
    windows = [np.s_[i : i + 3, j : j + 3, c : c + 1] for i in (0, 2, 4) for j in (0, 3) for c in (0, 1)]
    np.testing.assert_allclose(found, mean_loop(weights, x, windows, base), rtol=1e-4, atol=1e-6)


def test_the_covering_value_is_the_baseline(weights, x):
    found = occlusion(explainable(net, weights), x, window=3, stride=2, baseline=0.5, rule="spread").contributions
    expected = spread_loop(weights, x, [(-1, 2), (1, 4), (3, 6)], value=0.5)
    np.testing.assert_allclose(found[..., 0], expected, rtol=1e-4, atol=1e-6)


def test_at_a_layer_its_output_is_covered(weights, x):
    layered = explainable({"first": lambda w, x: x**2, "then": net}, weights)
    found = occlusion(layered, x, layer="first", window=3)
    np.testing.assert_allclose(found.contributions, occlusion(explainable(net, weights), x**2, window=3).contributions,
                               rtol=1e-4, atol=1e-6)  # fmt: skip
    assert found.layer == "first"


@pytest.mark.parametrize("rule", ["mean", "spread"])
def test_single_pixels_of_a_linear_net_are_its_contributions(x, rule):
    mixing = jax.random.normal(jax.random.key(2), (6, 6, 2, 3))

    def linear(x):
        return jnp.einsum("bhwc,hwck->bk", x, mixing) - 1.0

    found = occlusion(linear, x, window=1, stride=1, rule=rule).contributions[..., 0]
    np.testing.assert_allclose(found, jnp.einsum("bhwc,hwck->bkhw", x, mixing), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("max_bytes", [1, 50_000])
@pytest.mark.parametrize("targets", [None, 2, [1, 0, 2]])
def test_chunks_and_targets_change_nothing(weights, x, max_bytes, targets):
    whole = occlusion(lambda x: net(weights, x), x, window=3, stride=2).contributions
    rows = np.arange(3)[None] if targets is None else np.reshape(targets, (-1, 1))
    found = occlusion(explainable(net, weights), x, targets, window=3, stride=2, max_bytes=max_bytes).contributions
    np.testing.assert_allclose(found, whole[np.arange(3)[:, None], rows], rtol=1e-4, atol=1e-6)


def test_windows_cover_every_pixel_and_are_cut_at_the_border():
    for size in (1, 5, 8):
        assert covered(size, window=3, stride=2).any(0).all()
        assert covered(size, window=min(3, size), stride=2, centered=False).any(0).all()
    assert covered(8, window=5, stride=2).sum(1).tolist() == [3, 5, 5, 4]
    assert covered(8, window=5, stride=2, centered=False).sum(1).tolist() == [5, 5, 4]


@pytest.mark.parametrize(("window", "stride"), [(0, 1), (3, 0)])
def test_a_window_that_covers_nothing_raises(window, stride):
    with pytest.raises(ValueError, match="window"):
        occlusion(lambda x: x.sum((1, 2)), jnp.ones((1, 4, 4, 1)), window=window, stride=stride)


@pytest.mark.parametrize(("window", "stride"), [(5, 2), (3, 5), ((5, 3), 1), ((1, 1, 2), 1), ((3,), 1)])
def test_a_window_or_stride_beyond_the_shorter_side_is_refused(window, stride):
    total = partial(jnp.sum, axis=(1, 2))
    with pytest.raises(ValueError, match="window, stride"):
        occlusion(total, jnp.ones((1, 4, 6, 1)), window=window, stride=stride)
    whole = occlusion(total, jnp.ones((1, 4, 6, 1)), window=4, stride=4, rule="spread").contributions
    assert float(whole.sum()) == 12  # a window around row 0, cut at the border, covers two of the four rows


def test_gaps_between_windows_are_refused():
    with pytest.raises(ValueError, match=r"^stride:"):
        occlusion(lambda x: x.sum((1, 2)), jnp.ones((1, 4, 4, 1)), window=2, stride=3)
