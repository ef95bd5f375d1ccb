import json
import shutil
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from command_line import run
from PIL import Image

from jaxinterp.app import cli, registry, stages
from jaxinterp.app.console import errors_in_one_line
from jaxinterp.app.demo import QUICK_COMPILER
from jaxinterp.app.registry import runs
from jaxinterp.files import unsealed, write_json
from jaxinterp.recipe.run_folder import write_config


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """coda/digits, trained, in smoke mode."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    cli.main(["train", "coda/digits", "--smoke", "--run-dir", str(folder)])
    return folder


def test_a_warning_is_one_line() -> None:
    before = warnings.formatwarning
    with errors_in_one_line():
        line = warnings.formatwarning("group: C16 leaves\nthe grid", UserWarning, "a.py", 7)
    assert line == "jaxinterp: warning: group: C16 leaves the grid\n"
    assert warnings.formatwarning is before


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version", capsys) == (0, f"jaxinterp {version('jaxinterp')}\n", "")


def test_options_of_a_runs_fields_are_assignments() -> None:
    words = ["train", "coda/mnist", "--model.ranks", "4", "8", "--smoke", "train.epochs=3", "--augment.flip=False"]
    written = ["train", "coda/mnist", "--smoke", "model.ranks=4,8", "train.epochs=3", "augment.flip=False"]
    assert cli.assignments(words) == written
    for before in (["--train.epochs", "4"], ["--train.epochs=4"], ["train.epochs=4"]):
        assert cli.assignments(["train", *before, "coda/mnist"]) == ["train", "coda/mnist", "train.epochs=4"]
    assert cli.assignments(written) == written


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ("train coda/digit", "coda/digits"),
        ("train coda/digits model.temprature=3", "model.temperature"),
        ("train coda/digits --model.temprature 3", "model.temperature"),
        ("train coda/digits temperature=3", "model.temperature"),
        ("train coda/digits model.temperature=warm", "model.temperature"),
        ("train coda/digits model.rescale=l3", "model.rescale"),
        ("train coda/digits temperature", "KEY=VALUE"),
        ("train coda/digits model.temperature=-1", "temperature"),
        ("train coda/digits model.ranks=1,2", "ranks"),
        ("train coda/digits model.features=8,16,16,5", "model.features"),
        ("train coda/digits train.batch_size=15 train.grad_accum_steps=2", "batch_size"),
        ("train coda/digits --train.epochs 0", "epochs"),
        ("train coda/digits train.epochs=100000000000", "epochs"),
        ("train coda/digits augment.rand_augment=-1,5", "rand_augment"),
        ("train coda/digits augment.rand_augment=2,99", "rand_augment"),
        ("train coda/digits data.max_images=5", "val_fraction"),
        ("train coda/digits data.max_images=5 train.val_fraction=0", "batch_size"),
        ("train coda/digits augment.crop_padding=8", "crop_padding"),
        ("train coda/digits augment.crop_padding=0 data.image_size=1 model.kernel_sizes=2,3,3,1", "1x1"),
        ("train coda/digits --smoke --seeds 0,1,0", "--seeds"),
        ("train coda/digits --smoke --seeds 0,-1", "--seeds: got 0,-1"),
        ("train coda/digits --smoke --run-dir=", "--run-dir"),
        (f"train coda/digits --smoke --run-dir {'a' * 300}", f"{'a' * 300}"),
        ("train coda/mnist --data-dir nowhere", "mnist (train)"),
        (f"train coda/mnist --data-dir {__file__}", "mnist (train)"),
        ("train coda/digits train.epochs=", "train.epochs: got nothing"),
        ("train coda/digits --train.epochs --smoke", "train.epochs: got nothing"),
        ("train coda/digits --model.features 8 -1", "model.features: got 8,-1"),
        ("train coda/digits data.max_images=x", "data.max_images: got x, expected an integer"),
        ("train coda/digits augment.flip=None", "augment.flip: got None, expected True or False"),
        ("train coda/digits model.temperature=9 --smoke --run-dir x train.epochs=0", "train.epochs"),
        ("train coda/digits --seeds 1,,2", "--seeds: got 1,,2, expected integers"),
        ("train --train.epochs 4 coda", "--data: got nothing"),
        ("train coda/digits --epochs 4", "KEY: got epochs, expected train.epochs"),
        ("train coda/digits flip=true", "KEY: got flip, expected augment.flip"),
        ("train coda/digits --seedz 4", "perhaps you meant --seeds"),
        ("train coda/digits --seeds 4-2", "--seeds: got 4-2"),
        ("train coda/digits --seeds 0-a", "--seeds: got 0-a, expected integers in [0, 2**32)"),
        ("train coda/digits --seeds 0,a", "--seeds: got 0,a, expected integers in [0, 2**32), separated by commas"),
        ("train coda/digits --seeds 4294967296", "--seeds: got 4294967296"),
        ("train coda/digits --seeds 0,1 train.seed=3", "--seeds: got 0,1 beside train.seed=3, expected one of the two"),
        ("train coda/digits --seeds 0,1 --train.seed 3", "--seeds: got 0,1 beside train.seed=3"),
        ("train coda/digits --seeds 0 --seeds 1", "--seeds: got it 2 times, expected it once"),
        ("train coda/digits train.epochs=2 train.epochs=3", "train.epochs: got 2, then 3, expected one value"),
        ("train coda/digits --train.epochs 2 train.epochs=3", "train.epochs: got 2, then 3, expected one value"),
        ("train coda/digits --process-id 1", "process_id"),
        ("train", "RUN"),
        ("trian coda/digits", "train"),
        ("train coda/digits --smok", "perhaps you meant --smoke\n"),
        ("train cdoa", "RUN: got cdoa, expected coda"),
        ("evaluate nowhere/file", "nowhere/file: got no such folder, expected a run folder"),
        (f"evaluate {Path(__file__).parent}", "got no config.json, expected a run folder"),
        ("explain notes.txt", "IMAGE: got notes.txt"),
        ("evaluate nowhere", "nowhere"),
        ("evaluate", "RUN_DIR"),
        ("evaluate --held-out --net a.py:b --data digits", "--held-out"),
        ("evaluate nowhere --held-out --results out", "--results"),
        ("report nowhere", "nowhere"),
        ("audit nowhere", "nowhere"),
        ("audit nowhere --images 0", "--images: got 0"),
        ("explain nowhere a.png", "nowhere"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    arguments: str, field: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    status, _, err = run(arguments, capsys)
    assert status == 2
    assert field in err
    assert err.startswith("jaxinterp: ")
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "command", ["evaluate {}", "audit {}", "report {}", "show {}", "plan {}", "explain {} a.png", "explain {}"]
)
def test_a_mistyped_folder_has_the_nearest_run_beside_it(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_config(tmp_path / "coda-small-photos", "coda/digits", runs()["coda/digits"].run)
    (tmp_path / "coda-smal-photo").touch()  # no run
    status, _, err = run(command.format(tmp_path / "coda-smal-photos"), capsys)
    assert status == 2
    assert err == (
        f"jaxinterp: {tmp_path}/coda-smal-photos: got no such folder, expected {tmp_path}/coda-small-photos\n"
    )


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
    assert f"got the file {file}, expected a folder" in err
    assert err.count("\n") == 1
    assert file.read_text() == "mine"


def test_a_folder_that_may_not_be_written_to_is_found_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path)  # root may write anywhere
    status, _, err = run(f"train coda/mnist --run-dir {tmp_path}/run --data-dir nowhere", capsys)
    assert (status, err) == (
        2,
        f"jaxinterp: {tmp_path}/run: got {tmp_path}, which may not be written to, expected a folder that may\n",
    )


@pytest.mark.parametrize(
    ("folders", "says"),
    [
        ("first first", "seeds"),
        ("first paper", "taylor/digits"),
        ("first warm", "warm"),
        ("first nowhere", "nowhere"),
        ("first other --results file", "file"),
        ("other first", "run.json"),
    ],
)
def test_folders_that_do_not_go_together_are_refused_before_they_are_measured(
    folders: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stages, "evaluate", lambda *_, **__: pytest.fail("measured"))
    Path("file").touch()
    digits = runs()["coda/digits"].run
    warm = digits.with_seed(2).replace(model={"temperature": 7.0})
    for name, one in (("first", digits), ("other", digits.with_seed(1)), ("warm", warm)):
        write_config(Path(name), "coda/digits", one)
        Path(name, "run.json").write_text('{"resumed": [], "versions": {}, "summary": {}}')
    write_config(Path("paper"), "taylor/digits", runs()["taylor/digits"].run)
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
    assert "PREFIX: got cod/, expected the beginning of a run's name, such as coda, gated" in err
    status, out, _ = run("list", capsys)
    assert status == 0
    for name in runs():
        assert name in out
    assert "test_accuracy 0.932" in " ".join(out.split())


def test_claims_are_printed_in_lines_whole_or_as_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    status, out, _ = run("claims", capsys)
    assert status == 0
    (line,) = (line for line in out.splitlines() if line.startswith("ntk-rate"))
    assert "-0.493 ± 0.017" in line
    assert line.rstrip().endswith("holds")
    status, out, _ = run("claims ntk-rate", capsys)
    assert status == 0
    assert "command: python experiments/npk_theorem.py" in out
    status, out, _ = run("claims ntk-rate --json", capsys)
    assert (status, json.loads(out)[0]["seeds"]) == (0, 3)
    status, _, err = run("claims ntk-rat", capsys)
    assert status == 2
    assert "ROW" in err
    assert "ntk-rate" in err


def test_train_writes_a_run_folder_and_resumes_it(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert {"config.json", "run.json", "metrics.jsonl", "checkpoints"} <= {p.name for p in run_dir.iterdir()}
    before = (run_dir / "metrics.jsonl").read_text()
    status, out, _ = run(f"train coda/digits --smoke --run-dir {run_dir}", capsys)
    assert status == 0
    assert "test accuracy last (epoch 1)" in out
    assert "best (epoch 1)" in out
    assert "already finished, 1 of 1 epochs" in out
    assert "resuming" not in out
    assert (run_dir / "metrics.jsonl").read_text() == before


@pytest.mark.slow
def test_results_of_a_smoke_run_leave_the_headlines_alone(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "coda_digits.json").write_text("published")
    status, out, _ = run(f"evaluate {run_dir} --results {tmp_path}", capsys)
    assert status == 0
    assert (tmp_path / "coda_digits.json").read_text() == "published"
    (file,) = (path for path in tmp_path.iterdir() if path.name != "coda_digits.json")
    assert file.name in out.replace("\n", "")
    content = json.loads(file.read_text())
    assert content["headline"] is False
    assert {"data.max_images=64", "train.epochs=1"} <= set(content["overrides"])


@pytest.mark.slow
def test_an_audit_writes_its_page_and_its_results(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = run(f"audit {run_dir} --images 4 --methods gradient,occlusion --results {tmp_path}", capsys)
    assert status == 0
    first, *lines = err.splitlines()
    assert first == "2 methods and 7 metrics on 4 examples"
    assert [line.split(",")[0] for line in lines] == ["1 of 2: gradient", "2 of 2: occlusion"]
    assert "compared with the network's exact decomposition at 'input'" in out
    (file,) = tmp_path.iterdir()
    assert file.name.startswith("audit_coda_digits-")
    results, kept = json.loads(file.read_text()), json.loads((run_dir / "audit.json").read_text())
    assert results["run"] == "audit of coda/digits"
    assert "jaxinterp audit runs/coda-digits-seed-0 --images 4 --methods gradient,occlusion" in results["command"]
    cosine = kept["methods"]["gradient"]["distances"]["cosine"]["mean"]
    assert results["metrics"]["gradient cosine"]["mean"] == pytest.approx(cosine)
    assert {"run", "step", "machine", "commit", "versions", "truth"} <= set(kept)
    page = (run_dir / "audit.html").read_text()
    assert "How far methods are from the truth" in page
    assert page.count('<div id="figure-') >= 1
    status, out, _ = run(f"audit {run_dir} --images 4 --methods gradient --json", capsys)
    assert status == 0
    assert list(json.loads(out)["methods"]) == ["gradient"]


def test_a_file_of_runs_is_a_script_of_its_own_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(registry, "FOLDERS", list(registry.FOLDERS))
    file = str(registry.PACKAGE.parent / "experiments" / "coda.py")
    with pytest.raises(SystemExit) as end:
        cli.run_experiment(file, ["--help"])
    said = capsys.readouterr().out
    assert end.value.code == 0
    assert "Train, evaluate and report one of the runs of this file" in said
    assert "coda/mnist" in said
    assert "gated/" not in said
    for wrong, near in (("coda/digit", "coda/digits"), ("gated/digits-dlgn", "a run of coda.py, such as coda/digits")):
        with pytest.raises(SystemExit) as end:
            cli.run_experiment(file, [wrong])
        assert end.value.code == 2
        err = capsys.readouterr().err
        assert f"RUN: got {wrong}, expected {near}" in err
        assert "gated/" not in err.split("expected")[1]
        assert err.count("\n") == 1


def test_a_folder_keeps_its_configuration(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run_dir / "config.json").read_text()
    status, _, err = run(f"train coda/digits model.temperature=7 --smoke --run-dir {run_dir}", capsys)
    assert status == 2
    assert "model.temperature=7.0" in err
    assert "model.temperature=200.0" in err
    status, _, err = run(f"train coda/cifar10-s --smoke --run-dir {run_dir}", capsys)
    assert status == 2
    assert "coda/digits" in err
    assert "coda/cifar10-s" in err
    assert (run_dir / "config.json").read_text() == before


def test_a_finished_run_goes_on_and_is_compared_by_what_differs(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    longer = tmp_path / "clo[/red]se"
    shutil.copytree(run_dir, longer)
    first = json.loads((longer / "metrics.jsonl").read_text().splitlines()[0])
    status, out, _ = run(f"train coda/digits --smoke train.epochs=2 --run-dir {longer}", capsys)
    assert status == 0
    assert "going on to epoch 2 after 1 of 1: from here on the learning rate is that of a schedule over 2 epochs" in out
    records = [json.loads(line) for line in (longer / "metrics.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in records] == [1, 2]
    assert records[0] == first
    info = unsealed(json.loads((longer / "run.json").read_text()))
    assert (info["epochs"], info["resumed"][-1]["epochs"], info["summary"]["last"]["epoch"]) == (1, 2, 2)
    status, _, err = run(f"train coda/digits --smoke --run-dir {longer}", capsys)
    assert status == 2
    assert "train.epochs=2" in err

    monkeypatch.delenv("COLUMNS", raising=False)  # of the process that runs tests side by side
    files = f"--csv {tmp_path}/c.csv --json {tmp_path}/c.json"
    status, out, _ = run(f"compare {run_dir} {longer} {files}", capsys)
    assert status == 0
    head, *rows = [line.split() for line in out.splitlines()]
    assert head[:4] == ["folder", "epochs", "train.epochs", "test_accuracy"]
    assert [row[:3] for row in rows] == [[str(run_dir), "1", "1"], [str(longer), "2", "2"]]
    monkeypatch.setenv("COLUMNS", "40")
    status, out, _ = run(f"compare {run_dir} {longer} --measures test_accuracy", capsys)
    assert [line.split()[0] for line in out.splitlines() if line[0] != " "] == head[:4]
    assert [line.split() for line in out.splitlines() if line.startswith("epochs")] == [["epochs", "1", "2"]]
    monkeypatch.delenv("COLUMNS")
    found = json.loads((tmp_path / "c.json").read_text())
    assert found["settings"] == ["train.epochs"]
    assert found["runs"][1]["settings"] == {"train.epochs": 2}
    assert found["runs"][1]["measures"]["test_accuracy"] == info["summary"]["last"]["test_accuracy"]
    lines = (tmp_path / "c.csv").read_text().splitlines()
    assert lines[0].startswith("folder,epochs,train.epochs,")
    assert len(lines) == 3
    for wrong, says in ((f"{run_dir}", "at least two"), (f"{run_dir} {longer} --measures speed", "--measures")):
        status, _, err = run(f"compare {wrong}", capsys)
        assert (status, err.count("\n")) == (2, 1)
        assert says in err

    del info["summary"]
    write_json(longer / "run.json", info)
    with pytest.warns(UserWarning, match="unfinished, trained for 2 of 2 epochs"):
        status, out, _ = run(f"evaluate {longer}", capsys)
    assert status == 0
    assert "unfinished, trained for 2 of 2 epochs" in out


def test_show_prints_the_keys_of_a_name_and_of_a_folder(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, epochs in (("coda/digits", "50"), (str(run_dir), "1")):
        status, out, _ = run(f"show {name}", capsys)
        assert status == 0
        (line,) = [line.split() for line in out.splitlines() if line.startswith("train.epochs")]
        assert line == ["train.epochs", epochs, "int", ">=", "1", "Epochs."]


@pytest.mark.parametrize(
    ("command", "name", "old", "new", "says"),
    [
        ("report", "metrics.jsonl", "}\n", "", "got a missing or damaged file"),
        ("report", "run.json", "{", "", "got a missing or damaged file"),
        ("report", "evaluation.json", '"metrics": {}, ', "", "(it has no metrics)"),
        ("report", "config.json", "200.0", '"hot"', "edited or damaged"),
        ("show", "config.json", '"epochs": 1', '"epochs": 3', "edited or damaged"),
        ("evaluate", "config.json", "coda/digits", "coda/digit", "edited or damaged"),
        ("report", "run.json", '"seed": 0', '"seed": "0"', "run.json"),
        ("report", "metrics.jsonl", '"epoch": 1', '"epoch": 2', "edited or damaged"),
        ("report", "evaluation.json", '"removal": {}', '"removal": []', "removal"),
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
    (folder / "evaluation.json").write_text(json.dumps({part: {} for part in parts} | {"residuals": []}))
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


def test_a_page_that_takes_long_is_announced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []
    monkeypatch.setattr(stages, "trained", lambda *_: None)
    monkeypatch.setattr(stages, "explain", lambda *_, **__: ["explained"])
    monkeypatch.setattr(
        stages, "explore", lambda *_: said.append(capsys.readouterr().out) or tmp_path / "explorer.html"
    )
    monkeypatch.setattr("webbrowser.open", lambda address: True)
    status, out, _ = run(f"explain {tmp_path} a.png --open", capsys)
    first, second = said[0].splitlines()  # before the page is made
    assert (status, first) == (0, "explained")
    assert second.startswith(f"writing {tmp_path}/explanations/explorer.html: ")
    assert out.startswith(f"{tmp_path}/explorer.html: opened")


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
    assert run(f"train coda/digits --smoke --seeds 3 4 --run-dir {folder}", capsys)[0] == 0
    configs = [json.loads((tmp_path / "runs" / f"d-seed-{seed}" / "config.json").read_text()) for seed in (3, 4)]
    assert [config["config"]["train"]["seed"] for config in configs] == [3, 4]
    assert not folder.exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:group. C16 leaves the grid:UserWarning")
def test_the_demo_explains_by_a_packaged_network_and_trains_every_family(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XLA_FLAGS", QUICK_COMPILER)  # which other tests' programs must not inherit
    folder = tmp_path / "demo"
    status, said, _ = run(f"demo --smoke --run-dir {folder}", capsys)
    assert status == 0
    assert (folder / "report.html").stat().st_size > 50_000
    trained = ("gated/digits-dlgn", "coda/digits", "glassbox/digits", "coded/digits", "taylor/digits")
    table = [line.split() for line in said.splitlines()]
    rows = {row[0]: row for row in table if len(row) == 7 and row[1].endswith("%")}
    assert set(rows) == {"gated-mnist", *trained}
    assert rows["gated-mnist"][1] == "97.52%"
    for name, row in rows.items():
        assert float(row[3]) < 1e-4
        assert (folder / f"{name.replace('/', '-')}.png").stat().st_size > 5_000
    assert "ranks methods as the truth" in said
    lines = said.splitlines()
    (audited,) = (line for line in lines if line.startswith("Which explanation to believe"))
    assert "gated-mnist" in audited
    assert lines[lines.index(audited) + 1].startswith("method ")
    assert all(name in lines[0] for name in trained[2:])
    assert str(folder / "further.txt") in lines[0]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:group. C16 leaves the grid:UserWarning")
def test_what_fails_beside_the_demo_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XLA_FLAGS", QUICK_COMPILER)
    (tmp_path / "glassbox").write_text("in the way")
    status, _, err = run(f"demo --smoke --run-dir {tmp_path}", capsys)
    assert status == 2
    assert "glassbox, expected a folder" in err
    assert err.count("\n") == 1
