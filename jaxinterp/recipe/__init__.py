"""A run: its configuration, its family, its evaluation and its page.

`Run(model, data, augment, optim, train, evaluate)` says everything about a run; `run.sweep(seed=(0, 1, 2))` varies it,
`jaxinterp.train(run)` trains it. A network of one's own is a subclass of `Family`, with a `Model` for its fields.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from jaxinterp.lazy import public

if TYPE_CHECKING:
    from jaxinterp.recipe.config import (
        Augment,
        Count,
        Data,
        Evaluate,
        Model,
        Natural,
        NonNegative,
        Optim,
        Positive,
        Run,
        Share,
        Sweep,
    )
    from jaxinterp.recipe.family import Family, Job, Reading, Report, TrainedRun
    from jaxinterp.recipe.presets import Images
    from jaxinterp.train.config import TrainConfig

_HOMES = {
    "jaxinterp.recipe.config": (
        *(
            "Augment",
            "Count",
            "Data",
            "Evaluate",
            "Model",
            "Natural",
            "NonNegative",
            "Optim",
            "Positive",
            "Run",
            "Share",
        ),
        "Sweep",
    ),
    "jaxinterp.recipe.family": ("Family", "Job", "Reading", "Report", "TrainedRun"),
    "jaxinterp.recipe.presets": ("Images",),
    "jaxinterp.train.config": ("TrainConfig",),
}

__all__ = [
    "Augment",
    "Count",
    "Data",
    "Evaluate",
    "Family",
    "Images",
    "Job",
    "Model",
    "Natural",
    "NonNegative",
    "Optim",
    "Positive",
    "Reading",
    "Report",
    "Run",
    "Share",
    "Sweep",
    "TrainConfig",
    "TrainedRun",
]
__dir__ = public(__all__)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
