"""Do layers of trained networks move with the image? Every family in one table, beside what moves by construction.

    python -m experiments.equivariance RUN_DIR ... [--results experiments/results]

For mirrors, a quarter turn and a change of scale g, and for up to five layers φ, or all blocks of a group CNN: how far
φ(g x) is from φ(x), from the map M that serves all images best (m×m filters, ridge regression), and how much of its
accuracy the network gets back when M undoes g at this layer (Lenc & Vedaldi, CVPR 2015, see
`jaxinterp.symmetry.equivariance`). Orbits of templates and group CNNs need no fit for the motions of their group:
their map is a permutation that is known (`jaxinterp.symmetry.groups`), and holds or does not. For others a group CNN's
map is fitted, and orbits of templates, which have no positions, have none.

Maps are fitted to the first half of the test images and measured on the other.
"""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Float, Int
from rich.console import Console
from rich.table import Table
from tyro.conf import Positional, arg

from jaxinterp.app.publish import ended, one_run, train_command
from jaxinterp.app.results import MOTIONS, Results, equivariance_table, summarize, write_results
from jaxinterp.app.stages import test_images, trained
from jaxinterp.errors import ConfigError, JaxInterpError
from jaxinterp.explain.explainable import Subject
from jaxinterp.explain.tracing import activation_names
from jaxinterp.files import check_folder
from jaxinterp.glassbox.family import GlassBoxRun, group_of
from jaxinterp.glassbox.learned import GROUPS, TwinRun
from jaxinterp.provenance import machine, versions
from jaxinterp.recipe.config import read_name
from jaxinterp.symmetry.equivariance import equivariance_error, invariance_error, layer_equivariance, split_network
from jaxinterp.symmetry.groups import Group, flips, permute, rotations, scales, transform, transform_regular

ELEMENTS: dict[str, tuple[Group, int]] = dict(
    zip(MOTIONS, ((flips(), 1), (flips("vertical"), 1), (rotations(4), 1), (scales(2**0.5, 1), 1)), strict=True)
)
LEGEND = (
    "residual of the best map from φ(x) to φ(g x) / of the best constant / of φ(x) itself → accuracy on moved images "
    "when the layer is mapped back; first row of a network: accuracy as it is. Group networks have known maps for the "
    "motions of their own group, which need no fit; orbits of templates have none for others."
)
MOST_LAYERS = 5
MOST_UNITS = 1024  # of a layer without positions, whose map is dense


def layers_of(subject: Subject, images: Float[np.ndarray, "n h w c"]) -> tuple[str, ...]:
    """The layers that are measured: those at which the network is taken apart, or the last one of each shape."""
    if subject.layers:
        names = subject.layers
    else:
        shapes = activation_names(partial(subject.apply, subject.variables), jnp.asarray(images[:1]))
        sizes = {s: name for name, s in shapes.items() if len(s) == 4 and s[1] == s[2] > 1}
        logits = subject.apply(subject.variables, jnp.asarray(images[:1])).shape
        dense = {s: name for name, s in shapes.items() if len(s) == 2 and s[1] <= MOST_UNITS and s != logits}
        names = tuple((sizes | dense).values())
    few = np.linspace(0, len(names) - 1, min(MOST_LAYERS, len(names))).round().astype(int)
    return tuple(names[i] for i in few)


def known_layers(config: Any) -> tuple[Group, dict[str, Callable[..., Any]]] | None:
    """The group that a network moves by itself with, and the law of each of its layers; None of ordinary networks."""
    if isinstance(config, GlassBoxRun):
        return group_of(config), {"representation/orbit": permute}
    if isinstance(config, TwinRun) and config.network in GROUPS:
        return GROUPS[config.network], {f"block_{i}": transform_regular for i in range(len(config.features))}
    return None


def measure(
    config: Any,
    subject: Subject,
    images: Float[np.ndarray, "n h w c"],
    labels: Int[np.ndarray, " n"],
    support: int = 3,
    steps: int = 0,
) -> dict[str, float]:
    """The numbers of one network.

    Args:
        config: of its run.
        subject: the network.
        images: in [0, 1]; the first half is fitted to, the other measured.
        labels: their classes.
        support: side of the maps' filters.
        steps: of training each map on the network's loss after the regression.

    Returns:
        "accuracy", and for every motion "<motion> accuracy", "<layer> <motion> uncompensated", "… residual" and, of
        fitted maps, "… constant", "… accuracy" and, where that is above chance, "… invariant".
    """
    found: dict[str, float] = {}
    known = known_layers(config)
    layers = layers_of(subject, images) if known is None else tuple(known[1])
    train, x, wanted = len(images) // 2, jnp.asarray(images), jnp.asarray(labels.astype(np.int32))
    for motion, (group, g) in ELEMENTS.items():
        if known is not None and (known[0].index(group.elements[g]) >= 0 or isinstance(config, GlassBoxRun)):
            with jax.default_matmul_precision("highest"):
                found = _known(*known, subject, x[train:], wanted[train:], motion) | found
            continue
        rows = layer_equivariance(
            subject.apply,
            subject.variables,
            x,
            wanted,
            list(layers),
            group,
            g,
            train=train,
            support=support,
            steps=steps,
        )
        for row in rows:
            found = {"accuracy": row.accuracy, f"{motion} accuracy": row.accuracy_moved} | found
            found |= {
                f"{row.layer} {motion} uncompensated": row.uncompensated,
                f"{row.layer} {motion} residual": row.compensated,
                f"{row.layer} {motion} constant": row.constant,
                f"{row.layer} {motion} accuracy": row.accuracy_compensated,
            }
            if not math.isnan(row.invariant):
                found[f"{row.layer} {motion} invariant"] = row.invariant
    return found


def _known(
    group: Group, laws: dict[str, Callable[..., Any]], subject: Subject, x: Any, labels: Any, motion: str
) -> dict[str, float]:
    """The same of a network whose layers move by a known permutation, where the motion is one of its group."""
    motions, element = ELEMENTS[motion]
    place = group.index(motions.elements[element])
    pair, found = Group(motion, (motions.elements[0], motions.elements[element])), dict[str, float]()
    for name, images in (("accuracy", x), (f"{motion} accuracy", transform(pair, 1, x))):
        found[name] = float(np.asarray(subject.apply(subject.variables, images).argmax(1) == labels).mean())
    for layer, law in laws.items():
        phi = partial(split_network(subject.apply, layer)[0], subject.variables)
        found[f"{layer} {motion} uncompensated"] = float(invariance_error(phi, pair, x)[1])
        if place >= 0:
            known = partial(_law_of_pair, law, group, (0, place))
            found[f"{layer} {motion} residual"] = float(equivariance_error(phi, pair, x, known)[1])
    return found


def _law_of_pair(law: Callable[..., Any], group: Group, places: tuple[int, int], g: int, z: Any) -> Any:
    """The law of a group for two of its elements."""
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
    """First so many test images; where maps are fitted, to half of them."""
    support: int = 3
    """Side of the maps' filters in sites."""
    steps: int = 0
    """Steps of training every map on the network's own loss after the regression."""

    def __call__(self, console: Console) -> None:
        """Measure every run, then print the table."""
        if not self.run_dirs:
            raise ConfigError("RUN_DIR: got none, expected the folder of a trained run")
        if self.images < 2:
            raise ConfigError(f"--images: got {self.images}, expected at least 2")
        if self.support < 1 or self.support % 2 == 0:
            raise ConfigError(f"--support: got {self.support}, expected an odd number")
        if self.steps < 0:
            raise ConfigError(f"--steps: got {self.steps}, expected at least 0")
        if self.results is not None:
            check_folder(self.results)
        made = []
        by_run: dict[str, list[Path]] = {}
        for run_dir in self.run_dirs:
            by_run.setdefault(read_name(run_dir), []).append(run_dir)
        for run_dirs in by_run.values():
            one_run(run_dirs)  # before anything is measured
            ended(run_dirs)
        for name, run_dirs in by_run.items():
            result = self.measured(name, run_dirs, console)
            made.append(result)
            if self.results is not None:
                write_results(self.results / f"equivariance_{name.replace('/', '_')}.json", result)
        console.print(shown(equivariance_table(made)))
        console.print(LEGEND, highlight=False)

    def measured(self, name: str, run_dirs: Sequence[Path], console: Console) -> Results:
        """The numbers of one run over its seeds."""
        found, configs, count = [], [], 0
        for run_dir in run_dirs:
            _, config, subject = trained(run_dir)
            images, labels = test_images(config, self.data_dir)
            few = slice(self.images)
            console.print(f"{run_dir}: {len(images[few])} images", highlight=False)
            try:
                found.append(measure(config, subject, images[few], labels[few], self.support, self.steps))
            except ValueError as error:
                raise ConfigError(f"{run_dir}, --images {len(images[few])}: {error}") from error
            configs.append(config)
            count = len(images[few])
        everywhere = [metric for metric in found[0] if all(metric in numbers for numbers in found)]  # not "invariant"
        options = f"--images {count} --support {self.support} --steps {self.steps}"
        seeds = [config.seed for config in configs]
        folders = " ".join(f"runs/{name.replace('/', '-')}-seed-{seed}" for seed in seeds)
        return Results(
            f"equivariance of {name}",
            f"{train_command(name, configs)} && "
            f"python -m experiments.equivariance {folders} {options} --results experiments/results",
            machine(),
            versions(),
            tuple(seeds),
            summarize({metric: [numbers[metric] for numbers in found] for metric in everywhere}),
            headline=False,
        )


def shown(markdown: str) -> Table:
    """A Markdown table for the terminal."""
    header, _, *rows = [line.removeprefix("| ").removesuffix(" |").split(" | ") for line in markdown.splitlines()]
    table = Table(box=None)
    for title in header:
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; 2 where what is asked for cannot be had."""
    try:
        tyro.cli(Program, prog="experiments.equivariance", args=arguments)(Console())
    except JaxInterpError as error:
        print(f"experiments.equivariance: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
