"""Patches of images, as convolutions see them."""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinterp.checks import require


def patches(
    x: Float[Array, "n h w c"],
    sides: tuple[int, int],
    strides: tuple[int, int] = (1, 1),
    padding: Sequence[tuple[int, int]] = ((0, 0), (0, 0)),
    dilation: tuple[int, int] = (1, 1),
) -> Float[Array, "n h2 w2 d"]:
    """Extract the zero-padded patch under a filter at every position, as explicit slices.

    Args:
        x: (N, H, W, C).
        sides: of the filter in pixels, (y, x).
        strides: from one position to the next, in pixels.
        padding: zeros before and after, of rows and of columns.
        dilation: from one entry of the filter to the next, in pixels.

    Returns:
        (N, H2, W2, sides[0] · sides[1] · C), each patch in the order of a kernel (row, column, channel).

    Example:
        >>> patches(jnp.arange(4.0).reshape(1, 2, 2, 1), (2, 2))[0, 0, 0].tolist()
        [0.0, 1.0, 2.0, 3.0]
    """
    x = jnp.pad(x, ((0, 0), *map(tuple, padding), (0, 0)))
    spans = [d * (s - 1) + 1 for s, d in zip(sides, dilation, strict=True)]
    size = f"{x.shape[1]}x{x.shape[2]} pixels with padding"
    require(x.shape[1] >= spans[0] and x.shape[2] >= spans[1], "x", size, f"at least {spans[0]}x{spans[1]}")
    (sy, sx), (dy, dx) = strides, dilation
    height, width = (x.shape[1] - spans[0]) // sy + 1, (x.shape[2] - spans[1]) // sx + 1
    return jnp.concatenate(
        [
            x[:, i : i + sy * (height - 1) + 1 : sy, j : j + sx * (width - 1) + 1 : sx]
            for i in range(0, dy * sides[0], dy)
            for j in range(0, dx * sides[1], dx)
        ],
        axis=-1,
    )
