"""One file per paper: its named runs, and how each is built, trained, measured and explained.

Every paper's file has `RUNS`, `REFERENCE`, `REFERENCE_NAME`, `smoke`, `build`, `loss_of` and `subject`. It may have
`fixed` (parameters that are not trained), `prior` and `initial` (a run that is trained first, and what training starts
from), `measure` and `sections` (what only its runs are measured for and show in their report), and `reading` (what they
say of an image that is explained, besides contribution maps).
"""

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from jaxinterp.coda import family as coda_nets
from jaxinterp.coded import family as coded_resnext
from jaxinterp.gated import family as gated_networks
from jaxinterp.glassbox import family as glassbox
from jaxinterp.glassbox import learned as learned_groups
from jaxinterp.recipe.config import Experiment, naming_config, nearest, read_name
from jaxinterp.taylor import family as taylornet
from jaxinterp.taylor.distill import family as distillation

PAPERS: tuple[ModuleType, ...] = (
    coda_nets,
    gated_networks,
    coded_resnext,
    taylornet,
    distillation,
    glassbox,
    learned_groups,
)


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


def paper_in(run_dir: Path) -> tuple[str, ModuleType]:
    """The name of the run that a folder holds, and the file of its paper.

    Raises:
        ConfigError: the folder holds no run, or one of an unknown name; the line names the file.
    """
    name = read_name(run_dir)
    with naming_config(run_dir):
        return name, paper_of(name)
