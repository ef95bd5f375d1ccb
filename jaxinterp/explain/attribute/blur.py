"""Blur integrated gradients: the path from a blurred image to the image, through all scales between."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxinterp.checks import require, require_channels_last, require_number, require_whole
from jaxinterp.explain.attribute.backward import along_path, checked, chosen, completed, fitting, head, repeated
from jaxinterp.explain.attribution import Attribution
from jaxinterp.explain.batches import MAX_BYTES, Targets, in_batches, over_targets
from jaxinterp.explain.meshes import on_automatic_axes
from jaxinterp.explain.program import value_at


def blurred(
    x: Float[Array, "batch h w c"], sigma: Float[Array, " n"], cut: int | float = math.inf
) -> Float[Array, "n batch h w c"]:
    """Blur images by Gaussians of some widths σ ≥ 0 in pixels, along both axes.

    A pixel becomes the mean of all pixels of the image with weights exp(−d²/(2σ²)) of their distances d, so that a
    constant image stays as it is; σ = 0 changes nothing. Weights are 0 at more than `cut` widths.

    Example:
        >>> blurred(jnp.array([0.0, 0.0, 3.0]).reshape(1, 1, 3, 1), jnp.array([0.0, 1e6])).reshape(2, 3).tolist()
        [[0.0, 0.0, 3.0], [1.0, 1.0, 1.0]]
    """
    high, wide = (_means(size, sigma, cut).astype(x.dtype) for size in x.shape[1:3])
    return jnp.einsum("nhi,nwj,bijc->nbhwc", high, wide, x)


def _means(size: int, sigma: Array, cut: int | float) -> Float[Array, "n size size"]:
    """Return the weights of the Gaussian means along one axis."""
    sigma = sigma.astype(np.promote_types(sigma.dtype, np.float32))
    distance = jnp.abs(jnp.arange(size)[:, None] - jnp.arange(size)[None]).astype(sigma.dtype)
    scaled = distance[None] / jnp.maximum(sigma, float(jnp.finfo(sigma.dtype).tiny) ** 0.25)[:, None, None]
    return jax.nn.softmax(jnp.where(scaled <= cut, -(scaled**2) / 2, -jnp.inf), axis=-1)


@on_automatic_axes
def blur_integrated_gradients(
    net: Any,
    x: Any,
    targets: Targets = None,
    *,
    layer: str | None = None,
    steps: int = 20,
    max_sigma: float = 50.0,
    max_bytes: int = MAX_BYTES,
) -> Attribution:
    """Compute integrated gradients along a path of blurred images L(σ), from a width max_sigma down to 0.

        contributions_k = ∫ ∂f_k/∂L (L(σ)) ⊙ dL(σ)          Σ contributions_k = f_k(x) − f_k(L(max_sigma))

    No image is brought in as a baseline. The path runs straight between `steps` + 1 images, of widths
    max_sigma (i/steps)² that are closest where the image changes most, each piece by the gradient at its middle: exact
    for polynomials of degree 2.

    Args:
        net: a network, see `explainable`.
        x: images, (batch, H, W, C), floating.
        targets: None for all classes, an int, (batch,) or (batch, T) classes.
        layer: name of a layer: the path then runs through its outputs for the blurred images, and what goes around the
            layer is that of x.
        steps: pieces of the path, ≥ 1.
        max_sigma: largest width of the Gaussian in pixels, > 0; see `blurred`.
        max_bytes: bytes that one pass may take by estimate; examples, then pieces, run in parts.

    Returns:
        An `Attribution` on the shape of `x` or of the layer's output, with bias f_k(L(max_sigma)) and residual
        f_k(x) − bias_k − Σ contributions_k.

    Example:
        >>> square = blur_integrated_gradients(lambda x: (x**2).sum((1, 2)), jnp.ones((1, 2, 2, 1)), steps=1)
        >>> abs(square.contributions).max().round(4).item(), square.bias.round(4).tolist()
        (0.0, [[4.0]])

    Source: Xu, Venugopalan, Sundararajan, arXiv 2004.03383, Eq. 3 and 5 (there with a left sum over equal widths).
    """
    require_whole("steps", steps, 1)
    require_number("max_sigma", max_sigma, "more than 0 pixels", lambda v: v > 0)
    call = checked(net, x, targets, layer, max_bytes)
    require(call.x.ndim == 4, "x", f"shape {call.x.shape}", "(batch, height, width, channels)")
    require_channels_last("x", call.x.shape)
    count, size, max_bytes = fitting(call, 2 * call.rows.shape[1] + 2, steps, max_bytes)
    passes = math.ceil(steps / count)
    # Pieces of no length fill up the last pass, so that one compiled program serves all.
    widths = max_sigma * (np.minimum(np.arange(count * passes + 1), steps)[::-1] / steps) ** 2
    blocks = [jnp.asarray(widths[i * count : (i + 1) * count + 1], float) for i in range(passes)]

    def explain(x: Array, rows: Array) -> Attribution:
        model, around = call.net.program("logits", x), repeated(x, count)
        many = call.net.program("logits", around)

        def run(rows: Array) -> Attribution:
            sums = None
            for block in blocks:
                sums = _add(layer, many, x, around, rows, block, sums)
            return _finish(layer, model, x, blocks[0][:1], rows, sums)

        return over_targets(run, rows)

    with jax.default_matmul_precision("highest"):
        return in_batches(explain, (call.x, call.rows), call.batch, size, max_bytes)


@partial(jax.jit, static_argnums=0)
def _add(
    layer: str | None,
    many: Any,
    x: Array,
    around: Array,
    rows: Array,
    sigma: Float[Array, " n_plus_1"],
    sums: Array | None,
) -> Array:
    """Add what the pieces between images of these widths contribute."""
    images = blurred(x, sigma)

    def values(images: Array) -> Array:
        found = value_at(many, layer, images.reshape(around.shape))
        return found.reshape(len(images), len(x), *found.shape[1:])

    start, end = values(images[:-1]), values(images[1:])
    part = along_path(many, layer, (start + end) / 2, end - start, around, rows)
    return part if sums is None else sums + part


@partial(jax.jit, static_argnums=0)
def _finish(layer: str | None, model: Any, x: Array, sigma: Array, rows: Array, contributions: Any) -> Attribution:
    start = value_at(model, layer, blurred(x, sigma)[0])
    bias, logits = chosen(head(model, layer, start, x), rows), chosen(model(x), rows)
    return completed("blur_integrated_gradients", layer, logits, bias, rows, contributions)
