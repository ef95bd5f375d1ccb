import json
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxinterp.app import stages
from jaxinterp.data import load
from jaxinterp.data.images import select_classes
from jaxinterp.errors import ConfigError
from jaxinterp.explain.decompose import decompose
from jaxinterp.glassbox import family as glassbox
from jaxinterp.glassbox.classifier import GlassBoxClassifier
from jaxinterp.recipe.config import override

TINY = replace(
    glassbox.smoke(glassbox.DIGITS), group="c4", invariants=("sorted",), images=200, per_class=15, templates=40
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("glassbox") / "run"
    stages.train("glassbox/digits", TINY, found)
    return found


def test_training_is_the_closed_form_and_changes_nothing_after_it(folder):
    _, config, subject = stages.trained(folder)
    data = stages.split(config, "train", None)
    images, labels = glassbox.training(config, data)
    assert np.bincount(labels).tolist() == [15] * 10
    own = GlassBoxClassifier(
        glassbox.build(config).representation.clone(name=None), "lda", config.components, seed=config.seed
    ).fit(images, labels)
    test, _ = stages.test_images(config, None)
    scores = own.decision_function(test[:20])
    np.testing.assert_allclose(subject.apply(subject.variables, jnp.asarray(test[:20])), scores, rtol=1e-3, atol=1e-3)


def test_evaluation_measures_upright_and_rotated_and_saves_the_classifiers(folder):
    said = []
    found = stages.evaluate(folder, log=said.append)
    metrics = found["metrics"]
    assert metrics["upright_accuracy_lda"] == pytest.approx(metrics["test_accuracy"])
    assert metrics["completeness_residual"] < 1e-4
    assert 0 < metrics["black_residual"] < 1e-4
    assert metrics["equivariance_residual"] < 1e-5
    assert metrics["equivariance_uncompensated"] > 0.3
    assert [row["name"] for row in found["representations"]] == ["orbit", "pixels"]
    again = GlassBoxClassifier.load(folder / "classifiers/svm_rbf", glassbox.group_of(TINY))
    images, labels = stages.test_images(TINY, None)
    assert again.accuracy(images, labels) == pytest.approx(metrics["upright_accuracy_svm_rbf"])
    turned = glassbox.rotate_randomly(images, TINY.seed)
    assert again.accuracy(turned, labels) == pytest.approx(metrics["rotated_accuracy_svm_rbf"])
    page = stages.report(folder).read_text()
    assert all(f"<h2>{title}" in page for title in ("What turns with the image", "The templates that decided"))


def test_a_run_may_keep_some_classes():
    data = load("digits", "test")
    pair = select_classes(data, (8, 3))
    assert pair.classes == (data.classes[8], data.classes[3])
    places = np.flatnonzero(np.isin(data.labels, (3, 8)))
    np.testing.assert_array_equal(pair.labels, np.where(data.labels[places] == 8, 0, 1))
    assert stages.class_names(replace(TINY, only=(8, 3), classes=2)) == pair.classes
    with pytest.raises(ConfigError, match=r"only: got 3,3, expected different classes in \[0, 10\) of digits"):
        select_classes(data, (3, 3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("only=3,8", "only: got 2 classes, expected 10, as classes"),
        ("group=d4 invariants=spectrum", "invariants: spectrum: got the group D4, expected a cyclic one"),
        ("kinds=svm_rbf", "kinds: got svm_rbf, expected lda among them"),
        ("equivariant_weight=0", "equivariant_weight: got 0.0, expected a positive number"),
        ("rotated=True", "rotated: got True, expected False"),
        ("validation=0.1", "validation: got 0.1, expected 0"),
        ("grid_sizes=2", "grid_sizes: got 2, expected none"),
        ("group=c5", "group: expected one of c4, c8, c16, c24, c32, d4"),
    ],
)
def test_bad_overrides_are_refused_in_one_line(change, message):
    with pytest.raises(ConfigError, match=message.replace("[", r"\[")):
        stages.network(glassbox, override(glassbox.DIGITS, change.split()))


def test_a_6_taken_for_a_9_is_counted_apart():
    labels = np.array([6, 9, 6, 9, 1, 9])
    found = glassbox._six_and_nine(glassbox.MNIST, "lda", np.array([9, 6, 6, 9, 9, 1]), labels)
    assert found == {"rotated_6_9_confusion_lda": pytest.approx(2 / 6)}
    assert glassbox._six_and_nine(glassbox.PAIR, "lda", labels, labels) == {}


def test_rivals_see_pixels_and_pixels_of_turned_images():
    images, labels = stages.test_images(TINY, None)
    _, (seen, wanted) = glassbox._baseline("pixels", TINY, images[:3], labels[:3], print)
    np.testing.assert_array_equal(seen, images[:3].reshape(3, -1))
    _, (seen, wanted) = glassbox._baseline("augmented", TINY, images[:3], labels[:3], print)
    assert (len(seen), wanted.tolist()) == (3 * glassbox.AUGMENTED, labels[:3].tolist() * glassbox.AUGMENTED)
    assert len({row.tobytes() for row in seen}) == len(seen)  # every copy at an angle of its own


def test_scattering_is_that_of_kymatio():
    pytest.importorskip("kymatio")
    images = np.random.default_rng(0).uniform(size=(2, 28, 28, 1)).astype(np.float32)
    features = glassbox._scattering(28)(images)
    assert features.shape == (2, 217 * 3 * 3)
    assert np.abs(features[0] - features[1]).max() > 1e-4


def test_too_few_images_are_said_before_anything_is_kept(tmp_path):
    with pytest.raises(ConfigError, match=r"^images: "):
        stages.train("glassbox/digits", replace(TINY, templates=1000), tmp_path / "run")
    assert not (tmp_path / "run").exists()  # so that the corrected command may use it


def test_an_explained_image_has_the_templates_that_decided(folder, tmp_path):
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(tmp_path / "ramp.png")
    list(stages.explain(folder, [tmp_path / "ramp.png"], tmp_path / "out"))
    found = json.loads((tmp_path / "out" / "ramp.json").read_text())
    _, _, subject = stages.trained(folder)
    image = jnp.arange(64, dtype=jnp.float32).reshape(1, 8, 8, 1) / 255
    parts = decompose(subject.frozen, image, layer="representation/orbit", variables=subject.variables)
    each = np.asarray(parts.contributions)[0]
    logits = [row["logit"] for row in found["classes"]]
    assert [int(row["class"]) for row in found["templates"]] == np.argsort(logits)[::-1][:3].tolist()
    for row in found["templates"]:
        k = int(row["class"])
        sums, shown = each[k].sum(0), [own["contribution"] for own in row["templates"]]
        np.testing.assert_allclose(np.abs(shown), np.sort(np.abs(sums))[::-1][: len(shown)], atol=1e-4)
        assert len(shown) == min(7, len(sums))
        for own in row["templates"]:
            assert own["contribution"] == pytest.approx(sums[own["template"]], abs=1e-4)
            assert own["element"] == np.abs(each[k, :, own["template"]]).argmax()
        assert sum(shown) + row["other_templates"] + row["constant"] == pytest.approx(logits[k], abs=1e-3)
    assert (tmp_path / "out" / "ramp-templates.png").exists()
