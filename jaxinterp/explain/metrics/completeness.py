"""Completeness: how much of a logit the contributions leave unexplained."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from jaxinterp.checks import require


class Completeness(NamedTuple):
    """Result of `completeness`.

    Attributes:
        residual: f_k − b_k − Σ contributions_k, signed, in logits, (batch, T).
        relative: |residual| / |f_k − b_k|, (batch, T); 0 where both are 0, infinite where only the change is.
    """

    residual: Float[Array, "batch t"]
    relative: Float[Array, "batch t"]


def completeness(contributions: Array, logits: Float[Array, "batch t"], reference: ArrayLike = 0.0) -> Completeness:
    """Measure the signed residual of the identity Σ contributions = logit − reference, and its relative size.

    Taken on raw attributions: no absolute value, no normalization, no comparison of floats for equality.

    Args:
        contributions: signed, (batch, T, ...), every entry of the input or activation.
        logits: f_k(x) of the same targets, (batch, T).
        reference: the part that no entry explains, a number or (batch, T): the decomposition's bias, or the logits at
            a method's baseline.

    Example:
        >>> completeness(jnp.array([[[1.0, 2.0]]]), jnp.array([[4.5]]), 0.5)
        Completeness(residual=Array([[1.]], dtype=float32), relative=Array([[0.25]], dtype=float32))

    Source: Sundararajan, Taly, Yan, arXiv 1703.01365, Sec. 3 (Completeness); CVPR 2021 (CoDA Nets), Eq. 8.
    """
    shape = contributions.shape
    require(shape[:2] == logits.shape, "contributions", f"shape {shape}", f"{(*logits.shape, '...')}")
    shape = jnp.shape(reference)
    require(shape in ((), logits.shape), "reference", f"shape {shape}", f"() or {logits.shape}")
    change = logits - jnp.asarray(reference, logits.dtype)
    residual = change - contributions.reshape(*logits.shape, -1).sum(-1).astype(logits.dtype)
    size = jnp.abs(residual)
    return Completeness(residual, jnp.where(size == 0, 0, size / jnp.abs(change)))
