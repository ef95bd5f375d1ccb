"""Pillow's image operations on 8-bit levels, as JAX functions: tables, blends, resamplings and a box.

An image here is int32 (H, W, C) with levels 0 to 255 and C = 1 or 3. Every operation is one of four: a look-up table
of 256 levels per channel, a blend with a degenerate image, an affine resampling, or a box filled with one color; so a
random choice among all operations costs four passes and not one per operation.
"""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32

Levels = Int32[Array, "h w c"]
Table = Int32[Array, "256 c"]
Scalar = Float[Array, ""]


def to_levels(image: Float[Array, "h w c"]) -> Levels:
    """Round an image in [0, 1] to levels 0 to 255."""
    return jnp.round(jnp.clip(image, 0, 1) * 255).astype(jnp.int32)


def from_levels(levels: Levels) -> Float[Array, "h w c"]:
    """Convert levels 0 to 255 to float32 in [0, 1]."""
    return levels.astype(jnp.float32) / 255


def apply_table(levels: Levels, table: Table) -> Levels:
    """Replace each level by the entry of its channel's table."""
    return jnp.take_along_axis(table, levels.reshape(-1, levels.shape[-1]), axis=0).reshape(levels.shape)


def _ramp(channels: int) -> Table:
    return jnp.broadcast_to(jnp.arange(256, dtype=jnp.int32)[:, None], (256, channels))


def posterize_table(channels: int, bits: Int[Array, ""]) -> Table:
    """Keep the `bits` highest bits of v."""
    lost = 8 - bits
    return (_ramp(channels) >> lost) << lost


def solarize_table(channels: int, threshold: Scalar) -> Table:
    """Invert v, to 255 - v, from the threshold on."""
    ramp = _ramp(channels)
    return jnp.where(ramp.astype(jnp.float32) < threshold, ramp, 255 - ramp)


def solarize_add_table(channels: int, addition: Scalar, wrap: bool) -> Table:
    """Add to v, up to 255: below 128 only, or (`wrap`) everywhere and then `solarize` at 128."""
    ramp = _ramp(channels)
    added = jnp.clip(ramp.astype(jnp.float32) + addition, 0, 255).astype(jnp.int32)
    if wrap:
        return jnp.where(added < 128, added, 255 - added)
    return jnp.where(ramp < 128, added, ramp)


def histogram(levels: Levels) -> Table:
    """Count how often each level occurs, per channel."""
    count = jax.vmap(lambda channel: jnp.bincount(channel, length=256), in_axes=1, out_axes=1)
    return count(levels.reshape(-1, levels.shape[-1])).astype(jnp.int32)


def autocontrast_table(counts: Table) -> Table:
    """Stretch the darkest level of each channel to 0 and the brightest to 255, rounded down."""
    present = counts > 0
    ramp = _ramp(counts.shape[-1])
    low = jnp.argmax(present, axis=0, keepdims=True).astype(jnp.int32)
    high = 255 - jnp.argmax(present[::-1], axis=0, keepdims=True).astype(jnp.int32)
    stretched = jnp.clip((ramp - low) * 255 // jnp.maximum(high - low, 1), 0, 255)
    return jnp.where(high > low, stretched, ramp)


def equalize_table(counts: Table) -> Table:
    """Make the cumulative histogram of each channel as linear as its levels allow."""
    last = 255 - jnp.argmax((counts > 0)[::-1], axis=0, keepdims=True).astype(jnp.int32)
    step = (counts.sum(axis=0, keepdims=True) - jnp.take_along_axis(counts, last, axis=0)) // 255
    before = jnp.cumsum(counts, axis=0) - counts
    spread = jnp.minimum((before + step // 2) // jnp.maximum(step, 1), 255)
    return jnp.where(step > 0, spread.astype(jnp.int32), _ramp(counts.shape[-1]))


def gray(levels: Levels) -> Levels:
    """Return the ITU-R 601-2 luma, (19595 R + 38470 G + 7471 B + 2^15) / 2^16, in every channel; gray images stay."""
    if levels.shape[-1] == 1:
        return levels
    luma = levels @ jnp.array([19595, 38470, 7471], jnp.int32)
    return jnp.broadcast_to(((luma + 0x8000) >> 16)[..., None], levels.shape)


def mean_gray(levels: Levels) -> Levels:
    """Return the rounded mean of `gray` everywhere, which contrast fades to."""
    luma = gray(levels)[..., 0]
    return jnp.full_like(levels, jnp.floor(jnp.mean(luma.astype(jnp.float32)) + 0.5).astype(jnp.int32))


def smooth(levels: Levels) -> Levels:
    """Apply Pillow's SMOOTH filter (3 x 3 ones, 5 in the middle, over 13; the border stays), for sharpness."""
    height, width, _ = levels.shape
    if height < 3 or width < 3:
        return levels
    ones = (levels[i : i + height - 2, j : j + width - 2] for i in range(3) for j in range(3))
    total = sum(ones, 4 * levels[1:-1, 1:-1])
    return levels.at[1:-1, 1:-1].set((2 * total + 13) // 26)


def blend(degenerate: Levels, levels: Levels, factor: Scalar) -> Levels:
    """Return degenerate + factor (levels - degenerate), clipped and rounded down; beyond 1 it extrapolates."""
    mixed = degenerate.astype(jnp.float32) + factor * (levels - degenerate).astype(jnp.float32)
    return jnp.clip(mixed, 0, 255).astype(jnp.int32)


def affine_matrices(value: Scalar, height: int, width: int) -> Float[Array, "5 2 3"]:
    """Return the matrices of five operations, for `resample`.

    Rotation about the center, counter-clockwise by `value` degrees; shears, where output (u, v) shows input
    (u + value v, v) or (u, v + value u); translations, where it shows (u + value, v) or (u, v + value).
    """
    angle = -jnp.deg2rad(value)
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    x, y = width / 2, height / 2
    rows = [cosine, sine, x - cosine * x - sine * y], [-sine, cosine, y + sine * x - cosine * y]
    entries = np.zeros((4, 2, 3), np.float32)
    entries[np.arange(4), [0, 1, 0, 1], [1, 0, 2, 2]] = 1
    moves = np.eye(2, 3, dtype=np.float32)[None] + value * entries
    return jnp.concatenate([jnp.stack([jnp.stack(row) for row in rows])[None], moves])


def resample(
    levels: Levels, matrix: Float[Array, "2 3"], fill: Int32[Array, " c"], cubic: Bool[Array, ""] | None
) -> Levels:
    """Resample affinely: output pixel center (u, v) shows the input at `matrix` @ (u, v, 1), `fill` outside.

    `cubic` says whether to interpolate bicubically (Pillow's, a = -1) or bilinearly, repeating the border and rounding
    down; None takes the nearest pixel.
    """
    height, width, _ = levels.shape
    u = jnp.arange(width, dtype=jnp.float32)[None, :] + 0.5
    v = jnp.arange(height, dtype=jnp.float32)[:, None] + 0.5
    x, y = (row[0] * u + row[1] * v + row[2] for row in matrix)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    columns, rows = _taps(x, width, cubic), _taps(y, height, cubic)
    mixed = jnp.zeros(levels.shape, jnp.float32)
    for (row, row_weight), (column, weight) in product(rows, columns):
        mixed += (row_weight * weight)[..., None] * levels[row, column].astype(jnp.float32)
    levels = jnp.clip(mixed + 1e-3, 0, 255).astype(jnp.int32)
    return jnp.where(inside[..., None], levels, fill)


def _taps(
    position: Float[Array, "h w"], size: int, cubic: Bool[Array, ""] | None
) -> list[tuple[Int32[Array, "h w"], Float[Array, "h w"]]]:
    """Return the input pixels that one axis mixes, by index and weight."""
    if cubic is None:
        return [(jnp.clip(jnp.floor(position).astype(jnp.int32), 0, size - 1), jnp.ones_like(position))]
    start = jnp.floor(position - 0.5)
    f = position - 0.5 - start
    g = 1 - f
    keys = [-f * g * g, 1 - f * f * (2 - f), 1 - g * g * (2 - g), -g * f * f]
    lines = [jnp.zeros_like(f), g, f, jnp.zeros_like(f)]
    pixels = [jnp.clip(start.astype(jnp.int32) + offset, 0, size - 1) for offset in range(-1, 3)]
    return [(pixel, jnp.where(cubic, key, line)) for pixel, key, line in zip(pixels, keys, lines, strict=True)]


def fill_box(
    levels: Levels, left: Int[Array, ""], top: Int[Array, ""], side: Scalar, color: Int32[Array, " c"]
) -> Levels:
    """Fill the box from (left, top) to (left + side, top + side), both ends included, with one color."""
    height, width, _ = levels.shape
    column, row = jnp.arange(width)[None, :], jnp.arange(height)[:, None]
    right = jnp.minimum(left.astype(jnp.float32) + side, width).astype(jnp.int32)
    bottom = jnp.minimum(top.astype(jnp.float32) + side, height).astype(jnp.int32)
    boxed = (column >= left) & (column <= right) & (row >= top) & (row <= bottom)
    return jnp.where(boxed[..., None], color, levels)
