import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from scipy.special import expit, softmax

from jaxinterp.explain.attribute import gradient, input_x_gradient
from jaxinterp.explain.attribution import Attribution
from jaxinterp.explain.decompose import decompose
from jaxinterp.explain.explainable import explainable
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
    return explainable(predict, weights, probability="sigmoid"), x, labels, maps


def given(maps, labels):
    """An attribution to the labels' logits with these maps."""
    return Attribution(maps[:, None, :, :, None], jnp.zeros((len(maps), 1)), jnp.asarray(labels, jnp.int32)[:, None])


@pytest.mark.parametrize("order", ["least", "most"])
def test_the_curve_of_a_linear_network_is_known(linear, order):
    net, x, labels, maps = linear
    found = pixel_deletion(net, given(maps, labels), x, labels, order=order, fraction=1.0)
    sorted_maps = np.sort(np.array(maps).reshape(5, -1), axis=1)[:, :: 1 if order == "least" else -1]
    left = sorted_maps.sum(1, keepdims=True) - np.cumsum(np.pad(sorted_maps, ((0, 0), (1, 0))), axis=1)
    np.testing.assert_allclose(found.curves, expit(left - 0.5), rtol=1e-4)
    np.testing.assert_allclose(found.curve, expit(left - 0.5).mean(0), rtol=1e-4)
    np.testing.assert_allclose(found.fractions, np.arange(17) / 16)
    assert found.mean == pytest.approx(expit(left - 0.5).mean(), rel=1e-4)


def test_nothing_removed_is_the_clean_probability_and_least_first_beats_most_first(linear):
    net, x, labels, maps = linear
    clean = expit(np.array(net.logits(x)))[np.arange(5), labels]
    rising = pixel_deletion(net, given(maps, labels), x, labels)
    falling = pixel_deletion(net, given(maps, labels), x, labels, order="most")
    np.testing.assert_allclose(rising.curves[:, 0], clean, rtol=1e-5)
    assert (np.diff(rising.curves[:, :3]) > 0).all()
    assert rising.mean > falling.mean
    negated = pixel_deletion(net, given(-maps, labels), x, labels, order="most")
    np.testing.assert_allclose(negated.curves, rising.curves, rtol=1e-5)
    for method in (decompose, input_x_gradient):  # on a linear network, these maps
        np.testing.assert_allclose(pixel_deletion(net, method, x, labels).curves, rising.curves, rtol=1e-5)


def test_a_removed_pixel_is_the_zero_vector_of_the_encoded_input():
    """A network that looks for black pixels, (0, 1) encoded, does not find them in a removed one."""

    def black_pixels(x):
        return (x == jnp.array([0.0, 1.0]).reshape(1, 1, 1, 2)).all(-1).sum((1, 2)).astype(x.dtype)[:, None]

    def encoding(variables, x):
        return jnp.concatenate([x, 1 - x], -1)

    net = explainable(black_pixels, encoding=encoding, probability="sigmoid")
    parts = given(jnp.arange(16.0).reshape(1, 4, 4), [0])
    found = pixel_deletion(net, parts, jnp.zeros((1, 4, 4, 1)), jnp.array([0]), fraction=0.5)
    np.testing.assert_allclose(found.curves[0], expit(16.0 - np.arange(9)), rtol=1e-5)


def test_softmax_is_the_other_probability(linear):
    net, x, labels, maps = linear
    softly = explainable(net, probability="softmax")
    found = pixel_deletion(softly, given(maps, labels), x, labels)
    expected = softmax(np.array(net.logits(x)), axis=1)[np.arange(5), labels]
    np.testing.assert_allclose(found.curves[:, 0], expected, rtol=1e-5)


@pytest.mark.parametrize("max_bytes", [1, 3_000])
def test_chunks_over_images_and_points_change_nothing(linear, max_bytes):
    net, x, labels, maps = linear
    parts = given(maps, labels)
    whole = pixel_deletion(net, parts, x, labels)
    closed = explainable(lambda x: net.network(net.variables, x), probability="sigmoid")
    for found in (pixel_deletion(net, parts, x, labels, max_bytes=max_bytes), pixel_deletion(closed, parts, x, labels)):
        np.testing.assert_allclose(found.curves, whole.curves, rtol=1e-5)


def test_the_second_call_compiles_nothing(linear, compilations):
    net, x, labels, maps = linear
    other = explainable(net.network, 2 * net.variables, probability="sigmoid")
    for method in (given(maps, labels), gradient):
        pixel_deletion(net, method, x, labels, max_bytes=3_000)
        half = x / 2
        with compilations() as second:
            pixel_deletion(other, method, half, labels, max_bytes=3_000)
        assert second == []
    third = explainable(lambda v, x: 1.75 * net.network(v, x), net.variables, probability="sigmoid")
    with compilations() as another:
        pixel_deletion(third, given(maps, labels), x, labels, max_bytes=3_000)
    assert another != []


def test_an_image_with_a_constant_map_is_not_eligible(linear):
    net, x, labels, maps = linear
    with pytest.warns(UserWarning, match=r"^pixel_deletion: NaN at 1 of 5 examples: constant map \(2\)"):
        found = pixel_deletion(net, given(maps.at[2].set(0), labels), x, labels)
    assert found.eligible.tolist() == [True, True, False, True, True]
    np.testing.assert_allclose(found.curve, found.curves[found.eligible].mean(0))
    assert found.mean == pytest.approx(np.nanmean(found.scores)) == pytest.approx(found.curve.mean())


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


def test_bad_input_is_one_clear_line(linear, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    net, x, labels, maps = linear
    parts = given(maps, labels)
    for field, arguments in [
        ("maps", {"method": given(maps.at[1, 2, 3].set(jnp.nan), labels)}),
        ("method", {"method": decompose(net, x)}),
        ("method", {"method": lambda net, x, targets: maps}),
        ("contributions", {"method": Attribution(maps[:, None], parts.logits, parts.targets)}),
        ("fraction", {"fraction": 0.0}),
        ("fraction", {"fraction": 0.06}),
        ("fraction", {"fraction": "all"}),
        ("points", {"points": 2.5}),
        ("order", {"order": "random"}),
        ("labels", {"labels": labels + 5}),
        ("labels", {"labels": labels[:2]}),
    ]:
        with pytest.raises(ValueError, match=rf"\A{field}: got .*\Z"):
            pixel_deletion(net, **{"method": parts, "x": x, "labels": labels} | arguments)
