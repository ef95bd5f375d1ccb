"""How much every template of a convolution has in a decision, exactly."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinterp.explain.decompose import Targets, decompose


class TemplateShares(NamedTuple):
    """What `template_shares` returns; T is the number of targets, K that of templates.

    Attributes:
        contributions: of every template to every target's logit, over all places, (batch, T, K).
        shares: |contribution| as a share of all templates' of that layer, in [0, 1], (batch, T, K).
        bias: what no template of the layer adds, (batch, T).
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
    """Split logits over the templates of one layer: Σ_p y[p, k] ∂f/∂y[p, k], for the layer's answers y.

    Args:
        apply_frozen: (variables, x) ↦ logits, affine once its coefficients are held, as `decompose` takes it.
        x: images, (batch, H, W, C).
        layer: path of the layer, such as "trunk/conv_0/conv"; its channels are the templates.
        targets: see `decompose`.
        variables: the model's variables.

    Returns:
        A `TemplateShares`.

    Raises:
        ValueError: see `decompose`.
    """
    parts = decompose(apply_frozen, x, targets, layer, variables=variables)
    contributions = parts.contributions.reshape(*parts.logits.shape, -1, parts.contributions.shape[-1]).sum(2)
    sizes = jnp.abs(contributions)
    whole = sizes.sum(-1, keepdims=True)
    return TemplateShares(contributions, sizes / jnp.where(whole > 0, whole, 1), parts.bias, parts.residual)
