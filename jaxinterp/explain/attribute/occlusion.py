"""Occlusion: how far a logit drops when a window of the image is covered."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxinterp.explain.attribute.attribution import MEMORY, Attribution, bind
from jaxinterp.explain.decompose import Targets
from jaxinterp.explain.tracing import footprint, in_chunks


def covered(size: int, window: int, stride: int, compat: bool = False) -> Bool[np.ndarray, "windows size"]:
    """Which pixels of one image axis each window covers; windows stand at multiples of the stride, cut at the border.

    Args:
        size: length of the axis in pixels.
        window: K, side of the window in pixels.
        stride: step between windows in pixels.
        compat: cover what the authors' code covers: K − 1 pixels for odd K, 2K − stride for even K, and no window
            that would start in a last, incomplete stride.

    Returns:
        (windows, size); window i is centered at pixel i·stride (for even K, at that pixel's upper edge).

    Raises:
        ValueError: `window` or `stride` < 1, or nothing would be covered.

    Example:
        >>> covered(5, window=3, stride=2).astype(int).tolist()
        [[1, 1, 0, 0, 0], [0, 1, 1, 1, 0], [0, 0, 0, 1, 1]]
    """
    if window < 1 or stride < 1:
        raise ValueError(f"window, stride: got {window} and {stride}, expected at least 1 pixel each")
    if not compat:
        start = np.arange(0, size, stride) - window // 2
        stop = start + window
    elif window % 2:
        center = np.arange(size // stride) * stride
        start, stop = center - (window - 1) // 2, center + (window - 1) // 2
    else:
        center = np.arange(size // stride) * stride
        start, stop = center + stride - window, center + window
    pixel = np.arange(size)
    inside = (start[:, None] <= pixel) & (pixel < stop[:, None])
    if not (inside.any(1).all() and len(inside)):
        raise ValueError(f"window: {window} with stride {stride} covers no pixel of {size}, expected a larger window")
    return inside


def occlusion(
    apply: Callable[..., Float[Array, "batch classes"]],
    x: Array,
    targets: Targets = None,
    *,
    window: int = 5,
    stride: int = 2,
    baseline: float = 0.0,
    compat: bool = False,
    variables: Any = None,
    max_bytes: int = MEMORY,
) -> Attribution:
    """Occlusion: cover each window in turn and spread the drop of the raw logit over the pixels covered.

        contributions_k(p) = Σ_{windows w ∋ p} (f_k(x) − f_k(x covered on w)) / |w|

    Args:
        apply: x ↦ logits (batch, classes), or (variables, x) ↦ logits where `variables` is given; see `gradient`.
        x: images, (batch, H, W, C), floating, before any encoding: the value 0 is black.
        targets: None for all classes, an int, (batch,) or (batch, T) classes.
        window: K, side of the square window in pixels, at most the image's shorter side.
        stride: step between windows in pixels, at most the same.
        baseline: value that covers, in the unit of `x`.
        compat: cover what the authors' code covers, see `covered`.
        variables: the model's variables, any pytree.
        max_bytes: bytes that one pass may take by estimate; images, then windows, run in chunks.

    Returns:
        An `Attribution` (batch, T, H, W, 1), without a gap.

    Raises:
        ValueError: `window` or `stride` out of range, or as `gradient`.

    Example:
        >>> total = lambda x: x.sum((1, 2))
        >>> occlusion(total, jnp.ones((1, 2, 2, 1)), window=1, stride=1).contributions.ravel().tolist()
        [1.0, 1.0, 1.0, 1.0]

    Source: Zeiler, Fergus, arXiv 1311.2901, Sec. 4.2; settings of CVPR 2021 (CoDA Nets), Sec. 5.2.
    """
    if x.ndim != 4:
        raise ValueError(f"x: got shape {x.shape}, expected (batch, height, width, channels)")
    if max(window, stride) > min(x.shape[1:3]):
        size = f"{x.shape[1]}x{x.shape[2]}"
        raise ValueError(f"window, stride: got {window} and {stride}, expected at most the side of {size} pixels")
    height, width = (covered(size, window, stride, compat) for size in x.shape[1:3])
    pairs = (
        jnp.asarray(np.repeat(height, len(width), axis=0)),
        jnp.asarray(np.tile(width, (len(height), 1))),
    )
    with jax.default_matmul_precision("highest"):
        bound, rows = bind(apply, x, targets, variables)
        bytes_each = footprint(bound, x).bytes_each(1)
        value = jnp.asarray(baseline, x.dtype)
        look, spread = (_look, _spread) if variables is None else (_look_compiled, _spread_compiled)

        def explain(x: Array, rows: Array) -> Attribution:
            logits = in_chunks(partial(look, bound, value, x, rows), pairs, bytes_each * x.shape[0], max_bytes)
            return Attribution(spread(bound, x, rows, logits, *pairs))

        return in_chunks(explain, (x, rows), bytes_each, max_bytes)


def _look(
    apply: Callable[[Array], Array],
    value: Float[Array, ""],
    x: Float[Array, "batch height width channels"],
    rows: Int[Array, "batch t"],
    tall: Bool[Array, "windows height"],
    wide: Bool[Array, "windows width"],
) -> Float[Array, "windows batch t"]:
    """The targets' logits of the images under some windows, all windows in one batch."""
    hidden = (tall[:, :, None] & wide[:, None, :])[:, None, :, :, None]
    logits = apply(jnp.where(hidden, value, x[None]).reshape(-1, *x.shape[1:]))
    logits = logits.reshape(len(tall), x.shape[0], -1)
    return jnp.take_along_axis(logits, jnp.broadcast_to(rows[None], (len(tall), *rows.shape)), axis=-1)


def _spread(
    apply: Callable[[Array], Array],
    x: Float[Array, "batch height width channels"],
    rows: Int[Array, "batch t"],
    logits: Float[Array, "windows batch t"],
    tall: Bool[Array, "windows height"],
    wide: Bool[Array, "windows width"],
) -> Float[Array, "batch t height width 1"]:
    """Spread each window's drop evenly over its pixels and sum over the windows."""
    drops = jnp.take_along_axis(apply(x), rows, axis=1)[None] - logits
    tall, wide = tall.astype(drops.dtype), wide.astype(drops.dtype)
    share = drops / (tall.sum(1) * wide.sum(1))[:, None, None]
    return jnp.einsum("wbt,wh,wv->bthv", share, tall, wide)[..., None]


_look_compiled = jax.jit(_look)
_spread_compiled = jax.jit(_spread)
