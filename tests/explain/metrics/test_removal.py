import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, softmax

from jaxinterp.explain.metrics import pixel_deletion, removal_counts, removal_ranks


@pytest.fixture
def linear():
    """A linear network, whose contributions say exactly what removing a pixel takes away."""
    weights = jax.random.normal(jax.random.key(0), (4, 4, 2, 3))
    x = jax.random.uniform(jax.random.key(1), (5, 4, 4, 2))
    labels = jnp.array([0, 2, 1, 1, 0])

    def predict(weights, x):
        return jnp.einsum("bhwc,hwck->bk", x, weights) - 0.5

    maps = jnp.einsum("bhwc,hwcb->bhw", x, weights[..., labels])
    return predict, weights, x, labels, maps


@pytest.mark.parametrize("order", ["least", "most"])
def test_the_curve_of_a_linear_network_is_known(linear, order):
    predict, weights, x, labels, maps = linear
    found = pixel_deletion(predict, x, maps, labels, order=order, fraction=1.0, variables=weights)
    sorted_maps = np.sort(np.array(maps).reshape(5, -1), axis=1)[:, :: 1 if order == "least" else -1]
    left = sorted_maps.sum(1, keepdims=True) - np.cumsum(np.pad(sorted_maps, ((0, 0), (1, 0))), axis=1)
    np.testing.assert_allclose(found.curves, expit(left - 0.5), rtol=1e-4)
    np.testing.assert_allclose(found.curve, expit(left - 0.5).mean(0), rtol=1e-4)
    np.testing.assert_allclose(found.fractions, np.arange(17) / 16)
    assert found.mean == pytest.approx(expit(left - 0.5).mean(), rel=1e-4)


def test_nothing_removed_is_the_clean_probability_and_least_first_beats_most_first(linear):
    predict, weights, x, labels, maps = linear
    clean = expit(np.array(predict(weights, x)))[np.arange(5), labels]
    rising = pixel_deletion(predict, x, maps, labels, variables=weights)
    falling = pixel_deletion(predict, x, maps, labels, order="most", variables=weights)
    np.testing.assert_allclose(rising.curves[:, 0], clean, rtol=1e-5)
    assert (np.diff(rising.curves[:, :3]) > 0).all()
    assert rising.mean > falling.mean
    negated = pixel_deletion(predict, x, -maps, labels, order="most", variables=weights)
    np.testing.assert_allclose(negated.curves, rising.curves, rtol=1e-5)


def test_a_removed_pixel_is_the_zero_vector_of_the_encoded_input():
    """A network that looks for black pixels, (0, 1) encoded, does not find them in a removed one."""

    def black_pixels(x):
        return (x == jnp.array([0.0, 1.0]).reshape(1, 1, 1, 2)).all(-1).sum((1, 2)).astype(x.dtype)[:, None]

    x = jnp.zeros((1, 4, 4, 1))
    found = pixel_deletion(black_pixels, jnp.concatenate([x, 1 - x], -1), x[..., 0], jnp.array([0]), fraction=0.5)
    np.testing.assert_allclose(found.curves[0], expit(16.0 - np.arange(9)), rtol=1e-5)


def test_softmax_is_the_other_probability(linear):
    predict, weights, x, labels, maps = linear
    found = pixel_deletion(predict, x, maps, labels, probability="softmax", variables=weights)
    expected = softmax(np.array(predict(weights, x)), axis=1)[np.arange(5), labels]
    np.testing.assert_allclose(found.curves[:, 0], expected, rtol=1e-5)


@pytest.mark.parametrize("max_bytes", [1, 3_000])
def test_chunks_over_images_and_points_change_nothing(linear, max_bytes):
    predict, weights, x, labels, maps = linear
    whole = pixel_deletion(lambda x: predict(weights, x), x, maps, labels)
    found = pixel_deletion(predict, x, maps, labels, variables=weights, max_bytes=max_bytes)
    np.testing.assert_allclose(found.curves, whole.curves, rtol=1e-5)


def test_the_second_call_compiles_nothing(linear, compilations):
    predict, weights, x, labels, maps = linear
    pixel_deletion(predict, x, maps, labels, variables=weights, max_bytes=3_000)
    weights, x, maps = 2 * weights, x / 2, -maps
    with compilations() as second:
        pixel_deletion(predict, x, maps, labels, variables=weights, max_bytes=3_000)
    assert second == []
    with compilations() as another:
        pixel_deletion(lambda v, x: 2 * predict(v, x), x, maps, labels, variables=weights, max_bytes=3_000)
    assert another != []


def test_points_of_the_curve():
    counts = removal_counts(32 * 32)
    assert (len(counts), counts[1], counts[-1]) == (129, 2, 256)
    assert removal_counts(8 * 8).tolist() == list(range(17))
    assert removal_counts(28 * 28)[[0, 1, -1]].tolist() == [0, 1, 196]


def test_ties_are_broken_in_reading_order_both_ways():
    flat = jnp.zeros((1, 2, 3))
    for order in ("least", "most"):
        assert removal_ranks(flat, order).ravel().tolist() == [0, 1, 2, 3, 4, 5]
    mixed = jnp.array([[[1.0, -1.0, 1.0], [0.0, 0.0, 5.0]]])
    assert removal_ranks(mixed).ravel().tolist() == [3, 0, 4, 1, 2, 5]
    assert removal_ranks(mixed, "most").ravel().tolist() == [1, 5, 2, 3, 4, 0]


def test_bad_input_is_one_clear_line(linear):
    predict, weights, x, labels, maps = linear
    for arguments, message in [
        ({"maps": maps[:, :2]}, "maps"),
        ({"maps": maps.at[1, 2, 3].set(jnp.nan)}, "maps"),
        ({"fraction": 0.0}, "fraction"),
        ({"fraction": 0.06}, "fraction"),
        ({"labels": labels + 5}, "targets"),
    ]:
        with pytest.raises(ValueError, match=message):
            pixel_deletion(predict, **{"encoded": x, "maps": maps, "labels": labels, "variables": weights} | arguments)
