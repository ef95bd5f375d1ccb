"""The training loop: resume, train, evaluate, save; a killed run that is started again ends with the same bits."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import PRNGKeyArray

from jaxinterp.data.augment import Augment
from jaxinterp.data.datasets import Dataset, hold_out
from jaxinterp.errors import ConfigError, DataError, NonFiniteError
from jaxinterp.nn.losses import ClassificationLoss, LogitsLoss, LossFn
from jaxinterp.train.checkpoint import Checkpoints
from jaxinterp.train.config import FitResult, TrainConfig, best_record, check, describe
from jaxinterp.train.evaluate import Evaluation
from jaxinterp.train.feed import InMemoryLoader, Loader, Stream, StreamLoader
from jaxinterp.train.log import RunLog
from jaxinterp.train.progress import ProgressMeter
from jaxinterp.train.signals import Interruption
from jaxinterp.train.state import TrainState, init_state, start_epoch
from jaxinterp.train.step import compile_step, device_mesh

Evaluations = Mapping[str, Evaluation]


class _Run:
    """The moving parts of one call of `fit`."""

    def __init__(
        self,
        config: TrainConfig,
        feed: Loader,
        mesh: Mesh,
        clock: ProgressMeter,
        checkpoints: Checkpoints,
        identity: Mapping[str, Any],
        schedule: optax.Schedule | None,
    ) -> None:
        self.config, self.feed, self.clock, self.checkpoints = config, feed, clock, checkpoints
        self.identity, self.schedule = identity, schedule
        self.total = config.epochs * feed.steps
        self.step, self.history = 0, list[dict[str, Any]]()
        self.reset = jax.jit(start_epoch, out_shardings=NamedSharding(mesh, P()), donate_argnums=0)

    def look(self, state: TrainState) -> dict[str, float]:
        """Wait for the devices, check the state, and return the means of the epoch so far."""
        sums, bad = jax.device_get((state.sums, state.bad_step))
        if bad >= 0:
            epoch, batch = divmod(int(bad) - 1, self.feed.steps)
            self.checkpoints.wait("last")
            saved = self.checkpoints.steps()
            raise NonFiniteError(
                f"loss, gradient norm or parameter norm is not finite at step {bad} (epoch {epoch + 1}, batch "
                f"{batch + 1} of {self.feed.steps}); last checkpoint: {f'step {saved[0]}' if saved else 'none'}; "
                "try a lower learning rate, or clipped gradients"
            )
        means = {name: float(total / max(sums["count"], 1)) for name, total in sums.items() if name != "count"}
        self.clock.tick(means)
        return means

    def save(self, state: TrainState, *, best: bool = False) -> None:
        """Save a state that `look` has found finite, unless it is there already or on its way there."""
        which: Literal["last", "best"] = "best" if best else "last"
        self.checkpoints.wait(which)
        if self.step not in self.checkpoints.steps(which):
            meta = {"config": self.identity, "history": self.history, "seconds": self.clock.seconds}
            self.checkpoints.save(state, meta, best=best)

    def resume(self, target: TrainState, allow_older: bool) -> TrainState | None:
        """Go back to the newest checkpoint, forgetting whatever is newer."""
        found = self.checkpoints.restore(target, config=self.identity, allow_older=allow_older)
        state = None
        if found is not None:
            state, meta, passed = found
            for line in passed:
                self.clock.log(f"{line}: passed over")
            self.step, self.history = meta["step"], meta["history"]
            self.clock.start(self.step, meta["seconds"])
        self.checkpoints.forget_after(self.step)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("jaxinterp.train.resume")
        best = best_record(self.history)
        if state is not None and best is not None and best["step"] == self.step:
            self.save(state, best=True)
        return state

    def train(
        self, state: TrainState, step_fn: Any, key: PRNGKeyArray, evaluations: Evaluations, log: RunLog
    ) -> tuple[TrainState, str | None]:
        """Train to the end, or until a signal asks to stop; return the state and the signal's name."""
        compiled, stop = None, None
        with Interruption(enabled=jax.process_count() == 1) as interruption:
            while self.step < self.total and stop is None:
                epoch, begin = divmod(self.step, self.feed.steps)
                for inputs in self.feed.epoch(epoch, begin):
                    if compiled is None:
                        with self.clock.compiling("the training step"):
                            compiled = step_fn.lower(state, inputs, key).compile()
                        self.clock.start(self.step, self.clock.seconds)
                    with jax.transfer_guard("disallow"):
                        state = compiled(state, inputs, key)
                    self.step += 1
                    if self.step % self.feed.steps == 0:
                        state = self.end_epoch(state, evaluations, log)
                    elif self.clock.due():
                        self.look(state)
                    stop = interruption.requested
                    if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(self.step):
                        stop = "SIGTERM"
                    if stop is not None:
                        break
                else:
                    if self.step != (epoch + 1) * self.feed.steps:
                        count = self.step - epoch * self.feed.steps
                        raise DataError(f"epoch {epoch + 1} ended after {count} of {self.feed.steps} batches")
            if stop is not None and self.step < self.total:
                self.look(state)
                self.save(state)
                self.checkpoints.wait("last")
                self.clock.log(f"{stop}: stopped after step {self.step}; the same command resumes there")
                return state, stop
        return state, None

    def end_epoch(self, state: TrainState, evaluations: Evaluations, log: RunLog) -> TrainState:
        """Evaluate, log and save after the last step of an epoch."""
        self.clock.due()
        means = self.look(state)
        epoch = self.step // self.feed.steps
        last = epoch == self.config.epochs
        record: dict[str, Any] = {"step": self.step, "epoch": epoch}
        record |= {f"train_{name}": value for name, value in means.items()}
        if last or epoch % self.config.eval_every == 0:
            for part, evaluation in evaluations.items():
                record |= {f"{part}_{name}": value for name, value in evaluation(state.variables).items()}
        if self.schedule is not None:
            record["lr"] = float(self.schedule(np.int32(self.step - 1)))
        images = self.feed.steps * self.config.batch_size
        record["seconds"] = round(self.clock.seconds, 3)
        record["images_per_second"] = round(images / max(self.clock.seconds, 1e-9), 1)
        self.history.append(record)
        log.epoch(record)
        self.clock.epoch(record)
        state = self.reset(state)
        if best_record(self.history) is record:
            self.save(state, best=True)
        if last or epoch % self.config.checkpoint_every == 0:
            self.save(state)
        self.clock.start(self.step)
        return state


def fit(
    run_dir: str | Path,
    model: nn.Module,
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    train: Dataset | Stream,
    test: Dataset | None,
    augment: Augment,
    config: TrainConfig,
    *,
    allow_older: bool = False,
    devices: Sequence[jax.Device] | None = None,
    validation: Dataset | None = None,
    schedule: optax.Schedule | None = None,
    identity: Mapping[str, Any] | None = None,
    initial: Callable[[Any], Any] | None = None,
) -> FitResult:
    """Train a classifier, or go on with the run that lies in the folder.

    Order, augmentation and dropout are functions of (seed, epoch, index) and (seed, step): a run that was killed and
    is started again ends with the same bits as an unbroken one. SIGTERM and SIGINT save at the next step and return.

    Args:
        run_dir: The run folder: `checkpoints/`, `metrics.jsonl`, `run.json` and `tensorboard/` are written here.
        model: A Flax model, called as `model.apply(variables, image, train=bool)`. BatchNorm needs
            `axis_name="batch"` under `pmap`, and none under `jit`.
        loss_fn: The loss, for instance `classification_loss(model, sigmoid_bce)`, whose loss of the logits is then
            reported on the held-out parts too.
        tx: The optimizer, an optax transformation.
        train: Training data, in memory (they are sent to the devices as a whole) or streamed.
        test: Test data, evaluated once at the end, with the last and with the best variables.
        augment: `(key, image) -> image`, run on the devices.
        config: How to train.
        allow_older: If the newest checkpoint is damaged, go on from the newest intact one.
        devices: Devices to train on; default all.
        validation: Data to choose the best epoch; default `config.validation` of the training data, held out.
        schedule: Learning rate by step, only to be logged.
        identity: JSON values that a continuation must share, beside the model, the data and the `TrainConfig`.
        initial: `variables -> variables`, what training starts from, made of the model's random ones; such as trained
            parameters in the place of some.

    Returns:
        Final state, best variables, history and summary.

    Raises:
        ConfigError: A setting that cannot be trained.
        CheckpointError: The folder's checkpoint is damaged, or of another model, type or configuration.
        NonFiniteError: Loss or a norm was not finite; the step is named, and nothing of it is saved.
        DataError: A stream ended early.
    """
    run_dir, mesh = Path(run_dir), device_mesh(devices)
    replicated = NamedSharding(mesh, P())
    check(config, None, mesh.size)
    if isinstance(train, Dataset) and validation is None and config.validation > 0:
        train, validation = hold_out(train, config.validation, config.seed)
    check(config, len(train.labels) if isinstance(train, Dataset) else None, mesh.size)

    key = jax.jit(lambda: jax.random.key(config.seed), out_shardings=replicated)()
    feed: Loader
    if isinstance(train, Dataset):
        feed = InMemoryLoader(train, augment, config.batch_size, key, mesh, config.mode)
        image_shape = train.images.shape[1:]
    else:
        feed = StreamLoader(train, augment, mesh, config.mode)
        image_shape = train.image_shape
    batch = {
        "image": jax.ShapeDtypeStruct((config.batch_size, *image_shape), jnp.float32),
        "label": jax.ShapeDtypeStruct((config.batch_size,), jnp.int32),
        "index": jax.ShapeDtypeStruct((config.batch_size,), jnp.int32),
    }

    def init(key: PRNGKeyArray) -> TrainState:
        return init_state(model, loss_fn, tx, jax.random.fold_in(key, 2), batch)

    target = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated), jax.eval_shape(init, key)
    )
    step_fn = compile_step(
        loss_fn, tx, mode=config.mode, mesh=mesh, accumulate=config.accumulate, draw=feed.draw, axes=feed.axes
    )
    logits_loss: LogitsLoss | None = loss_fn.per_logits_loss if isinstance(loss_fn, ClassificationLoss) else None

    def evaluation(dataset: Dataset | None) -> Evaluation | None:
        if dataset is None:
            return None
        with clock.compiling(f"the evaluation on {dataset.split}"):
            return Evaluation(model, logits_loss, dataset, config.eval_batch, mesh).compile(target.variables)

    clock = ProgressMeter(feed.steps, config.epochs, config.batch_size, show=jax.process_index() == 0)
    with Checkpoints(run_dir, config.keep) as checkpoints, clock:
        same = {**describe(train, model, config), **(identity or {})}
        run = _Run(config, feed, mesh, clock, checkpoints, same, schedule)
        state = run.resume(target, allow_older)
        if state is None:
            with clock.compiling("the initial state"):
                state = jax.jit(init, out_shardings=replicated)(key)
            if initial is not None:
                state = state.replace(**_started(initial, state.variables))  # type: ignore[attr-defined]
        with RunLog(run_dir, run.history, seed=config.seed, step=run.step) as log:
            if run.step:
                clock.log(f"resuming at step {run.step} of {run.total}")
            watched = evaluation(test) if config.watch_test else None
            parts = {"val": evaluation(validation), "test": watched}
            each = {name: part for name, part in parts.items() if part is not None}
            state, stopped = run.train(state, step_fn, key, each, log)
            checkpoints.wait("last")
            checkpoints.wait("best")
            record, best = best_record(run.history), None
            if record is not None:
                found = checkpoints.restore(target, config=same, which="best", allow_older=allow_older)
                best = None if found is None else found[0].variables
            summary: dict[str, dict[str, Any]] = {}
            if stopped is None:
                summary = _summary(run.history, record, state.variables, best, watched or evaluation(test))
                log.finish(summary)
                for name, values in summary.items():
                    shown = "  ".join(f"{key} {value:.4f}" for key, value in values.items() if key.endswith("accuracy"))
                    clock.log(f"{name} epoch ({values['epoch']}): {shown}")
    return FitResult(state, best, run.history, summary, stopped)


def _started(initial: Callable[[Any], Any], variables: Any) -> Any:
    """Initial variables where the random ones lie, each in a buffer of its own, for the step donates them.

    Raises:
        ConfigError: they have another structure, other shapes or types.
    """
    started = initial(variables)

    def described(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape)}", tree)

    if described(started) != described(variables):
        raise ConfigError("initial: expected variables of the structure, shapes and types of the model's own")
    return jax.tree.map(lambda leaf, own: jnp.copy(jax.device_put(leaf, own.sharding)), started, variables)


def _summary(
    history: Sequence[Mapping[str, Any]],
    record: Mapping[str, Any] | None,
    last: Any,
    best: Any,
    evaluation: Evaluation | None,
) -> dict[str, dict[str, Any]]:
    """Last and best epoch apart: their place, and their metrics on the validation and the test part."""
    summary = {}
    for name, entry, variables in (("last", history[-1], last), ("best", record, best)):
        if entry is not None and variables is not None:
            kept = {key: value for key, value in entry.items() if key in ("epoch", "step") or key.startswith("val_")}
            test = {} if evaluation is None else evaluation(variables)
            summary[name] = kept | {f"test_{key}": value for key, value in test.items()}
    watched = [entry for entry in history if "test_accuracy" in entry]
    if watched:
        highest = max(watched, key=lambda entry: entry["test_accuracy"])
        summary["highest"] = {key: highest[key] for key in ("epoch", "step", "test_accuracy")}
    return summary
