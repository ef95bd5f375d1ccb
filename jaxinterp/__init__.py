"""Networks that can be read: exact decompositions, path kernels and glass-box models in JAX and Flax.

Every network here is something you can write down at each input, an affine map or a polynomial, so every
explanation is exact and its error is a number that is printed. Start with `decompose`.
"""

from jaxinterp.explain.decompose import Decomposition, decompose

__all__ = ["Decomposition", "decompose"]
__version__ = "0.1.0"
