"""Grad-CAM: feature maps weighted by the mean slope of the logit on each."""

from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxinterp.checks import require, require_channels_last, require_one_of
from jaxinterp.explain.attribute.backward import checked, chosen, size_of, target_gradients
from jaxinterp.explain.attribution import Attribution
from jaxinterp.explain.batches import MAX_BYTES, Targets, in_batches
from jaxinterp.explain.explainable import explainable
from jaxinterp.explain.meshes import on_automatic_axes
from jaxinterp.explain.program import value_of


@on_automatic_axes
def grad_cam(
    net: Any,
    x: Any,
    targets: Targets = None,
    *,
    layer: str | None = None,
    upsample: Literal["nearest", "linear"] = "nearest",
    grid: Any = None,
    max_bytes: int = MAX_BYTES,
) -> Attribution:
    """Compute Grad-CAM on the feature maps A of one layer, usually the last before pooling.

        contributions_k(p) = ReLU(Σ_j α_kj A_j(p))          α_kj = mean over positions q of ∂f_k/∂A_j(q)

    On a CoDA Net's last layer, which has one map for each class, this is the positive part of the class' map divided
    by the temperature.

    Args:
        net: a network, see `explainable`.
        x: images, (batch, H, W, C), floating.
        targets: None for all classes, an int, (batch,) or (batch, T) classes.
        layer: name of the layer whose output (batch, H', W', J) is A, such as "layer_8"; by default the one that the
            network names as pooled.
        upsample: interpolation from H'×W' to H×W, "nearest" or "linear" (bilinear).
        grid: (H', W') of a layer of tokens (batch, H'·W', J), as of a vision transformer; one token more is a class
            token in front, which is left out.
        max_bytes: bytes that one pass may take by estimate; larger batches run in equal parts.

    Returns:
        An `Attribution` (batch, T, H, W, 1), never negative, without a residual.

    Example:
        >>> maps = jnp.array([[[[1.0, -1.0]]]])
        >>> net = explainable({"maps": lambda x: x * maps, "head": lambda a: a.sum((1, 2))})
        >>> grad_cam(net, 3 * jnp.ones((1, 2, 2, 1)), layer="maps").contributions[0, :, 0, 0, 0].tolist()
        [3.0, 0.0]

    Source: Selvaraju et al., arXiv 1610.02391, Eq. 1 and 2.
    """
    require_one_of("upsample", upsample, ("nearest", "linear"))
    net = explainable(net)
    layer = net.pooled if layer is None else layer
    require(layer is not None, "layer", None, "a layer's name, of net.layers(x): the network names none")
    call = checked(net, x, targets, layer, max_bytes)
    shape = call.net.program("logits", call.x).program.layers[str(layer)]
    require(call.x.ndim == 4, "x", f"shape {call.x.shape}", "(batch, height, width, channels)")
    require_channels_last("x", call.x.shape)
    if grid is not None:
        grid = tuple(grid) if isinstance(grid, list | tuple) else (grid,)
        sides = len(grid) == 2 and all(isinstance(side, int | np.integer) and side > 0 for side in grid)
        require(sides, "grid", grid, "(height, width) in tokens")
    if grid is None:
        require(
            len(shape) == 4, "layer", f"activations {shape}", "(batch, height, width, features), or tokens and grid="
        )
    else:
        tokens = grid[0] * grid[1]
        fits = len(shape) == 3 and shape[1] - tokens in (0, 1)
        require(fits, "grid", grid, f"(height, width) of the tokens of {shape}, with or without a class token")

    def explain(x: Array, rows: Array) -> Attribution:
        model = call.net.program("logits", x)
        maps = value_of(model, layer, x)
        logits, slopes = target_gradients(model, layer, maps, x, rows)
        cam = _combine(maps, slopes, grid, x.shape[1:3], upsample)
        return Attribution(cam, chosen(logits, rows), rows, method="grad_cam", layer=str(layer))

    with jax.default_matmul_precision("highest"):
        size = size_of(call, call.rows.shape[1])
        return in_batches(explain, (call.x, call.rows), call.batch, size, max_bytes)


@partial(jax.jit, static_argnums=(2, 3, 4))
def _combine(
    maps: Float[Array, "batch *places j"],
    slopes: Float[Array, "batch t *places j"],
    grid: tuple[int, int] | None,
    size: tuple[int, int],
    upsample: str,
) -> Float[Array, "batch t height width 1"]:
    """Compute Eq. 1 and 2: mean slopes, weighted sum of the maps, positive part."""
    if grid is not None:
        places = grid[0] * grid[1]
        maps = maps[:, -places:].reshape(len(maps), *grid, -1)
        slopes = slopes[:, :, -places:].reshape(*slopes.shape[:2], *grid, -1)
    cam = jax.nn.relu(jnp.einsum("btj,bhwj->bthw", slopes.mean((2, 3)), maps))
    return jax.image.resize(cam, (*cam.shape[:2], *size), upsample)[..., None]
