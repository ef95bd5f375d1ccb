"""Gradient and Input × Gradient: the local slope of a logit, and the slope times the input."""

from dataclasses import replace
from typing import Any

import jax
from jaxtyping import Array

from jaxinterp.explain.attribute.backward import X, checked, chosen, size_of, target_gradients
from jaxinterp.explain.attribution import Attribution
from jaxinterp.explain.batches import MAX_BYTES, Targets, in_batches
from jaxinterp.explain.meshes import on_automatic_axes
from jaxinterp.explain.program import value_of


@on_automatic_axes
def gradient(
    net: Any, x: Any, targets: Targets = None, *, layer: str | None = None, max_bytes: int = MAX_BYTES
) -> Attribution:
    """Compute the signed gradient ∂f_k/∂x of each target's logit, for all targets in one pass.

    No absolute value is taken: the sign tells whether an entry raises or lowers the logit.

    Args:
        net: a network, see `explainable`.
        x: a batch, (batch, ...), floating, of examples that are independent of one another.
        targets: None for all classes, an int, (batch,) or (batch, T) classes.
        layer: name of a layer of `net.layers(x)`, whose output takes the place of `x`.
        max_bytes: bytes that one pass may take by estimate, ≥ 1; larger batches run in equal parts.

    Returns:
        An `Attribution` on the shape of `x` or of the layer's output, without a residual.

    Example:
        >>> import jax.numpy as jnp
        >>> gradient(lambda x: x**2, jnp.array([[1.0, -3.0]]), 1).contributions.tolist()
        [[[0.0, -6.0]]]

    Source: Simonyan, Vedaldi, Zisserman, arXiv 1312.6034, Sec. 3 (there with the absolute value).
    """
    return _slopes(net, x, targets, layer, max_bytes, times=False)


@on_automatic_axes
def input_x_gradient(
    net: Any, x: Any, targets: Targets = None, *, layer: str | None = None, max_bytes: int = MAX_BYTES
) -> Attribution:
    """Compute input times gradient, x ⊙ ∂f_k/∂x.

    The exact decomposition of a network that is linear around `x`, and of no other: on a CoDA Net the gradient also
    runs through the dynamic weights, and the products do not sum to the logit. Arguments and result are those of
    `gradient`.

    Example:
        >>> import jax.numpy as jnp
        >>> input_x_gradient(lambda x: x**2, jnp.array([[1.0, -3.0]]), 1).contributions.tolist()
        [[[0.0, 18.0]]]

    Source: Shrikumar, Greenside, Shcherbina, Kundaje, arXiv 1605.01713, Sec. 2.
    """
    return replace(_slopes(net, x, targets, layer, max_bytes, times=True), method="input_x_gradient")


def _slopes(net: Any, x: Any, targets: Targets, layer: str | None, max_bytes: int, times: bool) -> Attribution:
    call = checked(net, x, targets, layer, max_bytes)

    def explain(x: Array, rows: Array) -> Attribution:
        model = call.net.program("logits", x)
        z = value_of(model, layer, x)
        logits, slopes = target_gradients(model, layer, z, x, rows)
        parts = slopes * z[:, None] if times else slopes
        return Attribution(parts, chosen(logits, rows), rows, method="gradient", layer=layer or X)

    with jax.default_matmul_precision("highest"):
        size = size_of(call, (1 + times) * call.rows.shape[1])
        return in_batches(explain, (call.x, call.rows), call.batch, size, max_bytes)
