"""Pixel deletion: the label's probability while pixels are removed in the order of their importance."""

from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxinterp.checks import require, require_at_least, require_finite, require_labels, require_one_of
from jaxinterp.explain.attribute.backward import checked, chosen, head
from jaxinterp.explain.batches import MAX_BYTES, in_batches, padded
from jaxinterp.explain.meshes import on_automatic_axes
from jaxinterp.explain.metrics.explained import Explained, label_maps
from jaxinterp.explain.program import INPUT, value_of

Order = Literal["least", "most"]


class Removal(NamedTuple):
    """Result of `pixel_deletion`.

    Attributes:
        fractions: part of the pixels that is removed, in [0, 1].
        curve: label probability averaged over the images.
        curves: label probability of each image.
        mean: mean of the curve, the summary number.
    """

    fractions: Float[np.ndarray, " points"]
    curve: Float[np.ndarray, " points"]
    curves: Float[np.ndarray, "batch points"]
    mean: float


def removal_counts(pixels: int, fraction: float = 0.25, points: int = 128) -> Int[np.ndarray, " points"]:
    """List the numbers of removed pixels at which the curve is read, from 0 up to max = ⌊fraction · pixels⌋.

    Args:
        pixels: pixels of one image.
        fraction: largest part removed, in (0, 1].
        points: intervals aimed at, of max // points pixels; 32×32 pixels give 129 points, two pixels apart.

    Example:
        >>> removal_counts(8 * 8).tolist()[-3:], len(removal_counts(32 * 32))
        ([14, 15, 16], 129)
    """
    require(0 < fraction <= 1, "fraction", fraction, "a number in (0, 1]")
    require_at_least("points", points, 1)
    largest = int(fraction * pixels)
    require(largest > 0, "fraction", f"{fraction} of {pixels} pixels", "at least one pixel to remove")
    return np.arange(0, largest + 1, max(1, largest // points), dtype=np.int32)


def removal_ranks(maps: Float[Array, "batch height width"], order: Order = "least") -> Int[Array, "batch height width"]:
    """Rank the pixels by the turn at which each is removed, from 0; equal pixels go in reading order.

    Args:
        maps: signed importance of each pixel, (batch, H, W).
        order: "least", from the most negative to the most important, or "most", the other way round.

    Returns:
        (batch, H, W) int32, each image a permutation of 0..H·W − 1.

    Example:
        >>> removal_ranks(jnp.array([[[0.5, -1.0], [0.5, 2.0]]])).tolist()
        [[[1, 0], [2, 3]]]
    """
    require_one_of("order", order, get_args(Order))
    flat = maps.reshape(len(maps), -1)
    turns = jnp.argsort(flat if order == "least" else -flat, axis=1, stable=True)
    return jnp.argsort(turns, axis=1).astype(jnp.int32).reshape(maps.shape)


@on_automatic_axes
def pixel_deletion(
    net: Any,
    method: Explained,
    x: Any,
    labels: Any,
    *,
    order: Order = "least",
    fraction: float = 0.25,
    points: int = 128,
    max_bytes: int = MAX_BYTES,
) -> Removal:
    """Remove pixels in the order of a map and read the label's probability on the way.

    A removed pixel is the zero vector of the *encoded* input, which for a CoDA Net is not black. Pixels are ordered by
    signed importance, so with "least" those against the label go first and a good map's curve rises.

    Args:
        net: a network, see `explainable`; its `probability` says what is read, a sigmoid or the softmax.
        method: (net, x, targets) ↦ `Attribution`, or an `Attribution` of the labels' logits.
        x: images, (batch, H, W, C).
        labels: (batch,) integers.
        order: "least" important first (the published curves) or "most" important first.
        fraction: largest part removed, in (0, 1].
        points: intervals aimed at, see `removal_counts`.
        max_bytes: bytes that one pass may take by estimate; images, then points, run in parts.

    Example:
        >>> from jaxinterp.explain.attribute import input_x_gradient
        >>> from jaxinterp.explain.explainable import explainable
        >>> brightness = explainable(lambda x: x.sum((1, 2)), probability="sigmoid")
        >>> x = jnp.array([[[[2.0], [1.0]]]])
        >>> removal = pixel_deletion(brightness, input_x_gradient, x, jnp.array([0]), fraction=1.0)
        >>> [f"{p:.3f}" for p in removal.curve]
        ['0.953', '0.881', '0.500']

    Source: CVPR 2021 (CoDA Nets), Sec. 5.2; Srinivas, Fleuret, arXiv 1905.00780, Sec. 5.1 (least important first).
    """
    call = checked(net, x, None, INPUT, max_bytes)
    model = call.net.program("logits", call.x)
    shape = model.program.layers[INPUT]
    require(len(shape) == 4, "x", f"shape {call.x.shape}", "images (batch, height, width, channels)")
    require_labels("labels", labels, call.batch, model.program.output.shape[1])
    counts = removal_counts(shape[1] * shape[2], fraction, points)
    maps = label_maps(call.net, method, jnp.asarray(x), jnp.asarray(labels), shape[1:3])
    require_finite("maps", maps)
    rows = padded(jnp.asarray(labels, jnp.int32)[:, None])
    ranks = removal_ranks(padded(maps), order)
    each = 2 * call.memory[1] / len(call.x)
    size = max(1, min(len(counts), int(max_bytes // max(1, each))))  # points at once, of one image at least
    size = -(-len(counts) // -(-len(counts) // size))

    def read(x: Array, ranks: Array, rows: Array) -> Array:
        encoded = value_of(call.net.program("logits", x), INPUT, x)
        many = jnp.tile(x, (size, *(1,) * (x.ndim - 1)))
        model, parts = call.net.program("logits", many), []
        for start in range(0, len(counts), size):
            levels = jnp.asarray(counts[min(start, len(counts) - size) :][:size])
            parts.append(_look(call.net.probability == "sigmoid", model, encoded, many, ranks, rows, levels))
        return jnp.concatenate([*parts[:-1], parts[-1][len(parts) * size - len(counts) :]]).T

    with jax.default_matmul_precision("highest"):
        arrays, bytes_all = (call.x, ranks, rows), each * len(call.x) * size
        curves = np.asarray(in_batches(read, arrays, call.batch, bytes_all, max_bytes))
    return Removal(counts / (shape[1] * shape[2]), curves.mean(0), curves, float(curves.mean(0).mean()))


@partial(jax.jit, static_argnums=0)
def _look(
    sigmoid: bool, model: Any, encoded: Array, x: Array, ranks: Array, rows: Array, counts: Int[Array, " points"]
) -> Float[Array, "points batch"]:
    """Return the labels' probabilities at some points of the curve, all points in one batch."""
    kept = ranks[None] >= counts[:, None, None, None]
    logits = head(model, INPUT, jnp.where(kept[..., None], encoded[None], 0).reshape(-1, *encoded.shape[1:]), x)
    probabilities = jax.nn.sigmoid(logits) if sigmoid else jax.nn.softmax(logits)
    return chosen(probabilities, jnp.tile(rows, (len(counts), 1))).reshape(len(counts), len(encoded))
