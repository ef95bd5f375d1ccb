"""Local rules of backward passes: functions that `jax.vjp` takes back by them, and the rules of LRP."""

from jaxinterp.explain.attribute.lrp import (
    COMPOSITES,
    AlphaBeta,
    Composite,
    Epsilon,
    Flat,
    Gamma,
    WSquare,
    ZBox,
)
from jaxinterp.explain.rules import Local, Rules, rules
from jaxinterp.lazy import public

__all__ = [
    "COMPOSITES",
    "AlphaBeta",
    "Composite",
    "Epsilon",
    "Flat",
    "Gamma",
    "Local",
    "Rules",
    "WSquare",
    "ZBox",
    "rules",
]

__dir__ = public(__all__)
