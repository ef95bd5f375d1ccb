"""Report sections of gated networks: deciding training images, filters of gates, shared sub-networks."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxinterp.figures import charts
from jaxinterp.figures.explorer import Panel, Pixels
from jaxinterp.figures.html import Cell, MapTable, Section, Table
from jaxinterp.gated.architecture import gate_shapes
from jaxinterp.gated.paths import effective_filters
from jaxinterp.recipe.family import Report, TrainedRun

UNITS = 1024  # gates of a layer that are drawn
COLUMNS = 8  # training images beside a test image, and filters of a layer


def regression(report: Report) -> Section:
    """Return the accuracy of the NPK regression and of its value network, and the training images that decided."""
    metrics, deciding, train = report.results["metrics"], report.results["deciding"], report.trained.train_data
    images, labels, classes = report.images, report.labels, report.classes
    rows = list[list[Cell]]()
    for one in deciding:
        label, read = classes[int(labels[one["image"]])], classes[one["class"]]
        rows.append(
            [Cell(f"label {label},\nread {read}", image=images[one["image"]], alt=f"A {label}, read as {read}")]
        )
        for i, share in (*one["for"], *one["against"]):
            title = f"{classes[int(train.labels[i])]}: {share:+.3f}"
            rows[-1].append(
                Cell(title, image=train.images[i] / np.float32(train.maximum), alt=f"Training image, {title}")
            )
    caption = "Test images, and training images with their label and their share."
    table = [
        [str(one["image"]), classes[one["class"]]]
        + [f"{one[key]:.4f}" for key in ("prediction", "offset", "sum")]
        + [f"{one['prediction'] - one['offset'] - one['sum']:.0e}"]
        for one in deciding
    ]
    return Section(
        "Regression with the neural path kernel: which training images decided",
        [
            f"Kernel ridge regression with this network's gates, on {metrics['npk_images']:.0f} training images, reads "
            f"{metrics['npk_test_accuracy']:.2%} of {metrics['npk_test_images']:.0f} test images right; the value "
            f"network itself, of which {report.run.train.val_fraction:.0%} of the training images were held back, "
            f"{metrics['npk_value_network_accuracy']:.2%} of the same. A prediction of the regression is a sum over "
            "training images, so every image's share is known exactly: the four largest for the predicted class, then "
            "the four largest against it. Shares cancel: many images that look like the class add to it, and as many "
            "that look like it and are of another class take away, so that single shares can be larger than the "
            "prediction."
        ],
        [MapTable(rows, caption, "Deciding images", cell=90)],
        [Table(["test image", "class", "prediction", "bias", "sum of all shares", "residual"], table)],
    )


def open_gates(gates: Sequence[Bool[np.ndarray, "n ..."]], inputs: int, fully: bool) -> Panel:
    """Return which gates are open for each image; of a layer with many the first, the middle and the last among others.

    Args:
        gates: of every layer, (n, ...).
        inputs: entries of an image.
        fully: whether layers are fully connected, so that paths can be counted.
    """
    drawn, counts, names = list[np.ndarray](), list[np.ndarray](), list[str]()
    for i, gate in enumerate(gates):
        flat = gate.reshape(len(gate), -1)
        some = np.unique(np.linspace(0, flat.shape[1] - 1, min(flat.shape[1], UNITS)).astype(int))
        drawn.append(flat[:, some])
        counts.append(flat.sum(1))
        names.append(f"gate {i}" + (f" ({len(some)} units drawn)" if len(some) < flat.shape[1] else ""))
    return Panel(
        "gates",
        "Open gates",
        "A path from a pixel to an output is active where all its gates are open. A square is a unit; filled where it "
        "is open. Beside another image: what both share.",
        {
            "open": np.concatenate(drawn, axis=1).astype(np.uint8),
            "counts": np.stack(counts, axis=1).astype(np.int32),
            "units": [int(np.prod(gate.shape[1:])) for gate in gates],
            "sizes": [part.shape[1] for part in drawn],
            "names": names,
            "columns": [64] * len(gates),
            "inputs": inputs,
            "connected": fully,
        },
    )


def deciding(trained: TrainedRun[Any], rows: Int[np.ndarray, " n"], found: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """Return the training images that decided for those of these test images that the regression was asked about."""
    place = {int(row): i for i, row in enumerate(rows)}
    known, train = [one for one in found if one["image"] in place], trained.train_data
    if not known:
        return []
    most = max(len(one["for"]) + len(one["against"]) for one in known)
    index, share, used = np.zeros((len(known), most), np.int32), np.zeros((len(known), most)), list[int]()
    for i, one in enumerate(known):
        for j, (image, value) in enumerate([*one["for"], *one["against"]]):
            index[i, j], share[i, j] = len(used), value
            used.append(image)

    def each(name: str) -> Float[np.ndarray, " k"] | None:
        return np.array([one[name] for one in known], float) if all(name in one for one in known) else None

    total = each("sum")
    assert total is not None
    labels = [trained.classes[int(train.labels[image])] for image in used]
    panel = Panel(
        "shares",
        "The training images that decided",
        "Kernel ridge regression with this network's path kernel: a prediction is a sum of shares of all training "
        "images, known exactly. Those with the largest shares, for the class and against it.",
        {
            "pictures": Pixels(train.images[used] / np.float32(train.maximum)),
            "index": index,
            "share": share,
            "rest": total - share.sum(1),
            "constant": each("offset"),
            "target": np.array([one["class"] for one in known], np.int32),
            "gain": each("gain"),
            "loss": each("loss"),
            "captions": [f"a {label}" for label in labels],
            "output": "output of the regression",
            "what": "training images",
            "images": [place[one["image"]] for one in known],
            "names": [f"a {trained.classes[one['class']]}" for one in known],
        },
    )
    return [panel]


def filters(trained: TrainedRun[Any], chosen: Sequence[int]) -> Section:
    """Return what the chosen gates of a linear gating network look at in the image: filters of the largest norm."""
    shape, rows = trained.run.data.image_shape, list[list[Cell]]()
    shapes = gate_shapes(trained.run.model.layers, shape)
    for layer in chosen:

        def preactivation(x: Array, layer: int = layer) -> Array:
            return trained.network.apply(trained.variables, x, method="preactivations")[layer]

        units = int(np.prod(shapes[layer]))
        some = np.linspace(0, units - 1, min(units, 256)).astype(int)
        weights = np.asarray(effective_filters(preactivation, shape, some).weights)
        norms = np.linalg.norm(weights.reshape(len(some), -1), axis=1)
        best = np.argsort(-norms, kind="stable")[:COLUMNS]
        drawn = zip(some[best], weights[best].sum(-1), strict=True)
        rows.append([Cell(f"gate {layer},\nunit {unit}", map=one, alt=f"Filter of unit {unit}") for unit, one in drawn])
    summed = "Summed over colors, e" if shape[-1] > 1 else "E"
    return Section(
        "What the gates look at",
        [
            "Before each gate the gating network is affine in the image, whatever its depth, so that a gate is a "
            "half-space, and its filter can be read off exactly: those of the largest norm, among 256 units of a layer."
        ],
        [
            MapTable(
                rows,
                f"{summed}ach on its own scale: positive where light opens the gate, negative where it closes it.",
                "Gate filters",
                "map",
                90,
            )
        ],
    )


def overlaps(report: Report) -> Section:
    """Return the open sub-networks that classes share."""
    overlap = report.results["overlap"]
    drawn = [
        charts.matrix(
            matrix,
            report.classes,
            report.classes,
            "class",
            "class",
            f"Gate {i}; every layer has its own colors, from the least to the most.",
            f"Overlap of the classes' open sub-networks at gate {i}",
        )
        for i, matrix in enumerate(overlap)
    ]
    return Section(
        "Which sub-networks classes share",
        ["Mean over pairs of test images of the share of units that are open for both, class by class."],
        drawn,
    )
