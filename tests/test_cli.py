import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxinterp import cli


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


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("train coda/digit", "unknown run 'coda/digit'; did you mean coda/digits"),
        ("train coda/digits temprature=3", "unknown key 'temprature'; did you mean temperature?"),
        ("train coda/digits temperature=warm", "temperature: expected float (such as 200.0), got 'warm'"),
        ("train coda/digits rescale=l3", "rescale: expected Literal['squash', 'l2'] (such as squash), got 'l3'"),
        ("train coda/digits temperature", "expected key=value, got 'temperature'"),
        ("train coda/digits temperature=-1", "temperature: got -1.0, expected a positive number"),
        ("train coda/digits ranks=1,2", "one entry per layer expected"),
        ("train coda/digits features=8,16,16,5", "features: the last is 5, digits has 10 classes"),
        ("train coda/digits batch_size=15 accumulate=2", "batch_size=15 does not divide evenly"),
        ("train coda/digits epochs=0", "epochs: got 0, expected at least 1"),
        ("train coda/digits crop=-1", "crop: got -1, expected at least 0"),
        ("train coda/digits validation=1.0", "validation: got 1.0, expected a share in [0, 1)"),
        ("train coda/digits rand_augment=2", "rand_augment: got 2, expected n,m or nothing"),
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


def test_list_names_every_run_with_the_papers_numbers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from experiments import runs

    monkeypatch.setenv("COLUMNS", "200")
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


def test_seeds_have_folders_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "runs" / "d"
    assert run(f"train coda/digits --smoke --seeds 3,4 --run-dir {folder}", capsys)[0] == 0
    configs = [json.loads((tmp_path / "runs" / f"d-seed-{seed}" / "config.json").read_text()) for seed in (3, 4)]
    assert [config["config"]["seed"] for config in configs] == [3, 4]
    assert not folder.exists()
