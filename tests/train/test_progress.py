import io
import json
import math
import re

import numpy as np
import optax
import pytest
from rich.console import Console

from jaxinterp.errors import ConfigError
from jaxinterp.provenance import machine as machine_in_words
from jaxinterp.provenance import versions
from jaxinterp.train import ProgressMeter, coda_imagenet, initialize, staircase_decay, warmup_cosine
from jaxinterp.train import progress as clock
from jaxinterp.train.log import RunLog


class Time:
    """A clock of the machine that stands still until told."""

    now = 100.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def machine(monkeypatch):
    time = Time()
    monkeypatch.setattr("jaxinterp.train.progress.time", time)
    return time


def steps(shown, machine, count, seconds):
    looks = 0
    for _ in range(count):
        machine.now += seconds
        if shown.due():
            looks += 1
            shown.tick({"loss": 0.25})
    return looks


def test_rate_remaining_time_and_seconds_without_a_terminal(machine):
    text = io.StringIO()
    with ProgressMeter(100, 2, batch_size=8, console=Console(file=text, width=200)) as shown:
        with shown.compiling("the step"):
            machine.now += 3.0
        shown.start(0)
        looks = steps(shown, machine, 50, 0.1)
        assert shown.rate == pytest.approx(80)
        assert shown.left == pytest.approx(150 * 0.1, rel=0.05)
        assert shown.seconds == pytest.approx(5.0, abs=0.5)
        assert looks < 20  # dispatches several steps between two looks
        shown.epoch({"epoch": 1, "step": 100, "train_loss": 0.5, "val_accuracy": 0.75, "images_per_second": 80.0})
        assert shown.seconds == 0
    lines = text.getvalue().splitlines()
    assert lines[0] == "compiled the step in 3.0 s"
    assert lines[-1].startswith("epoch 1/2  train_loss 0.5000  val_accuracy 0.7500  (80 images/s, 0:1")
    assert "\x1b" not in text.getvalue()


def test_long_epochs_say_where_they_are_now_and_then(machine):
    text = io.StringIO()
    with ProgressMeter(1000, 1, batch_size=8, console=Console(file=text, width=200)) as shown:
        shown.start(0)
        steps(shown, machine, 100, 1.0)
    lines = text.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("epoch 1/1, step 31: loss 0.2500  (8 images/s, 16:")


def test_a_terminal_gets_a_bar_and_other_processes_are_silent(machine):
    text, silent = io.StringIO(), io.StringIO()
    with ProgressMeter(100, 1, 8, console=Console(file=text, force_terminal=True, width=120)) as shown:
        steps(shown, machine, 60, 0.1)
    assert "epoch 1/1  loss 0.2500" in text.getvalue()
    assert "80 images/s" in text.getvalue()
    with ProgressMeter(100, 1, 8, console=Console(file=silent), show=False) as shown:
        steps(shown, machine, 60, 0.1)
        shown.log("hidden")
    assert silent.getvalue() == ""


def test_durations():
    assert clock.duration(3600 * 25.0) == "25:00:00"


def test_the_log_rewrites_what_is_missing_and_drops_what_is_newer(tmp_path):
    records = [{"step": 4 * epoch, "epoch": epoch, "train_loss": 1 / epoch} for epoch in (1, 2, 3)]
    with RunLog(tmp_path, [], seed=7, step=0) as log:
        for record in records:
            log.epoch(record)
        log.finish({"last": {"epoch": 3}})
    first = json.loads((tmp_path / "run.json").read_text())
    assert (first["seed"], first["summary"], first["resumed"]) == (7, {"last": {"epoch": 3}}, [])
    assert first["versions"] == versions()
    (tmp_path / "metrics.jsonl").write_text('{"torn')
    with RunLog(tmp_path, records[:2], seed=7, step=8) as log:
        log.epoch(records[2])
    again = json.loads((tmp_path / "run.json").read_text())
    assert again["started"] == first["started"]
    assert [set(entry) for entry in again["resumed"]] == [{"step", "at"}]  # same machine, same versions
    assert again["resumed"][0]["step"] == 8
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == records
    assert "summary" not in again
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "run.json", "tensorboard"]
    (tmp_path / "run.json").write_text('{"torn')
    with pytest.raises(ConfigError, match=r"run\.json is damaged"):
        RunLog(tmp_path, records, seed=7, step=12)


def test_the_machine_is_named_with_its_cores_and_memory():
    assert re.fullmatch(r".+, \d+ cores, \d+ GiB", machine_in_words())


def test_schedules_are_those_of_the_papers():
    cifar = staircase_decay(2.5e-4, 1.5, 30, steps_per_epoch=7)
    for epoch in (0, 29, 30, 119, 199):
        for step in (7 * epoch, 7 * epoch + 6):
            np.testing.assert_allclose(cifar(step), 2.5e-4 * 1.5 ** -math.floor(epoch / 30), rtol=1e-5)
    imagenet = coda_imagenet(steps_per_epoch=7)
    for epoch in range(60):
        expected = 2.5e-4 + 7.5e-4 * epoch / 14 if epoch < 15 else 1e-3 / 2 ** (epoch // 20)
        for step in (7 * epoch, 7 * epoch + 6):
            np.testing.assert_allclose(imagenet(np.int32(step)), expected, rtol=1e-5)
    cosine = warmup_cosine(0.1, epochs=10, steps_per_epoch=4, warmup_epochs=2.0)
    for step in range(41):
        expected = 0.1 * step / 8 if step < 8 else 0.05 * (1 + math.cos(math.pi * (step - 8) / 32))
        np.testing.assert_allclose(cosine(step), expected, atol=1e-7)
    assert float(warmup_cosine(0.1, epochs=10, steps_per_epoch=4)(0)) == pytest.approx(0.1)
    optax.adam(imagenet).init({})
    with pytest.raises(ValueError, match="warmup_epochs must be in"):
        warmup_cosine(0.1, epochs=2, steps_per_epoch=4, warmup_epochs=2.0)


def test_processes_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match="go together"):
        initialize("localhost:1", 2, None)
    with pytest.raises(ConfigError, match=r"process_id must be in \[0, 2\), got 2"):
        initialize("localhost:1", 2, 2)
