import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxinterp.app import stages
from jaxinterp.app.publish import gather, require_finished
from jaxinterp.app.registry import family_of, runs
from jaxinterp.app.results import read_results, write_results
from jaxinterp.errors import CheckpointError, ConfigError
from jaxinterp.explain.attribute import gradient
from jaxinterp.explain.decompose import decompose
from jaxinterp.explain.metrics import completeness
from jaxinterp.explain.metrics.localization import tile_grid
from jaxinterp.figures.explorer import Explorable
from jaxinterp.files import unsealed, write_json
from jaxinterp.recipe import evaluation
from jaxinterp.recipe.data import training_data
from jaxinterp.recipe.run_folder import read_arrays, read_json

FAST = ("coda/digits", "gated/digits-dlgn", "taylor/digits")  # tests of families train the others of digits
SLOW = sorted(set(runs()) - set(FAST))


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """coda/digits in smoke mode with two seeds, trained and evaluated."""
    folders, run = [], runs()["coda/digits"].run
    for seed in (0, 1):
        folders.append(tmp_path_factory.mktemp("runs") / f"coda-digits-seed-{seed}")
        stages.train("coda/digits", family_of(run).smoke(run).with_seed(seed), folders[-1])
        stages.evaluate(folders[-1], log=lambda line: None)
    return folders


def test_evaluation_measures_every_method(seeds: list[Path]) -> None:
    results = json.loads((seeds[0] / "evaluation.json").read_text())
    methods = ["decomposition", "gradient", "input_x_gradient", "integrated_gradients", "occlusion_3", "grad_cam"]
    assert list(results["localization"]["2x2"]) == methods
    assert list(results["removal"]) == methods
    for name in methods:
        suffix = "" if name == "decomposition" else f"_{name}"
        scores, curve = results["localization"]["2x2"][name], results["removal"][name]
        assert results["metrics"][f"localization_2x2_median{suffix}"] == pytest.approx(np.median(scores), abs=1e-5)
        assert results["metrics"][f"removal_curve_mean{suffix}"] == pytest.approx(np.mean(curve), abs=1e-5)
    assert results["metrics"]["completeness_residual"] == pytest.approx(np.abs(results["residuals"]).max())
    assert 0 < results["metrics"]["completeness_residual"] < 1e-4
    assert results["metrics"]["curvature"] == 0
    assert results["metrics"]["discrepancy"] < 1e-6
    summary = json.loads((seeds[0] / "run.json").read_text())["summary"]
    assert results["metrics"]["test_accuracy"] == pytest.approx(summary["last"]["test_accuracy"])
    assert results["metrics"]["test_accuracy_best"] == pytest.approx(summary["best"]["test_accuracy"])
    maps, grid = read_arrays(seeds[0] / stages.MAPS, "evaluate"), results["grids"]["2x2"]
    assert list(maps) == methods
    trained = stages.trained(seeds[0])
    mosaic = tile_grid(jnp.asarray(trained.test_data[0][grid["first_images"]])[None])
    classes = jnp.asarray([grid["first_classes"][:2]])
    want = decompose(trained.explainable, mosaic, classes).maps(mosaic.shape[1:3])[0]
    np.testing.assert_allclose(maps["decomposition"], want, rtol=1e-3, atol=1e-5 * float(abs(want).max()))


def test_held_out_images_are_measured_as_test_images_are(seeds: list[Path]) -> None:
    lines = list[str]()
    found = stages.evaluate_held_out(seeds[0], log=lines.append)
    assert read_json(seeds[0] / "held_out.json", "jaxinterp evaluate --held-out") == found
    tested = json.loads((seeds[0] / "evaluation.json").read_text())["metrics"]
    assert set(found["metrics"]) == set(tested) - {"test_accuracy", "test_accuracy_best"} | {"val_accuracy"}
    assert found["metrics"]["removal_curve_mean"] != tested["removal_curve_mean"]
    summary = json.loads((seeds[0] / "run.json").read_text())["summary"]
    assert found["metrics"]["val_accuracy"] == pytest.approx(summary["last"]["val_accuracy"])
    run = stages.trained(seeds[0])
    held = training_data(run.run, None)[1]
    assert held is not None
    assert found["metrics"]["completeness_residual"] == pytest.approx(
        np.abs(evaluation.exactness(run.explainable, held.floats()).residuals).max(), rel=0.5
    )
    gathered = gather(seeds[:1], held_out=True)
    assert gathered.command.endswith("jaxinterp evaluate runs/coda-digits-seed-0 --held-out")
    assert gathered.metrics["val_accuracy"].mean == found["metrics"]["val_accuracy"]
    with pytest.raises(ConfigError, match=r"jaxinterp evaluate .* --held-out"):
        gather(seeds[1:], held_out=True)


def test_a_run_that_held_nothing_out_has_no_held_out_images(tmp_path: Path) -> None:
    run = family_of(runs()["gated/digits-relu"].run).smoke(runs()["gated/digits-relu"].run)
    stages.train("gated/digits-relu", run.replace(train={"val_fraction": 0.0}), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"train\.val_fraction: got 0\.0"):
        stages.evaluate_held_out(tmp_path / "run")
    assert not (tmp_path / "run" / "held_out.json").exists()


def test_a_method_that_shows_nothing_is_measured_and_the_log_says_so(
    seeds: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(net: Any, x: Any, targets: Any) -> Any:
        found = gradient(net, x, targets)
        return replace(found, contributions=0 * found.contributions)

    monkeypatch.setattr(evaluation, "compared", lambda *given: {"nothing": nothing})
    trained, lines = stages.trained(seeds[0]), list[str]()
    logits = np.asarray(trained.explainable.logits(trained.test_data[0]))
    results, _ = evaluation.measure(trained, trained.test_data, {"last": logits}, lines.append)
    assert results["metrics"]["localization_2x2_median_nothing"] == 0
    assert np.isfinite(list(results["metrics"].values())).all()
    assert any(line.startswith("localization 2x2, 0 of ") for line in lines)
    assert any(line.startswith("pixel deletion, 0 of ") for line in lines)


def test_seeds_are_gathered_into_published_results(seeds: list[Path], tmp_path: Path) -> None:
    results = gather(seeds)
    assert results.seeds == (0, 1)
    each = [json.loads((d / "evaluation.json").read_text())["metrics"]["removal_curve_mean"] for d in seeds]
    metric = results.metrics["removal_curve_mean"]
    assert (metric.n, metric.paper) == (2, None)
    assert metric.mean == pytest.approx(np.mean(each))
    assert metric.std == pytest.approx(np.std(each, ddof=1))
    assert "--seeds 0,1 && jaxinterp evaluate" in results.command
    assert "train.epochs=1" in results.command
    assert not results.headline
    assert "train.epochs=1" in results.overrides
    assert not any(override.startswith("train.seed") for override in results.overrides)
    assert {"python", "jax", "flax"} <= set(results.versions)
    write_results(tmp_path / "coda_digits.json", results)
    assert read_results(tmp_path / "coda_digits.json") == results
    with pytest.raises(ConfigError, match="seeds"):
        gather([seeds[0], seeds[0]])


@pytest.mark.parametrize(
    ("change", "says"), [({"summary": None}, "jaxinterp train coda/digits"), ({"versions": {"jax": "0"}}, "versions")]
)
def test_an_unfinished_run_is_not_published(
    seeds: list[Path], tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    require_finished(seeds)
    run_dir = tmp_path / "run"
    shutil.copytree(seeds[1], run_dir)
    info = unsealed(json.loads((run_dir / "run.json").read_text())) | change
    write_json(run_dir / "run.json", {key: value for key, value in info.items() if value is not None})
    with pytest.raises(ConfigError, match=says):
        require_finished([seeds[0], run_dir])


def test_a_folder_may_be_a_text(seeds: list[Path]) -> None:
    trained = stages.trained(str(seeds[0]), data_dir="nowhere")
    assert trained.run_dir == seeds[0]
    assert trained.data_dir == Path("nowhere")
    with pytest.raises(ConfigError, match=r"^nowhere: got no such folder, expected a run folder"):
        stages.trained("nowhere")


@pytest.mark.slow
def test_a_report_measures_again_what_was_trained_on(seeds: list[Path], tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(seeds[0], run_dir)
    results = unsealed(json.loads((run_dir / "evaluation.json").read_text()))
    write_json(run_dir / "evaluation.json", {**results, "step": 1, "metrics": {}})
    lines: list[str] = []
    stages.report(run_dir, log=lines.append)
    assert lines[0].startswith(f"{run_dir}: evaluated first")
    assert lines[-1] == f"{run_dir}: writing report.html"
    again = json.loads((run_dir / "evaluation.json").read_text())
    assert (again["step"], again["metrics"].keys()) == (results["step"], results["metrics"].keys())


def test_report_shows_the_whole_run(seeds: list[Path]) -> None:
    html = stages.report(seeds[0]).read_text(encoding="utf-8")
    assert html.count('<div id="figure-') >= 5
    assert html.count('<div id="explorer">') == 1
    assert re.search(r'(?:src|href)="https?:', html) is None
    shown = ("coda/digits", "Localization", "Completeness", "Curvature, at most 0", "Discrepancy, at most", "Training")
    for text in (*shown, "paper", "model.temperature"):
        assert text in html


@pytest.mark.slow
def test_an_explorer_is_of_so_many_images_and_says_what_it_leaves_out(
    seeds: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Explorable, "MAX_IMAGES", 2)
    files = [tmp_path / f"{i}.png" for i in range(3)]
    for file in files:
        Image.new("L", (28, 28), 99).save(file)
    html = stages.explore(seeds[0], files, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "The first 2 of 3 images are shown." in html
    assert "1.png" in html
    assert "2.png" not in html
    assert f"<h1>{seeds[0].name}: 2 images</h1>" in html
    html = stages.explore(seeds[0], files[:1], tmp_path / "page.html").read_text(encoding="utf-8")
    assert f"<h1>{seeds[0].name}: 1 image</h1>" in html


def test_an_edited_configuration_is_not_that_of_the_checkpoint(seeds: list[Path], tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(seeds[0], run_dir)
    text = (run_dir / "config.json").read_text()
    assert '"temperature": 200.0' in text
    (run_dir / "config.json").write_text(text.replace('"temperature": 200.0', '"temperature": 100.0'))
    for command in (stages.trained, stages.evaluate, stages.report):
        with pytest.raises(ConfigError, match=r"config\.json: .*edited or damaged"):
            command(run_dir)
    # Sealed again, and beside the checkpoints of another seed.
    content = unsealed(json.loads((seeds[0] / "config.json").read_text()))
    content["config"]["model"]["temperature"] = 100.0
    write_json(run_dir / "config.json", content)
    swapped = tmp_path / "swapped"
    shutil.copytree(seeds[0], swapped)
    shutil.rmtree(swapped / "checkpoints")
    shutil.copytree(seeds[1] / "checkpoints", swapped / "checkpoints")
    for folder in (run_dir, swapped):
        for command in (stages.trained, stages.evaluate, stages.report):
            with pytest.raises(CheckpointError, match="configuration"):
                command(folder)


@pytest.mark.filterwarnings("ignore:group. C[0-9]+ leaves the grid:UserWarning")
@pytest.mark.parametrize("name", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_every_run_trains_and_explains_in_smoke_mode(name: str, tmp_path: Path) -> None:
    run = runs()[name].run
    run = family_of(run).smoke(run)
    assert stages.train(name, run, tmp_path).summary["last"]["epoch"] == 1
    trained = stages.trained(tmp_path)
    parts = decompose(trained.explainable, trained.test_data[0][:2])
    assert parts.logits.shape == (2, run.model.classes)
    missed = completeness(trained.explainable, parts)
    size = np.abs(np.asarray(parts.logits - parts.bias)).max(1, keepdims=True)
    # An untrained net at T = 100,000 has contributions near the rounding of its logits, which hold the bias.
    assert (np.abs(np.asarray(missed.residual)) < 1e-4 * size + 2e-6).all()
