"""Completeness: how much of a logit the contributions leave unexplained."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinterp.explain.attribution import Attribution
from jaxinterp.explain.batches import Targets
from jaxinterp.explain.metrics.explained import Explained, attribution


class Completeness(NamedTuple):
    """Result of `completeness`.

    Attributes:
        residual: f_k − b_k − Σ contributions_k, signed, in logits, (batch, T).
        relative: |residual| / |f_k − b_k|, (batch, T); 0 where both are 0, infinite where only the change is.
    """

    residual: Float[Array, "batch t"]
    relative: Float[Array, "batch t"]


def completeness(net: Any, method: Explained, x: Any = None, targets: Targets = None) -> Completeness:
    """Measure the signed residual of the identity Σ contributions = logit − bias, and its relative size.

    Taken on raw attributions: no absolute value, no normalization, no comparison of floats for equality. The bias is
    the method's own, such as the logits at its baseline; 0 where it has none.

    Args:
        net: a network, see `explainable`; not read where `method` is an `Attribution`.
        method: (net, x, targets) ↦ `Attribution`, or an `Attribution`.
        x: a batch, where `method` is to be called.
        targets: its targets.

    Example:
        >>> parts = Attribution(jnp.array([[[1.0, 2.0]]]), jnp.array([[4.5]]), jnp.array([[0]]), jnp.array([[0.5]]))
        >>> completeness(None, parts)
        Completeness(residual=Array([[1.]], dtype=float32), relative=Array([[0.25]], dtype=float32))

    Source: Sundararajan, Taly, Yan, arXiv 1703.01365, Sec. 3 (Completeness); CVPR 2021 (CoDA Nets), Eq. 8.
    """
    parts: Attribution = attribution(net, method, x, targets)
    change = parts.logits if parts.bias is None else parts.logits - parts.bias
    residual = change - parts.contributions.reshape(*change.shape, -1).sum(-1).astype(change.dtype)
    size = jnp.abs(residual)
    return Completeness(residual, jnp.where(size == 0, 0, size / jnp.abs(change)))
