"""Self-contained HTML reports of headline numbers, text, figures, tables and an explorer of contributions.

A page is one file that needs no network and no server. Charts are drawn in the browser by Observable Plot
(`templates/vendor`), so that their text is text, follows the theme and fits the width; maps are canvases.
"""

import base64
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from html import escape
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from jaxinterp.figures.packing import Chunks, compressed, picture_uri, quantize, script_json
from jaxinterp.files import write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure as MatplotlibFigure

LIBRARIES = {"d3": "d3.min.js", "plot": "plot.umd.min.js"}


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
class Chart:
    """A chart that the page draws: see `figures.charts` for its kinds.

    Attributes:
        values: JSON values, `kind` among them.
        caption: the line below.
        alt: what it says, for those who do not see it.
        width: largest display width in CSS pixels.
    """

    values: Mapping[str, Any]
    caption: str
    alt: str
    width: int = 760


Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Cell:
    """A picture of a table of maps, under its title.

    Attributes:
        title: lines of text.
        map: signed contributions, (H, W); None of an image.
        image: in [0, 1], (H, W, 1 or 3); None of a map.
        alt: what is seen.
        outline: top, left, bottom and right end of a box that is outlined, as shares of the map.
    """

    title: str
    map: Float[np.ndarray, "h w"] | None = None
    image: Float[np.ndarray, "h w c"] | None = None
    alt: str = ""
    outline: Box | None = None


@dataclass(frozen=True)
class MapTable:
    """Rows of images and maps, as wide as the page.

    Attributes:
        rows: of cells; all maps have one size.
        caption: the line below.
        alt: of the whole, its name as a file.
        scale: full color is the largest of the "row", of each "map", or of "all".
        cell: width in CSS pixels that a cell should have at least.
        width: largest display width in CSS pixels.
    """

    rows: Sequence[Sequence[Cell]]
    caption: str
    alt: str
    scale: Literal["row", "map", "all"] = "row"
    cell: int = 120
    width: int = 1200


@dataclass(frozen=True)
class Link:
    """Text that leads somewhere, relative to the page."""

    text: str
    href: str


Drawing = Picture | Chart | MapTable


@dataclass(frozen=True)
class Table:
    """Rows of text under a header; all columns but the first are aligned as numbers."""

    header: Sequence[str]
    rows: Sequence[Sequence[str | Link]]
    caption: str = ""

    @property
    def texts(self) -> list[list[str]]:
        """The rows as text, links by what they say."""
        return [[cell.text if isinstance(cell, Link) else cell for cell in row] for row in self.rows]


@dataclass(frozen=True)
class Section:
    """A titled part of a page: paragraphs, then links, figures and tables."""

    title: str
    text: Sequence[str] = ()
    pictures: Sequence[Drawing] = ()
    tables: Sequence[Table] = ()
    links: Sequence[Link] = ()


@runtime_checkable
class Explored(Protocol):
    """What can be explored, see `figures.explorer`."""

    @property
    def title(self) -> str:
        """Heading of the explorer."""

    @property
    def text(self) -> str:
        """What is shown, and what can be chosen."""

    def packed(self, chunks: Chunks) -> dict[str, Any]:
        """Return JSON values for the page, with the arrays among `chunks`."""


@dataclass(frozen=True)
class Page:
    """A report.

    Attributes:
        title: heading.
        subtitle: the line below it.
        exact: the exactness statement, in a line.
        tiles: headline name → number as text.
        sections: in order, after the explorer.
        explorer: what can be explored; None for none.
    """

    title: str
    subtitle: str
    exact: str
    tiles: Mapping[str, str] = field(default_factory=dict)
    sections: Sequence[Section] = ()
    explorer: Explored | None = None


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
    rows = "".join(line("td", row) for row in table.texts)
    return f"<table>{caption}{line('th', table.header)}{rows}</table>{images}"


def render(page: Page, bare: bool = False) -> str:
    """Return the page as HTML; every text is escaped.

    Args:
        page: its content.
        bare: without title and frame, as within a notebook.

    Example:
        >>> "a &lt; b" in render(Page("t", "a < b", ""))
        True
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("jaxinterp.figures", "templates")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    chunks, figures = Chunks(), list[dict[str, Any]]()
    explored = None if page.explorer is None else page.explorer.packed(chunks)
    sections = list[dict[str, Any]]()
    anchors = list[str]()
    if page.explorer is not None:
        sections.append(
            _section(Section(page.explorer.title, [page.explorer.text]), anchors, figures, chunks, explorer=True)
        )
    sections += [_section(section, anchors, figures, chunks) for section in page.sections]
    live = explored is not None or bool(figures)
    charted = explored is not None or any(figure["kind"] != "maps" for figure in figures)
    return environment.get_template("page.html").render(
        page=page,
        bare=bare,
        live=live,
        css=_markup("page.css"),
        js=_markup("page.js"),
        sections=sections,
        contents=[(section["anchor"], section["title"]) for section in sections],
        content=script_json({"explorer": explored, "figures": figures}),
        chunks=chunks.texts,
        libraries=[(name, _library(file)) for name, file in LIBRARIES.items()] if charted else [],
    )


def _section(
    section: Section, anchors: list[str], figures: list[dict[str, Any]], chunks: Chunks, explorer: bool = False
) -> dict[str, Any]:
    """Return what the template shows of a section; its live figures join the others."""
    shown = list[dict[str, Any]]()
    for drawing in section.pictures:
        uri = drawing.uri if isinstance(drawing, Picture) else ""
        shown.append({"uri": uri, "alt": drawing.alt, "caption": drawing.caption, "width": drawing.width})
        if not isinstance(drawing, Picture):
            shown[-1]["number"] = len(figures)
            figures.append(_live(drawing, chunks))
    anchor = re.sub(r"[^a-z0-9]+", "-", section.title.lower()).strip("-") or "section"
    anchors.append(anchor)
    if anchors.count(anchor) > 1:
        anchor += f"-{anchors.count(anchor)}"
    links = [(link.text, link.href) for link in section.links]
    return {
        "title": section.title,
        "anchor": anchor,
        "text": section.text,
        "links": links,
        "explorer": explorer,
        "pictures": shown,
        "tables": section.tables,
    }


def _live(drawing: Chart | MapTable, chunks: Chunks) -> dict[str, Any]:
    """Return the JSON values of a figure that the page draws."""
    if isinstance(drawing, Chart):
        return {**drawing.values, "name": drawing.alt, "alt": drawing.alt}
    maps, rows = list[np.ndarray](), list[dict[str, Any]]()
    for row in drawing.rows:
        cells = list[dict[str, Any]]()
        for cell in row:
            value: dict[str, Any] = {"title": cell.title, "alt": cell.alt or cell.title.replace("\n", ", ")}
            if cell.map is not None:
                value |= {"map": len(maps), "outline": cell.outline}
                maps.append(cell.map)
            elif cell.image is not None:
                value["source"] = picture_uri(cell.image)
            cells.append(value)
        rows.append({"cells": cells})
    packed: dict[str, Any] = {"values": None, "scale": None, "ratio": 1.0}
    if maps:
        values, scale, _ = quantize(np.stack(maps), 8)
        height, width = values.shape[1:]
        packed = {"values": chunks.put(values), "scale": chunks.put(scale), "ratio": height / width}
    shared = {"shared": drawing.scale, "cell": drawing.cell}
    return {"kind": "maps", "name": drawing.alt, "alt": drawing.alt, "rows": rows, **packed, **shared}


def _markup(file: str) -> Any:
    """Return a file of the templates as it is."""
    from markupsafe import Markup

    return Markup(_text(file))


@cache
def _text(file: str) -> str:
    return (resources.files("jaxinterp.figures") / "templates" / file).read_text(encoding="utf-8")


@cache
def _library(file: str) -> str:
    return compressed(_text(f"vendor/{file}").encode("utf-8"))


def frame(page: Page, title: str) -> str:
    """Return a page as a frame within a notebook's, where several do not get into each other's way."""
    source = escape(render(page, bare=True))
    return f'<iframe srcdoc="{source}" title="{escape(title)}" style="width:100%;height:900px;border:0"></iframe>'


def write(page: Page, path: Path) -> None:
    """Write the page to a file atomically."""
    write_text(path, render(page))
