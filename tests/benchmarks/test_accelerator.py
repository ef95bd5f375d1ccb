"""Parts are run, recorded and gone on with; a dry run of all of them is slow."""

import json
import os
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import accelerator
from benchmarks.accelerator import LeftOut, Part, PartError, Setting, advance, answer_for, main, run_command
from benchmarks.accelerator_parts import PARTS, RATES, paced, rates_of
from jaxinterp.app.training import run_of

A, B, C, D = (Part(name, seconds) for name, seconds in (("a", 10), ("b", 20), ("c", 500), ("d", 30)))


class Fake:
    """Parts that take their seconds on a clock of its own; b fails the first time, d has nothing to measure."""

    def __init__(self) -> None:
        self.now, self.ran = 0.0, list[str]()

    def __call__(self, part: Part, left: float) -> dict[str, float]:
        self.now += part.seconds
        self.ran.append(part.name)
        if part is B and self.ran.count("b") == 1:
            raise PartError("no memory")
        if part is D:
            raise LeftOut("not installed: torch")
        return {"left": left}


def call(fake: Fake, folder: Path, budget: float) -> dict[str, str]:
    return advance((A, B, C, D), folder, budget, fake, {"commit": "c0ffee"}, lambda: fake.now)


def test_a_call_goes_on_where_the_last_one_stopped(tmp_path: Path) -> None:
    fake = Fake()
    assert call(fake, tmp_path, 100) == {"a": "done", "b": "failed", "c": "left", "d": "left out"}
    assert fake.ran == ["a", "b", "d"]
    written = {path.stem: json.loads(path.read_text()) for path in tmp_path.iterdir()}
    assert written["a"] == {"part": "a", "status": "done", "left": 40, "wall_seconds": 10, "commit": "c0ffee"}
    assert written["b"]["error"] == "no memory"
    assert written["d"]["reason"] == "not installed: torch"
    assert call(fake, tmp_path, 15)["c"] == "left"
    assert len(fake.ran) == 3
    assert call(fake, tmp_path, 600) == {"a": "done", "b": "done", "c": "done", "d": "left out"}
    assert fake.ran[3:] == ["c", "b"]
    assert call(fake, tmp_path, 600)["b"] == "done"
    assert len(fake.ran) == 5


def test_what_fails_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, env = tmp_path / "log", dict(os.environ)
    with pytest.raises(PartError, match=r"\Aexit status 3: last words\Z"):
        run_command([sys.executable, "-c", "print('last words'); raise SystemExit(3)"], log, 60, env)
    monkeypatch.setitem(sys.modules, "benchmarks.accelerator_parts", None)
    answer_for("tests", Setting(tmp_path, "cpu"))
    (answer,) = (json.loads(path.read_text()) for path in tmp_path.glob(".tests.answer"))
    assert answer["error"].startswith("ModuleNotFoundError: ")


def test_a_part_that_takes_too_long_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    code = "import os, time\npid = os.fork()\nprint(os.getpid(), flush=True)\ntime.sleep(60)"
    with pytest.raises(PartError, match="no end after 2 s"):
        run_command([sys.executable, "-c", code], tmp_path / "log", 2, dict(os.environ))
    for pid in (tmp_path / "log").read_text().split():
        state, until = "R", time.monotonic() + 10
        while state not in ("Z", "") and time.monotonic() < until:
            status = Path(f"/proc/{pid}/stat")
            state = status.read_text().rpartition(") ")[2][:1] if status.exists() else ""
        assert state in ("Z", "")


def test_the_command_line_says_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match=r"\A--parts: got train-resnet, expected some of tests, train-coda"):
        main(["--parts", "tests,train-resnet"])
    monkeypatch.setattr(accelerator, "probe", lambda dry: {"platform": "cpu", "devices": 1, "device": "cpu"})
    with pytest.raises(SystemExit, match=r"\Adevice: got a CPU alone"):
        main(["--out", str(tmp_path)])
    assert [part.name for part in accelerator.PARTS] == list(PARTS)
    assert sum(part.seconds for part in accelerator.PARTS) <= 60 * accelerator.BUDGET


def test_a_short_training_runs_through_the_rates_of_the_whole_run() -> None:
    run = run_of("coda/cifar10-s-fast")
    rates = np.asarray(rates_of(run, 781))
    np.testing.assert_allclose(rates[[0, RATES // 2]], [1e-3, 5e-4], rtol=1e-5)
    assert 0 < rates[-1] < 1e-7
    optimizer = paced(run.replace(optim={"optimizer": "sgd"}), None)
    params = {"kernel": jnp.ones((2, 2))}
    state = optimizer.init(params)
    state = {**state, "rates": jnp.arange(RATES, dtype=jnp.float32), "total": jnp.int32(4)}
    moved = []
    for _ in range(6):
        updates, state = optimizer.update(params, state, params)
        moved.append(-float(updates["kernel"][0, 0]))
    assert moved == [0, 250, 500, 750, 999, 999]


@pytest.mark.slow
def test_every_part_runs_dry(tmp_path: Path) -> None:
    assert main(["--dry-run", "--budget", "20", "--out", str(tmp_path)]) == 0
    folder = tmp_path / "accelerator-dry-run"
    found = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
    assert set(found) == set(PARTS)
    for name, part in found.items():
        assert part["status"] in (("done", "left out") if name.startswith("torch") else ("done",)), part
        assert {"machine", "commit", "versions", "command", "platform"} <= set(part)
    assert found["tests"]["passed"] > 10
    assert found["tests"]["failed"] + found["tests"]["errors"] == 0
    trained = [part for name, part in found.items() if name.startswith("train-")]
    assert all(part["images_per_second"] > 0 and "test_accuracy" not in part for part in trained)
    assert "localization_3x3_median" not in found["localization"]
    assert all(found[name]["relative_difference"] < 1e-5 for name in ("npk-dense", "npk-conv"))
    again = ["--dry-run", "--out", str(tmp_path), "--parts", "train-taylor"]
    assert main([*again, "--again", "--data", f"npz:{folder / 'synthetic.npz'}"]) == 0
    assert 0 <= json.loads((folder / "train-taylor.json").read_text())["test_accuracy"] <= 1
