"""Gradient, saliency and Input × Gradient: the local slope of a logit, its size, and the slope times the input."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxinterp.explain.attribute.backward import checked, gradients, in_cache, size_of, slopes_at
from jaxinterp.explain.attribution import Attribution
from jaxinterp.explain.batches import MAX_BYTES, Targets, in_batches, over_targets
from jaxinterp.explain.meshes import on_automatic_axes
from jaxinterp.explain.program import INPUT, Model


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
        >>> gradient(lambda x: x**2, jnp.array([[1.0, -3.0]]), 1).contributions.tolist()
        [[[0.0, -6.0]]]

    Source: Simonyan, Vedaldi, Zisserman, arXiv 1312.6034, Sec. 3 (there with the absolute value).
    """
    return _slopes(net, x, targets, layer, max_bytes, "gradient")


@on_automatic_axes
def input_x_gradient(
    net: Any, x: Any, targets: Targets = None, *, layer: str | None = None, max_bytes: int = MAX_BYTES
) -> Attribution:
    """Compute input times gradient, x ⊙ ∂f_k/∂x.

    The exact decomposition of a network that is linear around `x`, and of no other: on a CoDA Net the gradient also
    runs through the dynamic weights, and the products do not sum to the logit. Arguments and result are those of
    `gradient`.

    Example:
        >>> input_x_gradient(lambda x: x**2, jnp.array([[1.0, -3.0]]), 1).contributions.tolist()
        [[[0.0, 18.0]]]

    Source: Shrikumar, Greenside, Shcherbina, Kundaje, arXiv 1605.01713, Sec. 2.
    """
    return _slopes(net, x, targets, layer, max_bytes, "input_x_gradient")


@on_automatic_axes
def saliency(
    net: Any, x: Any, targets: Targets = None, *, layer: str | None = None, max_bytes: int = MAX_BYTES
) -> Attribution:
    """Compute the size of the gradient, |∂f_k/∂x|, without the sign.

    Arguments and result are those of `gradient`; the paper takes the largest of an image's channels.

    Example:
        >>> saliency(lambda x: x**2, jnp.array([[1.0, -3.0]]), 1).contributions.tolist()
        [[[0.0, 6.0]]]

    Source: Simonyan, Vedaldi, Zisserman, arXiv 1312.6034, Sec. 3.1.
    """
    return _slopes(net, x, targets, layer, max_bytes, "saliency")


def _slopes(net: Any, x: Any, targets: Targets, layer: str | None, max_bytes: int, method: str) -> Attribution:
    call = checked(net, x, targets, layer, max_bytes)

    def explain(x: Array, rows: Array) -> Attribution:
        model = call.net.program("logits", x)

        def run(rows: Array) -> Attribution:
            if layer is None:
                z, (logits, slopes) = x, slopes_at(model, None, x, x, rows)
            else:
                z, logits, slopes = _at_layer(layer, model, x, rows)
            return Attribution(_changed(method, z, slopes), logits, rows, method=method, layer=layer or INPUT)

        return over_targets(run, rows)

    with jax.default_matmul_precision("highest"):
        size = size_of(call, 2 * call.rows.shape[1])
        budget = in_cache(call, size / len(call.x), max_bytes)
        return in_batches(explain, (call.x, call.rows), call.batch, size, budget)


@partial(jax.jit, static_argnums=0)
def _at_layer(layer: str, model: Model, x: Array, rows: Array) -> tuple[Array, Array, Array]:
    return gradients(model, layer, x, rows)


@partial(jax.jit, static_argnums=0)
def _weighted(method: str, z: Array, slopes: Array) -> Array:
    return slopes * z[:, None] if method == "input_x_gradient" else jnp.abs(slopes)


def _changed(method: str, z: Array, slopes: Array) -> Array:
    return slopes if method == "gradient" else _weighted(method, z, slopes)
