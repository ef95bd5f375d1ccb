"""One file per paper: its named runs, and how each is built, trained, measured and explained."""

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from experiments import coda_nets
from experiments.run import Experiment, nearest

PAPERS: tuple[ModuleType, ...] = (coda_nets,)


def runs() -> Mapping[str, Experiment[Any]]:
    """All named runs, paper by paper."""
    return {name: experiment for paper in PAPERS for name, experiment in paper.RUNS.items()}


def paper_of(name: str) -> ModuleType:
    """The file of the paper that has a run of this name.

    Raises:
        ConfigError: there is none; the line gives the nearest names.
    """
    for paper in PAPERS:
        if name in paper.RUNS:
            return paper
    raise nearest("run", name, runs())
