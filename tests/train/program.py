"""A training run as a program, to be killed, continued or run by many processes: program.py FOLDER [KILL] [PORT ID]."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import optax
from conftest import Tiny, make_quadrants

from jaxinterp.data.augment import flip
from jaxinterp.train import ClassificationLoss, ProgressMeter, TrainConfig, fit, initialize, softmax_cross_entropy
from jaxinterp.train.log import RunLog


def die(number=signal.SIGKILL):
    os.kill(os.getpid(), number)
    time.sleep(60 if number == signal.SIGKILL else 0)


def call_before(owner, name, count, action):
    """Replace a method by one that does something else first, at its count-th call."""
    method, calls = getattr(owner, name), []

    def replaced(*args, **kwargs):
        calls.append(name)
        if len(calls) == count:
            action()
        return method(*args, **kwargs)

    setattr(owner, name, replaced)


def watch(folder, count):
    """Kill the program as soon as the count-th checkpoint is being written."""
    seen = set()
    while len(seen) < count:
        seen |= {path.name for path in folder.glob("checkpoints/*tmp*")}
    die()


def arm(kill, folder):
    kind, count = kill.split(":")
    if kind == "save":
        threading.Thread(target=watch, args=(folder, int(count)), daemon=True).start()
    elif kind == "time":
        threading.Timer(float(count), die).start()
    else:  # of the log, the line is written and the checkpoint not begun
        log, step = (ProgressMeter, "epoch"), (ProgressMeter, "should_report")
        owner, name = {"step": step, "term": step, "log": log, "open": (RunLog, "__enter__")}[kind]
        call_before(owner, name, int(count), lambda: die(signal.SIGTERM if kind == "term" else signal.SIGKILL))


def run(folder, devices):
    model = Tiny()
    loss = ClassificationLoss(model, softmax_cross_entropy)
    config = TrainConfig(epochs=3, batch_size=16, grad_accum_steps=2, eval_batch=10)
    test = make_quadrants(40, seed=1, split="test")
    return fit(folder, model, loss, optax.adam(1e-2), make_quadrants(110), test, flip(), config, devices=devices)


if __name__ == "__main__":
    where, kill, *process = sys.argv[1:]
    if process:
        initialize(f"localhost:{process[0]}", 2, int(process[1]))
    if kill != "none":
        arm(kill, Path(where))
    result = run(where, jax.devices() if process else jax.devices()[:1])
    if jax.process_index() == 0:
        leaves = jax.tree.leaves((result.state.params, result.state.batch_stats, result.best))
        np.savez(f"{where}/end.npz", *(np.asarray(leaf) for leaf in leaves))
    print("interrupted" if result.interrupted else "finished")
