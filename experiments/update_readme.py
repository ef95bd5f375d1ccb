"""`python experiments/update_readme.py README.md experiments/results/README.md`: rewrite tables from committed results.

The tables are data: which metrics are columns, under which title and in which format.
"""

import json
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxinterp.app.console import errors_in_one_line
from jaxinterp.app.results import MOTIONS, Metric, Results, equivariance_rows, read_results
from jaxinterp.errors import ConfigError
from jaxinterp.files import write_text

BEGIN, END = "<!-- results: begin (python experiments/update_readme.py README.md) -->", "<!-- results: end -->"
ALL = "<!-- all results: begin (python experiments/update_readme.py experiments/results/README.md) -->"
LOCALIZATION = "localization_3x3_median"
AUDIT = "audit of "


@dataclass(frozen=True)
class Table:
    """Metrics as columns, one row per run that has one of them.

    Attributes:
        columns: metric → (title, number format).
        shared: metrics that do not make a row by themselves.
        sparse: whether a column without any number is kept.
        best_baseline: whether the last column is the best post-hoc method's localization.
    """

    columns: Mapping[str, tuple[str, str]]
    shared: tuple[str, ...] = ()
    sparse: bool = True
    best_baseline: bool = False


TABLES = (
    Table(
        {
            "test_accuracy": ("test accuracy", ".2%"),
            "test_accuracy_highest": ("highest of all epochs", ".2%"),
            "npk_test_accuracy": ("NPK regression", ".2%"),
            LOCALIZATION: ("localization 3×3", ".3f"),
            "removal_curve_mean": ("removal curve", ".3f"),
            "completeness_residual": ("residual", ".0e"),
            "curvature": ("curvature", ".0e"),
            "discrepancy": ("discrepancy", ".0e"),
        },
        sparse=False,
        best_baseline=True,
    ),
    Table(
        {
            "classifier_precision": ("single-class classifiers: precision", ".3f"),
            "classifier_recall": ("recall", ".3f"),
            "parameters_kept": ("parameters kept", ".1%"),
            "multiply_adds_kept": ("multiply-adds kept", ".1%"),
            "early_exit_accuracy": ("early exit: accuracy", ".2%"),
            "early_exit_compute": ("multiply-adds spent", ".1%"),
            "specificity_own": ("accuracy lost without the class's own paths", ".3f"),
            "specificity_others": ("without another class's", ".3f"),
        }
    ),
    Table(
        {
            "parameters": ("parameters", ",.0f"),
            "degree": ("degree", ".0f"),
            "accuracy_orders_le_1": ("accuracy of orders ≤ 1", ".2%"),
            "accuracy_orders_le_3": ("≤ 3", ".2%"),
            "accuracy_orders_le_5": ("≤ 5", ".2%"),
            "one_reference_accuracy": ("one distilled reference per class", ".2%"),
            "one_real_image_accuracy": ("one real image per class", ".2%"),
            "class_mean_1_embedding": ("class mean in the embedding", ".2%"),
            "class_mean_1_pixels": ("class mean in pixels", ".2%"),
        },
        shared=("parameters",),
    ),
    Table(
        {
            "upright_accuracy_svm_rbf": ("RBF SVM upright", ".2%"),
            "rotated_accuracy_svm_rbf": ("RBF SVM rotated", ".2%"),
            "upright_accuracy_lda": ("LDA upright", ".2%"),
            "rotated_accuracy_lda": ("LDA rotated", ".2%"),
            "rotated_accuracy_pixels_svm_rbf": ("rotated, RBF SVM of pixels", ".2%"),
            "rotated_accuracy_augmented_svm_rbf": ("of pixels, training images rotated too", ".2%"),
            "rotated_accuracy_scattering_svm_rbf": ("of scattering", ".2%"),
            "rotated_accuracy": ("rotated, learned network", ".2%"),
            "rotated_6_9_confusion_svm_rbf": ("confusions of 6 and 9", ".2%"),
            "equivariance_residual": ("residual of the group's law", ".0e"),
        },
        sparse=False,
    ),
)
SPEED = "× as fast"
UNITS = {  # what a benchmark's ratio means, by the beginning or end of its name; otherwise a speed
    "memory": "of its memory",
    "error_of_logits": "of the largest logit",
    "_peak": "GiB",
    "_vs_forward": "times its time",
    "_vs_rectangular": "of its time",
    "_vs_relu": "of its time",
    "step_vs_baseline": "of its time",
    "slice_vs_whole": "of its time",
    "_seconds": "s",
    "gemm_share_of_transform": "of its time",
    "slice_vs_multiply_adds": "of the share of multiply-adds that it keeps",
    "relative_difference": "between the libraries",
    "_over_budget": "times the budget",
    "_over_result": "times the result",
    "_doubling": "times the time of half the examples",
    "cores_for": "cores",
    "_ms": "ms",
    "_over_forward": "forward passes",
    "_over_gemm": "times their time",
    ": programs": "of those before",
    ": seconds": "of those before",
    ": wall_seconds": "of those before",
    "_overhead": "times the time without it",
    "time_per_target": "times the fastest row's",
    "raw_time_per_target": "times the fastest row's",
    "linear_in_targets": "times the time per target of fewer targets",
    "linear_in_pixels": "times the fastest size's",
}
SHOWN: Mapping[str, Mapping[str, str]] = {  # what of a benchmark the front page shows, in words; all are in docs
    "coda": {
        "forward_vs_torch": "CoDA S net, a forward pass, over the authors' formulation in PyTorch",
        "train_step_vs_torch": "a training step of it",
        "explain_all_classes_vs_torch_shared_forward": "the contributions to all ten classes",
        "forward_over_gemm": "its forward pass, over all its matrix products",
        "memory_vs_torch": "memory of its training step, over PyTorch's",
    },
    "coded": {
        "block_vs_literal_torch": "a coded block's step, over the paper's form in PyTorch",
        "step_vs_torch_baseline": "the coded network's step, over the network without codes in PyTorch",
    },
    "npk": {
        "npk_vs_torch": "path kernel of 8,192 examples, over PyTorch",
        "fc_npk_vs_gemm": "the same, over its matrix products alone",
    },
    "npk_scale": {
        "fc_doubling": "path kernel of twice the examples, worst case",
        "fc_peak_over_result": "memory of the path kernel, worst case",
    },
    "taylor": {
        "low_orders_vs_torch": "low orders of a TaylorNet, over PyTorch",
        "step_vs_torch": "a training step of it",
    },
    "attribution": {"geometric_mean_vs_torch": "post-hoc methods over Captum and Zennit, geometric mean"},
    "agreement": {"largest_relative_difference": "largest difference from Captum's, Zennit's and Quantus' values"},
    "explanation_cost": {"s_coda_image_explained_over_forward": "exact contributions to all ten classes, CoDA S net"},
    "first_minute": {
        "first_picture_seconds": "`jaxinterp demo`, its first picture, nothing compiled before",
        "demo_seconds": "its page",
    },
    "page": {
        "first_paint_ms": "the page of 60 images, first paint from disk",
        "hover_median_ms": "its answer to the pointer",
    },
    "torchvision_parity": {"error_of_logits": "networks read from torchvision, difference of logits"},
}


def markdown(rows: Iterable[Sequence[str]]) -> str:
    """Lay out rows as a Markdown table, the first one being its header."""
    header, *body = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([header, "|---" * (header.count(" | ") + 1) + "|", *body])


def number(metric: Metric | None, form: str) -> str:
    """Write a metric as mean ± deviation, with the paper's number; – if it was not measured."""
    if metric is None:
        return "–"
    spread = f" ± {metric.std:{form}}" if metric.n > 1 and metric.std and "e" not in form else ""
    paper = f" (paper {metric.paper:{form}})" if metric.paper is not None else ""
    return f"{metric.mean:{form}}{spread}{paper}"


def metrics_table(table: Table, results: Iterable[Results]) -> str:
    """Write one of `TABLES`; empty if no run has a row in it."""
    keys = {"test_accuracy"} if table.best_baseline else table.columns.keys() - set(table.shared)
    rows = [result for result in results if keys & result.metrics.keys()]
    measured = set(table.columns) if table.sparse else {name for result in rows for name in result.metrics}
    columns = {name: column for name, column in table.columns.items() if name in measured}
    baseline = table.best_baseline and LOCALIZATION in columns
    lines = [["run", *(title for title, _ in columns.values()), *["best baseline's localization"] * baseline, "seeds"]]
    for result in rows:
        cells = [number(result.metrics.get(name), form) for name, (_, form) in columns.items()]
        cells += [best_baseline(result)] if baseline else []
        lines.append([result.label, *cells, str(len(result.seeds))])
    return markdown(lines) if rows else ""


def best_baseline(result: Results) -> str:
    """Write the highest localization of a post-hoc method on the same network."""
    baselines = {name: m.mean for name, m in result.metrics.items() if name.startswith(f"{LOCALIZATION}_")}
    best = max(baselines, key=baselines.__getitem__, default="")
    return f"{baselines[best]:.3f} ({best.removeprefix(f'{LOCALIZATION}_').replace('_', ' ')})" if best else "–"


def measurements_table(results: Iterable[Results]) -> str:
    """Write all metrics of results that are not of a trained network, one row each; empty if there are none."""
    rows = [
        [result.label, name.replace("_", " "), f"{metric.mean:.3g} ± {metric.std:.1g}", str(metric.n)]
        for result in results
        if "test_accuracy" not in result.metrics and f"{MOTIONS[0]} accuracy" not in result.metrics
        if not result.run.startswith(AUDIT)
        for name, metric in result.metrics.items()
    ]
    return markdown([["measured by", "what", "mean", "seeds"], *rows]) if rows else ""


def audit_tables(results: Iterable[Results]) -> list[str]:
    """Write audits: each method's cosine with the truth, and whether each metric ranks methods as the truth does."""
    audits = [result for result in results if result.run.startswith(AUDIT)]
    heads = [result.run.removeprefix(AUDIT) for result in audits]
    tables = []
    for title, end in (
        ("method: cosine with the truth", " cosine"),
        ("metric: ranks as the truth", " agreement cosine"),
    ):
        found = [
            {name.removesuffix(end): m for name, m in result.metrics.items() if name.endswith(end)} for result in audits
        ]
        rows = sorted({name for one in found for name in one if "agreement" not in name})
        rows.sort(key=lambda name: statistics.mean(one[name].mean for one in found if name in one), reverse=True)
        cells = [[f"`{name}`", *(number(one.get(name), ".2f") for one in found)] for name in rows]
        tables += [markdown([[title, *(f"`{head}`" for head in heads)], *cells])] if cells else []
    return tables


def ratios_table(benchmarks: Sequence[Mapping[str, Any]], everything: bool = False) -> str:
    """Write the ratios of benchmark files, a column per machine: those of `SHOWN` in their words, or all."""
    cells = {
        (content["benchmark"], name, content["machine"]): ratio(name, value)
        for content in benchmarks
        for name, value in content["ratios"].items()
        if everything or name in SHOWN.get(content["benchmark"], {})
    }
    machines = list(dict.fromkeys(machine for _, _, machine in cells))
    lines = list(dict.fromkeys((benchmark, name) for benchmark, name, _ in cells))
    if not everything:
        shown = [(benchmark, name) for benchmark, names in SHOWN.items() for name in names]
        lines = [line for line in shown if line in lines]
    rows = [
        [
            f"`{benchmark}`",
            name.replace("_", " ") if everything else SHOWN[benchmark][name],
            *(cells.get((benchmark, name, machine), "–") for machine in machines),
        ]
        for benchmark, name in lines
    ]
    return markdown([["benchmark", "what", *machines], *rows]) if rows else ""


def ratio(name: str, value: float) -> str:
    """Write a ratio with its unit."""
    units = (f" {unit}" for end, unit in UNITS.items() if name.startswith(end) or name.endswith(end))
    return f"{value:.3g}{next(units, SPEED)}"


def benchmark_files(folder: Path) -> list[Path]:
    """Return the benchmarks' results in a folder that hold ratios; docs/accelerators.md shows the other file."""
    return sorted(path for path in folder.glob("*.json") if path.name != "accelerators.json")


def read_benchmark(path: Path) -> dict[str, Any]:
    """Read a benchmark's JSON file: texts "benchmark" and "machine", and "ratios", numbers by name."""
    content = json.loads(path.read_text(encoding="utf-8"))
    kinds = {"benchmark": str, "machine": str, "ratios": dict}
    if not isinstance(content, dict) or not all(isinstance(content.get(key), kinds[key]) for key in kinds):
        raise ConfigError(f'{path}: got {list(content)}, expected texts "benchmark", "machine", and an object "ratios"')
    return content


def results_files(folder: Path) -> list[Path]:
    """Return the results of runs in a folder; what is made of them is in claims.json, which docs/claims.md shows."""
    return sorted(path for path in folder.glob("*.json") if path.name != "claims.json")


def tables(root: Path, everything: bool = False) -> str:
    """Write the tables of a repository's experiments/results/*.json and benchmarks/results/*.json.

    Args:
        root: the repository.
        everything: every result, not only the headlines.
    """
    results = [read_results(path) for path in results_files(root / "experiments" / "results")]
    results = [result for result in results if everything or result.headline]
    benchmarks = [read_benchmark(path) for path in benchmark_files(root / "benchmarks" / "results")]
    written = [metrics_table(table, results) for table in TABLES]
    moved = equivariance_rows(results)
    others = [markdown(moved) if moved else "", *audit_tables(results), measurements_table(results)]
    written += others if everything else []
    written += [ratios_table(benchmarks, everything)]
    return "\n\n".join(filter(None, written)) or "No results are committed yet."


def with_results(readme: str, block: str, begin: str = BEGIN) -> str:
    """Replace what stands between the two markers of a README, which must be there once each, in order.

    Example:
        >>> with_results(f"a {BEGIN} old {END} b", "new").splitlines()[1]
        'new'
    """
    if readme.count(begin) != 1 or readme.count(END) != 1 or readme.index(begin) > readme.index(END):
        raise ConfigError(f"README: expected the markers {begin} and {END} once each, in this order")
    head, tail = readme.split(begin)[0], readme.split(END)[1]
    return f"{head}{begin}\n{block}\n{END}{tail}"


def rewrite(readme: Path) -> bool:
    """Bring the tables of a README up to date with its repository's results; return whether it changed.

    Args:
        readme: at the root of the repository, or, for all results, in the folder that holds them.
    """
    old, folder = readme.read_text(encoding="utf-8"), readme.resolve().parent
    everything = ALL in old
    block = tables(folder.parents[1] if everything else folder, everything)
    new = with_results(old, block, ALL if everything else BEGIN)
    if new != old:
        write_text(readme, new)
    return new != old


def main(arguments: Sequence[str]) -> None:
    """Rewrite the tables of each README named; status 2 if one has no markers or a results file is damaged."""
    with errors_in_one_line():
        if not arguments:
            raise ConfigError("FILE: got none, expected a README, such as README.md")
        for name in arguments:
            print(f"{name}: {'rewritten' if rewrite(Path(name)) else 'up to date'}")


if __name__ == "__main__":
    main(sys.argv[1:])
