"""The demo: a network of each family trained on the digits, all on one page."""

import contextlib
import os
from collections.abc import Sequence
from multiprocessing import get_context
from pathlib import Path

from rich.console import Console

from jaxinterp.app import stages
from jaxinterp.app.console import errors_in_one_line, show, show_table, table_of
from jaxinterp.app.overview import HEADER, compose, summarize_run
from jaxinterp.app.publish import gather, metrics_table
from jaxinterp.app.registry import experiment_of, family_of
from jaxinterp.errors import JaxInterpError
from jaxinterp.figures.html import write
from jaxinterp.files import check_folder
from jaxinterp.recipe.overrides import override

QUICK_COMPILER = "--xla_backend_optimization_level=1 --xla_llvm_disable_expensive_passes=true"
# Quicker than the runs as they are.
RUNS = {
    "coda/digits": (
        "train.epochs=30", "evaluate.grid_sizes=3", "evaluate.grids=12", "evaluate.removal_images=120",
        "evaluate.occlusion=5",
    ),
    "gated/digits-dlgn": (),
    "coded/digits": (
        "train.epochs=8", "model.classifiers=3", "evaluate.occlusion=", "model.path_images=120",
        "evaluate.removal_images=40",
    ),
    "taylor/digits": ("train.epochs=20", "evaluate.occlusion=", "evaluate.removal_images=40"),
    "glassbox/digits": (
        "model.kinds=lda,svm_rbf", "model.baselines=pixels", "evaluate.occlusion=", "evaluate.removal_images=40",
    ),
}  # fmt: skip
FIRST = ("coda/digits", "glassbox/digits")  # trained here; the others beside them, in a process of their own


def demo(run_dir: Path, smoke: bool, console: Console) -> None:
    """Train, evaluate and report a network of each family; write one page about all, and print its table."""
    os.environ.setdefault("XLA_FLAGS", QUICK_COMPILER)  # compiling takes most of the time, costly passes most of that
    check_folder(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    output = run_dir / "further.txt"
    others = [name for name in RUNS if name not in FIRST]
    # The compiler keeps one core busy: two processes use two cores.
    arguments = (others, run_dir, smoke, output)
    process = get_context("spawn").Process(target=train_in_subprocess, args=arguments, daemon=True)
    process.start()
    for name in FIRST:
        complete(name, run_dir, smoke, console)
    process.join()
    show(console, output.read_text(encoding="utf-8"))
    if process.exitcode:
        raise JaxInterpError(f"the networks of {output} were not finished: status {process.exitcode}")
    sections, rows = zip(*(summarize_run(folder(run_dir, name)) for name in RUNS), strict=True)
    write(compose(sections, rows), run_dir / "report.html")
    show(console, f"report: {run_dir / 'report.html'}")
    show_table(console, table_of(HEADER, rows))


def folder(run_dir: Path, name: str) -> Path:
    """Return the folder of a family's run."""
    return run_dir / name.split("/")[0]


def complete(name: str, run_dir: Path, smoke: bool, console: Console) -> None:
    """Train, evaluate and report a run."""
    run, run_dir = experiment_of(name).run, folder(run_dir, name)
    run = family_of(run).smoke(run) if smoke else override(run, RUNS[name])
    result = stages.train(name, run, run_dir)
    if result.interrupted:
        raise JaxInterpError(f"interrupted by {result.interrupted}; the same command goes on")
    show(console, stages.outcome(run_dir, result.summary))
    stages.evaluate(run_dir)
    show_table(console, metrics_table(gather([run_dir])))
    show(console, f"report: {stages.report(run_dir)}")


def train_in_subprocess(names: Sequence[str], run_dir: Path, smoke: bool, output: Path) -> None:
    """Train runs one after another in a child process, logging to a file."""
    with output.open("w", encoding="utf-8") as file, contextlib.redirect_stdout(file), errors_in_one_line():
        for name in names:
            complete(name, run_dir, smoke, Console(file=file, width=100))
