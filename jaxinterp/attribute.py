"""Post-hoc methods: the public names of `jaxinterp.explain.attribute`."""

from jaxinterp.explain.attribute import *  # noqa: F403
from jaxinterp.explain.attribute import __all__, __dir__, __doc__  # noqa: F401
