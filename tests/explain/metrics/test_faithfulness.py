"""On a linear network every removal is known: f loses the sum of the contributions that go."""

import warnings

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from scipy.special import expit, softmax
from scipy.stats import pearsonr, spearmanr

from jaxinterp.explain import metrics
from jaxinterp.explain.attribute import gradient, input_x_gradient
from jaxinterp.explain.attribution import Attribution
from jaxinterp.explain.explainable import explainable
from jaxinterp.explain.metrics import perturbation

LABELS = np.array([0, 2, 1, 1, 0])
FLIPS = ("pixel_flipping", "deletion", "insertion", "region_perturbation", "selectivity", "irof", "road")
CORRELATIONS = ("faithfulness_correlation", "faithfulness_estimate", "monotonicity", "monotonicity_correlation")
ALL = (*FLIPS, *CORRELATIONS, "infidelity", "non_sensitivity")


def predict(weights, x):
    return jnp.einsum("bhwc,hwck->bk", x, weights) + 3.0


@pytest.fixture(scope="module")
def linear():
    weights = jax.random.normal(jax.random.key(0), (4, 6, 2, 3))
    x = jax.random.uniform(jax.random.key(1), (5, 4, 6, 2))
    maps = np.einsum("bhwc,hwcb->bhw", np.asarray(x, float), np.asarray(weights, float)[..., LABELS])
    return explainable(predict, weights, probability="sigmoid"), x, maps


def given(maps):
    return Attribution(
        jnp.asarray(maps, jnp.float32)[:, None, :, :, None], jnp.zeros((5, 1)), jnp.asarray(LABELS)[:, None]
    )


def noise_maps():
    return np.random.default_rng(2).standard_normal((5, 4, 6))


def left(maps, order, insert=False):
    """The logits with 0, 1, ... pixels changed, in an order of any maps; contributions are those of the fixture."""
    order = np.argsort(order.reshape(5, -1), axis=1, kind="stable")
    gone = np.cumsum(np.pad(np.take_along_axis(maps.reshape(5, -1), order, 1), ((0, 0), (1, 0))), axis=1)
    return 3 + (gone if insert else gone[:, -1:] - gone)


@pytest.mark.parametrize(("order", "sign"), [("most", -1), ("least", 1)])
@pytest.mark.parametrize("insert", [False, True])
def test_flipping_curves(linear, order, sign, insert):
    net, x, maps = linear
    other = noise_maps()
    found = metrics.pixel_flipping(net, given(other), x, LABELS, order=order, insert=insert, steps=24)
    want = expit(left(maps, sign * other, insert))
    np.testing.assert_allclose(found.curves, want, rtol=1e-4)
    np.testing.assert_allclose(found.scores, np.trapezoid(want, dx=1 / 24), rtol=1e-4)
    np.testing.assert_allclose(found.fractions, np.arange(25) / 24)
    assert found.eligible.all()
    assert found.mean == pytest.approx(found.scores.mean())


def test_the_score_is_the_networks_own(linear):
    net, x, _ = linear
    logits = np.asarray(net.logits(x), float)
    clean = {
        "probability": expit(logits),
        "logit": logits,
        "correct": (logits == logits.max(1, keepdims=True)).astype(float),
    }
    for score, want in clean.items():
        found = metrics.deletion(net, input_x_gradient, x, LABELS, score=score, steps=2)
        np.testing.assert_allclose(found.curves[:, 0], want[np.arange(5), LABELS], rtol=1e-5)
    softly = explainable(net, probability="softmax")
    found = metrics.deletion(softly, input_x_gradient, x, LABELS, steps=2)
    np.testing.assert_allclose(found.curves[:, 0], softmax(logits, 1)[np.arange(5), LABELS], rtol=1e-4)


def test_baselines():
    z = jax.random.uniform(jax.random.key(0), (3, 8, 8, 2))
    key, array = jax.random.key(1), np.asarray(z)
    for name in ("mean", "min", "max"):
        found = perturbation.baseline_of(name, z, key)
        np.testing.assert_allclose(
            found, np.broadcast_to(getattr(array, name)((1, 2), keepdims=True), z.shape), rtol=1e-6
        )
    np.testing.assert_array_equal(perturbation.baseline_of([0.5, 2], z, key)[0, 0, 0], [0.5, 2.0])
    noise = perturbation.baseline_of("noise", z, key)
    assert (noise >= array.min((1, 2), keepdims=True)).all()
    assert (noise <= array.max((1, 2), keepdims=True)).all()
    np.testing.assert_array_equal(perturbation.baseline_of("noise", z[1:], key, 1), noise[1:])
    flat = jnp.ones((1, 8, 8, 1))
    np.testing.assert_allclose(perturbation.baseline_of("blur", flat, key), flat, rtol=1e-6)
    blurred = np.asarray(perturbation.baseline_of("blur", z, key))
    assert blurred.std() < 0.9 * array.std()


def test_encoded_space_is_what_the_network_reads():
    """Encoded [x, 1 − x], zero is not black, and a network that counts black pixels does not find it."""

    def black(x):
        return x[..., 1].sum((1, 2))[:, None]

    net = explainable(black, encoding=lambda variables, x: jnp.concatenate([x, 1 - x], -1))
    parts = Attribution(jnp.arange(16.0).reshape(1, 1, 4, 4, 1), jnp.zeros((1, 1)), jnp.array([[0]]))
    curves = {
        space: metrics.deletion(net, parts, jnp.zeros((1, 4, 4, 1)), [0], space=space, score="logit", steps=4).curves
        for space in ("image", "encoded")
    }
    assert curves["image"].tolist() == [[16.0] * 5]
    assert curves["encoded"].tolist() == [[16.0, 12.0, 8.0, 4.0, 0.0]]


def test_regions(linear):
    """Squares of 2×2 pixels and strips as segments, some examples with fewer of them."""
    net, x, maps = linear
    strips = np.broadcast_to(np.arange(6) // 2 * 7, (4, 6))
    few = np.broadcast_to(strips, (5, 4, 6)).copy()
    few[3] = few[3] > 0
    order = noise_maps()
    for segments, parts in (
        (None, np.broadcast_to(perturbation.squares(4, 6, 2), (5, 4, 6))),
        (strips, few * 0 + strips),
        (few, few),
    ):
        drops, ratio = [], []
        for i in range(5):
            names = np.unique(parts[i])
            turns = names[np.argsort([-order[i][parts[i] == n].mean() for n in names])]
            curve = 3 + maps[i].sum() - np.cumsum([0, *(maps[i][parts[i] == n].sum() for n in turns)])
            drops.append((curve[0] - curve).mean())
            ratio.append((1 - curve[1:] / curve[0]).mean())
        keywords = {"side": 2, "segments": segments, "score": "logit", "baseline": 0.0}
        found = metrics.region_perturbation(net, given(order), x, LABELS, **keywords)
        np.testing.assert_allclose(found.scores, drops, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(
            metrics.irof(net, given(order), x, LABELS, **keywords).scores, ratio, rtol=1e-3, atol=1e-5
        )
    area = metrics.selectivity(net, given(order), x, LABELS, side=2, score="logit")
    np.testing.assert_allclose(area.scores, np.trapezoid(area.curves, dx=1 / 6), rtol=1e-5)


def test_imputation_solves_the_sparse_system():
    z = np.random.default_rng(0).random((5, 6, 2))
    hole = np.random.default_rng(1).random((5, 6)) < 0.6
    where = np.argwhere(hole)
    system, right = np.eye(len(where)), np.zeros((len(where), 2))
    for row, (i, j) in enumerate(where):
        near = [(a, b) for a in (i - 1, i, i + 1) for b in (j - 1, j, j + 1) if (a, b) != (i, j)]
        near = [(a, b) for a, b in near if 0 <= a < 5 and 0 <= b < 6]
        weight = np.array([1 / 6 if a == i or b == j else 1 / 12 for a, b in near])
        for w, (a, b) in zip(weight / weight.sum(), near, strict=True):
            if hole[a, b]:
                system[row, np.flatnonzero((where == (a, b)).all(1))] -= w
            else:
                right[row] += w * z[a, b]
    found = perturbation.interpolated(jnp.asarray(z, jnp.float32), jnp.asarray(hole))
    np.testing.assert_allclose(np.asarray(found)[hole], np.linalg.solve(system, right), atol=1e-4)
    np.testing.assert_allclose(np.asarray(found)[~hole], z[~hole], rtol=1e-6)


def test_road_removes_the_most_or_the_least_important(linear):
    net, x, _ = linear
    high, low = (metrics.road(net, input_x_gradient, x, LABELS, order=o, score="logit") for o in ("least", "most"))
    assert (high.scores > low.scores).all()
    exact = metrics.road(net, input_x_gradient, x, LABELS, fractions=[0.5], noise=0, score="logit")
    ranks = perturbation.pixel_ranks(jnp.asarray(linear[2]), "most") < 12
    filled = jnp.stack([perturbation.interpolated(*pair) for pair in zip(x, ranks, strict=True)])
    np.testing.assert_allclose(exact.curves[:, 0], net.logits(filled)[np.arange(5), LABELS], rtol=1e-4)


def test_correlations_of_contributions_are_one_and_of_others_those_of_scipy(linear):
    net, x, maps = linear
    order = noise_maps()
    for name in ("faithfulness_correlation", "faithfulness_estimate"):
        found = getattr(metrics, name)(net, input_x_gradient, x, LABELS, score="logit")
        np.testing.assert_allclose(found.scores, 1, atol=1e-4)
    found = metrics.faithfulness_estimate(net, given(order), x, LABELS, steps=24, score="logit")
    want = [pearsonr(a.ravel(), b.ravel())[0] for a, b in zip(order, maps, strict=True)]
    np.testing.assert_allclose(found.scores, want, atol=1e-4)
    found = metrics.monotonicity_correlation(
        net, given(order), x, LABELS, steps=24, samples=2, baseline=0.0, score="logit"
    )
    want = [spearmanr(abs(a.ravel()), b.ravel() ** 2)[0] for a, b in zip(order, maps, strict=True)]
    np.testing.assert_allclose(found.scores, want, atol=1e-4)


def test_monotonicity(linear):
    net, x, maps = linear
    found = metrics.monotonicity(net, given(noise_maps()), x, LABELS, steps=24, score="logit")
    rises = np.diff(left(maps, noise_maps(), insert=True)) >= 0
    np.testing.assert_allclose(found.scores, rises.mean(1), rtol=1e-6)
    assert not found.holds.any()
    positive = explainable(predict, jnp.abs(net.variables))
    assert metrics.monotonicity(positive, input_x_gradient, x, LABELS, score="logit").holds.all()


def test_infidelity(linear):
    net, x, maps = linear
    assert (metrics.infidelity(net, input_x_gradient, x, LABELS, samples=7, side=2).scores < 1e-8).all()
    assert (metrics.infidelity(net, gradient, x, LABELS, multiplied=False, baseline=0.3).scores < 1e-8).all()
    order = noise_maps()
    squared = [(a.reshape(2, 2, 3, 2).sum((1, 3)) for a in (order[i], maps[i])) for i in range(5)]
    want = [np.mean((a - b) ** 2) for a, b in squared]
    np.testing.assert_allclose(metrics.infidelity(net, given(order), x, LABELS, side=2).scores, want, rtol=1e-3)
    tripled = metrics.infidelity(net, given(3 * maps), x, LABELS, side=2, scaled=True)
    assert (tripled.scores < 1e-8).all()


def test_sufficiency():
    """Of four maps three are near one another, and one of these is of another class."""
    x, labels = jnp.array([[1.0, 0.0], [1.1, 0.0], [0.0, 9.0], [1.0, 1.2]]), [0, 0, 1, 0]
    maps = np.where(np.eye(2, dtype=bool)[np.array(labels)], np.asarray(x), 0)
    scaled = maps / maps.std(0, ddof=1)
    distance = np.linalg.norm(scaled[:, None] - scaled, axis=-1)
    near = (distance / distance.max() <= 0.5) & ~np.eye(4, dtype=bool)
    predicted = np.asarray(x).argmax(1)
    want = [(predicted[row] == k).mean() for row, k in zip(near[[0, 1, 3]], predicted[[0, 1, 3]], strict=True)]
    net = explainable(lambda x: x)
    with pytest.warns(UserWarning, match=r"sufficiency: NaN at 1 of 4 examples: no similar map \(2\)"):
        found = metrics.sufficiency(net, input_x_gradient, x, labels, threshold=0.5)
    np.testing.assert_allclose(found.scores[[0, 1, 3]], want)
    assert sorted(want) == [0.0, 0.5, 0.5]
    with pytest.warns(UserWarning, match="no similar map"):
        parts = metrics.sufficiency(net, input_x_gradient, x, labels, threshold=0.5, max_bytes=1)
    np.testing.assert_array_equal(parts.scores, found.scores)
    assert metrics.sufficiency(net, input_x_gradient, x, labels, threshold=99, relative=False).eligible.all()


@pytest.mark.parametrize("name", ALL)
def test_parts_within_the_budget_change_nothing_and_the_second_call_compiles_nothing(linear, name, compilations):
    net, x, _ = linear
    metric = getattr(metrics, name)
    whole = metric(net, input_x_gradient, x, LABELS, key=jax.random.key(3))
    small = metric(net, input_x_gradient, x, LABELS, key=jax.random.key(3), max_bytes=3_000)
    np.testing.assert_allclose(small.scores, whole.scores, rtol=1e-3, atol=1e-5)
    other, half = explainable(predict, 2 * net.variables, probability="sigmoid"), x / 2
    with compilations() as second:
        metric(other, input_x_gradient, half, LABELS, key=jax.random.key(4))
    assert second == []


@pytest.mark.parametrize("name", [name for name in ALL if name != "non_sensitivity"])
def test_constant_maps_are_nan_and_named(linear, name):
    net, x, maps = linear
    flat = maps.copy()
    flat[1], flat[4] = 0, 2
    said = {"deletion": "pixel_flipping", "insertion": "pixel_flipping"}.get(name, name)
    with pytest.warns(UserWarning, match=rf"{said}: NaN at 2 of 5 examples: constant map \(1, 4\)"):
        found = getattr(metrics, name)(net, given(flat), x, LABELS)
    assert found.eligible.tolist() == [True, False, True, True, False]
    np.testing.assert_array_equal(np.isnan(found.scores), ~found.eligible)


def test_an_output_that_never_moves_has_no_correlation(linear):
    _, x, maps = linear
    still = explainable(lambda x: jnp.zeros((len(x), 3)))
    with pytest.warns(UserWarning, match="output that does not move"):
        assert np.isnan(metrics.faithfulness_estimate(still, given(maps), x, LABELS).scores).all()


def test_bad_input_is_one_clear_line(linear, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    net, x, maps = linear
    parts = given(maps)
    for field, name, arguments in [
        ("maps", "deletion", {"method": given(np.where(maps > 1, np.nan, maps))}),
        ("labels", "deletion", {"labels": LABELS[:2]}),
        ("labels", "deletion", {"labels": LABELS + 3}),
        ("x", "deletion", {"x": x[..., 0]}),
        ("x", "deletion", {"x": jnp.ones((5, 4, 6, 2), jnp.int32)}),
        ("fraction", "pixel_flipping", {"fraction": 1.5}),
        ("steps", "pixel_flipping", {"steps": 0}),
        ("baseline", "pixel_flipping", {"baseline": "black"}),
        ("baseline", "pixel_flipping", {"baseline": [1.0, 2.0, 3.0]}),
        ("baseline", "pixel_flipping", {"baseline": np.nan}),
        ("max_bytes", "pixel_flipping", {"max_bytes": 0}),
        ("side", "selectivity", {"side": 5}),
        ("segments", "irof", {"segments": np.zeros((3, 3), int)}),
        ("segments", "irof", {"segments": np.zeros((4, 6))}),
        ("fractions", "road", {"fractions": [0.5, 1.0]}),
        ("fractions", "road", {"fractions": [0.5, 0.2]}),
        ("noise", "road", {"noise": -1}),
        ("subset", "faithfulness_correlation", {"subset": 1.0}),
        ("subset", "faithfulness_correlation", {"subset": "half"}),
        ("key", "faithfulness_correlation", {"key": 0}),
        ("samples", "faithfulness_correlation", {"samples": 0}),
        ("samples", "infidelity", {"samples": 0}),
        ("threshold", "sufficiency", {"threshold": -1}),
        ("epsilon", "non_sensitivity", {"epsilon": -1}),
    ]:
        with pytest.raises(ValueError, match=rf"\A{field}: got [^\n]*\Z"):
            getattr(metrics, name)(net, **{"method": parts, "x": x, "labels": LABELS} | arguments)


def test_float64_stays(linear):
    net, x, _ = linear
    with jax.enable_x64(True):
        wide = explainable(predict, jnp.asarray(net.variables, float), probability="sigmoid")
        found = metrics.faithfulness_estimate(wide, input_x_gradient, jnp.asarray(x, float), LABELS, score="logit")
        np.testing.assert_allclose(found.scores, 1, atol=1e-12)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            metrics.road(wide, input_x_gradient, jnp.asarray(x, float), LABELS)
