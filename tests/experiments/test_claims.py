"""The papers' claims: each rule can hold and fail, budgets are matched, and the committed table is of the results."""

import json
from dataclasses import replace
from importlib import import_module

import pytest

from experiments import claims
from experiments.claims import CLAIMS, CODA, CODED, PLAIN, RESNET, RESULTS, TAYLOR, TUNED
from jaxinterp.app.evidence import Evidence, as_json, budget, config_fingerprint, stem, table
from jaxinterp.app.registry import runs
from jaxinterp.app.results import Metric, read_results, write_results
from jaxinterp.errors import ConfigError
from jaxinterp.recipe.run_folder import read_lines

# One number for each label of a row, in order: the first of each makes it hold, the others fail by one condition each.
RULES = {
    "coda-accuracy": ((0.78, 0.80), (0.77, 0.80)),
    "coda-localization": ((0.8, 0.7, 0.65), (0.8, 0.7, 0.66), (0.8, 0.8, 0.65)),
    "coda-removal": ((0.9, 0.8), (0.8, 0.8)),
    "coda-temperature": ((0.8, 0.79, 0.3, 0.7), (0.8, 0.81, 0.3, 0.7), (0.8, 0.79, 0.3, 0.3)),
    "coda-hybrid": ((0.8, 0.7, 0.5, 0.4), (0.8, 0.7, 0.4, 0.5), (0.7, 0.7, 0.5, 0.4)),
    "dlgn-conv": ((0.7, 0.6, 0.836), (0.7, 0.6, 0.834)),
    "dlgn-resnet": ((0.7, 0.6, 0.836), (0.7, 0.6, 0.834)),
    "gates-learning": ((0.5, 0.6, 0.7, 0.1), (0.5, 0.7, 0.6, 0.9), (0.7, 0.6, 0.8, 0.9)),
    "gates-permuted": ((0.58, 0.6), (0.56, 0.6)),
    "values-of-ones": ((0.58, 0.6), (0.56, 0.6)),
    "npk-gates": ((0.4, 0.5), (0.5, 0.4)),
    "npk-gates-conv": ((0.4, 0.5), (0.5, 0.4)),
    "ntk-rate": ((-0.46, -0.54), (-0.44, -0.5), (-0.5, -0.56)),
    "coded-accuracy": ((0.86, 0.86), (0.85, 0.86)),
    "coded-classifiers": ((0.86, 0.66, 0.9), (0.86, 0.64, 0.1), (0.84, 0.66, 0.9)),
    "coded-decoding": ((0.3, 0.5, 0.6, 0.7, 0.71), (0.3, 0.6, 0.5, 0.7, 0.71), (0.3, 0.5, 0.6, 0.7, 0.73)),
    "coded-removals": ((0.8, 0.8, 0.77), (0.8, 0.79, 0.7), (0.8, 0.8, 0.79)),
    "taylor-accuracy": ((0.78, 0.80), (0.77, 0.80)),
    "taylor-orders": ((0.1, 0.1, 0.1, 0.76, 0.8), (0.1, 0.1, 0.8, 0.74, 0.8)),
    "distilled-references": ((0.96, 0.95), (0.96, 0.96)),
    "box-separability": ((1.0, 2.0, 1.0, 2.0), (1.0, 2.0, 2.0, 1.0), (2.0, 1.0, 1.0, 2.0)),
    "box-rotation": ((0.9, 0.895, 0.3), (0.9, 0.88, 0.3)),
    "box-alexnet": ((0.1, 0.0, 0.0, 0.0, 0.2), (0.2, 0.3, 0.3, 0.3, 0.1)),
}


@pytest.mark.parametrize("name", CLAIMS)
def test_a_rule_can_hold_and_fail(name: str) -> None:
    claim, (holding, *failing) = CLAIMS[name], RULES[name]
    for numbers, holds in [(holding, True), *((numbers, False) for numbers in failing)]:
        shown = {label: Metric(3, x, 0.0) for label, x in zip(claim.shown, numbers, strict=True)}
        assert claim.holds(shown) is holds, numbers


@pytest.mark.parametrize("group", [(CODA, RESNET, TAYLOR), (CODED, PLAIN)])
def test_what_is_compared_is_trained_with_equal_flops(group: tuple[str, ...]) -> None:
    spent = [budget(runs()[name].run) for name in group]
    assert max(spent) / min(spent) < 1.08


def test_learning_rates_are_those_that_tuning_found() -> None:
    file = RESULTS / "claims" / "tuning.json"
    trials = json.loads(file.read_text(encoding="utf-8"))["trials"]
    assert set(trials) == set(TUNED)
    for name, trial in trials.items():
        accuracies = trial["accuracies"]
        assert set(accuracies) == {str(rate) for rate in claims.RATES}
        assert trial["fingerprint"] == config_fingerprint(claims.trial(name, 1.0)), name
        chosen = getattr(import_module(f"experiments.{name.split('/')[0]}"), TUNED[name])
        assert str(chosen) == max(accuracies, key=accuracies.__getitem__), name
        assert runs()[name].run.optim.learning_rate == chosen


def test_the_committed_table_is_of_the_committed_results() -> None:
    written = json.loads((RESULTS / "claims.json").read_text(encoding="utf-8"))
    assert written == json.loads(as_json(table(CLAIMS, claims.METRICS, Evidence.read(RESULTS, CLAIMS.values()))))
    assert len(written["rows"]) >= 15
    keys = {"paper", "claim", "source", "theirs", "ours", "command", "budget", "verdict"}
    assert all(keys <= one.keys() and all(one[key] for key in keys) for one in written["rows"])


def test_committed_seeds_were_trained_as_their_runs_are_now() -> None:
    for path in sorted((RESULTS / "claims").glob("*-seed-*.json")):
        found = read_results(path)
        (seed,) = found.seeds
        assert path.stem == stem(found.run, seed)
        assert not found.overrides, path
        assert found.fingerprint == config_fingerprint(runs()[found.run].run), path
        assert found.metrics["train_flops"].mean == budget(runs()[found.run].run), path


def test_a_row_is_run_seed_by_seed_and_what_is_there_is_left(tmp_path, capsys) -> None:
    options = ["--results", str(tmp_path / "results"), "--runs", str(tmp_path / "runs"), "--smoke"]
    claims.main(["run", "dlgn-conv", "--seeds", "1", *options])
    files = sorted(path.name for path in (tmp_path / "results" / "claims").iterdir())
    assert files == ["gated-cifar10-laptop-conv-dlgn-seed-1.json", "gated-cifar10-laptop-conv-dnn-seed-1.json"]
    found = read_results(tmp_path / "results" / "claims" / files[0])
    assert (found.run, found.seeds, found.headline) == (claims.DLGN, (1,), False)
    assert 0 < found.metrics["train_minutes"].mean < 5
    said = capsys.readouterr().out
    assert "gated/cifar10-laptop-conv-dlgn, seed 1 (2 of 2)" in said
    assert said.splitlines()[-1].startswith("dlgn-conv: no verdict")
    # apart from those of real runs, which would not go on from them
    assert all(folder.name.endswith("-smoke") for folder in (tmp_path / "runs").iterdir())
    claims.main(["run", "dlgn-conv", "--seeds", "1", *options])
    assert capsys.readouterr().out.count("is there") == 2
    with pytest.raises(SystemExit):  # of another configuration than the run's own: it does not count
        claims.main(["table", "--results", str(tmp_path / "results")])
    assert f"{files[0]}: got another configuration" in capsys.readouterr().err
    found = replace(found, fingerprint=config_fingerprint(runs()[claims.DLGN].run))
    write_results(tmp_path / "counts" / "claims" / files[0], found)
    assert (
        Evidence.read(tmp_path / "counts", ()).seeds[claims.DLGN][1]["test_accuracy"]
        == found.metrics["test_accuracy"].mean
    )


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("ROW", ["run", "coda-acuracy"]),
        ("npk_theorem.py", ["run", "ntk-rate"]),
        ("--results", ["run", "dlgn-conv", "--smoke"]),
        ("--results", ["table", "--results", "nowhere"]),
        ("--seeds", ["run", "dlgn-conv", "--seeds", "x"]),
    ],
)
def test_what_cannot_be_run_is_one_line(field, words, capsys) -> None:
    with pytest.raises(SystemExit) as end:
        claims.main(words)
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert field in line


def test_an_unknown_kind_of_network_is_not_tuned(tmp_path) -> None:
    with pytest.raises(ConfigError, match="RUN"):
        claims.Tune(("coda/mnist",), results=tmp_path)()


def test_tuning_measures_every_rate_on_held_out_images_and_keeps_other_trials(tmp_path, monkeypatch) -> None:
    name, tiny = "gated/digits-relu", {"model": {"width": 8, "depth": 1}, "train": {"epochs": 2, "val_fraction": 0.1}}
    monkeypatch.setattr(claims, "TUNED", {name: "RATE"})
    monkeypatch.setattr(claims, "TRIAL", tiny)
    monkeypatch.setattr(claims, "RATES", (1e-6, 0.01, 1e30))
    file = tmp_path / "claims" / "tuning.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"trials": {"another": {"accuracies": {}}}}), encoding="utf-8")
    claims.main(["tune", name, "--folder", str(tmp_path / "runs"), "--results", str(tmp_path)])
    trials = json.loads(file.read_text(encoding="utf-8"))["trials"]
    assert set(trials) == {"another", name}
    accuracies = trials[name]["accuracies"]
    assert accuracies["0.01"] > accuracies["1e-06"]
    assert accuracies["1e+30"] == 0.0  # it diverges
    last = read_lines(tmp_path / "runs" / "gated-digits-relu-0.01" / "metrics.jsonl", "tune")[-1]
    assert accuracies["0.01"] == pytest.approx(last["val_accuracy"])
    assert trials[name]["fingerprint"] == config_fingerprint(claims.trial(name, 1.0))
