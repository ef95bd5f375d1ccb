"""Coarse-grained data distillation (images of a class merged into one, again and again), and its baselines."""

from jaxinterp.data.image_set import ImageSet, read_set, write_set
from jaxinterp.taylor.distill.condense import DistillationNet, condense, train_on
from jaxinterp.taylor.distill.flow import Distiller, SimilarityLoss, best_levels, distill
from jaxinterp.taylor.distill.references import (
    class_means,
    contact_sheet,
    k_means,
    nearest_reference,
    random_references,
)

__all__ = [
    "DistillationNet",
    "Distiller",
    "ImageSet",
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
