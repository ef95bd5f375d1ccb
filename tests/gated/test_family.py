"""The experiments of gated networks: recipes, regimes, regression with the neural path kernel, the theorem."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import npk_theorem
from jaxinterp.app import stages
from jaxinterp.errors import ConfigError
from jaxinterp.explain.decompose import decompose
from jaxinterp.gated import family as gated
from jaxinterp.gated import npk_regression as path_regression
from jaxinterp.gated.architecture import fc
from jaxinterp.gated.kernels.path import PathKernel
from jaxinterp.gated.network import GatingNetwork
from jaxinterp.gated.npk_regression import Side, regress
from jaxinterp.train import load_variables


def quiet(line: str) -> None:
    """Say nothing."""


def test_every_row_of_the_papers_tables_is_a_run_with_its_recipe() -> None:
    runs = gated.RUNS
    assert runs["gated/mnist-decoupled-adam"].paper == {"test_accuracy_highest": 0.9822}
    assert runs["gated/mnist-relu-sgd"].paper == {"test_accuracy_highest": 0.9785}
    adam, sgd = runs["gated/mnist-learnt-adam"].config, runs["gated/mnist-learnt-sgd"].config
    assert (adam.optimizer, adam.learning_rate, adam.epochs, adam.batch_size) == ("adam", 1e-4, 100, 32)
    assert (sgd.optimizer, sgd.learning_rate, sgd.epochs, sgd.momentum) == ("sgd", 1e-2, 300, 0.0)
    assert (adam.sharpness, adam.scale, adam.depth, adam.width) == (4.0, 1.1, 5, 128)
    vgg = runs["gated/cifar100-vgg16-dlgn-1"]
    assert (vgg.paper, vgg.config.classes, vgg.config.value_input) == ({"test_accuracy_highest": 0.615}, 100, "ones")
    assert (vgg.config.batch_size, vgg.config.weight_decay, vgg.config.sharpness) == (128, 5e-4, 10.0)
    steps = 49_000 // 128
    assert abs(vgg.config.epochs * steps - 64_000) < steps
    assert runs["gated/cifar10-resnet110-dnn"].config.depth == 110
    assert runs["gated/cifar10-c4gap-dlgn-x-permuted"].config.order == (3, 2, 1, 0)
    rows = [name for name in runs if name.startswith("gated/cifar10-") and "npk" not in name]
    assert len(rows) == 2 * 2 * 5 + (5 + 6 + 5) + 8 + 2 + (6 + 1)
    staged = gated.RUNS["gated/cifar10-gconv-staged-10"].config
    relu = gated.prior("gated/cifar10-gconv-staged-10", staged)
    assert (staged.epochs, relu and relu[1].epochs) == (80, 10)


def test_copied_and_learnt_gates_start_where_they_should() -> None:
    config = replace(gated.smoke(gated.DIGITS), regime="copied")
    model = gated.build(config)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    body = gated.initial(config, variables, None)["params"]["body"]
    assert set(body["value_network"]) - set(body["gating_network"]) == {"linear_2"}
    for name, layer in body["gating_network"].items():
        np.testing.assert_array_equal(layer["kernel"], variables["params"]["body"]["value_network"][name]["kernel"])
    assert gated.initial(replace(config, regime="frozen"), variables, None) is variables
    name, relu = gated.prior("gated/digits-learnt", replace(config, regime="learnt")) or ("", config)
    assert (name, relu.regime) == ("gated/digits-relu", "relu")
    for change, message in (
        ({"regime": "learnt", "gating": "linear"}, "gating: got linear with regime=learnt, expected relu"),
        ({"regime": "relu", "order": (1, 0)}, "order: got 1,0 with regime=relu"),
        (
            {"regime": "relu", "value_input": "ones"},
            "value_input: got ones with regime=relu, which has one network only",
        ),
        ({"dataset": "imagenet2012"}, "dataset: got imagenet2012"),
    ):
        with pytest.raises(ConfigError, match=message):
            replace(config, **change)
    for change, message in (
        ({"grid_sizes": (3,)}, "grid_sizes: got 3, expected none: fc takes one image size only"),
        ({"order": (1, 1)}, "order: got 1,1, expected a permutation of 0 to 1"),
        ({"architecture": "resnet", "depth": 9}, "architecture=resnet: depth: got 9, expected 6n"),
        ({"architecture": "vgg16", "image_size": 16}, "architecture=vgg16: AvgPool"),
        ({"architecture": "c4gap", "depth": 2, "roll": 1, "grid_sizes": (2,)}, "roll: scrambles grids"),
        ({"value_input": "ones"}, "value_input: got ones with fc"),
        ({"standardize": True}, "standardize: got 1 channels, expected 3"),
    ):
        with pytest.raises(ConfigError, match=message):
            gated.build(replace(config, **change))


@pytest.mark.slow
def test_learnt_gates_are_those_of_the_relu_network_trained_first(tmp_path: Path) -> None:
    config = replace(gated.smoke(gated.RUNS["gated/digits-learnt"].config), epochs=2, watch_test=True)
    result = stages.train("gated/digits-learnt", config, tmp_path)
    assert set(result.summary) == {"last", "best", "highest"}
    watched = [record["test_accuracy"] for record in result.history]
    assert result.summary["highest"]["test_accuracy"] == max(watched)
    assert json.loads((tmp_path / "gates" / "config.json").read_text())["run"] == "gated/digits-relu"
    relu = gated.build(replace(config, regime="relu"))
    first = load_variables(tmp_path / "gates", relu, config.image_shape, "best")["params"]["body"]
    body = result.state.params["body"]
    for name, layer in body["gating_network"].items():
        np.testing.assert_array_equal(layer["kernel"], first[name]["kernel"])
        value = np.asarray(body["value_network"][name]["kernel"])
        assert np.abs(value - np.asarray(first[name]["kernel"])).max() > 1e-3
    found = stages.evaluate(tmp_path, log=quiet)
    assert found["metrics"]["npk_images"] == 24
    assert found["metrics"]["test_accuracy_highest"] == max(watched)
    for one in found["deciding"]:
        assert one["offset"] + one["sum"] == pytest.approx(one["prediction"], abs=1e-9)
    html = stages.report(tmp_path).read_text(encoding="utf-8")
    for text in ("which training images decided", "Which sub-networks classes share", "Pixel removal"):
        assert text in html
    assert "Localization" not in html


def test_more_training_images_than_there_are_is_one_line(tmp_path: Path) -> None:
    config = replace(gated.smoke(gated.DIGITS), kernel_images=65)
    variables = gated.build(config).init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    source, images = partial(stages.split, data_dir=None), np.zeros((1, 8, 8, 1), np.float32)
    with pytest.raises(ConfigError, match="kernel_images: got 65, digits has 64 training images here"):
        gated.measure(config, variables, tmp_path, images, np.zeros(1, int), source, quiet)


@pytest.mark.slow
def test_the_kernel_of_a_normalized_network_has_its_norms() -> None:
    config = replace(gated.smoke(gated.RUNS["gated/cifar10-vgg16-dgn-x"].config), image_size=32)
    model = gated.build(config)
    x = jax.random.uniform(jax.random.key(0), (2, 32, 32, 3))
    variables = jax.tree.map(lambda leaf: leaf + 0.3, jax.jit(model.init)(jax.random.key(1), x))
    norm = variables["params"]["body"]["value_network"]["norm_3"]
    seen = variables["batch_stats"]["body"]["value_network"]["norm_3"]
    kernel, _ = gated.kernel_of(config, variables)
    z = np.array([0.7])
    want = (z - seen["mean"]) / np.sqrt(seen["var"] + 1e-5) * norm["scale"] + norm["bias"]
    np.testing.assert_allclose(z * kernel.norms[3].scale + kernel.norms[3].shift, want, rtol=1e-5)
    assert len(kernel.norms) == 13


@pytest.mark.slow
def test_the_report_of_linear_gates_shows_their_filters(tmp_path: Path) -> None:
    config = gated.smoke(gated.RUNS["gated/digits-dlgn"].config)
    stages.train("gated/digits-dlgn", config, tmp_path)
    stages.evaluate(tmp_path, log=quiet)
    assert "What the gates look at" in stages.report(tmp_path).read_text(encoding="utf-8")


@pytest.mark.parametrize("regime", ["relu", "frozen", "decoupled"])
def test_gates_read_off_a_run_give_back_its_logits(regime: gated.Regime) -> None:
    config = replace(gated.smoke(gated.DIGITS), regime=regime)
    model = gated.build(config)
    x = jax.random.uniform(jax.random.key(0), (3, 8, 8, 1))
    variables = model.init(jax.random.key(1), x)
    gates = gated.gates_at(config, model, variables)(x)
    assert {gate.dtype for gate in gates} == {jnp.dtype(jnp.float32 if regime == "decoupled" else bool)}
    body = variables["params"]["body"]
    value = gated.Network(gated.layers_of(config))
    logits = value.apply({"params": body if regime == "relu" else body["value_network"]}, x, gates)
    np.testing.assert_allclose(logits, model.apply(variables, x), rtol=1e-5, atol=1e-6)
    subject = gated.subject(config, model, variables)
    parts = decompose(subject.frozen, subject.encode(x), variables=variables)
    np.testing.assert_allclose(parts.contributions.sum((2, 3, 4)) + parts.bias, logits, rtol=1e-4, atol=1e-5)


def test_odds_of_softmax_are_those_of_its_probabilities() -> None:
    config = gated.smoke(gated.DIGITS)
    model = gated.build(config)
    subject = gated.subject(config, model, model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1))))
    logits = np.random.default_rng(0).normal(size=(4, 5))
    chance = np.asarray(jax.nn.softmax(logits, axis=1))
    np.testing.assert_allclose(subject.log_odds(logits), np.log(chance / (1 - chance)), rtol=1e-6)
    np.testing.assert_array_equal(replace(subject, probability="sigmoid").log_odds(logits), logits)


def sides(train: int, test: int) -> tuple[PathKernel, Side, Side]:
    """Three blobs in five dimensions under the gates of a random network."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, train + test)
    x = (rng.normal(size=(3, 5))[labels] + 0.3 * rng.normal(size=(train + test, 5))).astype(np.float32)
    gating = GatingNetwork(fc(16, 2, 3), gating="relu")
    gates = gating.apply(gating.init(jax.random.key(0), jnp.asarray(x)), jnp.asarray(x))
    opened = [np.asarray(gate > 0) for gate in gates]

    def side(part: slice) -> Side:
        return Side(x[part], tuple(gate[part] for gate in opened), labels[part])

    return PathKernel(fc(16, 2, 3), normalize="width", exact=True), side(slice(train)), side(slice(train, None))


@pytest.mark.slow
def test_a_kernel_in_tiles_decides_as_one_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, train, test = sides(60, 20)
    options = {"seed": 0, "shown": np.array([0, 3]), "say": quiet}
    whole = regress(kernel, train, test, 3, tmp_path / "a", {}, memory=1.0, **options)
    for name, value in {"TILE": 16, "CHOSEN": 60, "LANDMARKS": 20, "TOLERANCE": 1e-9}.items():
        monkeypatch.setattr(path_regression, name, value)
    said: list[str] = []
    options["say"] = said.append
    tiled = regress(kernel, train, test, 3, tmp_path / "b", {}, memory=1e-9, **options)
    assert whole["metrics"]["npk_test_accuracy"] == tiled["metrics"]["npk_test_accuracy"] > 0.8
    assert whole["metrics"]["npk_ridge"] == tiled["metrics"]["npk_ridge"]
    assert not (tmp_path / "a").exists()
    for one, other in zip(whole["deciding"], tiled["deciding"], strict=True):
        assert one["prediction"] == pytest.approx(other["prediction"], abs=1e-3)
        assert [i for i, _ in one["for"]] == [i for i, _ in other["for"]]
        assert one["offset"] + one["sum"] == pytest.approx(one["prediction"], abs=1e-12)
    assert said[0].startswith("10 tiles")
    regress(kernel, train, test, 3, tmp_path / "b", {}, memory=1e-9, **options)
    assert any(line.startswith("0 tiles") for line in said)
    with pytest.raises(ConfigError, match="holds another kernel: epochs is absent, expected 1; remove it"):
        regress(kernel, train, test, 3, tmp_path / "b", {"epochs": 1}, memory=1e-9, **options)


@pytest.mark.slow
def test_the_theorem_is_measured_drawn_and_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = ["--out", str(tmp_path), "--results", str(tmp_path)]
    assert npk_theorem.main(["--smoke", *out]) == 2
    monkeypatch.setattr(npk_theorem, "Theorem", lambda: npk_theorem.SMOKE)
    assert npk_theorem.main(["--seeds", "0", *out]) == 0
    assert (tmp_path / "npk_theorem.png").stat().st_size > 10_000
    metrics = json.loads((tmp_path / "gated_theorem.json").read_text())["metrics"]
    assert -1 < metrics["slope_depth_3_rademacher"]["mean"] < -0.2
    assert metrics["error_same_weights"]["mean"] > 0.4
    assert metrics["mean_error_width_4"]["mean"] < 0.3
    assert metrics["gates_permuted_fc"]["mean"] < 1e-6 < 0.01 < metrics["gates_permuted_conv"]["mean"]
    assert metrics["rotation_circular_padding"]["mean"] < 1e-5 < 0.01 < metrics["rotation_zero_padding"]["mean"]
