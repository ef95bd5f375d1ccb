"""The families and their named runs, one file of runs per paper; and the families of one's own."""

import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from jaxinterp.app import code
from jaxinterp.app.network import NetFamily
from jaxinterp.checks import require, require_one_of
from jaxinterp.coda.family import CoDAFamily
from jaxinterp.coded.family import CodedFamily
from jaxinterp.errors import ConfigError
from jaxinterp.files import write_text
from jaxinterp.gated.family import GatedFamily
from jaxinterp.glassbox.family import GlassBoxFamily
from jaxinterp.glassbox.learned import LearnedFamily
from jaxinterp.recipe.config import Experiment, Run
from jaxinterp.recipe.family import Family, families
from jaxinterp.recipe.run_folder import naming, read_config, read_family, read_name
from jaxinterp.taylor.distill.family import DistillFamily
from jaxinterp.taylor.family import TaylorFamily

KINDS: tuple[type[Family[Any]], ...] = (
    CoDAFamily,
    GatedFamily,
    CodedFamily,
    TaylorFamily,
    DistillFamily,
    GlassBoxFamily,
    LearnedFamily,
    NetFamily,
)
BUILT_IN: Mapping[str, Family[Any]] = {kind.name: families()[kind.Model] for kind in KINDS}
PAPERS = ("coda", "gated", "coded", "taylor", "glassbox")  # files of named runs
PACKAGE = Path(__file__).parents[1]
# Where they lie: in the wheel, or beside the package of an editable install, the one thing it knows of its checkout.
FOLDERS = [PACKAGE / "_recipes", PACKAGE.parent / "experiments"]
SOURCE = "family.py"  # file, within a run's folder, of a family that was defined in a script or a file


def family_of(run: Run[Any]) -> Family[Any]:
    """Return the family of a run, by the class of its `model` part."""
    kind = type(run.model)
    require(kind in families(), "model", f"a {kind.__name__}", "the `Model` of a family; define a `Family` for it")
    return families()[kind]


def family_named(reference: str, folder: Path) -> Family[Any]:
    """Return a family by its name, such as coda, or by `module:Class` or `file.py:Class`.

    Args:
        reference: as of `reference_of`.
        folder: where a file is looked for, if it is not in the working folder.
    """
    if reference in BUILT_IN:
        return BUILT_IN[reference]
    known = {reference_of(family): family for family in families().values()}  # the last defined of a name
    if reference in known and not reference.startswith(f"{SOURCE}:"):
        return known[reference]
    if ":" not in reference:
        require_one_of("family", reference, BUILT_IN, f"{', '.join(BUILT_IN)}, or file.py:Class for one of your own")
    inside = folder / reference
    kind = code.load("family", str(inside) if inside.with_name(inside.name.split(":")[0]).is_file() else reference)
    own = isinstance(kind, type) and issubclass(kind, Family) and getattr(kind, "Model", None) in families()
    require(own, "family", reference, "a subclass of Family with a Model")
    return families()[kind.Model]


def reference_of(family: Family[Any]) -> str:
    """Return how a run's folder names a family: in a word, or by where its class is defined."""
    kind = type(family)
    if BUILT_IN.get(kind.name) is family:
        return kind.name
    return f"{SOURCE if code.own_file(kind) else kind.__module__}:{kind.__qualname__}"


def family_reference(name: str, run: Run[Any]) -> str:
    """Return how a run's folder is to name its family; empty for a named run, whose name tells it."""
    named = name in runs() and type(runs()[name].run.model) is type(run.model)
    return "" if named else reference_of(family_of(run))


def keep_source(family: Family[Any], run_dir: Path) -> None:
    """Copy the file that defines a family of one's own into a run's folder, which is then read without it."""
    source = code.own_file(type(family))
    if source is not None and source.resolve() != (run_dir / SOURCE).resolve():
        write_text(run_dir / SOURCE, source.read_text(encoding="utf-8"))


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


def training(name: str, run: Run[Any]) -> str:
    """Return the command that trains a run, as an error names it."""
    if name in runs() or code.names_file(name):
        return f"jaxinterp train {name}"
    if name.split("/")[0] in BUILT_IN:
        return f"jaxinterp train {name} --data {run.data.name}"
    return "jaxinterp.train(run)"


def run_in(run_dir: Path) -> tuple[str, Experiment[Any], Run[Any]]:
    """Return the name of the run that a folder holds, the named run, and the folder's configuration.

    A run of one's own, and a preset, stand for themselves.

    Raises:
        ConfigError: the folder holds no run, or a damaged one; the line names the file.
    """
    name, family = read_name(run_dir), read_family(run_dir)
    if family:
        with naming(run_dir / "config.json"):
            place = family.partition(":")[0]
            inside = place == SOURCE or all(part.isidentifier() for part in place.split("."))
            require(inside, "family", family, f"a module, or {SOURCE} in the folder")
            kind = family_named(family, run_dir).Model
        run = read_config(run_dir, kind)
        return name, Experiment(run, _source(name, run), headline=False), run
    with naming(run_dir / "config.json"):
        experiment = experiment_of(name)
    return name, experiment, read_config(run_dir, type(experiment.run.model))


def _source(name: str, run: Run[Any]) -> str:
    """Say of what kind a run is that is not named: a preset of a family, or settings of the user's."""
    family = family_of(run)
    if isinstance(family, NetFamily):
        return "your own network"
    fitted = name in {f"{family.name}/{scale}" for scale in family.scales}
    return f"{family.title}, {'sizes that fit the images' if fitted else 'settings of your own'}"
