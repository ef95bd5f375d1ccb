"""Completeness: how much of a logit the contributions leave unexplained."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float


class Completeness(NamedTuple):
    """What `completeness` answers.

    Attributes:
        residual: f_k − b_k − Σ contributions_k, signed, in logits, (batch, T).
        relative: |residual| / |f_k − b_k|, (batch, T); 0 where both are 0, infinite where only the change is.
    """

    residual: Float[Array, "batch t"]
    relative: Float[Array, "batch t"]


def completeness(contributions: Array, logits: Float[Array, "batch t"], reference: ArrayLike = 0.0) -> Completeness:
    """Signed residual of the identity Σ contributions = logit − reference, and its relative size.

    Taken on raw attributions: no absolute value, no normalization, no comparison of floats for equality.

    Args:
        contributions: signed, (batch, T, ...), every entry of the input or activation.
        logits: f_k(x) of the same targets, (batch, T).
        reference: what no entry explains, a number or (batch, T): the decomposition's bias, or the logits at the
            baseline of a method that has one.

    Returns:
        A `Completeness`.

    Raises:
        ValueError: the shapes do not fit.

    Example:
        >>> completeness(jnp.array([[[1.0, 2.0]]]), jnp.array([[4.5]]), 0.5)
        Completeness(residual=Array([[1.]], dtype=float32), relative=Array([[0.25]], dtype=float32))

    Source: Sundararajan, Taly, Yan, arXiv 1703.01365, Sec. 3 (Completeness); CVPR 2021 (CoDA Nets), Eq. 8.
    """
    if contributions.shape[:2] != logits.shape:
        raise ValueError(f"contributions: got {contributions.shape}, expected {(*logits.shape, '...')}")
    if jnp.shape(reference) not in ((), logits.shape):
        raise ValueError(f"reference: got {jnp.shape(reference)}, expected () or {logits.shape}")
    change = logits - jnp.asarray(reference, logits.dtype)
    residual = change - contributions.reshape(*logits.shape, -1).sum(-1).astype(logits.dtype)
    size = jnp.abs(residual)
    return Completeness(residual, jnp.where(size == 0, 0, size / jnp.abs(change)))
