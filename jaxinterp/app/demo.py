"""The demo: pretrained networks explain digits, then a network of each family is trained; all on one page."""

import contextlib
import os
from collections.abc import Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from rich.console import Console

from jaxinterp.app import stages
from jaxinterp.app.console import show, show_table, table_of, warned_in_one_line
from jaxinterp.app.overview import HEADER, Seen, compose, explorer_page, summarize
from jaxinterp.app.registry import experiment_of, family_of
from jaxinterp.app.weights import load_trained
from jaxinterp.data import load as load_images
from jaxinterp.errors import JaxInterpError
from jaxinterp.explain.audit import audit
from jaxinterp.figures.html import Section, write
from jaxinterp.files import check_folder, write_bytes
from jaxinterp.recipe.overrides import override
from jaxinterp.recipe.page import first_of_each_class

QUICK_COMPILER = "--xla_backend_optimization_level=1 --xla_llvm_disable_expensive_passes=true"
# Quicker than the runs as they are: fewer epochs, and a checkpoint at the end only.
ONCE = ("train.val_fraction=0", "train.eval_every=1000", "train.checkpoint_every=1000")
RUNS: Mapping[str, tuple[str, ...]] = {
    "coda/digits": ("train.epochs=20",),
    "gated/digits-dlgn": ("train.epochs=20",),
    "glassbox/digits": ("model.kinds=lda", "model.baselines=pixels"),
    "coded/digits": ("train.epochs=8", "model.classifiers=3"),
    "taylor/digits": ("train.epochs=15",),
}
HERE = ("gated/digits-dlgn", "coda/digits")  # trained in this process, the others beside it
PACKAGED = ("gated-mnist", "glassbox-mnist", "coda-mnist", "taylor-mnist", "coded-mnist")  # what compiles soonest first
BESIDE = ("integrated_gradients", "occlusion", "lrp_epsilon_plus")  # methods beside the exact maps
AUDITED, AUDITS = "gated-mnist", ("gradient", "input_x_gradient", "smooth_grad", *BESIDE)
IMAGES = 10  # that can be explored, the first of each digit
AUDIT_IMAGES = 32


class Overview:
    """The page of the demo, written anew with every network that is added.

    Attributes:
        run_dir: its folder.
        console: for a line about each network.
    """

    def __init__(self, run_dir: Path, console: Console) -> None:
        self.run_dir, self.console = run_dir, console
        self.seen, self.further = list[Seen](), list[Section]()

    def add(self, seen: Seen) -> None:
        """Add a network: its picture and its explorer as files, the page, and a line."""
        self.seen.append(seen)
        image, row = self.run_dir / f"{seen.stem}.png", seen.row
        write_bytes(image, seen.png)
        write(explorer_page(seen), self.run_dir / seen.page)
        self.write()
        show(self.console, f"{row[0]}: test accuracy {row[1]}, residual {row[3]}, {row[6]} ms an image -> {image}")

    def write(self) -> None:
        """Write the page."""
        write(compose(self.seen, self.further, self.run_dir), self.run_dir / "report.html")


def demo(run_dir: Path, smoke: bool, console: Console) -> None:
    """Explain digits by the package's networks, audit methods on one, train five networks; write one page of all."""
    os.environ.setdefault("XLA_FLAGS", QUICK_COMPILER)  # compiling takes most of the time, costly passes most of that
    check_folder(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    overview = Overview(run_dir, console)
    others = [name for name in RUNS if name not in HERE]
    # The compiler keeps one core busy: two processes use two cores.
    pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
    try:
        apart, file = ", ".join(others), further(run_dir)
        show(console, f"trained meanwhile, in a second process that says in {file} how far it is: {apart}")
        beside = {name: pool.submit(train_apart, name, run_dir, smoke) for name in others}
        for name in PACKAGED[: 1 if smoke else None]:
            overview.add(explain_packaged(name))
            add_finished(beside, overview)
        audit_packaged(overview)
        for name in HERE:
            show(console, f"training {name}, {experiment_of(name).source}")
            overview.add(train(name, run_dir, smoke))
            add_finished(beside, overview)
        for name in list(beside):
            show(console, f"waiting for {name}, trained in the second process, see {file}")
            overview.add(beside.pop(name).result())
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    show(console, "all networks, those of the package and those trained just now:")
    show_table(console, table_of(HEADER, [one.row for one in overview.seen]))
    show(console, f"report: {run_dir / 'report.html'}")
    show(console, f"more of a network: jaxinterp evaluate {run_dir / 'coda'}; jaxinterp report {run_dir / 'coda'}")


def further(run_dir: Path) -> Path:
    """Return the file of what is said by the process beside."""
    return run_dir / "further.txt"


def add_finished(beside: dict[str, "Future[Seen]"], overview: Overview) -> None:
    """Add the networks that are trained beside, and take them off the list."""
    for name in [name for name, future in beside.items() if future.done()]:
        overview.add(beside.pop(name).result())


def explain_packaged(name: str) -> Seen:
    """Explain digits by a network of the package, exactly and by post-hoc methods."""
    found, card = load_trained(name)
    images, labels = test_images(card.packaged)
    chosen = first_of_each_class(labels, IMAGES)
    accuracy = card.test_accuracy if card.test_accuracy is not None else card.packaged_accuracy
    assert accuracy is not None
    text = (
        f"{card.summary}. Trained on {card.data}; maps of the likeliest class, and the cosine of others to the exact."
    )
    return summarize(found, images[chosen], labels[chosen], accuracy, text, BESIDE)


@cache
def test_images(packaged: str) -> tuple[Float[np.ndarray, "n h w c"], Int[np.ndarray, " n"]]:
    """Return the test images of a packaged data set, in [0, 1], and their labels."""
    data = load_images(packaged, "test")
    return data.floats(), data.labels


def audit_packaged(overview: Overview) -> None:
    """Measure post-hoc methods against the truth on a network of the package."""
    trained, card = load_trained(AUDITED)
    images, labels = (part[:AUDIT_IMAGES] for part in test_images(card.packaged))
    found = audit(trained.explainable, images, labels, methods=AUDITS)
    title = f"Which explanation to believe: methods against the truth of {AUDITED}"
    show(overview.console, f"{title}; {found.caption}:")
    table = found.table()
    show_table(overview.console, table_of(table.header, table.texts))
    overview.further.append(Section(title, [f"{found.caption}."], tables=[table]))
    overview.write()


def train(name: str, run_dir: Path, smoke: bool) -> Seen:
    """Train a run, and explain some test images."""
    run, run_dir = experiment_of(name).run, run_dir / name.split("/")[0]
    run = family_of(run).smoke(run) if smoke else override(run, (*RUNS[name], *ONCE))
    result = stages.train(name, run, run_dir)
    if result.interrupted:
        raise JaxInterpError(f"interrupted by {result.interrupted}; the same command goes on")
    found = stages.trained(run_dir)
    images, labels = found.test_data
    chosen, seconds = first_of_each_class(labels, IMAGES), sum(record["seconds"] for record in result.history)
    text = f"Trained just now on {run.data.name}, {len(result.history)} epochs in {seconds:.0f} s: {run_dir}."
    return summarize(found, images[chosen], labels[chosen], result.summary["last"]["test_accuracy"], text)


def train_apart(name: str, run_dir: Path, smoke: bool) -> Seen:
    """Train a run in a process of its own, which says what it does in a file."""
    with further(run_dir).open("a", encoding="utf-8") as file, contextlib.redirect_stdout(file), warned_in_one_line():
        return train(name, run_dir, smoke)
