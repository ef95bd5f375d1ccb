"""Occlusion: how far a logit drops when a window of the image is covered."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from jaxinterp.checks import require, require_at_least, require_channels_last, require_one_of
from jaxinterp.explain.attribute.backward import checked, chosen, logits_at, placed, shape_at
from jaxinterp.explain.attribute.coalitions import at_once, logits_of_versions, many_program
from jaxinterp.explain.attribution import Attribution
from jaxinterp.explain.batches import MAX_BYTES, Targets, as_array, in_batches
from jaxinterp.explain.meshes import on_automatic_axes
from jaxinterp.explain.program import INPUT, Model, value_of

Rule = Literal["mean", "spread"]


def covered(size: int, window: int, stride: int, *, centered: bool = True) -> Bool[np.ndarray, "windows size"]:
    """Mark the pixels of one image axis that each window covers, cut at the border.

    Args:
        size: length of the axis in pixels.
        window: K, side of the window in pixels.
        stride: step between windows in pixels.
        centered: whether window i is centered at pixel i·stride (for even K, at that pixel's upper edge), for all
            pixels; else it starts there, for as many windows as cover the axis.

    Returns:
        (windows, size).

    Example:
        >>> covered(5, window=3, stride=2).astype(int).tolist()
        [[1, 1, 0, 0, 0], [0, 1, 1, 1, 0], [0, 0, 0, 1, 1]]
        >>> covered(6, window=3, stride=2, centered=False).astype(int).tolist()
        [[1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 0], [0, 0, 0, 0, 1, 1]]
    """
    require_at_least("window, stride", (window, stride), 1)
    starts = np.arange(0, size, stride) - window // 2
    if not centered:
        starts = stride * np.arange(math.ceil(max(0, size - window) / stride) + 1)
    start, pixel = starts[:, None], np.arange(size)
    return (start <= pixel) & (pixel < start + window)


@on_automatic_axes
def occlusion(
    net: Any,
    x: Any,
    targets: Targets = None,
    *,
    layer: str | None = None,
    window: int | Sequence[int] = 5,
    stride: int | Sequence[int] = 2,
    baseline: ArrayLike = 0.0,
    rule: Rule = "mean",
    max_bytes: int = MAX_BYTES,
) -> Attribution:
    """Cover each window in turn, and give the drop of the raw logit to the pixels covered.

        drop_k(w) = f_k(x) − f_k(x with window w at x')
        contributions_k(p) = mean of drop_k(w) over windows w ∋ p          "mean", windows from the corner
        contributions_k(p) = Σ_{windows w ∋ p} drop_k(w) / |w|             "spread", windows centered at pixels

    Args:
        net: a network, see `explainable`.
        x: images, (batch, H, W, C), floating, before any encoding: the value 0 is black.
        targets: None for all classes, an int, (batch,) or (batch, T) classes.
        layer: name of a layer, whose output (batch, H', W', J) takes the place of `x`.
        window: side of the square window in pixels, or its (height, width), over all channels; or (height, width,
            channels), which slides over channels too. At most the image's size.
        stride: step between windows in pixels, or one for each axis of the window; with "mean" at most the window, so
            that each pixel is covered.
        baseline: x', a number or an array that broadcasts to `x`, or to the layer's output, in its unit.
        rule: "mean", as in Captum; or "spread", as the authors of CoDA Nets compare it.
        max_bytes: bytes that one pass may take by estimate; images, then windows, run in parts.

    Returns:
        An `Attribution` (batch, T, H, W, 1), without a residual; (batch, T, H, W, C) of windows over channels.

    Example:
        >>> total = lambda x: x.sum((1, 2))
        >>> occlusion(total, jnp.ones((1, 2, 2, 1)), window=1, stride=1).contributions.ravel().tolist()
        [1.0, 1.0, 1.0, 1.0]

    Source: Zeiler, Fergus, arXiv 1311.2901, Sec. 4.2; "spread": settings of CVPR 2021 (CoDA Nets), Sec. 5.2.
    """
    require_one_of("rule", rule, ("mean", "spread"))
    call = checked(net, x, targets, layer, max_bytes)
    shape = shape_at(call, layer)
    require(len(shape) == 4, "x" if layer is None else "layer", f"shape {shape}", "(batch, height, width, channels)")
    require_channels_last("x" if layer is None else "layer", shape)
    axes = [covered(*axis, centered=rule == "spread") for axis in _axes(shape, window, stride, rule)]
    hidden = tuple(map(as_array, axes if len(axes) == 3 else (*axes, np.ones((1, 1), bool))))
    count, base = math.prod(map(len, axes)), placed(call, "baseline", baseline, layer)
    part, each, max_bytes = at_once(call, layer, count, max_bytes)

    def explain(x: Array, rows: Array, base: Array) -> Attribution:
        model, many = call.net.program("logits", x), many_program(call, x, part)
        z, values = value_of(model, layer, x), as_array(np.zeros((count, *rows.shape), model.program.output.dtype))
        for start in range(0, count, part):
            start = min(start, count - part)  # the last part reaches back
            values = _look(layer, part, values, start, many, z, base, x, rows, hidden)
        return _given(rule, layer, logits_at(model, layer, z, x), rows, values, hidden)

    kept = 4 * count * call.rows.shape[1] * call.x.dtype.itemsize
    with jax.default_matmul_precision("highest"):
        bytes_all = (each * part + kept) * len(call.x)
        return in_batches(explain, (call.x, call.rows, base), call.batch, bytes_all, max_bytes)


def _axes(
    shape: Sequence[int], window: int | Sequence[int], stride: int | Sequence[int], rule: Rule
) -> list[tuple[int, int, int]]:
    """Return (size, window, stride) of each axis along which windows slide."""
    sides = (window,) * 2 if isinstance(window, int | np.integer) else tuple(window)
    steps = (stride,) * len(sides) if isinstance(stride, int | np.integer) else tuple(stride)
    whole = all(isinstance(side, int | np.integer) for side in (*sides, *steps))
    fits = whole and len(sides) in (2, 3) and len(steps) == len(sides)
    wanted = "whole numbers of pixels: one, or (height, width), or (height, width, channels)"
    require(fits, "window, stride", (window, stride), wanted)
    require_at_least("window, stride", (*sides, *steps), 1)
    most = shape[1 : 1 + len(sides)]
    inside = all(max(side, step) <= size for side, step, size in zip(sides, steps, most, strict=True))
    require(inside, "window, stride", (window, stride), f"at most the image's size, {tuple(most)}")
    gaps = rule == "mean" and any(step > side for side, step in zip(sides, steps, strict=True))
    require(not gaps, "stride", stride, f"at most the window, {sides}, so that each pixel is covered")
    return list(zip(most, sides, steps, strict=True))


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def _look(
    layer: str | None,
    part: int,
    values: Float[Array, "N batch t"],
    start: int | Array,
    model: Model,
    z: Array,
    base: Array,
    x: Array,
    rows: Int[Array, "batch t"],
    hidden: tuple[Array, Array, Array],
) -> Float[Array, "N batch t"]:
    """Write the targets' logits of the images under some windows into the whole."""
    places = jnp.unravel_index(start + jnp.arange(part, dtype=jnp.int32), tuple(map(len, hidden)))
    tall, wide, deep = (axis[place] for axis, place in zip(hidden, places, strict=True))
    under = tall[:, None, :, None, None] & wide[:, None, None, :, None] & deep[:, None, None, None, :]
    versions = jnp.where(under, base[None], z[None])
    return jax.lax.dynamic_update_slice(values, logits_of_versions(model, layer, versions, x, rows), (start, 0, 0))


@partial(jax.jit, static_argnums=(0, 1))
def _given(
    rule: Rule,
    layer: str | None,
    logits: Float[Array, "batch classes"],
    rows: Int[Array, "batch t"],
    values: Float[Array, "N batch t"],
    hidden: tuple[Bool[Array, "n h"], Bool[Array, "m w"], Bool[Array, "l c"]],
) -> Attribution:
    """Give each window's drop to its pixels, axis by axis, as windows are products of intervals."""
    logits = chosen(logits, rows)
    drops = (logits[None] - values).reshape(*map(len, hidden), *rows.shape)
    tall, wide, deep = (axis.astype(drops.dtype) for axis in hidden)
    if rule == "mean":
        tall, wide, deep = (axis / axis.sum(0, keepdims=True) for axis in (tall, wide, deep))
    else:
        tall, wide, deep = (axis / axis.sum(1, keepdims=True) for axis in (tall, wide, deep))
    parts = jnp.einsum("nmlbt,nh,mw,lc->bthwc", drops, tall, wide, deep)
    return Attribution(parts, logits, rows, method="occlusion", layer=layer or INPUT)
