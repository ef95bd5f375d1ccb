"""Groups, invariants, and how the layers of any network move with its input."""

from jaxinterp.lazy import modules

__all__ = ["equivariance", "groups", "invariants", "maps"]

__getattr__, __dir__ = modules(__name__, __all__)
