"""Distillation: merging, its loss, levels of abstraction, sets as files, baselines, gradient matching; bad input."""

from functools import partial

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest
from matplotlib.figure import Figure

from jaxinterp import decompose, explainable
from jaxinterp.data import load
from jaxinterp.errors import DataError
from jaxinterp.files import write_arrays
from jaxinterp.taylor import TaylorNet, hierarchical
from jaxinterp.taylor.distill import (
    DistillationNet,
    Distiller,
    ImageSet,
    SimilarityLoss,
    best_levels,
    class_means,
    condense,
    contact_sheet,
    distill,
    k_means,
    nearest_reference,
    random_references,
    read_set,
    train_on,
    write_set,
)
from jaxinterp.taylor.distill.condense import gradient_distance
from jaxinterp.taylor.distill.flow import accuracies, fixed_point_error, reference_indices, scores

CLASSES = 3
MODEL = Distiller(embedding=TaylorNet(levels=hierarchical((2, 3)), classes=CLASSES), classes=CLASSES, group=2, width=2)
LABELS = np.tile(np.arange(CLASSES), 6).astype(np.int32)
IMAGES = np.asarray(jax.random.uniform(jax.random.key(0), (18, 4, 4, 1)))
IMAGES = (IMAGES / 2 + LABELS[:, None, None, None] / 8).astype(np.float32)


@pytest.fixture(scope="module")
def initial():
    """Initial variables of the model."""
    return jax.jit(MODEL.init)(jax.random.key(1), IMAGES[:2])


@pytest.fixture(scope="module")
def variables(initial):
    """Variables of the model, every leaf off its initial value."""
    rng = np.random.default_rng(2)
    return jax.tree.map(lambda leaf: leaf + jnp.asarray(rng.uniform(0, 0.1, leaf.shape), leaf.dtype), initial)


def test_merging_starts_as_the_mean_and_does_not_depend_on_the_order(initial, variables):
    groups = jnp.asarray(IMAGES).reshape(9, 2, 4, 4, 1)
    merge = jax.jit(partial(MODEL.apply, method="merge_groups"))
    np.testing.assert_allclose(merge(initial, groups), groups.mean(1), atol=1e-6)
    np.testing.assert_allclose(merge(variables, groups), merge(variables, groups[:, ::-1]), atol=1e-6)
    assert float(jnp.abs(merge(variables, groups) - groups.mean(1)).max()) > 1e-2
    assert fixed_point_error(MODEL, initial, IMAGES[:3]) < 1e-6 < fixed_point_error(MODEL, variables, IMAGES[:3])


def test_logits_are_cosines_and_decompose_exactly(variables):
    x = jnp.asarray(IMAGES[:4])
    embed = jax.jit(partial(MODEL.apply, method="embed"))
    queries, known = embed(variables, x), embed(variables, variables["batch_stats"]["references"])
    np.testing.assert_allclose((queries**2).sum(1), 1, rtol=1e-5)
    tau = float(jnp.exp(variables["params"]["log_tau"]))
    logits = jax.jit(MODEL.apply)(variables, x)
    np.testing.assert_allclose(logits, tau * queries @ known.T, rtol=1e-4, atol=1e-5)
    parts = decompose(explainable(MODEL, variables), x)
    np.testing.assert_allclose(parts.logits, logits, rtol=1e-4, atol=1e-4)
    assert float(jnp.abs(parts.residual).max()) < 1e-4 * float(jnp.abs(parts.logits).max())


def test_scores_are_the_mean_over_references_within_the_logarithm():
    q, r = np.array([[1.0, 0.0]], np.float32), np.array([[[1, 0], [0, 1]], [[0, 1], [0, 1]]], np.float32)
    expected = [np.log((np.exp(2) + 1) / 2), 0.0]
    np.testing.assert_allclose(
        scores(jnp.asarray(q), jnp.asarray(r), jnp.float32(2.0))[0], expected, rtol=1e-5, atol=1e-6
    )


def test_references_of_a_batch_are_of_their_class():
    labels = jnp.array([2, 0, 2, 1, 0, 2, 1], jnp.int32)
    places = np.asarray(reference_indices(labels, 3, 2))
    assert places.tolist() == [[1, 4], [3, 6], [0, 2]]
    few = np.asarray(reference_indices(jnp.array([0, 1, 0], jnp.int32), 2, 2))
    assert few.tolist() == [[0, 2], [1, 1]]


@pytest.mark.slow
def test_the_loss_is_the_mean_cross_entropy_of_all_levels(variables):
    loss = SimilarityLoss(MODEL, levels=1, fidelity=3.0)
    batch = {"image": jnp.asarray(IMAGES), "label": jnp.asarray(LABELS)}
    total, (stats, metrics) = jax.jit(loss)(variables["params"], variables["batch_stats"], batch, jax.random.key(0))
    embed = partial(MODEL.apply, variables, method="embed")
    places = np.array([[0, 3], [1, 4], [2, 5]])
    queries = embed(batch["image"][6:])
    merged = MODEL.apply(variables, batch["image"][places], method="merge_groups")
    tau, expected = jnp.exp(variables["params"]["log_tau"]), []
    for references in (batch["image"][places.ravel()], merged):
        known = embed(references).reshape(CLASSES, -1, queries.shape[1])
        logits = scores(queries, known, tau)
        expected.append(optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"][6:]).mean())
    deviation = ((merged - batch["image"][places].mean(1)) ** 2).mean()
    assert float(total) == pytest.approx(float(sum(expected) / 2 + 3 * deviation), rel=1e-4)
    assert float(metrics["accuracy"]) == pytest.approx(float((logits.argmax(1) == batch["label"][6:]).mean()))
    np.testing.assert_allclose(stats["references"], merged, atol=1e-6)


def test_a_class_that_is_not_in_the_batch_is_left_out(variables):
    kept = LABELS != 2
    loss = SimilarityLoss(MODEL, levels=1)
    batch = {"image": jnp.asarray(IMAGES[kept]), "label": jnp.asarray(LABELS[kept])}
    total, _ = jax.jit(loss)(variables["params"], variables["batch_stats"], batch, jax.random.key(0))
    two = Distiller(embedding=MODEL.embedding, classes=2, group=2, width=2)
    stats = {**variables["batch_stats"], "references": variables["batch_stats"]["references"][:2]}
    expected, _ = jax.jit(SimilarityLoss(two, levels=1))(variables["params"], stats, batch, jax.random.key(0))
    assert float(total) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.slow
def test_merging_computes_in_bfloat16_and_answers_in_float32(variables):
    half = MODEL.clone(dtype=jnp.bfloat16)
    groups = jnp.asarray(IMAGES).reshape(9, 2, 4, 4, 1)
    merged = half.apply(variables, groups, method="merge_groups")
    assert merged.dtype == jnp.float32
    np.testing.assert_allclose(merged, MODEL.apply(variables, groups, method="merge_groups"), atol=0.05)


def test_levels_are_merged_groups_of_one_class(variables):
    levels = distill(MODEL, variables, IMAGES, LABELS, 2, seed=3, batch=4, provenance={"source": "here"})
    assert [len(one.labels) for one in levels] == [12, 6, 3]
    assert best_levels(LABELS, CLASSES, 2) == 2
    for k in (1, 2):
        groups = jnp.asarray(levels[k - 1].images).reshape(-1, 2, 4, 4, 1)
        np.testing.assert_allclose(levels[k].images, MODEL.apply(variables, groups, method="merge_groups"), atol=1e-6)
    rows = {row.tobytes() for row in IMAGES[LABELS == 1]}
    assert {row.tobytes() for row in levels[0].images[levels[0].labels == 1]} <= rows
    assert levels[2].provenance["source"] == "here"


def test_accuracies_by_one_by_the_nearest_and_by_the_mean():
    queries = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    references = np.array([[[1.0, 0.0], [-0.6, 0.1]], [[0.1, 0.5], [0.1, 0.5]]])
    one, nearest, mean = accuracies(queries, np.array([0, 0, 1, 0]), references, draws=400)
    assert one == pytest.approx(0.25 + 0.5 / 2, abs=0.05)  # the class' second reference is nearly its opposite
    assert (nearest, mean) == (0.75, 0.75)


def test_a_set_is_written_read_and_made_a_data_set(tmp_path):
    few = ImageSet(IMAGES[:3], LABELS[:3], 2, {"method": "mine"})
    write_set(tmp_path / "set.npz", few)
    again = read_set(tmp_path / "set.npz")
    np.testing.assert_array_equal(again.images, few.images)
    assert (again.labels.tolist(), again.level, dict(again.provenance)) == ([0, 1, 2], 2, {"method": "mine"})
    data = again.dataset("tiny", "abc")
    np.testing.assert_allclose(data.images / 255, few.images, atol=0.5 / 255)
    with pytest.raises(DataError, match="tiny: got a distilled image of class 2, expected 2 classes"):
        again.dataset("tiny", "ab")


def test_a_damaged_file_raises_in_one_line(tmp_path):
    arrays = {
        "images": IMAGES[:3],
        "labels": LABELS[:3],
        "level": np.array(1),
        "keys": np.array([]),
        "values": np.array([]),
    }
    write_set(tmp_path / "set.npz", ImageSet(IMAGES[:3], LABELS[:3]))
    (tmp_path / "torn.npz").write_bytes((tmp_path / "set.npz").read_bytes()[:200])
    write_arrays(tmp_path / "bright.npz", {**arrays, "images": 2 * IMAGES[:3] + 1})
    write_arrays(tmp_path / "empty.npz", {**arrays, "images": IMAGES[:0], "labels": LABELS[:0]})
    write_arrays(tmp_path / "unlabeled.npz", {**arrays, "labels": LABELS[:2]})
    for name in ("torn", "none", "bright", "empty", "unlabeled"):
        with pytest.raises(DataError, match=f"{name}.npz: not a set of distilled images") as error:
            read_set(tmp_path / f"{name}.npz")
        if name != "unlabeled":  # its arrays do not fit the annotations, which the tests check
            assert "\n" not in str(error.value)


def test_a_sheet_has_a_row_for_each_class():
    levels = [ImageSet(IMAGES, LABELS), ImageSet(IMAGES[:3], LABELS[:3], 1)]
    figure = contact_sheet(levels, "abc", columns=4)
    assert isinstance(figure, Figure)
    assert len(figure.axes) == 3 * 3
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), IMAGES[LABELS == 0][0, ..., 0])


def test_plain_peers_are_means_random_images_and_centers():
    means = class_means(IMAGES, LABELS, CLASSES)
    np.testing.assert_allclose(means.images[1], IMAGES[LABELS == 1].mean(0), rtol=1e-5)
    drawn = random_references(IMAGES, LABELS, CLASSES, 2, seed=1)
    assert drawn.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert all(
        (row == IMAGES[c == LABELS]).all((1, 2, 3)).any() for row, c in zip(drawn.images, drawn.labels, strict=True)
    )
    np.testing.assert_allclose(k_means(IMAGES, LABELS, CLASSES, 1).images, means.images, rtol=1e-4)
    assert nearest_reference(IMAGES.reshape(18, -1), drawn.images.reshape(6, -1), drawn.labels).shape == (18,)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: random_references(IMAGES, LABELS, CLASSES, 7), "count"),
        (lambda: random_references(IMAGES, LABELS, CLASSES, 0), "count"),
        (lambda: k_means(IMAGES, LABELS + 1, CLASSES, 1), "labels"),
        (lambda: class_means(IMAGES, LABELS, 4), "count"),
        (lambda: nearest_reference(np.ones((1, 2)), np.ones((1, 3)), np.zeros(1, int)), "references"),
        (lambda: nearest_reference(np.ones((1, 2)), np.ones((2, 2)), np.zeros(1, int)), "labels"),
        (lambda: condense(IMAGES, LABELS, CLASSES, 1, jax.random.key(0), depth=9), "depth"),
        (lambda: condense(255 * IMAGES, LABELS, CLASSES, 1, jax.random.key(0), depth=1), "images"),
        (lambda: condense(IMAGES, LABELS, CLASSES, 1, jax.random.key(0), depth=1, iterations=-1), "iterations"),
        (lambda: contact_sheet([], "abc"), "levels, classes"),
        (lambda: distill(MODEL, {}, IMAGES, LABELS, 0), "levels"),
        (lambda: distill(MODEL, {}, IMAGES, LABELS, 3), "levels"),
        (lambda: distill(MODEL, {}, 3 * IMAGES, LABELS, 1), "images"),
        (lambda: distill(MODEL, {}, IMAGES, LABELS - 1, 1), "labels"),
        (lambda: distill(MODEL, {}, IMAGES, LABELS[:9], 1), "labels"),
        (lambda: MODEL.clone(group=1).init(jax.random.key(0), jnp.asarray(IMAGES[:1])), "group"),
        (lambda: best_levels(LABELS, CLASSES, 1), "group"),
        (lambda: ImageSet(9 * IMAGES[:3], LABELS[:3]), "images"),
        (lambda: ImageSet(IMAGES[:3, ..., 0], LABELS[:3]), "images"),
        (lambda: ImageSet(IMAGES[:3], LABELS[:3] - 1), "labels"),
        (lambda: ImageSet(IMAGES[:4], LABELS[:3]), "labels"),
        (lambda: ImageSet(IMAGES[:0], LABELS[:0]), "labels"),
    ],
)
def test_bad_input_raises_in_one_line(call, name, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=f"^{name}: got") as error:
        call()
    assert "\n" not in str(error.value)


def test_gradient_distance_is_one_minus_the_cosine_of_every_output():
    a = {"kernel": jnp.array([[1.0, 0.0], [0.0, 2.0]]), "bias": jnp.ones(2)}
    b = {"kernel": jnp.array([[2.0, 0.0], [0.0, -1.0]]), "bias": -jnp.ones(2)}
    assert float(gradient_distance(a, b)) == pytest.approx(0 + 2, abs=1e-6)


@pytest.mark.slow
def test_condensing_lowers_the_distance_of_gradients_and_its_images_can_be_trained_on():
    key, digits = jax.random.key(0), load("digits", "train")
    known = digits.labels < CLASSES
    images, labels = (digits.images[known] / 16).astype(np.float32), digits.labels[known]
    few = condense(images, labels, CLASSES, 1, key, iterations=40, batch=32, width=4, depth=2)
    start = random_references(images, labels, CLASSES, 1, int(few.provenance["seed"]))
    assert few.labels.tolist() == [0, 1, 2]
    mean, std, net = float(images.mean()), float(images.std()), DistillationNet(CLASSES, 4, 2)

    @jax.jit
    def distance(one, key):
        params = net.init(key, one[:1])["params"]

        def gradient(x, y):
            def loss(p):
                return optax.softmax_cross_entropy_with_integer_labels(net.apply({"params": p}, x), y).mean()

            return jax.grad(loss)(params)

        parts = [
            gradient_distance(
                gradient((one[c : c + 1] - mean) / std, jnp.array([c])),
                gradient((jnp.asarray(images[c == labels]) - mean) / std, jnp.full((c == labels).sum(), c)),
            )
            for c in range(CLASSES)
        ]
        return sum(parts, jnp.float32(0))

    keys = jax.random.split(jax.random.key(9), 6)
    before, after = (np.mean([float(distance(jnp.asarray(x.images), k)) for k in keys]) for x in (start, few))
    assert after < 0.8 * before
    assert train_on(few, images, labels, CLASSES, key, steps=60, width=4, depth=2, shift=0, learning_rate=0.05) > 0.5
