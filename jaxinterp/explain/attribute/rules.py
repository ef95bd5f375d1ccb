"""Guided backpropagation and deconvolution: gradients with another rule at ReLUs."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxinterp.explain.attribute.backward import checked
from jaxinterp.explain.attribute.relevance import in_parts, passed_back
from jaxinterp.explain.attribution import Attribution
from jaxinterp.explain.batches import MAX_BYTES, Targets
from jaxinterp.explain.meshes import on_automatic_axes
from jaxinterp.explain.program import INPUT, Model, value_at
from jaxinterp.explain.rules import Local, Rules, gradient


class Guided(Rules):
    """At a ReLU only what is positive goes back, and only where the ReLU is open: 1[a > 0] max(R, 0)."""

    def on_unit(self, local: Local) -> Sequence[Array]:
        """Go back by the derivative, from what is positive."""
        positive = jnp.maximum(local.back, 0) if local.name == "relu" else local.back
        return gradient(self, local._replace(back=positive))


class Deconvolution(Rules):
    """At a ReLU only what is positive goes back, open or not: max(R, 0)."""

    def on_unit(self, local: Local) -> Sequence[Array]:
        """Apply the ReLU to what comes back."""
        return [jnp.maximum(local.back, 0)] if local.name == "relu" else gradient(self, local)


@on_automatic_axes
def guided_backpropagation(
    net: Any, x: Any, targets: Targets = None, *, layer: str | None = None, max_bytes: int = MAX_BYTES
) -> Attribution:
    """Compute guided backpropagation: at every ReLU, R_a = 1[a > 0] max(R, 0).

    A ReLU is any activation that is piecewise affine, however it is written (leaky, clipped, functional, reused); of a
    leaky one the slope takes the place of 1[a > 0]. All else has its gradient.

    Args:
        net: a network, see `explainable`.
        x: a batch, (batch, ...), floating.
        targets: None for all classes, an int, (batch,) or (batch, T) classes.
        layer: name of a layer, whose output takes the place of `x`.
        max_bytes: bytes that one pass may take by estimate; examples and targets run in parts.

    Returns:
        An `Attribution` on the shape of `x` or of the layer's output, without a residual.

    Example:
        >>> w = jnp.array([[1.0], [-1.0]])
        >>> guided_backpropagation(lambda x: jax.nn.relu(x) @ w, jnp.array([[2.0, 2.0]])).contributions.tolist()
        [[[1.0, 0.0]]]

    Source: Springenberg, Dosovitskiy, Brox, Riedmiller, arXiv 1412.6806, Sec. 3.4.
    """
    call = checked(net, x, targets, layer, max_bytes)
    return in_parts(call, partial(_back, layer, Guided, "guided_backpropagation"), (), max_bytes)


@on_automatic_axes
def deconvolution(
    net: Any, x: Any, targets: Targets = None, *, layer: str | None = None, max_bytes: int = MAX_BYTES
) -> Attribution:
    """Compute the deconvolution of a network: at every ReLU, R_a = max(R, 0).

    Arguments and result are those of `guided_backpropagation`.

    Example:
        >>> w = jnp.array([[1.0], [-1.0]])
        >>> deconvolution(lambda x: jax.nn.relu(x) @ w, jnp.array([[-2.0, 2.0]])).contributions.tolist()
        [[[1.0, 0.0]]]

    Source: Zeiler, Fergus, arXiv 1311.2901, Sec. 2.1.
    """
    call = checked(net, x, targets, layer, max_bytes)
    return in_parts(call, partial(_back, layer, Deconvolution, "deconvolution"), (), max_bytes)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _back(layer: str | None, kind: type[Rules], method: str, model: Model, x: Array, rows: Array) -> Attribution:
    parts, logits, _ = passed_back(layer, kind(), model, value_at(model, layer, x), x, rows)
    return Attribution(parts, logits, rows, method=method, layer=layer or INPUT)
