"""Shares of a convolution's templates in a logit, exact.

A convolution answers an image by inner products of its patches with the filters, which are templates:

    y[p, k] = ⟨patch_p(x), t_k⟩ + b_k        patch_p(x): the s × s × C values under the filter at p
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinterp.explain.decompose import Targets, decompose


class TemplateShares(NamedTuple):
    """Contributions of K templates to the logits of T targets.

    Attributes:
        contributions: of every template to every target's logit, summed over positions, (batch, T, K).
        shares: |contribution| as a share of all templates' of that layer, in [0, 1], (batch, T, K).
        bias: constant part of the logit, (batch, T).
        residual: logit − Σ contributions − bias, (batch, T); zero up to rounding.
    """

    contributions: Float[Array, "batch t k"]
    shares: Float[Array, "batch t k"]
    bias: Float[Array, "batch t"]
    residual: Float[Array, "batch t"]


def template_shares(
    apply_frozen: Callable[..., Float[Array, "batch classes"]],
    x: Float[Array, "batch h w c"],
    layer: str,
    targets: Targets = None,
    *,
    variables: Any,
) -> TemplateShares:
    """Split logits over the templates of one layer: Σ_p y[p, k] ∂f/∂y[p, k], for the layer's output y.

    Args:
        apply_frozen: (variables, x) ↦ logits, affine once its coefficients are held, as `decompose` takes it.
        x: images, (batch, H, W, C).
        layer: path of the layer, such as "trunk/conv_0/conv"; its channels are the templates.
        targets: see `decompose`.
        variables: the model's variables.
    """
    parts = decompose(apply_frozen, x, targets, layer, variables=variables)
    contributions = parts.contributions.reshape(*parts.logits.shape, -1, parts.contributions.shape[-1]).sum(2)
    sizes = jnp.abs(contributions)
    total = sizes.sum(-1, keepdims=True)
    return TemplateShares(contributions, sizes / jnp.where(total > 0, total, 1), parts.bias, parts.residual)
