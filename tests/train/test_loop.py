import json
import shutil
import signal

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxinterp.data.augment import flip, identity
from jaxinterp.data.pipeline import epoch_order
from jaxinterp.data.stream import Stream
from jaxinterp.errors import CheckpointError, ConfigError, DataError, NonFiniteError
from jaxinterp.train import (
    ClassificationLoss,
    ProgressMeter,
    TrainConfig,
    fit,
    fit_closed_form,
    load_variables,
    predict,
    softmax_cross_entropy,
)

TX = optax.adam(1e-2)


def train(folder, model, data, test=None, tx=TX, augment=identity, **settings):
    names = ("devices", "validation_set", "schedule", "fingerprint", "allow_older")
    extra = {name: settings.pop(name) for name in names if name in settings}
    extra["validation"] = extra.pop("validation_set", None)
    config = TrainConfig(**{"epochs": 3, "batch_size": 16, "eval_batch": 10} | settings)
    extra.setdefault("devices", jax.devices()[:1])
    return fit(
        folder, model, ClassificationLoss(model, softmax_cross_entropy), tx, data, test, augment, config, **extra
    )


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def untimed(records):
    return [{k: v for k, v in record.items() if k not in ("seconds", "images_per_second")} for record in records]


def accuracy(model, variables, data):
    logits = predict(model, variables, data.images.astype(np.float32) / 255, batch_size=7)
    return float((logits.argmax(-1) == data.labels).mean())


def test_a_run_learns_and_leaves_what_it_promises(tmp_path, tiny, quadrants, capsys):
    data, test, schedule = quadrants(150), quadrants(50, seed=1, split="test"), optax.exponential_decay(1e-2, 8, 0.9)
    tx = optax.adam(schedule)
    result = train(tmp_path, tiny(), data, test, tx=tx, epochs=6, schedule=schedule, checkpoint_every=2)
    assert not result.interrupted
    assert [(record["epoch"], record["step"]) for record in result.history] == [(e, 8 * e) for e in range(1, 7)]
    assert result.history == lines(tmp_path)
    assert len(repr(result)) < 500
    assert result.history[-1]["train_loss"] < 0.7 * result.history[0]["train_loss"]
    np.testing.assert_allclose(result.history[2]["lr"], schedule(23), rtol=1e-6)

    best = max(result.history, key=lambda record: record["val_accuracy"])
    assert result.summary["best"]["epoch"] == best["epoch"]
    assert result.summary["last"]["epoch"] == 6
    last_variables, best_variables = (load_variables(tmp_path, tiny(), (4, 4, 1), which) for which in ("last", "best"))
    assert result.summary["last"]["test_accuracy"] == pytest.approx(accuracy(tiny(), last_variables, test))
    assert result.summary["best"]["test_accuracy"] == pytest.approx(accuracy(tiny(), best_variables, test))
    for one, two in ((result.state.variables, last_variables), (result.best, best_variables)):
        jax.tree.map(np.testing.assert_array_equal, one, two)

    info = json.loads((tmp_path / "run.json").read_text())
    assert info["versions"]["jax"] == jax.__version__
    assert (info["seed"], info["device"]["platform"], info["summary"]) == (0, "cpu", result.summary)
    assert list((tmp_path / "tensorboard").glob("events*"))
    saved, highest = [], -1.0
    for record in result.history:
        if record["epoch"] % 2 == 0 or record["val_accuracy"] > highest:
            saved.append(record["step"])
        highest = max(highest, record["val_accuracy"])
    assert {int(path.name) for path in (tmp_path / "checkpoints").iterdir()} == {*saved[-2:], best["step"]}
    printed = capsys.readouterr().out
    assert printed.count("compiled the training step in") == 1
    assert printed.count("\nepoch ") == 6

    again = train(tmp_path, tiny(), data, test, tx=tx, epochs=6, schedule=schedule, checkpoint_every=2)
    assert again.summary == result.summary
    assert lines(tmp_path) == result.history


def test_best_is_the_first_of_the_best_epochs_and_not_the_last(tmp_path, tiny, quadrants):
    wrecking = optax.sgd(lambda step: jnp.where(step < 16, 0.05, 5.0))
    held_out = quadrants(40, seed=3, split="held out")
    result = train(tmp_path, tiny(), quadrants(128), held_out, tx=wrecking, epochs=5, validation_set=held_out)
    scores = [record["val_accuracy"] for record in result.history]
    assert result.summary["best"]["epoch"] == 1 + scores.index(max(scores)) < 5
    assert result.summary["best"]["test_accuracy"] == max(scores) > scores[-1]
    assert result.summary["last"]["test_accuracy"] == scores[-1]


def test_without_validation_there_is_no_best(tmp_path, tiny, quadrants):
    result = train(tmp_path, tiny(), quadrants(64), quadrants(20), val_fraction=0.0, epochs=1)
    assert result.best is None
    assert set(result.summary) == {"last"}
    assert "val_accuracy" not in result.history[0]


def test_pmap_and_jit_on_eight_devices_train_like_one_device(tmp_path, tiny, quadrants):
    data, settings = (
        quadrants(64),
        {"tx": optax.sgd(0.05), "augment": flip(), "grad_accum_steps": 2, "val_fraction": 0.0},
    )
    one = train(tmp_path / "one", tiny(), data, **settings)
    jit = train(tmp_path / "jit", tiny(), data, devices=jax.devices(), **settings)
    pmap = train(tmp_path / "pmap", tiny(axis_name="batch"), data, devices=jax.devices(), mode="pmap", **settings)
    for other in (jit, pmap):
        chex.assert_trees_all_close(one.state.variables, other.state.variables, atol=2e-6)
        np.testing.assert_allclose(other.history[-1]["train_loss"], one.history[-1]["train_loss"], rtol=1e-5)


@pytest.mark.parametrize("mode", ["jit", pytest.param("pmap", marks=pytest.mark.slow)])
def test_a_stream_in_the_same_order_trains_to_the_same_bits(tmp_path, tiny, quadrants, mode):
    data, devices = quadrants(70), jax.devices()[:2]
    key, pulled = jax.random.fold_in(jax.random.key(0), 0), []

    def batches(epoch):
        for row in np.asarray(epoch_order(key, epoch, 70, 16)):
            pulled.append(epoch)
            yield {"image": data.images[row], "label": data.labels[row], "index": row}

    stream = Stream("quadrants", 4, (4, 4, 1), batches)
    settings = {"devices": devices, "mode": mode, "augment": flip(), "val_fraction": 0.0, "epochs": 2}
    model = tiny(axis_name="batch" if mode == "pmap" else None)
    resident = train(tmp_path / "resident", model, data, **settings)
    streamed = train(tmp_path / "stream", model, stream, **settings)
    jax.tree.map(np.testing.assert_array_equal, resident.state.variables, streamed.state.variables)
    assert pulled == [0] * 4 + [1] * 4
    short = Stream("quadrants", 5, (4, 4, 1), batches)
    with pytest.raises(DataError, match="epoch 1 ended after 4 of 5 batches"):
        train(tmp_path / "short", model, short, **settings)


def test_bfloat16_trains(tmp_path, tiny, quadrants):
    model = tiny(dtype=jnp.bfloat16)
    result = train(tmp_path, model, quadrants(150), epochs=6)
    assert result.history[-1]["train_loss"] < 0.7 * result.history[0]["train_loss"]
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(result.state.variables))
    logits = predict(model, result.state.variables, np.zeros((3, 4, 4, 1), np.float32))
    assert logits.dtype == jnp.bfloat16


def test_nothing_compiles_after_the_first_epoch_and_nothing_is_copied(tmp_path, tiny, quadrants, monkeypatch):
    compiled, at_epoch, updates = [], [], []

    def listen(event, seconds, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    show, update = ProgressMeter.epoch, ProgressMeter.update
    monkeypatch.setattr(
        ProgressMeter, "epoch", lambda clock, record: (at_epoch.append(len(compiled)), show(clock, record))
    )
    monkeypatch.setattr(ProgressMeter, "update", lambda clock, means: (updates.append(means), update(clock, means)))
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        with jax.transfer_guard("disallow"), pytest.raises(Exception, match=r"[Dd]isallowed"):
            jnp.ones(3) + np.ones(3, np.float32)  # the guard is alive on this backend
        train(tmp_path, tiny(), quadrants(150), augment=flip(), epochs=5, devices=jax.devices()[:2])
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert at_epoch[0] > 0
    assert len(set(at_epoch[1:])) == 1
    assert len(updates) >= 5


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
    settings["devices"] = jax.devices()[: settings.get("devices", 1)]
    with pytest.raises(ConfigError, match=f"^{name}: got"):
        train(tmp_path / "run", tiny(), quadrants(150), **settings)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_at_the_next_step_and_the_same_command_goes_on(
    tmp_path, tiny, quadrants, monkeypatch, capsys, number
):
    data, settings = quadrants(150), {"epochs": 3, "augment": flip()}
    unbroken = train(tmp_path / "unbroken", tiny(), data, **settings)
    before = signal.getsignal(number)
    should_report, count = ProgressMeter.should_report, []

    def kick(clock):
        count.append(1)
        if len(count) == 12:
            signal.raise_signal(number)
        return should_report(clock)

    monkeypatch.setattr(ProgressMeter, "should_report", kick)
    stopped = train(tmp_path / "run", tiny(), data, **settings)
    monkeypatch.undo()
    assert stopped.interrupted == number.name
    assert stopped.summary == {}
    assert signal.getsignal(number) is before
    assert f"{number.name}: stopped after step" in capsys.readouterr().out
    assert int(stopped.state.step) % 8 != 0
    assert float(stopped.state.sums["count"]) == int(stopped.state.step) % 8
    resumed = train(tmp_path / "run", tiny(), data, **settings)
    jax.tree.map(np.testing.assert_array_equal, unbroken.state, resumed.state)
    assert untimed(lines(tmp_path / "run")) == untimed(unbroken.history)
    assert untimed(resumed.history) == untimed(unbroken.history)
    assert resumed.summary == unbroken.summary
    assert json.loads((tmp_path / "run/run.json").read_text())["resumed"][0]["step"] == int(stopped.state.step)


def test_a_log_with_newer_or_torn_lines_is_mended(tmp_path, tiny, quadrants):
    data = quadrants(150)
    unbroken = train(tmp_path, tiny(), data, checkpoint_every=3)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 32, "epoch": 4}\n{"step": 40, "ep')
    again = train(tmp_path, tiny(), data, checkpoint_every=3)
    assert lines(tmp_path) == unbroken.history == again.history


def test_without_the_newest_checkpoints_training_goes_on_from_the_best_and_says_so(tmp_path, tiny, quadrants, capsys):
    wrecking, held_out = optax.sgd(lambda step: jnp.where(step < 16, 0.05, 5.0)), quadrants(40, seed=3)
    settings = {"tx": wrecking, "epochs": 5, "validation_set": held_out}
    unbroken = train(tmp_path, tiny(), quadrants(128), **settings)
    best, *newest = sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    assert best == unbroken.summary["best"]["step"]
    for step in newest:
        shutil.rmtree(tmp_path / f"checkpoints/{step}")
    capsys.readouterr()
    again = train(tmp_path, tiny(), quadrants(128), **settings)
    assert f"5 epochs were logged, but the newest checkpoint holds {best // 8}" in capsys.readouterr().out
    jax.tree.map(np.testing.assert_array_equal, (unbroken.state, unbroken.best), (again.state, again.best))


def test_a_closed_form_leaves_a_run_and_is_solved_once(tmp_path, tiny, quadrants, capsys):
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


def test_a_closed_form_that_is_not_finite_or_of_another_shape_raises(tmp_path, tiny, quadrants):
    config = TrainConfig(1, 16)
    for wrong in (lambda leaf: leaf * jnp.nan, lambda leaf: leaf[None]):
        with pytest.raises(ConfigError, match="solve"):
            fit_closed_form(
                tmp_path / "run",
                tiny(),
                lambda variables, wrong=wrong: jax.tree.map(wrong, variables),
                softmax_cross_entropy,
                quadrants(40),
                None,
                config,
            )
    assert not (tmp_path / "run").exists()


def test_predict_pads_compiles_once_and_checks_its_images(tiny):
    model, images = tiny(), np.random.default_rng(0).random((11, 4, 4, 1), np.float32)
    variables = model.init(jax.random.key(0), jnp.asarray(images[:1]))
    expected = model.apply(variables, jnp.asarray(images))
    np.testing.assert_allclose(predict(model, variables, images, batch_size=4), expected, atol=1e-6)
    np.testing.assert_allclose(predict(model, variables, jnp.asarray(images)), expected, atol=1e-6)
    for wrong in (images[0], images[:0], (255 * images).astype(np.uint8)):
        with pytest.raises(ConfigError, match="images"):
            predict(model, variables, wrong)
