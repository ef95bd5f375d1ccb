"""Do layers of trained networks move with the image? Every family in one table, beside what moves by construction.

    python experiments/equivariance.py RUN_DIR ... [--results experiments/results]

For mirrors, a quarter turn and a change of scale g, and for up to five layers φ, or all blocks of a group CNN: how far
φ(g x) is from φ(x), from the map M that serves all images best (m×m filters, ridge regression), and how much of its
accuracy the network gets back when M undoes g at this layer (Lenc & Vedaldi, CVPR 2015, see
`jaxinterp.symmetry.equivariance`). Orbits of templates and group CNNs need no fit for the motions of their group:
their map is a permutation that is known (`jaxinterp.symmetry.groups`), and holds or does not. For others a group CNN's
map is fitted, and orbits of templates, which have no positions, have none.

Maps are fitted to the first half of the test images and measured on the other.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from rich.console import Console
from rich.table import Table
from tyro.conf import Positional, arg

from jaxinterp.app.console import command_of, errors_in_one_line, show
from jaxinterp.app.publish import one_run, overrides, require_finished, results_file, train_command
from jaxinterp.app.results import MOTIONS, Results, equivariance_rows, summarize, write_results
from jaxinterp.app.stages import trained
from jaxinterp.checks import require, require_at_least
from jaxinterp.errors import ConfigError
from jaxinterp.explain.explainable import Explainable
from jaxinterp.files import check_folder
from jaxinterp.glassbox.family import GlassBoxModel
from jaxinterp.glassbox.learned import GROUPS, LearnedModel
from jaxinterp.provenance import machine, versions
from jaxinterp.recipe.config import Model, Run
from jaxinterp.recipe.family import Log, TrainedRun
from jaxinterp.recipe.run_folder import read_name
from jaxinterp.symmetry.equivariance import equivariance_error, invariance_error, layer_equivariance, split_network
from jaxinterp.symmetry.groups import (
    Group,
    flips,
    permute,
    rotations,
    scales,
    transform,
    transform_regular,
)

ELEMENTS: dict[str, tuple[Group, int]] = dict(
    zip(MOTIONS, ((flips(), 1), (flips("vertical"), 1), (rotations(4), 1), (scales(2**0.5, 1), 1)), strict=True)
)
LEGEND = (
    "residual of the best map from φ(x) to φ(g x) / of the best constant / of φ(x) itself → accuracy on moved images "
    "when the layer is mapped back; first row of a network: accuracy as it is. Group networks have known maps for the "
    "motions of their own group, which need no fit; orbits of templates have none for others."
)
MAX_LAYERS = 5
MAX_UNITS = 1024  # of a layer without positions, whose map is dense


def layers_of(net: Explainable, images: Float[np.ndarray, "n h w c"]) -> tuple[str, ...]:
    """Choose the layers to measure: those at which the network is decomposed, or the last one of each shape."""
    names = net.levels
    if not names:
        shapes = net.layers(images[:1])
        sizes = {s: name for name, s in shapes.items() if len(s) == 4 and s[1] == s[2] > 1}
        logits = net.logits(images[:1]).shape
        dense = {s: name for name, s in shapes.items() if len(s) == 2 and s[1] <= MAX_UNITS and s != logits}
        names = tuple((sizes | dense).values())
    chosen = np.linspace(0, len(names) - 1, min(MAX_LAYERS, len(names))).round().astype(int)
    return tuple(names[i] for i in chosen)


def known_layers(model: Model) -> tuple[Group, dict[str, Callable[..., Any]]] | None:
    """Return the group a network is equivariant to by construction, and each layer's law; None for other networks."""
    if isinstance(model, GlassBoxModel):
        return model.elements, {"representation/orbit": permute}
    if isinstance(model, LearnedModel) and model.network in GROUPS:
        return GROUPS[model.network], {f"block_{i}": transform_regular for i in range(len(model.features))}
    return None


def measure(
    model: Model,
    net: Explainable,
    images: Float[np.ndarray, "n h w c"],
    labels: Int[np.ndarray, " n"],
    support: int = 3,
    steps: int = 0,
    log: Log = lambda line: None,
) -> dict[str, float]:
    """Measure one network.

    Args:
        model: of its run.
        net: the network.
        images: in [0, 1]; maps are fitted to the first half, and measured on the other.
        labels: their classes.
        support: side of the maps' filters.
        steps: of training each map on the network's loss after the regression.
        log: called with a line about the layers, and one before each motion; by default nothing is said.

    Returns:
        "accuracy", and for every motion "<motion> accuracy", "<layer> <motion> uncompensated", "… residual" and, of
        fitted maps, "… constant", "… accuracy" and, where that is above chance, "… invariant".
    """
    numbers: dict[str, float] = {}
    known = known_layers(model)
    layers = layers_of(net, images) if known is None else tuple(known[1])
    train, x, y = len(images) // 2, jnp.asarray(images), jnp.asarray(labels.astype(np.int32))
    log(f"layers: {', '.join(layers)}")
    for k, (motion, (group, g)) in enumerate(ELEMENTS.items(), 1):
        log(f"{k} of {len(ELEMENTS)}: {motion}")
        if known is not None and (known[0].index(group.elements[g]) >= 0 or isinstance(model, GlassBoxModel)):
            with jax.default_matmul_precision("highest"):
                numbers = _known(*known, net, x[train:], y[train:], motion) | numbers
            continue
        rows = layer_equivariance(net, x, y, list(layers), group, g, train=train, support=support, steps=steps)
        for row in rows:
            numbers = {"accuracy": row.accuracy, f"{motion} accuracy": row.accuracy_moved} | numbers
            numbers |= {
                f"{row.layer} {motion} uncompensated": row.uncompensated,
                f"{row.layer} {motion} residual": row.compensated,
                f"{row.layer} {motion} constant": row.constant,
                f"{row.layer} {motion} accuracy": row.accuracy_compensated,
            }
            if not math.isnan(row.invariant):
                numbers[f"{row.layer} {motion} invariant"] = row.invariant
    return numbers


def _known(
    group: Group, laws: dict[str, Callable[..., Any]], net: Explainable, x: Any, labels: Any, motion: str
) -> dict[str, float]:
    """Measure a network whose layers move by a known permutation, where the motion is one of its group."""
    motions, element = ELEMENTS[motion]
    place = group.index(motions.elements[element])
    pair, numbers = Group(motion, (motions.elements[0], motions.elements[element])), dict[str, float]()
    for name, images in (("accuracy", x), (f"{motion} accuracy", transform(pair, 1, x))):
        numbers[name] = float(np.asarray(net.logits(images).argmax(1) == labels).mean())
    for layer, law in laws.items():
        phi, _ = split_network(net, layer)
        numbers[f"{layer} {motion} uncompensated"] = float(invariance_error(phi, pair, x)[1])
        if place >= 0:
            known = partial(_law_of_pair, law, group, (0, place))
            numbers[f"{layer} {motion} residual"] = float(equivariance_error(phi, pair, x, known)[1])
    return numbers


def _law_of_pair(law: Callable[..., Any], group: Group, places: tuple[int, int], g: int, z: Any) -> Any:
    """Apply the law of a group for two of its elements."""
    return law(group, places[g], z)


@dataclass(frozen=True)
class Program:
    """Measure how the layers of trained networks move with the image, and print one table."""

    run_dirs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN_DIR")]
    """Folders of trained runs."""
    data_dir: Annotated[Path | None, arg(metavar="DIR")] = None
    """Folder of the data sets; default $TFDS_DATA_DIR, then ~/tensorflow_datasets."""
    results: Annotated[Path | None, arg(metavar="DIR")] = None
    """Folder in which to write equivariance_<run>.json, such as experiments/results."""
    images: int = 4000
    """Use the first test images up to this number; maps are fitted to half of them."""
    support: int = 3
    """Side of the maps' filters in sites."""
    steps: int = 0
    """Steps of training every map on the network's own loss after the regression."""

    def __call__(self, console: Console) -> None:
        """Measure every run, then print the table."""
        require(self.run_dirs, "RUN_DIR", "none", "the folder of a trained run")
        require_at_least("--images", self.images, 2)
        require(self.support > 0 and self.support % 2, "--support", self.support, "a positive odd number")
        require_at_least("--steps", self.steps, 0)
        if self.results is not None:
            check_folder(self.results)
        results, by_run = list[Results](), dict[str, list[Path]]()
        for run_dir in self.run_dirs:
            by_run.setdefault(read_name(run_dir), []).append(run_dir)
        first = dict[str, Run[Any]]()
        for name, run_dirs in by_run.items():
            first[name] = one_run(run_dirs)[1][0]  # before anything is measured
            require_finished(run_dirs)
        for name, run_dirs in by_run.items():
            result = self.measure_run(name, run_dirs, console)
            results.append(result)
            if self.results is not None:
                write_results(results_file(self.results, name, first[name], "equivariance_"), result)
        header, *rows = equivariance_rows(results)
        table = Table(box=None)
        for title in header:
            table.add_column(title, overflow="fold")
        for row in rows:
            table.add_row(*row)
        console.print(table)
        console.print(LEGEND, highlight=False)

    def measure_run(self, name: str, run_dirs: Sequence[Path], console: Console) -> Results:
        """Measure one run over its seeds."""
        numbers, runs = list[dict[str, float]](), list[TrainedRun[Any]]()
        for run_dir in run_dirs:
            run = trained(run_dir, data_dir=self.data_dir)
            images, labels = (part[: self.images] for part in run.test_data)
            show(console, f"{run_dir}: {len(images)} images")
            given, log = (run.run.model, run.explainable, images, labels), partial(show, console)
            try:
                numbers.append(measure(*given, self.support, self.steps, log))
            except ValueError as error:
                raise ConfigError(f"{run_dir}, --images {len(images)}: {error}") from error
            runs.append(run)
        metrics = [metric for metric in numbers[0] if all(metric in one for one in numbers)]  # not "invariant"
        options = f"--images {len(images)} --support {self.support} --steps {self.steps}"
        configurations = [run.run for run in runs]
        seeds = tuple(run.train.seed for run in configurations)
        folders = " ".join(f"runs/{name.replace('/', '-')}-seed-{seed}" for seed in seeds)
        return Results(
            f"equivariance of {name}",
            f"{train_command(name, configurations, one_run(run_dirs)[2][0])} && "
            f"python experiments/equivariance.py {folders} {options} --results experiments/results",
            machine(),
            versions(),
            seeds,
            summarize({metric: [one[metric] for one in numbers] for metric in metrics}),
            headline=False,
            overrides=tuple(overrides(name, configurations[0])),
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program; status 2 if a run cannot be measured."""
    with errors_in_one_line():
        command_of(Program, arguments, "equivariance.py", __doc__)(Console())


if __name__ == "__main__":
    main()
