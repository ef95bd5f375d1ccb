"""Training from Python: one run, or a sweep with a table of its results."""

import csv
import io
import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np

from jaxinterp.app import stages
from jaxinterp.app.presets import FAMILIES, PRESETS, is_preset, preset
from jaxinterp.app.registry import experiment_of, family_of, runs
from jaxinterp.app.run_file import is_file, read_run
from jaxinterp.checks import require, require_one_of, shown
from jaxinterp.recipe.config import Run, Sweep
from jaxinterp.train import FitResult

MAX_NAME = 100  # characters of a folder's name
Value = str | int | float


def run_of(name: str, data: str = "", data_dir: str | Path | None = None) -> Run[Any]:
    """Return a named run, the run of a file, or a preset fitted to images.

    Args:
        name: a named run such as "coda/mnist", a file such as "my_run.toml" or "my_run.py:NAME", a preset such as
            "coda/small", or a family such as "coda", of whose presets the one is taken that fits this machine.
        data: the data set of a preset, such as "digits"; empty otherwise.
        data_dir: the data folder; default $TFDS_DATA_DIR, then ~/tensorflow_datasets.

    Raises:
        ConfigError: no such run, or data given to one that has its own.

    Example:
        >>> run_of("coda/small", "digits").data.image_shape, run_of("coda/mnist").model.temperature
        ((8, 8, 1), 300.0)
    """
    folder = None if data_dir is None else Path(data_dir)
    if is_preset(name):
        require(data, "--data", "nothing", f"the images whose sizes {name} fits, such as digits")
        return preset(name, data, folder).run
    if not is_file(name):
        require_one_of("RUN", name, [*runs(), *PRESETS, *FAMILIES], "a name that `jaxinterp list` prints")
    wanted = f"nothing with {name}, which has its own; data.name={data} replaces it, presets such as coda/small fit it"
    require(not data, "--data", data, wanted)
    return read_run(name, folder) if is_file(name) else experiment_of(name).run


def name_for(run: Run[Any]) -> tuple[str, str]:
    """Return how a run made in Python is called, and its folder: a named run's, or one for each configuration."""
    named = next((name for name, one in runs().items() if one.run == run), None)
    if named is not None:
        return named, named.replace("/", "-")
    family = family_of(run).name
    try:
        text = json.dumps(asdict(run), sort_keys=True)
    except TypeError as error:
        require(False, "run", f"fields that no file can hold ({error})", "numbers, texts and tuples of them")
    data = Path(run.data.name.partition(":")[2] or run.data.name).name
    return f"{family} on {run.data.name}", f"{family}-{data}-{zlib.crc32(text.encode()):08x}"


@overload
def train_runs(
    run: Run[Any],
    run_dir: str | Path | None = None,
    *,
    data_dir: str | Path | None = None,
    evaluate: bool = False,
    allow_older: bool = False,
) -> FitResult: ...


@overload
def train_runs(
    run: Sweep[Any],
    run_dir: str | Path | None = None,
    *,
    data_dir: str | Path | None = None,
    evaluate: bool = False,
    allow_older: bool = False,
) -> "SweepTable": ...


def train_runs(
    run: Any,
    run_dir: str | Path | None = None,
    *,
    data_dir: str | Path | None = None,
    evaluate: bool = False,
    allow_older: bool = False,
) -> "FitResult | SweepTable":
    """Train a run, or all runs of a sweep; the same call goes on with what was interrupted.

    Args:
        run: the run, or `run.sweep(seed=(0, 1, 2), ...)`.
        run_dir: its folder; default one below `runs` that the configuration names. A sweep's holds one for each run.
        data_dir: the data folder; default $TFDS_DATA_DIR, then ~/tensorflow_datasets.
        evaluate: measure explanations after training too, as `jaxinterp evaluate` does.
        allow_older: if the newest checkpoint is damaged, go on from the newest intact one.

    Returns:
        Of a run the result of training; of a sweep a table with a row for each run.

    Raises:
        ConfigError: a field does not fit the data, or the folder holds another run.
        KeyboardInterrupt: a sweep was interrupted; its state is saved.
    """
    require(isinstance(run, Run | Sweep), "run", f"a {type(run).__name__}", "a Run, or what its method sweep returns")
    if isinstance(run, Run):
        name, folder = name_for(run)
        return _train(name, run, Path(run_dir or Path("runs") / folder), data_dir, evaluate, allow_older)[0]
    first = run.runs[0]
    root = Path(run_dir or Path("runs") / f"{name_for(first)[1]}-sweep")
    rows = []
    for one, change in zip(run.runs, run.changes, strict=True):
        folder_of_one = root / folder_of(change)
        result, metrics = _train(name_for(one)[0], one, folder_of_one, data_dir, evaluate, allow_older)
        if result.interrupted:
            raise KeyboardInterrupt(f"{folder_of_one} is saved; the same call goes on")
        rows.append({**{key: _plain(value) for key, value in change.items()}, **metrics, "folder": str(folder_of_one)})
    return SweepTable(tuple(run.changes[0]), tuple(rows))


def _train(
    name: str, run: Run[Any], run_dir: Path, data_dir: str | Path | None, evaluate: bool, allow_older: bool
) -> tuple[FitResult, dict[str, Value]]:
    """Train a run; return the result, and its numbers by name."""
    result = stages.train(name, run, run_dir, data_dir, allow_older)
    last, best = result.summary.get("last", {}), result.summary.get("best", {})
    found: dict[str, Value] = {"epochs": len(result.history)}
    found |= {key: last[key] for key in ("val_accuracy", "test_accuracy", "test_loss") if key in last}
    found |= {f"{key}_best": best[key] for key in ("test_accuracy",) if key in best}
    found["seconds"] = round(sum(record["seconds"] for record in result.history), 3)
    if evaluate and not result.interrupted:
        measured = stages.evaluate(run_dir, data_dir, log=lambda line: None)["metrics"]
        found |= {key: value for key, value in measured.items() if key not in found}
    return result, found


def folder_of(change: Mapping[str, Any]) -> str:
    """Name the folder of one run of a sweep.

    Example:
        >>> folder_of({"train.seed": 1, "model.ranks": (4, 8)})
        'seed-1-ranks-4,8'
    """
    text = "-".join(f"{key.split('.')[1]}-{shown(value)}" for key, value in change.items())
    safe = re.sub(r"[^\w.,+-]", "_", text)
    return safe if len(safe) <= MAX_NAME else f"{safe[:MAX_NAME]}-{zlib.crc32(text.encode()):08x}"


def _plain(value: Any) -> Value:
    """Return a number or a text as it is, anything else as an override writes it."""
    return value if isinstance(value, str | int | float) and not isinstance(value, bool) else shown(value)


@dataclass(frozen=True, repr=False)
class SweepTable(Sequence[Mapping[str, Value]]):
    """The results of a sweep: a row for each run, in its order.

    Attributes:
        keys: the fields that differ, such as "train.seed".
        rows: of each run: these fields, its numbers, and its folder.
    """

    keys: tuple[str, ...]
    rows: tuple[Mapping[str, Value], ...]

    def __len__(self) -> int:
        """Return the number of runs."""
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        """Return a row, or several."""
        return self.rows[index]

    def __iter__(self) -> Iterator[Mapping[str, Value]]:
        """Iterate over the rows."""
        return iter(self.rows)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns: those of any row."""
        names = dict.fromkeys(name for row in self.rows for name in row if name != "folder")
        return (*names, "folder")

    def over_seeds(self) -> "SweepTable":
        """Return the table with a row for each setting: means over its seeds, ± their deviation, and how many."""
        settings = tuple(key for key in self.keys if key != "train.seed")
        groups: dict[tuple[Value, ...], list[Mapping[str, Value]]] = {}
        for row in self.rows:
            groups.setdefault(tuple(row[key] for key in settings), []).append(row)
        rows = []
        for setting, members in groups.items():
            means: dict[str, Value] = {**dict(zip(settings, setting, strict=True)), "seeds": len(members)}
            for name in (name for name in self.columns if name not in (*self.keys, "folder")):
                numbers = [float(member[name]) for member in members if name in member]
                if not numbers:
                    continue
                means[name] = float(np.mean(numbers))
                if len(numbers) > 1:
                    means[f"{name} ±"] = float(np.std(numbers, ddof=1))
            rows.append({**means, "folder": ", ".join(str(member["folder"]) for member in members)})
        return SweepTable((*settings, "seeds"), tuple(rows))

    def csv(self, path: str | Path | None = None) -> str:
        """Return the table as CSV, one line for each row after the names; write it to a file too, if one is given."""
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        if path is not None:
            Path(path).write_text(text.getvalue(), encoding="utf-8")
        return text.getvalue()

    def __repr__(self) -> str:
        lines = [self.columns, *self._texts()]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]
        fitted = [[cell.rjust(width) for cell, width in zip(line[:-1], widths[:-1], strict=True)] for line in lines]
        return "\n".join("  ".join([*cells, line[-1]]) for cells, line in zip(fitted, lines, strict=True))

    def _repr_html_(self) -> str:
        from jaxinterp.figures.html import Table, fragment

        return fragment(Table(self.columns, self._texts()))

    def _texts(self) -> list[list[str]]:
        """Return the cells as texts."""

        def text(value: Value | None) -> str:
            return "–" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)

        return [[text(row.get(name)) for name in self.columns] for row in self.rows]
