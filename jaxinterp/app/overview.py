"""Trained networks of several families side by side: one page, and one table."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp.app.stages import trained
from jaxinterp.explain.explainable import summed
from jaxinterp.figures.html import Page, Picture, Section, Table, picture
from jaxinterp.recipe.config import read_json
from jaxinterp.recipe.page import first_of_each_class, likeliest, top_maps

HEADER = ("family", "test accuracy", "parameters", "largest relative residual", "explanation of one image, ms")
REPEATS = 9


@dataclass(frozen=True)
class Member:
    """A trained network of a family, measured.

    Attributes:
        family: its name.
        run: of its run.
        run_dir: its folder.
        accuracy: on the test split, in [0, 1].
        parameters: their number.
        residual: largest part of a logit that contributions miss.
        milliseconds: median time of taking all logits of one image apart, compiled before.
        maps: the first test images with the contributions to their likeliest classes.
    """

    family: str
    run: str
    run_dir: Path
    accuracy: float
    parameters: int
    residual: float
    milliseconds: float
    maps: Picture

    @property
    def row(self) -> tuple[str, ...]:
        """Return the row under `HEADER`."""
        numbers = f"{self.accuracy:.2%}", f"{self.parameters:,}", f"{self.residual:.0e}", f"{self.milliseconds:.1f}"
        return (self.family, *numbers)


def member(run_dir: Path, data_dir: Path | None = None) -> Member:
    """Collect what is shown of an evaluated run.

    Raises:
        ConfigError: the folder holds no run, or it was not evaluated.
    """
    run = trained(run_dir, data_dir=data_dir)
    net, (images, labels) = run.explainable, run.test_data
    metrics = read_json(run_dir / "evaluation.json", f"jaxinterp evaluate {run_dir}", "metrics")["metrics"]
    index = first_of_each_class(labels, 3)
    chosen = images[index]
    logits = np.asarray(net.apply(net.variables, jnp.asarray(chosen)))
    maps = np.asarray(summed(net.decompose(chosen, likeliest(logits)), chosen))
    figure = top_maps(
        net, chosen, [f"label {run.classes[label]}" for label in labels[index]], logits, run.classes, maps
    )
    times = []
    for _ in range(REPEATS):  # the first one compiles
        start = time.perf_counter()
        jax.block_until_ready(net.decompose(images[:1]).contributions)
        times.append(time.perf_counter() - start)
    return Member(
        family=run.family.title,
        run=run.name,
        run_dir=run_dir,
        accuracy=metrics["test_accuracy"],
        parameters=run.parameters,
        residual=metrics["completeness_residual"],
        milliseconds=1e3 * float(np.median(times[1:])),
        maps=picture(figure, "", "Test images and their contribution maps, blue against and red for the class", 495),
    )


def compose(members: Sequence[Member]) -> Page:
    """Compose one page: what each network sees in the same images, then one table."""
    sections = [
        Section(
            f"{one.family}: {one.run}",
            [f"Test accuracy {one.accuracy:.2%}. The whole report: {one.run_dir.name}/report.html beside this page."],
            [one.maps],
        )
        for one in members
    ]
    table = Table(HEADER, [one.row for one in members])
    return Page(
        title="Networks that can be read",
        subtitle=f"{len(members)} families on the same test images, each taken apart exactly",
        exact="Exact: in every row the contributions of the pixels sum to the logit minus what the family leaves out, "
        "to the residual of the table. Accuracy and time are measurements on this machine.",
        sections=[*sections, Section("Side by side", (), (), [table])],
    )
