"""Large data sets, streamed from their shards by grain: decoded, resized and cropped on the host."""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8

from jaxinterp.checks import require, require_at_least, require_one_of
from jaxinterp.data.datasets import missing
from jaxinterp.data.tfds import data_folder, decode, open_prepared

if TYPE_CHECKING:
    from jaxinterp.figures.shown import ShownFigure

THREADS, MOST_THREADS = 2, 16
"""Threads a core that read and decode: one may wait for a file, more of them stand in one another's way."""


@dataclass(frozen=True, repr=False)
class Stream:
    """Training data too large for the devices: host batches of this process, epoch by epoch.

    Attributes:
        name: name of the data set.
        steps: steps per epoch.
        image_shape: (H, W, C).
        batches: `epoch -> iterator` as `stream` gives, a function of the epoch alone, of this process's share.
        maximum: a float image is `image / maximum`.
        provenance: where it came from; with a sum "listing", training goes on with the same listing only.
    """

    name: str
    steps: int
    image_shape: tuple[int, int, int]
    batches: Callable[[int], Iterator[Mapping[str, np.ndarray]]]
    maximum: int = 255
    provenance: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        size = "x".join(map(str, self.image_shape))
        return f"Stream({self.name}: {self.steps} steps per epoch, images {size}, maximum {self.maximum})"

    def _repr_html_(self) -> str:
        from jaxinterp.figures.html import Table, fragment

        rows = [("steps per epoch", f"{self.steps:,}"), ("images", f"{'×'.join(map(str, self.image_shape))}")]
        return fragment(Table(("stream", self.name), [*rows, ("maximum", str(self.maximum))]))

    def plot(self, count: int = 40) -> "ShownFigure":
        """Draw the first images of epoch 0, at most `count` ≥ 1 of one batch, ten in a row; the batch is read."""
        from jaxinterp.figures.maps import image_rows

        require_at_least("count", count, 1)
        images = np.asarray(next(self.batches(0))["image"][:count], np.float32) / np.float32(self.maximum)
        rows = [images[i : i + 10] for i in range(0, len(images), 10)]
        return image_rows(rows, [""] * len(rows))


def stream(
    name: str,
    split: str,
    *,
    batch_size: int,
    image_size: int,
    seed: int,
    epoch: int,
    data_dir: str | os.PathLike[str] | None = None,
    shard: tuple[int, int] = (0, 1),
    shorter_side: int | None = None,
    num_threads: int | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Read an epoch of a data set prepared by tensorflow-datasets, in batches of square 8-bit images.

    Each image is resized (bilinear) until its shorter side is `shorter_side`, then cut to `image_size`: anywhere for
    "train", in the center for "test". "train" is shuffled and every shard yields equally many full batches; "test"
    comes in order and its last batch may be smaller. The order is a function of (seed, epoch) and each random window of
    (seed, epoch, index): not of the batch size, the number of shards or threads.

    Args:
        name: the data set's name in tensorflow-datasets, for example imagenet2012.
        split: "train" or "test" (for imagenet2012 the 50,000 validation images).
        batch_size: images per batch and shard.
        image_size: side of the yielded images, in pixels.
        seed: the run's seed.
        epoch: number of the epoch.
        data_dir: the data folder; default $TFDS_DATA_DIR, then ~/tensorflow_datasets.
        shard: (index, count): which of how many hosts this is.
        shorter_side: in pixels, at least `image_size`; default image_size * 256 / 224, rounded.
        num_threads: reading and decoding ahead; by default `THREADS` a core, at most `MOST_THREADS`.

    Returns:
        Iterator of {"image": uint8 (B, S, S, 3), "label": int32 (B,), "index": int32 (B,)}.

    Raises:
        DataError: the data are missing, truncated or damaged.
    """
    index, count = shard
    side = shorter_side if shorter_side is not None else round(image_size * 256 / 224)
    require_one_of("split", split, ("train", "test"))
    require_at_least("batch_size", batch_size, 1)
    require(1 <= image_size <= side, "image_size", image_size, f"between 1 and shorter_side={side}")
    require(0 <= index < count, "shard", shard, "(index, count) with 0 <= index < count")
    folder = data_folder(data_dir)
    opened = open_prepared(name, split, folder)
    if opened is None:
        raise missing(name, split, folder)
    total, train = sum(opened.lengths), split == "train"
    if train:
        step = count * batch_size
        require(step <= total, "batch_size", f"{batch_size} on {count} shards", f"at most {total} records of {name}")

    def example(record_index: Any) -> dict[str, np.ndarray]:
        record = opened.fetch([record_index])[0]
        draw = np.random.default_rng((seed, epoch, int(record_index))) if train else None
        return {
            "image": resize_and_crop(decode(record["image"], opened.provenance), side, image_size, draw),
            "label": np.asarray(record["label"], np.int32),
            "index": np.asarray(record_index, np.int32),
        }

    return host_batches(
        total, example, batch_size, train=train, seed=seed, epoch=epoch, shard=shard, num_threads=num_threads
    )


def host_batches(
    total: int,
    example: Callable[[Any], dict[str, np.ndarray]],
    batch_size: int,
    *,
    train: bool,
    seed: int,
    epoch: int,
    shard: tuple[int, int] = (0, 1),
    num_threads: int | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Read an epoch of `example(index)`, 0 <= index < total, ahead and by many threads, in batches of one host.

    For training the order is a function of (seed, epoch), and each of the `shard` = (index, count) hosts gets equally
    many full batches; else the order is that of the index, and the last batch may be smaller.
    """
    import grain

    index, count = shard
    num_threads = min(MOST_THREADS, THREADS * (os.cpu_count() or 1)) if num_threads is None else num_threads
    indices = grain.MapDataset.range(total)
    if train:
        step, mixed = count * batch_size, int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0])
        indices = indices.shuffle(seed=mixed).slice(slice(0, total // step * step))
    examples = indices.slice(slice(index, None, count)).map(example)
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=max(num_threads, 2 * batch_size))
    return iter(examples.to_iter_dataset(options).batch(batch_size, drop_remainder=train))


def resize_and_crop(
    image: UInt8[np.ndarray, "h w c"], shorter_side: int, image_size: int, draw: np.random.Generator | None
) -> UInt8[np.ndarray, "size size 3"]:
    """Resize (bilinear, with Pillow) until the shorter side fits, then cut out a square window.

    The longer side is rounded down. The window's corner is drawn uniformly; without `draw` it is in the center.
    """
    from PIL import Image

    picture = Image.fromarray(np.broadcast_to(image, (*image.shape[:2], 3)))
    width, height = (shorter_side * size // min(picture.size) for size in picture.size)
    if draw is None:
        left, top = round((width - image_size) / 2), round((height - image_size) / 2)
    else:
        left, top = (int(draw.integers(size - image_size + 1)) for size in (width, height))
    resized = picture.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized.crop((left, top, left + image_size, top + image_size)))
