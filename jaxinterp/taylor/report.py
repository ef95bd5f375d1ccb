"""Report sections of polynomials: orders, their maps at two levels, pairs of pixels, coefficients."""

from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from functools import cache
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from matplotlib.figure import Figure

from jaxinterp.explain.series import contributions, orders, pairs
from jaxinterp.figures.curves import order_curves
from jaxinterp.figures.html import Picture, Section, Table, picture
from jaxinterp.figures.maps import panel
from jaxinterp.recipe.family import Reading, Report
from jaxinterp.recipe.page import first_of_each_class
from jaxinterp.taylor.network import Expansion, TaylorNet

MAX_MAPS = 5  # orders drawn for each image


def sections(report: Report, model: Expansion) -> list[Section]:
    """Return the sections of a polynomial's report."""
    counts = [_counts(report)] if report.results["counts"] else []
    return [_orders(report, model), _maps(report, model), _pairs(report, model), *counts]


@cache
def _apply(model: Expansion) -> Any:
    """Return (variables, x) ↦ logits; one function for each network, so that it compiles once."""
    return model.apply


def _orders(report: Report, model: Expansion) -> Section:
    results = report.results["orders"]
    accuracy = np.array(results["accuracy"])
    figure = order_curves(results["energy"], accuracy, 1 / len(report.classes))
    low_orders = [m for m in (1, 2, 3, 5) if m < len(accuracy)]
    low_accuracies = ", ".join(f"{accuracy[m]:.2%}" for m in low_orders)
    text = (
        f"The network is a polynomial of degree {model.degree} in the pixels. About the expansion point x0 each logit "
        "is the sum of its orders, f = f_0 + f_1 + f_2 + …, exactly. "
        f"The series up to orders {', '.join(map(str, low_orders))} classifies {low_accuracies} of the images "
        f"correctly, up to order {len(accuracy) - 1} {accuracy[-1]:.2%}."
    )
    return Section(
        "The series, order by order",
        [text],
        [
            picture(
                figure,
                "Left: root mean square of each order over images and classes, less the mean over classes. Right: "
                "accuracy of the series truncated after each order.",
                "Energy and accuracy by order",
                900,
            )
        ],
    )


def _maps(report: Report, model: Expansion) -> Section:
    """Draw the contributions of pixels, and of blocks of the middle level, to each of the lowest orders."""
    indices = first_of_each_class(report.labels, 4)
    images, top = jnp.asarray(report.images[indices]), report.logits[indices].argmax(1)
    variables, apply = report.explainable.variables, _apply(model)
    x0 = variables["batch_stats"]["expansion_point"]
    degrees: dict[str | None, int] = {None: model.degree}
    if isinstance(model, TaylorNet) and len(model.levels) > 1:
        middle = len(model.levels) // 2 - 1
        degrees[f"level_{middle}"] = replace(model, levels=model.levels[middle + 1 :]).degree
    pictures = []
    for level, degree in degrees.items():
        max_order = min(MAX_MAPS, degree)
        parts = contributions(apply, images, x0, max_order, top, variables=variables, layer=level)
        maps, values = parts.contributions[:, 0].sum(-1), parts.orders[:, 0]
        figure = _rows(report.images[indices], maps, values, [f"as {report.classes[k]}" for k in top])
        where = "the pixels" if level is None else f"the entries of {level.replace('_', ' ')}, summed over channels,"
        residual = float(jnp.abs(parts.residual).max()) / float(jnp.abs(parts.orders).max())
        pictures.append(
            picture(
                figure,
                f"Contributions of {where} to the lowest orders of the predicted class's logit; each map has its own "
                f"scale, and its sum is the number above it. Largest relative residual: {residual:.1e}.",
                "Contribution maps by order",
                130 * (max_order + 1),
            )
        )
    return Section(
        "Maps of single orders",
        [
            "Order 1 is the effect of single pixels, order 2 of pairs of pixels, order m of m pixels together; Euler's "
            "identity splits every order over the pixels. All orders' maps sum to the decomposition above. "
            "At a coarser level the same logit is a polynomial of lower degree in fewer variables."
        ],
        pictures,
    )


def _rows(
    images: Float[np.ndarray, "n h w c"],
    maps: Float[Array, "n orders y x"],
    values: Float[Array, "n orders1"],
    names: Sequence[str],
) -> Figure:
    """Draw images, and beside each the maps of its orders from 1 up, under their values, each on its own scale."""
    titles = [[f"order {m + 1}: {v:+.2g}" for m, v in enumerate(row[1:])] for row in np.asarray(values)]
    return panel(images, maps, titles, names, scale="map")


def reading(
    model: Expansion,
    most: int,
    variables: Any,
    image: Float[np.ndarray, "h w c"],
    top: Int[np.ndarray, " t"],
    names: Sequence[str],
) -> Reading:
    """Read one image: the orders up to `most` of every class's logit, and maps of the lowest for the `top` classes."""
    apply, x0, x = _apply(model), variables["batch_stats"]["expansion_point"], jnp.asarray(image)[None]
    series = np.asarray(orders(apply, x, x0, min(most, model.degree), variables=variables))[:, 0]
    remainder = np.asarray(apply(variables, x))[0] - series.sum(0)
    numbers = [
        {"class": name, "orders": series[:, k].tolist(), "remainder": float(remainder[k])}
        for k, name in enumerate(names)
    ]
    max_order = min(MAX_MAPS, most, model.degree)
    parts = contributions(apply, x, x0, max_order, top[None].astype(np.int32), variables=variables)
    rows, titles = np.repeat(image[None], len(top), axis=0), [f"as {names[k]}" for k in top]
    return Reading("orders", numbers, _rows(rows, parts.contributions[0].sum(-1), parts.orders[0], titles))


def _pairs(report: Report, model: Expansion) -> Section:
    """Draw the pairs formed by the pixel of the largest contribution to order 2, and by one of the top 2 %."""
    indices = first_of_each_class(report.labels, 3)
    variables, apply = report.explainable.variables, _apply(model)
    x0, top = variables["batch_stats"]["expansion_point"], report.logits[indices].argmax(1)
    if model.degree < 2:
        return Section("Pairs of pixels", ["A polynomial of degree 1 has none."])
    rows: list[np.ndarray] = []
    titles: list[list[str]] = []
    marks: list[np.ndarray] = []
    for image, label in zip(report.images[indices], top, strict=True):
        x = jnp.asarray(image)[None]
        second = contributions(apply, x, x0, 2, int(label), variables=variables).contributions[0, 0, 1].sum(-1)
        ranked = np.argsort(-np.abs(np.asarray(second)), axis=None)[[0, second.size // 50 + 1]]
        pixels = np.stack(np.unravel_index(ranked, second.shape), -1)
        maps = np.asarray(pairs(apply, x, x0, pixels, int(label), variables=variables))[0, 0]
        rows.append(np.concatenate([np.asarray(second)[None], maps]))
        marks.append(pixels)
        titles.append(["order 2", *(f"with ({y}, {x})" for y, x in pixels)])
    names = [f"as {report.classes[k]}" for k in top]
    figure = panel(report.images[indices], np.stack(rows), titles, names, scale="map")
    for i, pixels in enumerate(marks):
        for axes, (row, column) in zip(figure.axes[4 * i + 2 : 4 * i + 4], pixels, strict=True):
            axes.plot(column, row, "x", color="black", markersize=4)
    drawing: Picture = picture(
        figure,
        "Left: contribution of each pixel to order 2. Then: of its pairs with one marked pixel, at (row, column).",
        "Contributions of pairs of pixels",
        620,
    )
    return Section(
        "Pairs of pixels",
        ["Order 2 is a sum over pairs, ½ d_i H_ij d_j with H the Hessian at x0; the maps show pairs of single pixels."],
        [drawing],
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
