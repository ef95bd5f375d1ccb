"""The explorer of an HTML page: contributions of images that a reader can look into, pixel by pixel.

What the page needs is data; it adds up, ranks and compares by itself. Arrays are packed as integers whose sums are kept
(`packing.quantize`), within a budget of bytes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Int

from jaxinterp.checks import require
from jaxinterp.figures.html import Page, frame, write
from jaxinterp.figures.packing import SMALL, Bits, Chunks, picture_uri, quantize, script_json

EXACT = "decomposition", "decompose"
"""Names of the method whose maps and bias sum to the logits; others leave out the output at their baseline."""
BUDGET = 4_500_000
"""Characters that the data of a page may take; the page itself takes 300 kB."""
LONGEST = 112
"""Cells along a side of a map; of a larger map squares of pixels are summed."""


@dataclass(frozen=True)
class Maps:
    """The contributions of one method at one layer.

    Attributes:
        method: its name, such as "integrated_gradients"; one of `EXACT` of the decomposition.
        layer: name of the layer.
        targets: the classes k, (n, T).
        values: contributions summed over channels, (n, T, H', W').
        constants: the bias, or the output at the baseline, (n, T); None of a method that does not claim completeness.
    """

    method: str
    layer: str
    targets: Int[np.ndarray, "n t"]
    values: Float[np.ndarray, "n t h w"]
    constants: Float[np.ndarray, "n t"] | None = None

    def of_likeliest(self, logits: Float[np.ndarray, "n classes"], count: int) -> "Maps":
        """Return the maps of the targets with the largest logits."""
        if self.targets.shape[1] <= count:
            return self
        own = np.take_along_axis(logits, self.targets, 1)
        best = np.argsort(-own, axis=1, kind="stable")[:, :count]
        rows = np.arange(len(best))[:, None]
        constants = None if self.constants is None else self.constants[rows, best]
        return replace(self, targets=self.targets[rows, best], values=self.values[rows, best], constants=constants)

    def summed(self, side: int) -> "Maps":
        """Return the maps with squares of `side` × `side` pixels summed; the rest at the ends by themselves."""
        starts = [np.arange(0, size, side) for size in self.values.shape[2:]]
        values = np.add.reduceat(np.add.reduceat(self.values, starts[0], axis=2), starts[1], axis=3)
        return replace(self, values=values)


@dataclass(frozen=True)
class Panel:
    """A family's own reading of the images, beside their maps.

    Attributes:
        kind: which view of the page shows it, see `templates/page.js`.
        title: heading.
        text: what is seen, in a line or two.
        values: JSON values; arrays among them are packed, and `Pixels` become pictures.
    """

    kind: str
    title: str
    text: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Pixels:
    """Pictures in [0, 1], (n, H, W, C) with 1 or 3 channels, of which the page makes one sheet."""

    values: Float[np.ndarray, "n h w c"]


@dataclass(frozen=True)
class Explorable:
    """Everything that can be explored of some images.

    Attributes:
        classes: names of the outputs.
        logits: (n, classes), NaN of outputs that are not known.
        probabilities: (n, classes); None where they are not known.
        maps: of every method and layer; the first are shown at first.
        images: in [0, 1], (n, H, W, 1 or 3); None where they are not known.
        labels: (n,), −1 where unknown; None for none.
        names: of the images, such as file names; none if empty.
        panels: the family's own readings.
        bias: what the bias of the decomposition is, in words, such as "a constant"; empty where nothing more is known.
        notes: said below, such as what was left out.
        title: heading.
        every: whether `classes` are all outputs, so that the largest logit is what the network reads.
    """

    classes: Sequence[str]
    logits: Float[np.ndarray, "n classes"]
    maps: Sequence[Maps]
    probabilities: Float[np.ndarray, "n classes"] | None = None
    images: Float[np.ndarray, "_ h w c"] | None = None
    labels: Int[np.ndarray, " _"] | None = None
    names: Sequence[str] = ()
    panels: Sequence[Panel] = ()
    bias: str = ""
    notes: Sequence[str] = ()
    title: str = "What speaks for and against each class"
    every: bool = True
    MAX_IMAGES: ClassVar[int] = 60

    def __post_init__(self) -> None:
        """Check that the parts are of the same images and classes, and that maps can be added up."""
        count = len(self.logits)
        require(self.maps, "maps", "none", "at least one method")
        for part in self.maps:
            fits = len(part.values) == len(part.targets) == count
            require(fits, "maps", f"{len(part.values)} images of {part.method}", f"{count}, as logits")
            known = part.targets.size == 0 or int(part.targets.max()) < len(self.classes)
            require(known, "classes", f"{len(self.classes)} names", "a name for every target")
            finite = bool(np.isfinite(part.values).all())
            require(finite, "maps", f"NaN or infinity of {part.method}", "finite contributions")
            finite = part.constants is None or bool(np.isfinite(part.constants).all())
            require(finite, "maps", f"NaN or infinity among the constants of {part.method}", "finite constants")
        for name in ("logits", "probabilities"):
            given, wide = getattr(self, name), (count, len(self.classes))
            fits = given is None or given.shape == wide
            require(fits, name, f"shape {None if fits else given.shape}", f"{wide}, a column a class")
        for name in ("images", "labels"):
            given = getattr(self, name)
            require(given is None or len(given) == count, name, 0 if given is None else len(given), str(count))
        most = -1 if self.labels is None else int(np.max(self.labels, initial=-1))
        require(most < len(self.classes), "labels", most, f"less than the {len(self.classes)} classes")
        require(len(self.names) in (0, count), "names", len(self.names), f"{count} or none")

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.logits)

    @property
    def text(self) -> str:
        """Say what the first maps are, and what can be chosen and read."""
        first, several = self.maps[0], max(part.targets.shape[1] for part in self.maps) > 1
        what = f"a logit{', or the difference of two,' if several else ''}"
        if first.method in EXACT:
            bias = f"a bias, which no cell explains{f': {self.bias}' if self.bias else ''}"
            said = f"Exact maps split {what} into contributions of cells, for the class and against it, and {bias}."
            others = any(part.method not in EXACT for part in self.maps)
            said += " Maps of other methods need not sum to it." if others else ""
        elif first.constants is not None:
            baseline = ", and the output at the baseline" if first.constants.any() else ""
            said = f"Each map splits {what} into contributions of its cells, for the class and against it{baseline}; "
            said += "what these miss is the residual."
        else:
            said = "Each map scores its cells for the class and against it; the scores need not sum to the logit."
        layers = {part.layer for part in self.maps if part.method == first.method}
        offered = {
            "an image": len(self) > 1,
            "a class": several,
            "another against it": several,
            "a layer": len(layers) > 1,
            "a method": any(part.method != first.method for part in self.maps),
        }
        choices = [name for name, possible in offered.items() if possible]
        joined = " and ".join([", ".join(choices[:-1]), choices[-1]] if len(choices) > 1 else choices)
        start = f"Choose {joined}; point" if choices else "Point"
        return f"{said} {start} at a cell or brush a region to read its part."

    def packed(self, chunks: Chunks, budget: int = BUDGET) -> dict[str, Any]:
        """Return JSON values for the page, with the arrays among `chunks`; what does not fit is left out, and said."""
        for plan in self._plans():
            tried = Chunks(list(chunks.texts))
            value = plan._pack(tried)
            size = sum(map(len, tried.texts)) + len(script_json(value))  # pictures are part of the JSON
            if size <= budget:
                break
        else:
            value["notes"].append(f"The data take {size / 1e6:.1f} MB, more than the {budget / 1e6:.1f} MB of a page.")
        chunks.texts[:] = tried.texts
        return value

    def _plans(self) -> Iterator["_Plan"]:
        """Return what to keep, from all of it to less and less."""
        side = max(1, -(-max(self.maps[0].values.shape[2:]) // LONGEST))
        exact, other = (max(p.targets.shape[1] for p in self.maps), 4)
        yield _Plan(self, 16, exact, exact, side)
        yield _Plan(self, 8, exact, other, side)
        yield _Plan(self, 8, exact, 2, side)
        while exact > 3:
            exact = max(3, exact // 2)
            yield _Plan(self, 8, exact, 2, side)
        while side < max(self.maps[0].values.shape[2:]) // 8:
            side *= 2
            yield _Plan(self, 8, 3, 1, side)

    def write(self, path: str | Path, title: str = "", subtitle: str = "") -> None:
        """Write the explorer as a page of its own."""
        write(Page(title or self.title, subtitle, "", explorer=self), Path(path))

    def _repr_html_(self) -> str:
        """Show the explorer in a notebook."""
        return frame(Page("", "", "", explorer=self), self.title)


@dataclass(frozen=True)
class _Plan:
    """What is kept: bits of other methods, classes of the exact maps and of the others, pixels along a cell."""

    content: Explorable
    bits: Bits
    exact: int
    other: int
    side: int

    def _pack(self, chunks: Chunks) -> dict[str, Any]:
        content, notes = self.content, list(self.content.notes)
        sets = []
        for part in content.maps:
            first = part.method == content.maps[0].method
            kept = self.exact if first else self.other
            if part.targets.shape[1] > kept:
                whose = "" if first else f"of {part.method.replace('_', ' ')} "
                notes.append(f"Maps {whose}at {part.layer} are kept of the {kept} likeliest classes.")
                part = part.of_likeliest(content.logits, kept)
            if self.side > 1 and max(part.values.shape[2:]) > LONGEST // max(1, self.side // 2):
                part = part.summed(self.side)
                notes.append(f"A cell of the maps at {part.layer} is {self.side}×{self.side} pixels, summed.")
            sets.append(_packed_maps(part, 16 if first else self.bits, chunks))
        if self.bits == 8:
            notes.append("Maps of other methods are kept in 253 steps each; their sums are exact.")
        count = len(content)
        labels = [-1] * count if content.labels is None else [int(label) for label in content.labels]
        names = list(content.names) or [""] * count
        pictures = [""] * count if content.images is None else [picture_uri(image) for image in content.images]
        return {
            "title": content.title,
            "classes": list(content.classes),
            "images": [
                {"source": source, "label": label, "name": name}
                for source, label, name in zip(pictures, labels, names, strict=True)
            ],
            "size": list(content.maps[0].values.shape[2:] if content.images is None else content.images.shape[1:3]),
            "logits": chunks.put(content.logits.astype(np.float64)),
            "probabilities": None
            if content.probabilities is None
            else chunks.put(content.probabilities.astype(np.float32)),
            "complete": content.every and bool(np.isfinite(content.logits).all()),
            "sets": sets,
            "panels": [
                {"kind": panel.kind, "title": panel.title, "text": panel.text, "values": _json(panel.values, chunks)}
                for panel in content.panels
            ],
            "notes": list(dict.fromkeys(notes)),
        }


def _packed_maps(part: Maps, bits: Bits, chunks: Chunks) -> dict[str, Any]:
    values, scale, total = quantize(part.values, bits)
    return {
        "method": part.method,
        "exact": part.method in EXACT,
        "layer": part.layer,
        "targets": chunks.put(part.targets.astype(np.uint16)),
        "values": chunks.put(values),
        "scale": chunks.put(scale),
        "total": chunks.put(total),
        "constants": None if part.constants is None else chunks.put(np.asarray(part.constants, np.float64)),
    }


def _json(value: Any, chunks: Chunks) -> Any:
    """Return JSON values in which arrays are packed, and pictures are sheets."""
    if isinstance(value, Pixels):
        return sheet(value.values)
    if isinstance(value, Mapping):
        return {key: _json(one, chunks) for key, one in value.items()}
    if isinstance(value, np.ndarray):
        return chunks.put(value)
    if isinstance(value, list | tuple):
        return [_json(one, chunks) for one in value]
    return value


def sheet(images: Float[np.ndarray, "n h w c"]) -> dict[str, Any]:
    """Return many small images as one picture, below one another, with their size."""
    n, height, width, channels = images.shape
    return {
        "source": picture_uri(images.reshape(n * height, width, channels), max(height, width) <= SMALL),
        "count": n,
        "height": height,
        "width": width,
    }
