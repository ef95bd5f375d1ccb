"""Shares of a convolution's templates in a logit, exact.

A convolution answers an image by inner products of its patches with the filters, which are templates:

    y[p, k] = ⟨patch_p(x), t_k⟩ + b_k        patch_p(x): the s × s × C values under the filter at p
"""

from dataclasses import replace
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinterp.explain.attribution import Attribution
from jaxinterp.explain.batches import MAX_BYTES, Targets
from jaxinterp.explain.decompose import decompose


def template_shares(
    net: Any, x: Any, targets: Targets = None, *, layer: str, max_bytes: int = MAX_BYTES
) -> Attribution:
    """Split logits over the templates of one layer: Σ_p y[p, k] ∂f/∂y[p, k], for the layer's output y.

    Args:
        net: a network that is affine once its coefficients are held, as `decompose` takes it.
        x: images, (batch, H, W, C).
        targets: None for all classes, an int, (batch,) or (batch, T) classes.
        layer: name of the layer, such as "trunk/conv_0/conv"; its channels are the templates.
        max_bytes: as in `decompose`.

    Returns:
        An `Attribution` with contributions (batch, T, K) of K templates, summed over positions; `shares` tells how
        much of the layer's each is.
    """
    parts = decompose(net, x, targets, layer=layer, max_bytes=max_bytes)
    channels = parts.contributions.shape[-1]
    sums = parts.contributions.reshape(*parts.logits.shape, -1, channels).sum(2)
    return replace(parts, contributions=sums, weights=None, method="template_shares")


def shares(contributions: Float[Array, "batch t k"]) -> Float[Array, "batch t k"]:
    """Return |contribution| as a share of all templates', in [0, 1].

    Example:
        >>> shares(jnp.array([[[3.0, -1.0]]])).tolist()
        [[[0.75, 0.25]]]
    """
    sizes = jnp.abs(contributions)
    total = sizes.sum(-1, keepdims=True)
    return sizes / jnp.where(total > 0, total, 1)
