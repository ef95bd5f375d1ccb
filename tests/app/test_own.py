"""Runs, families and networks of one's own: in files, from Python, and fitted to images."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import jaxinterp
from jaxinterp.app import cli, presets, pretrained, stages
from jaxinterp.app.network import OwnNet
from jaxinterp.app.registry import BUILT_IN, family_of, run_in
from jaxinterp.app.run_file import read_run
from jaxinterp.app.training import SweepTable, name_for, run_of
from jaxinterp.errors import ConfigError
from jaxinterp.files import unsealed, write_json
from jaxinterp.recipe import Data, Evaluate, Images, Run, TrainConfig
from jaxinterp.recipe.run_folder import read_classes, write_classes, write_config

FAMILY = """
from dataclasses import dataclass
from flax import linen as nn
from jaxinterp.recipe import Count, Data, Evaluate, Family, Model, Run, TrainConfig

@dataclass(frozen=True)
class LinearModel(Model):
    width: Count = 4
    classes: Count = 10

class Linear(nn.Module):
    width: int
    classes: int

    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(self.classes)(nn.Dense(self.width)(x.reshape(len(x), -1)))

class LinearFamily(Family[LinearModel]):
    Model = LinearModel

    def build(self, run, dtype="float32"):
        return Linear(run.model.width, run.model.classes)

FAST = Run(
    LinearModel(), Data("digits", channels=1, max_images=64), train=TrainConfig(epochs=1, batch_size=16),
    evaluate=Evaluate(grid_sizes=(), removal_images=4, occlusion=(3,)),
)
OTHER, NUMBER = FAST.with_seed(1), 7
"""

NET = """
import jax, jax.numpy as jnp, jaxinterp

def layers():
    weights = jax.random.normal(jax.random.key(0), (64, 10))
    return jaxinterp.explainable(lambda w, x: jax.nn.relu(x.reshape(len(x), -1) @ w), weights), list("abcdefghij")

def pair():
    return (lambda w, x: x.reshape(len(x), -1) @ w), jnp.ones((64, 3))

def nothing():
    return None

def failing():
    return 1 / 0

number = 3
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a family and a network of one's own, and the family's run, trained by the command line."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "linear.py").write_text(FAMILY)
    (folder / "net.py").write_text(NET)
    (folder / "broken.py").write_text("import nothing_of_this_name")
    (folder / "empty.py").write_text("")
    cli.main(["train", f"{folder}/linear.py:FAST", "--run-dir", str(folder / "linear")])
    return folder


def said(arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    capsys.readouterr()
    try:
        cli.main(arguments.split())
    except SystemExit as stop:
        return int(stop.code or 0), capsys.readouterr().err
    return 0, capsys.readouterr().out


# --- runs in files ---


def test_a_toml_file_is_typed_as_the_run_is(tmp_path: Path) -> None:
    file = tmp_path / "my.toml"
    file.write_text(['base = "coda/mnist"\nmodel.ranks = [4, 4, 4, 4, 4]\n[train]\nepochs = 2\n', "\n"][0])
    run = read_run(str(file))
    named = run_of("coda/mnist")
    assert run == named.replace(model={"ranks": (4,) * 5}, train={"epochs": 2})
    file.write_text('family = "gated"\nmodel.width = 8\ndata.name = "digits"\noptim.learning_rate = 1\n')
    run = read_run(str(file))
    assert (run.model.width, run.data.name, run.optim.learning_rate) == (8, "digits", 1.0)
    assert run.model == replace(type(run.model)(), width=8)
    file.write_text('base = "coda/small"\ndata.name = "digits"\ntrain.epochs = 1\n')
    assert read_run(str(file)) == run_of("coda/small", "digits").replace(train={"epochs": 1})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('base = "coda/mnist"\nmodel.temprature = 3', "KEY: got model.temprature, expected model.temperature"),
        ('base = "coda/mnist"\ntemperature = 3', "KEY: got temperature, expected model.temperature"),
        ('base = "coda/mnist"\nmodel.temperature = "hot"', "model.temperature: got hot, expected a"),
        ('base = "coda/mnist"\ntrain.epochs = 1.5', "train.epochs: got 1.5, expected an integer"),
        ('base = "coda/mnist"\ntrain.epochs = 0', "train.epochs: got 0, expected at least 1"),
        ('base = "coda/mnits"', "coda/mnist"),
        ('base = "coda/small"', "data.name: got nothing"),
        ('family = "coder"', "family: got coder, expected coded"),
        ('family = "gated"\nbase = "coda/mnist"', "base, family: got both"),
        ("train.epochs = 3", "base, family: got neither"),
        ("train.epochs = ", "expected a TOML file"),
        ('family = "gated"\ntrain = 3', "KEY: got train"),
    ],
)
def test_a_mistake_in_a_toml_file_is_one_line_with_the_file(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text(text)
    with pytest.raises(ConfigError) as error:
        read_run(f"{tmp_path}/my.toml")
    assert says in str(error.value)
    assert f"{tmp_path}/my.toml" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("run", "says"),
    [
        ("nowhere.toml", "RUN: got nowhere.toml, expected a file that exists"),
        ("{}/nowhere.py", "nowhere.py, expected a file that exists"),
        ("{}/linear.py:FASTER", "linear.py:FAST"),
        ("{}/linear.py:NUMBER", "linear.py:NUMBER, a int, expected a Run"),
        ("{}/linear.py", "linear.py:FAST or"),
        ("{}/empty.py", "to define a run"),
        ("{}/broken.py:FAST", "which does not import (ModuleNotFoundError"),
        ("no_such_module:RUN", "got no_such_module, which does not import"),
        ("{}/linear.py:FAST --data digits", "--data: got digits"),
        ("{}/linear.py:FAST model.widht=3", "model.width"),
        ("coda --data digts", "digits"),
        ("coda", "--data: got nothing"),
        ("coda/tiny --data digits", "coda/"),
        ("coda/mnist --data digits", "--data: got digits, expected nothing with coda/mnist"),
    ],
)
def test_a_run_that_cannot_be_had_is_one_line(
    run: str,
    says: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    status, err = said(f"train {run.format(folder)}", capsys)
    assert (status, err.count("\n")) == (2, 1)
    assert says in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "run", "source"),
    [
        ("coda/small", run_of("coda/mnist"), "CoDA Net, sizes that fit the images"),
        ("my.toml", run_of("coda/mnist"), "CoDA Net, settings of your own"),
        ("gated/small", run_of("coda/mnist"), "CoDA Net, settings of your own"),
    ],
)
def test_the_head_of_a_report_says_of_what_kind_a_run_is(name: str, run: Run[Any], source: str, tmp_path: Path) -> None:
    write_config(tmp_path, name, run, "coda")
    assert run_in(tmp_path)[1].source == source


# --- a family of one's own ---


def test_a_run_of_an_own_family_is_read_without_its_file(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((folder / "linear" / "config.json").read_text())
    assert (config["run"], config["family"]) == (f"{folder}/linear.py:FAST", "family.py:LinearFamily")
    assert (folder / "linear" / "family.py").read_text() == FAMILY
    _, experiment, run = run_in(folder / "linear")
    assert experiment.run == run
    assert family_of(run).name == "linear"
    trained = jaxinterp.trained(folder / "linear")
    assert trained.classes == tuple("0123456789")
    parts = jaxinterp.decompose(trained.explainable, trained.test_data[0][:2])
    assert float(parts.relative_residual.max()) < 1e-5
    assert said(f"report {folder / 'linear'}", capsys)[0] == 0
    assert "settings of your own" in (folder / "linear" / "report.html").read_text()
    assert "test_accuracy" in said(f"evaluate {folder / 'linear'}", capsys)[1]
    (folder / "linear" / "family.py").rename(tmp_path / "away.py")
    try:
        status, err = said(f"evaluate {folder / 'linear'}", capsys)
    finally:
        (tmp_path / "away.py").rename(folder / "linear" / "family.py")
    assert status == 2
    assert "config.json: family: got" in err


def test_a_model_without_a_family_is_said() -> None:
    with pytest.raises(ConfigError, match=r"^model: got a Model"):
        family_of(Run(jaxinterp.recipe.Model()))


# --- from Python ---


def test_a_sweep_trains_into_a_table(tmp_path: Path) -> None:
    run = run_of("gated/digits-relu").replace(
        data={"max_images": 64}, model={"kernel_images": 0}, train={"epochs": 1, "batch_size": 16}
    )
    runs = run.sweep(seed=(0, 1), model__width=(4,))
    assert [(one.train.seed, one.model.width) for one in run.sweep(model__width=(4, 8), seed=(0, 1))] == [
        (0, 4),
        (1, 4),
        (0, 8),
        (1, 8),
    ]
    one = jaxinterp.train(runs[0], tmp_path / "seed-0-width-4")
    table = jaxinterp.train(runs, tmp_path)  # goes on with what is there
    assert isinstance(table, SweepTable)
    assert table.keys == ("train.seed", "model.width")
    assert [(row["train.seed"], row["model.width"]) for row in table] == [(0, 4), (1, 4)]
    assert table[0]["test_accuracy"] == one.summary["last"]["test_accuracy"]
    assert sorted(path.name for path in tmp_path.iterdir())[0] == "seed-0-width-4"
    written = list(csv.DictReader(table.csv(tmp_path / "table.csv").splitlines()))
    assert [float(row["test_accuracy"]) for row in written] == [row["test_accuracy"] for row in table]
    assert str(table).splitlines()[0].split()[:3] == ["train.seed", "model.width", "epochs"]
    assert "<table" in table._repr_html_()
    means = table.over_seeds()
    assert [(row["model.width"], row["seeds"]) for row in means] == [(4, 2)]
    pair = [row["test_accuracy"] for row in table]
    assert means[0]["test_accuracy"] == pytest.approx(np.mean(pair))
    assert means[0]["test_accuracy ±"] == pytest.approx(np.std(pair, ddof=1))


@pytest.mark.parametrize(
    ("choices", "says"),
    [
        ({"model__temprature": (1,)}, "KEY: got model__temprature, expected model__temperature"),
        ({"temperature": (1,)}, "KEY: got temperature, expected model__temperature"),
        ({"seed": ()}, "seed: got"),
        ({"seed": 3}, "seed: got 3"),
        ({"seed": (1, 1)}, "seed: got 1,1, expected different"),
        ({"model__temperature": (100, "hot")}, "temperature: got hot"),
        ({}, "choices: got none"),
    ],
)
def test_a_sweep_over_what_is_no_field_is_one_line(choices: dict, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        run_of("coda/mnist").sweep(**choices)
    assert says in str(error.value)


def test_a_runs_folder_follows_from_its_configuration() -> None:
    run = run_of("coda/mnist")
    assert name_for(run) == ("coda/mnist", "coda-mnist")
    names = {name_for(one) for one in run.sweep(model__temperature=(100, 200), seed=(1, 2))}
    assert len(names) == 4
    assert all(name == "coda on mnist" and folder.startswith("coda-mnist-") for name, folder in names)
    with pytest.raises(ConfigError, match=r"^run: got a str"):
        jaxinterp.train("coda/mnist")


# --- presets ---

SIZES = [
    Images("digits", 8, 1, 10, 1437),
    Images("cifar10", 20, 3, 2, 60),
    Images("cifar10", 97, 1, 37, 900),
    Images("cifar10", 500, 3, 3, 130),
]


@pytest.mark.parametrize("images", SIZES, ids=lambda images: f"{images.side}px")
@pytest.mark.parametrize("name", [name for name in presets.PRESETS if not name.endswith("paper")])
def test_a_preset_fits_images_of_any_size(name: str, images: Images) -> None:
    family, _, scale = name.partition("/")
    run = BUILT_IN[family].preset(scale, images)
    assert run.model.classes == images.classes
    assert (run.data.name, run.data.channels) == (images.name, images.channels)
    assert run.data.image_shape[0] <= images.side
    assert 4 * run.train.batch_size <= images.count
    BUILT_IN[family].loss(run, BUILT_IN[family].network(run))


def test_a_preset_is_trained_evaluated_and_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    finished = []
    monkeypatch.setattr(cli.Train, "finish", lambda command, folders, console: finished.extend(folders))
    small = "data.max_images=64 train.batch_size=16 train.epochs=2"
    status, out = said(f"train gated --data digits {small}", capsys)
    assert status == 0
    assert "gated/small: 1437 images of 8x8x1 in 10 classes" in out
    assert finished == [Path("runs/gated-small-digits")]
    name, experiment, _ = run_in(tmp_path / "runs" / "gated-small-digits")
    assert (name, experiment.headline) == ("gated/small", False)


# --- a network of one's own ---


def test_an_own_network_is_explained_evaluated_audited_and_reported(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "jaxinterp.app.network.fitted", lambda model, images, side, steps: Run(
            model, Data(images.name, image_size=side, channels=images.channels, max_images=32),
            train=TrainConfig(epochs=1, batch_size=16), evaluate=Evaluate((2,), removal_images=4, occlusion=(3,)),
        )
    )  # fmt: skip
    net = f"--net {folder}/net.py:layers"
    status, out = said(f"evaluate {net} --data digits", capsys)
    assert status == 0
    assert "completeness_residual" in out
    run_dir = tmp_path / "runs" / "net-layers"
    assert jaxinterp.trained(run_dir).classes == tuple("abcdefghij")
    assert said(f"report {run_dir}", capsys)[0] == 0
    assert "Training" not in (run_dir / "report.html").read_text()
    assert said(f"audit {net} --data digits --images 4 --methods gradient", capsys)[0] == 0
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save("x.png")
    status, out = said(f"explain {net} --image-size 8 --channels 1 x.png", capsys)
    assert status == 0
    found = json.loads((tmp_path / "explanations" / "x.json").read_text())
    assert [entry["class"] for entry in found["classes"]] == list("abcdefghij")
    assert max(abs(entry["residual"]) for entry in found["classes"]) < 1e-4


def test_a_pair_of_a_function_and_its_parameters_is_a_network(folder: Path) -> None:
    net = OwnNet(f"{folder}/net.py:pair")
    assert net.outputs((8, 8, 1)) == 3
    assert net.trained((8, 8, 1), ("a", "b")).classes == ("a", "b", "2")
    assert net.trained((8, 8, 1)).classes == ("0", "1", "2")


def test_a_network_without_names_has_numbers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder / "linear")  # another run's names lie here
    net = OwnNet(f"{folder}/net.py:layers")
    unnamed = replace(net)
    object.__setattr__(unnamed, "_made", (net._made[0], ()))
    assert unnamed.trained((8, 8, 1)).classes == tuple("0123456789")


def test_an_exported_network_is_measured_as_its_run_is(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    net = OwnNet("gated-mnist")
    assert (net.stem, net.absolute, net.outputs((28, 28, 1))) == ("gated-mnist", "gated-mnist", 10)
    monkeypatch.chdir(tmp_path)
    status, out = said("audit --net gated-mnist --data mnist-2000 --images 4 --methods gradient", capsys)
    assert status == 0
    assert "gradient" in out
    run = run_in(tmp_path / "runs" / "gated-mnist")[2]
    assert (run.data.name, run.model.classes) == ("mnist-2000", 10)
    Image.fromarray(np.zeros((28, 28), np.uint8)).save("x.png")
    status, out = said("explain --net gated-mnist x.png", capsys)
    assert (status, "explained by gated-mnist" in out) == (0, True)


@pytest.mark.parametrize("reference", ["{}/other.py:LinearFamily", "../linear.py:LinearFamily", "a/b:LinearFamily"])
def test_a_run_folder_names_no_code_outside_of_it(reference: str, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "linear", tmp_path / "run")
    (tmp_path / "other.py").write_text("raise SystemExit(7)")
    content = unsealed(json.loads((tmp_path / "run" / "config.json").read_text()))
    write_json(tmp_path / "run" / "config.json", {**content, "family": reference.format(tmp_path)})
    with pytest.raises(ConfigError, match=r"config\.json: family: got .*family\.py in the folder"):
        run_in(tmp_path / "run")


def test_names_of_classes_are_sealed(folder: Path, tmp_path: Path) -> None:
    write_classes(tmp_path, ["cat", "dog"])
    assert read_classes(tmp_path) == ("cat", "dog")
    for wrong in ('{"classes": ["a", "b"], "seal": 1}', '{"classes": "ab"}', '["a"]'):
        (tmp_path / "classes.json").write_text(wrong)
        with pytest.raises(ConfigError, match=r"classes\.json"):
            read_classes(tmp_path)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("evaluate --net {}/net.py:nothing --data digits", "which returns None, expected an Explainable"),
        ("evaluate --net {}/net.py:failing --data digits", "which fails: ZeroDivisionError"),
        ("evaluate --net {}/net.py:number --data digits", "net.py:number, a int, expected a function"),
        ("evaluate --net {}/net.py:layer --data digits", "net.py:layers"),
        ("evaluate --net {}/broken.py:layers --data digits", "which does not import (ModuleNotFoundError"),
        ("evaluate --net {}/net.py:layers", "--data: got nothing"),
        ("evaluate --net {}/net.py:layers --data digits --image-size 9", "which does not take 9x9x1 images"),
        ("evaluate --net {}/net.py:pair --data digits", "at least 10, the classes of digits"),
        ("report --net {}/net.py:layers --data digits runs/x", "RUN_DIR: got runs/x"),
        ("report --data digits runs/x", "--data: got digits"),
        ("evaluate --data digits runs/x", "--data: got digits"),
        ("audit --out pages runs/x", "--out: got pages"),
        ("explain runs/x y.png --image-size 8", "--image-size: got 8"),
        ("evaluate --net none.safetensors --data digits", "none.safetensors"),
        ("evaluate --net {}/net.py --data digits", "net.py:FUNCTION"),
        ("train coda --data {}", "expected folder:"),
        ("evaluate --net coda-mnits --data digits", "coda-mnist"),
        ("report", "RUN_DIR: got nothing"),
        ("explain --net {}/net.py:layers x.png", "x.png"),
        ("explain", "IMAGE: got nothing"),
    ],
)
def test_a_network_that_cannot_be_had_is_one_line(
    words: str,
    says: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    status, err = said(words.format(folder), capsys)
    assert (status, err.count("\n")) == (2, 1)
    assert says in err
    assert not list(tmp_path.iterdir())


# --- without a run ---


def test_images_without_a_run_are_explained_by_a_pretrained_network_that_fits(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    gray = np.arange(784, dtype=np.uint16).reshape(28, 28).astype(np.uint8)
    Image.fromarray(gray).save("gray.png")
    Image.fromarray(np.stack([gray, gray.T, gray], -1)).save("color.png")
    monkeypatch.setattr(pretrained, "inputs", dict)
    status, err = said("explain color.png", capsys)
    assert status == 2
    assert "color.png: got a color image of 28x28, which no pretrained network takes" in err
    assert "jaxinterp train coda" in err
    status, err = said("explain gray.png color.png", capsys)
    assert (status, "color.png: got a color image of 28x28" in err) == (2, True)
    trained = replace(jaxinterp.trained(folder / "linear"), name="linear-digits")
    monkeypatch.setattr(pretrained, "inputs", lambda: {"linear-digits": ("digits", (8, 8, 1))})
    monkeypatch.setattr(pretrained, "load_trained", lambda name: (trained, None))
    status, out = said("explain gray.png", capsys)
    assert status == 0
    assert "explained by linear-digits" in out
    assert (tmp_path / "explanations" / "gray.json").exists()
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").symlink_to(folder / "linear")
    Image.fromarray(np.tile(gray, (8, 9))).save("large.png")
    status, err = said("explain gray.png large.png", capsys)
    assert (status, "large.png: got a gray image of 252x224" in err) == (2, True)
    status, err = said("explain large.png", capsys)
    assert status == 2
    assert "jaxinterp explain runs/mine large.png" in err
    assert "linear-digits reads digits of 8x8" in err
    assert stages.last_step(folder / "linear") > 0
