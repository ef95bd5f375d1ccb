"""From the run folders of one run, one per seed, to its published results."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from jaxinterp.app.registry import paper_in, runs
from jaxinterp.app.results import Results, summarize, write_results
from jaxinterp.errors import ConfigError
from jaxinterp.recipe.config import read_config, read_json, read_name, shown


def ended(run_dirs: Sequence[Path]) -> None:
    """Refuse to publish a run that goes on, or that ended with other versions than the first.

    Raises:
        ConfigError: a folder's training has not ended, or its versions differ; or run.json is missing or damaged.
    """
    infos = [read_json(run_dir / "run.json", f"jaxinterp train {read_name(run_dir)}") for run_dir in run_dirs]
    for run_dir, info in zip(run_dirs, infos, strict=True):
        if "summary" not in info:
            raise ConfigError(f"{run_dir} has not ended; go on with `jaxinterp train {read_name(run_dir)}`")
        if info.get("versions") != infos[0].get("versions"):
            raise ConfigError(f"{run_dir} was trained with other versions than {run_dirs[0]}")


def one_run(run_dirs: Sequence[Path]) -> tuple[str, list[Any], list[dict[str, Any]]]:
    """The name of the run that folders hold, and the configuration and run.json of each.

    Raises:
        ConfigError: no folder, folders of different configurations, the same seed twice, or run.json is damaged.
    """
    if not run_dirs:
        raise ConfigError("expected at least one run folder")
    name, paper = paper_in(run_dirs[0])
    for run_dir in run_dirs:
        if (found := read_name(run_dir)) != name:
            raise ConfigError(f"{run_dir} holds a run of {found}, expected {name} as in {run_dirs[0]}")
    configs = []
    for run_dir in run_dirs:
        _, config = read_config(run_dir, type(paper.RUNS[name].config))
        configs.append(config)
        if dataclasses.replace(config, seed=configs[0].seed) != configs[0]:
            raise ConfigError(f"{run_dir} holds another configuration than {run_dirs[0]}")
    seeds = [config.seed for config in configs]
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"expected different seeds, got {', '.join(map(str, seeds))}")
    made_by = f"jaxinterp train {name}"
    return name, configs, [read_json(run_dir / "run.json", made_by, "resumed", "versions") for run_dir in run_dirs]


def overrides(name: str, config: Any) -> list[str]:
    """What a configuration has in place of its run's, key=value, its seed aside."""
    own = runs()[name].config
    return [
        f"{field.name}={shown(getattr(config, field.name))}"
        for field in dataclasses.fields(config)
        if field.name != "seed" and getattr(config, field.name) != getattr(own, field.name)
    ]


def train_command(name: str, configs: Sequence[Any]) -> str:
    """The command that trains a run with the seeds of these configurations."""
    seeds = ",".join(str(config.seed) for config in configs)
    return " ".join(["jaxinterp train", name, *overrides(name, configs[0]), "--seeds", seeds])


def gather(run_dirs: Sequence[Path]) -> Results:
    """The metrics of one run over its seeds.

    Args:
        run_dirs: evaluated run folders of the same configuration and different seeds.

    Returns:
        Mean and spread of every metric, with the paper's number where the configuration is the paper's.

    Raises:
        ConfigError: what `one_run` refuses, or a missing evaluation.
    """
    name, configs, infos = one_run(run_dirs)
    experiment, seeds = runs()[name], tuple(config.seed for config in configs)
    found = [read_json(run_dir / "evaluation.json", f"jaxinterp evaluate {run_dir}", "metrics") for run_dir in run_dirs]
    parts = [part for info in infos for part in (info, *info["resumed"])]
    measured = [evaluation["metrics"] for evaluation in found]
    if any(metrics.keys() != measured[0].keys() for metrics in measured):
        raise ConfigError(
            f"{shown(tuple(map(str, run_dirs)))} were not measured for the same; evaluate all of them again"
        )
    values = {key: [metrics[key] for metrics in measured] for key in measured[0]}
    folders = f"runs/{name.replace('/', '-')}-seed-"
    evaluate = " ".join(["jaxinterp evaluate", *(f"{folders}{s}" for s in seeds), "--results experiments/results"])
    return Results(
        run=name,
        command=f"{train_command(name, configs)} && {evaluate}",
        machine="; ".join(dict.fromkeys(part["machine"] for part in parts if "machine" in part)),
        versions=infos[0]["versions"],
        seeds=seeds,
        metrics=summarize(values, {} if overrides(name, configs[0]) else experiment.paper),
        headline=experiment.headline,
    )


def publish(results: Results, folder: Path) -> Path:
    """Write <run>.json (/ as _) into a folder; returns its path."""
    path = folder / f"{results.run.replace('/', '_')}.json"
    write_results(path, results)
    return path


def metrics_table(results: Results) -> Table:
    """The metrics of a run for the terminal, ours beside the paper's."""
    table = Table("metric", "ours", "± (seeds)", "paper", title=results.run, title_justify="left", box=None)
    for name, metric in results.metrics.items():
        spread = f"{metric.std:.2g} ({metric.n})" if metric.n > 1 else f"({metric.n})"
        paper = "" if metric.paper is None else f"{metric.paper:.4g}"
        table.add_row(name, f"{metric.mean:.4g}", spread, paper)
    return table
