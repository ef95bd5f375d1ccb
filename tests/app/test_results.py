import json
from dataclasses import replace
from pathlib import Path

import pytest

from jaxinterp.app.publish import results_file
from jaxinterp.app.registry import family_of, runs
from jaxinterp.app.results import Metric, Results, read_results, summarize, write_results
from jaxinterp.errors import ConfigError


def results(**metrics: Metric) -> Results:
    return Results("coda/x", "jaxinterp train coda/x", "a machine", {"jax": "1"}, (0, 1), metrics)


def test_summarize_is_mean_and_sample_deviation() -> None:
    summary = summarize({"a": [1.0, 2.0, 3.0], "b": [5.0]}, {"b": 6.0})
    assert summary == {"a": Metric(3, 2.0, 1.0), "b": Metric(1, 5.0, 0.0, 6.0)}
    with pytest.raises(ConfigError, match="a: got no number"):
        summarize({"a": []})


def test_results_files_have_the_published_form_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "coda_x.json"
    written = results(test_accuracy=Metric(2, 0.97, 0.01), other=Metric(2, 1.0, 0.5, 0.9))
    write_results(path, written)
    content = json.loads(path.read_text())
    assert list(content) == ["run", "command", "machine", "versions", "seeds", "metrics", "headline"]
    assert content["seeds"] == [0, 1]
    assert content["metrics"]["test_accuracy"] == {"n": 2, "mean": 0.97, "std": 0.01}
    assert content["metrics"]["other"] == {"n": 2, "mean": 1.0, "std": 0.5, "paper": 0.9}
    assert read_results(path) == written
    assert [p.name for p in path.parent.iterdir()] == ["coda_x.json"]


def test_results_of_overrides_are_no_headline(tmp_path: Path) -> None:
    changed = replace(results(), headline=False, overrides=("train.epochs=1",))
    write_results(tmp_path / "a.json", changed)
    assert json.loads((tmp_path / "a.json").read_text())["overrides"] == ["train.epochs=1"]
    assert read_results(tmp_path / "a.json") == changed
    assert changed.label == "`coda/x` with overrides"
    with pytest.raises(ConfigError, match=r"^headline: got True, expected False with train\.epochs=1$"):
        replace(changed, headline=True)


def test_results_of_overrides_have_a_file_of_their_own_that_is_no_headlines(tmp_path: Path) -> None:
    run = runs()["coda/digits"].run
    assert results_file(tmp_path, "coda/digits", run.with_seed(7)) == tmp_path / "coda_digits.json"
    warm = run.replace(model={"temperature": 7.0}, train={"epochs": 4}, data={"distilled": "a/b.npz"})
    file = results_file(tmp_path, "coda/digits", warm)
    assert file.name == "coda_digits-model.temperature=7.0-data.distilled=a_b.npz-train.epochs=4.json"
    smokes = [family_of(run).smoke(one).replace(train={"epochs": k}) for k, one in ((1, run), (2, run))]
    names = {results_file(tmp_path, "coda/digits", one).name for one in smokes}
    assert len(names) == 2
    assert all(len(name) < 150 for name in names)
    write_results(file, results())
    with pytest.raises(ConfigError, match=r"4\.json: got results of overrides, expected another folder"):
        results_file(tmp_path, "coda/digits", warm)
    write_results(file, replace(results(), headline=False))
    assert results_file(tmp_path, "coda/digits", warm) == file
    write_results(tmp_path / "coda_digits.json", results())
    assert results_file(tmp_path, "coda/digits", run).exists()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"metrics": {"a": {"n": 1}}, "seeds": [0]}'])
def test_a_damaged_results_file_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"bad\.json"):
        read_results(path)
