import json
from dataclasses import replace
from pathlib import Path

import pytest

from experiments import update_readme as tables
from jaxinterp.app.results import Metric, Results, write_results
from jaxinterp.errors import ConfigError

ROOT = Path(__file__).parents[2]
HEADLINES, PATHS = tables.TABLES[:2]


def results(**metrics: Metric) -> Results:
    return Results("coda/x", "jaxinterp train coda/x", "a machine", {"jax": "1"}, (0, 1), metrics)


def test_the_headline_table_shows_spread_paper_and_best_baseline() -> None:
    found = results(
        test_accuracy=Metric(2, 0.9312, 0.002, 0.932),
        localization_3x3_median=Metric(2, 0.94, 0.01),
        localization_3x3_median_gradient=Metric(2, 0.14, 0.01),
        localization_3x3_median_grad_cam=Metric(2, 0.74, 0.01),
        completeness_residual=Metric(2, 1.2e-6, 1e-7),
    )
    row = tables.metrics_table(HEADLINES, [found]).splitlines()[-1]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells == ["`coda/x`", "93.12% ± 0.20% (paper 93.20%)", "0.940 ± 0.010", "1e-06", "0.740 (grad cam)", "2"]


def test_paths_have_a_table_where_they_were_measured() -> None:
    assert tables.metrics_table(PATHS, [results(test_accuracy=Metric(1, 0.5, 0.0))]) == ""
    found = results(classifier_precision=Metric(3, 0.95, 0.01), parameters_kept=Metric(3, 0.463, 0.0))
    header, _, row = tables.metrics_table(PATHS, [found]).splitlines()
    cells = dict(zip(*([c.strip() for c in line.strip("|").split("|")] for line in (header, row)), strict=True))
    assert cells["single-class classifiers: precision"] == "0.950 ± 0.010"
    assert cells["parameters kept"].startswith("46.3%")
    assert cells["recall"] == "–"


def test_audits_are_two_tables_the_best_on_average_first() -> None:
    def audit(name: str, **cosines: float) -> Results:
        metrics = {f"{method} cosine": Metric(1, value, 0.0) for method, value in cosines.items()}
        metrics |= {"deletion agreement cosine": Metric(1, -0.25, 0.0), "gradient seconds": Metric(1, 3.0, 0.0)}
        return replace(results(**metrics), run=f"audit of {name}", headline=False)

    found = [audit("a/x", gradient=0.5, lrp=0.75), audit("b/y", gradient=0.875)]
    methods, metrics = tables.audit_tables(found)
    head, _, *rows = methods.splitlines()
    assert head == "| method: cosine with the truth | `a/x` | `b/y` |"
    assert rows == ["| `lrp` | 0.75 | – |", "| `gradient` | 0.50 | 0.88 |"]
    assert metrics.splitlines()[2:] == ["| `deletion` | -0.25 | -0.25 |"]
    assert tables.measurements_table(found) == ""
    assert tables.audit_tables([results()]) == []


def test_rewrite_changes_only_what_stands_between_the_markers(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{tables.BEGIN}\nold\n{tables.END}\nafter\n")
    published = results(test_accuracy=Metric(1, 0.5, 0.0))
    write_results(tmp_path / "experiments/results/coda_x.json", published)
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
    assert "| benchmark | what | a CPU |\n" in text
    words = tables.SHOWN["coda"]["forward_vs_torch"]
    assert f"| `coda` | {words} | 12.3× as fast |" in text
    assert "fit seconds" not in text
    content = [tables.read_benchmark(path) for path in sorted(benchmark.parent.glob("*.json"))]
    assert tables.ratios_table(content, everything=True).splitlines() == [
        "| benchmark | what | a CPU | a GPU |",
        "|---|---|---|---|",
        "| `coda` | forward vs torch | 12.3× as fast | – |",
        "| `coda` | fit seconds | 2 s | – |",
        "| `npk` | forward vs torch | – | 12.3× as fast |",
        "| `npk` | fit seconds | – | 2 s |",
    ]
    assert not tables.rewrite(readme)
    benchmark.write_text("[]")
    with pytest.raises(ConfigError, match=r"coda-cpu\.json"):
        tables.rewrite(readme)


def test_markers_must_be_there_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("no markers")
    for arguments in ([str(readme)], []):
        with pytest.raises(SystemExit, match="2"):
            tables.main(arguments)
        assert capsys.readouterr().err.count("\n") == 1
    assert readme.read_text() == "no markers"


def test_the_committed_readme_is_up_to_date() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert tables.with_results(readme, tables.tables(ROOT)) == readme
    every = (ROOT / "experiments" / "results" / "README.md").read_text(encoding="utf-8")
    assert tables.with_results(every, tables.tables(ROOT, everything=True), tables.ALL) == every


def test_the_readme_has_headlines_and_the_results_folder_all(tmp_path: Path) -> None:
    folder = tmp_path / "experiments/results"
    for name, headline in (("a", True), ("b", False)):
        published = replace(results(test_accuracy=Metric(1, 0.5, 0.0)), run=name, headline=headline)
        write_results(folder / f"{name}.json", published)
    changed = {"headline": False, "overrides": ("train.epochs=1",)}
    write_results(folder / "a-1.json", replace(results(test_accuracy=Metric(1, 0.4, 0.0)), run="a", **changed))
    write_results(folder / "c.json", replace(results(slope=Metric(2, -0.5, 0.01)), run="c"))
    for path, begin in ((tmp_path / "README.md", tables.BEGIN), (folder / "README.md", tables.ALL)):
        path.write_text(f"{begin}\n{tables.END}\n")
        tables.rewrite(path)
    short, every = ((path / "README.md").read_text() for path in (tmp_path, folder))
    assert "`a`" in short
    assert "`b`" not in short
    assert "slope" not in short
    assert "overrides" not in short
    assert "| `b` | 50.00% | 2 |" in every
    assert "| `a` with overrides | 40.00% | 2 |" in every
    assert "| `c` | slope | -0.5 ± 0.01 | 2 |" in every
