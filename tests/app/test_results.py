import json
from dataclasses import replace
from pathlib import Path

import pytest

from experiments import update_readme as command
from jaxinterp.app import results as tables
from jaxinterp.errors import ConfigError

ROOT = Path(__file__).parents[2]


def results(**metrics: tables.Metric) -> tables.Results:
    return tables.Results("coda/x", "jaxinterp train coda/x", "a machine", {"jax": "1"}, (0, 1), metrics)


def test_summarize_is_mean_and_sample_deviation() -> None:
    summary = tables.summarize({"a": [1.0, 2.0, 3.0], "b": [5.0]}, {"b": 6.0})
    assert summary == {"a": tables.Metric(3, 2.0, 1.0), "b": tables.Metric(1, 5.0, 0.0, 6.0)}
    with pytest.raises(ConfigError, match="metric a"):
        tables.summarize({"a": []})


def test_results_files_have_the_published_form_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "coda_x.json"
    written = results(test_accuracy=tables.Metric(2, 0.97, 0.01), other=tables.Metric(2, 1.0, 0.5, 0.9))
    tables.write_results(path, written)
    content = json.loads(path.read_text())
    assert list(content) == ["run", "command", "machine", "versions", "seeds", "metrics", "headline"]
    assert content["seeds"] == [0, 1]
    assert content["metrics"]["test_accuracy"] == {"n": 2, "mean": 0.97, "std": 0.01}
    assert content["metrics"]["other"] == {"n": 2, "mean": 1.0, "std": 0.5, "paper": 0.9}
    assert tables.read_results(path) == written
    assert [p.name for p in path.parent.iterdir()] == ["coda_x.json"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"metrics": {"a": {"n": 1}}, "seeds": [0]}'])
def test_a_damaged_results_file_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"bad\.json: not a results file"):
        tables.read_results(path)


def test_results_table_shows_spread_paper_and_best_baseline() -> None:
    row = tables.results_table(
        [
            results(
                test_accuracy=tables.Metric(2, 0.9312, 0.002, 0.932),
                localization_3x3_median=tables.Metric(2, 0.94, 0.01),
                localization_3x3_median_gradient=tables.Metric(2, 0.14, 0.01),
                localization_3x3_median_grad_cam=tables.Metric(2, 0.74, 0.01),
                completeness_residual=tables.Metric(2, 1.2e-6, 1e-7),
            )
        ]
    ).splitlines()[-1]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells == ["`coda/x`", "93.12% ± 0.20% (paper 93.20%)", "0.940 ± 0.010", "1e-06", "0.740 (grad cam)", "2"]


def test_paths_have_a_table_where_they_were_measured() -> None:
    assert tables.paths_table([results(test_accuracy=tables.Metric(1, 0.5, 0.0))]) == ""
    found = results(classifier_precision=tables.Metric(3, 0.95, 0.01), parameters_kept=tables.Metric(3, 0.463, 0.0))
    header, _, row = tables.paths_table([found]).splitlines()
    cells = dict(zip(*([c.strip() for c in line.strip("|").split("|")] for line in (header, row)), strict=True))
    assert cells["classifiers of one class: precision"] == "0.950 ± 0.010"
    assert cells["parameters kept"].startswith("46.3%")
    assert cells["recall"] == "–"


def test_rewrite_changes_only_what_stands_between_the_markers(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{tables.BEGIN}\nold\n{tables.END}\nafter\n")
    published = results(test_accuracy=tables.Metric(1, 0.5, 0.0))
    tables.write_results(tmp_path / "experiments/results/coda_x.json", published)
    benchmark = tmp_path / "benchmarks/results/coda-cpu.json"
    benchmark.parent.mkdir(parents=True)
    one = {"benchmark": "coda", "machine": "a CPU", "ratios": {"forward_vs_torch": 12.345, "fit_seconds": 2}}
    benchmark.write_text(json.dumps(one))
    benchmark.with_name("npk-gpu.json").write_text(json.dumps(one | {"benchmark": "npk", "machine": "a GPU"}))
    assert tables.rewrite(readme)
    text = readme.read_text()
    assert text.startswith(f"before\n{tables.BEGIN}\n| run |")
    assert text.endswith(f"{tables.END}\nafter\n")
    assert "| `coda/x` | 50.00% |" in text
    assert "| benchmark | a CPU | a GPU |" in text
    assert "| `coda` | forward vs torch 12.3× as fast; fit seconds 2 s | – |" in text
    assert not tables.rewrite(readme)
    benchmark.write_text("[]")
    with pytest.raises(ConfigError, match=r"coda-cpu\.json"):
        tables.rewrite(readme)


def test_markers_must_be_there_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("no markers")
    assert command.main([str(readme)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert readme.read_text() == "no markers"
    assert command.main([]) == 2


def test_the_committed_readme_is_up_to_date() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert tables.with_results(readme, tables.readme_block(ROOT)) == readme
    every = (ROOT / "experiments" / "results" / "README.md").read_text(encoding="utf-8")
    assert tables.with_results(every, tables.readme_block(ROOT, everything=True), tables.ALL) == every


def test_the_readme_has_headlines_and_the_results_folder_all(tmp_path: Path) -> None:
    folder = tmp_path / "experiments/results"
    for name, headline in (("a", True), ("b", False)):
        published = replace(results(test_accuracy=tables.Metric(1, 0.5, 0.0)), run=name, headline=headline)
        tables.write_results(folder / f"{name}.json", published)
    tables.write_results(folder / "c.json", replace(results(slope=tables.Metric(2, -0.5, 0.01)), run="c"))
    for path, begin in ((tmp_path / "README.md", tables.BEGIN), (folder / "README.md", tables.ALL)):
        path.write_text(f"{begin}\n{tables.END}\n")
        tables.rewrite(path)
    short, every = ((path / "README.md").read_text() for path in (tmp_path, folder))
    assert "`a`" in short
    assert "`b`" not in short
    assert "slope" not in short
    assert "| `b` | 50.00% | 2 |" in every
    assert "| `c` | slope | -0.5 ± 0.01 | 2 |" in every
