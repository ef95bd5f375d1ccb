import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxinterp.app import stages
from jaxinterp.app.registry import runs
from jaxinterp.errors import ConfigError
from jaxinterp.explain.decompose import decompose
from jaxinterp.glassbox import family as glassbox
from jaxinterp.glassbox.classifier import GlassBoxClassifier
from jaxinterp.recipe.overrides import override

FAMILY = glassbox.GlassBoxFamily()
DIGITS = runs()["glassbox/digits"].run
TINY = FAMILY.smoke(DIGITS).replace(
    data={"max_images": 200}, model={"group": "c4", "invariants": ("sorted",), "per_class": 15, "templates": 40}
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("glassbox") / "run"
    stages.train("glassbox/digits", TINY, run_dir)
    return run_dir


def test_training_is_the_closed_form_and_changes_nothing_after_it(folder):
    trained = stages.trained(folder)
    data = trained.train_data
    places = np.concatenate([np.flatnonzero(data.labels == k)[:15] for k in range(10)])
    images, labels = data.images[np.sort(places)].astype(np.float32) / 16, data.labels[np.sort(places)]
    classifier = GlassBoxClassifier(TINY.model.representation, "lda", TINY.model.components, seed=TINY.train.seed)
    test = trained.test_data[0][:20]
    scores = classifier.fit(images, labels).decision_function(test)
    net = trained.explainable
    np.testing.assert_allclose(net.logits(test), scores, rtol=1e-3, atol=1e-3)


def test_evaluation_measures_upright_and_rotated_and_saves_the_classifiers(folder):
    results = stages.evaluate(folder, log=lambda line: None)
    metrics = results["metrics"]
    assert metrics["upright_accuracy_lda"] == pytest.approx(metrics["test_accuracy"])
    assert metrics["completeness_residual"] < 1e-4
    assert 0 < metrics["black_residual"] < 1e-4
    assert metrics["equivariance_residual"] < 1e-5
    assert metrics["equivariance_uncompensated"] > 0.3
    assert [row["name"] for row in results["representations"]] == ["orbit", "pixels"]
    for row in results["representations"]:
        assert row["J"] == [metrics[f"separability_{row['name']}_{pose}"] for pose in ("upright", "rotated")]
    saved = GlassBoxClassifier.load(folder / "classifiers/svm_rbf", TINY.model.elements)
    images, labels = stages.trained(folder).test_data
    assert saved.accuracy(images, labels) == pytest.approx(metrics["upright_accuracy_svm_rbf"])
    rotated = glassbox.rotate_randomly(images, TINY.train.seed)
    assert saved.accuracy(rotated, labels) == pytest.approx(metrics["rotated_accuracy_svm_rbf"])
    page = stages.report(folder).read_text()
    assert all(f"<h2>{title}" in page for title in ("What turns with the image", "The templates that decided"))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ("data.class_subset=3,8", "data.class_subset"),
        ("model.group=d4 model.invariants=spectrum", "invariants: spectrum"),
        ("model.kinds=svm_rbf", "kinds"),
        ("model.equivariant_weight=0", "equivariant_weight"),
        ("data.rotated=True", "data.rotated"),
        ("train.val_fraction=0.1", "train.val_fraction"),
        ("evaluate.grid_sizes=2", "evaluate.grid_sizes"),
        ("model.group=c5", "model.group"),
        ("data.name=imagenet2012", "data.name"),
    ],
)
def test_overrides_that_do_not_fit_are_named_by_their_field(change, field):
    with pytest.raises(ConfigError, match=field):
        FAMILY.network(override(DIGITS, change.split()))


def test_a_6_taken_for_a_9_is_counted_apart():
    labels = np.array([6, 9, 6, 9, 1, 9])
    mnist, pair = (runs()[f"glassbox/{name}"].run for name in ("mnist", "mnist-3-8"))
    share = glassbox._six_and_nine(mnist, "lda", np.array([9, 6, 6, 9, 9, 1]), labels)
    assert share == {"rotated_6_9_confusion_lda": pytest.approx(2 / 6)}
    assert glassbox._six_and_nine(pair, "lda", labels, labels) == {}


def test_baselines_are_fitted_to_pixels_and_to_pixels_of_rotated_images():
    images, labels = np.random.default_rng(0).random((3, 8, 8, 1), np.float32), np.array([4, 0, 4])
    _, (features, _) = glassbox._baseline("pixels", TINY, images, labels, print)
    np.testing.assert_array_equal(features, images.reshape(3, -1))
    _, (features, targets) = glassbox._baseline("augmented", TINY, images, labels, print)
    assert targets.tolist() == labels.tolist() * glassbox.AUGMENTED
    assert len({row.tobytes() for row in features}) == len(features) == 3 * glassbox.AUGMENTED


def test_scattering_is_that_of_kymatio():
    pytest.importorskip("kymatio")
    images = np.random.default_rng(0).uniform(size=(2, 28, 28, 1)).astype(np.float32)
    features = glassbox._scattering(28)(images)
    assert features.shape == (2, 217 * 3 * 3)
    assert np.abs(features[0] - features[1]).max() > 1e-4


def test_too_few_images_raise_before_anything_is_kept(tmp_path):
    with pytest.raises(ConfigError, match=r"images: .* for 1000 templates"):
        stages.train("glassbox/digits", TINY.replace(model={"templates": 1000}), tmp_path / "run")
    assert not (tmp_path / "run").exists()  # so that the corrected command may use it


def test_an_explained_image_has_the_templates_that_decided(folder, tmp_path):
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(tmp_path / "ramp.png")
    list(stages.explain(folder, [tmp_path / "ramp.png"], tmp_path / "out"))
    explained = json.loads((tmp_path / "out" / "ramp.json").read_text())
    net = stages.trained(folder).explainable
    image = jnp.arange(64, dtype=jnp.float32).reshape(1, 8, 8, 1) / 255
    parts = decompose(net, image, layer="representation/orbit")
    each = np.asarray(parts.contributions)[0]
    logits = [row["logit"] for row in explained["classes"]]
    assert [int(row["class"]) for row in explained["templates"]] == np.argsort(logits)[::-1][:3].tolist()
    for row in explained["templates"]:
        k = int(row["class"])
        sums, shown = each[k].sum(0), [template["contribution"] for template in row["templates"]]
        np.testing.assert_allclose(np.abs(shown), np.sort(np.abs(sums))[::-1][:7], atol=1e-4)
        for template in row["templates"]:
            assert template["contribution"] == pytest.approx(sums[template["template"]], abs=1e-4)
            assert template["element"] == np.abs(each[k, :, template["template"]]).argmax()
        assert sum(shown) + row["other_templates"] + row["constant"] == pytest.approx(logits[k], abs=1e-3)
    assert (tmp_path / "out" / "ramp-templates.png").exists()
