"""The first classes of ImageNet, as the CoDA Nets paper uses them: training images streamed, validation images held."""

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from itertools import chain, count, islice
from pathlib import Path

import jax
import numpy as np

from jaxinterp.data.datasets import Dataset
from jaxinterp.data.stream import Stream, stream

NAME = "imagenet2012"
IMAGES_PER_CLASS = 1280  # an epoch, in round numbers: ImageNet has 732 to 1,300 training images per class
SHORTER_SIDE = 256


def training_stream(
    classes: int, *, image_size: int, batch_size: int, seed: int, data_dir: Path | None = None
) -> Stream:
    """Stream the training images of the first classes.

    An epoch is 1,280 images per class, drawn from as many passes as it takes. The other classes are decoded and
    thrown away: a copy of the data set that holds the first classes only is read the same way, and faster.

    Args:
        classes: number of classes, the first ones.
        image_size: side of the images, in pixels.
        batch_size: images per step, over all processes.
        seed: the run's seed.
        data_dir: the data folder, as in `jaxinterp.data.stream`, which raises DataError for missing data.
    """
    shard = (jax.process_index(), jax.process_count())
    size, side = batch_size // shard[1], max(SHORTER_SIDE, image_size)
    options = {"batch_size": size, "image_size": image_size, "shorter_side": side, "seed": seed, "data_dir": data_dir}
    read = partial(stream, NAME, "train", shard=shard, **options)

    def batches(epoch: int) -> Iterator[Mapping[str, np.ndarray]]:
        passes = chain.from_iterable(read(epoch=epoch * 1000 + part) for part in count())
        return keep_classes(passes, classes, size)

    read(epoch=0)  # missing data are reported before anything is built
    return Stream(NAME, classes * IMAGES_PER_CLASS // batch_size, (image_size, image_size, 3), batches)


def training_images(
    classes: int, number: int, *, image_size: int, batch_size: int, seed: int, data_dir: Path | None = None
) -> Dataset:
    """Load the first training images of the stream: a sample, cropped at random as in training, not augmented.

    At most `number` images, and no more than an epoch's, are read, `batch_size` at once; for the other arguments see
    `training_stream`.
    """
    size = min(number, batch_size)
    source = training_stream(classes, image_size=image_size, batch_size=size, seed=seed, data_dir=data_dir)
    return _collect("train", islice(source.batches(0), min(-(-number // size), source.steps)), classes, number)


def validation_images(classes: int, *, image_size: int, data_dir: Path | None = None) -> Dataset:
    """Load the validation images of the first classes, cut from the center; see `training_stream`."""
    side = max(SHORTER_SIDE, image_size)
    batches = stream(
        NAME, "test", batch_size=256, image_size=image_size, shorter_side=side, seed=0, epoch=0, data_dir=data_dir
    )
    return _collect("test", batches, classes)


def keep_classes(
    batches: Iterable[Mapping[str, np.ndarray]], classes: int, size: int
) -> Iterator[Mapping[str, np.ndarray]]:
    """Yield the examples with a label less than `classes`, in order, in batches of one size; a rest is dropped.

    Example:
        >>> batches = [{"label": np.array([0, 7, 1])}, {"label": np.array([9, 2, 0])}]
        >>> [batch["label"].tolist() for batch in keep_classes(batches, 3, 2)]
        [[0, 1], [2, 0]]
    """
    waiting: dict[str, np.ndarray] = {}
    for batch in batches:
        kept = {name: values[batch["label"] < classes] for name, values in batch.items()}
        waiting = {k: np.concatenate([waiting[k], v]) for k, v in kept.items()} if waiting else kept
        while len(waiting["label"]) >= size:
            yield {name: values[:size] for name, values in waiting.items()}
            waiting = {name: values[size:] for name, values in waiting.items()}


def _collect(
    split: str, batches: Iterable[Mapping[str, np.ndarray]], classes: int, number: int | None = None
) -> Dataset:
    parts = [
        (batch["image"][keep], batch["label"][keep]) for batch in batches if (keep := batch["label"] < classes).any()
    ]
    images, labels = (np.concatenate(arrays)[:number] for arrays in zip(*parts, strict=True))
    return Dataset(NAME, split, images, labels, tuple(map(str, range(classes))))
