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


def rotate(degrees: int | float) -> Augment:
    """Turn the image about its center by an angle drawn uniformly from ± `degrees` (bilinear, black outside).

    Args:
        degrees: largest angle, in [0, 180].
    """
    require(0 <= degrees <= 180, "degrees", degrees, "in [0, 180]")

    def turned(key: PRNGKeyArray, image: Float[Array, "h w c"]) -> Float[Array, "h w c"]:
        angle = jax.random.uniform(key, (), image.dtype, -degrees, degrees) * (jnp.pi / 180)
        down, across = (jnp.arange(side, dtype=image.dtype) - (side - 1) / 2 for side in image.shape[:2])
        down, across = jnp.meshgrid(down, across, indexing="ij")
        sine, cosine = jnp.sin(angle), jnp.cos(angle)
        rows = cosine * down + sine * across + (image.shape[0] - 1) / 2
        columns = cosine * across - sine * down + (image.shape[1] - 1) / 2
        plane = jax.vmap(lambda x: jax.scipy.ndimage.map_coordinates(x, [rows, columns], 1), in_axes=-1, out_axes=-1)
        return plane(image)

    return turned


def color_jitter(brightness: int | float, contrast: int | float, saturation: int | float) -> Augment:
    """Change brightness, then contrast, then saturation by factors drawn uniformly from [1 - v, 1 + v].

        x <- clip(b x),   x <- clip(m + c (x - m)),   x <- clip(g + s (x - g))

    with g the mean over the channels, m the mean of g over the image, and clip to [0, 1]; gray images have no
    saturation to change.

    Args:
        brightness: v of b, in [0, 1].
        contrast: v of c, in [0, 1].
        saturation: v of s, in [0, 1].

    >>> color_jitter(0, 0, 0)(jax.random.key(0), jnp.full((1, 1, 1), 0.25)).item()
    0.25
    """
    for name, value in (("brightness", brightness), ("contrast", contrast), ("saturation", saturation)):
        require(0 <= value <= 1, name, value, "in [0, 1]")

    def jittered(key: PRNGKeyArray, image: Float[Array, "h w c"]) -> Float[Array, "h w c"]:
        spread = jnp.array([brightness, contrast, saturation], image.dtype)
        b, c, s = 1 + spread * jax.random.uniform(key, (3,), image.dtype, -1, 1)
        image = jnp.clip(b * image, 0, 1)
        mean = image.mean()
        image = jnp.clip(mean + c * (image - mean), 0, 1)
        gray = image.mean(-1, keepdims=True)
        return jnp.clip(gray + s * (image - gray), 0, 1)

    return jittered
