"""Exact decompositions, post-hoc attribution methods, and metrics of both, on a network of any framework."""

from jaxinterp.explain.attribution import Attribution
from jaxinterp.explain.batches import select_targets
from jaxinterp.explain.decompose import decompose
from jaxinterp.explain.explainable import Explainable, explainable
from jaxinterp.explain.freeze import Freezing, Held, freeze

__all__ = [
    "Attribution",
    "Explainable",
    "Freezing",
    "Held",
    "decompose",
    "explainable",
    "freeze",
    "select_targets",
]
