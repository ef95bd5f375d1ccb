"""Trained runs of different settings side by side: only the settings that differ, then what was measured."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxinterp.app.registry import run_in
from jaxinterp.checks import require, require_one_of, shown
from jaxinterp.files import printable
from jaxinterp.recipe.run_folder import EVALUATION, read_json, unfinished_line
from jaxinterp.train.log import count_epochs

FEW = ("test_accuracy", "test_accuracy_best", "val_accuracy", "completeness_residual", "removal_curve_mean")
LOCALIZATION = "localization_"  # and "_median": the network's own score of each grid's size
Row = dict[str, Any]


@dataclass(frozen=True)
class Comparison:
    """A row for each run.

    Attributes:
        settings: the keys in which runs differ, such as "train.seed"; "run" if their names do.
        measures: names of the measurements that any run has.
        rows: a run's folder, state, settings and measurements by these names.
    """

    settings: tuple[str, ...]
    measures: tuple[str, ...]
    rows: tuple[Row, ...]

    def header(self, measures: Sequence[str] | None = None) -> list[str]:
        """Return the columns, with all measurements by default."""
        return ["folder", "epochs", *self.settings, *(self.measures if measures is None else measures)]

    def few(self) -> list[str]:
        """Return the measurements that a terminal has room for."""
        own = [name for name in self.measures if name.startswith(LOCALIZATION) and name.endswith("_median")]
        return [name for name in (*FEW, *own) if name in self.measures]

    def cells(self, measures: Sequence[str]) -> list[list[str]]:
        """Return the rows as texts; – for what a run does not have."""
        return [[_text(row.get(name)) for name in self.header(measures)] for row in self.rows]

    def to_csv(self) -> str:
        """Return the rows with all measurements as CSV, empty for what a run does not have."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.header())
        writer.writerows([shown(row.get(name, "")) for name in self.header()] for row in self.rows)
        return text.getvalue()

    def to_dict(self) -> dict[str, Any]:
        """Return the rows as JSON values: each with its folder, epochs, settings and measures."""
        names = {"settings": self.settings, "measures": self.measures}
        rows = [
            {part: row[part] for part in ("folder", "epochs", "finished")}
            | {kind: {name: row[name] for name in keys if name in row} for kind, keys in names.items()}
            for row in self.rows
        ]
        return {"settings": list(self.settings), "measures": list(self.measures), "runs": rows}


def compare(run_dirs: Sequence[Path]) -> Comparison:
    """Compare runs by their folders, evaluated or not: of one that was not, the accuracies of its training.

    Raises:
        ConfigError: a folder holds no run, or a damaged one; or a folder is given twice.
    """
    require(len(run_dirs) > 1, "RUN_DIR", len(run_dirs), "at least two run folders")
    require(len(set(run_dirs)) == len(run_dirs), "RUN_DIR", "a folder twice", "different folders")
    configured, rows = list[dict[str, Any]](), list[Row]()
    for run_dir in run_dirs:
        name, _, run = run_in(run_dir)
        configured.append({"run": name, **run.fields()})
        done, unfinished = count_epochs(run_dir), unfinished_line(run_dir, run)
        row = {"folder": printable(run_dir), "finished": not unfinished}
        row["epochs"] = f"{done} of {run.train.epochs}" if unfinished else str(done)
        rows.append({**row, **configured[-1], **_measured(run_dir)})
    keys = dict.fromkeys(key for one in configured for key in one)
    settings = tuple(key for key in keys if len({repr(one.get(key)) for one in configured}) > 1)
    measures = dict.fromkeys(key for run_dir, row in zip(run_dirs, rows, strict=True) for key in _measured(run_dir))
    return Comparison(settings, tuple(measures), tuple(rows))


def chosen(comparison: Comparison, names: str) -> list[str]:
    """Return the measurements of a list such as "test_accuracy,val_loss"; the few if it is empty.

    Raises:
        ConfigError: no run has one of them.
    """
    for name in (asked := names.split(",") if names else []):
        require_one_of("--measures", name, comparison.measures)
    return asked or comparison.few()


def _measured(run_dir: Path) -> Mapping[str, float]:
    """Return the metrics of evaluation.json over what training found."""
    info = run_dir / "run.json"
    summary = read_json(info, "jaxinterp train").get("summary", {}) if info.exists() else {}
    found = {key: value for key, value in summary.get("last", {}).items() if key not in ("epoch", "step")}
    found |= {f"{key}_best": summary["best"][key] for key in ("test_accuracy",) if key in summary.get("best", {})}
    path = run_dir / EVALUATION
    return found | (read_json(path, f"jaxinterp evaluate {run_dir}", "metrics")["metrics"] if path.exists() else {})


def _text(value: Any) -> str:
    return "–" if value is None else f"{value:.4g}" if isinstance(value, float) else shown(value)
