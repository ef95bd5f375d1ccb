"""Coarse-grained data distillation: images of a class merged into one, again and again, and its peers.

`flow.py` learns the merging and applies it, `references.py` holds what comes out (files, sheets, classification by the
nearest reference) and the plain peers, `condense.py` the known peer, gradient matching.
"""

from jaxinterp.taylor.distill.condense import DistillationNet, condense, train_on
from jaxinterp.taylor.distill.flow import Distiller, Merge, SimilarityLoss, abstract, best_levels
from jaxinterp.taylor.distill.references import (
    ImageSet,
    class_means,
    k_means,
    nearest_reference,
    random_references,
    read_set,
    sheet,
    write_set,
)

__all__ = [
    "DistillationNet",
    "Distiller",
    "ImageSet",
    "Merge",
    "SimilarityLoss",
    "abstract",
    "best_levels",
    "class_means",
    "condense",
    "k_means",
    "nearest_reference",
    "random_references",
    "read_set",
    "sheet",
    "train_on",
    "write_set",
]
