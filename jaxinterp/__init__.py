"""Networks that can be read: exact decompositions, path kernels and glass-box models in JAX and Flax.

Every network here is something you can write down at each input, an affine map or a polynomial, so every
explanation is exact and its error is a number that is printed. Start with `decompose`.

Names are imported when they are first used: `import jaxinterp` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxinterp import (
        attribute,
        coda,
        coded,
        data,
        explain,
        figures,
        gated,
        glassbox,
        kernels,
        metrics,
        models,
        nn,
        recipe,
        rules,
        series,
        symmetry,
        taylor,
        testing,
        train,
    )
    from jaxinterp.app.stages import trained
    from jaxinterp.app.training import run_of, train_runs
    from jaxinterp.app.weights import export, from_torch, load, pretrained
    from jaxinterp.explain.attribution import Attribution
    from jaxinterp.explain.audit import audit
    from jaxinterp.explain.decompose import decompose
    from jaxinterp.explain.explainable import Explainable, explainable
    from jaxinterp.explain.series import contributions, orders, pairs
    from jaxinterp.gated.npk_regression import NPKRegressor
    from jaxinterp.recipe.config import Run

__version__ = "0.1.0"

_MODULES = {
    "attribute": "jaxinterp.attribute",
    "coda": "jaxinterp.coda",
    "coded": "jaxinterp.coded",
    "data": "jaxinterp.data",
    "explain": "jaxinterp.explain",
    "figures": "jaxinterp.figures",
    "gated": "jaxinterp.gated",
    "glassbox": "jaxinterp.glassbox",
    "kernels": "jaxinterp.kernels",
    "metrics": "jaxinterp.metrics",
    "models": "jaxinterp.models",
    "nn": "jaxinterp.nn",
    "recipe": "jaxinterp.recipe",
    "rules": "jaxinterp.rules",
    "series": "jaxinterp.series",
    "symmetry": "jaxinterp.symmetry",
    "taylor": "jaxinterp.taylor",
    "testing": "jaxinterp.testing",
    "train": "jaxinterp.train",
}
_NAMES = {
    "Attribution": "jaxinterp.explain.attribution",
    "Explainable": "jaxinterp.explain.explainable",
    "NPKRegressor": "jaxinterp.gated.npk_regression",
    "Run": "jaxinterp.recipe.config",
    "audit": "jaxinterp.explain.audit",
    "contributions": "jaxinterp.explain.series",
    "decompose": "jaxinterp.explain.decompose",
    "explainable": "jaxinterp.explain.explainable",
    "export": "jaxinterp.app.weights",
    "from_torch": "jaxinterp.app.weights",
    "load": "jaxinterp.app.weights",
    "orders": "jaxinterp.explain.series",
    "pairs": "jaxinterp.explain.series",
    "pretrained": "jaxinterp.app.weights",
    "run_of": "jaxinterp.app.training",
    "train_runs": "jaxinterp.app.training",
    "trained": "jaxinterp.app.stages",
}

__all__ = [
    "Attribution",
    "Explainable",
    "NPKRegressor",
    "Run",
    "attribute",
    "audit",
    "coda",
    "coded",
    "contributions",
    "data",
    "decompose",
    "explain",
    "explainable",
    "export",
    "figures",
    "from_torch",
    "gated",
    "glassbox",
    "kernels",
    "load",
    "metrics",
    "models",
    "nn",
    "orders",
    "pairs",
    "pretrained",
    "recipe",
    "rules",
    "run_of",
    "series",
    "symmetry",
    "taylor",
    "testing",
    "train",
    "train_runs",
    "trained",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name in _MODULES:
        return import_module(_MODULES[name])
    if name in _NAMES:
        return getattr(import_module(_NAMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the public names, imported or not."""
    return sorted([*__all__, "__version__", "__doc__"])
