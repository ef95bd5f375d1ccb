"""Fit in closed form: no steps, but the same run folder, checkpoint and summary as `fit` leaves."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxinterp.checks import require
from jaxinterp.data.datasets import Dataset, hold_out
from jaxinterp.nn.losses import LogitsLoss
from jaxinterp.train.checkpoint import Checkpoints
from jaxinterp.train.config import TrainConfig, describe
from jaxinterp.train.evaluate import Evaluation, measure
from jaxinterp.train.log import RunLog
from jaxinterp.train.loop import start_from
from jaxinterp.train.result import FitResult, accuracies, best_record, summarize
from jaxinterp.train.state import TrainState
from jaxinterp.train.step import device_mesh


def fit_closed_form(
    run_dir: str | Path,
    model: nn.Module,
    solve: Callable[[Any], Any],
    loss: LogitsLoss,
    train: Dataset,
    test: Dataset | None,
    config: TrainConfig,
    *,
    devices: Sequence[jax.Device] | None = None,
    validation: Dataset | None = None,
    fingerprint: Mapping[str, Any] | None = None,
    log: Callable[[str], None] = print,
) -> FitResult:
    """Fit a classifier in closed form, or return the finished fit that lies in the folder.

    The folder is that of a `fit` of one epoch of one step: `checkpoints/1`, one line of metrics.jsonl, run.json with
    the summary. `load_variables` reads it.

    Args:
        run_dir: The run folder.
        model: A Flax model, called as `model.apply(variables, image)`.
        solve: `variables -> variables`, called once with the model's initial ones.
        loss: Mean loss over a batch of (logits, labels), which is only measured.
        train: Training data, of which loss and accuracy are measured.
        test: Test data.
        config: Of which `seed`, `val_fraction` and `eval_batch` matter here.
        devices: Devices to measure on; default all.
        validation: Data to measure; default `config.val_fraction` of the training data, held out.
        fingerprint: JSON values that a continuation must share, beside the model, the data and the `TrainConfig`.
        log: Called with a line about each part.

    Returns:
        Variables, history and summary; the state has no optimizer.

    Raises:
        ConfigError: `solve` returns variables of another structure, shapes or types, or values that are not finite.
        CheckpointError: The folder's checkpoint is damaged, or of another model, type or configuration.
    """
    run_dir, mesh = Path(run_dir), device_mesh(devices)
    replicated = NamedSharding(mesh, P())
    if validation is None and config.val_fraction > 0:
        train, validation = hold_out(train, config.val_fraction, config.seed)
    parts = {
        part: None if data is None else Evaluation(model, loss, data, config.eval_batch, mesh)
        for part, data in (("train", train), ("val", validation), ("test", test))
    }

    def init() -> TrainState:
        image = jnp.zeros((1, *train.images.shape[1:]), jnp.float32)
        variables = model.init(jax.random.fold_in(jax.random.key(config.seed), 2), image)
        return TrainState(jnp.int32(1), variables["params"], variables.get("batch_stats", {}), (), {}, jnp.int32(-1))

    state: TrainState = jax.jit(init, out_shardings=replicated)()
    fingerprint = {**describe(train, model, config), **(fingerprint or {})}
    with Checkpoints(run_dir) as checkpoints:
        results = checkpoints.restore(state, fingerprint=fingerprint)
        if results is None:
            begun = time.perf_counter()
            state = state.replace(**start_from("solve", solve, state.variables))  # type: ignore[attr-defined]
            finite = all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(state.variables))
            require(finite, "solve", "NaN or infinite values", "finite variables")
            seconds = time.perf_counter() - begun
            watched = {"train": parts["train"], "val": parts["val"]}
            watched |= {"test": parts["test"]} if config.eval_test_each_epoch else {}
            record = {"step": 1, "epoch": 1, **measure(watched, state.variables), "seconds": round(seconds, 3)}
            history = [record | {"images_per_second": round(len(train) / max(seconds, 1e-9), 1)}]
            checkpoints.save(state, {"fingerprint": fingerprint, "history": history})
        else:
            state, meta, _ = results
            history = meta["history"]
            log("the fit is finished already")
    best = None if best_record(history) is None else state.variables
    summary = summarize(history, state.variables, best, parts["test"])
    new = results is None
    with RunLog(run_dir, [] if new else history, seed=config.seed, step=0 if new else 1) as logs:
        if new:
            logs.epoch(history[0])
        logs.finish(summary)
    for line in accuracies(summary):
        log(line)
    return FitResult(state, best, history, summary, None)
