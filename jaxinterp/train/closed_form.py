"""Fit in closed form: no steps, but the same run folder, checkpoint and summary as `fit` leaves."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxinterp.checks import require
from jaxinterp.data.datasets import Dataset, hold_out
from jaxinterp.nn.losses import LogitsLoss
from jaxinterp.train.checkpoint import Checkpoints
from jaxinterp.train.config import TrainConfig, check_outputs, describe
from jaxinterp.train.evaluate import Evaluation, measure
from jaxinterp.train.lock import only_trainer
from jaxinterp.train.log import RunLog
from jaxinterp.train.loop import start_from
from jaxinterp.train.result import FitResult, accuracies, best_record, summarize
from jaxinterp.train.step import TrainState, device_mesh


def fit_closed_form(
    run_dir: str | Path,
    model: nn.Module,
    solve: Callable[[Any], Any],
    loss: LogitsLoss,
    train: Dataset,
    test: Dataset | None,
    config: TrainConfig,
    *,
    allow_older: bool = False,
    devices: Sequence[jax.Device] | None = None,
    validation: Dataset | None = None,
    fingerprint: Mapping[str, Any] | None = None,
    log: Callable[[str], None] = print,
) -> FitResult:
    """Fit a classifier in closed form, or return the finished fit that lies in the folder.

    The folder is that of a `fit` of one epoch of one step: `checkpoints/1`, one line of metrics.jsonl, run.json with
    the summary. `load_variables` reads it.

    `solve` maps the model's initial variables to finite ones of the same shapes, and is called once; `loss`, a mean
    over a batch of (logits, labels), is only measured; of `config`, `seed`, `val_fraction` and `eval_batch` matter;
    `log` gets a line about each part. The other arguments, and the result, are those of `fit`.
    """
    run_dir, mesh = Path(run_dir), device_mesh(devices)
    replicated = jax.NamedSharding(mesh, jax.P())
    if validation is None and config.val_fraction > 0:
        train, validation = hold_out(train, config.val_fraction, config.seed)
    check_outputs(model, train.images.shape[1:], train, validation, test)
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
    with only_trainer(run_dir, log), Checkpoints(run_dir) as checkpoints:
        results = checkpoints.restore(state, fingerprint=fingerprint, allow_older=allow_older)
        if results is None:
            begun = time.perf_counter()
            state = state.replace(**start_from("solve", solve, state.variables))  # type: ignore[attr-defined]
            finite = all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(state.variables))
            require(finite, "solve", "NaN or infinite values", "finite variables")
            seconds = time.perf_counter() - begun
            watched = {k: part for k, part in parts.items() if k != "test" or config.eval_test_each_epoch}
            record = {"step": 1, "epoch": 1, **measure(watched, state.variables), "seconds": round(seconds, 3)}
            history = [record | {"images_per_second": round(len(train) / max(seconds, 1e-9), 1)}]
            checkpoints.save(state, {"fingerprint": fingerprint, "history": history})
        else:
            state, meta, _ = results
            history = meta["history"]
            log("already finished")
    best = None if best_record(history) is None else state.variables
    summary = summarize(history, state.variables, best, parts["test"])
    with RunLog(run_dir, history if results else [], seed=config.seed, step=1 if results else 0, epochs=1) as logs:
        if results is None:
            logs.epoch(history[0])
        logs.finish(summary)
    for line in accuracies(summary):
        log(line)
    return FitResult(state, best, history, summary, None, run_dir)
