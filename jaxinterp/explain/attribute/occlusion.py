"""Occlusion: how far a logit drops when a window of the image is covered."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxinterp.checks import require, require_at_least, require_channels_last
from jaxinterp.explain.attribute.backward import X, checked, chosen
from jaxinterp.explain.attribution import Attribution
from jaxinterp.explain.batches import MAX_BYTES, Targets, in_batches
from jaxinterp.explain.meshes import on_automatic_axes
from jaxinterp.explain.program import called


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


@on_automatic_axes
def occlusion(
    net: Any,
    x: Any,
    targets: Targets = None,
    *,
    window: int = 5,
    stride: int = 2,
    baseline: int | float = 0.0,
    max_bytes: int = MAX_BYTES,
) -> Attribution:
    """Cover each window in turn and spread the drop of the raw logit over the pixels covered.

        contributions_k(p) = Σ_{windows w ∋ p} (f_k(x) − f_k(x covered on w)) / |w|

    Args:
        net: a network, see `explainable`.
        x: images, (batch, H, W, C), floating, before any encoding: the value 0 is black.
        targets: None for all classes, an int, (batch,) or (batch, T) classes.
        window: K, side of the square window in pixels, at most the image's shorter side.
        stride: step between windows in pixels, at most the same.
        baseline: value of covered pixels, in the unit of `x`.
        max_bytes: bytes that one pass may take by estimate; images, then windows, run in parts.

    Returns:
        An `Attribution` (batch, T, H, W, 1), without a residual.

    Example:
        >>> total = lambda x: x.sum((1, 2))
        >>> occlusion(total, jnp.ones((1, 2, 2, 1)), window=1, stride=1).contributions.ravel().tolist()
        [1.0, 1.0, 1.0, 1.0]

    Source: Zeiler, Fergus, arXiv 1311.2901, Sec. 4.2; settings of CVPR 2021 (CoDA Nets), Sec. 5.2.
    """
    call = checked(net, x, targets, None, max_bytes)
    shape = call.x.shape
    require(len(shape) == 4, "x", f"shape {shape}", "(batch, height, width, channels)")
    require_channels_last("x", shape)
    whole = all(isinstance(size, int | np.integer) for size in (window, stride))
    require(whole, "window, stride", (window, stride), "whole numbers of pixels")
    require(
        np.ndim(baseline) == 0, "baseline", f"shape {np.shape(baseline)}", "one number, the value of covered pixels"
    )
    side = min(shape[1:3])
    require(max(window, stride) <= side, "window, stride", (window, stride), f"at most the image's side, {side}")
    height, width = (covered(size, window, stride) for size in shape[1:3])
    tall, wide = np.repeat(height, len(width), axis=0), np.tile(width, (len(height), 1))
    value, each = jnp.asarray(baseline, call.x.dtype), call.memory[1] / len(call.x)
    count = max(1, min(len(tall), int(max_bytes // max(1, each))))  # windows at once, of one image at least
    count = -(-len(tall) // -(-len(tall) // count))

    def explain(x: Array, rows: Array) -> Attribution:
        logits = []
        for start in range(0, len(tall), count):
            start = min(start, len(tall) - count)  # the last part reaches back
            pair = jnp.asarray(tall[start : start + count]), jnp.asarray(wide[start : start + count])
            model = call.net.program("logits", jnp.tile(x, (count, 1, 1, 1)))
            logits.append(_look(model, value, x, rows, *pair))
        whole = jnp.concatenate([*logits[:-1], logits[-1][(len(logits) * count - len(tall)) :]])
        own = chosen(called(call.net.program("logits", x), x), rows)
        drops = own[None] - whole
        parts = _spread(drops, jnp.asarray(tall), jnp.asarray(wide))
        return Attribution(parts, own, rows, method="occlusion", layer=X)

    with jax.default_matmul_precision("highest"):
        return in_batches(explain, (call.x, call.rows), call.batch, each * len(call.x) * count, max_bytes)


@jax.jit
def _look(
    model: Any, value: Array, x: Array, rows: Int[Array, "batch t"], tall: Array, wide: Array
) -> Float[Array, "windows batch t"]:
    """Return the targets' logits of the images under some windows, all windows in one batch."""
    hidden = (tall[:, :, None] & wide[:, None, :])[:, None, :, :, None]
    logits = model(jnp.where(hidden, value, x[None]).reshape(-1, *x.shape[1:]))
    logits = logits.reshape(len(tall), x.shape[0], -1)
    return jnp.take_along_axis(logits, jnp.broadcast_to(rows[None], (len(tall), *rows.shape)), axis=-1)


@jax.jit
def _spread(
    drops: Float[Array, "w batch t"], tall: Bool[Array, "w h"], wide: Bool[Array, "w v"]
) -> Float[Array, "batch t h v 1"]:
    """Spread each window's drop evenly over its pixels and sum over the windows."""
    high, broad = tall.astype(drops.dtype), wide.astype(drops.dtype)
    share = drops / (high.sum(1) * broad.sum(1))[:, None, None]
    return jnp.einsum("wbt,wh,wv->bthv", share, high, broad)[..., None]
