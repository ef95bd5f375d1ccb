import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from jaxinterp.explain import metrics
from jaxinterp.explain.attribute import grad_cam, input_x_gradient
from jaxinterp.explain.attribution import Attribution
from jaxinterp.explain.decompose import decompose
from jaxinterp.explain.explainable import Explainable, explainable
from jaxinterp.explain.metrics import Grids, grid_pointing_game, grid_pointing_scores, sample_grids, tile_grid


@pytest.fixture
def predictions():
    """600 images of 10 classes, some predicted wrong, some right without confidence."""
    rng = np.random.RandomState(0)
    labels = rng.randint(0, 10, 600)
    logits = rng.normal(-3, 1, (600, 10)).astype(np.float32)
    logits[np.arange(600), labels] += rng.normal(4, 2, 600)
    return logits, labels


def cell_maps(n, height, width, value):
    """For each cell of a grid, a map that is `value(is own cell)` at every pixel."""
    maps = np.zeros((1, n * n, n * height, n * width), np.float32)
    for k in range(n * n):
        row, column = k % n, k // n
        own = np.zeros(maps.shape[2:], bool)
        own[row * height : (row + 1) * height, column * width : (column + 1) * width] = True
        maps[0, k] = np.where(own, *value)
    return jnp.asarray(maps)


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize(
    ("value", "expected"),
    [((1, 0), 1.0), ((0, 1), 0.0), ((1, 1), None), ((-1, -2), 0.0), ((3, -5), 1.0), ((0, 0), 0.0)],
)
def test_closed_forms(n, value, expected):
    scores = grid_pointing_scores(cell_maps(n, 4, 5, value))
    np.testing.assert_allclose(scores, np.full((1, n * n), 1 / n**2 if expected is None else expected), rtol=1e-6)


def test_random_maps_score_chance():
    maps = jax.random.normal(jax.random.key(0), (4, 9, 30, 30))
    assert float(grid_pointing_scores(maps).mean()) == pytest.approx(1 / 9, rel=0.02)


def test_tiling_is_column_major_at_full_resolution():
    images = jax.random.uniform(jax.random.key(0), (2, 9, 4, 5, 3))
    mosaic = tile_grid(images)
    assert mosaic.shape == (2, 12, 15, 3)
    for k in range(9):
        row, column = k % 3, k // 3
        cell = mosaic[:, 4 * row : 4 * row + 4, 5 * column : 5 * column + 5]
        np.testing.assert_array_equal(cell, images[:, k])


def confident(logits, labels):
    own = logits[np.arange(len(labels)), labels]
    return (logits.argmax(1) == labels) & (own > 0), own


@pytest.mark.parametrize("n", [2, 3])
def test_aligned_grids_hold_the_most_confident_right_images_once(predictions, n):
    logits, labels = predictions
    grids = sample_grids(logits, labels, n=n, key=jax.random.key(3))
    eligible, own = confident(logits, labels)
    assert grids.eligible == eligible.sum()
    assert eligible[grids.images].all()
    assert len(np.unique(grids.images)) == grids.images.size
    np.testing.assert_array_equal(labels[grids.images], grids.classes)
    assert all(len(set(row)) == n * n for row in grids.classes)
    for c in range(10):  # each class in the order of its confidence, from the top
        used = grids.images[grids.classes == c]
        best = np.flatnonzero(eligible & (labels == c))
        np.testing.assert_array_equal(used, best[np.argsort(-own[best])][: len(used)])
    # The draw ends only when fewer than n² classes have images left.
    left = [(eligible & (labels == c)).sum() - (grids.classes == c).sum() for c in range(10)]
    assert sum(count > 0 for count in left) < n * n


def test_draws_depend_on_the_key_only(predictions):
    one, same, other = (sample_grids(*predictions, key=jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.images, same.images)
    assert (one.images[:3] != other.images[:3]).any()
    few = sample_grids(*predictions, count=4, key=jax.random.key(1))
    np.testing.assert_array_equal(few.images, one.images[:4])


def naive_compat(logits, labels, cells, count):
    """The authors' procedure as their text and code have it: queues, a list of draws, an offset one too long."""
    queues = {c: [] for c in range(10)}
    for i, (row, label) in enumerate(zip(logits, labels, strict=True)):
        if row.argmax() == label:
            queues[label].append((i, row[label]))
    queues = {c: sorted(queue, key=lambda item: item[1], reverse=True) for c, queue in queues.items()}
    position, entries = dict.fromkeys(range(10), 0), []
    rng = np.random.RandomState(42)

    def alive():
        return np.array([position[c] < len(q) and q[position[c]][1] > 0 for c, q in queues.items()])

    while alive().sum() > cells:
        for c in rng.choice(np.arange(10)[alive()], size=cells, replace=False):
            entries.append(queues[c][position[c]][0])
            position[c] += 1
    grids, offset = [], 0
    while len(grids) < count:
        grid, classes, i = [], [], 0
        while len(grid) < cells:
            if offset + i == len(entries):
                return grids
            image = entries[offset + i]
            i += 1
            if labels[image] not in classes:
                grid.append(image)
                classes.append(labels[image])
        grids.append(grid)
        offset += i + 1
    return grids


@pytest.mark.parametrize("n", [2, 3])
def test_compat_grids_are_the_authors_procedure(predictions, n):
    logits, labels = predictions
    grids = sample_grids(logits, labels, n=n, count=20, sampler="compat")
    np.testing.assert_array_equal(grids.images, naive_compat(logits, labels, n * n, 20))
    assert all(len(set(row)) == n * n for row in grids.classes)
    aligned = sample_grids(logits, labels, n=n, count=len(grids.images), key=jax.random.key(0))
    own = confident(logits, labels)[1]
    # The skipped entries reach further into less confident images.
    assert own[grids.images].mean() < own[aligned.images].mean()


def test_a_linear_network_localizes_perfectly_and_the_score_uses_raw_sums():
    images = jnp.eye(4)[:, None, None, :] * jnp.ones((4, 2, 2, 4))  # class c lights channel c only
    grids = Grids(np.array([[2, 0, 3, 1], [0, 1, 2, 3]], np.int32), np.array([[2, 0, 3, 1], [0, 1, 2, 3]], np.int32), 4)

    def apply(scale, x):
        return scale * x.sum((1, 2))

    net = explainable(apply, jnp.float32(2))
    for method in (input_x_gradient, decompose):
        found = grid_pointing_game(net, method, images, grids=grids)
        np.testing.assert_array_equal(found.scores, np.ones((2, 4)))
        assert (found.mean, found.quartiles, found.images) == (1.0, (1.0, 1.0, 1.0), 4)
    tiled = grid_pointing_game(net, input_x_gradient, images, grids=grids, max_bytes=1)
    np.testing.assert_array_equal(tiled.scores, found.scores)


def test_grids_are_drawn_of_labels():
    images = jnp.eye(4)[jnp.arange(12) % 4][:, None, None, :] * jnp.ones((12, 2, 2, 4)) * 9
    labels, key = np.arange(12) % 4, jax.random.key(5)
    net = explainable(lambda x: x.mean((1, 2)))
    found = grid_pointing_game(net, input_x_gradient, images, labels, n=2, count=2, key=key)
    assert found.scores.shape == (2, 4)
    assert (found.mean, found.images) == (1.0, 12)
    logits = net.log_odds(np.asarray(net.logits(images)))
    grids = sample_grids(logits, labels, n=2, count=2, key=key)
    again = grid_pointing_game(net, input_x_gradient, images, grids=grids)
    np.testing.assert_array_equal(again.scores, found.scores)
    wrong = np.where(labels == 3, 2, labels)  # images of class 3 are then none that is right
    with pytest.raises(ValueError, match=r"\Alogits: got 9 images of 3 classes"):
        grid_pointing_game(net, input_x_gradient, images, wrong, n=2)


def test_a_zero_map_in_a_grid_is_not_eligible():
    images = jnp.eye(4)[:, None, None, :] * jnp.ones((4, 2, 2, 4))
    grids = Grids(np.array([[0, 1, 2, 3]], np.int32), np.array([[0, 1, 2, 3]], np.int32), 4)
    net = explainable(lambda w, x: (x * w).sum((1, 2)), jnp.array([[[[1.0, -1, 0, 1]]]]))
    with pytest.warns(UserWarning, match=r"^grid_pointing_game: NaN at 1 of 4 examples: zero map \(2\)"):
        found = grid_pointing_game(net, input_x_gradient, images, grids=grids)
    np.testing.assert_array_equal(found.scores, [[1, 0, np.nan, 1]])
    assert found.eligible.tolist() == [[True, True, False, True]]
    assert (found.mean, found.quartiles[1]) == (pytest.approx(2 / 3), 1)


def test_images_of_which_grids_are_drawn_run_within_the_budget(monkeypatch):
    images = jnp.eye(4)[jnp.arange(12) % 4][:, None, None, :] * jnp.ones((12, 2, 2, 4)) * 9
    sizes, logits = set(), Explainable.logits
    monkeypatch.setattr(Explainable, "logits", lambda net, x: (sizes.add(len(x)), logits(net, x))[1])
    net = explainable(lambda x: x.mean((1, 2)))
    few, all_ = (
        grid_pointing_game(net, input_x_gradient, images, np.arange(12) % 4, n=2, count=2, max_bytes=size)
        for size in (1, 1 << 20)
    )
    np.testing.assert_array_equal(few.scores, all_.scores)
    assert {1, 12} <= sizes


def test_a_network_of_one_image_size_is_given_small_grids():
    images = jnp.eye(4)[:, None, None, :] * jnp.ones((4, 4, 4, 4))
    grids = Grids(np.array([[0, 1, 2, 3]], np.int32), np.array([[0, 1, 2, 3]], np.int32), 4)
    weights = jnp.eye(4)[None].repeat(16, 0).reshape(64, 4)
    net = explainable(lambda w, x: x.reshape(len(x), 64) @ w, weights)
    with pytest.warns(UserWarning, match=r"\Anet: cannot read grids of 8x8 pixels; .* 4x4"):
        found = grid_pointing_game(net, input_x_gradient, images, grids=grids)
    assert 0.8 < found.mean < 1  # but for the cells' borders, across which the small grid is interpolated


def test_the_second_call_compiles_nothing(compilations):
    images = jax.random.uniform(jax.random.key(0), (8, 2, 3, 1))
    first, second = (np.arange(8, dtype=np.int32).reshape(2, 4)[::step] for step in (1, -1))
    net = explainable(lambda x: 1.125 * x.sum(1)[:, :4, 0])
    with compilations() as programs:
        grid_pointing_game(net, input_x_gradient, images, grids=Grids(first, first % 4, 8), max_bytes=1)
    assert programs != []
    with compilations() as programs:
        grid_pointing_game(net, input_x_gradient, images, grids=Grids(second, second % 4, 8), max_bytes=1)
    assert programs == []


def test_low_resolution_maps_are_upsampled():
    grids = Grids(np.array([[0, 1, 2, 3]], np.int32), np.array([[0, 1, 2, 3]], np.int32), 4)
    coarse = jnp.zeros((1, 4, 2, 2)).at[0, jnp.arange(4), jnp.array([0, 1, 0, 1]), jnp.array([0, 0, 1, 1])].set(1)
    images = jnp.ones((4, 8, 8, 1))
    net = explainable(lambda x: x.sum((1, 2)))

    def method(net, x, targets):
        return Attribution(coarse[..., None], jnp.zeros((1, 4)), targets)

    sharp = grid_pointing_game(net, method, images, grids=grids)
    np.testing.assert_allclose(sharp.scores, np.ones((1, 4)))
    smooth = grid_pointing_game(net, method, images, grids=grids, upsample="linear")
    assert 0.25 < smooth.mean < 1


def test_bad_input_is_one_clear_line(predictions, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    logits, labels = predictions
    with pytest.raises(ValueError, match="logits: got 0 images"):
        sample_grids(logits - 100, labels, key=jax.random.key(0))
    for field, value in (("n", 2.5), ("count", "all"), ("confidence", "high")):
        with pytest.raises(ValueError, match=rf"\A{field}: got {value}, expected [^\n]*\Z"):
            sample_grids(logits, labels, key=jax.random.key(0), **{field: value})
    with pytest.raises(ValueError, match="labels"):
        sample_grids(logits, labels + 1, key=jax.random.key(0))
    with pytest.raises(ValueError, match="logits"):
        sample_grids(np.where(np.arange(600)[:, None] == 7, np.nan, logits), labels, key=jax.random.key(0))
    with pytest.raises(ValueError, match="key"):
        sample_grids(logits, labels)
    with pytest.raises(ValueError, match="cells"):
        tile_grid(jnp.ones((1, 3, 2, 2, 1)))
    with pytest.raises(ValueError, match="maps"):
        grid_pointing_scores(jnp.ones((1, 4, 3, 4)))
    net, images = explainable(lambda x: x.sum((1, 2))), jnp.ones((4, 2, 2, 4))
    grids = Grids(np.array([[0, 1, 2, 3]], np.int32), np.array([[0, 1, 2, 3]], np.int32), 4)
    for field, arguments in [
        ("labels, grids", {}),
        ("labels, grids", {"labels": np.arange(4), "grids": grids}),
        ("x", {"x": images[0], "grids": grids}),
        ("method", {"method": lambda net, x, targets: x, "grids": grids}),
        ("method", {"method": lambda net, x, targets: input_x_gradient(net, x, 0), "grids": grids}),
        ("layer", {"method": grad_cam, "grids": grids}),
        ("grids", {"grids": grids._replace(images=grids.images + 1)}),
        ("grids", {"grids": grids._replace(images=grids.images - 1)}),
    ]:
        with pytest.raises(ValueError, match=rf"\A{field}: got .*\Z"):
            grid_pointing_game(net, **{"method": input_x_gradient, "x": images, **arguments})


MASKED = {
    "pointing_game": {},
    "relevance_mass_accuracy": {},
    "attribution_localization": {"weighted": True},
    "top_k_intersection": {"k": 6},
    "relevance_rank_accuracy": {},
    "localization_auc": {},
}


@pytest.fixture
def masked():
    """Maps of one decimal, with ties, and masks of some pixels."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((6, 5, 4)).round(1), rng.random((6, 5, 4)) < 0.4


def by_mask(name, maps, mask, **keywords):
    parts = Attribution(
        jnp.asarray(maps, jnp.float32)[:, None, ..., None], jnp.zeros((len(maps), 1)), jnp.zeros((len(maps), 1), int)
    )
    x = jnp.zeros((len(maps), *mask.shape[1:], 1))
    return getattr(metrics, name)(None, parts, x, np.zeros(len(maps), int), mask, **keywords)


def test_masked_metrics_are_those_of_loops(masked):
    want = {name: [] for name in MASKED}
    for a, on in zip(*masked, strict=True):
        order, positive = np.argsort(-a.ravel(), kind="stable"), np.maximum(a, 0)
        want["pointing_game"].append(float(on[a == a.max()].any()))
        want["relevance_mass_accuracy"].append(positive[on].sum() / positive.sum())
        want["attribution_localization"].append(want["relevance_mass_accuracy"][-1] * 20 / on.sum())
        want["top_k_intersection"].append(on.ravel()[order[:6]].mean())
        want["relevance_rank_accuracy"].append(on.ravel()[order[: on.sum()]].mean())
        pairs = a[on][:, None] - a[~on].round(1)
        want["localization_auc"].append(((pairs > 1e-6) + 0.5 * (abs(pairs) <= 1e-6)).mean())
    for name, keywords in MASKED.items():
        found = by_mask(name, *masked, **keywords)
        np.testing.assert_allclose(found.scores, want[name], rtol=1e-5, err_msg=name)
        assert found.eligible.all()


def test_variants_of_masked_metrics(masked):
    maps, mask = masked
    for part, mass in (("absolute", abs(maps)), ("signed", maps)):
        want = (mass * mask).sum((1, 2)) / mass.sum((1, 2))
        np.testing.assert_allclose(by_mask("relevance_mass_accuracy", maps, mask, part=part).scores, want, rtol=1e-3)
    plain, shared = (by_mask("top_k_intersection", maps, mask, k=6, concept_influence=c).scores for c in (False, True))
    np.testing.assert_allclose(shared, plain / mask.mean((1, 2)), rtol=1e-5)
    np.testing.assert_allclose(
        by_mask("localization_auc", maps, mask, absolute=True).scores,
        by_mask("localization_auc", abs(maps), mask).scores,
    )
    one, far = np.zeros((1, 5, 5)), np.zeros((1, 5, 5), bool)
    one[0, 0, 0] = far[0, 2, 2] = 1
    hits = [by_mask("pointing_game", one, far, tolerance=t).scores.item() for t in (0, 2.8, 2.9)]
    assert hits == [0, 0, 1]
    small = by_mask("relevance_mass_accuracy", np.array([[[1.0, 3.0]]]), np.array([[[True, True, False, False]] * 2]))
    assert small.scores.tolist() == [0.25]  # maps are enlarged to the masks


@pytest.mark.parametrize("name", MASKED)
def test_masks_that_hold_nothing_and_constant_maps_are_named(name, masked):
    maps, mask = masked
    maps[0], mask[2] = 0, False
    with pytest.warns(UserWarning, match=rf"{name}: NaN at 2 of 6 examples: .*\(0\).*\(2\)|\(2\).*\(0\)"):
        found = by_mask(name, maps, mask, **MASKED[name])
    assert np.isnan(found.scores).tolist() == [True, False, True, False, False, False]
    if name == "localization_auc":
        mask[2] = True
        with pytest.warns(UserWarning, match=r"full mask \(2\)"):
            by_mask(name, maps, mask)


@pytest.mark.parametrize("name", MASKED)
def test_masked_metrics_of_bad_input_and_of_a_second_call(name, masked, compilations):
    maps, mask = masked
    by_mask(name, maps, mask, **MASKED[name])
    with compilations() as second:
        by_mask(name, 2 * maps, ~mask, **MASKED[name])
    assert second == []
    for wrong in (mask[:2], mask[..., None], mask.astype(int)):
        x = jnp.zeros((6, 5, 4, 1))
        parts = Attribution(x[:, None], jnp.zeros((6, 1)), jnp.zeros((6, 1), int))
        with pytest.raises(ValueError, match=r"\Amask: got [^\n]*\Z"):
            getattr(metrics, name)(None, parts, x, np.zeros(6, int), wrong)
    for field, keywords in (("k", {"k": 21}), ("k", {"k": 0})) if name == "top_k_intersection" else ():
        with pytest.raises(ValueError, match=rf"\A{field}: got [^\n]*\Z"):
            by_mask(name, maps, mask, **keywords)


def test_eligibility_is_by_the_networks_own_probability():
    """Two large logits: each sure as a sigmoid, neither as a softmax."""
    x = jnp.array([[4.0, 3.9, -9], [-9, 4, 3.9], [3.9, -9, 4]]).reshape(3, 1, 1, 3)
    x = jnp.concatenate([x, jnp.eye(3).reshape(3, 1, 1, 3) * 9])
    labels = np.array([0, 1, 2, 0, 1, 2])
    for probability, confidence, eligible in (("sigmoid", 0.6, 6), ("softmax", 0.6, 3), ("softmax", 0.5, 6)):
        net = explainable(lambda x: x.mean((1, 2)), probability=probability)
        found = grid_pointing_game(net, input_x_gradient, x, labels, n=1, confidence=confidence)
        assert found.images == eligible
    with pytest.raises(ValueError, match=r"\Aconfidence: got 1.5"):
        sample_grids(np.eye(4), np.arange(4), n=1, key=jax.random.key(0), confidence=1.5)
