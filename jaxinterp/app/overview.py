"""Trained networks of several families side by side: one page, a table first, and one explorer for each network."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from jaxinterp.explain.decompose import decompose
from jaxinterp.explain.methods import OURS
from jaxinterp.figures.curves import method_style
from jaxinterp.figures.explorer import Explorable, Maps
from jaxinterp.figures.html import Cell, Link, MapTable, Page, Section, Table, picture
from jaxinterp.figures.maps import panel
from jaxinterp.recipe.explored import explored
from jaxinterp.recipe.family import TrainedRun
from jaxinterp.recipe.page import small, top_maps

HEADER = (
    *("network", "test accuracy", "parameters", "largest relative residual", "curvature", "discrepancy"),
    "explanation of one image, all classes, ms",
)
EXACT = ("relative_residual", "curvature", "discrepancy")
REPEATS, SHOWN = 3, 3  # timed calls, and images on the common page
Row = tuple[str, ...]


@dataclass(frozen=True)
class Seen:
    """What the page shows of a network.

    Attributes:
        name: of the run.
        family: of the network, in words.
        row: cells under `HEADER`.
        text: a line about it.
        explorable: its images, exact maps, and other methods.
        png: its picture, as a file.
        page: the page of its explorer, relative to the common one.
    """

    name: str
    family: str
    row: Row
    text: str
    explorable: Explorable
    png: bytes
    page: str

    @property
    def stem(self) -> str:
        """The name as a file name."""
        return self.name.replace("/", "-")


def summarize(
    found: TrainedRun[Any],
    images: Float[np.ndarray, "n h w c"],
    labels: Int[np.ndarray, " n"],
    accuracy: float,
    text: str,
    methods: Sequence[str] = (),
) -> Seen:
    """Explain some images by a network.

    Args:
        found: the network.
        images: in [0, 1]; the first few stand on the common page.
        labels: of the images.
        accuracy: of the network on the test images.
        text: a line about it.
        methods: names of `methods.catalogue`, whose maps of the likeliest class stand beside the exact one, each with
            its cosine to that; if empty the exact maps of the three likeliest classes are shown.
    """
    net = found.explainable
    content = explored(net, images, found.classes, labels.astype(int), methods=methods, levels=False)
    exact = content.maps[0]
    parts, times = decompose(net, images, exact.targets), []
    for _ in range(REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(decompose(net, images, exact.targets).contributions)
        times.append(time.perf_counter() - start)
    largest = {name: float(np.abs(np.asarray(getattr(parts, name))).max()) for name in EXACT}
    milliseconds = f"{1e3 * np.median(times) / len(images):.1f}"
    row = found.name, f"{accuracy:.2%}", f"{found.parameters:,}", *(small(largest, k, ".0e") for k in EXACT)
    stem = found.name.replace("/", "-")
    png = _drawn(content, found, methods)
    return Seen(found.name, found.family.title, (*row, milliseconds), text, content, png, f"{stem}.html")


def _drawn(content: Explorable, found: TrainedRun[Any], methods: Sequence[str]) -> bytes:
    """Draw the first images and their maps as a PNG."""
    assert content.images is not None and content.labels is not None  # noqa: PT018
    some = slice(SHOWN)
    names = [f"label {found.classes[label]}" for label in content.labels[some]]
    images, logits = content.images[some], content.logits[some]
    size = images.shape[1:3]
    if not methods:
        order = np.argsort(-logits, axis=1, kind="stable")[:, :3]
        maps = np.stack([_of(content.maps[0], k, size) for k in order.T], axis=1)
        return picture(top_maps(found.explainable, images, names, logits, found.classes, maps), "", "").png
    titles, maps = zip(*_columns(content, size), strict=True)
    rows = [list(row) for row in zip(*titles, strict=True)]
    return picture(panel(images, np.stack(maps, axis=1), rows, names, "map"), "", "").png


def _of(part: Maps, k: Int[np.ndarray, " n"], size: tuple[int, int]) -> Float[np.ndarray, "n h w"]:
    """Return the first images' maps of the classes k, enlarged to the images."""
    count = len(k)
    place = (part.targets[:count] == k[:, None]).argmax(1)
    values = part.values[np.arange(count), place]
    rows, columns = ((np.arange(n) + 0.5) * values.shape[1 + i] // n for i, n in enumerate(size))
    return values[:, rows.astype(int)][:, :, columns.astype(int)]


def _columns(content: Explorable, size: tuple[int, int]) -> Iterator[tuple[list[str], Float[np.ndarray, "n h w"]]]:
    """Return for every method the titles and maps of the first images' likeliest classes."""
    best = content.logits[:SHOWN].argmax(1)
    true = _of(content.maps[0], best, size)
    for part in content.maps:
        own = _of(part, best, size)
        titles = [f"{content.classes[k]}: exact" for k in best]
        if part.method != OURS:
            lengths = np.linalg.norm(own, axis=(1, 2)) * np.linalg.norm(true, axis=(1, 2))
            cosines = (own * true).sum((1, 2)) / np.where(lengths > 0, lengths, 1)
            titles = [f"{method_style(part.method)[0]}\ncos {cosine:.2f}" for cosine in cosines]
        yield titles, own


def explorer_page(seen: Seen) -> Page:
    """Compose the page of one network's explorer."""
    exact = "Exact: contributions and the constant sum to the logit; maps of other methods are approximations."
    more = Section("All networks", ["Back to the table of all networks."], links=[Link("All networks", "report.html")])
    return Page(f"{seen.family}: {seen.name}", seen.text, exact, sections=[more], explorer=seen.explorable)


def compose(seen: Sequence[Seen], further: Sequence[Section] = (), folder: Path | None = None) -> Page:
    """Compose one page: the table, what all networks see in the same images, then each network.

    Args:
        seen: the networks.
        further: sections that follow the table of the networks.
        folder: of the page, for links to the runs' own reports in it.
    """
    rows = list[list[str | Link]]()
    for one in seen:
        rows.append([Link(one.name, one.page), *one.row[1:], *_report(one, folder)])
    linked = any(len(row) > len(HEADER) for row in rows)
    header = [*HEADER, *(["all measures"] if linked else [])]
    padded = [[*row, *[""] * (len(header) - len(row))] for row in rows]
    text = "A row a network; its name leads to a page on which its contributions can be explored."
    return Page(
        title="Networks that can be read",
        subtitle=f"{len(seen)} networks of five families, each taken apart exactly",
        exact="Exact: each network's contributions, and its constant if it has one, sum to the logit; the residual is "
        "what they miss of it. Curvature 0 proves that the network is affine at the images once its coefficients are "
        "held constant; discrepancy 0 that holding them changes no logit. Accuracy and time are measured; maps of "
        "other methods are approximations.",
        sections=[
            Section("All networks", [text], tables=[Table(header, padded)]),
            *_together(seen),
            *further,
            *(_alone(one) for one in seen),
        ],
    )


def _report(one: Seen, folder: Path | None) -> list[Link]:
    """Return a link to the run's own report, if it has one in the folder."""
    own = f"{one.name.split('/')[0]}/report.html"
    return [Link("report", own)] if "/" in one.name and folder is not None and (folder / own).exists() else []


def _read(content: Explorable, i: int) -> str:
    """Say what an image is and how it is read."""
    k, label = int(content.logits[i].argmax()), -1 if content.labels is None else int(content.labels[i])
    p = "" if content.probabilities is None else f" with p {content.probabilities[i, k]:.2f}"
    return f"a {content.classes[label]}, read as {content.classes[k]}{p}"


def _together(seen: Sequence[Seen]) -> list[Section]:
    """Draw the networks' exact maps of the same images beside one another, a row an image."""
    sections, groups = list[Section](), dict[tuple[Any, ...], list[Seen]]()
    for one in seen:
        groups.setdefault(_same(one.explorable), []).append(one)
    for networks in groups.values():
        first = networks[0].explorable
        if len(networks) < 2 or first.images is None or first.labels is None:
            continue
        size, rows = first.images.shape[1:3], list[list[Cell]]()
        for i in range(min(SHOWN, len(first))):
            what = first.classes[int(first.labels[i])]
            row = [Cell(f"a {what}", image=first.images[i], alt=f"a {what}")]
            for one in networks:
                content = one.explorable
                k = int(content.logits[i].argmax())
                own = _of(content.maps[0], content.logits[: i + 1].argmax(1), size)[i]
                p = "" if content.probabilities is None else f" p {content.probabilities[i, k]:.2f}"
                alt = f"Exact map of {one.family} for {_read(content, i)}"
                row.append(Cell(f"{one.family}\n{content.classes[k]}{p}", map=own, alt=alt))
            rows.append(row)
        table = MapTable(rows, "Each map has its own scale.", "The same images by all networks", "map", 140)
        title = f"The same images by {len(networks)} networks, {size[0]}×{size[1]} pixels"
        text = "What speaks for and against the class that each network reads, exactly; a row an image."
        sections.append(Section(title, [text], [table]))
    return sections


def _same(content: Explorable) -> tuple[Any, ...]:
    """Return what is equal of explorers of the same images."""
    images = content.images
    return () if images is None else (images.shape, float(images.sum()))


def _alone(one: Seen) -> Section:
    """Draw a network's maps of the first images, and the way to its explorer."""
    content = one.explorable
    assert content.images is not None
    size, rows = content.images.shape[1:3], [list[Cell]() for _ in range(min(SHOWN, len(content)))]
    drawn = list(_columns(content, size))
    if len(drawn) == 1:
        order = np.argsort(-content.logits[:SHOWN], axis=1, kind="stable")[:, :3]
        drawn = [([content.classes[k] for k in ks], _of(content.maps[0], ks, size)) for ks in order.T]
    for i, row in enumerate(rows):
        said = _read(content, i)
        row.append(Cell(said, image=content.images[i], alt=said))
        row += [Cell(names[i], map=maps[i], alt=f"{names[i]}, of {said}".replace("\n", ", ")) for names, maps in drawn]
    alt = f"Images and their maps by {one.family}: {', '.join(_read(content, i) for i in range(len(rows)))}"
    table = MapTable(rows, "", alt, "map", 140)
    return Section(f"{one.family}: {one.name}", [one.text], [table], links=[Link("Explore it", one.page)])
