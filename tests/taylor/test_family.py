"""The Taylor runs and distillations: networks, losses, what is measured of them, and bad overrides in one line."""

import json
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from jaxinterp.app import stages
from jaxinterp.data import hold_out, load
from jaxinterp.errors import ConfigError, DataError
from jaxinterp.explain.series import orders, truncated_accuracy
from jaxinterp.recipe.config import override
from jaxinterp.taylor import family as taylornet
from jaxinterp.taylor.distill import ImageSet, read_set, write_set
from jaxinterp.taylor.distill import family as distillation
from jaxinterp.taylor.family import CIFAR10, DIGITS, MNIST, SMALL, PenalizedLoss
from jaxinterp.taylor.network import TaylorNet, describe
from jaxinterp.train import softmax_cross_entropy
from jaxinterp.train.optimizer import _kernels

TINY = replace(taylornet.smoke(DIGITS), features=(2, 3), side=2)


def test_the_runs_have_the_parameters_that_they_promise():
    for config, most in ((MNIST, 120_000), (SMALL, 41_000)):
        model = taylornet.build(config)
        assert isinstance(model, TaylorNet)
        assert describe(model, config.image_shape)[-1].parameters <= most
    shapes = jax.eval_shape(taylornet.build(CIFAR10).init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) <= 2_000_000


def test_the_penalized_loss_is_cross_entropy_and_the_penalty():
    model = taylornet.build(TINY)
    images, labels = jax.random.uniform(jax.random.key(0), (6, 8, 8, 1)), jnp.arange(6, dtype=jnp.int32)
    variables = jax.jit(model.init)(jax.random.key(1), images)
    loss = PenalizedLoss(model, softmax_cross_entropy, 0.1, 3.0, 4)
    batch = {"image": images, "label": labels}
    total, _ = jax.jit(loss)(variables["params"], variables["batch_stats"], batch, jax.random.key(2))
    found = np.asarray(orders(model.apply, images, jnp.zeros((8, 8, 1)), 4, variables=variables))
    penalty = sum(3.0**m * (found[m, :4] ** 2).mean() for m in range(1, 5))
    cross = optax.softmax_cross_entropy_with_integer_labels(found.sum(0), labels).mean()
    assert float(total) == pytest.approx(float(cross + 0.1 * penalty), rel=1e-4)


def test_every_factor_is_decayed_and_no_bias():
    model = taylornet.build(TINY)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))["params"]
    marked = jax.tree_util.tree_leaves_with_path(_kernels(params))
    assert {keys[-1].key for keys, kernel in marked if not kernel} == {"bias"}
    assert {keys[-1].key for keys, kernel in marked if kernel} == {"linear", "factor_2_1", "factor_2_2", "out_2"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("taylor")
    stages.train("taylor/digits", TINY, run_dir)
    return run_dir


def test_a_run_is_expanded_about_its_mean_training_image_and_its_orders_measured(folder):
    _, config, subject = stages.trained(folder)
    digits = load("digits", "train")
    point = np.asarray(subject.variables["batch_stats"]["expansion_point"])
    kept = hold_out(replace(digits, images=digits.images[:64], labels=digits.labels[:64]), 0.25, 0)[0]
    np.testing.assert_allclose(point, kept.images.mean(0) / 16, atol=1e-6)
    images, labels = stages.test_images(config, None)
    split = partial(stages.split, data_dir=None)
    found = taylornet.measure(config, subject.variables, folder, images, labels, split, lambda line: None)
    model = taylornet.build(config)
    want = truncated_accuracy(orders(model.apply, images[:8], point, 4, variables=subject.variables), labels[:8])
    assert found["orders"]["accuracy"] == want.tolist()
    assert found["metrics"]["accuracy_orders_le_3"] == want[3]
    assert found["metrics"]["degree"] == 4
    parts = subject.decompose(images[:2])
    zero = model.apply(subject.variables, jnp.asarray(point)[None])
    np.testing.assert_allclose(parts.bias, np.repeat(zero, 2, 0), atol=1e-5)


def test_black_is_another_expansion_point():
    variables = {"batch_stats": {"expansion_point": jnp.zeros((8, 8, 1))}}
    assert taylornet.initial(replace(TINY, center="black"), variables, None, load("digits", "train")) is variables


@pytest.mark.slow
def test_a_run_can_be_trained_on_distilled_images(tmp_path):
    digits = load("digits", "train")
    few = ImageSet((digits.images[:40] / 16).astype(np.float32), digits.labels[:40], 2, {"method": "chosen"})
    write_set(tmp_path / "few.npz", few)
    config = replace(TINY, distilled=str(tmp_path / "few.npz"))
    done = stages.train("taylor/digits", config, tmp_path / "run")
    assert done.history[-1]["step"] == 40 // TINY.batch_size  # what is held out is of the data set
    with pytest.raises(DataError, match="not a set of distilled images"):
        stages.train("taylor/digits", replace(TINY, distilled="none.npz"), tmp_path / "other")


@pytest.mark.slow
def test_a_distillation_writes_its_levels_and_measures_its_baselines(tmp_path):
    config = distillation.smoke(distillation.RUNS["distill/mnist"].config)
    stages.train("distill/mnist", config, tmp_path)
    found = stages.evaluate(tmp_path, log=lambda line: None)
    last = read_set(tmp_path / "distilled" / "level_1.npz")
    assert last.labels.tolist() == list(range(10))
    assert (tmp_path / "distilled" / "sheet.png").stat().st_size > 1000
    sets = {row["set"]: row for row in found["baselines"]}
    assert {"class_mean_1", "distilled_1", "random_1", "condensed_1", "k_means_2"} <= sets.keys()
    assert found["metrics"]["one_reference_accuracy"] == pytest.approx(sets["distilled_1"]["embedding"])


@pytest.mark.parametrize(
    ("module", "config", "change", "message"),
    [
        (taylornet, MNIST, ["ranks=2"], "ranks: got 1 entries, expected 4, as features"),
        (taylornet, MNIST, ["side=3"], "side, stride: got 3, 2, expected 1 <= stride <= side"),
        (taylornet, CIFAR10, ["depths=1"], "depths: got 1 entries, expected 4, as features"),
        (taylornet, CIFAR10, ["penalty=1"], "penalty: got 1.0 with design=residual, expected 0"),
        (taylornet, MNIST, ["growth=0"], "growth: got 0.0, expected a positive finite number"),
        (taylornet, MNIST, ["grid_sizes=3"], "grid_sizes: got 3, expected none"),
        (taylornet, CIFAR10, ["features=", "depths="], "depths: got 0 entries, expected 0"),
        (taylornet, MNIST, ["form=ring"], "form: expected one of dense, cp, ccp, tucker"),
        (distillation, distillation.RUNS["distill/mnist"].config, ["group=1"], "group: got 1, expected at least 2"),
        (distillation, distillation.RUNS["distill/mnist"].config, ["batch_size=64"], "batch_size, batch_levels: got"),
        (distillation, distillation.RUNS["distill/mnist"].config, ["counts="], "counts: got none, expected at least"),
    ],
)  # fmt: skip
def test_bad_overrides_are_refused_in_one_line(module, config, change, message):
    def made():
        changed = override(config, change)
        return module.loss_of(changed, module.build(changed))

    with pytest.raises(ConfigError, match=message):
        made()


def test_too_few_images_are_said_before_anything_is_trained(tmp_path):
    config = replace(distillation.smoke(distillation.RUNS["distill/mnist"].config), levels=9)
    with pytest.raises(ConfigError, match="levels: got 9, which need 262144 images of every class, the rarest is"):
        distillation.initial(config, {"batch_stats": {"embedding": {}}}, None, load("digits", "train"))


@pytest.mark.slow
def test_too_few_images_for_the_levels_are_said(tmp_path):
    config = replace(distillation.smoke(distillation.RUNS["distill/mnist"].config), levels=9)
    model = distillation.build(config)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
    split = partial(stages.split, data_dir=None)
    with pytest.raises(ConfigError, match="levels: got 9 levels of 4, which need 262144 images of every class"):
        distillation.measure(config, variables, tmp_path, np.zeros((1, 28, 28, 1)), np.zeros(1, int), split, print)


def explained(run_dir):
    """What a reading is given: the network, an image, classes to show, and all classes."""
    _, config, subject = stages.trained(run_dir)
    image = np.arange(64, dtype=np.float32).reshape(8, 8, 1) / 255
    return subject, image, np.array([3, 1]), stages.class_names(config)


def test_an_explained_image_has_all_orders_of_its_logits(folder, tmp_path):
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(tmp_path / "ramp.png")
    list(stages.explain(folder, [tmp_path / "ramp.png"], tmp_path / "out"))
    found = json.loads((tmp_path / "out" / "ramp.json").read_text())
    series, rest = (np.array([row[key] for row in found["orders"]]) for key in ("orders", "remainder"))
    assert series.shape == (10, min(TINY.orders, taylornet.build(TINY).degree) + 1)
    np.testing.assert_allclose(series.sum(1) + rest, [row["logit"] for row in found["classes"]], atol=1e-4)
    beyond = series[:, 1:].sum(1) + rest
    np.testing.assert_allclose(beyond, [row["contributions"] for row in found["classes"]], atol=1e-4)
    few = taylornet.reading(replace(TINY, orders=1), *explained(folder))
    assert len(few.numbers[0]["orders"]) == 2
    np.testing.assert_allclose(few.numbers[0]["remainder"], series[0, 2:].sum() + rest[0], atol=1e-4)
    with Image.open(tmp_path / "out" / "ramp-orders.png") as picture:
        assert picture.width > 300
