"""Coded ResNeXt (Avranas and Kountouris, NeurIPS 2022): paths of classes designed by coding theory."""

from jaxinterp.lazy import modules

__all__ = [
    "block",
    "codes",
    "early_exit",
    "export",
    "family",
    "figures",
    "measures",
    "network",
    "paths",
    "report",
    "surgery",
    "torch_weights",
]

__getattr__, __dir__ = modules(__name__, __all__)
