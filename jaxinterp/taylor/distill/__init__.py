"""Coarse-grained data distillation: images of a class merged into one, again and again, and its baselines.

`flow.py` learns the merging and applies it, `references.py` holds what comes out (files, sheets, classification by the
nearest reference) and the plain baselines, `condense.py` the known baseline, gradient matching.
"""

from jaxinterp.taylor.distill.condense import DistillationNet, condense, train_on
from jaxinterp.taylor.distill.flow import Distiller, Merge, SimilarityLoss, best_levels, distill
from jaxinterp.taylor.distill.references import (
    ImageSet,
    class_means,
    contact_sheet,
    k_means,
    nearest_reference,
    random_references,
    read_set,
    write_set,
)

__all__ = [
    "DistillationNet",
    "Distiller",
    "ImageSet",
    "Merge",
    "SimilarityLoss",
    "best_levels",
    "class_means",
    "condense",
    "contact_sheet",
    "distill",
    "k_means",
    "nearest_reference",
    "random_references",
    "read_set",
    "train_on",
    "write_set",
]
