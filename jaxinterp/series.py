"""A polynomial network read order by order: the public names of `jaxinterp.explain.series`."""

from jaxinterp.explain.series import *  # noqa: F403
from jaxinterp.explain.series import __all__, __dir__, __doc__  # noqa: F401
