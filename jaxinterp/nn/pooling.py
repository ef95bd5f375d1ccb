"""Maximum pooling, with a rule for the derivative where maxima are equal, and adaptive mean pooling.

A maximum is piecewise linear: away from ties its derivative goes to the one largest entry. On flat regions of an image
and on the zeros behind a ReLU entries tie, and every split of the derivative among them, shares that sum to 1, is an
affine map with the same value. Frameworks differ: `jnp.max` shares equally, `jnp.maximum` gives half to each side,
`flax.linen.max_pool` and PyTorch give all to the first entry of the window in row-major order. Values are always the
same; gradients and contributions on images with flat regions are not.
"""

from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Literal, TypeAlias

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxinterp.checks import require, require_one_of

Ties: TypeAlias = Literal["shared", "first"]
Pair: TypeAlias = tuple[int, int]


def max_pool(
    x: Float[Array, "n h w c"],
    window: Pair = (2, 2),
    strides: Pair | None = None,
    padding: str | Sequence[Pair] = "VALID",
    ties: Ties = "shared",
) -> Float[Array, "n h2 w2 c"]:
    """Take maxima over windows, one axis after the other; forward and reverse differentiation give the same map.

    Args:
        x: maps, (N, H, W, C).
        window: height and width of the windows.
        strides: step in pixels along both axes; by default the window's sides, so that windows do not overlap.
        padding: "VALID", where windows that leave the map are dropped, "SAME", or pixels of −∞ before and after each
            axis, fewer than the window has.
        ties: who has the derivative where maxima are equal. "shared": both sides of every comparison of two, half
            each; "first": the first entry in row-major order alone, PyTorch's rule and that of `flax.linen.max_pool`.

    Returns:
        (N, H2, W2, C).

    Raises:
        ConfigError: a window, step or padding is not a positive number of pixels, or the window does not fit.

    Example:
        >>> import jax
        >>> flat = jnp.ones((1, 2, 2, 1))
        >>> for ties in ("shared", "first"):
        ...     print(jax.grad(lambda x: max_pool(x, ties=ties).sum())(flat).ravel())
        [0.25 0.25 0.25 0.25]
        [1. 0. 0. 0.]

    Source: torch.nn.MaxPool2d for the rule "first".
    """
    strides = window if strides is None else strides
    require_one_of("ties", ties, ("shared", "first"))
    for name, sides in (("window", window), ("strides", strides)):
        require(len(sides) == 2 and min(sides) >= 1, name, sides, "two numbers of pixels, at least 1")
    named = isinstance(padding, str)
    require(not named or padding in ("VALID", "SAME"), "padding", padding, "VALID, SAME or pixels")
    pads = lax.padtype_to_pads(x.shape[1:3], window, strides, padding) if isinstance(padding, str) else tuple(padding)
    inside = len(pads) == 2 and all(0 <= p < k for pair, k in zip(pads, window, strict=True) for p in pair)
    require(inside, "padding", padding, f"pixels before and after two axes, fewer than the window's {window}")
    if any(map(any, pads)):
        x = lax.pad(x, jnp.asarray(-jnp.inf, x.dtype), [(0, 0, 0), *((*pair, 0) for pair in pads), (0, 0, 0)])
    fits = all(k <= side for k, side in zip(window, x.shape[1:3], strict=True))
    require(fits, "window", window, f"at most the {x.shape[1]}x{x.shape[2]} pixels of the padded map")
    larger, axes = (jnp.maximum, (1, 2)) if ties == "shared" else (_first_larger, (2, 1))
    return reduce(partial(_along, larger, window, strides), axes, x)


def adaptive_mean(x: Float[Array, "n h w c"], side: int) -> Float[Array, "n side side c"]:
    """Average a map to side × side pixels; pixel i is the mean of the rows ⌊i H / side⌋ to ⌈(i + 1) H / side⌉ − 1.

    Args:
        x: maps, (N, H, W, C), of any size; of a smaller one pixels come up more than once.
        side: height and width of the result, in pixels.

    Example:
        >>> adaptive_mean(jnp.arange(9.0).reshape(1, 3, 3, 1), 2).ravel().tolist()
        [2.0, 3.0, 5.0, 6.0]

    Source: torch.nn.AdaptiveAvgPool2d.
    """
    for axis in (1, 2):
        size = x.shape[axis]
        if size % side == 0:
            x = x.reshape(*x.shape[:axis], side, size // side, *x.shape[axis + 1 :]).mean(axis + 1)
        else:
            ends = [(i * size // side, -(-(i + 1) * size // side)) for i in range(side)]
            x = jnp.stack([lax.slice_in_dim(x, *pair, axis=axis).mean(axis) for pair in ends], axis)
    return x


def _along(larger: Callable[[Array, Array], Array], window: Pair, strides: Pair, x: Array, axis: int) -> Array:
    """Take maxima along one axis, two at a time.

    The derivative of a reduction compares values with the maximum, and XLA may compute them twice with different
    rounding and find none equal. On CPU this one also takes a fifth of the time of `nn.max_pool`'s, which scatters.
    """
    size, step = window[axis - 1], strides[axis - 1]
    stop = (x.shape[axis] - size) // step * step + 1
    return reduce(larger, (lax.slice_in_dim(x, i, i + stop, step, axis) for i in range(size)))


def _first_larger(a: Array, b: Array) -> Array:
    """Return the maximum, or NaN where there is one, as a choice of one argument: a where they are equal."""
    return jnp.where((b > a) | jnp.isnan(b), b, a)
