"""Trained networks of several families side by side: one page, and one table."""

import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int
from matplotlib.figure import Figure

from jaxinterp.explain.decompose import decompose
from jaxinterp.explain.methods import catalogue
from jaxinterp.figures.curves import method_style
from jaxinterp.figures.html import Page, Section, Table, picture
from jaxinterp.figures.maps import panel
from jaxinterp.recipe.family import TrainedRun
from jaxinterp.recipe.page import likeliest, small, top_maps

HEADER = (
    *("network", "test accuracy", "parameters", "largest relative residual", "curvature", "discrepancy"),
    "explanation of one image, ms",
)
EXACT = ("relative_residual", "curvature", "discrepancy")
REPEATS = 3
Row = tuple[str, ...]


def summarize(
    found: TrainedRun[Any],
    images: Float[np.ndarray, "n h w c"],
    labels: Int[np.ndarray, " n"],
    accuracy: float,
    text: str,
    methods: Sequence[str] = (),
) -> tuple[Section, Row]:
    """Return what the page shows of a network: maps of some images, and the row under `HEADER`.

    Args:
        found: the network.
        images: in [0, 1].
        labels: of the images.
        accuracy: of the network on the test images.
        text: a line about it.
        methods: names of `methods.catalogue`, whose maps of the likeliest class stand beside the exact one, each with
            its cosine to that; if empty the exact maps of the three likeliest classes are shown.
    """
    net, size = found.explainable, images.shape[1:3]
    names = [f"label {found.classes[label]}" for label in labels]
    logits = np.asarray(net.logits(images))
    targets = likeliest(logits, 1 if methods else 3)
    parts, times = decompose(net, images, targets), []
    for _ in range(REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(decompose(net, images, targets).contributions)
        times.append(time.perf_counter() - start)
    maps = np.asarray(parts.maps(size))
    figure: Figure
    if methods:
        titles = [[f"{found.classes[k]}: exact"] for k in targets[:, 0]]
        columns = [maps]
        for name in methods:
            columns.append(np.asarray(catalogue(net)[name](net, images, targets).maps(size)))
            for row, own, true in zip(titles, columns[-1], maps, strict=True):
                lengths = float(np.linalg.norm(own) * np.linalg.norm(true))
                row.append(f"{method_style(name)[0]}\ncos {float(np.vdot(own, true)) / (lengths or 1):.2f}")
        figure = panel(images, np.concatenate(columns, 1), titles, names, "map")
    else:
        figure = top_maps(net, images, names, logits, found.classes, maps)
    largest = {name: float(np.abs(np.asarray(getattr(parts, name))).max()) for name in EXACT}
    numbers = [small(largest, name, ".0e") for name in EXACT]
    milliseconds = f"{1e3 * np.median(times) / len(images):.1f}"
    alt = "Test images and their contribution maps, blue against and red for the class"
    section = Section(
        f"{found.family.title}: {found.name}", [text], [picture(figure, "", alt, 495 + 100 * len(methods))]
    )
    return section, (found.name, f"{accuracy:.2%}", f"{found.parameters:,}", *numbers, milliseconds)


def compose(sections: Sequence[Section], rows: Sequence[Row]) -> Page:
    """Compose one page: what each network sees in the same images, then one table."""
    return Page(
        title="Networks that can be read",
        subtitle=f"{len(rows)} networks of five families, each taken apart exactly",
        exact="Exact: in every row the contributions of the pixels sum to the logit minus what the family leaves out, "
        "to the residual of the table. Curvature 0 says that the network held is affine, discrepancy 0 that it is the "
        "network. Accuracy and time are measurements; maps of other methods are approximations.",
        sections=[*sections, Section("Side by side", tables=[Table(HEADER, rows)])],
    )
