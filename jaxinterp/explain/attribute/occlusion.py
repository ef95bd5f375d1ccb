"""Occlusion: how far a logit drops when a window of the image is covered."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxinterp.checks import require, require_at_least
from jaxinterp.explain.attribute.attribution import MAX_BYTES, Attribution
from jaxinterp.explain.decompose import Targets, bind
from jaxinterp.explain.tracing import in_chunks, unjitted


def covered(size: int, window: int, stride: int) -> Bool[np.ndarray, "windows size"]:
    """Mark the pixels of one image axis that each window covers; windows stand at multiples of the stride.

    Args:
        size: length of the axis in pixels.
        window: K, side of the window in pixels.
        stride: step between windows in pixels.

    Returns:
        (windows, size); window i is centered at pixel i·stride (for even K, at that pixel's upper edge).

    Example:
        >>> covered(5, window=3, stride=2).astype(int).tolist()
        [[1, 1, 0, 0, 0], [0, 1, 1, 1, 0], [0, 0, 0, 1, 1]]
    """
    require_at_least("window, stride", (window, stride), 1)
    start, pixel = np.arange(0, size, stride)[:, None] - window // 2, np.arange(size)
    return (start <= pixel) & (pixel < start + window)


def occlusion(
    model: Callable[..., Float[Array, "batch classes"]],
    x: Array,
    targets: Targets = None,
    *,
    window: int = 5,
    stride: int = 2,
    baseline: float = 0.0,
    variables: Any = None,
    max_bytes: int = MAX_BYTES,
) -> Attribution:
    """Cover each window in turn and spread the drop of the raw logit over the pixels covered.

        contributions_k(p) = Σ_{windows w ∋ p} (f_k(x) − f_k(x covered on w)) / |w|

    Args:
        model: x ↦ logits (batch, classes), or (variables, x) ↦ logits where `variables` is given; see `gradient`.
        x: images, (batch, H, W, C), floating, before any encoding: the value 0 is black.
        targets: None for all classes, an int, (batch,) or (batch, T) classes.
        window: K, side of the square window in pixels, at most the image's shorter side.
        stride: step between windows in pixels, at most the same.
        baseline: value of covered pixels, in the unit of `x`.
        variables: the model's variables, any pytree.
        max_bytes: bytes that one pass may take by estimate; images, then windows, run in chunks.

    Returns:
        An `Attribution` (batch, T, H, W, 1), without a gap.

    Example:
        >>> total = lambda x: x.sum((1, 2))
        >>> occlusion(total, jnp.ones((1, 2, 2, 1)), window=1, stride=1).contributions.ravel().tolist()
        [1.0, 1.0, 1.0, 1.0]

    Source: Zeiler, Fergus, arXiv 1311.2901, Sec. 4.2; settings of CVPR 2021 (CoDA Nets), Sec. 5.2.
    """
    require(x.ndim == 4, "x", f"shape {x.shape}", "(batch, height, width, channels)")
    side = min(x.shape[1:3])
    require(max(window, stride) <= side, "window, stride", (window, stride), f"at most the image's side, {side}")
    height, width = (covered(size, window, stride) for size in x.shape[1:3])
    pairs = jnp.asarray(np.repeat(height, len(width), axis=0)), jnp.asarray(np.tile(width, (len(height), 1)))
    with jax.default_matmul_precision("highest"):
        bound, rows, size = bind(model, x, targets, variables)
        bytes_each = size.bytes_each(1)
        value = jnp.asarray(baseline, x.dtype)
        look, spread = (_look, _spread) if variables is not None else (unjitted(_look), unjitted(_spread))

        def explain(x: Array, rows: Array) -> Attribution:
            logits = in_chunks(partial(look, bound, value, x, rows), pairs, bytes_each * x.shape[0], max_bytes)
            return Attribution(spread(bound, x, rows, logits, *pairs))

        return in_chunks(explain, (x, rows), bytes_each, max_bytes)


@jax.jit
def _look(
    model: Callable[[Array], Array], value: Array, x: Array, rows: Int[Array, "batch t"], tall: Array, wide: Array
) -> Float[Array, "windows batch t"]:
    """Return the targets' logits of the images under some windows, all windows in one batch."""
    hidden = (tall[:, :, None] & wide[:, None, :])[:, None, :, :, None]
    logits = model(jnp.where(hidden, value, x[None]).reshape(-1, *x.shape[1:]))
    logits = logits.reshape(len(tall), x.shape[0], -1)
    return jnp.take_along_axis(logits, jnp.broadcast_to(rows[None], (len(tall), *rows.shape)), axis=-1)


@jax.jit
def _spread(
    model: Callable[[Array], Array], x: Array, rows: Array, logits: Float[Array, "w batch t"], tall: Array, wide: Array
) -> Float[Array, "batch t height width 1"]:
    """Spread each window's drop evenly over its pixels and sum over the windows."""
    drops = jnp.take_along_axis(model(x), rows, axis=1)[None] - logits
    tall, wide = tall.astype(drops.dtype), wide.astype(drops.dtype)
    share = drops / (tall.sum(1) * wide.sum(1))[:, None, None]
    return jnp.einsum("wbt,wh,wv->bthv", share, tall, wide)[..., None]
