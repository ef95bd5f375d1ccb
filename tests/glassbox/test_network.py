import json
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from jaxinterp.errors import CheckpointError, ConfigError
from jaxinterp.explain.decompose import decompose
from jaxinterp.explain.metrics.separability import separability
from jaxinterp.glassbox.classifier import (
    KINDS,
    AffinePCA,
    GlassBoxClassifier,
    check_training,
    pipeline,
    support_contributions,
)
from jaxinterp.glassbox.network import GlassBox, Orbit, OrbitRepresentation, choose_templates, orbit_kernel
from jaxinterp.symmetry.groups import dihedral, equivariance_error, invariance_error, rotations, scales, transform

SIDE, COMPONENTS = 6, 8


def bars(count, classes, seed=0):
    """Noisy bars of 1, 2, … pixels' width in one of four directions: classes that rotations keep."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    images = np.zeros((count, SIDE, SIDE, 1), np.float32)
    for image, label in zip(images, labels, strict=True):
        image[:, : label + 1] = 1.0
        image[:, :, 0] = np.rot90(image[:, :, 0], rng.integers(4))
    return ((images + rng.uniform(0, 0.3, images.shape)) / 1.3).astype(np.float32), labels


IMAGES, LABELS = bars(80, 2)
THREE = bars(90, 3)
X = jnp.asarray(IMAGES[:6])


def classifier(kind="lda", images=IMAGES, labels=LABELS, group=None, **fields):
    own = OrbitRepresentation(group or rotations(4), 10, ("sorted", "spectrum"), **fields)
    return GlassBoxClassifier(own, kind, COMPONENTS, equivariant_weight=0.5).fit(images, labels)


def test_responses_are_inner_products_with_turned_templates():
    templates = jax.random.uniform(jax.random.key(0), (3, SIDE, SIDE, 2))
    x = jax.random.uniform(jax.random.key(1), (2, SIDE, SIDE, 2))
    e = Orbit(rotations(4), 3).apply({"params": {"templates": templates}}, x)
    for g in range(4):
        for k, template in enumerate(np.asarray(templates)):
            turned = np.rot90(template, -g) - template.mean()
            want = np.einsum("nhwc,hwc->n", x, turned / np.linalg.norm(turned))
            np.testing.assert_allclose(e[:, g, k], want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("group", [rotations(4), dihedral(4)], ids=lambda g: g.name)
def test_equivariant_and_invariant_to_rounding_for_exact_groups(group):
    for dtype, bound in ((jnp.float32, 1e-5), (jnp.float64, 1e-12)):
        with jax.enable_x64(dtype == jnp.float64):
            x = jax.random.uniform(jax.random.key(3), X.shape, dtype)
            orbit = Orbit(group, 5, param_dtype=dtype)
            variables = jax.jit(orbit.init)(jax.random.key(0), x)
            assert equivariance_error(jax.jit(partial(orbit.apply, variables)), group, x, "orbit").max() < bound
            own = OrbitRepresentation(group, 5, ("mean", "max", "moments", "sorted"), param_dtype=dtype)
            variables = jax.jit(own.init)(jax.random.key(0), x)
            assert invariance_error(jax.jit(partial(own.apply, variables)), group, x).max() < bound


def test_interpolated_rotations_keep_the_law_to_a_few_percent():
    smooth = jax.scipy.signal.convolve(jnp.asarray(bars(6, 2)[0]), jnp.ones((1, 3, 3, 1)) / 9, mode="same")
    big = jax.image.resize(smooth, (6, 24, 24, 1), "linear")
    respond = jax.jit(partial(Orbit(rotations(8), 4).apply, {"params": {"templates": big[:4]}}))
    kernel = orbit_kernel(rotations(8), big[:4])
    assert kernel.shape == (24 * 24, 8, 4)
    np.testing.assert_allclose(jnp.linalg.norm(kernel, axis=0), 1.0, rtol=1e-4)
    np.testing.assert_allclose(kernel.reshape(24, 24, -1)[0, 0], 0.0)  # corners are cut off
    found = equivariance_error(respond, rotations(8), big, "orbit")
    assert 1e-4 < found.max() < 0.1
    assert invariance_error(respond, rotations(8), big)[1:].min() > 2 * found.max()


def test_blocks_say_where_features_lie():
    own = OrbitRepresentation(rotations(4), 3, ("sorted", "mean"), equivariant=True)
    features, variables = own.init_with_output(jax.random.key(0), X)
    assert own.blocks() == {"invariant": slice(0, 15), "equivariant": slice(15, 27)}
    assert features.shape == (6, 27)
    turned = own.apply(variables, transform(rotations(4), 1, X))
    np.testing.assert_allclose(turned[:, :15], features[:, :15], atol=1e-5)
    assert float(jnp.abs(turned[:, 15:] - features[:, 15:]).max()) > 0.1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("classes", [2, 3])
def test_every_classifier_learns_and_is_saved_without_pickle(kind, classes, tmp_path):
    fitted = classifier(kind, *(THREE if classes == 3 else (IMAGES, LABELS)))
    test, wanted = bars(60, classes, seed=5)
    turned = np.asarray(transform(rotations(4), 1, jnp.asarray(test)))
    assert fitted.accuracy(test, wanted) >= 0.9
    np.testing.assert_array_equal(fitted.predict(test), fitted.predict(turned))
    fitted.save(tmp_path / "saved")
    again = GlassBoxClassifier.load(tmp_path / "saved", rotations(4))
    np.testing.assert_array_equal(again.predict(test), fitted.predict(test))
    assert again.representation == fitted.representation
    with pytest.raises(CheckpointError, match="a classifier of the group C4, expected D4"):
        GlassBoxClassifier.load(tmp_path / "saved", dihedral(4))
    description = tmp_path / "saved/classifier.json"
    values = json.loads(description.read_text())
    for wrong in ({**values, "kind": "knn" if kind == "lda" else "lda"}, {**values, "color": 1}):
        description.write_text(json.dumps(wrong))
        with pytest.raises(CheckpointError, match="not a file of a saved classifier"):
            GlassBoxClassifier.load(tmp_path / "saved")
    description.write_text(json.dumps(values))
    (tmp_path / "saved/pipeline.skops").write_bytes(b"no zip")
    with pytest.raises(CheckpointError, match=r"pipeline\.skops: not a file of a saved classifier"):
        GlassBoxClassifier.load(tmp_path / "saved")


def test_no_more_components_are_kept_than_features_are_independent():
    twice = GlassBoxClassifier(OrbitRepresentation(rotations(4), 10, ("sorted", "mean")), "lda", 45)
    with pytest.raises(ValueError, match=r"components: got 45, expected at most 3\d, the rank of the features"):
        twice.fit(IMAGES, LABELS)


@pytest.mark.parametrize(("kind", "classes"), [("lda", 2), ("lda", 3), ("svm_linear", 2)])
@pytest.mark.parametrize("equivariant", [False, True])
def test_linear_classifiers_are_one_network_whose_logits_come_apart(kind, classes, equivariant):
    images, labels = THREE if classes == 3 else (IMAGES, LABELS)
    fitted = classifier(kind, images, labels, equivariant=equivariant)
    network, variables = fitted.network()
    logits = np.asarray(jax.jit(network.apply)(variables, X))
    scores = fitted.decision_function(IMAGES[:6])
    if classes == 2:
        np.testing.assert_allclose(logits[:, 1] - logits[:, 0], scores, rtol=1e-3, atol=1e-3)
    else:
        np.testing.assert_allclose(logits, scores, rtol=1e-3, atol=1e-3)

    def frozen(variables, x):
        return network.apply(variables, x, frozen=True)

    for at, shape in ((None, (SIDE, SIDE, 1)), ("representation/orbit", (4, 10))):
        parts = decompose(frozen, X, variables=variables, layer=at)
        assert parts.contributions.shape == (6, classes, *shape)
        np.testing.assert_allclose(parts.logits, logits, rtol=1e-4, atol=1e-4)
        assert float(jnp.abs(parts.residual).max()) < 1e-4 * float(jnp.abs(parts.logits).max())
        np.testing.assert_allclose(np.ptp(parts.bias, axis=0), 0.0, atol=1e-2)  # one constant for all images


@pytest.mark.parametrize("kind", ["svm_rbf", "svm_linear"])
def test_support_vectors_add_up_to_the_score(kind):
    fitted = classifier(kind)
    parts, places, constant = support_contributions(fitted, IMAGES[:6])
    np.testing.assert_allclose(parts.sum(1) + constant, fitted.decision_function(IMAGES[:6]), rtol=1e-4, atol=1e-5)
    assert set(places) <= set(range(len(IMAGES)))
    with pytest.raises(ValueError, match="classifier: got lda of 2 classes, expected an SVM of two"):
        support_contributions(classifier("lda"), IMAGES)


def test_standardizing_keeps_small_features_and_blocks_are_weighed_apart():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(200, 12)) * np.array([1e-2] * 4 + [1e3] * 8)
    labels = (features[:, 0] > 0).astype(int)
    blocks = {"invariant": slice(0, 4), "equivariant": slice(4, 12)}
    scaled = {}
    for weight in (1.0, 0.01):
        steps = pipeline("lda", blocks, 4, equivariant_weight=weight).fit(features, labels)
        z = steps["blocks"].transform(features)
        scaled[weight] = z.std(0)
        np.testing.assert_allclose((z[:, 4:] ** 2).sum() / (z[:, :4] ** 2).sum(), weight**2, rtol=1e-6)
    assert scaled[0.01][:4].min() > 1
    assert steps.score(features, labels) > 0.95  # PCA kept the small block


def test_features_that_are_rounding_are_left_out_of_the_network_too():
    fitted = classifier()
    same = fitted.transform(IMAGES)
    same[:, 3] = 1e-6 * np.random.default_rng(0).normal(size=len(same))
    again = fitted.fit_features(same, LABELS, fitted.templates)
    params = jax.tree.map(np.asarray, again.network()[1]["params"])
    assert params["standardize"]["scale"][3] == 0
    np.testing.assert_array_equal(params["reduction"]["kernel"][3], 0)
    z = (same - params["standardize"]["mean"]) * params["standardize"]["scale"]
    reduced = z @ params["reduction"]["kernel"] + params["reduction"]["bias"]
    np.testing.assert_allclose(reduced, again.fitted[:-1].transform(same), atol=1e-3)


def test_templates_are_balanced_and_drawn_from_the_images():
    chosen = choose_templates(*THREE, 7, seed=3)
    which = [int(np.flatnonzero((THREE[0] == t).all((1, 2, 3)))[0]) for t in chosen]
    assert [int(THREE[1][i]) for i in which] == [0, 1, 2, 0, 1, 2, 0]
    assert len(set(which)) == 7


def test_separability_by_hand():
    found = separability(np.array([[0.0, 0.0], [0.0, 2.0], [6.0, 1.0], [6.0, 1.0]]), np.array([3, 3, 8, 8]))
    np.testing.assert_allclose(found, (6.0, 0.5, 12.0))
    with pytest.raises(ValueError, match="features: got values NaN or infinite"):
        separability(np.full((4, 2), np.nan, np.float32), np.array([0, 0, 1, 1]))
    with pytest.raises(ValueError, match="labels: got 2 of 1 classes, expected 2 of at least two classes"):
        separability(np.zeros((2, 1)), np.array([1, 1]))


def test_affine_pca_measures_distances_from_subspaces():
    x = np.random.default_rng(0).normal(size=(40, 3)) @ np.diag([5.0, 1.0, 0.1])
    y = np.arange(40) % 2
    found = AffinePCA(2).fit(x, y)
    mean, axes = x[y == 1].mean(0), np.linalg.svd(x[y == 1] - x[y == 1].mean(0))[2][:2]
    apart = (x - mean) - (x - mean) @ axes.T @ axes
    np.testing.assert_allclose(found.distances(x)[:, 1], np.linalg.norm(apart, axis=1), atol=1e-6)


def test_a_group_that_leaves_the_grid_is_warned_of():
    with pytest.warns(UserWarning, match="group: C8 leaves the grid of 6x6 images"):
        classifier(group=rotations(8))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: check_training(IMAGES * np.nan, LABELS, 2), "images: got 2880 of 2880 values NaN or infinite"),
        (lambda: check_training(IMAGES, LABELS * 0, 2), r"labels: got one class only \(0\), expected at least two"),
        (lambda: check_training(IMAGES[:5], LABELS, 2), "labels: got 80, expected 5, one for every image"),
        (lambda: check_training(IMAGES, LABELS, 99), "components: got 99, expected at most 79, fewer than images"),
        (
            lambda: check_training(IMAGES, np.arange(80) // 70, 20),
            "labels: got 10 images of class 1 and up to 70 of others, expected equally many, or at least components=20",
        ),
        (lambda: classifier(images=IMAGES[0]), r"images: got shape \(6, 6, 1\), expected \(N, H, W, C\)"),
        (lambda: classifier(images=255 * IMAGES), r"images: got values in \[.*\], expected \[0, 1\]"),
        (lambda: classifier().accuracy(IMAGES, LABELS[:, None]), r"labels: got shape \(80, 1\), expected \(80,\)"),
        (lambda: check_training(IMAGES, np.eye(2)[LABELS], 20), r"labels: got float64\(80, 2\), expected integers"),
        (lambda: check_training(IMAGES, LABELS, 0.9), "components: got 0.9, expected an integer of at least 1"),
        (lambda: AffinePCA(2).fit(np.eye(3), np.array([0, 1, 1])), "got 1 images of a class and 2"),
        (lambda: classifier("forest"), "kind: got 'forest', expected one of lda, svm_linear"),
        (lambda: classifier(images=IMAGES[:, :4]), "x: got 4x6 images, expected square ones for C4"),
        (lambda: choose_templates(IMAGES, LABELS, 90), "images: class 0 has 40, expected at least 45 for 90 templates"),
        (lambda: OrbitRepresentation(dihedral(4), 3, ("spectrum",)), "invariants: spectrum: got the group D4"),
        (lambda: OrbitRepresentation(rotations(4), 3, ("median",)), "invariants: got 'median', expected names among"),
        (lambda: OrbitRepresentation(rotations(4), 3, "mean"), "invariants: got 'mean', expected a tuple"),
        (lambda: OrbitRepresentation(rotations(4), 3, ()), "invariants: got none and no equivariant block"),
        (lambda: OrbitRepresentation(rotations(4), 0), "templates: got 0, expected at least 1"),
        (lambda: classifier("knn").network(), "kind: got knn of 2 classes, expected lda, or svm_linear of two"),
        (lambda: classifier("knn").decision_function(IMAGES), "kind: got knn, which has no scores"),
        (lambda: classifier().predict(IMAGES * np.nan), "images: got 2880 of 2880 values NaN or infinite"),
        (lambda: classifier().predict(IMAGES[:0]), "images: got none, expected at least one"),
        (lambda: classifier(images=IMAGES * 0), "images: got features that do not vary"),
        (lambda: OrbitRepresentation(scales(2.0, 1)), "scales 2.*has products outside of itself"),
        (lambda: classifier().transform(IMAGES[:, :4]), r"images: got \(4, 6, 1\), expected \(6, 6, 1\)"),
        (lambda: GlassBoxClassifier(OrbitRepresentation(rotations(4))).transform(IMAGES), "templates: got none"),
        (lambda: replace(classifier(), components=900).fit(IMAGES, LABELS), "components: got 900"),
        (lambda: replace(classifier(), seed=-1).fit(IMAGES.tolist(), LABELS.tolist()), "seed: got -1, expected"),
        (lambda: classifier(images=IMAGES * 1j), "images: got complex64, expected real numbers"),
        (lambda: pipeline("lda", {"pixels": slice(0, 4)}, 2, equivariant_weight=0), "equivariant_weight: got 0"),
    ],
)
def test_bad_input(call, message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=message):
        call()


def test_nothing_is_written_into_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="expected a folder"):
        classifier().save(tmp_path / "file/saved")
    with pytest.raises(CheckpointError, match=r"classifier\.json: not a file of a saved classifier"):
        GlassBoxClassifier.load(tmp_path)


def test_the_whole_network_trains_by_descent_too():
    network = GlassBox(rotations(4), 4, ("max",), components=3, classes=2)
    variables = jax.jit(network.init)(jax.random.key(0), X)

    def loss(params):
        return (network.apply({"params": params}, X, train=True) ** 2).sum()

    grads = jax.jit(jax.grad(loss))(variables["params"])
    assert float(jnp.abs(grads["representation"]["orbit"]["templates"]).max()) > 0
