"""TaylorNet (after Yang, Xie & Yang, 2023; the design is ours): networks that are polynomials, read order by order."""

from jaxinterp.taylor.network import PolynomialResNet, TaylorNet, describe, path_affine, with_expansion_point
from jaxinterp.taylor.units import Form, Level, TaylorUnit, hierarchical, overlapping

__all__ = [
    "Form",
    "Level",
    "PolynomialResNet",
    "TaylorNet",
    "TaylorUnit",
    "describe",
    "hierarchical",
    "overlapping",
    "path_affine",
    "with_expansion_point",
]
