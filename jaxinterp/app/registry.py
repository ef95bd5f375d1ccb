"""The families and their named runs, one file of runs per paper."""

import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from jaxinterp.checks import require_one_of
from jaxinterp.coda.family import CoDAFamily
from jaxinterp.coded.family import CodedFamily
from jaxinterp.errors import ConfigError
from jaxinterp.gated.family import GatedFamily
from jaxinterp.glassbox.family import GlassBoxFamily
from jaxinterp.glassbox.learned import LearnedFamily
from jaxinterp.recipe.config import Experiment, Run
from jaxinterp.recipe.family import Family
from jaxinterp.recipe.run_folder import naming, read_config, read_name
from jaxinterp.taylor.distill.family import DistillFamily
from jaxinterp.taylor.family import TaylorFamily

FAMILIES: tuple[Family[Any], ...] = (
    CoDAFamily(),
    GatedFamily(),
    CodedFamily(),
    TaylorFamily(),
    DistillFamily(),
    GlassBoxFamily(),
    LearnedFamily(),
)
PAPERS = ("coda", "gated", "coded", "taylor", "glassbox")  # files of named runs
PACKAGE = Path(__file__).parents[1]
# Where they lie: in the wheel, or beside the package of an editable install, the one thing it knows of its checkout.
FOLDERS = [PACKAGE / "_recipes", PACKAGE.parent / "experiments"]


def family_of(run: Run[Any]) -> Family[Any]:
    """Return the family of a run, by the class of its `model` part."""
    return next(family for family in FAMILIES if type(run.model) is family.Model)


@cache
def runs() -> Mapping[str, Experiment[Any]]:
    """Return all named runs, paper by paper."""
    return {name: run for paper in PAPERS for name, run in runs_of(paper).items()}


@cache
def runs_of(paper: str) -> Mapping[str, Experiment[Any]]:
    """Return the named runs of a paper's file, one of `PAPERS`."""
    path = next((folder / f"{paper}.py" for folder in FOLDERS if (folder / f"{paper}.py").exists()), None)
    if path is None:
        raise ConfigError(f"named runs: got no {paper}.py, expected it in {' or '.join(map(str, FOLDERS))}")
    spec = importlib.util.spec_from_file_location(f"jaxinterp._recipes.{paper}", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    numbers, title = getattr(module, "REFERENCE", {}), getattr(module, "REFERENCE_NAME", "")
    named: dict[str, Experiment[Any]] = module.RUNS
    return {
        name: one if one.reference else replace(one, reference=numbers, reference_name=title)
        for name, one in named.items()
    }


def experiment_of(name: str) -> Experiment[Any]:
    """Return the named run of this name; the error for an unknown one gives the nearest names."""
    require_one_of("RUN", name, runs(), "a name that `jaxinterp list` prints")
    return runs()[name]


def name_of(run: Run[Any], default: str) -> str:
    """Return the name of a run whose configuration is a named one, seed aside; else the default."""
    same = (name for name, one in runs().items() if one.run == run.with_seed(one.run.train.seed))
    return next(same, default)


def run_in(run_dir: Path) -> tuple[str, Experiment[Any], Run[Any]]:
    """Return the name of the run that a folder holds, the named run, and the folder's configuration.

    Raises:
        ConfigError: the folder holds no run, or a damaged one; the line names the file.
    """
    name = read_name(run_dir)
    with naming(run_dir / "config.json"):
        experiment = experiment_of(name)
    return name, experiment, read_config(run_dir, type(experiment.run.model))
