import ast
import doctest
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError
from PIL import Image

from jaxinterp.app import stages
from jaxinterp.app.publish import ended, gather, publish
from jaxinterp.app.registry import paper_of, runs
from jaxinterp.app.results import read_results
from jaxinterp.coda import family as coda_nets
from jaxinterp.data import load
from jaxinterp.data.images import read_images, resize
from jaxinterp.errors import ConfigError, DataError
from jaxinterp.explain.metrics import completeness
from jaxinterp.explain.metrics.localization import tile_grid
from jaxinterp.files import write_arrays
from jaxinterp.recipe import config as run
from jaxinterp.recipe import page
from jaxinterp.recipe.config import override, read_arrays, read_config, shown, write_config
from jaxinterp.recipe.evaluation import relative_residuals

ROOT = Path(__file__).parents[2]


def parameters(config: coda_nets.CoDARun) -> int:
    image = jax.ShapeDtypeStruct((1, 32, 32, config.channels), jnp.float32)
    shapes = jax.eval_shape(coda_nets.build(config).init, jax.random.key(0), image)
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes["params"]))


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("coda/cifar10-s", 7_782_816),
        ("coda/cifar10-s-l2", 7_782_816),
        ("coda/cifar10-s-lambda0.25", 7_782_816),
        ("coda/cifar10-s-rank4", 1_076_984),
        ("coda/cifar10-s-rank8", 2_034_960),
        ("coda/cifar10-s-rank16", 3_950_912),
        ("coda/cifar10-s-rank144", 34_606_144),
        ("coda/imagenet100-l", 47_517_408),
    ],
)
def test_published_configurations_have_the_published_parameter_counts(name: str, count: int) -> None:
    assert parameters(coda_nets.RUNS[name].config) == count


def test_the_published_recipe() -> None:
    s = coda_nets.RUNS["coda/cifar10-s"].config
    assert (s.temperature, s.batch_size, s.accumulate, s.epsilon, s.epochs) == (1000.0, 16, 2, 1e-8, 200)
    assert s.strides == (1, 1, 2, 1, 1, 2, 1, 1, 1)
    rate = stages.schedule_of(s, 10)
    assert float(rate(0)) == pytest.approx(2.5e-4)
    assert float(rate(300)) == pytest.approx(2.5e-4 / 1.5)
    assert float(rate(1999)) == pytest.approx(2.195e-5, rel=1e-3)
    large = coda_nets.RUNS["coda/imagenet100-l"].config
    assert (large.batch_size, large.accumulate, large.epochs, large.image_size) == (64, 16, 60, 240)
    assert (large.temperature, large.strides) == (100_000.0, (3, 1, 1, 2, 1, 1, 2, 1, 1))
    rate = stages.schedule_of(large, 10)
    assert [float(rate(epoch * 10)) for epoch in (0, 14, 19, 20, 40)] == pytest.approx(
        [2.5e-4, 1e-3, 1e-3, 5e-4, 2.5e-4]
    )


def test_every_published_temperature_rank_and_lambda_is_a_run() -> None:
    names = set(runs())
    assert {f"coda/cifar10-s-t{t}" for t in (10, 50, 100, 500, 5000, 10000)} <= names
    assert {f"coda/cifar10-s-rank{r}" for r in (4, 8, 16, 144)} <= names
    assert {f"coda/cifar10-s-lambda{x}" for x in ("0", "0.1", "0.25", "0.5", "1")} <= names
    assert coda_nets.RUNS["coda/cifar10-s-t10"].config.temperature == 10
    assert coda_nets.RUNS["coda/cifar10-s-lambda0.5"].config.regularizer == 0.5
    assert coda_nets.RUNS["coda/cifar10-s-lambda0.5"].config.temperature == 64
    assert paper_of("coda/digits") is coda_nets


def test_override_is_typed_and_leaves_the_run_alone() -> None:
    old = coda_nets.RUNS["coda/cifar10-s"].config
    new = override(old, ["ranks=4,4,8", "temperature=500", "image_size=16", "dtype=bfloat16", "flip=False"])
    assert (new.ranks, new.temperature, new.image_size, new.dtype, new.flip) == (
        (4, 4, 8),
        500.0,
        16,
        "bfloat16",
        False,
    )
    assert old.temperature == 1000.0
    assert override(new, [f"ranks={shown(old.ranks)}"]).ranks == old.ranks
    assert override(new, ["grid_sizes="]).grid_sizes == ()
    for order in (["epochs=3", "warmup_epochs=2"], ["warmup_epochs=2", "epochs=3"]):
        assert override(old, order).warmup_epochs == 2
    for wrong in ("temperature=", "ranks=4,x", "flip=maybe", "epochs=1.5", "OUTPUTS=x"):
        with pytest.raises(ConfigError, match=wrong.split("=")[0]):
            override(old, [wrong])


def test_config_files_read_back_and_damaged_ones_are_named(tmp_path: Path) -> None:
    config = replace(coda_nets.DIGITS, seed=7)
    write_config(tmp_path, "coda/digits", config)
    assert read_config(tmp_path, coda_nets.CoDARun) == ("coda/digits", config)
    for text in ("{", "[]", '{"run": "coda/digits"}', '{"run": "coda/digits", "config": {"color": 1}}'):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ConfigError, match=r"config\.json"):
            read_config(tmp_path, coda_nets.CoDARun)


@pytest.mark.slow
def test_regularized_loss_adds_lambda_times_the_penalty() -> None:
    config = replace(coda_nets.smoke(coda_nets.DIGITS), regularizer=2.0)
    model = coda_nets.build(config)
    images = jax.random.uniform(jax.random.key(0), (2, 8, 8, 1))
    batch = {"image": images, "label": jnp.array([1, 2], jnp.int32)}
    params = model.init(jax.random.key(1), images)["params"]
    plain, _ = coda_nets.loss_of(replace(config, regularizer=0.0), model)(params, {}, batch, jax.random.key(2))
    total, (_, metrics) = coda_nets.loss_of(config, model)(params, {}, batch, jax.random.key(2))
    jacobian = jax.jacobian(lambda e: model.apply({"params": params}, e, encoded=True, frozen=True))(
        coda_nets.encode(images)
    )
    weights = config.temperature * jacobian[jnp.arange(2), :, jnp.arange(2)]
    assert float(total - plain) == pytest.approx(2.0 * float(jnp.abs(weights).mean()), rel=1e-3)
    assert float(metrics["loss"]) == float(total)
    with pytest.raises(ConfigError, match="regularizer"):
        coda_nets.loss_of(replace(coda_nets.HYBRID, regularizer=1.0), model)


def test_resized_repeats_pixels_and_channels() -> None:
    digits = load("digits", "test")
    large = resize(digits, 32, 3)
    assert large.images.shape == (360, 32, 32, 3)
    np.testing.assert_array_equal(large.images[:, ::4, ::4, 1], digits.images[..., 0])
    np.testing.assert_array_equal(large.images[:, 3::4, 3::4, 2], digits.images[..., 0])
    with pytest.raises((ConfigError, TypeCheckError), match="channels"):
        resize(large, None, 1)


def test_images_are_converted_and_scaled(tmp_path: Path) -> None:
    Image.new("RGBA", (6, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("L", (8, 8), 51).save(tmp_path / "gray.png")
    images, lines = read_images([tmp_path / "clear.png", tmp_path / "gray.png"], 8, 8, 3)
    assert images.shape == (2, 8, 8, 3)
    assert images[0].max() == 0
    np.testing.assert_allclose(images[1], 0.2)
    assert lines[0].endswith("clear.png: 6x4 RGBA -> 8x8 RGB")
    with pytest.raises(DataError, match=r"no\.png: no such file"):
        read_images([tmp_path / "no.png"], 8, 8, 3)
    with pytest.raises(ConfigError, match="at least one"):
        read_images([], 8, 8, 3)


def test_deep_gray_images_are_scaled_and_not_clipped(tmp_path: Path) -> None:
    values = np.array([[0, 13107], [32768, 65535]])
    made = {
        "16.png": values.astype(np.uint16),
        "16.tiff": values.astype(np.uint16),
        "32.tiff": values.astype(np.int32),
        "bytes.tiff": (values / 65535 * 255).astype(np.int32),
        "float.tiff": (values / 65535).astype(np.float32),
    }
    for name, pixels in made.items():
        Image.fromarray(pixels).save(tmp_path / name)
    images, lines = read_images([tmp_path / name for name in made], 2, 2, 3)
    expected = np.repeat((values / 65535)[..., None], 3, axis=-1)
    np.testing.assert_allclose(images, np.stack([expected] * len(made)), atol=1 / 255)
    assert [line.split()[2] for line in lines] == ["I;16", "I;16", "I", "I", "F"]
    for pixels, message in [
        (np.full((2, 2), 7.5, np.float32), "F values from 7.5 to 7.5, expected 0 to 1"),
        (np.full((2, 2), np.nan, np.float32), "F values from nan to nan, expected 0 to 1"),
        (np.full((2, 2), 65536, np.int32), "I values from 65536 to 65536, expected 0 to 65535"),
        (np.full((2, 2), -1, np.int32), "I values from -1 to -1, expected 0 to 255"),
    ]:
        Image.fromarray(pixels).save(tmp_path / "wrong.tiff")
        with pytest.raises(DataError, match=rf"wrong\.tiff: got {message}"):
            read_images([tmp_path / "wrong.tiff"], 2, 2, 1)


@pytest.mark.parametrize("keep", [0, 100, -1])
def test_damaged_arrays_are_named_with_the_command_that_makes_them(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "maps.npz"
    write_arrays(path, {"a": np.arange(100.0)})
    np.testing.assert_array_equal(read_arrays(path, "x")["a"], np.arange(100.0))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ConfigError, match=r"maps.npz is missing or damaged \(.*\); it is made by `x`"):
        read_arrays(path, "x")


@pytest.mark.parametrize("module", [run, page])
def test_examples_in_docstrings(module: ModuleType) -> None:
    assert doctest.testmod(module) == doctest.TestResults(failed=0, attempted=len(doctest_lines(module)))


def doctest_lines(module: ModuleType) -> list[str]:
    """Examples found by a search of the source for their prompt."""
    return re.findall(r"^ *>>> ", Path(str(module.__file__)).read_text(encoding="utf-8"), re.MULTILINE)


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """coda/digits in smoke mode with two seeds, trained and evaluated."""
    folders = []
    for seed in (0, 1):
        folders.append(tmp_path_factory.mktemp("runs") / f"coda-digits-seed-{seed}")
        stages.train("coda/digits", replace(coda_nets.smoke(coda_nets.DIGITS), seed=seed), folders[-1])
        stages.evaluate(folders[-1], log=lambda line: None)
    return folders


@pytest.mark.slow
def test_evaluation_measures_every_method(seeds: list[Path]) -> None:
    found = json.loads((seeds[0] / "evaluation.json").read_text())
    methods = ["decomposition", "gradient", "input_x_gradient", "integrated_gradients", "occlusion_3", "grad_cam"]
    assert list(found["localization"]["2x2"]) == methods
    assert list(found["removal"]) == methods
    for name in methods:
        suffix = "" if name == "decomposition" else f"_{name}"
        scores, curve = found["localization"]["2x2"][name], found["removal"][name]
        assert found["metrics"][f"localization_2x2_median{suffix}"] == pytest.approx(np.median(scores), abs=1e-5)
        assert found["metrics"][f"removal_curve_mean{suffix}"] == pytest.approx(np.mean(curve), abs=1e-5)
    assert found["metrics"]["completeness_residual"] == pytest.approx(np.abs(found["residuals"]).max())
    assert 0 < found["metrics"]["completeness_residual"] < 1e-4
    summary = json.loads((seeds[0] / "run.json").read_text())["summary"]
    assert found["metrics"]["test_accuracy"] == pytest.approx(summary["last"]["test_accuracy"])
    assert found["metrics"]["test_accuracy_best"] == pytest.approx(summary["best"]["test_accuracy"])
    maps, grid = read_arrays(seeds[0] / stages.MAPS, "evaluate"), found["grids"]["2x2"]
    assert list(maps) == methods
    _, config, subject = stages.trained(seeds[0])
    mosaic = tile_grid(jnp.asarray(stages.test_images(config, None)[0][grid["first_images"]])[None])
    want = subject.maps(mosaic, jnp.asarray([grid["first_classes"][:2]]))[0]
    np.testing.assert_allclose(maps["decomposition"], want, rtol=1e-3, atol=1e-5 * float(abs(want).max()))


@pytest.mark.slow
def test_seeds_are_gathered_into_published_results(seeds: list[Path], tmp_path: Path) -> None:
    results = gather(seeds)
    assert results.seeds == (0, 1)
    each = [json.loads((d / "evaluation.json").read_text())["metrics"]["removal_curve_mean"] for d in seeds]
    metric = results.metrics["removal_curve_mean"]
    assert (metric.n, metric.paper) == (2, None)
    assert metric.mean == pytest.approx(np.mean(each))
    assert metric.std == pytest.approx(np.std(each, ddof=1))
    assert "--seeds 0,1 && jaxinterp evaluate" in results.command
    assert "epochs=1" in results.command
    assert {"python", "jax", "flax"} <= set(results.versions)
    assert read_results(publish(results, tmp_path)) == results
    assert [p.name for p in tmp_path.iterdir()] == ["coda_digits.json"]
    with pytest.raises(ConfigError, match="different seeds"):
        gather([seeds[0], seeds[0]])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"summary": None}, "has not ended; go on with `jaxinterp train coda/digits`"),
        ({"versions": {"jax": "0"}}, "was trained with other versions than"),
    ],
)
def test_an_unfinished_run_is_not_published(
    seeds: list[Path], tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    ended(seeds)
    run_dir = tmp_path / "run"
    shutil.copytree(seeds[1], run_dir)
    info = json.loads((run_dir / "run.json").read_text()) | change
    (run_dir / "run.json").write_text(json.dumps({key: value for key, value in info.items() if value is not None}))
    with pytest.raises(ConfigError, match=says):
        ended([seeds[0], run_dir])


@pytest.mark.slow
def test_a_report_measures_again_what_was_trained_on(seeds: list[Path], tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(seeds[0], run_dir)
    found = json.loads((run_dir / "evaluation.json").read_text())
    (run_dir / "evaluation.json").write_text(json.dumps({**found, "step": 1, "metrics": {}}))
    stages.report(run_dir)
    again = json.loads((run_dir / "evaluation.json").read_text())
    assert (again["step"], again["metrics"].keys()) == (found["step"], found["metrics"].keys())


@pytest.mark.slow
def test_report_shows_the_whole_run(seeds: list[Path]) -> None:
    html = stages.report(seeds[0]).read_text(encoding="utf-8")
    assert html.count('src="data:image/png;base64,') == html.count("<img") >= 7
    assert "http" not in html
    for text in ("coda/digits", "Localization", "Pixel removal", "Completeness", "Training", "paper", "temperature"):
        assert text in html


@pytest.mark.slow
def test_residuals_are_those_of_the_identity() -> None:
    model = coda_nets.build(coda_nets.DIGITS)
    images = jax.random.uniform(jax.random.key(0), (3, 8, 8, 1))
    subject = coda_nets.subject(coda_nets.DIGITS, model, model.init(jax.random.key(1), images))
    assert np.abs(relative_residuals(subject, np.asarray(images))).max() < 1e-4
    wrong = relative_residuals(replace(subject, bias=subject.bias + 1e-3), np.asarray(images))
    assert np.abs(wrong).max() > 1e-2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:group. C[0-9]+ leaves the grid:UserWarning")
@pytest.mark.parametrize("name", sorted(runs()))
def test_every_run_trains_and_explains_in_smoke_mode(name: str, tmp_path: Path) -> None:
    config = paper_of(name).smoke(runs()[name].config)
    assert stages.train(name, config, tmp_path).summary["last"]["epoch"] == 1
    _, _, subject = stages.trained(tmp_path)
    images, _ = stages.test_images(config, None)
    parts = subject.decompose(images[:2])
    assert parts.logits.shape == (2, config.classes)
    missed = completeness(parts.contributions, parts.logits, parts.bias)
    size = np.abs(np.asarray(parts.logits - parts.bias)).max(1, keepdims=True)
    # An untrained net at T = 100,000 has contributions near the rounding of its logits, which hold the bias.
    assert (np.abs(np.asarray(missed.residual)) < 1e-4 * size + 2e-6).all()


def snippets() -> list[str]:
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/families.md")]
    return re.findall(r"```python\n(.*?)```", "".join(texts), re.DOTALL)


@pytest.mark.parametrize("snippet", snippets())
def test_readme_snippets_run_and_print_what_the_readme_says(snippet: str) -> None:
    ast.parse(snippet)
    ran = subprocess.run([sys.executable, "-c", snippet], capture_output=True, text=True, cwd=ROOT, check=True)
    difference = float(ran.stdout.split()[-1])
    assert difference < 1e-5
    assert len(snippet.strip().splitlines()) <= 21


def test_readme_is_short_and_its_picture_is_there() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    for link in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text):
        with Image.open(ROOT / link) as picture:
            assert picture.format == "PNG"
