"""Self-contained HTML reports of headline numbers, text, figures and tables."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from jaxinterp.files import write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure as MatplotlibFigure


@dataclass(frozen=True)
class Picture:
    """A PNG with its caption, alternative text, and largest display width in CSS pixels."""

    png: bytes
    caption: str
    alt: str
    width: int = 1000

    @property
    def uri(self) -> str:
        """The PNG as a data URI."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")


@dataclass(frozen=True)
class Table:
    """Rows of text under a header; all columns but the first are aligned as numbers."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""


@dataclass(frozen=True)
class Section:
    """A titled part of a page: paragraphs, then pictures, then tables."""

    title: str
    text: Sequence[str] = ()
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()


@dataclass(frozen=True)
class Page:
    """A report. `tiles`: headline name → number as text; `exact`: the exactness statement, in a line."""

    title: str
    subtitle: str
    exact: str
    tiles: Mapping[str, str] = field(default_factory=dict)
    sections: Sequence[Section] = ()


def picture(figure: "MatplotlibFigure", caption: str, alt: str, width: int = 1000, dpi: int = 144) -> Picture:
    """Render a matplotlib figure as a Picture, at a resolution in pixels per inch, without a display."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, bbox_inches="tight", facecolor="white")
    return Picture(buffer.getvalue(), caption, alt, width)


def fragment(table: Table, pictures: Sequence[Picture] = ()) -> str:
    """Return a table and pictures as HTML for a notebook, without a page around it; every text is escaped.

    Example:
        >>> fragment(Table(("a", "b"), [("<", "1")]))
        '<table><tr><th>a</th><th>b</th></tr><tr><td>&lt;</td><td>1</td></tr></table>'
    """

    def line(tag: str, cells: Sequence[str]) -> str:
        return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"

    images = "".join(f'<img src="{p.uri}" alt="{escape(p.alt)}" style="max-width:{p.width}px">' for p in pictures)
    caption = f"<caption>{escape(table.caption)}</caption>" if table.caption else ""
    return f"<table>{caption}{line('th', table.header)}{''.join(line('td', row) for row in table.rows)}</table>{images}"


def render(page: Page) -> str:
    """Return the page as HTML; every text is escaped.

    Example:
        >>> "a &lt; b" in render(Page("t", "a < b", ""))
        True
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("jaxinterp.figures", "templates")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html").render(page=page)


def write(page: Page, path: Path) -> None:
    """Write the page to a file atomically."""
    write_text(path, render(page))
