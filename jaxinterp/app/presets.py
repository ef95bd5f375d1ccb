"""Presets: runs of a family whose sizes fit the images that are there."""

from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from jaxinterp.app.registry import BUILT_IN
from jaxinterp.checks import require, require_one_of
from jaxinterp.data import is_own, load, own_set
from jaxinterp.data.pictures import quiet, size_of
from jaxinterp.errors import DataError
from jaxinterp.files import printable
from jaxinterp.recipe.config import Run
from jaxinterp.recipe.presets import Images

PRESETS = tuple(f"{name}/{scale}" for name, family in BUILT_IN.items() for scale in family.scales)
FAMILIES = tuple(dict.fromkeys(name.split("/")[0] for name in PRESETS))
IMAGENET = Images("imagenet2012", 256, 3, 1000, 1_281_167)
SAMPLE = 50  # images of one's own whose sizes are looked at


class Preset(NamedTuple):
    """A preset, fitted: its name, such as coda/small, the run, and the images that it fits."""

    name: str
    run: Run[Any]
    images: Images

    @property
    def line(self) -> str:
        """What was seen, and what is made of it."""
        images, side, train = self.images, self.run.data.image_shape[0], self.run.train
        seen = f"{images.count} images of {images.side}x{images.side}x{images.channels} in {images.classes} classes"
        return f"{self.name}: {seen} -> {side}x{side}, {train.epochs} epochs of batches of {train.batch_size}"


def is_preset(name: str) -> bool:
    """Whether a name is that of a preset, or of a family, of whose presets one is chosen.

    Example:
        >>> is_preset("coda/small"), is_preset("coda"), is_preset("coda/mnist")
        (True, True, False)
    """
    return name in PRESETS or name in FAMILIES


def look(name: str, data_dir: Path | None = None, part: Literal["train", "test"] = "train") -> Images:
    """Return what a preset looks at of a data set's training images, or of those that only measure.

    Raises:
        DataError: the data are missing or damaged.
    """
    if name == IMAGENET.name:
        return IMAGENET
    if is_own(name):
        return _look_at_own(name, data_dir)
    seen = load(name, part, data_dir)
    _, height, width, channels = seen.images.shape
    return Images(name, min(height, width), 1 if channels == 1 else 3, len(seen.classes), len(seen), seen.classes)


def _look_at_own(name: str, data_dir: Path | None) -> Images:
    """Look at images of one's own: the median of their shorter sides, and color if any has color."""
    own = own_set(name, data_dir, on_bad="skip")  # what is bad is said, or refused, when they are read
    examples = own.part("train")
    some = examples.index[:: max(1, len(examples) // SAMPLE)].tolist()
    with quiet():
        seen = [size for place in some if (size := size_of(examples.fetch(place)[0])) is not None]
    if not seen:
        raise DataError(f"{printable(name)}: got no image that can be read, expected at least one")
    sides, channels = zip(*((min(height, width), of) for height, width, of in seen), strict=True)
    return Images(name, int(np.median(sides)), max(channels), len(own.classes), len(examples), own.classes)


def preset(name: str, data: str, data_dir: Path | None = None) -> Preset:
    """Return a preset whose sizes fit a data set.

    Args:
        name: such as coda/small; of a family alone, small on a processor and medium on an accelerator.
        data: the data set, as `Data.name`.
        data_dir: the data folder.

    Raises:
        ConfigError: no such preset.
        DataError: the data are missing or damaged.

    Example:
        >>> preset("coda", "digits").line
        'coda/small: 1437 images of 8x8x1 in 10 classes -> 8x8, 25 epochs of batches of 16'
    """
    images = look(data, data_dir)
    family, _, scale = name.partition("/")
    chosen = f"{family}/{scale or ('small' if jax.default_backend() == 'cpu' else 'medium')}"
    require_one_of("RUN", chosen, PRESETS)
    require(images.classes > 1, "--data", f"{images.classes} class in {data}", "at least two to tell apart")
    run = BUILT_IN[family].preset(next(one for one in BUILT_IN[family].scales if chosen.endswith(one)), images)
    return Preset(chosen, run, images)
