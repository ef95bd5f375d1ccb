"""Figures: contribution maps, curves, and the HTML page."""

from jaxinterp.lazy import modules

__all__ = ["charts", "curves", "explorer", "html", "maps", "packing", "shown"]

__getattr__, __dir__ = modules(__name__, __all__)
