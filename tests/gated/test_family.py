"""Gated networks as a family of runs: recipes, regimes, regression with the neural path kernel, the theorem."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import npk_theorem
from jaxinterp.app import stages
from jaxinterp.app.registry import runs
from jaxinterp.errors import ConfigError
from jaxinterp.explain.decompose import decompose
from jaxinterp.figures.html import MapTable
from jaxinterp.gated.family import GatedFamily, GatedModel, Regime, path_network
from jaxinterp.gated.network import Network
from jaxinterp.gated.report import filters
from jaxinterp.recipe.config import Run
from jaxinterp.recipe.family import TrainedRun

FAMILY = GatedFamily()
DIGITS = FAMILY.smoke(runs()["gated/digits-decoupled"].run)


def untrained(run: Run[GatedModel], run_dir: Path = Path()) -> TrainedRun[GatedModel]:
    """Return a run with its random initial variables."""
    network = FAMILY.build(run)
    variables = jax.jit(network.init)(jax.random.key(1), jnp.zeros((1, *run.data.image_shape)))
    return TrainedRun(
        run_dir, "gated/digits-decoupled", runs()["gated/digits-decoupled"], run, FAMILY, network, variables
    )


def test_runs_stand_beside_the_numbers_of_the_papers_tables() -> None:
    papers = {name.removeprefix("gated/"): one.paper for name, one in runs().items() if name.startswith("gated/")}
    assert papers["mnist-decoupled-adam"] == {"test_accuracy_highest": 0.9822}
    assert papers["mnist-relu-sgd"] == {"test_accuracy_highest": 0.9785}
    assert papers["cifar10-gconv-learnt-adam"] == {"test_accuracy_highest": 0.7968}
    assert papers["cifar100-vgg16-dlgn-1"] == {"test_accuracy_highest": 0.615}
    assert papers["cifar10-resnet110-dnn"] == {"test_accuracy_highest": 0.94}
    vgg = runs()["gated/cifar100-vgg16-dlgn-1"].run
    steps = 49_000 // vgg.train.batch_size  # of an epoch of what is left after holding out; 64,000 in the paper
    assert abs(vgg.train.epochs * steps - 64_000) < steps


def test_copied_and_learnt_gates_start_where_they_should() -> None:
    copied = DIGITS.replace(model={"regime": "copied"})
    network = FAMILY.build(copied)
    variables, other = (jax.jit(network.init)(jax.random.key(seed), jnp.zeros((1, 8, 8, 1))) for seed in (0, 1))
    values = variables["params"]["body"]["value_network"]
    relu = {"params": {"body": other["params"]["body"]["value_network"]}}
    learnt = copied.replace(model={"regime": "learnt"})
    for run, pretrained, source in ((copied, None, values), (learnt, relu, relu["params"]["body"])):
        body = FAMILY.init_from(run, network, variables, pretrained, None)["params"]["body"]
        assert set(source) - set(body["gating_network"]) == {"linear_2"}
        jax.tree.map(np.testing.assert_array_equal, body["value_network"], values)
        for name, layer in body["gating_network"].items():
            jax.tree.map(np.testing.assert_array_equal, layer, source[name])
    frozen = copied.replace(model={"regime": "frozen"})
    assert FAMILY.init_from(frozen, network, variables, None, None) is variables


def test_the_network_whose_gates_are_learnt_is_a_relu_network_of_its_own_epochs() -> None:
    staged = runs()["gated/cifar10-gconv-staged-10"].run
    relu = FAMILY.pretrain(staged)
    assert relu is not None
    assert (relu.model.regime, relu.train.epochs, staged.train.epochs) == ("relu", 10, 80)
    assert FAMILY.pretrain(relu) is None


@pytest.mark.parametrize(
    ("regime", "frozen"), [("decoupled", None), ("gates", "value_network"), ("frozen", "gating_network")]
)
def test_a_regime_is_what_is_trained(regime: Regime, frozen: str | None) -> None:
    stays = FAMILY.frozen_params(DIGITS.replace(model={"regime": regime}))
    names = ("gating_network", "value_network")
    assert [name for name in names if stays and stays(f"body/{name}/linear_0/kernel")] == ([frozen] if frozen else [])


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"regime": "learnt", "gating": "linear"}, "gating"),
        ({"regime": "relu", "order": (1, 0)}, "order"),
        ({"regime": "relu", "value_input": "ones"}, "value_input"),
        ({"value_input": "ones"}, "value_input"),
        ({"stride": 2}, "stride"),
        ({"order": (1, 1)}, "model.order"),
        ({"architecture": "resnet", "depth": 9}, "model.architecture=resnet: depth"),
        ({"architecture": "vgg16"}, "model.architecture=vgg16: AvgPool"),
        ({"standardize": True}, "data.channels"),
    ],
)
def test_networks_that_cannot_be_are_named_by_their_field(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError, match=f"^{field}: "):
        FAMILY.build(DIGITS.replace(model=fields))


@pytest.mark.parametrize(
    ("parts", "field"),
    [
        ({"evaluate": {"grid_sizes": (3,)}}, "evaluate.grid_sizes"),
        (
            {"model": {"architecture": "c4gap", "depth": 2, "roll": 1}, "evaluate": {"grid_sizes": (2,)}},
            "model.roll",
        ),
        ({"data": {"name": "imagenet2012"}}, "data.name"),
    ],
)
def test_runs_that_cannot_be_are_named_by_their_field(parts: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError, match=f"^{field}: "):
        FAMILY.build(DIGITS.replace(**parts))


def test_more_training_images_than_there_are_raise(tmp_path: Path) -> None:
    run = untrained(DIGITS.replace(model={"kernel_images": 65}), tmp_path)
    with pytest.raises(ConfigError, match=r"model\.kernel_images: got 65, expected at most 64"):
        FAMILY.measure(run, lambda line: None)


@pytest.mark.parametrize("regime", ["relu", "frozen", "decoupled"])
def test_gates_read_off_a_run_give_back_its_logits(regime: Regime) -> None:
    trained = untrained(DIGITS.replace(model={"regime": regime}))
    x = jax.random.uniform(jax.random.key(0), (3, 8, 8, 1))
    gates = path_network(trained).gates(x)
    assert {gate.dtype for gate in gates} == {jnp.dtype(jnp.float32 if regime == "decoupled" else bool)}
    body = trained.variables["params"]["body"]
    value = Network(trained.run.model.layers)
    logits = value.apply({"params": body if regime == "relu" else body["value_network"]}, x, gates)
    np.testing.assert_allclose(logits, trained.network.apply(trained.variables, x), rtol=1e-5, atol=1e-6)
    net = trained.explainable
    parts = decompose(net, x)
    np.testing.assert_allclose(parts.contributions.sum((2, 3, 4)) + parts.bias, logits, rtol=1e-4, atol=1e-5)


def test_learnt_gates_are_those_of_the_relu_network_trained_first(tmp_path: Path) -> None:
    run = FAMILY.smoke(runs()["gated/digits-learnt"].run).replace(train={"epochs": 2, "eval_test_each_epoch": True})
    result = stages.train("gated/digits-learnt", run, tmp_path)
    highest = max(record["test_accuracy"] for record in result.history)
    first = stages.trained(tmp_path / stages.PRETRAINED, "best")
    assert (first.run.model.regime, first.run.train.epochs) == ("relu", 2)
    relu = first.variables["params"]["body"]
    body = stages.trained(tmp_path).variables["params"]["body"]
    for name, layer in body["gating_network"].items():
        np.testing.assert_array_equal(layer["kernel"], relu[name]["kernel"])
        assert np.abs(np.asarray(body["value_network"][name]["kernel"] - relu[name]["kernel"])).max() > 1e-3
    results = stages.evaluate(tmp_path, log=lambda line: None)
    assert results["metrics"]["npk_images"] == 24
    assert results["metrics"]["test_accuracy_highest"] == highest
    for one in results["deciding"]:
        assert one["offset"] + one["sum"] == pytest.approx(one["prediction"], abs=1e-9)
    html = stages.report(tmp_path).read_text(encoding="utf-8")
    for text in ("which training images decided", "Which sub-networks classes share", "Pixel removal"):
        assert text in html
    assert "Localization" not in html


@pytest.mark.slow
def test_the_report_of_linear_gates_shows_their_filters(tmp_path: Path) -> None:
    stages.train("gated/digits-dlgn", FAMILY.smoke(runs()["gated/digits-dlgn"].run), tmp_path)
    stages.evaluate(tmp_path, log=lambda line: None)
    assert "What the gates look at" in stages.report(tmp_path).read_text(encoding="utf-8")
    net = stages.trained(tmp_path)
    (table,) = filters(net, [0]).pictures
    assert isinstance(table, MapTable)
    pixels = jnp.concatenate([jnp.zeros((1, 64)), jnp.eye(64)]).reshape(65, 8, 8, 1)
    values = np.asarray(net.network.apply(net.variables, pixels, method="preactivations")[0]).reshape(65, -1)
    for cell in table.rows[0]:
        unit = int(cell.title.split()[-1])
        assert cell.map is not None
        np.testing.assert_allclose(cell.map.ravel(), values[1:, unit] - values[0, unit], atol=1e-6)


@pytest.mark.slow
def test_the_theorem_is_measured_drawn_and_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path), "--results", str(tmp_path)]
    with pytest.raises(SystemExit, match="2"):
        npk_theorem.main(["--smoke", *out])
    monkeypatch.setattr(npk_theorem, "Theorem", lambda: npk_theorem.SMOKE)
    npk_theorem.main(["--seeds", "0", *out])
    places = [line.split(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert places[:3] == [f"seed 0, panel {k} of 3" for k in (1, 2, 3)]
    assert (tmp_path / "npk_theorem.png").stat().st_size > 10_000
    metrics = json.loads((tmp_path / "gated_theorem.json").read_text())["metrics"]
    assert -1 < metrics["slope_depth_3_rademacher"]["mean"] < -0.2
    assert metrics["error_same_weights"]["mean"] > 0.4
    assert metrics["mean_error_width_4"]["mean"] < 0.3
    assert metrics["gates_permuted_fc"]["mean"] < 1e-6 < 0.01 < metrics["gates_permuted_conv"]["mean"]
    assert metrics["rotation_circular_padding"]["mean"] < 1e-5 < 0.01 < metrics["rotation_zero_padding"]["mean"]
