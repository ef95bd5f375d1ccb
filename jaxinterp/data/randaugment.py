"""RandAugment (Cubuk et al., 2020) with the operation lists and magnitudes of its two common implementations."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxinterp.checks import require, require_at_least, require_one_of
from jaxinterp.data import pil_ops as ops
from jaxinterp.data.augment import Augment

OPERATIONS: tuple[str, ...] = (
    *("autocontrast", "equalize", "invert", "posterize", "solarize", "solarize_add"),  # tables
    *("color", "contrast", "brightness", "sharpness"),  # blends
    *("rotate", "shear_x", "shear_y", "translate_x", "translate_y"),  # resamplings
    "cutout",  # a box
)
_CUTOUT_COLOR = (125, 123, 114)
# The largest magnitude, number of operations (the first ones), probability of each drawn one, and level outside.
_TABLES = {"uda": (30, 16, 1.0, 0), "timm": (10, 15, 0.5, 128)}


def rand_augment(num_ops: int, magnitude: int | float, table: Literal["uda", "timm"] = "uda") -> Augment:
    """Apply `num_ops` operations, drawn uniformly with replacement, to a gray or RGB image rounded to 8 bits.

    - `uda`: the 16 operations that CoDA Nets train with (m of 30, always applied, nearest pixel, black fill). With
      f = m / 30: rotate 30 f degrees, posterize to int(4 f) bits, solarize at 256 f, add 110 f then solarize at 128,
      enhance by 0.1 + 1.8 f, shear 0.3 f, translate 100 f pixels, cutout of side 40 f.
    - `timm`: the 15 operations of timm's `rand-m*-n*` (m of 10, each applied with probability 1/2, bilinear or
      bicubic at random, gray fill). With f = m / 10: as above, but solarize at int(256 f), int(110 f) added
      below 128 only, translate 0.45 f of the side, no cutout.

    Rotations, shears and translations have a random sign. Low magnitudes posterize and solarize most.

    Args:
        num_ops: operations per image, n, at least 0.
        magnitude: m, in [0, 30] for uda, [0, 10] for timm.
        table: which list.

    >>> rand_augment(2, 9, "timm")(jax.random.key(0), jnp.zeros((8, 8, 3))).shape
    (8, 8, 3)
    """
    require_one_of("table", table, _TABLES)
    require_at_least("num_ops", num_ops, 0)
    top, operations, probability, fill = _TABLES[table]
    require(0 <= magnitude <= top, "magnitude", magnitude, f"in [0, {top}] for {table}")

    def one(key: PRNGKeyArray, levels: ops.Levels) -> ops.Levels:
        # One call, because seven compile for seconds. draw[1] is not used: the others keep their bits.
        draw = jax.random.uniform(key, (7,))
        operation = jnp.floor(draw[0] * operations).astype(jnp.int32)
        sign = jnp.where(draw[2] < 0.5, 1.0, -1.0)
        arguments = _arguments(table, magnitude / top, sign, levels.shape[0], levels.shape[1])
        cubic, wrap = None if table == "uda" else draw[5] < 0.5, table == "uda"
        changed = apply_operation(
            levels, operation, arguments[operation], place=draw[3:5], cubic=cubic, fill=fill, wrap=wrap
        )
        return jnp.where(draw[6] < probability, changed, levels)

    def augment(key: PRNGKeyArray, image: Float[Array, "h w c"]) -> Float[Array, "h w c"]:
        require(image.shape[-1] in (1, 3), "image", f"{image.shape[-1]} channels", "1 or 3")
        levels = ops.to_levels(image)
        levels, _ = jax.lax.scan(lambda before, k: (one(k, before), None), levels, jax.random.split(key, num_ops))
        return ops.from_levels(levels)

    return augment


def apply_operation(
    levels: ops.Levels,
    operation: int | Int[Array, ""],
    argument: int | float | Float[Array, ""],
    *,
    place: Float[Array, "2"],
    cubic: Bool[Array, ""] | None,
    fill: int | tuple[int, ...],
    wrap: bool,
) -> ops.Levels:
    """Apply one of `OPERATIONS`, given by index, with its own argument; both may be traced.

    The argument is bits, threshold, addition, factor, degrees, shear, pixels or side. `place` is the center (x, y) of
    the cutout in [0, 1); for `cubic` and `fill` see `pil_ops.resample`, for `wrap` `pil_ops.solarize_add_table`.
    """
    height, width, channels = levels.shape
    value = jnp.asarray(argument, jnp.float32)
    operation = jnp.asarray(operation, jnp.int32)

    counts = ops.histogram(levels)
    tables = [
        ops.autocontrast_table(counts),
        ops.equalize_table(counts),
        ops.solarize_table(channels, jnp.float32(0)),  # invert
        ops.posterize_table(channels, jnp.clip(value.astype(jnp.int32), 0, 8)),
        ops.solarize_table(channels, value),
        ops.solarize_add_table(channels, value, wrap),
    ]
    tabled = ops.apply_table(levels, jnp.stack(tables)[jnp.clip(operation, 0, 5)])

    fades = [ops.gray(levels), ops.mean_gray(levels), jnp.zeros_like(levels), ops.smooth(levels)]
    blended = ops.blend(jax.lax.select_n(jnp.clip(operation - 6, 0, 3), *fades), levels, value)

    outside = jnp.broadcast_to(jnp.asarray(fill, jnp.int32), (channels,))
    matrix = ops.affine_matrices(value, height, width)[jnp.clip(operation - 10, 0, 4)]
    moved = ops.resample(levels, matrix, outside, cubic)

    center = place * jnp.array([width, height], jnp.float32)
    left, top = jnp.maximum(center - value / 2, 0).astype(jnp.int32)
    color = ops.gray(jnp.array([[_CUTOUT_COLOR]]))[0, 0, :1] if channels == 1 else jnp.array(_CUTOUT_COLOR)
    boxed = ops.fill_box(levels, left, top, value, color)

    family = sum((operation >= first).astype(jnp.int32) for first in (6, 10, 15))
    return jax.lax.select_n(family, tabled, blended, moved, boxed)


def _arguments(table: str, f: float, sign: Float[Array, ""], height: int, width: int) -> Float[Array, " operations"]:
    """Return the argument of every operation at strength f, in the order of `OPERATIONS`."""
    bits, threshold, addition, x, y = np.floor(f * 4.0), f * 256.0, f * 110.0, f * 100.0, f * 100.0
    if table == "timm":
        threshold, addition, x, y = np.floor(threshold), np.floor(addition), f * 0.45 * width, f * 0.45 * height
    moves = [sign * move for move in (f * 30.0, f * 0.3, f * 0.3, x, y)]
    values = [0.0, 0.0, 0.0, bits, threshold, addition, *[f * 1.8 + 0.1] * 4, *moves, f * 40.0]
    return jnp.stack([jnp.asarray(value, jnp.float32) for value in values])
