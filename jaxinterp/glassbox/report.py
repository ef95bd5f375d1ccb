"""Report sections of glass boxes: classifiers and baselines, the orbit of an image, deciding templates."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from matplotlib.figure import Figure

from jaxinterp.explain.decompose import Decomposition, decompose
from jaxinterp.explain.explainable import Explainable
from jaxinterp.figures.html import Section, Table, picture
from jaxinterp.glassbox.figures import deciding_templates, orbit_rows
from jaxinterp.glassbox.network import GlassBox, Orbit
from jaxinterp.recipe.family import Reading, Report
from jaxinterp.recipe.page import first_of_each_class
from jaxinterp.symmetry.groups import transform

SHOWN, BEST = 24, 7  # templates whose responses are drawn, and templates that are drawn themselves


def sections(report: Report, model: GlassBox) -> list[Section]:
    """All of them."""
    return [_classifiers(report), _orbit(report, model), _templates(report, model)]


def _classifiers(report: Report) -> Section:
    rows = []
    for found in report.results["representations"]:
        for kind, (upright, moved) in found["accuracy"].items():
            spread = [f"{value:.2f}" for value in found["J"]]
            rows.append([found["name"], str(found["features"]), kind, f"{upright:.2%}", f"{moved:.2%}", *spread])
    header = ["representation", "features", "classifier", "upright", "rotated", "J upright", "J rotated"]
    return Section(
        "Classifiers and representations, upright and rotated",
        [
            "All are fitted to the same upright images (the baseline of augmented pixels to rotated copies too), "
            "and every representation is standardized and reduced in the same way. Rotated: every test image is turned "
            "by an angle of its own. J, of the features as they are, is the distance of class means over the width of "
            "classes; a representation with a larger J need not classify better, so the accuracies stand beside it."
        ],
        [],
        [Table(header, rows)],
    )


def _orbit(report: Report, model: GlassBox) -> Section:
    chosen = first_of_each_class(report.labels, 1)
    x = jnp.asarray(report.images[chosen])
    places = [0, len(model.group) // 8 or 1, len(model.group) // 2]
    moved = jnp.concatenate([transform(model.group, g, x) for g in places])
    placed = report.explainable.variables["params"]["representation"]["orbit"]
    responses = np.asarray(Orbit(model.group, model.templates).apply({"params": placed}, moved))[:, :, :SHOWN]
    figure = orbit_rows(np.asarray(moved), responses, ["as it is", *(f"moved by element {g}" for g in places[1:])])
    metrics = report.results["metrics"]
    return Section(
        "What turns with the image",
        [
            f"Responses E(x)[g, k] of an image to template k and element g of {model.group.name}: where the image is "
            "moved, the columns are permuted, and nothing else happens. For every element this law holds to "
            f"{metrics['equivariance_residual']:.1e} of the responses' norm; without the permutation they differ by "
            f"{metrics['equivariance_uncompensated']:.2f}. What is left of the columns' order is invariant."
        ],
        [picture(figure, f"The first {SHOWN} templates; all rows share one scale.", "Responses to orbits", 760)],
    )


class _Deciding(NamedTuple):
    """The templates with the largest contributions, (images · targets, BEST) each, their strongest elements, drawn."""

    parts: Decomposition
    templates: Int[np.ndarray, "n m"]
    elements: Int[np.ndarray, "n m"]
    contributions: Float[np.ndarray, "n m"]
    figure: Figure


def _deciding(
    model: GlassBox,
    net: Explainable,
    images: Float[np.ndarray, "n h w c"],
    targets: Int[np.ndarray, "n t"],
    names: Sequence[str],
) -> _Deciding:
    frozen: Any = net.frozen
    level = "representation/orbit"
    parts = decompose(frozen, jnp.asarray(images), targets, level, variables=net.variables, check=False)
    each = np.asarray(parts.contributions).reshape(-1, *parts.contributions.shape[2:])
    sums = each.sum(1)
    best = np.argsort(-np.abs(sums), axis=1)[:, :BEST]
    strongest = np.take_along_axis(np.abs(each).argmax(1), best, 1)
    values = np.take_along_axis(sums, best, 1)
    templates = jnp.asarray(net.variables["params"]["representation"]["orbit"]["templates"])
    turned = np.stack(
        [
            np.concatenate(
                [transform(model.group.inverses, int(g), templates[k][None]) for k, g in zip(*row, strict=True)]
            )
            for row in zip(best, strongest, strict=True)
        ]
    )
    shown = np.repeat(images, targets.shape[1], axis=0)
    figure = deciding_templates(shown, turned, values, [f"as {names[k]}" for k in targets.ravel()])
    return _Deciding(parts, best, strongest, values, figure)


def reading(
    model: GlassBox,
    net: Explainable,
    image: Float[np.ndarray, "h w c"],
    top: Int[np.ndarray, " t"],
    names: Sequence[str],
) -> Reading:
    """Of one image: the templates with the largest contributions to the `top` classes, as they matched most."""
    if len(names) == 2:  # the logits are one score and its negative
        top = top[:1]
    found = _deciding(model, net, image[None], top[None], names)
    numbers = [
        {
            "class": names[k],
            "group": model.group.name,
            "logit": float(found.parts.logits[0, t]),
            "constant": float(found.parts.bias[0, t]),
            "residual": float(found.parts.residual[0, t]),
            "other_templates": float(found.parts.contributions[0, t].sum() - found.contributions[t].sum()),
            "templates": [
                {"template": int(template), "element": int(element), "contribution": float(value)}
                for template, element, value in zip(
                    found.templates[t], found.elements[t], found.contributions[t], strict=True
                )
            ],
        }
        for t, k in enumerate(top)
    ]
    return Reading("templates", numbers, found.figure)


def _templates(report: Report, model: GlassBox) -> Section:
    """The templates with the largest contributions to the predicted class, at their strongest element."""
    chosen = first_of_each_class(report.labels, 5)
    top = report.logits[chosen].argmax(1)[:, None]
    found = _deciding(model, report.explainable, report.images[chosen], top, report.classes)
    missed = float(jnp.abs(found.parts.residual).max()) / float(jnp.abs(found.parts.logits).max())
    return Section(
        "The templates that decided",
        [
            "Invariants are linear in the responses once their derivatives are held, so a logit is the sum of what "
            "every (template, group element) contributes, and of a constant of the class. Largest relative "
            f"residual: {missed:.1e}."
        ],
        [
            picture(
                found.figure,
                "The training images with the largest contributions to the predicted class, turned as they matched "
                "most; red speaks for the class, blue against it.",
                "Templates that decided",
                900,
            )
        ],
    )
