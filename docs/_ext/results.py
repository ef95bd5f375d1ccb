"""Tables from committed results, as directives: papers beside ours, audits, and benchmarks."""

from collections.abc import Iterable, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from experiments.update_readme import (
    TABLES,
    benchmark_files,
    markdown,
    metrics_table,
    ratio,
    read_benchmark,
    results_files,
)
from jaxinterp.app.claims import claims
from jaxinterp.app.results import Results, read_results

ROOT = Path(__file__).parents[2]
RESULTS, BENCHMARKS = ROOT / "experiments" / "results", ROOT / "benchmarks" / "results"
AUDIT = "audit of "
DISTANCES = {
    "cosine": "cosine ↑",
    "rank_correlation": "rank correlation ↑",
    "sign_agreement": "sign agreement ↑",
    "misplaced": "misplaced ↓",
    "completeness_gap": "completeness gap ↓",
}
WORDS = {
    "test_accuracy": "test accuracy",
    "test_accuracy_highest": "test accuracy, highest of all epochs",
    "localization_3x3_median": "localization 3×3, median",
    "removal_curve_mean": "removal curve, mean",
}


@cache
def committed() -> dict[str, Results]:
    """Return all committed results by the run's name."""
    found = [read_results(path) for path in results_files(RESULTS)]
    return {result.run: result for result in found}


@cache
def audits() -> dict[str, Results]:
    """Return the audits by the audited run's name."""
    return {name.removeprefix(AUDIT): result for name, result in committed().items() if name.startswith(AUDIT)}


def audited_methods(names: Sequence[str]) -> str:
    """Write how far a method is from the exact decomposition, on each audited network."""
    rows = [["network", *(["as"] if len(names) > 1 else []), *DISTANCES.values()]]
    for run, result in audits().items():
        for name in names:
            if f"{name} cosine" not in result.metrics:
                continue
            cells = [result.metrics.get(f"{name} {key}") for key in DISTANCES]
            numbers = ["–" if cell is None else f"{cell.mean:.2f}" for cell in cells]
            rows.append([f"`{run}`", *([f"`{name}`"] if len(names) > 1 else []), *numbers])
    if len(rows) == 1:
        return "It is not among the methods that were audited."
    head = "From the exact decomposition of trained networks on MNIST, means over 16 test images, by `jaxinterp audit`"
    return f"{head} ([how to read it](../../attribution.md#the-audit)).\n\n{markdown(rows)}"


def audited_metric(name: str) -> str:
    """Write whether a metric ranks methods as the exact decomposition does, on each audited network."""
    rows = [["network", "by cosine", "by rank correlation", "by sign agreement", "by misplaced mass"]]
    for run, result in audits().items():
        keys = [f"{name} agreement {key}" for key in list(DISTANCES)[:4]]
        if keys[0] in result.metrics:
            cells = [result.metrics.get(key) for key in keys]
            rows.append([f"`{run}`", *("–" if cell is None else f"{cell.mean:.2f}" for cell in cells)])
    if len(rows) == 1:
        return "It is not among the metrics that were audited; the picture above shows how it orders five methods."
    return (
        "The rank correlation, over all audited methods, of this metric with each method's distance from the exact "
        f"decomposition: 1 ranks them as the truth does, −1 the other way round.\n\n{markdown(rows)}"
    )


def _number(name: str, value: float) -> str:
    share = "accuracy" in name or name.startswith(("parameters_kept", "multiply_adds", "test_"))
    return f"{value:.2%}" if share else f"{value:.3f}"


def paper_table(family: str) -> str:
    """Write every number of a paper that a named run has, beside ours, with the command and the deviation."""
    rows = [["run", "where in the paper", "measure", "paper", "ours", "deviation", "seeds", "command"]]
    for name, experiment in import_module(f"experiments.{family}").RUNS.items():
        for key, printed in experiment.paper.items():
            result = committed().get(name)
            metric = None if result is None or result.overrides else result.metrics.get(key)
            ours, away, seeds = "not run", "–", "–"
            if metric is not None:
                spread = f" ± {_number(key, metric.std)}" if metric.n > 1 else ""
                share = "%" in _number(key, printed)
                points = (metric.mean - printed) * (100 if share else 1)
                ours, seeds = f"{_number(key, metric.mean)}{spread}", str(metric.n)
                away = f"{points:+.2f}{' points' if share else ''}"
            where, word = experiment.source.replace("|", "\\|"), WORDS.get(key, key.replace("_", " "))
            command = f"`jaxinterp train {name}`"
            rows.append([f"`{name}`", where, word, _number(key, printed), ours, away, seeds, command])
    rows[1:] = sorted(rows[1:], key=lambda row: row[4] == "not run")
    return markdown(rows)


def own_tables(families: Iterable[str]) -> str:
    """Write the committed results of families, in the tables of the README, and the command of each."""
    found = [result for name, result in committed().items() if name.split("/")[0] in families]
    tables = [table for table in (metrics_table(table, found) for table in TABLES) if table]
    trained = [result for result in found if "test_accuracy" in result.metrics]
    commands = [["run", "command", "machine"], *([f"`{r.run}`", f"`{r.command}`", r.machine] for r in trained)]
    return "\n\n".join([*tables, markdown(commands)])


def benchmark_tables() -> str:
    """Write each committed benchmark: command, machine, versions, ratios and times."""
    parts = list[str]()
    for path in benchmark_files(BENCHMARKS):
        content = read_benchmark(path)
        versions = ", ".join(f"{name} {version}" for name, version in content.get("versions", {}).items())
        head = f"## {content['benchmark'].replace('_', ' ')}: {content['machine']}"
        about = f"`{content.get('command', '')}`" + (f" with {versions}" if versions else "") + "."
        ratios = [["what", "ratio"], *([key.replace("_", " "), ratio(key, v)] for key, v in content["ratios"].items())]
        parts += [head, about, markdown(ratios)]
        times = {name: row for name, row in content.get("seconds", {}).items() if isinstance(row, dict)}
        rows = [
            [f"`{name}`", f"{1e3 * row['median']:.4g}", " – ".join(f"{1e3 * value:.4g}" for value in row["quartiles"])]
            for name, row in times.items()
            if {"median", "quartiles"} <= row.keys()
        ]
        parts += [markdown([["time of", "median, ms", "quartiles, ms"], *rows])] if rows else []
    return "\n\n".join(parts)


def claims_tables() -> str:
    """Write the rows of claims.json: a section for each paper, a table of verdicts, and how each row was tested."""
    rows = claims()
    parts = list[str]()
    for paper in dict.fromkeys(row["paper"] for row in rows):
        own = [row for row in rows if row["paper"] == paper]
        head = [["claim", "the paper", "ours", "verdict"]]
        parts += [f"## {paper}", markdown([*head, *([r["claim"], r["theirs"], r["ours"], r["verdict"]] for r in own)])]
        for row in own:
            tried = f" {row['tried'][0].upper()}{row['tried'][1:]}." if row["tried"] else ""
            known = f" Figures known when the rule was written: {row['known']}." if row["known"] else ""
            parts.append(
                f"`{row['row']}` ({row['source']}) holds if: {row['rule']}. Budget: {row['budget']}.{tried}{known}\n\n"
                f"```sh\n{row['command']}\n```"
            )
    return "\n\n".join(parts)


class Written(SphinxDirective):
    """A directive whose content is Markdown that is written when the site is built."""

    optional_arguments = 9

    def run(self) -> list[nodes.Node]:
        """Parse what the named table has."""
        tables = {
            "paper-table": lambda: paper_table(*self.arguments),
            "own-results": lambda: own_tables(self.arguments),
            "benchmarks": benchmark_tables,
            "claims": claims_tables,
        }
        text = tables[self.name]()
        for folder in (RESULTS, BENCHMARKS):
            for path in folder.glob("*.json"):
                self.env.note_dependency(str(path))
        return self.parse_text_to_nodes(text, allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directives."""
    for name in ("paper-table", "own-results", "benchmarks", "claims"):
        app.add_directive(name, Written)
    return {"parallel_read_safe": True}
