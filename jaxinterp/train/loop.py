"""The training loop: resume, train, evaluate, save; a killed run that is started again ends with the same bits."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jaxtyping import PRNGKeyArray

from jaxinterp.checks import require
from jaxinterp.data.augment import Augment
from jaxinterp.data.datasets import Dataset, hold_out
from jaxinterp.data.stream import Stream
from jaxinterp.errors import DataError, NonFiniteError
from jaxinterp.nn.losses import ClassificationLoss, LogitsLoss, LossFn
from jaxinterp.nn.platform import jit_once, target, target_of
from jaxinterp.nn.targets import TargetLoss
from jaxinterp.train.checkpoint import Checkpoints
from jaxinterp.train.config import TrainConfig, check_batches, check_outputs, describe
from jaxinterp.train.evaluate import Evaluation, Evaluations, batch_for, measure
from jaxinterp.train.loader import InMemoryLoader, Loader, StreamLoader
from jaxinterp.train.lock import only_trainer
from jaxinterp.train.log import RunLog, count_epochs
from jaxinterp.train.progress import ProgressMeter
from jaxinterp.train.result import FitResult, accuracies, best_record, summarize
from jaxinterp.train.saver import Saver
from jaxinterp.train.signals import Interruption
from jaxinterp.train.step import TrainState, compile_step, device_mesh, init_state


@dataclass
class _Run:
    """The moving parts of one call of `fit`."""

    config: TrainConfig
    loader: Loader
    progress: ProgressMeter
    checkpoints: Checkpoints
    saver: Saver
    fingerprint: Mapping[str, Any]
    schedule: optax.Schedule | None
    reset: Callable[[TrainState], TrainState]
    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)

    def sync(self, state: TrainState) -> dict[str, float]:
        """Wait for the devices, check the state, and return the means of the epoch so far."""
        sums, bad = jax.device_get((state.sums, state.bad_step))
        if bad >= 0:
            epoch, batch = divmod(int(bad) - 1, self.loader.steps)
            self.saver.wait()
            saved = self.checkpoints.steps()
            where = f"step {bad} (epoch {epoch + 1}, batch {batch + 1} of {self.loader.steps})"
            raise NonFiniteError(
                f"loss, gradient norm or parameter norm is not finite at {where}; last checkpoint: "
                f"{f'step {saved[0]}' if saved else 'none'}; try a lower learning rate, or clipped gradients"
            )
        means = {name: float(total / max(sums["count"], 1)) for name, total in sums.items() if name != "count"}
        self.progress.update(means)
        return means

    def save(self, state: TrainState) -> None:
        """Save a state that `sync` has found finite, beside training."""
        meta = {"fingerprint": self.fingerprint, "history": [*self.history], "seconds": self.progress.seconds}
        self.saver.save(state, self.step, meta | {"epochs": self.config.epochs})

    def resume(self, target: TrainState, allow_older: bool) -> TrainState | None:
        """Go back to the newest checkpoint, setting aside damaged ones that are newer."""
        results = self.checkpoints.restore(target, fingerprint=self.fingerprint, allow_older=allow_older)
        state = None
        if results is not None:
            state, meta, errors = results
            for error in errors:
                self.progress.log(f"{error}: passed over")
            self.step, self.history = meta["step"], meta["history"]
            self._longer(meta)
            self.progress.start(self.step, meta["seconds"])
        for path in self.checkpoints.set_aside_after(self.step):
            self.progress.log(f"kept as {path}")
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("jaxinterp.train.resume")
        return state

    def _longer(self, meta: Mapping[str, Any]) -> None:
        """Say what another number of epochs than the checkpoint was written with does to the learning rate."""
        epochs, before = self.config.epochs, meta.get("epochs", self.config.epochs)
        done = f"at least {len(self.history)}, the epochs that are trained"
        require(self.step <= epochs * self.loader.steps, "train.epochs", epochs, done)
        if epochs != before:
            rate = "" if self.schedule is None else f" ({float(self.schedule(np.int32(self.step))):.3g} at this step)"
            self.progress.log(
                f"going on to epoch {epochs} after {len(self.history)} of {before}: from here on the learning rate is "
                f"that of a schedule over {epochs} epochs{rate}"
            )

    def train(
        self, state: TrainState, step_fn: Any, key: PRNGKeyArray, evaluations: Evaluations, log: RunLog
    ) -> tuple[TrainState, str | None]:
        """Train to the end, or until a signal asks to stop; return the state and the signal's name."""
        compiled, stop, total = None, None, self.config.epochs * self.loader.steps
        with Interruption(enabled=jax.process_count() == 1) as interruption:
            while self.step < total and stop is None:
                epoch, begin = divmod(self.step, self.loader.steps)
                for inputs in self.loader.epoch(epoch, begin):
                    if compiled is None:
                        with self.progress.compiling("the training step"):
                            compiled = step_fn.lower(state, inputs, key).compile()
                        self.progress.start(self.step, self.progress.seconds)
                    with jax.transfer_guard("disallow"):
                        state = compiled(state, inputs, key)
                    self.step += 1
                    if self.step % self.loader.steps == 0:
                        state = self.end_epoch(state, evaluations, log)
                    elif self.progress.should_report():
                        self.sync(state)
                    stop = interruption.requested
                    if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(self.step):
                        stop = "SIGTERM"
                    if stop is not None:
                        break
                else:
                    if self.step != (epoch + 1) * self.loader.steps:
                        count = self.step - epoch * self.loader.steps
                        raise DataError(f"epoch {epoch + 1} ended after {count} of {self.loader.steps} batches")
            if stop is not None and self.step < total:
                interruption.handled = True
                self.sync(state)
                self.save(state)
                self.saver.wait()
                self.progress.log(f"{stop}: stopped after step {self.step}; the same command resumes there")
                return state, stop
        return state, None

    def end_epoch(self, state: TrainState, evaluations: Evaluations, log: RunLog) -> TrainState:
        """Evaluate, log and save after the last step of an epoch."""
        self.progress.should_report()
        means = self.sync(state)
        epoch = self.step // self.loader.steps
        last = epoch == self.config.epochs
        record = {"step": self.step, "epoch": epoch, **{f"train_{name}": value for name, value in means.items()}}
        if last or epoch % self.config.eval_every == 0:
            record |= measure(evaluations, state.variables)
        if self.schedule is not None:
            record["lr"] = float(self.schedule(np.int32(self.step - 1)))
        images, seconds = self.loader.steps * self.config.batch_size, self.progress.seconds
        record |= {"seconds": round(seconds, 3), "images_per_second": round(images / max(seconds, 1e-9), 1)}
        self.history.append(record)
        log.epoch(record)
        self.progress.epoch(record)
        state = self.reset(state)
        if last or epoch % self.config.checkpoint_every == 0 or best_record(self.history) is record:
            self.save(state)
        self.progress.start(self.step)
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
    fingerprint: Mapping[str, Any] | None = None,
    init_from: Callable[[Any], Any] | None = None,
) -> FitResult:
    """Train a classifier, or go on with the run that lies in the folder.

    Order, augmentation and dropout are functions of (seed, epoch, index) and (seed, step): a run that was killed and
    is started again ends with the same bits as an unbroken one. SIGTERM and SIGINT save at the next step and return.

    Args:
        run_dir: The run folder: `checkpoints/`, `metrics.jsonl`, `run.json` and `tensorboard/` are written here.
        model: Called as `model.apply(variables, image, train=bool)`, one output for each class of the data; under
            `pmap` BatchNorm has `axis_name="batch"`.
        loss_fn: The loss; if it is `ClassificationLoss(model, ...)`, it is reported on the held-out parts too.
        tx: The optimizer, an optax transformation.
        train: Training data, in memory (they are sent to the devices as a whole) or streamed.
        test: Test data, evaluated once at the end, with the last and with the best variables.
        augment: `(key, image) -> image`, run on the devices.
        config: How to train.
        allow_older: If the newest checkpoint is damaged or missing, go on from the newest intact one.
        devices: Devices to train on; default all.
        validation: Data to choose the best epoch; default `config.val_fraction` of the training data, held out.
        schedule: Learning rate by step, only to be logged.
        fingerprint: JSON values that a continuation must share, beside the model, the data and the `TrainConfig`.
        init_from: `variables -> variables`, called with the model's random ones; training starts from what it returns.

    Returns:
        Final state, best variables, history and summary.

    Raises:
        ConfigError: The model has more or fewer outputs than the data have classes; or another process trains in the
            folder.
        CheckpointError: The folder's checkpoint is damaged, missing, or of another model, type or configuration; or
            one could not be written.
        NonFiniteError: Loss or a norm was not finite; the step is named, and nothing of it is saved.
        DataError: A stream ended early.
    """
    run_dir, mesh = Path(run_dir), device_mesh(devices)
    replicated = jax.NamedSharding(mesh, jax.P())
    if isinstance(train, Dataset) and validation is None and config.val_fraction > 0:
        train, validation = hold_out(train, config.val_fraction, config.seed)
    steps = len(train) // config.batch_size if isinstance(train, Dataset) else train.steps
    check_batches(config, mesh.size, steps)
    image_shape = train.images.shape[1:] if isinstance(train, Dataset) else train.image_shape
    key = jax.jit(lambda: jax.random.key(config.seed), out_shardings=replicated)()
    with ExitStack() as stack:
        stack.enter_context(target(target_of(key)))  # one side of every `by_platform` is traced
        check_outputs(model, image_shape, train, validation, test)
        loader: Loader
        if isinstance(train, Dataset):
            loader = InMemoryLoader(train, augment, config.batch_size, key, mesh, config.mode)
        else:
            loader = StreamLoader(train, augment, mesh, config.mode)
        number = jax.ShapeDtypeStruct((config.batch_size,), jnp.int32)
        image = jax.ShapeDtypeStruct((config.batch_size, *image_shape), jnp.float32)
        batch = {"image": image, "label": number, "index": number}

        def init(key: PRNGKeyArray) -> TrainState:
            return init_state(model, loss_fn, tx, jax.random.fold_in(key, 2), batch)

        shapes = jax.tree.map(lambda leaf: leaf.update(sharding=replicated), jax.eval_shape(init, key))
        parts, sample = config.grad_accum_steps, loader.sample_batch
        step_fn = compile_step(
            loss_fn, tx, mode=config.mode, mesh=mesh, grad_accum_steps=parts, sample_batch=sample, axes=loader.axes
        )
        plain = loss_fn.inner if isinstance(loss_fn, TargetLoss) else loss_fn
        logits_loss: LogitsLoss | None = plain.per_logits_loss if isinstance(plain, ClassificationLoss) else None

        eval_batch = batch_for(config.eval_batch, [len(part.labels) for part in (validation, test) if part is not None])

        def compile_evaluation(dataset: Dataset | None) -> Evaluation | None:
            if dataset is None:
                return None
            with progress.compiling(f"the evaluation on {dataset.split}"):
                return Evaluation(model, logits_loss, dataset, eval_batch, mesh).compile(shapes.variables)

        progress = ProgressMeter(loader.steps, config.epochs, config.batch_size, show=jax.process_index() == 0)
        stack.enter_context(only_trainer(run_dir, progress.log))
        checkpoints = stack.enter_context(Checkpoints(run_dir, config.keep))
        stack.enter_context(progress)
        saver = stack.enter_context(Saver(checkpoints, config.keep))
        fingerprint = {**describe(train, model, config), **(fingerprint or {})}
        reset = jax.jit(_reset_sums, out_shardings=replicated, donate_argnums=0)
        rate = None if schedule is None else jax.jit(schedule)
        run = _Run(config, loader, progress, checkpoints, saver, fingerprint, rate, reset)
        state = run.resume(shapes, allow_older)
        logged, saved = count_epochs(run_dir), len(run.history)
        if logged > saved:
            progress.log(f"{logged} epochs were logged, but the newest checkpoint holds {saved}; the rest is repeated")
        if state is None:
            with progress.compiling("the initial state"):
                state = jit_once(init, mesh, out_shardings=replicated)(key)
            if init_from is not None:
                state = state.replace(**start_from("init_from", init_from, state.variables))  # type: ignore[attr-defined]
        with RunLog(run_dir, run.history, seed=config.seed, step=run.step, epochs=config.epochs) as log:
            if run.step == config.epochs * steps:
                progress.log(f"already finished, {len(run.history)} of {config.epochs} epochs")
            elif run.step:
                progress.log(f"resuming at step {run.step} of {config.epochs * steps}")
            tested = compile_evaluation(test) if config.eval_test_each_epoch else None
            evaluations = {"val": compile_evaluation(validation), "test": tested}
            state, stopped = run.train(state, step_fn, key, evaluations, log)
            saver.wait()
            record, best = best_record(run.history), None
            if record is not None and record["step"] in checkpoints.steps():
                results = checkpoints.restore(shapes, fingerprint=fingerprint, which="best", allow_older=allow_older)
                best = None if results is None else results[0].variables
            summary: dict[str, dict[str, Any]] = {}
            if stopped is None:
                summary = summarize(run.history, state.variables, best, tested or compile_evaluation(test))
                log.finish(summary)
                for line in accuracies(summary):
                    progress.log(line)
    return FitResult(state, best, run.history, summary, stopped, run_dir)


def _reset_sums(state: TrainState) -> TrainState:
    return state.replace(sums=jax.tree.map(jnp.zeros_like, state.sums))  # type: ignore[attr-defined]


def start_from(name: str, init_from: Callable[[Any], Any], variables: Any) -> Any:
    """Return initial variables, placed like the random ones and copied, because the step donates its input."""
    start = init_from(variables)
    specs = [jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape)}", tree) for tree in (start, variables)]
    require(specs[0] == specs[1], name, "other variables", "the structure, shapes and types of the model's own")
    return _copied(jax.tree.map(lambda new, old: jax.device_put(new, old.sharding), start, variables))


@jax.jit
def _copied(tree: Any) -> Any:
    return jax.tree.map(jnp.copy, tree)
