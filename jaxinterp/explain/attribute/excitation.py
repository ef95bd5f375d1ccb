"""Excitation backprop: the chance that a walk down the excitatory connections of a network ends at an entry."""

from functools import partial
from typing import Any

import jax
from jaxtyping import Array

from jaxinterp.explain.attribute.backward import checked
from jaxinterp.explain.attribute.lrp import AlphaBeta, Composite
from jaxinterp.explain.attribute.relevance import in_parts, passed_back
from jaxinterp.explain.attribution import Attribution
from jaxinterp.explain.batches import MAX_BYTES, Targets
from jaxinterp.explain.meshes import on_automatic_axes
from jaxinterp.explain.program import INPUT, Model, value_at


@on_automatic_axes
def excitation_backprop(
    net: Any,
    x: Any,
    targets: Targets = None,
    *,
    bias: bool = False,
    layer: str | None = None,
    max_bytes: int = MAX_BYTES,
) -> Attribution:
    """Compute excitation backprop, the marginal winning probability of every entry.

        P(a_i) = Σ_j a_i w_ij⁺ / (Σ_i' a_i' w_i'j⁺) P(a_j)          P = 1 at the target

    Of inputs that are negative, w_ij⁻ takes the place of w_ij⁺, so that a_i w_ij is positive. The
    probabilities sum to 1, less what reaches units without an excitatory input.

    Args:
        net: a network, see `explainable`.
        x: a batch, (batch, ...), floating.
        targets: None for all classes, an int, (batch,) or (batch, T) classes.
        bias: whether positive biases take their share, as in Zennit; in the paper they do not.
        layer: name of a layer, at whose output the walk ends, as in the paper.
        max_bytes: bytes that one pass may take by estimate; examples and targets run in parts.

    Returns:
        An `Attribution` on the shape of `x` or of the layer's output, without a residual; never negative where the
        summands of skip connections and means are not.

    Raises:
        ConfigError: an operation has no rule; the line names it and its module.

    Example:
        >>> import jax.numpy as jnp
        >>> w = jnp.array([[1.0], [3.0], [-1.0]])
        >>> parts = excitation_backprop(lambda x: x @ w, jnp.ones((1, 3)))
        >>> [f"{p:.2f}" for p in parts.contributions.ravel()]
        ['0.25', '0.75', '0.00']

    Source: Zhang, Lin, Brandt, Shen, Sclaroff, arXiv 1608.00507, Eq. 3.
    """
    call = checked(net, x, targets, layer, max_bytes)
    return in_parts(call, partial(_back, layer, bias), (), max_bytes)


@partial(jax.jit, static_argnums=(0, 1))
def _back(layer: str | None, bias: bool, model: Model, x: Array, rows: Array) -> Attribution:
    excitatory = AlphaBeta(1.0, 0.0, bias=bias)
    composite = Composite(conv=excitatory, dense=excitatory)
    parts, logits, _ = passed_back(layer, composite, model, value_at(model, layer, x), x, rows)
    return Attribution(parts, logits, rows, method="excitation_backprop", layer=layer or INPUT)
