"""The images of a run: its splits at its size, what is held out, and how training images are augmented."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import numpy as np

from jaxinterp.checks import require
from jaxinterp.data import (
    Augment,
    Dataset,
    OwnSet,
    color_jitter,
    compose,
    crop,
    flip,
    hold_out,
    load,
    own_set,
    rand_augment,
    read_part,
    rotate,
    stream_part,
)
from jaxinterp.data.image_set import read_set
from jaxinterp.data.imagenet import IMAGES_PER_CLASS, training_images, training_stream, validation_images
from jaxinterp.data.images import resize, rotate_dataset, select_classes, take
from jaxinterp.data.loading import set_bits
from jaxinterp.data.own import hold_out_examples
from jaxinterp.data.own_files import find, write_split
from jaxinterp.data.stream import Stream
from jaxinterp.errors import DataError
from jaxinterp.files import printable, unsealed, write_json
from jaxinterp.nn.losses import LossFn
from jaxinterp.nn.targets import TargetLoss
from jaxinterp.recipe import config
from jaxinterp.recipe.config import AnyRun, Run

SIZES = {  # images to train and to test, and classes
    "digits": (1_437, 360, 10),
    "mnist-2000": (0, 2_000, 10),
    "mnist": (60_000, 10_000, 10),
    "fashion_mnist": (60_000, 10_000, 10),
    "cifar10": (50_000, 10_000, 10),
    "cifar100": (50_000, 10_000, 100),
}
VALIDATION_PER_CLASS = 50  # of ImageNet
SAMPLE = 10_000  # training images of a streamed data set that are looked at
AnyPart = TypeVar("AnyPart", bound=Dataset | Stream)
RECORD, SPLIT = "data.json", "split.csv"  # files of a run's folder: where its images came from, and its own files


class Counts(NamedTuple):
    """How many images a run has, without reading them: to train on, held out, to test; and whether they are streamed.

    Of some classes of a known data set it is their share, as if all were equally large.
    """

    train: int
    held: int
    test: int
    streamed: bool


def counts(run: Run[Any], data_dir: Path | None) -> Counts:
    """Count a run's images by what its data are; one's own are listed, not read.

    Example:
        >>> counts(Run(config.Model()), None)
        Counts(train=49000, held=1000, test=10000, streamed=False)
    """
    data, share = run.data, run.train.val_fraction
    if data.name == "imagenet2012":
        classes = run.model.classes
        return Counts(IMAGES_PER_CLASS * classes, 0, VALIDATION_PER_CLASS * classes, True)
    streamed, held = False, None
    if data.own:
        own = _selected(run, data_dir)
        train, test, streamed = len(own.part("train")), len(own.part("test")), _streamed(run, own)
        held = len(own.part("val")) if "val" in own.parts else None
    else:
        train, test, classes = SIZES[data.name]
        kept = len(data.class_subset) or classes
        train, test = (min(count * kept // classes, data.max_images or count) for count in (train, test))
    if held is not None and share:
        return Counts(train, held, test, streamed)
    held = round(share * train)
    return Counts(train - held, held, test, streamed)


def augmentation(augment: config.Augment) -> Augment:
    """Compose flip, rotation, crop, color jitter and RandAugment in the run's order."""
    operations = [flip()] if augment.flip else []
    operations += [rotate(augment.rotation)] if augment.rotation else []
    operations += [crop(augment.crop_padding)] if augment.crop_padding else []
    operations += [color_jitter(*augment.color_jitter)] if augment.color_jitter else []
    if augment.rand_augment:
        count, magnitude = augment.rand_augment
        rand = rand_augment(count, magnitude, augment.rand_augment_kind)
        operations = [rand, *operations] if augment.rand_augment_first else [*operations, rand]
    return compose(*operations)


def targeted(loss: LossFn, run: Run[Any]) -> LossFn:
    """Return a loss that takes a run's class weights, smoothed labels and mixed images; the same if there are none."""
    augment, weights = run.augment, run.data.class_weights
    if not (weights or augment.label_smoothing or augment.mixup or augment.cutmix):
        return loss
    return TargetLoss(loss, run.model.classes, weights, augment.label_smoothing, augment.mixup, augment.cutmix)


def require_plain_labels(run: Run[Any], why: str) -> None:
    """Raise ConfigError for a run whose loss would take soft targets: see `targeted`."""
    fields = run.fields()
    for key in ("data.class_weights", "data.balanced", "augment.label_smoothing", "augment.mixup", "augment.cutmix"):
        require(not fields[key], key, fields[key], f"{'none' if fields[key] is not True else 'False'}: {why}")


def resolved(run: AnyRun, data_dir: Path | None) -> AnyRun:
    """Return a run with what its data say filled in, so that its configuration alone describes it.

    Of one's own data the place becomes absolute, and the classes' names and the bits are filled in; `normalize` and
    `balanced` become the numbers computed from the training images.
    """
    data = run.data
    if data.own:
        own, (kind, _, place) = _listed(run, data_dir), data.name.partition(":")
        found = str(find(place, data_dir))
        name = data.name if kind == "tfds" or printable(found) != found else f"{kind}:{found}"
        run = run.replace(data={"name": name, "classes": own.classes, "bits": set_bits(own, data.conversion).bits})
    if not (data.normalize or data.balanced):
        return run
    require(data.name != "imagenet2012", "data.normalize, data.balanced", True, "False with imagenet2012")
    train = split(run, "train", data_dir)
    if data.normalize:
        mean, std = _moments(train)
        run = run.replace(data={"normalize": False, "mean": mean, "std": std})
    if data.balanced:
        labels = _selected(run, data_dir).part("train").labels if data.own else train.labels
        counts = np.bincount(labels[labels >= 0], minlength=len(train.classes))
        weights = counts.sum() / (len(counts) * np.maximum(counts, 1))
        run = run.replace(data={"balanced": False, "class_weights": tuple(np.round(weights, 6).tolist())})
    return run


def _moments(images: Dataset) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel, in [0, 1], rounded to four digits."""
    levels = int(images.maximum) + 1
    pieces = [images.images[i : i + 1024].reshape(-1, images.images.shape[-1]) for i in range(0, len(images), 1024)]
    counts = np.stack(
        [sum(np.bincount(piece[:, c], minlength=levels) for piece in pieces) for c in range(images.images.shape[-1])]
    )
    values, shares = np.arange(levels) / images.maximum, counts / counts.sum(1, keepdims=True)
    mean = shares @ values
    std = np.sqrt(((values[None] - mean[:, None]) ** 2 * shares).sum(1))
    require(std.min() > 0, "data.normalize", True, "training images that vary in every channel")
    return tuple(np.round(mean, 4).tolist()), tuple(np.round(std, 4).tolist())


def _listed(run: Run[Any], data_dir: Path | None) -> OwnSet:
    """List a run's own data."""
    data = run.data
    options: dict[str, Any] = {"classes": data.classes, "on_bad": data.on_bad}
    return own_set(data.name, data_dir, test_fraction=data.test_fraction, seed=data.split_seed, **options)


def _selected(run: Run[Any], data_dir: Path | None) -> OwnSet:
    """List a run's own data, at its classes and number of images."""
    own = _listed(run, data_dir).select(run.data.class_subset)
    return replace(own, parts={part: some.take(slice(run.data.max_images)) for part, some in own.parts.items()})


def _streamed(run: Run[Any], own: OwnSet) -> bool:
    """Tell whether a run's own training images are too many for its memory."""
    return len(own.part("train")) * int(np.prod(run.data.image_shape)) > run.data.memory * 2**30


def split(run: Run[Any], which: Literal["train", "test"], data_dir: Path | None) -> Dataset:
    """Load a split of the run's data set, at the run's size and number of images.

    Of ImageNet all validation images of the run's classes, and a sample of the training images; a sample too of one's
    own data that are streamed.

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
    if data.own:
        own = _selected(run, data_dir)
        limit = SAMPLE if which == "train" and _streamed(run, own) else None
        images = read_part(own, which, data.conversion, on_bad=data.on_bad, limit=limit)
    else:
        images = select_classes(load(data.name, which, data_dir), data.class_subset)
        images = take(resize(images, data.image_size, data.channels), data.max_images)
    return rotate_dataset(images) if data.rotated else images


def training_data(run: Run[Any], data_dir: Path | None) -> tuple[Dataset | Stream, Dataset | None]:
    """Load what a run trains on, and what it holds out; raise as `split` does."""
    data, size, share = run.data, run.train.batch_size, run.train.val_fraction
    if data.name == "imagenet2012":
        require(not data.distilled, "data.distilled", data.distilled, "nothing with imagenet2012, which is streamed")
        classes, seed, side = run.model.classes, run.train.seed, data.image_shape[0]
        return training_stream(classes, image_size=side, batch_size=size, seed=seed, data_dir=data_dir), None
    own = _selected(run, data_dir) if data.own else None
    if own is not None and _streamed(run, own):
        return _stream(run, own)
    images, held = split(run, "train", data_dir), None
    if share and own is not None and "val" in own.parts:
        held = read_part(own, "val", data.conversion, on_bad=data.on_bad)
        held = rotate_dataset(held) if data.rotated else held
    elif share:
        kept = 0 < round(share * len(images)) < len(images)
        require(kept, "train.val_fraction", share, f"a share that splits {len(images)} images in two")
        images, held = hold_out(images, share, run.train.seed)
    if data.distilled:
        reference = read_set(Path(data.distilled)).dataset(images.name, images.classes)
        images = resize(reference, data.image_shape[0], data.channels)
    require(size <= len(images), "train.batch_size", size, f"at most {len(images)}, the training images")
    return images, held


def _stream(run: Run[Any], own: OwnSet) -> tuple[Stream, Dataset | None]:
    """Stream a run's own training images; what is held out is held in memory."""
    data, share = run.data, run.train.val_fraction
    for key in ("distilled", "rotated"):
        value = getattr(data, key)
        require(not value, f"data.{key}", value, "nothing with images that are streamed: see data.memory")
    if share and "val" not in own.parts:
        rest, held = hold_out_examples(own.part("train"), share)
        own = replace(own, parts={**own.parts, "train": rest, "val": held})
    options: dict[str, Any] = {"batch_size": run.train.batch_size, "seed": run.train.seed, "on_bad": data.on_bad}
    shard = jax.process_index(), jax.process_count()
    streamed = stream_part(own, "train", data.conversion, shard=shard, **options)
    return streamed, read_part(own, "val", data.conversion, on_bad=data.on_bad) if share else None


def record(run: Run[Any], run_dir: Path, data_dir: Path | None, *parts: Dataset | Stream) -> Iterator[str]:
    """Write into a run's folder where its images came from, and yield a line about each thing done to them.

    data.json has the provenance of each part; split.csv, of one's own files, their labels and parts. The name
    csv:RUN_DIR/split.csv is the same data set, whatever else comes into the folder.

    Raises:
        DataError: a checkpoint is there, of other images.
    """
    sources = {"train" if isinstance(part, Stream) else part.split: dict(part.provenance) for part in parts}
    if any((run_dir / "checkpoints").glob("[0-9]*")):  # of other images nothing is recorded, or trained on
        for part in parts:
            require_recorded(run_dir, part)
    write_json(run_dir / RECORD, sources)
    if not run.data.own:
        return
    own = _listed(run, data_dir)
    if own.root is not None:
        write_split(own, run_dir / SPLIT)
    yield from (f"{printable(own.name)}: {note}" for note in own.notes)
    for name, words in sources.items():
        told = [words[key] for key in ("conversions", "left out") if key in words]
        yield from (f"{printable(own.name)} ({name}): {text}" for text in told)
    if "val" in own.parts and not run.train.val_fraction:
        yield f"{printable(own.name)}: validation images are not used, train.val_fraction is 0"


def require_recorded(run_dir: Path, images: AnyPart) -> AnyPart:
    """Return a run's own images; DataError if they are others than those it was trained and tested on."""
    part = "train" if isinstance(images, Stream) else images.split.partition("[")[0]
    sums = {key: images.provenance[key] for key in ("sha256", "listing") if key in images.provenance}
    if not sums or not (run_dir / RECORD).exists():
        return images
    try:
        parts = unsealed(json.loads((run_dir / RECORD).read_text(encoding="utf-8")))
        recorded: dict[str, str] = next((words for name, words in parts.items() if name.partition("[")[0] == part), {})
        changed = any(recorded.get(key, now) != now for key, now in sums.items())
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"{run_dir / RECORD}: got a damaged file ({error}), expected what training wrote") from error
    if changed:
        wanted = f"those of the run, whose files {run_dir / SPLIT} lists"
        raise DataError(f"{printable(images.name)} ({part}): got images that changed since training, expected {wanted}")
    return images


def with_outputs(data: Dataset, outputs: int) -> Dataset:
    """Return data with a class for each of a network's outputs: those beyond the data set's have no image."""
    return replace(data, classes=(*data.classes, *(f"output {k}" for k in range(len(data.classes), outputs))))


def check_fits(run: Run[Any], data: Dataset) -> None:
    """Raise for fewer outputs than the data set has classes, wrong class weights, and crops beyond its images."""
    side, padding = min(data.images.shape[1:3]), run.augment.crop_padding
    require(padding < side, "augment.crop_padding", padding, f"less than {side}, the image's side")
    outputs, classes = run.model.classes, len(data.classes)
    require(
        classes <= outputs, run.model.CLASSES, outputs, f"at least {classes}, the classes of {printable(data.name)}"
    )
    weights = run.data.class_weights
    require(len(weights) in (0, classes), "data.class_weights", weights, f"{classes} numbers, one for each class")
