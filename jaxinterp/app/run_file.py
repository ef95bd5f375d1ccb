"""Runs described in a file of the user's own: TOML, or Python."""

import dataclasses
import json
import tomllib
from pathlib import Path
from typing import Any

from jaxinterp.app import code
from jaxinterp.app.presets import is_preset, preset
from jaxinterp.app.registry import experiment_of, family_named
from jaxinterp.checks import require, require_key
from jaxinterp.errors import ConfigError
from jaxinterp.recipe.config import Experiment, Model, Run
from jaxinterp.recipe.run_folder import naming, validate_json


def is_file(text: str) -> bool:
    """Whether the name of a run is a file, or a name in one.

    Example:
        >>> is_file("my_run.toml"), is_file("my_run.py:FAST"), is_file("coda/mnist")
        (True, True, False)
    """
    return ":" in text or text.endswith((".toml", ".py"))


def stem(text: str) -> str:
    """Return a run's name as the name of a folder.

    Example:
        >>> stem("runs/my_run.toml"), stem("my_run.py:FAST"), stem("coda/mnist")
        ('my_run', 'my_run-FAST', 'coda-mnist')
    """
    if not is_file(text):
        return text.replace("/", "-")
    place, _, name = text.partition(":")
    return f"{Path(place).stem}-{name}" if name else Path(place).stem


def read_run(text: str, data_dir: Path | None = None) -> Run[Any]:
    """Return the run that `file.toml`, `file.py`, `file.py:NAME` or `module:NAME` describes.

    Args:
        text: the file, and of a Python file with several runs the name of one.
        data_dir: the data folder, looked into where a preset is fitted to images.

    Raises:
        ConfigError: no such file or name, a field that is unknown or out of range, or code that does not import.
    """
    return _toml(Path(text), data_dir) if text.endswith(".toml") else _python(text)


def _python(text: str) -> Run[Any]:
    """Return the named run of a Python file, or the only one."""
    if text.endswith(".py"):
        found = {name: one for name, one in vars(code.load_module("RUN", text)).items() if isinstance(one, Run)}
        one_of = " or ".join(f"{text}:{name}" for name in found)
        require(len(found) == 1, "RUN", text, one_of or f"{text} to define a run, such as RUN = Run(...)")
        return next(iter(found.values()))
    found = code.load("RUN", text)
    run = found.run if isinstance(found, Experiment) else found
    require(isinstance(run, Run), "RUN", f"{text}, a {type(run).__name__}", "a Run")
    return run


def _toml(path: Path, data_dir: Path | None) -> Run[Any]:
    """Return the run of a TOML file: `base`, a named run or a preset, or `family`; then the fields that differ."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"RUN: got {path}, expected a file that exists") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: got {' '.join(str(error).split())}, expected a TOML file") from None
    with naming(path):
        base, family = content.pop("base", ""), content.pop("family", "")
        one = bool(base) != bool(family)
        wanted = 'one of them, such as base = "coda/mnist", a named run or a preset, or family = "coda"'
        require(
            one and isinstance(base + family, str), "base, family", "both" if base and family else "neither", wanted
        )
        if family:
            kind, start = family_named(family, path.parent).Model, dict[str, Any]()
        else:
            run = _base(base, content, data_dir)
            kind, start = type(run.model), json.loads(json.dumps(dataclasses.asdict(run)))
        known = _keys(kind)
        for part, fields in content.items():
            for name in fields if isinstance(fields, dict) else [None]:
                require_key(part if name is None else f"{part}.{name}", known)
            start[part] = {**start.get(part, {}), **fields}
        start.setdefault("model", {})
        made: Run[Any] = validate_json(Run[kind], json.dumps(start, default=str))  # type: ignore[valid-type]
    return made


def _base(base: str, content: dict[str, Any], data_dir: Path | None) -> Run[Any]:
    """Return the named run, or the preset, fitted to the images that the file names."""
    if not is_preset(base):
        return experiment_of(base).run
    data = content.get("data")
    name = data.get("name") if isinstance(data, dict) else None
    require(name, "data.name", "nothing", f"images, whose sizes {base} fits")
    return preset(base, str(name), data_dir).run


def _keys(model: type[Model]) -> list[str]:
    """Return the keys of all fields of a run with this model."""
    kinds: dict[str, Any] = {field.name: type(field.default) for field in dataclasses.fields(Run)} | {"model": model}
    return [f"{part}.{field.name}" for part, kind in kinds.items() for field in dataclasses.fields(kind)]
