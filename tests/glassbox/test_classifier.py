"""The closed form: exact, learned by every kind of classifier, saved without pickle, one network where affine."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from sklearn.preprocessing import StandardScaler

from jaxinterp.errors import CheckpointError, ConfigError
from jaxinterp.explain.decompose import decompose
from jaxinterp.explain.explainable import explainable
from jaxinterp.glassbox.classifier import GlassBoxClassifier
from jaxinterp.glassbox.network import OrbitRepresentation
from jaxinterp.glassbox.pipeline import KINDS, AffinePCA, pipeline
from jaxinterp.symmetry.groups import dihedral, rotations, transform

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


def test_the_reduction_is_exact_pca_whatever_the_seed_and_the_size():
    """At 900 x 120 scikit-learn's own choice would be the randomized solver, which is 3e-3 off."""
    rng = np.random.default_rng(0)
    features = (rng.normal(size=(900, 120)) * 0.9 ** np.arange(120) @ rng.normal(size=(120, 120))).astype(np.float32)
    labels = np.arange(900) % 2
    exact = StandardScaler().fit_transform(features.astype(np.float64))
    u, sizes, _ = np.linalg.svd(exact, full_matrices=False)
    steps = [pipeline("lda", {"features": slice(0, 120)}, 40, seed=s).fit(features, labels) for s in (0, 1)]
    reduced = [step[:-1].transform(features) for step in steps]
    signs = np.sign((reduced[0] * u[:, :40]).sum(0))
    np.testing.assert_allclose(reduced[0] * signs, u[:, :40] * np.sqrt(899), atol=1e-4)
    np.testing.assert_allclose(steps[0]["pca"].explained_variance_, sizes[:40] ** 2 / 899, rtol=1e-5)
    np.testing.assert_array_equal(reduced[0], reduced[1])
    wanted = pipeline("lda", {"features": slice(0, 120)}, 40).fit(features.astype(np.float64), labels)
    scores = steps[0].decision_function(features)
    np.testing.assert_allclose(scores, wanted.decision_function(features.astype(np.float64)), atol=1e-5)


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
    with pytest.raises(CheckpointError, match="group"):
        GlassBoxClassifier.load(tmp_path / "saved", dihedral(4))
    description = tmp_path / "saved/classifier.json"
    values = json.loads(description.read_text())
    for wrong in ({**values, "kind": "knn" if kind == "lda" else "lda"}, {**values, "color": 1}):
        description.write_text(json.dumps(wrong))
        with pytest.raises(CheckpointError, match=r"classifier\.json|pipeline\.skops"):
            GlassBoxClassifier.load(tmp_path / "saved")
    description.write_text(json.dumps(values))
    (tmp_path / "saved/pipeline.skops").write_bytes(b"no zip")
    with pytest.raises(CheckpointError, match=r"pipeline\.skops"):
        GlassBoxClassifier.load(tmp_path / "saved")


def test_no_more_components_are_kept_than_features_are_independent():
    twice = GlassBoxClassifier(OrbitRepresentation(rotations(4), 10, ("sorted", "mean")), "lda", 45)
    with pytest.raises(ValueError, match=r"^components: "):
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
    net = explainable(network, variables)
    for layer, shape in ((None, (SIDE, SIDE, 1)), ("representation/orbit", (4, 10))):
        parts = decompose(net, X, layer=layer)
        assert parts.contributions.shape == (6, classes, *shape)
        np.testing.assert_allclose(parts.logits, logits, rtol=1e-4, atol=1e-4)
        assert float(jnp.abs(parts.residual).max()) < 1e-4 * float(jnp.abs(parts.logits).max())
        np.testing.assert_allclose(np.ptp(parts.bias, axis=0), 0.0, atol=1e-2)  # one constant for all images


@pytest.mark.parametrize("kind", ["svm_rbf", "svm_linear"])
def test_support_vectors_add_up_to_the_score(kind):
    fitted = classifier(kind)
    parts, places, constant = fitted.support_contributions(IMAGES[:6])
    np.testing.assert_allclose(parts.sum(1) + constant, fitted.decision_function(IMAGES[:6]), rtol=1e-4, atol=1e-5)
    assert set(places) <= set(range(len(IMAGES)))


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


def test_nothing_is_written_into_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="folder"):
        classifier().save(tmp_path / "file/saved")
    with pytest.raises(CheckpointError, match=r"classifier\.json"):
        GlassBoxClassifier.load(tmp_path)


def fit(images=IMAGES, labels=LABELS, **fields):
    representation = OrbitRepresentation(rotations(4), 10)
    return GlassBoxClassifier(representation, **{"kind": "lda", "components": COMPONENTS} | fields).fit(images, labels)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("images", {"images": IMAGES * np.nan}),
        ("images", {"images": IMAGES[0]}),
        ("images", {"images": 255 * IMAGES}),
        ("images", {"images": IMAGES * 0}),
        ("images", {"images": IMAGES * 1j}),
        ("x", {"images": IMAGES[:, :4]}),
        ("labels", {"images": IMAGES[:5]}),
        ("labels", {"labels": LABELS * 0}),
        ("labels", {"labels": np.eye(2)[LABELS]}),
        ("labels", {"labels": np.arange(80) // 70, "components": 20}),
        ("components", {"components": 79}),
        ("components", {"components": 80}),
        ("components", {"components": 0.9}),
        ("kind", {"kind": "forest"}),
        ("seed", {"seed": -1, "images": IMAGES.tolist(), "labels": LABELS.tolist()}),
    ],
)
def test_what_cannot_be_fitted_raises(name, arguments, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the types refuse some of them too
    with pytest.raises(ConfigError, match=f"^{name}: "):
        fit(**arguments)


def test_what_a_classifier_cannot_do_raises(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the types refuse some of them too
    fitted, neighbors = fit(), fit(kind="knn")
    for name, call in [
        ("labels", lambda: fitted.accuracy(IMAGES, LABELS[:5])),
        ("images", lambda: fitted.predict(IMAGES * np.nan)),
        ("images", lambda: fitted.predict(IMAGES[:0])),
        ("images", lambda: fitted.transform(IMAGES[:, :4])),
        ("kind", neighbors.network),
        ("kind", lambda: neighbors.decision_function(IMAGES)),
        ("kind", lambda: fitted.support_contributions(IMAGES)),
        ("templates", lambda: replace(fitted, templates=None).transform(IMAGES)),
        ("steps", lambda: replace(fitted, steps=None).predict(IMAGES)),
        ("labels", lambda: AffinePCA(2).fit(np.eye(3), np.array([0, 1, 1]))),
        ("equivariant_weight", lambda: pipeline("lda", {"pixels": slice(0, 4)}, 2, equivariant_weight=0)),
    ]:
        with pytest.raises(ConfigError, match=f"^{name}: "):
            call()
