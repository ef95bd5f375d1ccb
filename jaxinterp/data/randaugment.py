"""RandAugment (Cubuk et al., 2020) with the operation lists and magnitudes of its two common implementations."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxinterp.data import pil_ops as ops
from jaxinterp.data.augment import Augment

OPERATIONS: tuple[str, ...] = (
    *("autocontrast", "equalize", "invert", "posterize", "solarize", "solarize_add"),  # tables
    *("color", "contrast", "brightness", "sharpness"),  # blends
    *("rotate", "shear_x", "shear_y", "translate_x", "translate_y"),  # resamplings
    "cutout",  # a box
)
_CUTOUT_COLOR = (125, 123, 114)
_DENOMINATOR = {"uda": 30, "timm": 10}


def rand_augment(
    num_ops: int,
    magnitude: int | float,
    table: Literal["uda", "timm"] = "uda",
    *,
    magnitude_std: int | float = 0.0,
    increasing: bool = False,
    probability: int | float | None = None,
    resample: ops.Resample | None = None,
    fill: int | tuple[int, ...] | None = None,
) -> Augment:
    """Apply `num_ops` operations, drawn uniformly with replacement, to the image rounded to 8 bits.

    - `uda`: the 16 operations that CoDA Nets train with (m of 30, each applied surely, nearest pixel, black
      fill). With f = m / 30: rotate 30 f degrees, posterize to int(4 f) bits, solarize at 256 f, add 110 f then
      solarize at 128, enhance by 0.1 + 1.8 f, shear 0.3 f, translate 100 f pixels, cutout of side 40 f.
    - `timm`: the 15 operations of timm's `rand-m*-n*` (m of 10, each applied with probability 1/2, bilinear or
      bicubic at random, gray fill). With f = m / 10: as above, but solarize at int(256 f), int(110 f) added
      below 128 only, translate 0.45 f of the side, no cutout. `increasing` is timm's `inc1`: posterize to
      4 - int(4 f) bits, solarize at 256 - int(256 f), enhance by max(0.1, 1 +- 0.9 f).

    Rotations, shears and translations have a random sign. Unless `increasing`, low magnitudes posterize and
    solarize most.

    Args:
        num_ops: operations per image, n.
        magnitude: m, in [0, 30] for uda, [0, 10] for timm.
        table: which list.
        magnitude_std: standard deviation of m from one operation to the next (timm's mstd), clipped to m's
            range; more than 100: uniform in [0, m].
        increasing: timm's list whose every operation grows with m.
        probability: of applying each drawn operation; default 1 (uda) or 1/2 (timm).
        resample: "nearest", "bilinear", "bicubic" or "random" (of the last two); default nearest (uda),
            random (timm).
        fill: level (0 to 255) or one per channel, outside of the resampled image; default 0 (uda), 128
            (timm).

    Returns:
        The augmentation, for images of 1 or 3 channels.

    Raises:
        ValueError: an argument is out of range.

    >>> augment = rand_augment(2, 9, "timm", magnitude_std=0.5, increasing=True)
    >>> augment(jax.random.key(0), jnp.zeros((8, 8, 3))).shape
    (8, 8, 3)
    """
    if table not in _DENOMINATOR:
        raise ValueError(f"table must be 'uda' or 'timm', got {table!r}")
    if num_ops < 0:
        raise ValueError(f"num_ops must not be negative, got {num_ops}")
    if not 0 <= magnitude <= _DENOMINATOR[table]:
        raise ValueError(f"magnitude must be in [0, {_DENOMINATOR[table]}] for {table}, got {magnitude}")
    if increasing and table != "timm":
        raise ValueError("increasing is for the timm table only")
    chance = probability if probability is not None else {"uda": 1.0, "timm": 0.5}[table]
    if not 0 <= chance <= 1:
        raise ValueError(f"probability must be in [0, 1], got {probability}")
    method = resample or ("nearest" if table == "uda" else "random")
    background = fill if fill is not None else {"uda": 0, "timm": 128}[table]
    choices = len(OPERATIONS) if table == "uda" else len(OPERATIONS) - 1

    def one(key: PRNGKeyArray, levels: ops.Levels) -> ops.Levels:
        draw = jax.random.uniform(key, (7,))  # one call: seven of them compile for seconds
        operation = jnp.floor(draw[0] * choices).astype(jnp.int32)
        strength = _strength(draw[1], magnitude, magnitude_std, _DENOMINATOR[table])
        sign = jnp.where(draw[2] < 0.5, 1.0, -1.0)
        arguments = _arguments(table, increasing, strength, sign, levels.shape[0], levels.shape[1])
        changed = apply_operation(
            levels,
            operation,
            arguments[operation],
            place=draw[3:5],
            method=method,
            cubic=draw[5] < 0.5,
            fill=background,
            wrap=table == "uda",
        )
        return jnp.where(draw[6] < chance, changed, levels)

    def augment(key: PRNGKeyArray, image: Float[Array, "h w c"]) -> Float[Array, "h w c"]:
        if image.shape[-1] not in (1, 3):
            raise ValueError(f"rand_augment needs images of 1 or 3 channels, got {image.shape[-1]}")
        levels = ops.to_levels(image)
        levels, _ = jax.lax.scan(lambda before, k: (one(k, before), None), levels, jax.random.split(key, num_ops))
        return ops.from_levels(levels)

    return augment


def timm_rand_augment(config: str, fill: int | tuple[int, ...] = 128) -> Augment:
    """Read timm's notation, for example `rand-m9-n2-mstd0.5-inc1`.

    Args:
        config: "rand", then any of m (magnitude, default 10), n (operations, default 2), mstd and inc, after
            dashes.
        fill: level(s) outside of the resampled image; timm takes the data set's mean.

    Returns:
        The augmentation.

    Raises:
        ValueError: the text is not of this form.
    """
    head, *sections = config.split("-")
    values = {"m": 10.0, "n": 2.0, "mstd": 0.0, "inc": 0.0}
    for section in sections:
        key = section.rstrip("0123456789.")
        try:
            values = {**values, key: float(section[len(key) :])} if key in values else {}
        except ValueError:
            values = {}
        if not values:
            break
    if head != "rand" or not values:
        raise ValueError(f"expected a config such as 'rand-m9-n2-mstd0.5-inc1', got {config!r}")
    return rand_augment(
        int(values["n"]),
        values["m"],
        "timm",
        magnitude_std=values["mstd"],
        increasing=bool(values["inc"]),
        fill=fill,
    )


def apply_operation(
    levels: ops.Levels,
    operation: int | Int[Array, ""],
    argument: int | float | Float[Array, ""],
    *,
    place: Float[Array, "2"],
    method: ops.Resample,
    cubic: bool | Bool[Array, ""],
    fill: int | tuple[int, ...],
    wrap: bool,
) -> ops.Levels:
    """Apply one of `OPERATIONS` with its own argument; both may be traced.

    Args:
        levels: the image, 0 to 255.
        operation: index into `OPERATIONS`.
        argument: bits, threshold, addition, factor, degrees, shear, pixels or side; unused by the first
            three.
        place: center (x, y) of the cutout, in [0, 1).
        method: how rotations, shears and translations interpolate.
        cubic: the interpolation of the "random" method.
        fill: level(s) that they show outside of the image.
        wrap: solarize_add adds everywhere and inverts from 128 on (uda), instead of adding below 128 (timm).

    Returns:
        The changed image.
    """
    height, width, channels = levels.shape
    value = jnp.asarray(argument, jnp.float32)
    zero = jnp.zeros_like(value)
    whole = value.astype(jnp.int32)
    operation = jnp.asarray(operation, jnp.int32)

    counts = ops.histogram(levels)
    tables = [
        ops.autocontrast_table(counts),
        ops.equalize_table(counts),
        ops.invert_table(channels),
        ops.posterize_table(channels, jnp.clip(whole, 0, 8)),
        ops.solarize_table(channels, value),
        ops.solarize_add_table(channels, value, wrap),
    ]
    tabled = ops.apply_table(levels, jnp.stack(tables)[jnp.clip(operation, 0, 5)])

    fades = [ops.gray(levels), ops.mean_gray(levels), jnp.zeros_like(levels), ops.smooth(levels)]
    blended = ops.blend(jax.lax.select_n(jnp.clip(operation - 6, 0, 3), *fades), levels, value)

    matrices = [
        ops.rotate_matrix(value, height, width),
        ops.shear_matrix(value, zero),
        ops.shear_matrix(zero, value),
        ops.translate_matrix(value, zero),
        ops.translate_matrix(zero, value),
    ]
    outside = jnp.broadcast_to(jnp.asarray(fill, jnp.int32), (channels,))
    matrix = jnp.stack(matrices)[jnp.clip(operation - 10, 0, 4)]
    moved = ops.resample(levels, matrix, outside, method, jnp.asarray(cubic))

    center = place * jnp.array([width, height], jnp.float32)
    left, top = jnp.maximum(center - value / 2, 0).astype(jnp.int32)
    color = ops.gray(jnp.array([[_CUTOUT_COLOR]]))[0, 0, :1] if channels == 1 else jnp.array(_CUTOUT_COLOR)
    boxed = ops.fill_box(levels, left, top, value, color)

    family = sum((operation >= first).astype(jnp.int32) for first in (6, 10, 15))
    return jax.lax.select_n(family, tabled, blended, moved, boxed)


def _strength(draw: Float[Array, ""], magnitude: int | float, std: int | float, top: int) -> float | Float[Array, ""]:
    """Magnitude over its range; a Python float, hence exact in double precision, when nothing is random."""
    if std == 0:
        return magnitude / top
    if std > 100:
        return draw * magnitude / top
    return jnp.clip(magnitude + std * jax.scipy.special.ndtri(draw), 0, top) / top


def _arguments(
    table: str, increasing: bool, f: float | Float[Array, ""], sign: Float[Array, ""], height: int, width: int
) -> Float[Array, " operations"]:
    """The argument of every operation at strength f, in the order of `OPERATIONS`."""
    bits, threshold, addition = jnp.floor(f * 4.0), f * 256.0, f * 110.0
    factor = f * 1.8 + 0.1
    x, y = f * 100.0, f * 100.0
    if table == "timm":
        threshold, addition = jnp.floor(threshold), jnp.floor(addition)
        x, y = f * 0.45 * width, f * 0.45 * height
    if increasing:
        bits, threshold, factor = 4 - bits, 256 - threshold, jnp.maximum(0.1, 1 + sign * (f * 0.9))
    moves = [sign * move for move in (f * 30.0, f * 0.3, f * 0.3, x, y)]
    values = [0.0, 0.0, 0.0, bits, threshold, addition, *[factor] * 4, *moves, f * 40.0]
    return jnp.stack([jnp.asarray(value, jnp.float32) for value in values])
