"""Runs whose sizes fit the images: what is common to the presets of all families."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from jaxinterp.recipe.config import Data, Model, Run

Scale = Literal["small", "medium", "paper"]
SCALES: tuple[Scale, ...] = ("small", "medium", "paper")
M = TypeVar("M", bound=Model)
EPOCHS = (3, 60)  # fewest and most
MANY = 5000  # images, of which batches are large
HELD_OUT = 0.1

# What all runs called `*-laptop` share, of networks and of their baselines; each has a learning rate of its own.
LAPTOP: Mapping[str, Mapping[str, Any]] = {
    "augment": {"flip": True, "crop_padding": 4, "label_smoothing": 0.1},
    "optim": {"optimizer": "adamw", "schedule": "onecycle"},
    "train": {"batch_size": 64, "grad_accum_steps": 1, "val_fraction": 0.02},
    "evaluate": {"grids": 100, "removal_images": 250, "occlusion": (5, 9), "occlusion_stride": 4},
}


@dataclass(frozen=True)
class Images:
    """The training images of a data set, as a preset looks at them.

    Attributes:
        name: of the data set, as `Data.name`.
        side: the shorter side of an image in pixels.
        channels: 1 or 3.
        classes: how many there are.
        count: of training images.
        names: of the classes.
    """

    name: str
    side: int
    channels: Literal[1, 3]
    classes: int
    count: int
    names: tuple[str, ...] = ()


def fitted(model: M, images: Images, side: int, *, steps: int, batch_size: int = 64, **optim: Any) -> Run[M]:
    """Return a run of a network that fits images: their size and number, and what of explanations can be measured.

    Args:
        model: the network.
        images: what it is trained on.
        side: to which the images are resized.
        steps: about how many to train, in 3 to 60 epochs.
        batch_size: images per step, fewer if there are only a few, and at least 64 if there are many.
        **optim: fields of the run's `optim`.
    """
    kept = round(images.count * (1 - HELD_OUT)) if images.count >= 20 else images.count
    batch_size = max(batch_size, 64) if images.count > MANY else batch_size
    while batch_size > 1 and batch_size > kept // 4:  # at least four steps an epoch
        batch_size //= 2
    least, most = EPOCHS
    epochs = max(least, min(most, -(-steps * batch_size // kept)))
    grid = next((n for n in (3, 2) if images.classes >= n * n), 0)
    return Run(model, Data(name=images.name, image_size=side, channels=images.channels)).replace(  # type: ignore[arg-type]
        augment={"flip": images.channels == 3, "crop_padding": max(1, side // 14)},
        optim=optim,
        train={
            "epochs": epochs,
            "batch_size": batch_size,
            "val_fraction": HELD_OUT if kept < images.count else 0.0,
            "eval_every": max(1, epochs // 20),
            "checkpoint_every": max(1, epochs // 5),
            "eval_batch": min(256, max(8, 2**20 // side**2 // 8)),
        },
        evaluate={
            "grid_sizes": (grid,) if grid else (),
            "grids": 20,
            "removal_images": 120,
            "occlusion": (max(3, side // 4 | 1),),
            "occlusion_stride": max(2, side // 8),
        },
    )
