"""What a network's output is made of: exact decompositions, post-hoc baselines, metrics and drawings."""

from jaxinterp.explain.decompose import Decomposition, decompose, select_targets
from jaxinterp.explain.tracing import activation_names

__all__ = ["Decomposition", "activation_names", "decompose", "select_targets"]
