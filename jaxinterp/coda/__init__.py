"""CoDA Nets (Böhle, Fritz, Schiele, CVPR 2021): dynamic alignment units, hybrids, interpretable depth."""

from jaxinterp.lazy import modules

__all__ = ["alignment", "depth", "family", "hybrid", "network", "torch_weights"]

__getattr__, __dir__ = modules(__name__, __all__)
