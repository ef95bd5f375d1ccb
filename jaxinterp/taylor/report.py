"""What only polynomials show in their report: orders, their maps at every level, pairs of pixels, coefficients."""

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

MAPS = 5  # orders that are drawn


def sections(report: Report, model: Expansion) -> list[Section]:
    """All of them."""
    counted = [_counts(report)] if report.results["counts"] else []
    return [_orders(report, model), _maps(report, model), _pairs(report, model), *counted]


@cache
def _apply(model: Expansion) -> Any:
    """(variables, x) ↦ logits; one function for each network, compiled once."""
    return model.apply


def _orders(report: Report, model: Expansion) -> Section:
    found = report.results["orders"]
    accuracy = np.array(found["accuracy"])
    figure = order_curves(found["energy"], accuracy, 1 / len(report.classes))
    read = [m for m in (1, 2, 3, 5) if m < len(accuracy)]
    low = ", ".join(f"{accuracy[m]:.2%}" for m in read)
    text = (
        f"The network is a polynomial of degree {model.degree} in the pixels. About the expansion point x0 each logit "
        "is the sum of its orders, f = f_0 + f_1 + f_2 + …, exactly. "
        f"The orders up to {', '.join(map(str, read))} decide {low} of the images rightly, those up to "
        f"{len(accuracy) - 1} {accuracy[-1]:.2%}."
    )
    return Section(
        "The series, order by order",
        [text],
        [
            picture(
                figure,
                "Left: root mean square of each order over images and classes, the mean over classes taken off. Right: "
                "accuracy of the series cut off after each order.",
                "Energy and accuracy by order",
                900,
            )
        ],
    )


def _maps(report: Report, model: Expansion) -> Section:
    """What pixels, and blocks of the middle level, contribute to each of the lowest orders."""
    chosen = first_of_each_class(report.labels, 4)
    images, top = jnp.asarray(report.images[chosen]), report.logits[chosen].argmax(1)
    variables, apply = report.explainable.variables, _apply(model)
    x0 = variables["batch_stats"]["expansion_point"]
    degrees: dict[str | None, int] = {None: model.degree}
    if isinstance(model, TaylorNet) and len(model.levels) > 1:
        middle = len(model.levels) // 2 - 1
        degrees[f"level_{middle}"] = replace(model, levels=model.levels[middle + 1 :]).degree
    pictures = []
    for level, degree in degrees.items():
        most = min(MAPS, degree)
        parts = contributions(apply, images, x0, most, top, variables=variables, layer=level)
        maps, values = parts.contributions[:, 0].sum(-1), parts.orders[:, 0]
        figure = _rows(report.images[chosen], maps, values, [f"as {report.classes[k]}" for k in top])
        where = "the pixels" if level is None else f"the entries of {level.replace('_', ' ')}, summed over channels,"
        missed = float(jnp.abs(parts.residual).max()) / float(jnp.abs(parts.orders).max())
        pictures.append(
            picture(
                figure,
                f"What {where} contribute to the lowest orders of the predicted class' logit; each map has its own "
                f"scale, and its sum is the number above it. Largest relative residual: {missed:.1e}.",
                "Contribution maps by order",
                130 * (most + 1),
            )
        )
    return Section(
        "Maps of single orders",
        [
            "Order 1 asks what each pixel does by itself, order 2 what pairs of pixels do, order m what m of them do "
            "together; Euler's identity splits every order over the pixels. The sum of the maps of all orders is the "
            "decomposition above. At a coarser level the same logit is a polynomial of lower degree in fewer variables."
        ],
        pictures,
    )


def _rows(
    images: Float[np.ndarray, "n h w c"],
    maps: Float[Array, "n orders y x"],
    values: Float[Array, "n orders1"],
    names: Sequence[str],
) -> Figure:
    """Images, and beside each the maps of its orders from 1 up, under their values; each map has its own scale."""
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
    """Of one image: the orders up to `most` of every class' logit, and maps of the lowest for the `top` classes."""
    apply, x0, x = _apply(model), variables["batch_stats"]["expansion_point"], jnp.asarray(image)[None]
    series = np.asarray(orders(apply, x, x0, min(most, model.degree), variables=variables))[:, 0]
    rest = np.asarray(apply(variables, x))[0] - series.sum(0)
    numbers = [
        {"class": name, "orders": series[:, k].tolist(), "remainder": float(rest[k])} for k, name in enumerate(names)
    ]
    shown = min(MAPS, most, model.degree)
    parts = contributions(apply, x, x0, shown, top[None].astype(np.int32), variables=variables)
    rows, titles = np.repeat(image[None], len(top), axis=0), [f"as {names[k]}" for k in top]
    return Reading("orders", numbers, _rows(rows, parts.contributions[0].sum(-1), parts.orders[0], titles))


def _pairs(report: Report, model: Expansion) -> Section:
    """Pairs that the pixel with the largest contribution of order 2 forms."""
    chosen = first_of_each_class(report.labels, 3)
    variables, apply = report.explainable.variables, _apply(model)
    x0, top = variables["batch_stats"]["expansion_point"], report.logits[chosen].argmax(1)
    if model.degree < 2:
        return Section("Pairs of pixels", ["A polynomial of degree 1 has none."])
    rows: list[np.ndarray] = []
    titles: list[list[str]] = []
    marks: list[np.ndarray] = []
    for image, label in zip(report.images[chosen], top, strict=True):
        x = jnp.asarray(image)[None]
        second = contributions(apply, x, x0, 2, int(label), variables=variables).contributions[0, 0, 1].sum(-1)
        places = np.argsort(-np.abs(np.asarray(second)), axis=None)[[0, second.size // 50 + 1]]
        pixels = np.stack(np.unravel_index(places, second.shape), -1)
        maps = np.asarray(pairs(apply, x, x0, pixels, int(label), variables=variables))[0, 0]
        rows.append(np.concatenate([np.asarray(second)[None], maps]))
        marks.append(pixels)
        titles.append(["order 2", *(f"with ({y}, {x})" for y, x in pixels)])
    names = [f"as {report.classes[k]}" for k in top]
    drawn = panel(report.images[chosen], np.stack(rows), titles, names, scale="map")
    for i, pixels in enumerate(marks):
        for axes, (row, column) in zip(drawn.axes[4 * i + 2 : 4 * i + 4], pixels, strict=True):
            axes.plot(column, row, "x", color="black", markersize=4)
    figure: Picture = picture(
        drawn,
        "Left: each pixel's part of order 2. Then: what the pairs of one pixel, at (row, column), marked, contribute.",
        "Contributions of pairs of pixels",
        620,
    )
    return Section(
        "Pairs of pixels",
        ["Order 2 is a sum over pairs, ½ d_i H_ij d_j with the Hessian at x0; here are all pairs of single pixels."],
        [figure],
    )


def _counts(report: Report) -> Section:
    header = ["part", "blocks", "inputs", "outputs", "degree", "parameters", "coefficients of its full expansion"]
    rows = [[*row[:-1], row[-1] if len(row[-1]) < 8 else f"{Decimal(row[-1]):.2e}"] for row in report.results["counts"]]
    return Section(
        "Coefficients and parameters",
        ["What coarse-graining saves: a polynomial of that degree in all inputs would have the last column's numbers."],
        [],
        [Table(header, rows)],
    )
