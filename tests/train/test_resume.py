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

from jaxinterp.files import unsealed

PROGRAM = Path(__file__).with_name("program.py")
ROOT = PROGRAM.parents[2]


def start(folder, kill="none", *process, devices=8):
    """The program with its own JAX; its environment is that of these tests."""
    path = os.pathsep.join([str(ROOT), str(PROGRAM.parent), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "JAX_NUM_CPU_DEVICES": str(devices)}
    command = [sys.executable, str(PROGRAM), str(folder), kill, *map(str, process)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(program, *codes):
    output, _ = program.communicate(timeout=300)
    assert program.returncode in (codes or (0,)), output
    return output


def untimed(records):
    return [{k: v for k, v in record.items() if k not in ("seconds", "images_per_second")} for record in records]


def log_of(folder):
    return [unsealed(json.loads(line)) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_like_unbroken(folder, unbroken, atol=0.0):
    ended = np.load(folder / "end.npz")
    leaves = jax.tree.leaves((unbroken.state.params, unbroken.state.batch_stats, unbroken.best))
    for name, leaf in zip(ended.files, leaves, strict=True):
        np.testing.assert_allclose(ended[name], np.asarray(leaf), rtol=0, atol=atol)
    if atol == 0:
        assert untimed(log_of(folder)) == untimed(unbroken.history)
        assert json.loads((folder / "run.json").read_text())["summary"] == unbroken.summary


def test_a_killed_run_ends_like_an_unbroken_one(tmp_path):
    finish(start(tmp_path / "run", "save:2"), -signal.SIGKILL)
    output = finish(start(tmp_path / "run"))
    assert output.splitlines()[-1] == "finished"
    assert "resuming at step" in output
    assert_like_unbroken(tmp_path / "run", run(tmp_path / "unbroken", jax.devices()[:1]))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_run_killed_at_many_moments_ends_like_an_unbroken_one(tmp_path, seed):
    rng = np.random.default_rng(seed)
    kinds = [f"{kind}:{rng.integers(1, 5)}" for kind in ("open", "step", "log", "save", "save", "save", "term")]
    for kill in [*rng.permutation(kinds), *(f"time:{seconds:.2f}" for seconds in rng.uniform(2, 12, 3))]:
        finish(start(tmp_path / "run", kill), 0, -signal.SIGKILL)
    assert finish(start(tmp_path / "run")).splitlines()[-1] == "finished"
    assert_like_unbroken(tmp_path / "run", run(tmp_path / "unbroken", jax.devices()[:1]))


@pytest.mark.parametrize("kill", ["none", pytest.param("term:5", marks=pytest.mark.slow)])
def test_two_processes_train_the_same_numbers_as_one_and_stop_together(tmp_path, kill):
    one, two = run(tmp_path / "one", jax.devices()[:2]), tmp_path / "two"
    for command in ("none",) if kill == "none" else (kill, "none"):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        programs = [start(two, "none" if number else command, port, number, devices=1) for number in range(2)]
        outputs = [finish(program) for program in programs]
        ends = [output.splitlines()[-1] for output in outputs]
        assert ends == ["finished" if command == "none" else "interrupted"] * 2
    assert_like_unbroken(two, one, atol=1e-5)
    assert "epoch 3/3" in outputs[0]
    assert "epoch" not in outputs[1]
    ours, theirs = log_of(two), one.history
    assert [record["step"] for record in ours] == [record["step"] for record in theirs]
    np.testing.assert_allclose([r["train_loss"] for r in ours], [r["train_loss"] for r in theirs], rtol=1e-5)
    info = json.loads((two / "run.json").read_text())
    assert (info["processes"], info["device"]["count"]) == (2, 2)
