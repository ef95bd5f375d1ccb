"""What a claim's row compares, from the results of runs to a verdict."""

import json
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp.app import run_file, stages
from jaxinterp.app.plan import trains
from jaxinterp.app.publish import gather
from jaxinterp.app.registry import family_of, runs
from jaxinterp.app.results import Metric, read_results, summarize, write_results
from jaxinterp.checks import require
from jaxinterp.explain.products import product_flops
from jaxinterp.nn.platform import target
from jaxinterp.recipe.config import Run
from jaxinterp.recipe.data import counts
from jaxinterp.recipe.run_folder import read_lines

SEEDS = (0, 1, 2)  # of a verdict
ACCURACY = "test_accuracy"

Numbers = Mapping[str, float]  # metric ↦ number, of one seed of a run


@dataclass(frozen=True)
class Quantity:
    """A number computed seed by seed from the metrics of runs.

    Attributes:
        runs: the runs.
        value: their metrics, one mapping a run ↦ the number.
        form: how it is written.
    """

    runs: tuple[str, ...]
    value: Callable[..., float]
    form: str = ".1%"


@dataclass(frozen=True)
class Published:
    """A metric of results that are in the repository already.

    Attributes:
        file: its name, without .json.
        metric: as the file has it.
        form: how it is written.
        run: the run that was trained for it; empty if none was.
    """

    file: str
    metric: str
    form: str = ".1%"
    run: str = ""


def of(run: str, metric: str = ACCURACY, form: str = ".1%") -> Quantity:
    """Return a metric of a run."""
    return Quantity((run,), lambda numbers: numbers[metric], form)


def ratio(run: str, other: str, metric: str = ACCURACY) -> Quantity:
    """Return a run's metric over another run's."""
    return Quantity((run, other), lambda ours, theirs: ours[metric] / theirs[metric], ".3f")


def best(run: str, metric: str) -> Quantity:
    """Return the highest value of a metric that a post-hoc method has on a run."""

    def value(numbers: Numbers) -> float:
        found = [number for name, number in numbers.items() if name.startswith(f"{metric}_")]
        if not found:
            raise KeyError(metric)
        return max(found)

    return Quantity((run,), value, ".3f")


Shown = Mapping[str, Metric]
Rule = Callable[[Shown], bool]


def not_below(ours: str, theirs: str, points: float = 0.0) -> Rule:
    """Return the rule that a mean is not below another's by more than some points, or than the other's std over seeds.

    `points` are shares: 0.02 of an accuracy are two percentage points.
    """
    return lambda shown: shown[ours].mean >= shown[theirs].mean - max(points, shown[theirs].std)


def rising(*names: str) -> Rule:
    """Return the rule that means rise from name to name."""
    return lambda shown: all(shown[a].mean < shown[b].mean for a, b in pairwise(names))


@dataclass(frozen=True)
class Claim:
    """One row: what a paper says, and how it is tested here.

    Attributes:
        paper: its short name.
        claim: what it says, in our words of fact.
        source: where it says so.
        theirs: its figures.
        rule: when the row holds, in words.
        shown: label ↦ the numbers that are shown, and compared.
        holds: the rule, of their means over seeds.
        tried: what was tried where a row does not hold, and what a reader must know.
        command: how to redo what was published before; None where `run` does it.
        known: which figures were known when the rule was written.
    """

    paper: str
    claim: str
    source: str
    theirs: str
    rule: str
    shown: Mapping[str, Quantity | Published]
    holds: Rule
    tried: str = ""
    command: str | None = None
    known: str = ""

    @property
    def runs(self) -> tuple[str, ...]:
        """The runs that are trained for the row."""
        wanted = [run for one in self.shown.values() if isinstance(one, Quantity) for run in one.runs]
        return tuple(dict.fromkeys(wanted))


def config_fingerprint(run: Run[Any]) -> str:
    """Return a number that tells a configuration, its seed aside, by the fields that differ from their defaults."""
    return f"{zlib.crc32(json.dumps(run.with_seed(0).own_fields(), sort_keys=True).encode()):08x}"


@dataclass(frozen=True)
class Evidence:
    """What was measured.

    Attributes:
        seeds: run ↦ seed ↦ metrics.
        published: name of a file ↦ its metrics.
    """

    seeds: Mapping[str, Mapping[int, Numbers]]
    published: Mapping[str, Mapping[str, Metric]] = field(default_factory=dict)

    @classmethod
    def read(cls, results: Path, claims: Iterable[Claim]) -> "Evidence":
        """Read a folder of results: every seed's file, and what claims show of the published ones.

        Raises:
            ConfigError: a seed's file is damaged or misnamed, or its run has been configured differently since.
        """
        seeds = dict[str, dict[int, Numbers]]()
        for path in sorted((results / "claims").glob("*-seed-*.json")):
            found = read_results(path)
            require(found.run in runs(), f"{path}: run", found.run, "a named run, see `jaxinterp list`")
            named = [stem(found.run, seed) for seed in found.seeds]
            require(named == [path.stem], str(path), f"results of {', '.join(named) or 'no seed'}", f"of {path.stem}")
            require("train_minutes" in found.metrics, str(path), "no train_minutes", "what `claims.py run` writes")
            now = config_fingerprint(runs()[found.run].run)
            require(
                found.fingerprint == now, str(path), "another configuration", f"that of {found.run}; delete the file"
            )
            seeds.setdefault(found.run, {})[found.seeds[0]] = {k: one.mean for k, one in found.metrics.items()}
        wanted = {one.file for claim in claims for one in claim.shown.values() if isinstance(one, Published)}
        files = {name: results / f"{name}.json" for name in wanted}
        return cls(seeds, {name: read_results(path).metrics for name, path in files.items() if path.exists()})

    def measure(self, claim: Claim) -> dict[str, Metric | None]:
        """Return a row's numbers, mean and std over the seeds that all its runs have; None of what was not measured."""
        seeds = self.common(claim)
        return {label: self._number(quantity, seeds) for label, quantity in claim.shown.items()}

    def common(self, claim: Claim) -> list[int]:
        """Return the seeds that all runs of a row have."""
        return sorted(set.intersection(*(set(self.seeds.get(run, {})) for run in claim.runs))) if claim.runs else []

    def _number(self, quantity: Quantity | Published, seeds: Sequence[int]) -> Metric | None:
        if isinstance(quantity, Published):
            return self.published.get(quantity.file, {}).get(quantity.metric)
        try:
            values = [quantity.value(*(self.seeds[run][seed] for run in quantity.runs)) for seed in seeds]
        except KeyError:  # not measured, such as grids for which too few images are classified right
            return None
        return summarize({"value": values})["value"] if values else None


def written(metric: Metric, form: str) -> str:
    """Write a mean with its std.

    Example:
        >>> written(Metric(3, 0.8312, 0.004), ".1%")
        '83.1% ± 0.4%'
    """
    return f"{metric.mean:{form}}" + (f" ± {metric.std:{form}}" if metric.n > 1 else "")


def verdict(claim: Claim, shown: Shown, tested: bool) -> str:
    """Return whether a claim holds at this scale, or why that is not known, and how many seeds say so.

    Args:
        claim: the claim.
        shown: its numbers, as far as they were measured.
        tested: whether all its runs have a seed in common.
    """
    if lacking := [label for label in claim.shown if label not in shown]:
        return f"not testable here: a seed has no {', no '.join(lacking)}" if tested else "not run yet"
    answer = "holds" if claim.holds(shown) else "does not hold at this scale"
    seeds = min(metric.n for metric in shown.values())
    return answer if seeds >= len(SEEDS) else f"{answer}; {seeds} of {len(SEEDS)} seeds"


@cache
def budget(run: Run[Any]) -> float:
    """Return the FLOPs of training: of the matrix products and convolutions of all steps, forward and backward.

    0 of what is fitted in closed form.
    """
    family = family_of(run)
    if not trains(family):
        return 0.0
    network = family.network(run, run.train.dtype)
    loss = jax.grad(family.loss(run, network), has_aux=True)
    number = jax.ShapeDtypeStruct((run.train.batch_size,), jnp.int32)
    image = jax.ShapeDtypeStruct((run.train.batch_size, *run.data.image_shape), jnp.float32)
    with target("gpu"):  # without the loops over chunks, and what these compute twice, that only a CPU has
        key = jax.eval_shape(lambda: jax.random.key(0))
        variables = dict(jax.eval_shape(network.init, key, image))
        params, batch = variables.pop("params"), {"image": image, "label": number}
        step = product_flops(jax.make_jaxpr(loss)(params, variables.get("batch_stats", {}), batch, key)).total()
    first = family.pretrain(run)
    steps = counts(run, None).train // run.train.batch_size * run.train.epochs
    return float(step * steps) + (0.0 if first is None else budget(first))


def spent(claim: Claim, evidence: Evidence) -> str:
    """Write what training the runs of a row takes: FLOPs, and minutes a seed where it was measured."""
    trained_before = [one.run for one in claim.shown.values() if isinstance(one, Published) and one.run]
    parts = []
    for name in dict.fromkeys([*claim.runs, *trained_before]):
        experiment = runs()[name]
        took = [numbers["train_minutes"] for numbers in evidence.seeds.get(name, {}).values()]
        minutes = f"{np.mean(took):.0f} min" if took else experiment.time
        flops = budget(experiment.run)
        parts.append(f"{name}: {f'{flops:.1e} FLOP' if flops else 'closed form'}, {minutes}")
    return "; ".join(parts) or "nothing is trained"


def row(name: str, claim: Claim, evidence: Evidence) -> dict[str, Any]:
    """Return a row of claims.json."""
    known = {label: metric for label, metric in evidence.measure(claim).items() if metric is not None}
    return {
        "row": name,
        "paper": claim.paper,
        "claim": claim.claim,
        "source": claim.source,
        "theirs": claim.theirs,
        "rule": claim.rule,
        "ours": "; ".join(f"{label} {written(one, claim.shown[label].form)}" for label, one in known.items()) or "-",
        "seeds": min((metric.n for metric in known.values()), default=0),
        "command": claim.command or f"python experiments/claims.py run {name} --results runs/claims",
        "budget": spent(claim, evidence),
        "verdict": verdict(claim, known, bool(evidence.common(claim))),
        "tried": claim.tried,
        "known": claim.known,
    }


def table(claims: Mapping[str, Claim], metrics: Mapping[str, tuple[str, str]], evidence: Evidence) -> dict[str, Any]:
    """Return the content of claims.json: rows, and numbers by name.

    Args:
        claims: row ↦ claim.
        metrics: name ↦ a row, and the label of a number that it shows.
        evidence: what was measured.
    """
    numbers = {key: evidence.measure(claims[name])[label] for key, (name, label) in metrics.items()}
    return {
        "rows": [row(name, claim, evidence) for name, claim in claims.items()],
        "metrics": {key: {"n": one.n, "mean": one.mean, "std": one.std} for key, one in numbers.items() if one},
    }


def as_json(content: Any) -> str:
    """Write JSON in lines."""
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def stem(run: str, seed: int) -> str:
    """Return the name of the folder and of the file of one seed of a run."""
    return f"{run_file.stem(run)}-seed-{seed}"


def measure(name: str, seed: int, run_dir: Path, file: Path, data_dir: Path | None, smoke: bool) -> None:
    """Train and evaluate one seed of a run, and write its results, with the minutes and FLOPs that training took."""
    run = runs()[name].run
    run = (family_of(run).smoke(run) if smoke else run).with_seed(seed)
    result = stages.train(name, run, run_dir, data_dir=data_dir)
    if result.interrupted:
        raise SystemExit(130)
    stages.evaluate(run_dir, data_dir=data_dir, log=partial(print, flush=True))
    folders = [folder for folder in (run_dir, run_dir / stages.PRETRAINED) if (folder / "metrics.jsonl").exists()]
    trained_by = f"jaxinterp train {name}"
    seconds = sum(line["seconds"] for folder in folders for line in read_lines(folder / "metrics.jsonl", trained_by))
    found = gather([run_dir])
    took = summarize({"train_minutes": [seconds / 60], "train_flops": [budget(run)]})
    write_results(
        file, replace(found, metrics={**found.metrics, **took}, headline=False, fingerprint=config_fingerprint(run))
    )
