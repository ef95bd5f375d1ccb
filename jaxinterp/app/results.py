"""Published results: one JSON file per run."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxinterp.checks import Checked, require, shown
from jaxinterp.files import write_text
from jaxinterp.recipe.run_folder import naming, validate_json

MOTIONS = ("h-flip", "v-flip", "turn", "scale")  # 90°, and 1/√2; of `equivariance_rows`


@dataclass(frozen=True)
class Metric(Checked):
    """A number measured with n seeds: mean, sample deviation (0 if n = 1), and the paper's number."""

    n: int
    mean: float
    std: float
    paper: float | None = None


@dataclass(frozen=True)
class Results(Checked):
    """Results of a run: its command, where and with what they were made, its metrics; whether they are headlines.

    `overrides` are what its configuration has in place of the named run's, its seed aside, as assignments;
    `fingerprint` tells the configuration, where seeds are measured one by one and must belong together.
    """

    run: str
    command: str
    machine: str
    versions: Mapping[str, str]
    seeds: tuple[int, ...]
    metrics: Mapping[str, Metric]
    headline: bool = True
    overrides: tuple[str, ...] = ()
    fingerprint: str = ""

    @property
    def label(self) -> str:
        """The run's name in Markdown, and whether it has overrides."""
        return f"`{self.run}`{' with overrides' if self.overrides else ''}"

    def check(self) -> None:
        """Require that headlines are of the named configuration."""
        require(not (self.headline and self.overrides), "headline", True, f"False with {shown(self.overrides)}")


def summarize(measured: Mapping[str, Sequence[float]], paper: Mapping[str, float] | None = None) -> dict[str, Metric]:
    """Compute mean and spread of every metric over seeds.

    Args:
        measured: metric name → one finite number per seed.
        paper: metric name → the number that the paper reports, if it reports one.

    Returns:
        metric name → Metric, in the order of `measured`; std has n − 1 in its denominator.

    Example:
        >>> summarize({"test_accuracy": [0.96, 0.98]}, {"test_accuracy": 0.9})["test_accuracy"].mean
        0.97
    """
    metrics = {}
    for name, numbers in measured.items():
        require(len(numbers), name, "no number", "one for each seed")
        spread = float(np.std(numbers, ddof=1)) if len(numbers) > 1 else 0.0
        metrics[name] = Metric(len(numbers), float(np.mean(numbers)), spread, (paper or {}).get(name))
    return metrics


def write_results(path: Path, results: Results) -> None:
    """Write results as JSON; what is None or empty, such as a metric's number in the paper, has no key."""
    from pydantic import TypeAdapter

    content = TypeAdapter(Results).dump_python(results, mode="json", exclude_none=True)
    for name in ("overrides", "fingerprint"):
        if not content[name]:
            del content[name]
    write_text(path, json.dumps(content, indent=2) + "\n")


def read_results(path: Path) -> Results:
    """Read what `write_results` wrote; the error for a damaged file names it and the fault."""
    with naming(path):
        results: Results = validate_json(Results, path.read_bytes())
    return results


def equivariance_rows(results: Iterable[Results]) -> list[list[str]]:
    """Lay out how layers move with the image, as `experiments/equivariance.py` measures it.

    Returns:
        A header, one row per network with its accuracy on moved images, then one per layer: residual of the best map /
        of the best constant / without a map → accuracy with the map; – if there is none. Empty if nothing was measured.
    """
    rows = [["network", "layer", "upright", *MOTIONS]]
    for result in results:
        numbers = {name: metric.mean for name, metric in result.metrics.items()}
        if f"{MOTIONS[0]} accuracy" not in numbers:
            continue
        moved = [f"{numbers[f'{motion} accuracy']:.1%}" for motion in MOTIONS]
        rows.append([result.label.replace("equivariance of ", ""), "", f"{numbers['accuracy']:.1%}", *moved])
        end = f" {MOTIONS[0]} uncompensated"
        for layer in [name.removesuffix(end) for name in numbers if name.endswith(end)]:
            rows.append(["", f"`{layer}`", "", *(_residuals(numbers, f"{layer} {motion}") for motion in MOTIONS)])
    return rows if len(rows) > 1 else []


def _residuals(numbers: Mapping[str, float], key: str) -> str:
    residual, accuracy, constant = (numbers.get(f"{key} {name}") for name in ("residual", "accuracy", "constant"))
    known = "–" if residual is None else f"{residual:.0e}" if residual < 0.001 else f"{residual:.2f}"
    mean = "–" if constant is None else f"{constant:.2f}"
    undone = "" if accuracy is None else f" → {accuracy:.1%}"
    return f"{known} / {mean} / {numbers[f'{key} uncompensated']:.2f}{undone}"
