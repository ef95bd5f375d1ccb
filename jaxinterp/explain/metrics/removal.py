"""Pixel deletion: the label's probability while pixels are removed in the order of their importance."""

from typing import Any, NamedTuple, get_args

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxinterp.checks import require, require_number, require_one_of, require_whole
from jaxinterp.explain.batches import MAX_BYTES
from jaxinterp.explain.meshes import on_automatic_axes
from jaxinterp.explain.metrics.explained import Explained, judged
from jaxinterp.explain.metrics.perturbation import Order, Reading, examples, look, removal_ranks
from jaxinterp.explain.metrics.perturbation import points as between


class Removal(NamedTuple):
    """Result of `pixel_deletion`.

    Attributes:
        scores: mean of each image's curve, (batch,); NaN of those that are not eligible.
        eligible: whether an image could be scored, (batch,).
        fractions: part of the pixels that is removed, in [0, 1].
        curve: label probability averaged over the eligible images; NaN where there is none.
        curves: label probability of each image.
        mean: mean of the curve, the summary number.
    """

    scores: Float[np.ndarray, " batch"]
    eligible: Bool[np.ndarray, " batch"]
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
    require_number("fraction", fraction, "a number in (0, 1]", lambda v: 0 < v <= 1)
    require_whole("points", points, 1)
    largest = int(fraction * pixels)
    require(largest > 0, "fraction", f"{fraction} of {pixels} pixels", "at least one pixel to remove")
    return np.arange(0, largest + 1, max(1, largest // points), dtype=np.int32)


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

    Returns:
        `Removal`. An image with a constant map is not eligible.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxinterp.explain.attribute import input_x_gradient
        >>> from jaxinterp.explain.explainable import explainable
        >>> brightness = explainable(lambda x: x.sum((1, 2)), probability="sigmoid")
        >>> x = jnp.array([[[[2.0], [1.0]]]])
        >>> removal = pixel_deletion(brightness, input_x_gradient, x, jnp.array([0]), fraction=1.0)
        >>> [f"{p:.3f}" for p in removal.curve]
        ['0.953', '0.881', '0.500']

    Source: CVPR 2021 (CoDA Nets), Sec. 5.2; Srinivas, Fleuret, arXiv 1905.00780, Sec. 5.1 (least important first).
    """
    require_one_of("order", order, get_args(Order))
    given = examples(
        net, method, x, labels, reading=Reading("encoded", "probability"), absolute=False, max_bytes=max_bytes
    )
    counts = removal_counts(given.pixels, fraction, points)
    curves, _ = look(given, removal_ranks(given.maps, order), between(0, counts))
    found = judged("pixel_deletion", curves.mean(1), constant_map=given.constant)
    fit = curves[found.eligible] if found.eligible.any() else np.full((1, len(counts)), np.nan)
    return Removal(*found, counts / given.pixels, fit.mean(0), curves, found.mean)
