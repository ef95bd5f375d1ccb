import json
import shutil
import signal
from dataclasses import dataclass, replace

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxinterp.data import Stream, epoch_order, flip, identity
from jaxinterp.errors import CheckpointError, ConfigError, DataError, NonFiniteError
from jaxinterp.files import unsealed
from jaxinterp.train import (
    ClassificationLoss,
    ProgressMeter,
    TrainConfig,
    fit,
    fit_closed_form,
    load_variables,
    predict,
    sigmoid_bce,
    softmax_cross_entropy,
)
from jaxinterp.train.evaluate import Evaluation
from jaxinterp.train.step import device_mesh

SCHEDULE = optax.exponential_decay(1e-2, 8, 0.9)
TX = optax.adam(SCHEDULE)


def train(folder, model, data, test=None, tx=TX, augment=identity, **settings):
    names = ("devices", "validation", "schedule", "fingerprint", "allow_older")
    options = {"devices": jax.devices()[:1]} | {name: settings.pop(name) for name in names if name in settings}
    config = TrainConfig(**{"epochs": 3, "batch_size": 16, "eval_batch": 10} | settings)
    loss = ClassificationLoss(model, softmax_cross_entropy)
    return fit(folder, model, loss, tx, data, test, augment, config, **options)


def lines(folder):
    return [unsealed(json.loads(line)) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def untimed(records):
    return [{k: v for k, v in record.items() if k not in ("seconds", "images_per_second")} for record in records]


def accuracy(model, variables, data):
    logits = predict(model, variables, data.images.astype(np.float32) / 255, batch_size=7)
    return float((logits.argmax(-1) == data.labels).mean())


def checkpoints(folder):
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir())


def test_a_run_learns_and_leaves_what_it_promises(tmp_path, tiny, quadrants, capsys):
    data, test, settings = quadrants(150), quadrants(50, seed=1, split="test"), {"epochs": 6, "checkpoint_every": 2}
    result = train(tmp_path, tiny(), data, test, schedule=SCHEDULE, **settings)
    assert not result.interrupted
    assert [(record["epoch"], record["step"]) for record in result.history] == [(e, 8 * e) for e in range(1, 7)]
    assert result.history == lines(tmp_path)
    assert len(repr(result)) < 500
    assert result.history[-1]["train_loss"] < 0.7 * result.history[0]["train_loss"]
    np.testing.assert_allclose(result.history[2]["lr"], SCHEDULE(23), rtol=1e-6)

    best = max(result.history, key=lambda record: record["val_accuracy"])
    assert (result.summary["best"]["epoch"], result.summary["last"]["epoch"]) == (best["epoch"], 6)
    for which, variables in (("last", result.state.variables), ("best", result.best)):
        loaded = load_variables(tmp_path, tiny(), (4, 4, 1), which)
        jax.tree.map(np.testing.assert_array_equal, variables, loaded)
        assert result.summary[which]["test_accuracy"] == pytest.approx(accuracy(tiny(), loaded, test))
    info = json.loads((tmp_path / "run.json").read_text())
    assert info["versions"]["jax"] == jax.__version__
    assert (info["seed"], info["device"]["platform"], info["summary"]) == (0, "cpu", result.summary)
    assert list((tmp_path / "tensorboard").glob("events*"))
    saved, highest = [], -1.0
    for record in result.history:
        if record["epoch"] % 2 == 0 or record["val_accuracy"] > highest:
            saved.append(record["step"])
        highest = max(highest, record["val_accuracy"])
    assert set(checkpoints(tmp_path)) == {*saved[-2:], best["step"]}
    printed = capsys.readouterr().out
    assert (printed.count("compiled the training step in"), printed.count("\nepoch ")) == (1, 6)

    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 56, "epoch": 7}\n{"step": 64, "ep')
    again = train(tmp_path, tiny(), data, test, schedule=SCHEDULE, **settings)
    printed = capsys.readouterr().out
    assert "already finished, 6 of 6 epochs\n" in printed
    assert "resuming" not in printed
    assert again.summary == result.summary
    assert lines(tmp_path) == result.history == again.history


def test_best_is_the_first_of_the_best_epochs_from_which_a_run_can_go_on(tmp_path, tiny, quadrants, capsys):
    held_out = quadrants(40, seed=3, split="held out")
    settings = {"tx": optax.sgd(lambda step: jnp.where(step < 16, 0.05, 5.0)), "epochs": 5, "validation": held_out}
    unbroken = train(tmp_path, tiny(), quadrants(128), held_out, **settings)
    scores, summary = [record["val_accuracy"] for record in unbroken.history], unbroken.summary
    assert summary["best"]["epoch"] == 1 + scores.index(max(scores)) < 5
    assert summary["best"]["test_accuracy"] == max(scores) > scores[-1]
    assert summary["last"]["test_accuracy"] == scores[-1]
    best, *newest = checkpoints(tmp_path)
    assert best == summary["best"]["step"]
    for step in newest:
        shutil.rmtree(tmp_path / f"checkpoints/{step}")
    with pytest.raises(CheckpointError, match=r"the newest one, is missing.*--allow-older"):
        train(tmp_path, tiny(), quadrants(128), held_out, **settings)
    assert checkpoints(tmp_path) == [best]
    capsys.readouterr()
    again = train(tmp_path, tiny(), quadrants(128), held_out, allow_older=True, **settings)
    assert f"5 epochs were logged, but the newest checkpoint holds {best // 8}" in capsys.readouterr().out
    jax.tree.map(np.testing.assert_array_equal, (unbroken.state, unbroken.best), (again.state, again.best))


@pytest.mark.parametrize("loss", [sigmoid_bce, softmax_cross_entropy])
@pytest.mark.parametrize("classes", [3, 5])
def test_outputs_are_the_classes_of_the_data(tmp_path, tiny, quadrants, loss, classes):
    def relabeled(data):
        return replace(data, labels=data.labels % 3, classes=tuple("abcde"[:classes]))

    model, data, config = tiny(), quadrants(32), TrainConfig(1, 16, val_fraction=0.0)
    wanted = f"expected \\(batch, {classes}\\), one for each class of quadrants \\(train\\)$"
    arguments = (tmp_path / "run", model, ClassificationLoss(model, loss), TX, relabeled(data), None, identity, config)
    with pytest.raises(ConfigError, match=rf"^model: got outputs \(batch, 4\), {wanted}"):
        fit(*arguments)
    for part in ("validation", "test"):
        split = relabeled(quadrants(20, split=part))
        with pytest.raises(ConfigError, match=rf"one for each class of quadrants \({part}\)$"):
            train(tmp_path / "run", model, data, **{part: split})
    with pytest.raises(ConfigError, match=r"^model: got outputs"):
        fit_closed_form(tmp_path / "run", model, lambda v: v, loss, relabeled(data), None, config)
    assert not (tmp_path / "run").exists()


def test_images_as_outputs_are_refused(tmp_path, quadrants):
    with pytest.raises(ConfigError, match=r"^model: got outputs \(batch, 4, 4, 2\), expected \(batch, 4\), one"):
        train(tmp_path, nn.Conv(2, (3, 3)), quadrants(32))


@pytest.mark.parametrize("mode", ["jit", "pmap"])
def test_two_devices_and_a_stream_train_like_one_device(tmp_path, tiny, quadrants, mode):
    data, key, epochs = quadrants(70), jax.random.fold_in(jax.random.key(0), 0), []
    settings = {"tx": optax.sgd(0.05), "augment": flip(), "grad_accum_steps": 2, "val_fraction": 0.0, "epochs": 2}
    one = train(tmp_path / "one", tiny(), data, quadrants(20), **settings)
    assert one.best is None
    assert set(one.summary) == {"last"}
    assert "val_accuracy" not in one.history[0]

    def batches(epoch):
        for row in np.asarray(epoch_order(key, epoch, 70, 16)):
            epochs.append(epoch)
            yield {"image": data.images[row], "label": data.labels[row], "index": row}

    settings |= {"mode": mode, "devices": jax.devices()[:2]}
    model = tiny(axis_name="batch" if mode == "pmap" else None)
    two = train(tmp_path / "two", model, data, **settings)
    chex.assert_trees_all_close(one.state.variables, two.state.variables, atol=2e-6)
    np.testing.assert_allclose(two.history[-1]["train_loss"], one.history[-1]["train_loss"], rtol=1e-5)
    streamed = train(tmp_path / "stream", model, Stream("quadrants", 4, (4, 4, 1), batches), **settings)
    jax.tree.map(np.testing.assert_array_equal, two.state.variables, streamed.state.variables)
    assert epochs == [0] * 4 + [1] * 4
    if mode == "jit":
        with pytest.raises(DataError, match="epoch 1 ended after 4 of 5 batches"):
            train(tmp_path / "short", model, Stream("quadrants", 5, (4, 4, 1), batches), **settings)


def test_bfloat16_trains(tmp_path, tiny, quadrants):
    model = tiny(dtype=jnp.bfloat16)
    result = train(tmp_path, model, quadrants(150), epochs=6)
    assert result.history[-1]["train_loss"] < 0.7 * result.history[0]["train_loss"]
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(result.state.variables))
    logits = predict(model, result.state.variables, np.zeros((3, 4, 4, 1), np.float32))
    assert logits.dtype == jnp.bfloat16


def test_nothing_compiles_after_the_first_epoch_and_nothing_is_copied(tmp_path, tiny, quadrants, monkeypatch):
    compiled, at_epoch, show = [], [], ProgressMeter.epoch

    def listen(event, seconds, **_):
        compiled.append(event == "/jax/core/compile/backend_compile_duration")

    def epoch(meter, record):
        at_epoch.append(sum(compiled))
        show(meter, record)

    with jax.transfer_guard("disallow"), pytest.raises(Exception, match=r"[Dd]isallowed"):
        jnp.ones(3) + np.ones(3, np.float32)  # the guard, under which every step runs, is alive on this backend
    monkeypatch.setattr(ProgressMeter, "epoch", epoch)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        train(tmp_path, tiny(), quadrants(150), augment=flip(), devices=jax.devices()[:2])
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert 0 < at_epoch[0] <= at_epoch[1] == at_epoch[2]


def test_a_non_finite_step_stops_the_run_and_is_not_saved(tmp_path, tiny, quadrants):
    exploding = optax.sgd(lambda step: jnp.where(step == 11, jnp.inf, 0.01))
    with pytest.raises(NonFiniteError, match=r"at step 12 \(epoch 2, batch 4 of 8\); last checkpoint: step 8") as error:
        train(tmp_path, tiny(), quadrants(150), tx=exploding)
    assert "\n" not in str(error.value)
    assert [record["epoch"] for record in lines(tmp_path)] == [1]
    saved = load_variables(tmp_path, tiny(), (4, 4, 1))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(saved))


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"batch_size": 12, "devices": 8}, "batch_size"),
        ({"batch_size": 16, "grad_accum_steps": 3}, "batch_size"),
        ({"batch_size": 200}, "batch_size"),
        ({"epochs": 0}, "epochs"),
        ({"epochs": 2**31}, "epochs"),
        ({"val_fraction": 1.0}, "val_fraction"),
    ],
)
def test_what_cannot_be_trained_raises_before_anything_is_written(tmp_path, tiny, quadrants, settings, name):
    settings = settings | {"devices": jax.devices()[: settings.get("devices", 1)]}
    with pytest.raises(ConfigError, match=f"^{name}: got"):
        train(tmp_path / "run", tiny(), quadrants(150), **settings)
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, tiny, quadrants):
    return train(tmp_path_factory.mktemp("unbroken"), tiny(), quadrants(150), augment=flip())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_at_the_next_step_and_the_same_command_goes_on(
    tmp_path, tiny, quadrants, unbroken, monkeypatch, capsys, number
):
    before, should_report, count = signal.getsignal(number), ProgressMeter.should_report, []

    def kick(meter):
        count.append(1)
        if len(count) == 12:
            signal.raise_signal(number)
        return should_report(meter)

    monkeypatch.setattr(ProgressMeter, "should_report", kick)
    stopped = train(tmp_path, tiny(), quadrants(150), augment=flip())
    monkeypatch.undo()
    step = int(stopped.state.step)
    assert (stopped.interrupted, stopped.summary) == (number.name, {})
    assert signal.getsignal(number) is before
    assert f"{number.name}: stopped after step {step}; the same command resumes there" in capsys.readouterr().out
    assert float(stopped.state.sums["count"]) == step % 8 != 0
    resumed = train(tmp_path, tiny(), quadrants(150), augment=flip())
    jax.tree.map(np.testing.assert_array_equal, unbroken.state, resumed.state)
    assert untimed(lines(tmp_path)) == untimed(resumed.history) == untimed(unbroken.history)
    assert resumed.summary == unbroken.summary
    assert json.loads((tmp_path / "run.json").read_text())["resumed"][0]["step"] == step


def test_a_closed_form_leaves_a_run_and_is_solved_once(tmp_path, tiny, quadrants):
    model, data, test, solved = tiny(), quadrants(60), quadrants(20, seed=1, split="test"), []

    def solve(variables):
        solved.append(1)
        return jax.tree.map(lambda leaf: leaf + 0.5, variables)

    config = TrainConfig(1, 16, val_fraction=0.2, eval_batch=10)
    given = (tmp_path, model, solve, softmax_cross_entropy, data, test, config)
    result = fit_closed_form(*given, fingerprint={"power": 2})
    variables = load_variables(tmp_path, model, (4, 4, 1), "best", fingerprint={"power": 2})
    jax.tree.map(np.testing.assert_array_equal, result.state.variables, variables)
    assert result.summary["last"]["test_accuracy"] == pytest.approx(accuracy(model, variables, test))
    (record,) = result.history
    assert {"step", "epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "seconds"} < set(record)
    assert lines(tmp_path) == result.history
    assert json.loads((tmp_path / "run.json").read_text())["summary"] == result.summary

    again = fit_closed_form(*given, fingerprint={"power": 2})
    assert solved == [1]
    assert (again.history, again.summary) == (result.history, result.summary)
    jax.tree.map(np.testing.assert_array_equal, again.state, result.state)
    with pytest.raises(CheckpointError, match="power was 2, now it is 3"):
        fit_closed_form(*given, fingerprint={"power": 3})
    for wrong in (lambda leaf: leaf * jnp.nan, lambda leaf: leaf[None]):
        given = (tmp_path / "run", model, lambda variables, wrong=wrong: jax.tree.map(wrong, variables), *given[3:])
        with pytest.raises(ConfigError, match="solve"):
            fit_closed_form(*given)
    assert not (tmp_path / "run").exists()


@dataclass
class Scaled:
    """A loss that has no hash, since it can be changed."""

    scale: float

    def __call__(self, logits, labels):
        return self.scale * softmax_cross_entropy(logits, labels)


def test_a_loss_without_a_hash_is_measured_too(tiny, quadrants):
    model, data, mesh = tiny(), quadrants(30), device_mesh(jax.devices()[:2])
    variables = model.init(jax.random.key(0), jnp.zeros((1, *data.images.shape[1:])))
    variables = jax.device_put(variables, jax.NamedSharding(mesh, jax.P()))
    plain = Evaluation(model, softmax_cross_entropy, data, 10, mesh)(variables)
    scaled = Evaluation(model, Scaled(2.0), data, 10, mesh)
    for evaluation in (scaled, scaled.compile(variables)):
        found = evaluation(variables)
        assert found["accuracy"] == plain["accuracy"]
        assert found["loss"] == pytest.approx(2 * plain["loss"])


def test_predict_pads_and_checks_its_images(tiny):
    model, images = tiny(), np.random.default_rng(0).random((11, 4, 4, 1), np.float32)
    variables = model.init(jax.random.key(0), jnp.asarray(images[:1]))
    expected = model.apply(variables, jnp.asarray(images))
    np.testing.assert_allclose(predict(model, variables, images, batch_size=4), expected, atol=1e-6)
    np.testing.assert_allclose(predict(model, variables, jnp.asarray(images)), expected, atol=1e-6)
    for wrong in (images[0], images[:0], (255 * images).astype(np.uint8)):
        with pytest.raises(ConfigError, match="images"):
            predict(model, variables, wrong)
