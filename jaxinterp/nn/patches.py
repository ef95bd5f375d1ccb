"""Patches of images, as the convolutions here see them."""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float


def patches(
    x: Float[Array, "n h w c"],
    sides: tuple[int, int],
    strides: tuple[int, int] = (1, 1),
    padding: Sequence[tuple[int, int]] = ((0, 0), (0, 0)),
    dilation: tuple[int, int] = (1, 1),
) -> Float[Array, "n h2 w2 d"]:
    """What lies under a filter at every place, as rows of a matrix.

    Args:
        x: (N, H, W, C).
        sides: of the filter in pixels.
        strides: from one place to the next, in pixels.
        padding: zeros before and after, of rows and of columns.
        dilation: from one value under the filter to the next, in pixels.

    Returns:
        (N, H2, W2, sides[0] · sides[1] · C), in the order of a kernel (row, column, channel).

    Raises:
        ValueError: the filter is larger than the padded image.

    Example:
        >>> patches(jnp.arange(4.0).reshape(1, 2, 2, 1), (2, 2))[0, 0, 0].tolist()
        [0.0, 1.0, 2.0, 3.0]
    """
    padded = jnp.pad(x, [(0, 0), *padding, (0, 0)])
    spans = [d * (s - 1) + 1 for s, d in zip(sides, dilation, strict=True)]
    if any(length < span for length, span in zip(padded.shape[1:3], spans, strict=True)):
        raise ValueError(f"x: got {padded.shape[1]}x{padded.shape[2]} with padding, expected at least {spans}")
    ends = [length - span + 1 for length, span in zip(padded.shape[1:3], spans, strict=True)]
    parts = [
        padded[:, y * dilation[0] :, z * dilation[1] :][:, : ends[0] : strides[0], : ends[1] : strides[1]]
        for y in range(sides[0])
        for z in range(sides[1])
    ]
    return jnp.concatenate(parts, axis=-1)
