"""What a network's output is made of: exact decompositions, post-hoc rivals, metrics and drawings."""

from jaxinterp.explain.linear import Decomposition, activation_names, decompose, select_targets

__all__ = ["Decomposition", "activation_names", "decompose", "select_targets"]
