"""Pixel deletion: the label's probability while pixels are removed in the order of their importance."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxinterp.checks import require, require_at_least, require_finite, require_one_of
from jaxinterp.explain.attribute.attribution import MAX_BYTES
from jaxinterp.explain.decompose import bind
from jaxinterp.explain.tracing import in_chunks, unjitted

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


def pixel_deletion(
    model: Callable[..., Float[Array, "batch classes"]],
    encoded: Float[Array, "batch height width channels"],
    maps: Array,
    labels: Array,
    *,
    order: Order = "least",
    fraction: float = 0.25,
    points: int = 128,
    probability: Literal["sigmoid", "softmax"] = "sigmoid",
    variables: Any = None,
    max_bytes: int = MAX_BYTES,
) -> Removal:
    """Remove pixels in the order of a map and read the label's probability on the way.

    A removed pixel is the zero vector of the *encoded* input, which for a CoDA Net is not black. Pixels are ordered by
    signed importance, so with "least" those against the label go first and a good map's curve rises.

    Args:
        model: encoded ↦ logits (batch, classes), or (variables, encoded) ↦ logits, compiled, with `variables`.
        encoded: the network's input after any encoding, (batch, H, W, C), floating.
        maps: channel-summed attribution of the label's logit, (batch, H, W), finite.
        labels: (batch,) integers.
        order: "least" important first (the published curves) or "most" important first.
        fraction: largest part removed, in (0, 1].
        points: intervals aimed at, see `removal_counts`.
        probability: "sigmoid" of the label's logit, or "softmax" for networks trained with it.
        variables: the model's variables, any pytree.
        max_bytes: bytes that one pass may take by estimate; images, then points, run in chunks.

    Example:
        >>> brightness = lambda x: x.sum((1, 2))
        >>> x = jnp.array([[[[2.0], [1.0]]]])
        >>> removal = pixel_deletion(brightness, x, x[..., 0], jnp.array([0]), fraction=1.0)
        >>> [f"{p:.3f}" for p in removal.curve]
        ['0.953', '0.881', '0.500']

    Source: CVPR 2021 (CoDA Nets), Sec. 5.2; Srinivas, Fleuret, arXiv 1905.00780, Sec. 5.1 (least important first).
    """
    fits = encoded.ndim == 4 and maps.shape == encoded.shape[:3]
    require(fits, "maps", f"shape {maps.shape} for input {encoded.shape}", "(batch, height, width)")
    require_one_of("probability", probability, ("sigmoid", "softmax"))
    require_finite("maps", maps)
    counts = removal_counts(maps.shape[1] * maps.shape[2], fraction, points)
    with jax.default_matmul_precision("highest"):
        bound, rows, size = bind(model, encoded, labels, variables)
        bytes_each, levels = size.bytes_each(1), (jnp.asarray(counts),)
        look = partial(unjitted(_look) if variables is None else _look, probability == "sigmoid", bound)

        def read(x: Array, ranks: Array, rows: Array) -> Array:
            return in_chunks(partial(look, x, ranks, rows), levels, bytes_each * len(x), max_bytes).T

        curves = np.asarray(in_chunks(read, (encoded, removal_ranks(maps, order), rows), bytes_each, max_bytes))
    return Removal(counts / (maps.shape[1] * maps.shape[2]), curves.mean(0), curves, float(curves.mean(0).mean()))


@partial(jax.jit, static_argnums=0)
def _look(
    sigmoid: bool, model: Callable[[Array], Array], x: Array, ranks: Array, rows: Array, counts: Int[Array, " points"]
) -> Float[Array, "points batch"]:
    """Return the labels' probabilities at some points of the curve, all points in one batch."""
    kept = ranks[None] >= counts[:, None, None, None]
    logits = model(jnp.where(kept[..., None], x[None], 0).reshape(-1, *x.shape[1:]))
    probabilities = jax.nn.sigmoid(logits) if sigmoid else jax.nn.softmax(logits)
    return jnp.take_along_axis(probabilities, jnp.tile(rows, (len(counts), 1)), axis=1).reshape(len(counts), len(x))
