"""Metrics of attributions and of scores: the public names of `jaxinterp.explain.metrics`."""

from jaxinterp.explain.metrics import *  # noqa: F403
from jaxinterp.explain.metrics import __all__, __dir__, __doc__  # noqa: F401
