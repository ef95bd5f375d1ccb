"""The images of a run: its splits at its size, what is held out, and how training images are augmented."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from jaxinterp.checks import require
from jaxinterp.data import Augment, Dataset, compose, crop, flip, hold_out, load, rand_augment
from jaxinterp.data.image_set import read_set
from jaxinterp.data.imagenet import training_images, training_stream, validation_images
from jaxinterp.data.images import resize, rotate_dataset, select_classes, take
from jaxinterp.data.stream import Stream
from jaxinterp.recipe import config
from jaxinterp.recipe.config import Run

SAMPLE = 10_000  # training images of a streamed data set that are looked at


def augmentation(augment: config.Augment) -> Augment:
    """Compose flip, crop and RandAugment in the run's order."""
    operations = [flip()] if augment.flip else []
    operations += [crop(augment.crop_padding)] if augment.crop_padding else []
    if augment.rand_augment:
        count, magnitude = augment.rand_augment
        rand = rand_augment(count, magnitude, augment.rand_augment_kind)
        operations = [rand, *operations] if augment.rand_augment_first else [*operations, rand]
    return compose(*operations)


def split(run: Run[Any], which: Literal["train", "test"], data_dir: Path | None) -> Dataset:
    """Load a split of the run's data set, at the run's size and number of images.

    Of ImageNet all validation images of the run's classes, and a sample of the training images.

    Raises:
        DataError: the data are missing or damaged.
    """
    data = run.data
    if data.name == "imagenet2012":
        require(not data.rotated, "data.rotated", True, "False with imagenet2012, which is streamed")
        size, classes = data.image_shape[0], run.model.classes
        if which == "test":
            return validation_images(classes, image_size=size, data_dir=data_dir)
        batch_size, seed = run.train.batch_size, run.train.seed
        return training_images(classes, SAMPLE, image_size=size, batch_size=batch_size, seed=seed, data_dir=data_dir)
    images = select_classes(load(data.name, which, data_dir), data.class_subset)
    images = take(resize(images, data.image_size, data.channels), data.max_images)
    return rotate_dataset(images) if data.rotated else images


def training_data(run: Run[Any], data_dir: Path | None) -> tuple[Dataset | Stream, Dataset | None]:
    """Load what a run trains on, and what it holds out; raise as `split` does."""
    data, size = run.data, run.train.batch_size
    if data.name == "imagenet2012":
        require(not data.distilled, "data.distilled", data.distilled, "nothing with imagenet2012, which is streamed")
        classes, seed, side = run.model.classes, run.train.seed, data.image_shape[0]
        return training_stream(classes, image_size=side, batch_size=size, seed=seed, data_dir=data_dir), None
    images, held = split(run, "train", data_dir), None
    if share := run.train.val_fraction:
        kept = 0 < round(share * len(images)) < len(images)
        require(kept, "train.val_fraction", share, f"a share that splits {len(images)} images in two")
        images, held = hold_out(images, share, run.train.seed)
    if data.distilled:
        reference = read_set(Path(data.distilled)).dataset(images.name, images.classes)
        images = resize(reference, data.image_shape[0], data.channels)
    require(size <= len(images), "train.batch_size", size, f"at most {len(images)}, the training images")
    return images, held


def with_outputs(data: Dataset, outputs: int) -> Dataset:
    """Return data with a class for each of a network's outputs: those beyond the data set's have no image."""
    return replace(data, classes=(*data.classes, *(f"output {k}" for k in range(len(data.classes), outputs))))


def check_fits(run: Run[Any], data: Dataset) -> None:
    """Raise for fewer outputs than the data set has classes, and for crops beyond its images."""
    side, padding = min(data.images.shape[1:3]), run.augment.crop_padding
    require(padding < side, "augment.crop_padding", padding, f"less than {side}, the image's side")
    outputs, classes = run.model.classes, len(data.classes)
    require(classes <= outputs, run.model.CLASSES, outputs, f"at least {classes}, the classes of {data.name}")
