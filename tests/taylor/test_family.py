"""The Taylor runs and distillations: networks, losses, what is measured of them, and bad overrides by field name."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from jaxinterp.app import stages
from jaxinterp.app.registry import runs
from jaxinterp.data import hold_out, load
from jaxinterp.errors import ConfigError, DataError
from jaxinterp.explain.decompose import decompose
from jaxinterp.explain.explainable import explainable
from jaxinterp.explain.series import orders, truncated_accuracy
from jaxinterp.recipe.config import Experiment
from jaxinterp.recipe.data import training_data
from jaxinterp.recipe.overrides import override
from jaxinterp.recipe.run_folder import read_json
from jaxinterp.taylor.distill import ImageSet, read_set, write_set
from jaxinterp.taylor.distill.family import DistillFamily
from jaxinterp.taylor.family import PenalizedLoss, TaylorFamily
from jaxinterp.train import softmax_cross_entropy
from jaxinterp.train.optimizer import make_optimizer

FAMILY, DISTILL = TaylorFamily(), DistillFamily()
TINY = FAMILY.smoke(runs()["taylor/digits"].run).replace(
    model={"features": (2, 3), "side": 2, "orders": 2}, evaluate={"occlusion": ()}
)
MERGING = DISTILL.smoke(runs()["distill/mnist"].run).replace(
    data={"image_size": 8},
    model={"features": (2,), "side": 2, "size": 8},
    train={"val_fraction": 0.0},
    evaluate={"occlusion": ()},
)


@pytest.mark.parametrize(
    ("name", "most"), [("taylor/mnist", 120_000), ("taylor/mnist-small", 41_000), ("taylor/cifar10", 2_000_000)]
)
def test_the_runs_have_the_parameters_that_they_promise(name: str, most: int) -> None:
    run = runs()[name].run
    image = jax.ShapeDtypeStruct((1, *run.data.image_shape), jnp.float32)
    params = jax.eval_shape(FAMILY.build(run).init, jax.random.key(0), image)["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) <= most


@pytest.fixture(scope="module")
def variables():
    """Initial variables of the tiny network."""
    return jax.jit(FAMILY.build(TINY).init)(jax.random.key(1), jnp.zeros((1, 8, 8, 1)))


def test_the_penalized_loss_is_cross_entropy_and_the_penalty(variables) -> None:
    run = TINY.replace(model={"penalty": 0.1, "growth": 3.0, "penalty_images": 4})
    network = FAMILY.build(run)
    images, labels = jax.random.uniform(jax.random.key(0), (6, 8, 8, 1)), jnp.arange(6, dtype=jnp.int32)
    loss = FAMILY.loss(run, network)
    assert loss == PenalizedLoss(network, softmax_cross_entropy, 0.1, 3.0, 4)
    batch = {"image": images, "label": labels}
    total, _ = jax.jit(loss)(variables["params"], variables["batch_stats"], batch, jax.random.key(2))
    found = orders(explainable(network, variables), images, x0=jnp.zeros((8, 8, 1)), max_order=4)
    series = np.moveaxis(np.asarray(found.contributions), 2, 0)
    penalty = sum(3.0**m * (series[m, :4] ** 2).mean() for m in range(1, 5))
    cross = optax.softmax_cross_entropy_with_integer_labels(series.sum(0), labels).mean()
    assert float(total) == pytest.approx(float(cross + 0.1 * penalty), rel=1e-4)


def test_every_factor_is_decayed_and_no_bias(variables) -> None:
    params = jax.tree.map(jnp.ones_like, variables["params"])
    optimizer = make_optimizer("sgd", optax.constant_schedule(1.0), weight_decay=0.5)
    state = optimizer.init(params)
    updates, _ = jax.jit(optimizer.update)(jax.tree.map(jnp.zeros_like, params), state, params)
    decayed = {"bias": 0.0, "linear": -0.5, "factor_2_1": -0.5, "factor_2_2": -0.5, "out_2": -0.5}
    for path, update in jax.tree_util.tree_leaves_with_path(updates):
        np.testing.assert_allclose(update, decayed[path[-1].key], atol=1e-6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run, trained, evaluated and reported."""
    run_dir = tmp_path_factory.mktemp("taylor")
    stages.train("taylor/digits", TINY, run_dir)
    stages.report(run_dir, log=lambda line: None)
    return run_dir


def test_a_run_is_expanded_about_its_mean_training_image_and_its_orders_measured(folder: Path) -> None:
    trained = stages.trained(folder)
    digits = load("digits", "train")
    point = np.asarray(trained.variables["batch_stats"]["expansion_point"])
    kept = hold_out(replace(digits, images=digits.images[:64], labels=digits.labels[:64]), 0.25, 0)[0]
    np.testing.assert_allclose(point, kept.images.mean(0) / 16, atol=1e-6)
    results, (images, labels) = read_json(folder / "evaluation.json", ""), trained.test_data
    series = orders(trained.explainable, images[:8], x0=point, max_order=2)
    want = truncated_accuracy(series.contributions, labels[:8])
    assert results["orders"]["accuracy"] == want.tolist()
    assert results["metrics"]["accuracy_orders_le_2"] == want[2]
    assert results["metrics"]["degree"] == 4
    parts = decompose(trained.explainable, images[:2])
    zero = trained.network.apply(trained.variables, jnp.asarray(point)[None])
    np.testing.assert_allclose(parts.bias, np.repeat(zero, 2, 0), atol=1e-5)


def test_a_report_shows_orders_pairs_and_coefficients(folder: Path) -> None:
    html = (folder / "report.html").read_text(encoding="utf-8")
    for title in ("The series, order by order", "Maps of single orders", "Pairs of pixels", "whole network"):
        assert title in html


def test_an_explained_image_has_all_orders_of_its_logits(folder: Path, tmp_path: Path) -> None:
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(tmp_path / "ramp.png")
    list(stages.explain(folder, [tmp_path / "ramp.png"], tmp_path / "out"))
    content = json.loads((tmp_path / "out" / "ramp.json").read_text())
    series, rest = (np.array([row[key] for row in content["orders"]]) for key in ("orders", "remainder"))
    assert series.shape == (10, 3)
    assert np.abs(rest).max() > 1e-5  # orders 3 and 4
    np.testing.assert_allclose(series.sum(1) + rest, [row["logit"] for row in content["classes"]], atol=1e-4)
    beyond = series[:, 1:].sum(1) + rest
    np.testing.assert_allclose(beyond, [row["contributions"] for row in content["classes"]], atol=1e-4)
    with Image.open(tmp_path / "out" / "ramp-orders.png") as picture:
        assert picture.width > 300


def test_black_is_another_expansion_point(variables) -> None:
    run, data = TINY.replace(model={"center": "black"}), load("digits", "train")
    assert FAMILY.init_from(run, FAMILY.build(run), variables, None, data) is variables


def test_a_run_can_be_trained_on_distilled_images(tmp_path: Path) -> None:
    digits = load("digits", "train")
    chosen = ImageSet((digits.images[:40] / 16).astype(np.float32), digits.labels[:40], 2, {"method": "chosen"})
    write_set(tmp_path / "chosen.npz", chosen)
    data, held = training_data(TINY.replace(data={"distilled": str(tmp_path / "chosen.npz")}), None)
    np.testing.assert_allclose(data.images / data.maximum, chosen.images, atol=0.5 / 255)
    assert held is not None
    np.testing.assert_array_equal(held.images, training_data(TINY, None)[1].images)  # of the data set
    with pytest.raises(DataError, match="not a set of distilled images"):
        training_data(TINY.replace(data={"distilled": "none.npz"}), None)


@pytest.mark.parametrize(("count", "iterations"), [(1, 0), pytest.param(2, 1, marks=pytest.mark.slow)])
def test_a_distillation_writes_its_levels_and_measures_its_baselines(
    count: int, iterations: int, tmp_path: Path
) -> None:
    run = MERGING.replace(model={"counts": (count,), "condense_iterations": iterations})
    stages.train("distill/mnist", run, tmp_path)
    html = stages.report(tmp_path, log=lambda line: None).read_text(encoding="utf-8")
    results = read_json(tmp_path / "evaluation.json", "")
    last = read_set(tmp_path / "distilled" / "level_1.npz")
    assert last.labels.tolist() == list(range(10))
    assert (tmp_path / "distilled" / "sheet.png").stat().st_size > 1000
    sets = {row["set"]: row for row in results["baselines"]}
    metrics, (images, labels) = results["metrics"], stages.trained(tmp_path).test_data
    if count == 1:
        assert list(sets) == ["class_mean_1", "distilled_1", "random_1"]
        assert metrics["one_reference_accuracy"] == pytest.approx(sets["distilled_1"]["embedding"])
    else:
        assert list(sets) == ["class_mean_1", "distilled_4", "random_2", "k_means_2", "condensed_2"]
        assert metrics["nearest_reference_accuracy_level_0"] == pytest.approx(sets["distilled_4"]["embedding"])
    digits = load("digits", "train")
    known, classes = digits.images[:128].reshape(128, 64) / 16, digits.labels[:128]
    centers = np.stack([known[classes == c].mean(0) for c in range(10)])
    nearest = ((images.reshape(-1, 1, 64) - centers) ** 2).sum(-1).argmin(1)
    assert metrics["class_mean_1_pixels"] == pytest.approx((nearest == labels).mean(), abs=0.02)
    for text in ("From images to archetypes", "nearest in the embedding", f"random {count}"):
        assert text in html


@pytest.mark.parametrize(
    ("name", "change", "field"),
    [
        ("taylor/mnist", "model.ranks=2", "ranks"),
        ("taylor/mnist", "model.side=3", "side, stride"),
        ("taylor/mnist", "model.growth=0", "growth"),
        ("taylor/mnist", "model.form=ring", "form"),
        ("taylor/mnist", "evaluate.grid_sizes=3", "evaluate.grid_sizes"),
        ("taylor/cifar10", "model.depths=1", "depths"),
        ("taylor/cifar10", "model.features= model.depths=", "depths"),
        ("taylor/cifar10", "model.penalty=1", "penalty"),
        ("distill/mnist", "model.group=1", "group"),
        ("distill/mnist", "model.penalty=1", "penalty"),
        ("distill/mnist", "model.counts=", "counts"),
        ("distill/mnist", "train.batch_size=64", "train.batch_size, model.batch_levels"),
    ],
)
def test_bad_overrides_raise_in_one_line(name: str, change: str, field: str) -> None:
    experiment: Experiment = runs()[name]
    family = FAMILY if name.startswith("taylor") else DISTILL
    with pytest.raises(ConfigError, match=field) as error:
        family.build(override(experiment.run, change.split()))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("fields", "field"), [({"levels": 9}, "levels"), ({"counts": (1, 500)}, "counts")])
def test_too_few_images_raise_before_anything_is_trained(fields: dict[str, object], field: str) -> None:
    run = MERGING.replace(model=fields)
    with pytest.raises(ConfigError, match=f"model.{field}: got"):
        DISTILL.init_from(run, DISTILL.build(run), {"batch_stats": {"embedding": {}}}, None, load("digits", "train"))
