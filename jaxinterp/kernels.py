"""Kernels of given gates, and regression with them: the public names of `jaxinterp.gated.kernels`."""

from jaxinterp.gated.kernels import *  # noqa: F403
from jaxinterp.gated.kernels import __all__, __dir__, __doc__  # noqa: F401
