"""Meaningful and extremal perturbation: the mask, found by descent, under which a class' evidence goes or stays."""

import math
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, Int

from jaxinterp.checks import require, require_channels_last, require_number, require_whole
from jaxinterp.explain.attribute.backward import checked, chosen, head, placed, shape_at
from jaxinterp.explain.attribute.blur import blurred
from jaxinterp.explain.attribute.coalitions import many_program
from jaxinterp.explain.attribution import Attribution
from jaxinterp.explain.batches import MAX_BYTES, Targets, in_batches
from jaxinterp.explain.meshes import on_automatic_axes
from jaxinterp.explain.program import INPUT, Model, value_at

Objective = Literal["deletion", "extremal"]
BETA = 3
"""Exponent of the total variation."""
TEMPERATURE = 0.05
"""Of the smooth maximum, by which cells of an extremal mask are enlarged."""
GROWTH = 300.0, 1.0035
"""Weight of the area at the first step, and its factor from step to step."""


@on_automatic_axes
def meaningful_perturbation(
    net: Any,
    x: Any,
    targets: Targets = None,
    *,
    layer: str | None = None,
    cells: int = 28,
    steps: int = 300,
    rate: float = 0.1,
    sparsity: float = 0.01,
    smoothness: float = 0.2,
    baseline: ArrayLike | Literal["blur"] = "blur",
    sigma: float | None = None,
    max_bytes: int = MAX_BYTES,
) -> Attribution:
    """Find the smallest, smoothest region whose deletion lowers a class' probability.

        m* = argmin_m sparsity · mean|1 − m| + smoothness · Σ |∇m|³ / cells² + p_k(x ⊙ M + x' ⊙ (1 − M))
        contributions_k = 1 − M*          M: the mask m ∈ [0, 1]^(cells × cells), enlarged bilinearly

    by Adam with m kept in [0, 1]; every class of every image has a mask of its own. p is the softmax or the sigmoid,
    as the network was trained (`net.probability`).

    Args:
        net: a network, see `explainable`.
        x: images, (batch, H, W, C), floating.
        targets: None for all classes, an int, (batch,) or (batch, T) classes.
        layer: name of a layer, whose output (batch, H', W', J) takes the place of `x`.
        cells: cells along each side of the mask, or as many as there are pixels.
        steps: of the descent, ≥ 1.
        rate: of Adam, above 0.
        sparsity: weight λ₁ of the deleted area, at least 0.
        smoothness: weight λ₂ of the total variation, at least 0.
        baseline: x', a number or an array that broadcasts to `x`, or to the layer's output; or "blur", the image
            blurred by a Gaussian.
        sigma: of that, in pixels; by default 10 for 224 pixels, and in proportion.
        max_bytes: bytes that one pass may take by estimate; pairs of an image and a class run in parts.

    Returns:
        An `Attribution` (batch, T, H, W, 1) in [0, 1], without a residual.

    Example:
        >>> net = lambda x: jnp.stack([20 * x[:, 0, 0, 0] - 5, x[:, 1, 1, 0]], 1)
        >>> parts = meaningful_perturbation(net, jnp.ones((1, 4, 4, 1)), 0, baseline=0.0, smoothness=0.0, steps=50)
        >>> (parts.maps()[0, 0] > 0.5).astype(int)[:2].tolist()
        [[1, 0, 0, 0], [0, 0, 0, 0]]

    Source: Fong, Vedaldi, arXiv 1704.03296, Eq. 6, without its jitter; settings of Sec. 4.
    """
    require_number("sparsity", sparsity, "at least 0", lambda v: v >= 0)
    require_number("smoothness", smoothness, "at least 0", lambda v: v >= 0)
    settings, kind = {"sparsity": sparsity, "smoothness": smoothness}, "meaningful_perturbation"
    return _descend("deletion", kind, net, x, targets, layer, cells, steps, rate, settings, baseline, sigma, max_bytes)


@on_automatic_axes
def extremal_perturbation(
    net: Any,
    x: Any,
    targets: Targets = None,
    *,
    layer: str | None = None,
    area: float = 0.1,
    cells: int = 32,
    radius: float = 3.0,
    steps: int = 800,
    rate: float = 0.01,
    baseline: ArrayLike | Literal["blur"] = "blur",
    sigma: float | None = None,
    max_bytes: int = MAX_BYTES,
) -> Attribution:
    """Find the region of a given area that keeps a class' logit the highest when all else is perturbed.

        m* = argmax_m f_k(x ⊙ M + x' ⊙ (1 − M)) − λ mean (sort(M) − r)²          contributions_k = M*
        r: the share `area` of ones behind zeros          M(p) = smax_q k(|p − q|/radius) m(q)

    with m ∈ [0, 1]^(cells × cells), k(d) = exp(−2 max(0, d − ½)²), smax_i v_i = Σ v_i e^{v_i/T} / Σ e^{v_i/T} along
    columns and then along rows, and λ that grows; by gradient descent with momentum from m = 1/2, where λ is 0 as
    equal pixels have no order.

    Args:
        net: a network, see `explainable`.
        x: images, (batch, H, W, C), floating.
        targets: None for all classes, an int, (batch,) or (batch, T) classes.
        layer: name of a layer, whose output (batch, H', W', J) takes the place of `x`.
        area: share of the image, in (0, 1).
        cells: cells along each side of the mask, or as many as there are pixels.
        radius: of the smooth maximum in cells, above 0: no region is smaller than this.
        steps: of the descent, ≥ 1.
        rate: of the descent, above 0, for logits of order 10.
        baseline: x', as of `meaningful_perturbation`.
        sigma: as of `meaningful_perturbation`.
        max_bytes: bytes that one pass may take by estimate; pairs of an image and a class run in parts.

    Returns:
        An `Attribution` (batch, T, H, W, 1) in [0, 1], without a residual.

    Example:
        >>> net = lambda x: 20 * x[:, :2, :2].sum((1, 2))
        >>> parts = extremal_perturbation(net, jnp.ones((1, 4, 4, 1)), area=0.25, radius=1.0, baseline=0.0, steps=200)
        >>> bool(parts.maps()[0, 0, 0, 0] > 0.9), bool(parts.maps()[0, 0, 3, 3] < 0.1)
        (True, True)

    Pixels of a region tie, and then rounding orders them, so that masks may differ by more than that between batches.

    Source: Fong, Patrick, Vedaldi, arXiv 1910.08485, Eq. 2–6, with the smooth maximum taken axis by axis.
    """
    require_number("area", area, "a share in (0, 1)", lambda v: 0 < v < 1)
    require_number("radius", radius, "more than 0", lambda v: v > 0)
    settings, kind = {"area": area, "radius": radius}, "extremal_perturbation"
    return _descend("extremal", kind, net, x, targets, layer, cells, steps, rate, settings, baseline, sigma, max_bytes)


def _descend(
    objective: Objective,
    method: str,
    net: Any,
    x: Any,
    targets: Targets,
    layer: str | None,
    cells: int,
    steps: int,
    rate: float,
    settings: dict[str, float],
    baseline: Any,
    sigma: float | None,
    max_bytes: int,
) -> Attribution:
    """Find the masks of all pairs of an image and a class: as many at once as the budget allows."""
    require_whole("steps", steps, 1)
    require_whole("cells", cells, 1)
    require_number("rate", rate, "more than 0", lambda v: v > 0)
    if sigma is not None:
        require_number("sigma", sigma, "more than 0", lambda v: v > 0)
    call = checked(net, x, targets, layer, max_bytes)
    shape = shape_at(call, layer)
    require(len(shape) == 4, "x" if layer is None else "layer", f"shape {shape}", "(batch, height, width, channels)")
    require_channels_last("x" if layer is None else "layer", shape)
    blur = isinstance(baseline, str)
    require(not blur or baseline == "blur", "baseline", baseline, '"blur", a number or an array')
    deviation = max(shape[1:3]) * 10 / 224 if sigma is None else sigma
    numbers = settings | {"rate": rate, "sigma": deviation}
    values = {name: jnp.asarray(value, float) for name, value in numbers.items()}
    grid = min(cells, shape[1]), min(cells, shape[2])
    count = call.rows.shape[1]
    total, most = (size / len(call.x) for size in call.memory)
    entries = math.prod(shape[1:]) + math.prod(call.x.shape[1:])
    each = total + 2 * most + 8 * entries * call.x.dtype.itemsize
    part = math.ceil(count / math.ceil(count / max(1, min(count, int(max_bytes // each)))))

    def explain(x: Array, rows: Array, *base: Array) -> Attribution:
        many = many_program(call, x, part)
        kinds = objective, call.net.probability, layer, grid, steps, part
        starts = [min(start, count - part) for start in range(0, count, part)]  # the last part reaches back
        parts = [_found(*kinds, many, x, rows, start, base, values) for start in starts]
        new = count - part * (len(parts) - 1)
        masks, logits = (
            jnp.concatenate([*found[:-1], found[-1][:, part - new :]], axis=1) for found in zip(*parts, strict=True)
        )
        return Attribution(masks, logits, rows, method=method, layer=layer or INPUT)

    arrays = call.x, call.rows, *(() if blur else (placed(call, "baseline", baseline, layer),))
    with jax.default_matmul_precision("highest"):
        return in_batches(explain, arrays, call.batch, each * part * len(call.x), max_bytes)


def _distance(pixels: int, cells: int, kind: Any) -> Float[Array, "pixels cells"]:
    """Return the distance of each pixel of an axis, in cells, to the middle of each cell."""
    middle = jnp.arange(cells, dtype=kind) + 0.5
    return jnp.abs((jnp.arange(pixels, dtype=kind) + 0.5)[:, None] * (cells / pixels) - middle[None])


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4, 5))
def _found(
    objective: Objective,
    probability: str,
    layer: str | None,
    grid: tuple[int, int],
    steps: int,
    part: int,
    model: Model,
    x: Array,
    rows: Int[Array, "batch t"],
    start: int | Array,
    base: tuple[Array, ...],
    settings: dict[str, Array],
) -> tuple[Float[Array, "batch part h w 1"], Float[Array, "batch part"]]:
    """Descend for some classes of all images at once: their objectives are summed, as they share nothing.

    Returns:
        The enlarged masks, and the classes' logits.
    """
    classes = jax.lax.dynamic_slice_in_dim(rows, start, part, axis=1).reshape(-1)
    x = jnp.repeat(x, part, axis=0)  # now pairs of an image and a class
    z = value_at(model, layer, x)
    values = {name: value.astype(z.dtype) for name, value in settings.items()}
    other = jnp.repeat(base[0], part, axis=0) if base else blurred(z, values["sigma"][None])[0]
    size = z.shape[1:3]
    deletes = objective == "deletion"
    rule = optax.adam(values["rate"]) if deletes else optax.sgd(values["rate"], momentum=0.9)

    def enlarged(m: Array) -> Float[Array, "pairs h w"]:
        if deletes:
            return jax.image.resize(m, (len(m), *size), "linear")
        near = (_distance(*sides, m.dtype) / values["radius"] for sides in zip(size, grid, strict=True))
        tall, wide = (jnp.exp(-2 * jnp.square(jnp.maximum(d - 0.5, 0))) for d in near)
        rows = _smooth_maximum(tall[None, :, None] * m.swapaxes(1, 2)[:, None])  # (pairs, h, cells)
        return _smooth_maximum(wide[None, None] * rows[:, :, None])

    def loss(m: Array, step: Array) -> Array:
        mask = enlarged(m)
        kept = mask[..., None]
        logits = head(model, layer, kept * z + (1 - kept) * other, x)
        if deletes:
            p = jax.nn.softmax(logits) if probability == "softmax" else jax.nn.sigmoid(logits)
            score = -chosen(p, classes[:, None])[:, 0]  # which is to fall
            penalty = values["sparsity"] * (1 - m).mean((1, 2)) + values["smoothness"] * _variation(m)
        else:
            score = chosen(logits, classes[:, None])[:, 0]
            weight, factor = GROWTH
            growing = jnp.where(step > 0, weight * factor ** step.astype(m.dtype), 0)  # equal pixels have no order
            penalty = growing.astype(m.dtype) * _misses_area(mask, values["area"])
        return (penalty - score).sum()

    def turn(step: Array, state: Any) -> Any:
        m, memory = state
        slope = jax.grad(loss)(m, step)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes floats with its integer counts
            change, memory = rule.update(slope, memory)
            return jnp.clip(optax.apply_updates(m, change), 0, 1), memory

    first = jnp.full((len(z), *grid), 0.5, z.dtype)
    m, _ = jax.lax.fori_loop(0, steps, turn, (first, rule.init(first)))
    mask, logits = enlarged(m), chosen(head(model, layer, z, x), classes[:, None])
    whole = (1 - mask if deletes else mask).reshape(-1, part, *size, 1)
    return whole, logits.reshape(-1, part)


def _variation(m: Float[Array, "pairs h w"]) -> Float[Array, " pairs"]:
    """Return the mean total variation, Σ |∇m|^β over the number of cells."""
    steps = [jnp.abs(jnp.diff(m, axis=axis)) ** BETA for axis in (1, 2)]
    return sum((step.sum((1, 2)) for step in steps), jnp.zeros(len(m), m.dtype)) / math.prod(m.shape[1:])


def _smooth_maximum(v: Float[Array, "*lead n"]) -> Float[Array, "*lead"]:
    return (jax.nn.softmax(v / TEMPERATURE, axis=-1) * v).sum(-1)


def _misses_area(mask: Float[Array, "pairs h w"], area: Array) -> Float[Array, " pairs"]:
    """Return the mean squared difference of the sorted mask from the one that has the area, all of it ones."""
    ordered = jnp.sort(mask.reshape(len(mask), -1), axis=1)
    n = ordered.shape[1]
    wanted = (jnp.arange(n).astype(mask.dtype) >= (1 - area) * n).astype(mask.dtype)
    return jnp.square(ordered - wanted[None]).mean(1)
