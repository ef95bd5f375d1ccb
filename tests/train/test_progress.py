import errno
import io
import json
import re

import jax
import pytest
from rich.console import Console

from jaxinterp.errors import ConfigError
from jaxinterp.files import unsealed
from jaxinterp.provenance import machine, versions
from jaxinterp.train import ProgressMeter, initialize
from jaxinterp.train.log import RunLog


class Clock:
    """A clock that stands still until it is moved."""

    now = 100.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("jaxinterp.train.progress.time", clock)
    return clock


def steps(meter, clock, count, seconds):
    updates = 0
    for _ in range(count):
        clock.now += seconds
        if meter.should_report():
            updates += 1
            meter.update({"loss": 0.25})
    return updates


def test_rate_remaining_time_and_seconds_of_training_without_a_terminal(clock):
    text = io.StringIO()
    with ProgressMeter(100, 2, batch_size=8, console=Console(file=text, width=200)) as meter:
        with meter.compiling("the step"):
            clock.now += 3.0
        meter.start(0)
        assert steps(meter, clock, 50, 0.1) < 20  # dispatches several steps between two waits
        clock.now += 7.0  # saving and evaluating do not count
        meter.start(50, meter.seconds)
        steps(meter, clock, 50, 0.1)
        assert meter.seconds == pytest.approx(10.0, abs=0.5)
        meter.epoch({"epoch": 1, "step": 100, "train_loss": 0.5, "val_accuracy": 0.75, "images_per_second": 80.0})
    compiled, estimate, epoch = text.getvalue().splitlines()
    assert compiled == "compiled the step in 3.0 s"
    assert estimate.startswith("training will take about 19 s, estimated from 6 steps of 100 ms; compiling")
    assert epoch.startswith("epoch 1/2  train_loss 0.5000  val_accuracy 0.7500  (80 images/s, 0:00:1")


def test_long_epochs_write_a_line_now_and_then(clock):
    text = io.StringIO()
    with ProgressMeter(1000, 1, batch_size=8, console=Console(file=text, width=200)) as meter:
        meter.start(0)
        steps(meter, clock, 100, 1.0)
    estimate, first, *rest = text.getvalue().splitlines()
    assert estimate.startswith("training will take about 16 min 34 s")
    assert first == "epoch 1/1, step 31: loss 0.2500  (8 images/s, 0:16:09 left)"
    assert len(rest) == 2


def test_a_terminal_gets_a_bar_and_other_processes_are_silent(clock):
    text, silent = io.StringIO(), io.StringIO()
    with ProgressMeter(100, 1, 8, console=Console(file=text, force_terminal=True, width=120)) as meter:
        meter.start(0)
        steps(meter, clock, 60, 0.1)
    assert "epoch 1/1  loss 0.2500" in text.getvalue()
    assert "80 images/s" in text.getvalue()
    with ProgressMeter(100, 1, 8, console=Console(file=silent), show=False) as meter:
        steps(meter, clock, 60, 0.1)
        meter.log("hidden")
    assert silent.getvalue() == ""


def full(_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_the_log_rewrites_what_is_missing_and_drops_what_is_newer(tmp_path, monkeypatch):
    records = [{"step": 4 * epoch, "epoch": epoch, "train_loss": 1 / epoch} for epoch in (1, 2, 3)]
    info, metrics = tmp_path / "run.json", tmp_path / "metrics.jsonl"
    with RunLog(tmp_path, [], seed=7, step=0, epochs=3) as log:
        for record in records:
            log.epoch(record)
        log.finish({"last": {"epoch": 3}})
    first = json.loads(info.read_text())
    assert (first["seed"], first["summary"], first["resumed"]) == (7, {"last": {"epoch": 3}}, [])
    assert first["versions"] == versions()
    assert first["versions"]["jax"] == jax.__version__
    assert re.fullmatch(r".+, \d+ cores, \d+ GiB", machine())
    metrics.write_text('{"torn')
    with RunLog(tmp_path, records[:2], seed=7, step=8, epochs=3) as log:
        log.epoch(records[2])
    again = json.loads(info.read_text())
    assert again["started"] == first["started"]
    (resumed,) = again["resumed"]
    assert (set(resumed), resumed["step"]) == ({"step", "at"}, 8)  # same machine, same versions
    assert [unsealed(json.loads(line)) for line in metrics.read_text().splitlines()] == records
    assert "summary" not in again
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"), RunLog(tmp_path, records[:2], seed=7, step=8, epochs=3) as log:
        log.epoch(records[2])
    assert [unsealed(json.loads(line)) for line in metrics.read_text().splitlines()] == records[:2]
    info.write_text('{"torn')
    with pytest.raises(ConfigError, match=r"run\.json"):
        RunLog(tmp_path, records, seed=7, step=12, epochs=3)


@pytest.mark.parametrize(("number", "name"), [(None, "coordinator"), (2, "process_id")])
def test_processes_that_cannot_be_raise(number, name):
    with pytest.raises(ConfigError, match=name):
        initialize("localhost:1", 2, number)
