import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxinterp.app import cli, stages
from jaxinterp.app.registry import runs
from jaxinterp.coda.family import DIGITS
from jaxinterp.recipe.config import write_config


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """coda/digits, trained, in smoke mode."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    assert cli.main(["train", "coda/digits", "--smoke", "--run-dir", str(folder)]) == 0
    return folder


def run(arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    capsys.readouterr()
    try:
        status = cli.main(arguments.split())
    except SystemExit as stop:
        status = int(stop.code or 0)
    said = capsys.readouterr()
    return status, said.out, said.err


def test_a_warning_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    before = warnings.formatwarning
    with cli.warned_in_one_line():
        said = warnings.formatwarning("group: C16 leaves\nthe grid", UserWarning, "a.py", 7)
    assert said == "jaxinterp: warning: group: C16 leaves the grid\n"
    seen: list[str] = []
    monkeypatch.setattr(
        cli, "parse", lambda arguments: lambda console: seen.append(warnings.formatwarning("a", UserWarning, "b", 1))
    )
    assert cli.main(["list"]) == 0
    assert seen == ["jaxinterp: warning: a\n"]
    assert warnings.formatwarning is before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("train coda/digit", "unknown run 'coda/digit'; did you mean coda/digits"),
        ("train coda/digits temprature=3", "unknown key 'temprature'; did you mean temperature?"),
        ("train coda/digits temperature=warm", "temperature: expected float (such as 200.0), got 'warm'"),
        ("train coda/digits rescale=l3", "rescale: expected one of squash, l2 (such as squash), got 'l3'"),
        ("train coda/digits temperature", "expected key=value, got 'temperature'"),
        ("train coda/digits temperature=-1", "temperature: got -1.0, expected a positive finite number"),
        ("train coda/digits ranks=1,2", "one entry per layer expected"),
        ("train coda/digits features=8,16,16,5", "features: the last is 5, digits has 10 classes"),
        ("train coda/digits batch_size=15 accumulate=2", "batch_size=15 does not divide evenly"),
        ("train coda/digits epochs=0", "epochs: got 0, expected at least 1"),
        ("train coda/digits epochs=100000000000", "expected fewer than 2**31 steps in all"),
        ("train coda/digits crop=-1", "crop: got -1, expected at least 0"),
        ("train coda/digits validation=1.0", "validation: got 1.0, expected a share in [0, 1)"),
        ("train coda/digits rand_augment=2", "rand_augment: got 2, expected n,m or nothing"),
        ("train coda/digits rand_augment=-1,5", "rand_augment: num_ops must not be negative, got -1"),
        ("train coda/digits rand_augment=2,99", "rand_augment: magnitude must be in [0, 30] for uda, got 99"),
        ("train coda/digits ranks=0,4,4,4", "ranks: got 0,4,4,4, expected at least 1"),
        ("train coda/digits features=8,16,16,-8", "features: got 8,16,16,-8, expected at least 1"),
        ("train coda/digits kernel_sizes=3,3,-3,1", "kernel_sizes: got 3,3,-3,1, expected at least 1"),
        ("train coda/digits strides=1,0,2,1", "strides: got 1,0,2,1, expected at least 1"),
        ("train coda/digits channels=2", "channels: got 2, expected 1 or 3"),
        ("train coda/digits image_size=0", "image_size: got 0, expected at least 1"),
        ("train coda/digits images=-5", "images: got -5, expected at least 1"),
        ("train coda/digits images=5", "validation: fraction must leave both parts of the 5 examples non-empty"),
        ("train coda/digits images=5 validation=0", "batch_size: got 16, more than there are training images"),
        ("train coda/digits grid_sizes=3,0", "grid_sizes: got 3,0, expected at least 1"),
        ("train coda/digits occlusion=-1", "occlusion: got -1, expected at least 1"),
        ("train coda/digits temperature=inf", "temperature: got inf, expected a positive finite number"),
        ("train coda/digits learning_rate=nan", "learning_rate: got nan, expected a positive finite number"),
        ("train coda/digits epsilon=inf", "epsilon: got inf, expected a positive finite number"),
        ("train coda/digits regularizer=nan", "regularizer: got nan, expected a finite number, at least 0"),
        ("train coda/digits crop=8", "crop: got 8, expected less than the image's side, 8"),
        ("train coda/digits trunk_depth=7", "trunk_depth: got 7, expected 0 or 6n + 2"),
        ("train coda/digits trunk_depth=2", "trunk_depth: got 2, expected 0 or 6n + 2"),
        ("train coda/digits trunk_blocks=1", "trunk_blocks: got 1, expected 0 to 0 with trunk_depth=0"),
        ("train coda/digits trunk_depth=8 trunk_blocks=4", "trunk_blocks: got 4, expected 0 to 3 with trunk_depth=8"),
        (
            "train coda/digits crop=0 image_size=1 kernel_sizes=2,3,3,1",
            "the network does not fit 1x1 images: x: got 1x1 pixels with padding (0, 0)",
        ),
        ("train coda/digits seed=4294967296", "seed: got 4294967296, expected less than 2**32"),
        ("train coda/digits --smoke --seeds 0,1,0", "--seeds: got 0,1,0, expected different seeds"),
        ("train coda/digits --smoke --seeds 0,-1", "seed: got -1, expected at least 0"),
        (f"train coda/digits --smoke --run-dir {'a' * 300}", f"{'a' * 300}: File name too long"),
        ("train coda/mnist --data-dir nowhere", "mnist (train) is missing"),
        ("train coda/digits --seeds a", "--seeds"),
        ("train coda/digits --process-id 1", "coordinator, processes and process_id go together"),
        ("train", "RUN"),
        ("trian coda/digits", "demo, train, explain, evaluate, list, report"),
        ("train coda/digits --smok", "--smoke"),
        ("evaluate nowhere", "nowhere is not a run folder"),
        ("evaluate", "expected at least one run folder"),
        ("report nowhere", "nowhere is not a run folder"),
        ("explain nowhere a.png", "nowhere is not a run folder"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    arguments: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    status, _, err = run(arguments, capsys)
    assert status == 2
    assert says in err
    assert err.startswith("jaxinterp: ")
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [
        "train coda/mnist --run-dir {file} --data-dir nowhere",
        "train coda/mnist --run-dir {file}/deeper --data-dir nowhere",
        "explain nowhere a.png --out {file}",
    ],
)
def test_a_file_in_the_place_of_a_folder_is_found_before_the_work(
    arguments: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    status, _, err = run(arguments.format(file=file), capsys)
    assert status == 2
    assert f"expected a folder, {file} is a file" in err
    assert err.count("\n") == 1
    assert file.read_text() == "mine"


def test_a_folder_that_may_not_be_written_to_is_found_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path)  # root may write anywhere
    status, _, err = run(f"train coda/mnist --run-dir {tmp_path}/run --data-dir nowhere", capsys)
    assert (status, err) == (2, f"jaxinterp: {tmp_path}/run: {tmp_path} may not be written to\n")


@pytest.mark.parametrize(
    ("folders", "says"),
    [
        ("first first", "expected different seeds, got 0, 0"),
        ("first paper", "paper holds a run of taylor/digits, expected coda/digits as in first"),
        ("first warm", "warm holds another configuration than"),
        ("first nowhere", "nowhere is not a run folder"),
        ("first other --results file", "expected a folder, "),
        ("other first", "run.json is missing or damaged"),
    ],
)
def test_folders_that_do_not_go_together_are_refused_before_they_are_measured(
    folders: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stages, "evaluate", lambda *_, **__: pytest.fail("measured"))
    Path("file").touch()
    for name, change in (("first", {}), ("other", {"seed": 1}), ("warm", {"seed": 2, "temperature": 7.0})):
        write_config(Path(name), "coda/digits", replace(DIGITS, **change))
        Path(name, "run.json").write_text('{"resumed": [], "versions": {}, "summary": {}}')
    write_config(Path("paper"), "taylor/digits", runs()["taylor/digits"].config)
    if folders == "other first":
        Path("first", "run.json").unlink()
    status, _, err = run(f"evaluate {folders}", capsys)
    assert status == 2
    assert says in err
    assert err.count("\n") == 1


def test_list_names_every_run_with_the_papers_numbers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:

    monkeypatch.setenv("COLUMNS", "200")
    status, out, _ = run("list coded", capsys)
    assert status == 0
    assert "coded/cifar100" in out
    assert "coda/" not in out
    status, _, err = run("list cod/", capsys)
    assert status == 2
    assert "PREFIX: got 'cod/', expected the beginning of a run's name, such as coda, gated" in err
    status, out, _ = run("list", capsys)
    assert status == 0
    for name in runs():
        assert name in out
    assert "test_accuracy 0.932" in " ".join(out.split())


def test_train_writes_a_run_folder_and_resumes_it(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert {"config.json", "run.json", "metrics.jsonl", "checkpoints"} <= {p.name for p in run_dir.iterdir()}
    before = (run_dir / "metrics.jsonl").read_text()
    status, out, _ = run(f"train coda/digits --smoke --run-dir {run_dir}", capsys)
    assert status == 0
    assert "test accuracy last (epoch 1)" in out
    assert "best (epoch 1)" in out
    assert (run_dir / "metrics.jsonl").read_text() == before


def test_a_folder_keeps_its_configuration(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run_dir / "config.json").read_text()
    status, _, err = run(f"train coda/digits temperature=7 --smoke --run-dir {run_dir}", capsys)
    assert status == 2
    assert "temperature=200.0, not temperature=7.0" in err
    status, _, err = run(f"train coda/cifar10-s --smoke --run-dir {run_dir}", capsys)
    assert status == 2
    assert "holds the run coda/digits, not coda/cifar10-s" in err
    assert (run_dir / "config.json").read_text() == before


@pytest.mark.parametrize(
    ("command", "name", "old", "new", "says"),
    [
        ("report", "metrics.jsonl", "}\n", "", "is missing or damaged"),
        ("report", "run.json", "{", "", "is missing or damaged"),
        ("report", "evaluation.json", '"metrics": {}, ', "", "is damaged (it has no metrics)"),
        ("report", "config.json", "200.0", '"hot"', "(temperature: got 'hot', expected float)"),
        ("evaluate", "config.json", "200.0", "-1.0", "temperature: got -1.0"),
        ("evaluate", "config.json", '"epochs": 1', '"epochs": 0', "(epochs: got 0, expected at least 1)"),
        ("evaluate", "config.json", "coda/digits", "coda/digit", "unknown run 'coda/digit'; did you mean coda/digits"),
        ("train coda/digits --smoke --run-dir", "run.json", "{", "", "is damaged"),
    ],
)
def test_a_damaged_file_of_a_run_is_named_and_nothing_is_written(
    command: str,
    name: str,
    old: str,
    new: str,
    says: str,
    run_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "digits"
    shutil.copytree(run_dir, folder)
    parts = ("metrics", "localization", "grids", "removal", "residuals")
    (folder / "evaluation.json").write_text(json.dumps({part: {} for part in parts}))
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    status, out, err = run(f"{command} {folder}", capsys)
    assert status == 2
    assert says in err
    assert str(folder / name) in err
    assert err.count("\n") == 1
    assert "resuming" not in out
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_explain_writes_maps_and_sums_of_images_of_any_size(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (40, 30, 3), dtype=np.uint8)).save(tmp_path / "large.png")
    (tmp_path / "other").mkdir()
    Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(tmp_path / "other" / "large.png")
    out = tmp_path / "out"
    paths = f"{tmp_path}/large.png {tmp_path}/other/large.png"
    status, said, _ = run(f"explain {run_dir} {paths} --out {out}", capsys)
    assert status == 0
    assert "30x40 RGB -> 8x8 L" in said
    assert sorted(p.name for p in out.iterdir()) == ["large-2.json", "large-2.png", "large.json", "large.png"]
    for name in ("large", "large-2"):
        found = json.loads((out / f"{name}.json").read_text())
        assert [entry["class"] for entry in found["classes"]] == list("0123456789")
        for entry in found["classes"]:
            assert entry["logit"] == pytest.approx(entry["contributions"] + entry["bias"], abs=1e-5)
            assert abs(entry["residual"]) < 1e-5
        with Image.open(out / f"{name}.png") as picture:
            assert picture.width > 300


@pytest.mark.parametrize("name", ["missing.png", "text.png", "cut.png"])
def test_an_unreadable_image_is_named_and_nothing_is_written(
    name: str, run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("L", (64, 64)).save(tmp_path / "good.png")
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:60])
    out = tmp_path / "out"
    status, _, err = run(f"explain {run_dir} {tmp_path}/good.png {tmp_path}/{name} --out {out}", capsys)
    assert status == 2
    assert name in err
    assert err.count("\n") == 1
    assert not out.exists()


@pytest.mark.slow
def test_seeds_have_folders_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "runs" / "d"
    assert run(f"train coda/digits --smoke --seeds 3,4 --run-dir {folder}", capsys)[0] == 0
    configs = [json.loads((tmp_path / "runs" / f"d-seed-{seed}" / "config.json").read_text()) for seed in (3, 4)]
    assert [config["config"]["seed"] for config in configs] == [3, 4]
    assert not folder.exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:group. C16 leaves the grid:UserWarning")
def test_the_demo_makes_a_report_of_every_family(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, said, _ = run(f"demo --smoke --run-dir {tmp_path / 'demo'}", capsys)
    assert status == 0
    for folder in ("demo", *(f"demo/{name}" for name in ("coda", "gated", "coded", "taylor", "glassbox"))):
        assert (tmp_path / folder / "report.html").stat().st_size > 10_000
        assert f"{folder}/report.html" in said.replace("\n", "")
    families = ("CoDA Net", "gated network", "Coded ResNeXt", "TaylorNet", "glass box")
    assert [line.split("  ")[0] for line in said.splitlines()[-5:]] == list(families)


@pytest.mark.slow
def test_what_fails_beside_the_demo_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "gated").write_text("in the way")
    status, _, err = run(f"demo --smoke --run-dir {tmp_path}", capsys)
    assert status == 2
    assert "were not finished: status 1" in err
