"""From the results of runs to a verdict: a row's numbers, its seeds, and what its training takes."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jaxinterp.app.evidence import (
    Claim,
    Evidence,
    Published,
    best,
    budget,
    config_fingerprint,
    not_below,
    of,
    ratio,
    rising,
    row,
    stem,
    table,
)
from jaxinterp.app.registry import runs
from jaxinterp.app.results import Metric, Results, write_results
from jaxinterp.errors import ConfigError

OURS, THEIRS = "coda/cifar10-laptop", "gated/cifar10-laptop-resnet8-dnn"


def compared(points: float = 0.0) -> Claim:
    shown = {"ours": of(OURS), "theirs": of(THEIRS)}
    return Claim("a paper", "as good", "Table 1", "-", "not below", shown, not_below("ours", "theirs", points))


def accuracies(ours: tuple[float, ...], theirs: tuple[float, ...] = ()) -> Evidence:
    values = {OURS: ours, THEIRS: theirs}
    return Evidence(
        {
            run: {seed: {"test_accuracy": one, "train_minutes": 2.0} for seed, one in enumerate(of_run)}
            for run, of_run in values.items()
        }
    )


def test_a_row_shows_mean_and_deviation_and_its_rule_decides() -> None:
    close = row("close", compared(0.02), accuracies((0.80, 0.82, 0.84), (0.83, 0.84, 0.85)))
    assert close["ours"] == "ours 82.0% ± 2.0%; theirs 84.0% ± 1.0%"
    assert close["verdict"] == "holds"
    assert close["command"] == "python experiments/claims.py run close --results runs/claims"
    below = row("below", compared(0.02), accuracies((0.80, 0.82, 0.83), (0.83, 0.84, 0.85)))
    assert below["verdict"] == "does not hold at this scale"
    spread = (0.86, 0.87, 0.88)
    assert row("by just the deviation", compared(), accuracies((0.86,) * 3, spread))["verdict"] == "holds"
    assert row("by more", compared(), accuracies((0.85,) * 3, spread))["verdict"] == "does not hold at this scale"


def test_means_that_rise_do_so_from_each_to_the_next() -> None:
    numbers = {name: Metric(3, mean, 0.0) for name, mean in (("a", 0.1), ("b", 0.3), ("c", 0.2))}
    assert rising("a", "b")(numbers)
    assert rising("a", "c", "b")(numbers)
    assert not rising("a", "b", "c")(numbers)
    assert not rising("a", "a")(numbers)


def test_a_row_has_the_seeds_that_all_its_runs_have() -> None:
    part = row("part", compared(), accuracies((0.8, 0.1), (0.8,)))
    assert (part["verdict"], part["ours"], part["seeds"]) == ("holds; 1 of 3 seeds", "ours 80.0%; theirs 80.0%", 1)
    assert part["budget"].startswith(f"{OURS}: 1.7e+14 FLOP, 2 min; {THEIRS}: ")
    alone = row("alone", compared(), accuracies((0.8,)))
    assert (alone["verdict"], alone["ours"], alone["seeds"]) == ("not run yet", "-", 0)
    share = Claim("a paper", "most", "-", "-", "-", {"ratio": ratio(OURS, THEIRS)}, lambda shown: True)
    both = Evidence({OURS: {1: {"test_accuracy": 0.4}}, THEIRS: {0: {"test_accuracy": 0.5}, 1: {"test_accuracy": 0.8}}})
    assert both.measure(share)["ratio"] == Metric(1, 0.5, 0.0)


def test_the_table_names_numbers_of_its_rows() -> None:
    claims, names = (
        {"first": compared(), "second": compared()},
        {"accuracy": ("first", "ours"), "no": ("first", "theirs")},
    )
    content = table(claims, names, accuracies((0.8, 0.82), (0.9, 0.92)))
    assert [one["row"] for one in content["rows"]] == ["first", "second"]
    assert content["metrics"]["accuracy"] == {
        "n": 2,
        "mean": pytest.approx(0.81),
        "std": pytest.approx(0.02 / 2**0.5),
    }
    assert table(claims, names, accuracies((0.8, 0.82)))["metrics"] == {}


def test_published_results_are_shown_as_they_are() -> None:
    claim = Claim("a paper", "rises", "-", "-", "-", {"slope": Published("file", "slope", ".3f")}, lambda shown: True)
    found = row("published", claim, Evidence({}, {"file": {"slope": Metric(3, -0.5, 0.01)}}))
    assert (found["ours"], found["budget"]) == ("slope -0.500 ± 0.010", "nothing is trained")
    trained = {"accuracy": Published("file", "accuracy", run="coda/digits")}
    budgeted = row("trained", Claim("a paper", "rises", "-", "-", "-", trained, lambda shown: True), Evidence({}))
    assert re.fullmatch(r"coda/digits: \S+ FLOP, 1 min on 2 shared CPU cores", budgeted["budget"])
    assert row("published", claim, Evidence({}))["verdict"] == "not run yet"


def test_the_best_post_hoc_method_is_found_by_its_metric() -> None:
    numbers = {"localization": 0.9, "localization_gradient": 0.2, "localization_grad_cam": 0.5}
    assert best(OURS, "localization").value(numbers) == 0.5
    shown = {"own": of(OURS, "localization", ".3f"), "best": best(THEIRS, "localization")}
    claim = Claim("a paper", "better", "-", "-", "-", shown, rising("best", "own"))
    found = Evidence({OURS: {0: {**numbers, "train_minutes": 1.0}}, THEIRS: {0: {"train_minutes": 1.0}}})  # no grids
    assert found.measure(claim) == {"own": Metric(1, 0.9, 0.0), "best": None}
    assert row("grids", claim, found)["verdict"] == "not testable here: a seed has no best"


def results(seeds: tuple[int, ...] = (0,), **changed: Any) -> Results:
    metrics = {"test_accuracy": Metric(1, 0.8, 0.0), "train_minutes": Metric(1, 2.0, 0.0)}
    made = Results(OURS, "a command", "a machine", {}, seeds, metrics, headline=False)
    return replace(made, fingerprint=config_fingerprint(runs()[OURS].run), **changed)


def test_every_seeds_file_is_read(tmp_path: Path) -> None:
    for seed in (0, 2):
        write_results(tmp_path / "claims" / f"{stem(OURS, seed)}.json", results((seed,)))
    assert set(Evidence.read(tmp_path, ()).seeds[OURS]) == {0, 2}
    assert Evidence.read(tmp_path / "empty", ()).seeds == {}


@pytest.mark.parametrize(
    ("made", "got"),
    [
        (results((1,)), "results of coda-cifar10-laptop-seed-1"),
        (results(()), "results of no seed"),
        (results((0, 1)), "results of coda-cifar10-laptop-seed-0, coda-cifar10-laptop-seed-1"),
        (results(metrics={}), "no train_minutes"),
        (replace(results(), fingerprint="0"), "another configuration"),
        (replace(results(), run="coda/none"), "run: got coda/none, expected a named run"),
    ],
)
def test_a_seeds_file_that_is_not_what_its_name_says_is_an_error(tmp_path: Path, made: Results, got: str) -> None:
    file = tmp_path / "claims" / f"{stem(OURS, 0)}.json"
    write_results(file, made)
    with pytest.raises(ConfigError, match=f"{file}.*{got}"):
        Evidence.read(tmp_path, ())


def test_a_damaged_file_of_a_seed_is_named(tmp_path: Path) -> None:
    file = tmp_path / "claims" / f"{stem(OURS, 0)}.json"
    file.parent.mkdir()
    for content in (b"{", b"\xff\xfe", b"[]"):
        file.write_bytes(content)
        with pytest.raises(ConfigError, match=f"{file}: .*got .*, expected "):
            Evidence.read(tmp_path, ())


def test_a_budget_is_what_a_closed_form_counts() -> None:
    run = runs()["gated/digits-relu"].run.replace(model={"width": 8, "depth": 1}, train={"epochs": 2, "batch_size": 16})
    dense = 64 * 8 + 8 * 10  # multiply-adds an image: forward, weights' gradients, and the second layer's inputs'
    images = round(1437 * 0.9) // 16 * 16 * 2
    assert budget(run) == 2 * images * (2 * dense + 8 * 10)
