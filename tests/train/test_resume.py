"""Runs as processes: killed at many moments and started again, and spread over two processes."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from program import run

PROGRAM = Path(__file__).with_name("program.py")
ROOT = PROGRAM.parents[2]


def start(folder, kill="none", *process, devices=8):
    """The program with its own JAX; its environment is that of these tests."""
    path = os.pathsep.join([str(ROOT), str(PROGRAM.parent), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "JAX_NUM_CPU_DEVICES": str(devices)}
    command = [sys.executable, str(PROGRAM), str(folder), kill, *map(str, process)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(program):
    output, _ = program.communicate(timeout=300)
    return program.returncode, output


def untimed(records):
    return [{k: v for k, v in record.items() if k not in ("seconds", "images_per_second")} for record in records]


def log_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_like_unbroken(folder, unbroken, **tolerance):
    ended = np.load(folder / "end.npz")
    leaves = jax.tree.leaves((unbroken.state.params, unbroken.state.batch_stats, unbroken.best))
    assert len(ended.files) == len(leaves)
    for name, leaf in zip(ended.files, leaves, strict=True):
        np.testing.assert_allclose(ended[name], np.asarray(leaf), **({"rtol": 0, "atol": 0} | tolerance))
    if not tolerance:
        assert untimed(log_of(folder)) == untimed(unbroken.history)
        assert json.loads((folder / "run.json").read_text())["summary"] == unbroken.summary


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    return run(tmp_path_factory.mktemp("unbroken"), jax.devices()[:1])


@pytest.mark.parametrize(
    "kills",
    [
        ("save:2",),
        pytest.param(("log:4",), marks=pytest.mark.slow),
        pytest.param(("save:3", "step:11"), marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_ends_like_an_unbroken_one(tmp_path, unbroken, kills):
    for kill in kills:
        code, output = finish(start(tmp_path, kill))
        assert code == -signal.SIGKILL, output
    code, output = finish(start(tmp_path))
    assert (code, output.splitlines()[-1]) == (0, "finished"), output
    assert "resuming at step" in output
    assert_like_unbroken(tmp_path, unbroken)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_run_killed_at_many_moments_ends_like_an_unbroken_one(tmp_path, unbroken, seed):
    rng = np.random.default_rng(seed)
    kinds = [f"{kind}:{rng.integers(1, 5)}" for kind in ("open", "step", "log", "save", "save", "save", "term")]
    for kill in [*rng.permutation(kinds), *(f"time:{seconds:.2f}" for seconds in rng.uniform(2, 12, 3))]:
        code, output = finish(start(tmp_path, kill))
        assert code in (0, -signal.SIGKILL), output
    code, output = finish(start(tmp_path))
    assert (code, output.splitlines()[-1]) == (0, "finished"), output
    assert_like_unbroken(tmp_path, unbroken)


@pytest.mark.slow
def test_sigterm_exits_cleanly_and_says_how_to_go_on(tmp_path, unbroken):
    code, output = finish(start(tmp_path, "term:5"))
    assert (code, output.splitlines()[-1]) == (0, "interrupted"), output
    assert "SIGTERM: stopped after step 5; the same command resumes there" in output
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["5"]
    assert finish(start(tmp_path))[0] == 0
    assert_like_unbroken(tmp_path, unbroken)


def two_processes(folder, kill="none"):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    programs = [start(folder, kill if number == 0 else "none", port, number, devices=2) for number in range(2)]
    return [finish(program) for program in programs]


def test_two_processes_train_the_same_numbers_as_one(tmp_path):
    one = run(tmp_path / "one", jax.devices()[:4])
    (code, output), (other_code, other_output) = two_processes(tmp_path / "two")
    assert (code, other_code) == (0, 0), output + other_output
    assert_like_unbroken(tmp_path / "two", one, atol=1e-5)
    assert "epoch 4/4" in output
    assert "epoch" not in other_output
    ours, theirs = untimed(log_of(tmp_path / "two")), untimed(one.history)
    assert [record["step"] for record in ours] == [record["step"] for record in theirs]
    np.testing.assert_allclose([r["train_loss"] for r in ours], [r["train_loss"] for r in theirs], rtol=1e-5)
    info = json.loads((tmp_path / "two/run.json").read_text())
    assert (info["processes"], info["device"]["count"]) == (2, 4)


@pytest.mark.slow
def test_two_processes_stop_together_at_a_signal_and_go_on(tmp_path):
    one = run(tmp_path / "one", jax.devices()[:4])
    for code, output in two_processes(tmp_path / "two", "term:5"):
        assert (code, output.splitlines()[-1]) == (0, "interrupted"), output
    for code, output in two_processes(tmp_path / "two"):
        assert (code, output.splitlines()[-1]) == (0, "finished"), output
    assert_like_unbroken(tmp_path / "two", one, atol=1e-5)
    assert [record["epoch"] for record in log_of(tmp_path / "two")] == [1, 2, 3, 4]
