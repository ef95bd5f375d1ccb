"""Report sections of glass boxes: classifiers and baselines, the orbit of an image, deciding templates."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jaxinterp.explain.attribution import Attribution
from jaxinterp.explain.decompose import decompose
from jaxinterp.explain.explainable import Explainable
from jaxinterp.figures.explorer import Panel, Pixels
from jaxinterp.figures.html import Cell, MapTable, Section, Table
from jaxinterp.figures.maps import shared_limit
from jaxinterp.figures.packing import packed
from jaxinterp.glassbox.figures import deciding_templates
from jaxinterp.glassbox.network import GlassBox, Orbit
from jaxinterp.recipe.family import Reading, Report
from jaxinterp.recipe.page import first_of_each_class
from jaxinterp.symmetry.groups import transform

RESPONSES_SHOWN = 24  # templates whose responses to an orbit are drawn
MOVED_PIXELS = 1_000_000  # values of moved images that a page may hold
TEMPLATES_SHOWN = 7  # templates that are drawn for a logit


def sections(report: Report, model: GlassBox) -> list[Section]:
    """Return the sections that only glass boxes have."""
    return [_classifiers(report), _orbit(report, model), _templates(report, model)]


def _classifiers(report: Report) -> Section:
    rows = []
    for features in report.results["representations"]:
        name, count, ratios = features["name"], str(features["features"]), [f"{ratio:.2f}" for ratio in features["J"]]
        for kind, (upright, rotated) in features["accuracy"].items():
            rows.append([name, count, kind, f"{upright:.2%}", f"{rotated:.2%}", *ratios])
    header = ["representation", "features", "classifier", "upright", "rotated", "J upright", "J rotated"]
    text = (
        "All are fitted to the same upright images (the baseline of augmented pixels to rotated copies too), "
        "and every representation is standardized and reduced in the same way. Rotated: every test image is turned "
        "by an angle of its own. J, of the features as they are, is the distance of class means over the width of "
        "classes; a representation with a larger J need not classify better, so the accuracies stand beside it."
    )
    return Section("Classifiers and representations, upright and rotated", [text], tables=[Table(header, rows)])


def _orbit(report: Report, model: GlassBox) -> Section:
    x = jnp.asarray(report.images[first_of_each_class(report.labels, 1)])
    elements = [0, len(model.group) // 8 or 1, len(model.group) // 2]
    moved = jnp.concatenate([transform(model.group, g, x) for g in elements])
    params = report.explainable.variables["params"]["representation"]["orbit"]
    responses = np.asarray(Orbit(model.group, model.templates).apply({"params": params}, moved))
    names = ["as it is", *(f"moved by element {g}" for g in elements[1:])]
    first = responses[:, :, :RESPONSES_SHOWN]
    limit = shared_limit(first, 99.9)  # so that a single response does not pale all others
    shown = zip(names, np.asarray(moved), np.clip(first, -limit, limit), strict=True)
    rows = [
        [
            Cell(name, image=image, alt=f"The image {name}"),
            Cell("responses", map=parts.T, alt=f"Responses to the image {name}: a row a template, a column an element"),
        ]
        for name, image, parts in shown
    ]
    metrics = report.results["metrics"]
    text = (
        f"Responses E(x)[g, k] of an image to template k and element g of {model.group.name}: where the image is "
        "moved, the columns are permuted, and nothing else happens. For every element this law holds to "
        f"{metrics['equivariance_residual']:.1e} of the responses' norm; without the permutation they differ by "
        f"{metrics['equivariance_uncompensated']:.2f}. What is left of the columns' order is invariant."
    )
    caption = (
        f"Images, and their responses to the first {RESPONSES_SHOWN} templates: a row a template, a column a group "
        "element; all share one scale."
    )
    table = MapTable(rows, caption, "Responses to orbits", "all", cell=180, width=560)
    return Section("What turns with the image", [text], [table])


def _strongest(
    model: GlassBox, net: Explainable, parts: Attribution
) -> tuple[
    Int[np.ndarray, "nt m"], Int[np.ndarray, "nt m"], Float[np.ndarray, "nt m"], Float[np.ndarray, "nt m h w c"]
]:
    """Return the templates with the largest contributions, their strongest elements, their sums, and them as moved."""
    each = np.asarray(parts.contributions).reshape(-1, *parts.contributions.shape[2:])
    sums = each.sum(1)
    best = np.argsort(-np.abs(sums), axis=1)[:, :TEMPLATES_SHOWN]
    strongest = np.take_along_axis(np.abs(each).argmax(1), best, 1)
    values = np.take_along_axis(sums, best, 1)
    templates = jnp.asarray(net.variables["params"]["representation"]["orbit"]["templates"])
    pairs = zip(strongest.ravel(), best.ravel(), strict=True)
    turned = np.concatenate([transform(model.group.inverses, int(g), templates[k][None]) for g, k in pairs])
    return best, strongest, values, turned.reshape(*best.shape, *turned.shape[1:])


def panels(
    model: GlassBox,
    net: Explainable,
    images: Float[np.ndarray, "n h w c"],
    targets: Int[np.ndarray, " n"],
    names: Sequence[str],
) -> list[Panel]:
    """Return the templates that decided for the read class, and the responses of an image as the group moves it."""
    parts = decompose(net, images, targets.astype(int), layer="representation/orbit", check=False)
    best, strongest, values, turned = _strongest(model, net, parts)
    sums = np.asarray(parts.contributions, np.float64)[:, 0].sum(1)
    captions = [f"template {k}, moved by element {g}" for g, k in zip(strongest.ravel(), best.ravel(), strict=True)]
    decided = Panel(
        "shares",
        "The templates that decided",
        "Templates are training images. Each adds to the logit what its matches with the image, in all positions of "
        "the group, contribute; shown as they matched most.",
        {
            "pictures": Pixels(turned.reshape(-1, *turned.shape[2:])),
            "index": np.arange(best.size, dtype=np.int32).reshape(best.shape),
            "share": values.astype(np.float64),
            "rest": sums.sum(1) - values.sum(1, dtype=np.float64),
            "constant": np.asarray(parts.bias, np.float64)[:, 0],
            "target": targets.astype(np.int32),
            "gain": np.maximum(sums, 0).sum(1),
            "loss": np.minimum(sums, 0).sum(1),
            "captions": captions,
            "output": "logit",
            "what": "templates",
        },
    )
    return [decided, *_moved(model, net, images)]


def _moved(model: GlassBox, net: Explainable, images: Float[np.ndarray, "n h w c"]) -> list[Panel]:
    """Return the responses of the first images to some templates, and the images moved by every element."""
    group = model.group
    if not group.closed:
        return []
    count = max(1, min(len(images), MOVED_PIXELS // (len(group) * images[0].size)))
    orbit = net.variables["params"]["representation"]["orbit"]
    respond = Orbit(group, model.templates).apply
    responses = np.asarray(respond({"params": orbit}, jnp.asarray(images[:count])))[:, :, :RESPONSES_SHOWN]
    moved = np.stack([np.asarray(transform(group, g, jnp.asarray(images[:count]))) for g in range(len(group))], axis=1)
    law = Panel(
        "orbit",
        "Move the image",
        "Responses E(x)[g, k] of the image to template k and element g of the group. Where the image is moved by h, "
        "E(h x)[g] = E(x)[g h]: rows change places, and nothing else happens.",
        {
            "responses": packed(responses),
            "products": group.table.astype(np.int32),
            "turned": Pixels(moved.reshape(-1, *moved.shape[2:])),
            "names": [f"element {g} of {group.name}" for g in range(len(group))],
            "count": count,
        },
    )
    return [law]


def reading(
    model: GlassBox,
    net: Explainable,
    image: Float[np.ndarray, "h w c"],
    top: Int[np.ndarray, " t"],
    names: Sequence[str],
) -> Reading:
    """Return the templates with the largest contributions to the `top` classes of an image, as they matched most."""
    if len(names) == 2:  # the logits are one score and its negative
        top = top[:1]
    parts = decompose(net, image[None], top[None], layer="representation/orbit", check=False)
    best, strongest, values, turned = _strongest(model, net, parts)
    shown = np.repeat(image[None], len(top), axis=0)
    figure = deciding_templates(shown, turned, values, [f"as {names[k]}" for k in top])
    numbers = [
        {
            "class": names[k],
            "group": model.group.name,
            "logit": float(parts.logits[0, t]),
            "constant": float(parts.bias[0, t]),
            "residual": float(parts.residual[0, t]),
            "other_templates": float(parts.contributions[0, t].sum() - values[t].sum()),
            "templates": [
                {"template": int(template), "element": int(element), "contribution": float(value)}
                for template, element, value in zip(best[t], strongest[t], values[t], strict=True)
            ],
        }
        for t, k in enumerate(top)
    ]
    return Reading("templates", numbers, figure)


def _templates(report: Report, model: GlassBox) -> Section:
    chosen = first_of_each_class(report.labels, 5)
    net, top = report.explainable, report.logits[chosen].argmax(1)
    parts = decompose(net, report.images[chosen], top, layer="representation/orbit", check=False)
    _, _, values, turned = _strongest(model, net, parts)
    rows = []
    for image, k, moved, sums in zip(report.images[chosen], top, turned, values, strict=True):
        read = f"read {report.classes[k]}"
        cells = [
            Cell(f"{value:+.2f}", image=template, alt=f"A template that adds {value:+.2f}")
            for template, value in zip(moved, sums, strict=True)
        ]
        rows.append([Cell(read, image=image, alt=f"An image {read}"), *cells])
    missed = float(jnp.abs(parts.residual).max()) / float(jnp.abs(parts.logits).max())
    text = (
        "Invariants are linear in the responses once their derivatives are held, so a logit is the sum of what "
        "every (template, group element) contributes, and of the bias, a constant of the class. Largest relative "
        f"residual: {missed:.1e}."
    )
    caption = (
        "The training images with the largest contributions to the predicted class, above each what it adds, turned "
        "as they matched most."
    )
    return Section("The templates that decided", [text], [MapTable(rows, caption, "Templates that decided", cell=90)])
