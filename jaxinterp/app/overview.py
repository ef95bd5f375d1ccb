"""Trained networks of several families side by side: one page, and one table."""

import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from jaxinterp.app.stages import trained
from jaxinterp.explain.decompose import decompose
from jaxinterp.figures.html import Page, Section, Table, picture
from jaxinterp.recipe.page import first_of_each_class, likeliest, small, top_maps
from jaxinterp.recipe.run_folder import read_json

HEADER = (
    *("family", "test accuracy", "parameters", "largest relative residual", "curvature", "discrepancy"),
    "explanation of one image, ms",
)
EXACT = ("completeness_residual", "curvature", "discrepancy")
REPEATS = 9
Row = tuple[str, ...]


def summarize_run(run_dir: Path) -> tuple[Section, Row]:
    """Return what the page shows of an evaluated run: maps of the first test images, and the row under `HEADER`.

    The time is the median of explaining all logits of one image, compiled before.
    """
    run = trained(run_dir)
    net, (images, labels) = run.explainable, run.test_data
    metrics = read_json(run_dir / "evaluation.json", f"jaxinterp evaluate {run_dir}", "metrics")["metrics"]
    first = first_of_each_class(labels, 3)
    chosen, names = images[first], [f"label {run.classes[label]}" for label in labels[first]]
    logits = np.asarray(net.logits(chosen))
    maps = np.asarray(decompose(net, chosen, likeliest(logits)).maps(chosen.shape[1:3]))
    figure = top_maps(net, chosen, names, logits, run.classes, maps)
    times = []
    for _ in range(REPEATS):  # the first one compiles
        start = time.perf_counter()
        jax.block_until_ready(decompose(net, images[:1]).contributions)
        times.append(time.perf_counter() - start)
    accuracy, numbers = f"{metrics['test_accuracy']:.2%}", [small(metrics, name, ".0e") for name in EXACT]
    section = Section(
        f"{run.family.title}: {run.name}",
        [f"Test accuracy {accuracy}. The whole report: {run_dir.name}/report.html beside this page."],
        [picture(figure, "", "Test images and their contribution maps, blue against and red for the class", 495)],
    )
    return section, (run.family.title, accuracy, f"{run.parameters:,}", *numbers, f"{1e3 * np.median(times[1:]):.1f}")


def compose(sections: Sequence[Section], rows: Sequence[Row]) -> Page:
    """Compose one page: what each network sees in the same images, then one table."""
    return Page(
        title="Networks that can be read",
        subtitle=f"{len(rows)} families on the same test images, each taken apart exactly",
        exact="Exact: in every row the contributions of the pixels sum to the logit minus what the family leaves out, "
        "to the residual of the table. Curvature 0 says that the network held is affine, discrepancy 0 that it is the "
        "network. Accuracy and time are measurements on this machine.",
        sections=[*sections, Section("Side by side", tables=[Table(HEADER, rows)])],
    )
