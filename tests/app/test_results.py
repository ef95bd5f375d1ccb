import json
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"metrics": {"a": {"n": 1}}, "seeds": [0]}'])
def test_a_damaged_results_file_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"bad\.json"):
        read_results(path)
