"""From the run folders of one run, one per seed, to its published results."""

import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from jaxinterp.app.registry import run_in, runs, training
from jaxinterp.app.results import Results, read_results, summarize
from jaxinterp.checks import require, shown
from jaxinterp.explain.audit import Audit
from jaxinterp.provenance import machine
from jaxinterp.recipe.config import Run
from jaxinterp.recipe.run_folder import EVALUATION, HELD_OUT, read_json, unfinished_line

HELD_OUT_OPTION = " --held-out"
MAX_NAME = 100  # characters of overrides in the name of a file


def require_finished(run_dirs: Sequence[Path]) -> None:
    """Raise unless all runs have finished, with the same package versions."""
    trained = [run_in(run_dir) for run_dir in run_dirs]
    commands = [training(name, run) for name, _, run in trained]
    infos = [read_json(run_dir / "run.json", command) for run_dir, command in zip(run_dirs, commands, strict=True)]
    for run_dir, (_, _, run), info, command in zip(run_dirs, trained, infos, commands, strict=True):
        wanted = f"a finished one; resume it by `{command}`"
        require(not unfinished_line(run_dir, run), str(run_dir), "a run that has not ended", wanted)
        same = info.get("versions") == infos[0].get("versions")
        require(same, str(run_dir), "other versions", f"those that {run_dirs[0]} was trained with")


def one_run(run_dirs: Sequence[Path]) -> tuple[str, list[Run[Any]], list[dict[str, Any]]]:
    """Return the name of the run that folders hold, and the configuration and run.json of each.

    Raises:
        ConfigError: no folder, folders of different configurations, the same seed twice, or run.json is damaged.
    """
    require(run_dirs, "RUN_DIR", "none", "at least one run folder")
    (name, _, first), configurations = run_in(run_dirs[0]), list[Run[Any]]()
    for run_dir in run_dirs:
        other, _, run = run_in(run_dir)
        require(other == name, str(run_dir), f"a run of {other}", f"{name} as in {run_dirs[0]}")
        same = run.with_seed(first.train.seed) == first
        require(same, str(run_dir), "another configuration", f"the one of {run_dirs[0]}")
        configurations.append(run)
    seeds = [run.train.seed for run in configurations]
    require(len(set(seeds)) == len(seeds), "seeds", tuple(seeds), "different ones")
    made_by = training(name, first)
    return name, configurations, [read_json(d / "run.json", made_by, "resumed", "versions") for d in run_dirs]


def overrides(name: str, run: Run[Any]) -> list[str]:
    """Return what a configuration has in place of its named run's, as assignments, its seed aside."""
    named = runs()[name].run.fields() if name in runs() else run.fields()  # a run of one's own stands for itself
    differing = {key: value for key, value in run.fields().items() if key != "train.seed" and value != named[key]}
    return [f"{key}={shown(value)}" for key, value in differing.items()]


def results_file(folder: Path, name: str, run: Run[Any], prefix: str = "") -> Path:
    """Return the file of a run's results, `<run>.json`; with overrides they stand in the name, as far as they fit.

    Raises:
        ConfigError: results of overrides would take the place of a headline, or the run is not a named one, by which
            others could redo it.
    """
    require(name in runs(), "--results", f"a run that is called {name}", "a named run, see `jaxinterp list`")
    stem, changed = prefix + name.replace("/", "_"), "-".join(overrides(name, run))
    if changed:
        safe = re.sub(r"[^\w.,=+-]", "_", changed)
        stem += f"-{safe}" if len(safe) <= MAX_NAME else f"-{safe[:MAX_NAME]}-{zlib.crc32(changed.encode()):08x}"
    path = folder / f"{stem}.json"
    taken = changed and path.exists() and read_results(path).headline
    require(not taken, str(path), "results of overrides", "another folder: it holds a headline")
    return path


def train_command(name: str, configurations: Sequence[Run[Any]], info: Mapping[str, Any]) -> str:
    """Return the commands that train a run with the seeds of these configurations; more than one if it went on."""
    seeds, run = ",".join(str(run.train.seed) for run in configurations), configurations[0]
    asked = [part["epochs"] for part in (info, *info["resumed"]) if "epochs" in part]
    runs = [run.replace(train={"epochs": epochs}) for epochs in dict.fromkeys([*asked, run.train.epochs])]
    return " && ".join(" ".join(["jaxinterp train", name, *overrides(name, one), "--seeds", seeds]) for one in runs)


def gather(run_dirs: Sequence[Path], out: Path | None = None, held_out: bool = False) -> Results:
    """Collect the metrics of one run over its seeds.

    Args:
        run_dirs: evaluated run folders of the same configuration and different seeds.
        out: the folder that results are written to, as the command names it.
        held_out: collect what was measured on held-out images.

    Returns:
        Mean and spread of every metric, with the paper's number where the configuration is the paper's.
    """
    name, configurations, infos = one_run(run_dirs)
    experiment, seeds = run_in(run_dirs[0])[1], tuple(run.train.seed for run in configurations)
    evaluations = _evaluations(run_dirs, held_out)
    parts = [part for info in infos for part in (info, *info["resumed"])]
    measured = [evaluation["metrics"] for evaluation in evaluations]
    same = all(metrics.keys() == measured[0].keys() for metrics in measured)
    require(same, shown(tuple(map(str, run_dirs))), "different metrics", "the same; evaluate all of them again")
    values = {key: [metrics[key] for metrics in measured] for key in measured[0]}
    folders = f"runs/{name.replace('/', '-')}-seed-"
    into = (HELD_OUT_OPTION if held_out else "") + (f" --results {out}" if out else "")
    changed = tuple(overrides(name, configurations[0]))
    evaluate = " ".join(["jaxinterp evaluate", *(f"{folders}{s}" for s in seeds)]) + into
    return Results(
        run=name,
        command=f"{train_command(name, configurations, infos[0])} && {evaluate}",
        machine="; ".join(dict.fromkeys(part["machine"] for part in parts if "machine" in part)),
        versions=infos[0]["versions"],
        seeds=seeds,
        metrics=summarize(values, {} if changed else experiment.paper),
        headline=experiment.headline and not changed,
        overrides=changed,
    )


def audit_results(run_dir: Path, found: Audit, methods: str, images: int, out: Path | None) -> Results:
    """Return an audit of one run as results: a metric for each number, such as "gradient cosine".

    Args:
        run_dir: the run's folder.
        found: its audit.
        methods: the methods' names as the command was given them.
        images: how many images it was asked for.
        out: the folder that results are written to.
    """
    name, (run,), (info,) = one_run([run_dir])
    numbers: dict[str, float] = {}
    for method, row in found.to_dict()["methods"].items():
        parts = {**row.get("distances", {}), "completeness_gap": row["completeness_gap"], **row["metrics"]}
        numbers |= {f"{method} {key}": one["mean"] for key, one in parts.items() if one["mean"] is not None}
        numbers[f"{method} seconds"] = row["seconds"]
    for metric, row in found.to_dict()["agreement"].items():
        numbers |= {f"{metric} agreement {key}": value for key, value in row.items() if value is not None}
    options = [f"--images {images}", *([f"--methods {methods}"] if methods else []), f"--results {out}"]
    folder = f"runs/{name.replace('/', '-')}-seed-{run.train.seed}"
    return Results(
        run=f"audit of {name}",
        command=f"{train_command(name, [run], info)} && jaxinterp audit {folder} {' '.join(options)}",
        machine=machine(),
        versions=info["versions"],
        seeds=(run.train.seed,),
        metrics=summarize({key: [value] for key, value in numbers.items()}),
        headline=False,
        overrides=tuple(overrides(name, run)),
    )


def metrics_table(results: Results, unfinished: Sequence[str] = ()) -> Table:
    """Lay out the metrics of a run for the terminal, ours beside the paper's; say in the title what is unfinished."""
    title = "; ".join([results.run, *unfinished])
    table = Table("metric", "ours", "± (seeds)", "paper", title=title, title_justify="left", box=None)
    for name, metric in results.metrics.items():
        spread = f"{metric.std:.2g} ({metric.n})" if metric.n > 1 else f"({metric.n})"
        paper = "" if metric.paper is None else f"{metric.paper:.4g}"
        table.add_row(name, f"{metric.mean:.4g}", spread, paper)
    return table


def unfinished(run_dirs: Sequence[Path], held_out: bool = False) -> list[str]:
    """Return a line for every evaluated run that had not ended when it was measured."""
    found = zip(run_dirs, _evaluations(run_dirs, held_out), strict=True)
    return [f"{run_dir.name} is {one['unfinished']}" for run_dir, one in found if one.get("unfinished")]


def _evaluations(run_dirs: Sequence[Path], held_out: bool) -> list[dict[str, Any]]:
    """Read what was measured of every folder's run."""
    file, option = (HELD_OUT, HELD_OUT_OPTION) if held_out else (EVALUATION, "")
    return [read_json(d / file, f"jaxinterp evaluate {d}{option}", "metrics") for d in run_dirs]
