import io
import re
from html.parser import HTMLParser
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from jaxinterp.figures.html import Page, Picture, Section, Table, picture, render, write


class Links(HTMLParser):
    """Everything a browser would fetch, and the text of the page."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]

    def handle_data(self, data: str) -> None:
        self.text += data


def a_picture() -> Picture:
    figure = Figure(figsize=(2, 1))
    figure.subplots().plot([0, 1], [0, 1])
    return picture(figure, "a line", "a rising line", width=300, dpi=50)


def test_page_loads_nothing_and_escapes_text() -> None:
    page = Page(
        "coda/<x>",
        "sub & title",
        "exact: Σ",
        {"test accuracy": "97.1 %"},
        [Section("maps", ["a < b"], [a_picture()], [Table(["name", "ours"], [["<script>", "1"]], "numbers")])],
    )
    html = render(page)
    links = Links()
    links.feed(html)
    fetched = [link for link in links.fetched if not link.startswith("#")]
    assert len(fetched) == 1
    assert all(link.startswith("data:image/png;base64,") for link in fetched)
    assert not re.search(r"url\(|@import|http", html)
    assert "<script>" not in html
    for text in ("coda/<x>", "sub & title", "97.1 %", "a < b", "<script>", "numbers", "a line"):
        assert text in links.text


def test_picture_is_a_png_of_its_size() -> None:
    image = Image.open(io.BytesIO(a_picture().png))
    assert image.format == "PNG"
    assert 60 <= image.width <= 110
    assert a_picture().uri.startswith("data:image/png;base64,iVBOR")


def test_write_leaves_one_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "run" / "report.html"
    write(Page("one", "", ""), path)
    write(Page("two", "", ""), path)
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    assert "<h1>two</h1>" in path.read_text(encoding="utf-8")
