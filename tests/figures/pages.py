"""A small page with everything on it that can be explored, of a linear classifier whose maps are known."""

import numpy as np

from jaxinterp.figures import charts
from jaxinterp.figures.explorer import Explorable, Maps, Panel, Pixels
from jaxinterp.figures.html import Cell, Link, MapTable, Page, Section, Table
from jaxinterp.figures.packing import packed

SIDE, IMAGES, CLASSES = 8, 7, 3
NAMES = ("zero", "one", "two")


def explorable(names: tuple[str, ...] = NAMES, files: tuple[str, ...] = (), panels: bool = True) -> Explorable:
    """f = Σ w x + b, whose contributions w x sum to f − b; the third image is misread."""
    rng = np.random.default_rng(0)
    x = rng.uniform(size=(IMAGES, SIDE, SIDE, 1)).astype(np.float32)
    w, b = rng.normal(size=(CLASSES, SIDE, SIDE)), np.array([0.5, -1.25, 0.125])
    exact = w[None] * x[:, None, :, :, 0]
    logits = exact.sum((2, 3)) + b[None]
    p = np.exp(logits - logits.max(1, keepdims=True))
    labels = logits.argmax(1)
    labels[2] = (labels[2] + 1) % CLASSES
    targets, constants = np.tile(np.arange(CLASSES), (IMAGES, 1)), np.tile(b, (IMAGES, 1))
    coarse = exact.reshape(IMAGES, CLASSES, 4, 2, 4, 2).sum((3, 5))
    few = np.sort(np.argsort(-logits, axis=1)[:, :2], axis=1)
    noisy = exact[np.arange(IMAGES)[:, None], few] + 0.3 * rng.normal(size=(IMAGES, 2, SIDE, SIDE))
    maps = [
        Maps("decomposition", "input", targets, exact, constants),
        Maps("decomposition", "layer_1", targets, coarse, constants),
        Maps("gradient", "input", few, noisy),
    ]
    own = _panels(rng, logits) if panels else []
    return Explorable(names, logits, maps, p / p.sum(1, keepdims=True), x, labels, files, own)


def _panels(rng: np.random.Generator, logits: np.ndarray) -> list[Panel]:
    terms = rng.normal(size=(IMAGES, CLASSES, 4))
    terms[:, :, 0] += logits - terms.sum(-1)
    maps = rng.normal(size=(IMAGES, 3, SIDE, SIDE))
    pairs = {"pixels": rng.integers(0, SIDE, (IMAGES, 2, 2)), "maps": packed(rng.normal(size=(IMAGES, 2, SIDE, SIDE)))}
    shares = rng.normal(size=(2, 3))
    opened = rng.integers(0, 2, (IMAGES, 12)).astype(np.uint8)
    opened[1, 8:] = 0
    counts = np.stack([opened[:, :8].sum(1), opened[:, 8:].sum(1)], axis=1).astype(np.int32)
    counts[3, 1] = 100  # units that are not drawn count, too
    group = np.array([[(g + h) % 4 for h in range(4)] for g in range(4)])
    return [
        Panel("orders", "Orders", "text", {"terms": terms.astype(np.float32), "maps": packed(maps), "pairs": pairs}),
        Panel(
            "paths",
            "Paths",
            "text",
            {
                "energies": rng.uniform(size=(IMAGES, 2, 5)).astype(np.float32),
                "shares": rng.normal(size=(IMAGES, 2, 5)).astype(np.float32),
                "words": rng.integers(0, 2, (2, CLASSES, 5)).astype(np.uint8),
                "decoded": rng.integers(0, CLASSES, (IMAGES, 2)),
                "names": ["block 1", "block 2"],
            },
        ),
        Panel(
            "gates",
            "Gates",
            "text",
            {
                "open": opened,
                "counts": counts,
                "units": [8, 200],
                "sizes": [8, 4],
                "names": ["gate 0", "gate 1"],
                "columns": [8, 8],
                "inputs": SIDE**2,
                "connected": True,
            },
        ),
        Panel(
            "shares",
            "Deciding images",
            "text",
            {
                "pictures": Pixels(rng.uniform(size=(6, SIDE, SIDE, 1))),
                "index": np.arange(6, dtype=np.int32).reshape(2, 3),
                "share": shares,
                "rest": np.array([0.25, -0.5]),
                "constant": np.array([0.125, 0.125]),
                "target": np.array([1, 2], np.int32),
                "gain": np.array([10.0, 3.0]),
                "loss": np.array([-13.8, -1.0]),
                "captions": [f"a {i}" for i in range(6)],
                "output": "output",
                "what": "training images",
                "images": [2, 0],
                "names": ["a one", "a two"],
            },
        ),
        Panel(
            "orbit",
            "Orbit",
            "text",
            {
                "responses": packed(rng.normal(size=(IMAGES, 4, 6))),
                "products": group,
                "turned": Pixels(rng.uniform(size=(IMAGES * 4, SIDE, SIDE, 1))),
                "names": [f"element {g}" for g in range(4)],
                "count": IMAGES,
            },
        ),
    ]


def page(**given: tuple[str, ...]) -> Page:
    """Return a page with the explorer, every kind of chart, a table of maps, a table and a link."""
    content, f = explorable(**given), np.linspace(0, 1, 11)
    assert content.images is not None
    maps = content.maps[0].values[0]
    row = [Cell("an image", image=content.images[0]), *(Cell(f"map {k}", map=maps[k]) for k in range(2))]
    row.append(Cell("outlined", map=maps[2], outline=(0.0, 0.0, 0.5, 0.5)))
    history = [{"epoch": i, "loss": 10.0**-i, "test_accuracy": 0.5 + i / 10} for i in (1, 2, 3)]
    drawings = [
        charts.localization({"decomposition": [0.8, 0.9, 1.0], "gradient": [0.1, 0.2, 0.4]}, 9, "boxes"),
        charts.removal({"decomposition": 1 - f**4, "gradient": 1 - f}, f, "curves"),
        charts.residuals([1e-7, -2e-7, 0.0], "residuals"),
        *charts.training(history, "training"),
        charts.bars([1.0, 0.1, 0.01], "order", "energy", "bars", "energies by order", log=True),
        charts.matrix(np.eye(3), NAMES, NAMES, "row", "column", "matrix", "an identity"),
        MapTable([row], "maps", "a table of maps"),
    ]
    table = Table(["run", "accuracy"], [[Link("coda", "coda/report.html"), "97 %"]], "all runs")
    sections = [Section("Measured", ["text"], drawings), Section("All runs", tables=[table])]
    return Page("A linear reading", "of noise", "Exact.", {"test accuracy": "97 %"}, sections, content)
