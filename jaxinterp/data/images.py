"""Images of any size as the input of a network: data sets, and files."""

import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from jaxinterp.checks import require
from jaxinterp.data.datasets import Dataset
from jaxinterp.data.pictures import Conversion, convert, quiet, read_file
from jaxinterp.errors import DataError
from jaxinterp.files import printable

ROTATION_BATCH = 5000  # images that are rotated at once


def resize(dataset: Dataset, side: int | None, channels: int) -> Dataset:
    """Resize a data set to square images (nearest pixel), gray images repeated over the channels.

    Args:
        dataset: the data.
        side: of the new images, in pixels; None keeps the size.
        channels: of the new images; those of color images cannot change.
    """
    height, width, depth = dataset.images.shape[1:]
    require(depth in (1, channels), "channels", channels, f"{depth}, as {dataset.name} has")
    rows, columns = (np.arange(side or size) * size // (side or size) for size in (height, width))
    images = dataset.images[:, rows][:, :, columns]
    return replace(dataset, images=np.repeat(images, channels // depth, axis=-1))


def take(dataset: Dataset, count: int | None) -> Dataset:
    """Take the first images of a data set; all if `count` is None."""
    return replace(dataset, images=dataset.images[:count], labels=dataset.labels[:count])


def select_classes(dataset: Dataset, classes: Sequence[int]) -> Dataset:
    """Select the images of some different classes, numbered anew in the order given; all if there are none."""
    if not classes:
        return dataset
    known = len(set(classes)) == len(classes) and set(classes) <= set(range(len(dataset.classes)))
    wanted = f"different classes in [0, {len(dataset.classes)}) of {dataset.name}"
    require(known, "class_subset", tuple(classes), wanted)
    places = np.flatnonzero(np.isin(dataset.labels, classes))
    numbers = np.full(len(dataset.classes), -1, np.int32)
    numbers[list(classes)] = np.arange(len(classes))
    names = tuple(dataset.classes[k] for k in classes)
    return replace(dataset, images=dataset.images[places], labels=numbers[dataset.labels[places]], classes=names)


def rotate_randomly(images: Float[np.ndarray, "n h w c"], seed: int) -> Float[np.ndarray, "n h w c"]:
    """Rotate every image about its center by an angle drawn uniformly from the circle (bilinear, black outside)."""
    angles = np.random.default_rng(seed).uniform(0, 2 * np.pi, len(images)).astype(np.float32)
    parts = [slice(start, start + ROTATION_BATCH) for start in range(0, len(images), ROTATION_BATCH)]
    return np.concatenate([np.asarray(rotated(jnp.asarray(images[i]), jnp.asarray(angles[i]))) for i in parts])


def rotate_dataset(dataset: Dataset) -> Dataset:
    """Rotate all images of a data set, the same way every time; integer pixels are rounded."""
    images = rotate_randomly(dataset.images.astype(np.float32), zlib.crc32(dataset.split.encode()))
    images = np.clip(images, 0, dataset.maximum) if dataset.images.dtype.kind == "f" else np.rint(images)
    return replace(dataset, images=images.astype(dataset.images.dtype))


def read_images(
    paths: Sequence[Path], height: int, width: int, channels: int, conversion: Conversion | None = None
) -> tuple[Float[np.ndarray, "n h w c"], list[str]]:
    """Read image files and convert them to the input of a network: see `pictures.convert`.

    Args:
        paths: files of one of `pictures.FORMATS`, at least one.
        height: of the network's input, in pixels.
        width: of the network's input, in pixels.
        channels: 1 (gray) or 3 (RGB).
        conversion: how they fit, the background and the bits; by default cut to the center, over black, as the values
            say.

    Returns:
        Images float32 (N, H, W, C) in [0, 1], and for every file a line about its conversion.

    Raises:
        DataError: a file that is missing, is not an image or has values without a known scale; the line names it.
    """
    require(paths, "paths", "none", "at least one image file")
    conversion = replace(conversion or Conversion(), channels=1 if channels == 1 else 3)
    images, lines = list[UInt8[np.ndarray, "h w c"]](), list[str]()
    for path in paths:
        try:
            with quiet():
                picture = convert(read_file(path), width, height, conversion)
        except DataError as error:
            raise DataError(f"{printable(path)}: {error}") from error
        images.append(picture.pixels)
        mode = {1: "L", 3: "RGB"}[channels]
        done = [note for note in picture.notes if note != f"{picture.original.split()[1]} as {mode}"]
        line = f"{printable(path)}: {picture.original} -> {width}x{height} {mode}"
        lines.append(f"{line} ({', '.join(done)})" if done else line)
    return np.stack(images).astype(np.float32) / np.float32(255), lines


@jax.jit
def rotated(x: Float[Array, "n h w c"], angles: Float[Array, " n"]) -> Float[Array, "n h w c"]:
    """Rotate square images, each by its angle in radians, counter-clockwise, bilinear, black outside.

    Example:
        >>> x = jnp.arange(9.0).reshape(1, 3, 3, 1)
        >>> bool(jnp.allclose(rotated(x, jnp.array([jnp.pi / 2])), jnp.rot90(x, axes=(1, 2)), atol=1e-5))
        True
    """
    height, width = x.shape[1:3]
    require(height == width, "x", f"{height}x{width} images", "square ones for rotations")
    center = jnp.asarray((height - 1) / 2, x.dtype)
    rows, columns = jnp.meshgrid(*[jnp.arange(side, dtype=x.dtype) - center for side in (height, width)], indexing="ij")

    def one(image: Array, angle: Array) -> Array:
        sine, cosine = jnp.sin(angle), jnp.cos(angle)
        back = [cosine * rows + sine * columns + center, cosine * columns - sine * rows + center]
        return jax.vmap(lambda plane: jax.scipy.ndimage.map_coordinates(plane, back, 1), in_axes=-1, out_axes=-1)(image)

    return jax.vmap(one)(x, angles.astype(x.dtype))
