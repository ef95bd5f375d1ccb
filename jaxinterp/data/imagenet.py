"""The first classes of ImageNet, as the CoDA Nets paper uses them: training images streamed, validation images held."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import chain, count, islice
from pathlib import Path

import jax
import numpy as np

from jaxinterp.data import Dataset, stream
from jaxinterp.recipe.config import Run
from jaxinterp.train import Stream

IMAGES_PER_CLASS = 1280  # an epoch, in round numbers: ImageNet has 732 to 1,300 training images per class
SHORTER_SIDE = 256


def training_stream(config: Run, classes: int, data_dir: Path | None) -> Stream:
    """Training images of the first classes; an epoch is 1,280 images per class, drawn from as many passes as it takes.

    The other classes are decoded and thrown away: a copy of the data set that holds the first classes only is read
    the same way, and faster.

    Args:
        config: with the image size, batch size and seed.
        classes: how many of the first classes.
        data_dir: the data folder.

    Raises:
        DataError: the data are missing; see `jaxinterp.data.stream`.
    """
    shard, size = (jax.process_index(), jax.process_count()), config.image_size or 224
    steps = classes * IMAGES_PER_CLASS // config.batch_size

    def read(epoch: int, part: int) -> Iterator[Mapping[str, np.ndarray]]:
        return stream(
            config.dataset,
            "train",
            batch_size=config.batch_size // shard[1],
            image_size=size,
            seed=config.seed,
            epoch=epoch * 1000 + part,
            data_dir=data_dir,
            shard=shard,
            shorter_side=max(SHORTER_SIDE, size),
        )

    def batches(epoch: int) -> Iterator[Mapping[str, np.ndarray]]:
        passes = chain.from_iterable(read(epoch, part) for part in count())
        return keep_classes(passes, classes, config.batch_size // shard[1])

    read(0, 0)  # missing data are reported before anything is built
    return Stream(config.dataset, steps, (size, size, 3), batches)


def training_images(config: Run, classes: int, number: int, data_dir: Path | None) -> Dataset:
    """The first training images of the stream, in memory: a sample, cropped at random as in training, not augmented.

    Args:
        config: with the image size, batch size and seed.
        classes: how many of the first classes.
        number: of images, at most; no more than an epoch's are returned.
        data_dir: the data folder.

    Raises:
        DataError: the data are missing; see `jaxinterp.data.stream`.
    """
    size = min(number, config.batch_size)
    source = training_stream(replace(config, batch_size=size), classes, data_dir)
    batches = islice(source.batches(0), min(-(-number // size), source.steps))
    kept = [(batch["image"], batch["label"]) for batch in batches]
    images, labels = (np.concatenate(parts)[:number] for parts in zip(*kept, strict=True))
    return Dataset(config.dataset, "train", images, labels, tuple(map(str, range(classes))))


def held_images(config: Run, classes: int, data_dir: Path | None) -> Dataset:
    """The validation images of the first classes, in memory.

    Raises:
        DataError: the data are missing; see `jaxinterp.data.stream`.
    """
    size = config.image_size or 224
    batches = stream(
        config.dataset,
        "test",
        batch_size=256,
        image_size=size,
        seed=0,
        epoch=0,
        data_dir=data_dir,
        shorter_side=max(SHORTER_SIDE, size),
    )
    kept = [
        (batch["image"][seen], batch["label"][seen]) for batch in batches if (seen := batch["label"] < classes).any()
    ]
    images, labels = (np.concatenate(parts) for parts in zip(*kept, strict=True))
    return Dataset(config.dataset, "test", images, labels, tuple(map(str, range(classes))))


def keep_classes(
    batches: Iterable[Mapping[str, np.ndarray]], classes: int, size: int
) -> Iterator[Mapping[str, np.ndarray]]:
    """The examples whose label is less than `classes`, in order, in new batches of one size; a rest is dropped.

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
