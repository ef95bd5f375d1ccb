"""The programs in README and docs run, and their pictures are there."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def snippets() -> list[str]:
    return re.findall(r"```python\n(.*?)```", "".join(page.read_text(encoding="utf-8") for page in PAGES), re.DOTALL)


@pytest.mark.parametrize("snippet", snippets())
def test_snippets_run_and_end_with_a_residual(snippet: str) -> None:
    ast.parse(snippet)
    ran = subprocess.run([sys.executable, "-c", snippet], capture_output=True, text=True, cwd=ROOT, check=True)
    assert float(ran.stdout.split()[-1]) < 1e-5


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pictures_and_links_of_a_page_are_there(page: Path) -> None:
    for image, link in re.findall(r"(!?)\[[^\]]*\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / link).exists(), link
        if image:
            with Image.open(page.parent / link) as picture:
                assert picture.format == "PNG"
