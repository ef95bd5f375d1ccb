"""Report sections of polynomials: orders, their maps at two levels, pairs of pixels, coefficients."""

from dataclasses import replace
from decimal import Decimal
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jaxinterp.explain.series import contributions, orders, pairs
from jaxinterp.figures import charts
from jaxinterp.figures.explorer import Panel
from jaxinterp.figures.html import Box, MapTable, Section, Table
from jaxinterp.figures.maps import panel
from jaxinterp.figures.packing import packed
from jaxinterp.recipe.family import Reading, Report, TrainedRun
from jaxinterp.recipe.page import first_of_each_class, maps_beside
from jaxinterp.taylor.network import TaylorNet, expansion_point

MAX_MAPS = 5  # orders drawn for each image
MARKED = 6  # pixels whose pairs can be looked at


def sections(report: Report) -> list[Section]:
    """Return the sections of a polynomial's report."""
    counts = [_counts(report)] if report.results["counts"] else []
    return [_orders(report), _maps(report), _pairs(report), *counts]


def _orders(report: Report) -> Section:
    results = report.results["orders"]
    accuracy = np.array(results["accuracy"])
    low_orders = [m for m in (1, 2, 3, 5) if m < len(accuracy)]
    low_accuracies = ", ".join(f"{accuracy[m]:.2%}" for m in low_orders)
    text = (
        f"The network is a polynomial of degree {report.trained.network.degree} in the pixels. "
        "About the expansion point x0 each logit is the sum of its orders, f = f_0 + f_1 + f_2 + …, exactly. "
        f"The series up to orders {', '.join(map(str, low_orders))} classifies {low_accuracies} of the images "
        f"correctly, up to order {len(accuracy) - 1} {accuracy[-1]:.2%}."
    )
    caption = "Root mean square of each order over images and classes, less the mean over classes."
    energy = charts.bars(results["energy"], "order", "energy (logits)", caption, "Energy by order", log=True)
    curve = charts.lines(
        {"accuracy": (np.arange(len(accuracy)), accuracy)},
        "orders up to",
        "accuracy",
        "Accuracy of the series truncated after each order.",
        f"Accuracy of the series by order, {accuracy[-1]:.2%} in the end",
        rules=[(1 / len(report.classes), "chance")],
        range=[0, 1],
        width=520,
    )
    return Section("The series, order by order", [text], [energy, curve])


def _maps(report: Report) -> Section:
    """Draw the contributions of pixels, and of blocks of the middle level, to each of the lowest orders."""
    model, net = report.trained.network, report.explainable
    indices = first_of_each_class(report.labels, 4)
    images, logits = report.images[indices], report.logits[indices]
    top, x0 = logits.argmax(1), expansion_point(net.variables)
    shown = net, images, report.labels[indices], logits, report.classes
    degrees: dict[str | None, int] = {None: model.degree}
    if isinstance(model, TaylorNet) and len(model.levels) > 1:
        middle = len(model.levels) // 2 - 1
        degrees[f"level_{middle}"] = replace(model, levels=model.levels[middle + 1 :]).degree
    pictures = list[MapTable]()
    for level, degree in degrees.items():
        max_order = min(MAX_MAPS, degree)
        parts = contributions(net, images, top, x0=x0, max_order=max_order, layer=level)
        each = np.asarray(parts.contributions)[:, 0]
        maps, titles = each.sum(-1), _titles(each.reshape(*each.shape[:2], -1).sum(-1))
        where = "the pixels" if level is None else f"the entries of {level.replace('_', ' ')}, summed over channels,"
        terms = orders(net, images, top, x0=x0, max_order=max_order, layer=level).contributions[:, 0]
        missed = np.abs(np.asarray(terms)[:, 1:] - each.reshape(*each.shape[:2], -1).sum(-1))
        residual = missed.max() / float(jnp.abs(terms).max())
        caption = (
            f"Contributions of {where} to the lowest orders of the predicted class's logit; each map has its own "
            f"scale, and its sum is the number above it. Largest relative residual: {residual:.1e}."
        )
        alt = f"Contribution maps by order, of {'pixels' if level is None else level.replace('_', ' ')}"
        pictures.append(maps_beside(*shown, maps, titles, caption, alt, scale="map", width=130 * (max_order + 1)))
    return Section(
        "Maps of single orders",
        [
            "Order 1 is the effect of single pixels, order 2 of pairs of pixels, order m of m pixels together; Euler's "
            "identity splits every order over the pixels. All orders' maps sum to the decomposition above. "
            "At a coarser level the same logit is a polynomial of lower degree in fewer variables."
        ],
        pictures,
    )


def _titles(values: Float[np.ndarray, "n orders"]) -> list[list[str]]:
    return [[f"order {m}: {v:+.2g}" for m, v in enumerate(row, 1)] for row in values]


def reading(trained: TrainedRun[Any], image: Float[np.ndarray, "h w c"], top: Int[np.ndarray, " t"]) -> Reading:
    """Read one image: the orders of every class's logit, and maps of the lowest for the `top` classes."""
    model, net, names = trained.network, trained.explainable, trained.classes
    x0, x, most = expansion_point(net.variables), image[None], trained.run.model.orders
    read = orders(net, x, x0=x0, max_order=min(most, model.degree))
    series, remainder = np.asarray(read.contributions)[0], np.asarray(read.residual)[0]
    numbers = [
        {"class": name, "orders": series[k].tolist(), "remainder": float(remainder[k])} for k, name in enumerate(names)
    ]
    max_order = min(MAX_MAPS, most, model.degree)
    each = np.asarray(contributions(net, x, top[None], x0=x0, max_order=max_order).contributions)[0]
    rows, labels = np.repeat(x, len(top), axis=0), [f"as {names[k]}" for k in top]
    figure = panel(rows, each.sum(-1), _titles(series[top, 1 : max_order + 1]), labels, scale="map")
    return Reading("orders", numbers, figure)


def explored_panel(
    trained: TrainedRun[Any], images: Float[np.ndarray, "n h w c"], targets: Int[np.ndarray, " n"]
) -> Panel:
    """Return the orders of every logit, maps of the lowest of the read class, and pairs with its strongest pixels."""
    net, degree, labels = trained.explainable, trained.network.degree, targets.astype(int)
    x0, most = expansion_point(net.variables), min(trained.run.model.orders, trained.network.degree)
    terms = np.asarray(orders(net, images, x0=x0, max_order=most).contributions)
    lowest = contributions(net, images, labels, x0=x0, max_order=min(MAX_MAPS, most)).contributions
    maps = np.asarray(lowest)[:, 0].sum(-1)
    values: dict[str, Any] = {"terms": terms.astype(np.float32), "maps": packed(maps), "pairs": None}
    if degree > 1 and maps.shape[1] > 1:
        ranked = np.argsort(-np.abs(maps[:, 1]).reshape(len(maps), -1), axis=1, kind="stable")[:, :MARKED]
        pixels = np.stack(np.unravel_index(ranked, maps.shape[2:]), axis=-1)
        each = [
            np.asarray(pairs(net, x[None], int(k), x0=x0, pixels=own).contributions)[0, 0]
            for x, k, own in zip(images, labels, pixels, strict=True)
        ]
        values["pairs"] = {"pixels": pixels.astype(np.int32), "maps": packed(np.stack(each))}
    return Panel(
        "orders",
        "The series, order by order",
        "The network is a polynomial: about the expansion point a logit is the sum of its orders, order 1 of single "
        "pixels, order 2 of pairs, order m of m pixels together. The slider goes through the orders.",
        values,
    )


def _pairs(report: Report) -> Section:
    """Draw the pairs formed by the pixel of the largest contribution to order 2, and by one of the top 2 %."""
    net = report.explainable
    if report.trained.network.degree < 2:
        return Section("Pairs of pixels", ["A polynomial of degree 1 has none."])
    indices = first_of_each_class(report.labels, 3)
    images, logits = report.images[indices], report.logits[indices]
    top, x0 = logits.argmax(1), expansion_point(net.variables)
    parts = contributions(net, images, top, x0=x0, max_order=2)
    rows, titles, marks = list[np.ndarray](), list[list[str]](), list[list[Box | None]]()
    for x, label, second in zip(images, top, np.asarray(parts.contributions[:, 0, 1].sum(-1)), strict=True):
        ranked = np.argsort(-np.abs(second), axis=None)[[0, second.size // 50 + 1]]
        pixels = np.stack(np.unravel_index(ranked, second.shape), -1)
        maps = np.asarray(pairs(net, x[None], int(label), x0=x0, pixels=pixels).contributions)[0, 0]
        rows.append(np.concatenate([second[None], maps]))
        size = (*second.shape, *second.shape)
        marks.append([None, None, *(tuple(np.divide([r, c, r + 1, c + 1], size)) for r, c in pixels)])
        titles.append(["order 2", *(f"with ({row}, {column})" for row, column in pixels)])
    caption = (
        "First: contribution of each pixel to order 2. Then: of its pairs with the outlined pixel, at (row, column)."
    )
    shown = net, images, report.labels[indices], logits, report.classes
    maps = maps_beside(
        *shown, np.stack(rows), titles, caption, "Contributions of pairs of pixels", scale="map", width=620
    )
    outlined = [
        [replace(cell, outline=mark) for cell, mark in zip(row, boxes, strict=True)]
        for row, boxes in zip(maps.rows, marks, strict=True)
    ]
    return Section(
        "Pairs of pixels",
        ["Order 2 is a sum over pairs, ½ d_i H_ij d_j with H the Hessian at x0; the maps show pairs of single pixels."],
        [replace(maps, rows=outlined)],
    )


def _counts(report: Report) -> Section:
    header = ["part", "blocks", "inputs", "outputs", "degree", "parameters", "coefficients of its full expansion"]
    rows = [[*row[:-1], row[-1] if len(row[-1]) < 8 else f"{Decimal(row[-1]):.2e}"] for row in report.results["counts"]]
    return Section(
        "Coefficients and parameters",
        ["Coarse-graining saves coefficients: the last column counts those of a full polynomial of that degree."],
        [],
        [Table(header, rows)],
    )
