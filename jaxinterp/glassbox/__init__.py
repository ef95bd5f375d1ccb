"""The glass-box CNN (after arXiv 2101.10443; the design is ours): orbits of templates, PCA, a classifier."""

from jaxinterp.lazy import modules

__all__ = ["classifier", "family", "figures", "gcnn", "learned", "network", "pipeline", "report", "templates"]

__getattr__, __dir__ = modules(__name__, __all__)
