"""The programs in README and docs run, and their pictures are there."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

import jaxinterp
from jaxinterp import attribute, metrics

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
BUILT = {"_build", "reference"}  # written by `make docs`
FOLDERS = sorted(path for path in DOCS.iterdir() if path.is_dir() and path.name not in BUILT)
PAGES = [ROOT / "README.md", *(page for folder in (DOCS, *FOLDERS) for page in sorted(folder.glob("*.md")))]


def programs(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


ALL_IN_TURN = """
import json, sys
for i, program in enumerate(json.load(sys.stdin)):
    names = {"__name__": "__main__"}
    exec(compile(program, f"program {i}", "exec"), names)
    print("\\f")
"""
"""Each with no names of another; one process, because most of a short program's time is what it imports."""


@pytest.mark.parametrize("page", [page for page in PAGES if programs(page)], ids=named)
def test_programs_of_a_page_run_and_end_with_a_residual(page: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", ALL_IN_TURN], input=json.dumps(programs(page)), capture_output=True, text=True, cwd=ROOT
    )
    assert ran.returncode == 0, ran.stderr
    *outputs, rest = ran.stdout.split("\f\n")
    assert (len(outputs), rest) == (len(programs(page)), "")
    for output in outputs:
        assert float(output.split()[-1]) < 1e-5


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_pictures_and_links_of_a_page_are_there(page: Path) -> None:
    for image, link in re.findall(r"(!?)\[[^\]]*\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / link).exists(), link
        if image:
            with Image.open(page.parent / link) as picture:
                assert picture.format == "PNG"


def test_every_method_and_metric_has_a_page() -> None:
    place = DOCS / "_ext" / "catalogue.py"
    spec = importlib.util.spec_from_file_location("catalogue", place)
    assert spec is not None
    assert spec.loader is not None
    catalogue = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(catalogue)
    for room, entries in ((attribute, catalogue.METHODS), (metrics, catalogue.METRICS)):
        assert set(entries) == {name for name in room.__all__ if not isinstance(getattr(room, name), type)}
        assert all(entry.group and entry.cost and entry.use for entry in entries.values())


def test_the_citation_is_of_this_version() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {jaxinterp.__version__}\n" in citation
    assert citation.count("arXiv:") == 5


@pytest.mark.parametrize("room", [attribute, metrics], ids=["attribute", "metrics"])
def test_every_method_and_metric_has_a_row_in_the_table_of_features(room: ModuleType) -> None:
    lines = (DOCS / "features.md").read_text(encoding="utf-8").splitlines()
    rows = [line.split(" | ") for line in lines if line.startswith("| ")]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row[0])}
    functions = {name for name in room.__all__ if not isinstance(getattr(room, name), type)}
    assert functions <= named
    assert named <= {*attribute.__all__, *metrics.__all__}
    assert {len(row) for row in rows} == {8}
    lacking = [row for row in rows if row[1] == "–"]
    assert all(row[1] == "✓" for row in rows if row not in lacking and row[1] != "jaxinterp")
    assert lacking
    assert all("✓" in row[2] + "".join(row[3:]) for row in lacking)


def test_every_method_and_metric_is_explained() -> None:
    page = (DOCS / "attribution.md").read_text(encoding="utf-8")
    helpers = {"sample_grids", "tile_grid", "grid_pointing_scores", "removal_counts", "removal_ranks"}
    for room in (attribute, metrics):
        functions = {name for name in room.__all__ if not isinstance(getattr(room, name), type)}
        assert not {name for name in functions - helpers if not re.search(rf"`{name}\b", page)}
