"""Trained networks of several families side by side: one page, and one table."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp.app.stages import class_names, test_images, trained
from jaxinterp.explain.explainable import summed
from jaxinterp.figures.html import Page, Picture, Section, Table, picture
from jaxinterp.recipe.config import read_json
from jaxinterp.recipe.page import first_of_each_class, likeliest, top_maps

FAMILIES = {
    "coda": "CoDA Net",
    "gated": "gated network",
    "coded": "Coded ResNeXt",
    "taylor": "TaylorNet",
    "glassbox": "glass box",
}
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
        """A row under `HEADER`."""
        numbers = f"{self.accuracy:.2%}", f"{self.parameters:,}", f"{self.residual:.0e}", f"{self.milliseconds:.1f}"
        return (self.family, *numbers)


def member(run_dir: Path, data_dir: Path | None = None) -> Member:
    """What is shown of an evaluated run.

    Raises:
        ConfigError: the folder holds no run, or it was not evaluated.
    """
    name, config, subject = trained(run_dir)
    metrics = read_json(run_dir / "evaluation.json", f"jaxinterp evaluate {run_dir}", "metrics")["metrics"]
    images, labels = test_images(config, data_dir)
    chosen = images[first_of_each_class(labels, 3)]
    logits = np.asarray(subject.apply(subject.variables, jnp.asarray(chosen)))
    maps = np.asarray(summed(subject.decompose(chosen, likeliest(logits)), chosen))
    names = [f"label {class_names(config)[label]}" for label in labels[first_of_each_class(labels, 3)]]
    figure = top_maps(subject, chosen, names, logits, class_names(config), maps)
    times = []
    for _ in range(REPEATS):  # the first one compiles
        start = time.perf_counter()
        jax.block_until_ready(subject.decompose(images[:1]).contributions)
        times.append(time.perf_counter() - start)
    return Member(
        family=FAMILIES.get(name.split("/")[0], name),
        run=name,
        run_dir=run_dir,
        accuracy=metrics["test_accuracy"],
        parameters=sum(leaf.size for leaf in jax.tree.leaves(subject.variables["params"])),
        residual=metrics["completeness_residual"],
        milliseconds=1e3 * float(np.median(times[1:])),
        maps=picture(figure, "", "Test images and their contribution maps, blue against and red for the class", 495),
    )


def compose(members: Sequence[Member]) -> Page:
    """One page about all of them: what each network sees in the same images, then one table."""
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
