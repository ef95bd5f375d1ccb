"""Charts of a page, drawn in the browser: the data of each, and how it is named.

The same measurements as matplotlib figures are in `figures.curves`.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxinterp.figures.curves import METHODS, ORACLE, OTHERS, UNIFORM, Numbers, method_style
from jaxinterp.figures.html import Chart

POINTS = 200
"""Points of a line that are kept."""


def number(value: Any) -> float | None:
    """Return a number to six digits, None if it is not finite: JSON knows no NaN."""
    return float(f"{float(value):.6g}") if np.isfinite(value) else None


def numbers(values: Numbers) -> list[float | None]:
    """Return numbers to six digits."""
    return [number(value) for value in np.ravel(np.asarray(values, float))]


def lines(
    series: Mapping[str, tuple[Numbers, Numbers]],
    x: str,
    y: str,
    caption: str,
    alt: str,
    *,
    colors: Mapping[str, str] | None = None,
    labels: Mapping[str, str] | None = None,
    log: bool = False,
    rules: Sequence[tuple[float, str]] = (),
    width: int = 760,
    **options: Any,
) -> Chart:
    """Return lines by name, each (x, y); what is not finite, and on a logarithmic axis not positive, is left out.

    Args:
        series: name ↦ (x, y).
        x: label of the axis.
        y: label of the axis.
        caption: the line below.
        alt: what the chart says.
        colors: name ↦ color.
        labels: name ↦ its name in the key.
        log: whether y is logarithmic.
        rules: heights of horizontal lines, with a name.
        width: largest width.
        options: further values of the page's chart: `range` of y, `ticks` of x.
    """
    drawn = list[dict[str, Any]]()
    for i, (name, pair) in enumerate(series.items()):
        across, values = (np.ravel(np.asarray(one, float)) for one in pair)
        kept = np.isfinite(values) & ((values > 0) | (not log))
        across, values = across[kept], values[kept]
        some = np.unique(np.linspace(0, max(0, len(across) - 1), min(len(across), POINTS)).astype(int))
        color = (colors or {}).get(name, OTHERS[i % len(OTHERS)])
        one = {"name": name, "color": color, "x": numbers(across[some]), "y": numbers(values[some])}
        drawn.append({**one, "label": (labels or {}).get(name, name)})
    levels = [{"at": at, "text": text} for at, text in rules]
    return Chart(
        {"kind": "lines", "x": x, "y": y, "series": drawn, "log": log, "rules": levels, "width": width, **options},
        caption,
        alt,
        width,
    )


def localization(scores: Mapping[str, Numbers], cells: int, caption: str) -> Chart:
    """Return box plots of localization scores, the best mean on top: quartiles, whiskers of 1.5 quartile ranges, mean.

    Args:
        scores: method → scores in [0, 1].
        cells: images in a grid, n².
        caption: the line below.
    """
    values = {name: np.ravel(np.asarray(score, float)) for name, score in scores.items()}
    rows, n = list[dict[str, Any]](), round(np.sqrt(cells))
    for name in sorted(values, key=lambda name: -float(values[name].mean())):
        label, color = method_style(name)
        first, median, third = np.quantile(values[name], (0.25, 0.5, 0.75))
        reach = 1.5 * (third - first)
        inside = values[name][(values[name] >= first - reach) & (values[name] <= third + reach)]
        ends = {"low": inside.min(), "first": first, "median": median, "third": third, "high": inside.max()}
        row = {key: number(value) for key, value in {**ends, "mean": values[name].mean()}.items()}
        rows.append({"name": label, "color": color, "count": len(values[name]), **row})
    best = rows[0]
    return Chart(
        {
            "kind": "boxes",
            "x": f"positive evidence in the right cell, {n}×{n} grids",
            "rows": rows,
            "rules": [{"at": 1 / cells, "text": "uniform"}, {"at": 1, "text": "perfect"}],
        },
        caption,
        f"Localization in {n}×{n} grids by method: {best['name']} is best with a mean of {best['mean']:.3f}; "
        f"uniform is {1 / cells:.3f}",
        640,
    )


def removal(curves: Mapping[str, Numbers], fractions: Numbers, caption: str) -> Chart:
    """Return the label's probability against the share of pixels removed, a line a method, with its mean."""
    means = {name: float(np.mean(np.asarray(curve))) for name, curve in curves.items()}
    order, percent = sorted(curves, key=lambda name: -means[name]), 100 * np.asarray(fractions)
    style = {name: method_style(name) for name in order}
    best = order[0]
    return lines(
        {style[name][0]: (percent, curves[name]) for name in order},
        "pixels removed, least important first (%)",
        "mean probability of the label",
        caption,
        f"Pixel removal: {style[best][0]} keeps the label's probability highest, {means[best]:.3f} on average",
        colors=dict(style.values()),
        labels={style[name][0]: f"{style[name][0]} ({means[name]:.3f})" for name in order},
    )


def residuals(values: Numbers, caption: str, tolerance: float = 1e-4) -> Chart:
    """Return a histogram of |relative residual| on a logarithmic axis; exact zeros are counted in the caption."""
    sizes = np.abs(np.ravel(np.asarray(values, float)))
    positive = sizes[sizes > 0]
    zeros = f" {len(sizes) - len(positive)} are exactly zero." if len(positive) < len(sizes) else ""
    low, high = (np.floor(np.log10(positive.min())), np.ceil(np.log10(positive.max()))) if len(positive) else (-8, -7)
    edges = np.logspace(low, max(high, low + 1), 8 * int(max(high - low, 1)) + 1)
    counts = np.histogram(positive, edges)[0]
    said = f"{len(sizes)} logits; largest {sizes.max(initial=0):.1e}.{zeros}"
    return Chart(
        {
            "kind": "histogram",
            "x": "|logit − bias − Σ contributions|, relative",
            "y": "logits",
            "color": METHODS["decomposition"][1],
            "edges": numbers(edges),
            "counts": counts.tolist(),
            "rules": [{"at": tolerance, "text": f"tolerance {tolerance:g}"}],
        },
        f"{caption} {said}",
        f"Histogram of relative residuals: {said}",
        620,
    )


def training(history: Sequence[Mapping[str, Any]], caption: str) -> list[Chart]:
    """Return loss and accuracy over the epochs; a loss that falls more than fivefold on a logarithmic axis."""
    names = sorted({key for record in history for key in record})
    colors = {"train": "#8a8a8a", "validation": UNIFORM, "test": ORACLE}
    drawn = list[Chart]()
    for measure in ("loss", "accuracy"):
        series = dict[str, tuple[Numbers, Numbers]]()
        for key in names:
            if (found := re.fullmatch(rf"(\w+_)?{measure}", key)) is not None:
                part = (found[1] or "").rstrip("_")
                points = [(record["epoch"], record[key]) for record in history if key in record]
                x, y = zip(*points, strict=True)
                series[{"": "train", "val": "validation"}.get(part, part)] = (x, y)
        if not series:
            continue
        values = np.concatenate([np.asarray(y, float) for _, y in series.values()])
        log = measure == "loss" and bool(values.max() > 5 * values.min() > 0)
        last = ", ".join(f"{name} {np.asarray(y)[-1]:.4g}" for name, (_, y) in series.items())
        epochs = sorted({record["epoch"] for record in history})
        ticks = epochs if len(epochs) <= 8 else None
        alt = f"{measure.capitalize()} by epoch, in the end {last}"
        drawn.append(lines(series, "epoch", measure, caption, alt, colors=colors, log=log, width=520, ticks=ticks))
    return drawn


def matrix(
    values: Numbers, rows: Sequence[str], columns: Sequence[str], y: str, x: str, caption: str, alt: str, **options: Any
) -> Chart:
    """Return a table of colors; `diverging=True` for signed values."""
    cells = [numbers(row) for row in np.asarray(values, float)]
    given = {"kind": "matrix", "values": cells, "rows": distinct(rows), "columns": distinct(columns), "x": x, "y": y}
    return Chart({**given, **options}, caption, alt, 560)


def bars(
    values: Numbers, x: str, y: str, caption: str, alt: str, *, log: bool = False, width: int = 520, **options: Any
) -> Chart:
    """Return bars, numbered from 0."""
    return Chart(
        {"kind": "bars", "x": x, "y": y, "values": numbers(values), "log": log, "width": width, **options},
        caption,
        alt,
        width,
    )


def distinct(names: Sequence[str]) -> list[str]:
    """Return names of which no two are equal: an axis has a place for each.

    Example:
        >>> distinct(["a", "a"])
        ['a', 'a (2)']
    """
    return [
        name if list(names[:i]).count(name) == 0 else f"{name} ({list(names[: i + 1]).count(name)})"
        for i, name in enumerate(names)
    ]
