"""The files of a run's folder: JSON of a declared shape, sealed by a checksum.

What reads a file raises ConfigError if it is missing or damaged: one line with the file, the fault, and how to make it.
"""

import contextlib
import dataclasses
import functools
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from typing_extensions import TypedDict  # pydantic wants it before Python 3.12

from jaxinterp.checks import expected, nearest, require, shown
from jaxinterp.errors import ConfigError
from jaxinterp.files import unsealed, write_json, write_text
from jaxinterp.provenance import versions
from jaxinterp.recipe.config import M, Run
from jaxinterp.train.log import count_epochs

CLASSES = "classes.json"  # file, within a run's folder, of the classes' names
MAX_LINES = 2000  # of a log that are kept, more than a curve can show
EPOCHS = "train.epochs"


class RunInfo(TypedDict, total=False):
    """What run.json holds: when and with what a run was trained, how often it was resumed, how it ended."""

    started: str
    seed: int
    epochs: int
    device: dict[str, Any]
    machine: str
    processes: int
    commit: str | None
    versions: dict[str, str]
    resumed: list[dict[str, Any]]
    summary: dict[str, dict[str, float]]


class Evaluation(TypedDict, total=False):
    """What evaluation.json holds of every run; families add their own."""

    metrics: dict[str, float]
    localization: dict[str, dict[str, list[float]]]
    grids: dict[str, dict[str, Any]]
    removal: dict[str, list[float]]
    residuals: list[Any]
    fractions: list[float]
    step: int
    unfinished: str


EVALUATION, HELD_OUT = "evaluation.json", "held_out.json"  # what was measured on test images, on held-out ones
SHAPES: dict[str, Any] = {
    "run.json": RunInfo,
    EVALUATION: Evaluation,
    HELD_OUT: Evaluation,
    "data.json": dict[str, dict[str, str]],
    "metrics.jsonl": dict[str, float],
    CLASSES: dict[str, list[str]],
}


def write_config(run_dir: Path, name: str, run: Run[Any], family: str = "") -> None:
    """Write a run's name and configuration to `run_dir`/config.json; a run that is there may get more epochs.

    Its family is written too, if the name does not tell it.

    Raises:
        ConfigError: the folder holds a run of another name or configuration; the line names what differs.
    """
    path = run_dir / "config.json"
    if path.exists():
        held, hint = read_name(run_dir), "choose another --run-dir"
        require(held == name, "RUN", name, f"{held}, which {run_dir} holds; {hint}")
        old, new = read_config(run_dir, type(run.model)).fields(), run.fields()
        differing = [key for key in new if old[key] != new[key]]
        if not differing:
            return
        longer = differing == [EPOCHS] and new[EPOCHS] > old[EPOCHS]
        had, asked = (", ".join(f"{key}={shown(values[key])}" for key in differing) for values in (old, new))
        hint = "more epochs would go on" if differing == [EPOCHS] else hint
        require(longer, str(run_dir), f"a run with {asked}", f"{had}, which it holds; {hint}")
    own = {"family": family} if family else {}
    write_json(path, {"run": name, **own, "config": dataclasses.asdict(run)})


def unfinished_line(run_dir: Path, run: Run[Any]) -> str:
    """Say how far a run is that has not ended; nothing of one that has."""
    info = read_json(run_dir / "run.json", "jaxinterp train") if (run_dir / "run.json").exists() else {}
    if "summary" in info and info["summary"].get("last", {}).get("epoch", run.train.epochs) >= run.train.epochs:
        return ""
    epochs = count_epochs(run_dir)
    return f"unfinished, trained for {epochs:,} of {run.train.epochs:,} epochs; the command that trains it goes on"


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let errors of a value name the file it was read from."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def validate_json(kind: Any, text: str | bytes) -> Any:
    """Return the dataclass that a JSON text holds; raise for a field that is unknown, missing or out of range."""
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(kind).validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            raise ConfigError(f"got a damaged file ({first['ctx']['error']}), expected JSON") from error
        place, cause = ".".join(map(str, first["loc"])), first.get("ctx", {}).get("error")
        if isinstance(cause, ConfigError):  # a field's own check
            raise ConfigError(f"{place}.{cause}" if place else str(cause)) from error
        require(False, place or "content", first["input"], expected(error))


def near_runs(run_dir: Path) -> list[str]:
    """Return the run folders beside a folder that is not there whose names are the nearest to its own."""
    if run_dir.exists() or not run_dir.parent.is_dir():
        return []
    beside = [path.parent for path in run_dir.parent.glob("*/config.json")]
    return [str(run_dir.parent / name) for name in nearest(run_dir.name, [path.name for path in beside])]


def read_name(run_dir: Path) -> str:
    """Return the name of the run that a folder holds."""
    return str(_read_content(run_dir)["run"])


def read_family(run_dir: Path) -> str:
    """Return the family of the run that a folder holds; empty if the run's name tells it."""
    return str(_read_content(run_dir).get("family", ""))


def write_classes(run_dir: Path, classes: Sequence[str]) -> None:
    """Write the names of the classes that a run is trained on."""
    write_json(run_dir / CLASSES, {"classes": list(classes)})


def read_classes(run_dir: Path) -> tuple[str, ...]:
    """Return what `write_classes` wrote; none if it has not."""
    path = run_dir / CLASSES
    return tuple(read_json(path, "jaxinterp train", "classes")["classes"]) if path.exists() else ()


def write_finished(run_dir: Path) -> None:
    """Write what training leaves in a folder, for a network that was trained elsewhere."""
    content = {"started": "trained elsewhere", "resumed": [], "versions": versions(), "summary": {}}
    write_json(run_dir / "run.json", content)
    write_text(run_dir / "metrics.jsonl", "")


def _read_content(run_dir: Path) -> dict[str, Any]:
    """Return the JSON object that `write_config` wrote, unchanged, with its name at least."""
    path = run_dir / "config.json"
    try:
        content = unsealed(json.loads(path.read_text(encoding="utf-8")))
        content["run"]
    except (FileNotFoundError, NotADirectoryError):
        got = "no config.json" if run_dir.is_dir() else "a file" if run_dir.exists() else "no such folder"
        wanted = " or ".join(near_runs(run_dir)) or "a run folder"
        raise ConfigError(f"{run_dir}: got {got}, expected {wanted}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: got a damaged file ({error}), expected a run's configuration") from None
    return content


def read_config(run_dir: Path, model: type[M]) -> Run[M]:
    """Return the configuration that `write_config` wrote of a run whose `model` part is of this class."""
    content = _read_content(run_dir).get("config")
    with naming(run_dir / "config.json"):
        run: Run[M] = validate_json(Run[model], json.dumps(content))  # type: ignore[valid-type]
    return run


def read_json(path: Path, made_by: str, *keys: str) -> dict[str, Any]:
    """Return a JSON object of a run folder that has at least these keys; `made_by` is the command that writes it."""
    with _naming(path, made_by):
        content = _parsed(path.read_text(encoding="utf-8"), path.name)
        if lacking := [key for key in keys if key not in content]:
            raise ValueError(f"it has no {', '.join(lacking)}")
    return content


def read_lines(path: Path, made_by: str) -> list[dict[str, Any]]:
    """Return the JSON objects of a file that has one in every line; of a long file every k-th one, and the last."""
    with _naming(path, made_by), path.open(encoding="utf-8") as file:
        step = -(-sum(1 for _ in file) // MAX_LINES)
        file.seek(0)
        contents, last = list[dict[str, Any]](), None
        for i, line in enumerate(file):
            last = _parsed(line, path.name)
            if i % step == 0:
                contents.append(last)
    return contents if last is None or contents[-1] is last else [*contents, last]


def read_arrays(path: Path, made_by: str) -> dict[str, np.ndarray]:
    """Return the named arrays of a run folder's .npz file."""
    with _naming(path, made_by), path.open("rb") as file, np.load(file) as arrays:
        return dict(arrays)


def _parsed(text: str, name: str) -> dict[str, Any]:
    """Parse a JSON object of the shape of the file of this name, and check its seal."""
    content = unsealed(json.loads(text))
    if name in SHAPES:
        from pydantic import ValidationError

        try:
            _adapter(name).validate_python(content, strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "content"
            raise ValueError(f"{place}: got {shown(first['input'])[:80]}, expected {expected(error)}") from None
    return content


@functools.cache
def _adapter(name: str) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(SHAPES[name])


@contextlib.contextmanager
def _naming(path: Path, made_by: str) -> Iterator[None]:
    """Let errors of reading a file name it, and the command that makes it."""
    try:
        yield
    except (OSError, EOFError, ValueError, TypeError, RuntimeError, BadZipFile, zlib.error) as error:
        wanted = f"what `{made_by}` writes"
        raise ConfigError(f"{path}: got a missing or damaged file ({error}), expected {wanted}") from error
