"""Exact decompositions, post-hoc attribution methods, and metrics of both."""

from jaxinterp.explain.decompose import Decomposition, decompose, select_targets
from jaxinterp.explain.tracing import activation_names

__all__ = ["Decomposition", "activation_names", "decompose", "select_targets"]
