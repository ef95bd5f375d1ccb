"""Published results: one JSON file per run, and the table of the README that is made from them."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxinterp.errors import ConfigError
from jaxinterp.files import write_text

BEGIN, END = "<!-- results: begin (python -m experiments.update_readme README.md) -->", "<!-- results: end -->"
ALL = "<!-- all results: begin (python -m experiments.update_readme experiments/results/README.md) -->"
LOCALIZATION = "localization_3x3_median"
HEADLINES: dict[str, tuple[str, str]] = {  # metric: (column title, number format)
    "test_accuracy": ("test accuracy", ".2%"),
    "test_accuracy_highest": ("highest of all epochs", ".2%"),
    "npk_test_accuracy": ("NPK regression", ".2%"),
    LOCALIZATION: ("localization 3×3", ".3f"),
    "removal_curve_mean": ("removal curve", ".3f"),
    "completeness_residual": ("residual", ".0e"),
}

SPEED = "× as fast"
MEANINGS = {
    "memory": "of its working memory",
    "_vs_forward": "times its time",
    "_vs_rectangular": "of its time",
    "_vs_relu": "of its time",
    "step_vs_baseline": "of its time",
    "slice_vs_whole": "of its time",
    "_seconds": "s",
    "gemm_share_of_transform": "of its time",
    "slice_vs_multiply_adds": "of the share of multiply-adds that it keeps",
}
PATHS: dict[str, tuple[str, str]] = {  # what only networks with coded paths are measured for
    "classifier_precision": ("classifiers of one class: precision", ".3f"),
    "classifier_recall": ("recall", ".3f"),
    "parameters_kept": ("parameters kept", ".1%"),
    "multiply_adds_kept": ("multiply-adds kept", ".1%"),
    "early_exit_accuracy": ("early exit: accuracy", ".2%"),
    "early_exit_compute": ("multiply-adds spent", ".1%"),
    "specificity_own": ("accuracy lost without a class' own paths", ".3f"),
    "specificity_others": ("without another's", ".3f"),
}
SERIES: dict[str, tuple[str, str]] = {  # of polynomials and of distillations only
    "parameters": ("parameters", ",.0f"),
    "degree": ("degree", ".0f"),
    "accuracy_orders_le_1": ("accuracy of orders ≤ 1", ".2%"),
    "accuracy_orders_le_3": ("≤ 3", ".2%"),
    "accuracy_orders_le_5": ("≤ 5", ".2%"),
    "one_reference_accuracy": ("one distilled reference per class", ".2%"),
    "one_real_image_accuracy": ("one real image per class", ".2%"),
    "class_mean_1_embedding": ("class mean in the embedding", ".2%"),
    "class_mean_1_pixels": ("class mean in pixels", ".2%"),
}

ORBITS: dict[str, tuple[str, str]] = {  # of glass boxes, trained on upright images
    "upright_accuracy_svm_rbf": ("RBF SVM upright", ".2%"),
    "rotated_accuracy_svm_rbf": ("RBF SVM rotated", ".2%"),
    "upright_accuracy_lda": ("LDA upright", ".2%"),
    "rotated_accuracy_lda": ("LDA rotated", ".2%"),
    "rotated_accuracy_pixels_svm_rbf": ("rotated, RBF SVM of pixels", ".2%"),
    "rotated_accuracy_augmented_svm_rbf": ("of pixels, training images rotated too", ".2%"),
    "rotated_accuracy_scattering_svm_rbf": ("of scattering", ".2%"),
    "rotated_accuracy": ("rotated, learned network", ".2%"),
    "rotated_6_9_confusion_svm_rbf": ("6 for 9 or 9 for 6", ".2%"),
    "equivariance_residual": ("law of the representation", ".0e"),
}
MOTIONS: tuple[str, ...] = ("h-flip", "v-flip", "turn", "scale")  # 90°, and 1/√2


@dataclass(frozen=True)
class Metric:
    """A number measured with n seeds: mean, sample deviation (0 where n = 1), and the paper's number."""

    n: int
    mean: float
    std: float
    paper: float | None = None


@dataclass(frozen=True)
class Results:
    """What a run gave: its command, where and with what it was made, and its metrics; whether the README shows it."""

    run: str
    command: str
    machine: str
    versions: Mapping[str, str]
    seeds: tuple[int, ...]
    metrics: Mapping[str, Metric]
    headline: bool = True


def summarize(measured: Mapping[str, Sequence[float]], paper: Mapping[str, float] | None = None) -> dict[str, Metric]:
    """Mean and spread of every metric over seeds.

    Args:
        measured: metric name → one finite number per seed.
        paper: metric name → the number that the paper reports, where it reports one.

    Returns:
        metric name → Metric, in the order of `measured`; std has n − 1 in its denominator.

    Raises:
        ConfigError: a metric has no number.

    Example:
        >>> summarize({"test_accuracy": [0.96, 0.98]}, {"test_accuracy": 0.9})["test_accuracy"].mean
        0.97
    """
    metrics = {}
    for name, numbers in measured.items():
        if not len(numbers):
            raise ConfigError(f"metric {name}: no number to summarize")
        spread = float(np.std(numbers, ddof=1)) if len(numbers) > 1 else 0.0
        metrics[name] = Metric(len(numbers), float(np.mean(numbers)), spread, (paper or {}).get(name))
    return metrics


def write_results(path: Path, results: Results) -> None:
    """Write results as JSON; a metric without a number in the paper has no key `paper`.

    Args:
        path: experiments/results/<run, / as _>.json.
        results: what was measured.
    """
    content = asdict(results)
    content["seeds"] = list(results.seeds)
    for metric in content["metrics"].values():
        if metric["paper"] is None:
            del metric["paper"]
    write_text(path, json.dumps(content, indent=2) + "\n")


def read_results(path: Path) -> Results:
    """Read what `write_results` wrote.

    Raises:
        ConfigError: the file is not JSON of that form; the line names the file and the fault.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        metrics = {}
        for name, m in content.pop("metrics").items():
            paper = float(m["paper"]) if "paper" in m else None
            metrics[name] = Metric(int(m["n"]), float(m["mean"]), float(m["std"]), paper)
        return Results(**{**content, "seeds": tuple(content["seeds"]), "metrics": metrics})
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"{path}: not a results file ({error})") from error


def _number(metric: Metric | None, form: str) -> str:
    if metric is None:
        return "–"
    spread = f" ± {metric.std:{form}}" if metric.n > 1 and metric.std and "e" not in form else ""
    paper = f" (paper {metric.paper:{form}})" if metric.paper is not None else ""
    return f"{metric.mean:{form}}{spread}{paper}"


def results_table(results: Iterable[Results]) -> str:
    """The headline metrics of trained runs as a Markdown table, one row per run, without columns that are empty.

    Returns:
        The table. "best baseline" is the highest localization of a post-hoc method on the same model.
    """
    trained = [result for result in results if "test_accuracy" in result.metrics]
    columns = {name: HEADLINES[name] for name in HEADLINES if any(name in result.metrics for result in trained)}
    return _rows(trained, columns, baseline=LOCALIZATION in columns)


def paths_table(results: Iterable[Results]) -> str:
    """What the paths of coded networks are worth, one row per run; empty where there are none."""
    coded = [result for result in results if PATHS.keys() & result.metrics.keys()]
    return _rows(coded, PATHS) if coded else ""


def series_table(results: Iterable[Results]) -> str:
    """What truncated series and distilled references are worth, one row per run; empty where there are none."""
    own = SERIES.keys() - {"parameters"}
    read = [result for result in results if own & result.metrics.keys()]
    return _rows(read, SERIES) if read else ""


def orbits_table(results: Iterable[Results]) -> str:
    """Glass boxes and their baselines on upright and rotated images, one row per run; empty where there are none."""
    boxes = [result for result in results if ORBITS.keys() & result.metrics.keys()]
    columns = {name: ORBITS[name] for name in ORBITS if any(name in result.metrics for result in boxes)}
    return _rows(boxes, columns) if boxes else ""


def equivariance_table(results: Iterable[Results]) -> str:
    """How layers move with the image, as `experiments.equivariance` measures it; empty where nothing was measured.

    Returns:
        One row per network, with its accuracy on moved images, then one per layer: residual of the best map / of the
        best constant / without a map → accuracy with the map; – where there is none.
    """
    lines = ["| network | layer | upright | " + " | ".join(MOTIONS) + " |", "|---" * (3 + len(MOTIONS)) + "|"]
    for result in results:
        numbers = {name: metric.mean for name, metric in result.metrics.items()}
        if f"{MOTIONS[0]} accuracy" not in numbers:
            continue
        moved = [f"{numbers[f'{motion} accuracy']:.1%}" for motion in MOTIONS]
        run = result.run.removeprefix("equivariance of ")
        lines.append("| " + " | ".join([f"`{run}`", "", f"{numbers['accuracy']:.1%}", *moved]) + " |")
        end = f" {MOTIONS[0]} uncompensated"
        for layer in [name.removesuffix(end) for name in numbers if name.endswith(end)]:
            cells = [_moved(numbers, f"{layer} {motion}") for motion in MOTIONS]
            lines.append("| " + " | ".join(["", f"`{layer}`", "", *cells]) + " |")
    return "\n".join(lines) if len(lines) > 2 else ""


def _moved(numbers: Mapping[str, float], key: str) -> str:
    residual, accuracy = (numbers.get(f"{key} {name}") for name in ("residual", "accuracy"))
    constant = numbers.get(f"{key} constant")
    known = "–" if residual is None else f"{residual:.0e}" if residual < 0.001 else f"{residual:.2f}"
    mean = "–" if constant is None else f"{constant:.2f}"
    undone = "" if accuracy is None else f" → {accuracy:.1%}"
    return f"{known} / {mean} / {numbers[f'{key} uncompensated']:.2f}{undone}"


def _rows(results: Iterable[Results], columns: Mapping[str, tuple[str, str]], baseline: bool = False) -> str:
    """A Markdown table: metrics (name → title, format) of results, one row per run."""
    titles = [title for title, _ in columns.values()] + ["best baseline's localization"] * baseline
    lines = ["| run | " + " | ".join([*titles, "seeds"]) + " |", "|---" * (len(titles) + 2) + "|"]
    for result in results:
        cells = [_number(result.metrics.get(name), form) for name, (_, form) in columns.items()]
        cells += [_best_baseline(result)] if baseline else []
        lines.append("| " + " | ".join([f"`{result.run}`", *cells, str(len(result.seeds))]) + " |")
    return "\n".join(lines)


def _best_baseline(result: Results) -> str:
    baselines = {name: m for name, m in result.metrics.items() if name.startswith(f"{LOCALIZATION}_")}
    best = max(baselines, key=lambda name: baselines[name].mean, default=None)
    if best is None:
        return "–"
    return f"{baselines[best].mean:.3f} ({best.removeprefix(f'{LOCALIZATION}_').replace('_', ' ')})"


def measurements_table(results: Iterable[Results]) -> str:
    """All metrics of results that are not of a trained network, one row each; empty where there are none."""
    rows = [
        f"| `{result.run}` | {name.replace('_', ' ')} | {metric.mean:.3g} ± {metric.std:.1g} | {metric.n} |"
        for result in results
        if "test_accuracy" not in result.metrics and f"{MOTIONS[0]} accuracy" not in result.metrics
        for name, metric in result.metrics.items()
    ]
    return "\n".join(["| measured by | what | mean | seeds |", "|---|---|---|---|", *rows]) if rows else ""


def ratios_table(benchmarks: Sequence[Mapping[str, Any]]) -> str:
    """The ratios of benchmark files as a Markdown table: speeds are ours over the other's, times and memory too.

    Args:
        benchmarks: contents of the files, each with the name "benchmark", a "machine" in words, and a mapping "ratios"
            of name → number.
    """
    cells = {
        (content["benchmark"], content["machine"]): "; ".join(
            f"{name.replace('_', ' ')} {_ratio(name, float(ratio))}" for name, ratio in content["ratios"].items()
        )
        for content in benchmarks
    }
    names, machines = (list(dict.fromkeys(part)) for part in zip(*cells, strict=True))
    rows = [[f"`{name}`", *(cells.get((name, machine), "–") for machine in machines)] for name in names]
    lines = [["benchmark", *machines], ["---"] * (1 + len(machines)), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _ratio(name: str, ratio: float) -> str:
    ends = (text for end, text in MEANINGS.items() if name.startswith(end) or name.endswith(end))
    meaning = next(ends, None)
    return f"{ratio:.3g}{SPEED}" if meaning is None else f"{ratio:.3g} {meaning}"


def readme_block(root: Path, everything: bool = False) -> str:
    """What stands between the markers of a README: the tables of committed results.

    Args:
        root: the repository, with experiments/results/*.json and benchmarks/results/*.json.
        everything: every result, not only the headlines.

    Raises:
        ConfigError: a results file is damaged.
    """
    found = [read_results(path) for path in sorted((root / "experiments" / "results").glob("*.json"))]
    results = [result for result in found if everything or result.headline]
    benchmarks = []
    for path in sorted((root / "benchmarks" / "results").glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        kinds = {"benchmark": str, "machine": str, "ratios": dict}
        if not isinstance(content, dict) or not all(isinstance(content.get(key), kinds[key]) for key in kinds):
            raise ConfigError(f'{path}: a benchmark file has texts "benchmark" and "machine", and an object "ratios"')
        benchmarks.append(content)
    tables = [results_table(results)] if results else []
    tables += [paths] if (paths := paths_table(results)) else []
    tables += [series] if (series := series_table(results)) else []
    tables += [orbits] if (orbits := orbits_table(results)) else []
    tables += [moved] if everything and (moved := equivariance_table(results)) else []
    tables += [measured] if everything and (measured := measurements_table(results)) else []
    tables += [ratios_table(benchmarks)] if benchmarks else []
    return "\n\n".join(tables) or "No results are committed yet."


def with_results(readme: str, block: str, begin: str = BEGIN) -> str:
    """The README with what stands between its two markers replaced by `block`.

    Raises:
        ConfigError: the markers are not there exactly once each, in order.

    Example:
        >>> with_results(f"a {BEGIN} old {END} b", "new").splitlines()[1]
        'new'
    """
    if readme.count(begin) != 1 or readme.count(END) != 1 or readme.index(begin) > readme.index(END):
        raise ConfigError(f"README: expected the markers {begin} and {END} once each, in this order")
    head, tail = readme.split(begin)[0], readme.split(END)[1]
    return f"{head}{begin}\n{block}\n{END}{tail}"


def rewrite(readme: Path) -> bool:
    """Bring the results in a README up to date with the results files of its repository.

    Args:
        readme: at the root of the repository, or, for all results, in the folder that holds them.

    Returns:
        Whether the file changed.
    """
    old, folder = readme.read_text(encoding="utf-8"), readme.resolve().parent
    if ALL in old:
        new = with_results(old, readme_block(folder.parents[1], everything=True), ALL)
    else:
        new = with_results(old, readme_block(folder))
    if new != old:
        write_text(readme, new)
    return new != old
