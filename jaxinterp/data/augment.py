"""Augmentation of one image: pure functions of (key, image), to be vmapped and jitted."""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxinterp.checks import require, require_at_least

Augment: TypeAlias = Callable[[PRNGKeyArray, Float[Array, "h w c"]], Float[Array, "h w c"]]


def identity(key: PRNGKeyArray, image: Float[Array, "h w c"]) -> Float[Array, "h w c"]:
    """Return the image as it is."""
    return image


def compose(*operations: Augment) -> Augment:
    """Apply augmentations one after the other, each with its own key `fold_in(key, position)`; none is the identity.

    >>> image = jnp.arange(3.0).reshape(1, 3, 1)
    >>> compose(flip(1.0), flip(1.0))(jax.random.key(0), image).ravel().tolist()
    [0.0, 1.0, 2.0]
    """

    def composed(key: PRNGKeyArray, image: Float[Array, "h w c"]) -> Float[Array, "h w c"]:
        for position, operation in enumerate(operations):
            image = operation(jax.random.fold_in(key, position), image)
        return image

    return composed


def flip(probability: int | float = 0.5) -> Augment:
    """Mirror the image left to right with a probability in [0, 1].

    >>> flip(1.0)(jax.random.key(0), jnp.arange(3.0).reshape(1, 3, 1)).ravel().tolist()
    [2.0, 1.0, 0.0]
    """
    require(0 <= probability <= 1, "probability", probability, "in [0, 1]")

    def flipped(key: PRNGKeyArray, image: Float[Array, "h w c"]) -> Float[Array, "h w c"]:
        return jnp.where(jax.random.bernoulli(key, probability), image[:, ::-1], image)

    return flipped


def crop(padding: int = 4) -> Augment:
    """Pad with zeros (black) on all sides, then cut out a window of the original size, uniformly at random.

    The CIFAR recipe has 4 pixels on 32 x 32 (He et al., 2016, section 4.2; CoDA Nets use the same).

    Args:
        padding: pixels on each side, at least 0; the (2 padding + 1)^2 windows are equally likely.
    """
    require_at_least("padding", padding, 0)

    def cropped(key: PRNGKeyArray, image: Float[Array, "h w c"]) -> Float[Array, "h w c"]:
        top, left = jax.random.randint(key, (2,), 0, 2 * padding + 1)
        padded = jnp.pad(image, [(padding, padding), (padding, padding), (0, 0)])
        return jax.lax.dynamic_slice(padded, (top, left, jnp.zeros_like(top)), image.shape)

    return cropped
