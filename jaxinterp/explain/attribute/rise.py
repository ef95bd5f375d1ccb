"""RISE: the mean of random masks, each weighted by the logit of the image under it."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, Key

from jaxinterp.checks import random_key, require, require_channels_last, require_number, require_whole
from jaxinterp.explain.attribute.backward import checked, chosen, placed, shape_at
from jaxinterp.explain.attribute.coalitions import at_once, logits_of_versions, many_program
from jaxinterp.explain.attribution import Attribution
from jaxinterp.explain.batches import MAX_BYTES, Targets, in_batches
from jaxinterp.explain.meshes import on_automatic_axes
from jaxinterp.explain.program import INPUT, Model, called, value_of


@on_automatic_axes
def rise(
    net: Any,
    x: Any,
    targets: Targets = None,
    *,
    layer: str | None = None,
    masks: int = 1000,
    cells: int = 7,
    probability: float = 0.5,
    baseline: ArrayLike = 0.0,
    key: Key[Array, ""] | None = None,
    max_bytes: int = MAX_BYTES,
) -> Attribution:
    """Weight random masks by the logits of what they leave of the image.

        contributions_k = 1/(p·N) Σ_i f_k(x ⊙ M_i + x' ⊙ (1 − M_i)) M_i          E[M_i] = p

    A mask is a grid of cells, each 1 with probability p, enlarged bilinearly and shifted at random by less than a
    cell. Masks are drawn in the compiled program, part by part, the same for all images. The map has an offset, the
    mean logit: maps are compared within, not between, classes.

    Args:
        net: a network, see `explainable`; `output=jax.nn.softmax` weights by probabilities, as the paper does.
        x: images, (batch, H, W, C), floating.
        targets: None for all classes, an int, (batch,) or (batch, T) classes.
        layer: name of a layer, whose output (batch, H', W', J) takes the place of `x`.
        masks: N, ≥ 1.
        cells: cells along each side of the grid, at most the image's shorter side.
        probability: p, in (0, 1), that a cell is kept.
        baseline: x', a number or an array that broadcasts to `x`, or to the layer's output.
        key: typed random key; `jax.random.key(0)` by default.
        max_bytes: bytes that one pass may take by estimate; images, then masks, run in parts.

    Returns:
        An `Attribution` (batch, T, H, W, 1), without a residual.

    Example:
        >>> parts = rise(lambda x: x[:, 0, 0], jnp.ones((1, 4, 4, 1)), masks=500, cells=2).maps()
        >>> bool(parts[0, 0, 0, 0] > 1.5 * parts[0, 0, 3, 3])
        True

    Source: Petsiuk, Das, Saenko, arXiv 1806.07421, Eq. 6 and Sec. 3.2.
    """
    require_whole("masks", masks, 1)
    require_number("probability", probability, "a number in (0, 1)", lambda v: 0 < v < 1)
    call = checked(net, x, targets, layer, max_bytes)
    shape = shape_at(call, layer)
    require(len(shape) == 4, "x" if layer is None else "layer", f"shape {shape}", "(batch, height, width, channels)")
    require_channels_last("x" if layer is None else "layer", shape)
    side = min(shape[1:3])
    require(isinstance(cells, int | np.integer) and 1 <= cells <= side, "cells", cells, f"an integer in 1..{side}")
    key = random_key(key)
    part, each, max_bytes = at_once(call, layer, masks, max_bytes)
    base, maps = placed(call, "baseline", baseline, layer), 3 * call.rows.shape[1] * math.prod(shape[1:3])

    def explain(x: Array, rows: Array, base: Array) -> Attribution:
        model, many = call.net.program("logits", x), many_program(call, x, part)
        z = value_of(model, layer, x)
        kind = model.program.output.dtype
        sums = jnp.zeros((*rows.shape, *shape[1:3]), np.promote_types(kind, np.float32))
        for start in range(0, masks, part):
            sums = _add(layer, part, cells, sums, start, masks, probability, key, many, z, base, x, rows)
        parts = (sums[..., None] / (probability * masks)).astype(kind)
        return Attribution(parts, chosen(called(model, x), rows), rows, method="rise", layer=layer or INPUT)

    bytes_all = (each * part + maps * call.x.dtype.itemsize) * len(call.x)
    with jax.default_matmul_precision("highest"):
        return in_batches(explain, (call.x, call.rows, base), call.batch, bytes_all, max_bytes)


@partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=3)
def _add(
    layer: str | None,
    part: int,
    cells: int,
    sums: Float[Array, "batch t height width"],
    start: int | Array,
    count: int | Array,
    probability: float | Array,
    key: Key[Array, ""],
    model: Model,
    z: Array,
    base: Array,
    x: Array,
    rows: Int[Array, "batch t"],
) -> Float[Array, "batch t height width"]:
    """Add the masks of one part, each times the logits under it; those beyond the last mask count nothing."""
    indices = start + jnp.arange(part, dtype=jnp.int32)
    drawn = random_masks(key, indices, (z.shape[1], z.shape[2]), cells, probability).astype(z.dtype)
    kept = drawn[:, None, :, :, None]
    versions = kept * z[None] + (1 - kept) * base[None]
    logits = logits_of_versions(model, layer, versions, x, rows)
    logits = jnp.where((indices < count)[:, None, None], logits, 0)
    return sums + jnp.einsum("nbt,nhw->bthw", logits.astype(sums.dtype), drawn.astype(sums.dtype))


def random_masks(
    key: Key[Array, ""], indices: Int[Array, " n"], size: tuple[int, int], cells: int, probability: float | Array
) -> Float[Array, "n height width"]:
    """Draw masks by number: grids of cells, enlarged bilinearly by one cell more than the image has, and cut out.

    Args:
        key: of all masks.
        indices: numbers of the masks; a mask depends on its number alone.
        size: (height, width).
        cells: cells along each side.
        probability: that a cell is 1.

    Returns:
        Values in [0, 1].
    """
    steps = [math.ceil(side / cells) for side in size]
    # Enlarging is linear, and separable: M = R_y grid R_xᵀ, with the rows that are cut out.
    enlarge = [jax.image.resize(jnp.eye(cells), ((cells + 1) * step, cells), "linear") for step in steps]

    def mask(index: Array) -> Float[Array, "height width"]:
        cell, *shifts = jax.random.split(jax.random.fold_in(key, index), 3)
        grid = jax.random.bernoulli(cell, probability, (cells, cells)).astype(enlarge[0].dtype)
        tall, wide = (
            jax.lax.dynamic_slice_in_dim(whole, jax.random.randint(shift, (), 0, step), side)
            for whole, shift, step, side in zip(enlarge, shifts, steps, size, strict=True)
        )
        return tall @ grid @ wide.T

    return jax.vmap(mask)(indices)
