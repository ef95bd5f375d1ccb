"""Activation maps: the feature maps of one layer, weighted by what a logit makes of each."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxinterp.checks import require, require_channels_last, require_one_of
from jaxinterp.explain.attribute.backward import (
    Call,
    checked,
    chosen,
    fitting,
    gradients,
    head,
    repeated,
    size_of,
)
from jaxinterp.explain.attribute.rules import guided_backpropagation
from jaxinterp.explain.attribution import Attribution
from jaxinterp.explain.batches import MAX_BYTES, Targets, cut, in_batches, over_targets
from jaxinterp.explain.explainable import explainable
from jaxinterp.explain.meshes import on_automatic_axes
from jaxinterp.explain.program import value_at

Upsample = Literal["nearest", "linear"]
Maps = Float[Array, "batch h w j"]
Slopes = Float[Array, "batch t h w j"]
Cam = Float[Array, "batch t h w"]


class Place(NamedTuple):
    """Where maps are read, and how they become maps of the image: hashable, so that programs are known by it."""

    layer: str
    grid: tuple[int, int] | None
    upsample: Upsample

    def on_grid(self, values: Float[Array, "*lead places j"] | Float[Array, "*lead h w j"]) -> Array:
        """Return tokens as maps; a class token in front is left out."""
        if self.grid is None:
            return values
        tokens = self.grid[0] * self.grid[1]
        return values[..., -tokens:, :].reshape(*values.shape[:-2], *self.grid, values.shape[-1])

    def enlarged(self, cam: Cam, x: Float[Array, "batch height width c"]) -> Float[Array, "batch t height width 1"]:
        """Return maps of the image's size."""
        return jax.image.resize(cam, (*cam.shape[:2], *x.shape[1:3]), self.upsample)[..., None]


def require_maps(
    net: Any, x: Any, targets: Targets, layer: str | None, grid: Any, upsample: Upsample, max_bytes: int
) -> tuple[Call, Place]:
    """Check what all activation maps take; the layer is by default the one that the network names as pooled."""
    require_one_of("upsample", upsample, ("nearest", "linear"))
    net = explainable(net)
    layer = net.pooled if layer is None else layer
    require(layer is not None, "layer", None, "a layer's name, of net.layers(x): the network names none")
    call = checked(net, x, targets, layer, max_bytes)
    shape = call.net.program("logits", call.x).program.layers[str(layer)]
    require(call.x.ndim == 4, "x", f"shape {call.x.shape}", "(batch, height, width, channels)")
    require_channels_last("x", call.x.shape)
    if grid is None:
        wanted = "(batch, height, width, features), or tokens and grid="
        require(len(shape) == 4, "layer", f"activations {shape}", wanted)
        return call, Place(str(layer), None, upsample)
    grid = tuple(grid) if isinstance(grid, list | tuple) else (grid,)
    sides = len(grid) == 2 and all(isinstance(side, int | np.integer) and side > 0 for side in grid)
    require(sides, "grid", grid, "(height, width) in tokens")
    fits = len(shape) == 3 and shape[1] - grid[0] * grid[1] in (0, 1)
    require(fits, "grid", grid, f"(height, width) of the tokens of {shape}, with or without a class token")
    return call, Place(str(layer), (int(grid[0]), int(grid[1])), upsample)


@on_automatic_axes
def grad_cam(
    net: Any,
    x: Any,
    targets: Targets = None,
    *,
    layer: str | None = None,
    upsample: Upsample = "nearest",
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
    return _by_slopes(_grad_cam, net, x, targets, layer, grid, upsample, max_bytes)


def _grad_cam(maps: Maps, slopes: Slopes) -> Cam:
    return jax.nn.relu(_weighted(slopes.mean((2, 3)), maps))


@on_automatic_axes
def grad_cam_plus_plus(
    net: Any,
    x: Any,
    targets: Targets = None,
    *,
    layer: str | None = None,
    upsample: Upsample = "nearest",
    grid: Any = None,
    max_bytes: int = MAX_BYTES,
) -> Attribution:
    """Compute Grad-CAM++: positive slopes g = ∂f_k/∂A_j count by how much of the map they explain.

        contributions_k(p) = ReLU(Σ_j w_kj A_j(p))          w_kj = Σ_p a_kj(p) ReLU(g_kj(p))
        a_kj(p) = g_kj(p)² / (2 g_kj(p)² + (Σ_q A_j(q)) g_kj(p)³)

    The paper's score is exp(f_k), whose factor exp(f_k), common to a map, is left out. Where g = 0, or the denominator
    is, a = 0. Arguments and result are those of `grad_cam`.

    Example:
        >>> net = explainable({"maps": lambda x: x, "head": lambda a: a.sum((1, 2))})
        >>> grad_cam_plus_plus(net, jnp.ones((1, 2, 1, 1)), layer="maps").contributions.ravel().tolist()
        [0.5, 0.5]

    Source: Chattopadhyay, Sarkar, Howlader, Balasubramanian, arXiv 1710.11063, Eq. 15 and 19.
    """
    return _by_slopes(_grad_cam_plus_plus, net, x, targets, layer, grid, upsample, max_bytes)


def _grad_cam_plus_plus(maps: Maps, slopes: Slopes) -> Cam:
    alpha = _ratio(slopes**2, 2 * slopes**2 + maps.sum((1, 2))[:, None, None, None] * slopes**3)
    return jax.nn.relu(_weighted((alpha * jax.nn.relu(slopes)).sum((2, 3)), maps))


@on_automatic_axes
def hires_cam(
    net: Any,
    x: Any,
    targets: Targets = None,
    *,
    layer: str | None = None,
    upsample: Upsample = "nearest",
    grid: Any = None,
    max_bytes: int = MAX_BYTES,
) -> Attribution:
    """Compute HiResCAM: every position's map by its own slope, signed.

        contributions_k(p) = Σ_j A_j(p) ∂f_k/∂A_j(p)

    Where the network is affine above the layer, the map before it is enlarged sums to the logit, but for the bias.
    Arguments and result are those of `grad_cam`, but that values may be negative.

    Example:
        >>> net = explainable({"maps": lambda x: x, "head": lambda a: -a.sum((1, 2))})
        >>> hires_cam(net, jnp.ones((1, 2, 1, 1)), layer="maps").contributions.ravel().tolist()
        [-1.0, -1.0]

    Source: Draelos, Carin, arXiv 2011.08891, Sec. 3.2.
    """
    return _by_slopes(_hires_cam, net, x, targets, layer, grid, upsample, max_bytes)


def _hires_cam(maps: Maps, slopes: Slopes) -> Cam:
    return (slopes * maps[:, None]).sum(-1)


@on_automatic_axes
def layer_cam(
    net: Any,
    x: Any,
    targets: Targets = None,
    *,
    layer: str | None = None,
    upsample: Upsample = "nearest",
    grid: Any = None,
    max_bytes: int = MAX_BYTES,
) -> Attribution:
    """Compute LayerCAM: every position's map by its own positive slope, on shallow layers too.

        contributions_k(p) = ReLU(Σ_j ReLU(∂f_k/∂A_j(p)) A_j(p))

    Arguments and result are those of `grad_cam`.

    Example:
        >>> net = explainable({"maps": lambda x: x, "head": lambda a: a.sum((1, 2))})
        >>> layer_cam(net, jnp.array([[[[2.0]], [[-1.0]]]]), layer="maps").contributions.ravel().tolist()
        [2.0, 0.0]

    Source: Jiang, Zhang, Hou, Cheng, Wei, IEEE TIP 2021, Eq. 4–6.
    """
    return _by_slopes(_layer_cam, net, x, targets, layer, grid, upsample, max_bytes)


def _layer_cam(maps: Maps, slopes: Slopes) -> Cam:
    return jax.nn.relu((jax.nn.relu(slopes) * maps[:, None]).sum(-1))


@on_automatic_axes
def xgrad_cam(
    net: Any,
    x: Any,
    targets: Targets = None,
    *,
    layer: str | None = None,
    upsample: Upsample = "nearest",
    grid: Any = None,
    max_bytes: int = MAX_BYTES,
) -> Attribution:
    """Compute XGrad-CAM: maps by their mean slope, each position as heavy as its activation.

        contributions_k(p) = ReLU(Σ_j w_kj A_j(p))          w_kj = Σ_q A_j(q) ∂f_k/∂A_j(q) / Σ_q A_j(q)

    The weight of a map that sums to 0 is 0. Arguments and result are those of `grad_cam`.

    Example:
        >>> net = explainable({"maps": lambda x: x, "head": lambda a: (a**2).sum((1, 2))})
        >>> xgrad_cam(net, jnp.array([[[[1.0]], [[3.0]]]]), layer="maps").contributions.ravel().tolist()
        [5.0, 15.0]

    Source: Fu, Hu, Dong, Guo, Gao, Li, arXiv 2008.02312, Eq. 8.
    """
    return _by_slopes(_xgrad_cam, net, x, targets, layer, grid, upsample, max_bytes)


def _xgrad_cam(maps: Maps, slopes: Slopes) -> Cam:
    along = (slopes * maps[:, None]).sum((2, 3))
    return jax.nn.relu(_weighted(_ratio(along, jnp.broadcast_to(maps.sum((1, 2))[:, None], along.shape)), maps))


@on_automatic_axes
def eigen_cam(
    net: Any,
    x: Any,
    targets: Targets = None,
    *,
    layer: str | None = None,
    upsample: Upsample = "nearest",
    grid: Any = None,
    max_bytes: int = MAX_BYTES,
) -> Attribution:
    """Compute Eigen-CAM: the maps projected on their first principal direction, the same for every target.

        contributions(p) = Σ_j v_j A_j(p)          v the first right singular vector of A, (positions, channels)

    A is not centered, and the sign is the one of a map that sums to 0 or more. Arguments and result are those of
    `grad_cam`, but that values may be negative.

    Example:
        >>> net = explainable({"maps": lambda x: x, "head": lambda a: a.sum((1, 2))})
        >>> eigen_cam(net, jnp.array([[[[3.0, 4.0]]]]), 0, layer="maps").contributions.ravel().round(4).tolist()
        [5.0]

    Source: Muhammad, Yeasin, arXiv 2008.00299, Sec. III.
    """
    call, place = require_maps(net, x, targets, layer, grid, upsample, max_bytes)

    def explain(x: Array, rows: Array) -> Attribution:
        return _principal(place, call.net.program("logits", x), x, rows)

    with jax.default_matmul_precision("highest"):
        size = size_of(call, call.rows.shape[1])
        return in_batches(explain, (call.x, call.rows), call.batch, size, max_bytes)


@partial(jax.jit, static_argnums=0)
def _principal(place: Place, model: Any, x: Array, rows: Array) -> Attribution:
    maps = place.on_grid(value_at(model, place.layer, x))
    flat = maps.reshape(len(maps), -1, maps.shape[-1])
    left, singular, _ = jnp.linalg.svd(flat.astype(np.promote_types(flat.dtype, np.float32)), full_matrices=False)
    first = (left[..., 0] * singular[:, :1]).astype(maps.dtype)
    first = first * jnp.where(first.sum(1, keepdims=True) < 0, -1, 1).astype(maps.dtype)
    cam = jnp.broadcast_to(first.reshape(len(maps), 1, *maps.shape[1:3]), (*rows.shape, *maps.shape[1:3]))
    logits = chosen(model(x), rows)
    return Attribution(place.enlarged(cam, x), logits, rows, method="eigen_cam", layer=place.layer)


@on_automatic_axes
def score_cam(
    net: Any,
    x: Any,
    targets: Targets = None,
    *,
    layer: str | None = None,
    upsample: Upsample = "nearest",
    grid: Any = None,
    max_bytes: int = MAX_BYTES,
) -> Attribution:
    """Compute Score-CAM: maps weighted by the logit of the image seen through each of them, without gradients.

        contributions_k(p) = ReLU(Σ_j w_kj A_j(p))          w_k· = softmax over j of f_k(x ⊙ s(A_j))

    s enlarges a map (bilinear) and scales it to [0, 1]; a constant map becomes 0. Arguments and result are those of
    `grad_cam`; there are as many forward passes as the layer has channels, in full batches.

    Example:
        >>> net = explainable({"maps": lambda x: x, "head": lambda a: a.sum((1, 2))})
        >>> score_cam(net, jnp.array([[[[0.0]], [[2.0]]]]), layer="maps").contributions.ravel().tolist()
        [0.0, 2.0]

    Source: Wang et al., arXiv 1910.01279, Algorithm 1.
    """
    return _by_channels(_through, _score_cam, net, x, targets, layer, grid, upsample, max_bytes)


def _through(place: Place, many: Any, x: Array, z: Array, channels: Int[Array, " n"]) -> Float[Array, "n_batch k"]:
    """Return the logits of images seen through some channels' maps."""
    maps = jnp.moveaxis(place.on_grid(z)[..., channels], -1, 0)
    masks = jax.image.resize(maps, (*maps.shape[:2], *x.shape[1:3]), "linear")
    low, high = (bound(masks, axis=(2, 3), keepdims=True) for bound in (jnp.min, jnp.max))
    masks = _ratio(masks - low, jnp.broadcast_to(high - low, masks.shape))
    return many((x[None] * masks[..., None].astype(x.dtype)).reshape(-1, *x.shape[1:]))  # type: ignore[no-any-return]


def _score_cam(maps: Maps, own: Float[Array, "batch t"], logits: Float[Array, "j batch t"]) -> Cam:
    return jax.nn.relu(_weighted(jnp.moveaxis(jax.nn.softmax(logits, axis=0), 0, -1).astype(maps.dtype), maps))


@on_automatic_axes
def ablation_cam(
    net: Any,
    x: Any,
    targets: Targets = None,
    *,
    layer: str | None = None,
    upsample: Upsample = "nearest",
    grid: Any = None,
    max_bytes: int = MAX_BYTES,
) -> Attribution:
    """Compute Ablation-CAM: maps weighted by the relative drop of the logit where each is set to 0.

        contributions_k(p) = ReLU(Σ_j w_kj A_j(p))          w_kj = (f_k − f_k(A_j = 0)) / f_k

    The weights of a logit of 0 are 0. Arguments and result are those of `grad_cam`; there are as many forward passes
    as the layer has channels, in full batches.

    Example:
        >>> net = explainable({"maps": lambda x: x, "head": lambda a: a.sum((1, 2, 3))[:, None]})
        >>> ablation_cam(net, jnp.array([[[[1.0, 3.0]]]]), layer="maps").contributions.ravel().tolist()
        [2.5]

    Source: Ramaswamy, Desai, WACV 2020, Eq. 3 and 4.
    """
    return _by_channels(_without, _ablation_cam, net, x, targets, layer, grid, upsample, max_bytes)


def _without(place: Place, many: Any, x: Array, z: Array, channels: Int[Array, " n"]) -> Float[Array, "n_batch k"]:
    """Return the logits with some channels set to 0, one at a time, at all positions."""
    kept = (channels[:, None] != jnp.arange(z.shape[-1])[None]).astype(z.dtype)
    ablated = z[None] * kept.reshape(-1, *(1,) * (z.ndim - 1), z.shape[-1])
    return head(many, place.layer, ablated.reshape(-1, *z.shape[1:]), repeated(x, len(channels)))


def _ablation_cam(maps: Maps, own: Float[Array, "batch t"], logits: Float[Array, "j batch t"]) -> Cam:
    weights = _ratio(own[None] - logits, jnp.broadcast_to(own[None], logits.shape))
    return jax.nn.relu(_weighted(jnp.moveaxis(weights, 0, -1).astype(maps.dtype), maps))


@on_automatic_axes
def guided_grad_cam(
    net: Any,
    x: Any,
    targets: Targets = None,
    *,
    layer: str | None = None,
    upsample: Upsample = "nearest",
    grid: Any = None,
    guided: Callable[..., Attribution] = guided_backpropagation,
    max_bytes: int = MAX_BYTES,
) -> Attribution:
    """Compute Guided Grad-CAM: a fine map of the input, times the enlarged Grad-CAM.

        contributions_k = guided_k ⊙ GradCAM_k

    Args:
        net: a network, see `explainable`.
        x: images, (batch, H, W, C), floating.
        targets: None for all classes, an int, (batch,) or (batch, T) classes.
        layer: as in `grad_cam`.
        upsample: as in `grad_cam`.
        grid: as in `grad_cam`.
        guided: the method of the fine map, of the input.
        max_bytes: bytes that one pass may take by estimate.

    Returns:
        An `Attribution` (batch, T, H, W, C), signed, without a residual.

    Example:
        >>> from jaxinterp.explain.attribute.gradient import gradient
        >>> net = explainable({"maps": lambda x: x, "head": lambda a: a.sum((1, 2))})
        >>> fine = guided_grad_cam(net, 3 * jnp.ones((1, 1, 1, 1)), layer="maps", guided=gradient)
        >>> fine.contributions.ravel().tolist()
        [3.0]

    Source: Selvaraju et al., arXiv 1610.02391, Sec. 3.2.
    """
    call, place = require_maps(net, x, targets, layer, grid, upsample, max_bytes)
    cam = grad_cam(call.net, call.x, call.rows, layer=place.layer, upsample=upsample, grid=grid, max_bytes=max_bytes)
    fine = guided(call.net, call.x, call.rows, max_bytes=max_bytes)
    shapes = fine.contributions.shape, cam.contributions.shape
    require(shapes[0][:-1] == shapes[1][:-1], "guided", f"contributions {shapes[0]}", f"{(*shapes[1][:-1], 'C')}")
    parts = _product(fine.contributions, cam.contributions)
    return cut(Attribution(parts, cam.logits, cam.targets, method="guided_grad_cam", layer=cam.layer), call.batch)


@jax.jit
def _product(fine: Float[Array, "batch t h w c"], cam: Float[Array, "batch t h w 1"]) -> Float[Array, "batch t h w c"]:
    return fine * cam


def _by_slopes(
    rule: Callable[[Array, Array], Array],
    net: Any,
    x: Any,
    targets: Targets,
    layer: str | None,
    grid: Any,
    upsample: Upsample,
    max_bytes: int,
) -> Attribution:
    """Combine a layer's maps and slopes, in one program."""
    call, place = require_maps(net, x, targets, layer, grid, upsample, max_bytes)

    def explain(x: Array, rows: Array) -> Attribution:
        return over_targets(partial(_sloped, rule, place, call.net.program("logits", x), x), rows)

    with jax.default_matmul_precision("highest"):
        size = size_of(call, call.rows.shape[1])
        return in_batches(explain, (call.x, call.rows), call.batch, size, max_bytes)


@partial(jax.jit, static_argnums=(0, 1))
def _sloped(rule: Callable[[Array, Array], Array], place: Place, model: Any, x: Array, rows: Array) -> Attribution:
    z, logits, slopes = gradients(model, place.layer, x, rows)
    cam = rule(place.on_grid(z), place.on_grid(slopes))
    return Attribution(place.enlarged(cam, x), logits, rows, method=rule.__name__[1:], layer=place.layer)


def _by_channels(
    look: Callable[..., Array],
    rule: Callable[[Array, Array, Array], Array],
    net: Any,
    x: Any,
    targets: Targets,
    layer: str | None,
    grid: Any,
    upsample: Upsample,
    max_bytes: int,
) -> Attribution:
    """Combine a layer's maps by the logits of a change of each channel: channels in blocks, one compiled program."""
    call, place = require_maps(net, x, targets, layer, grid, upsample, max_bytes)
    channels = call.net.program("logits", call.x).program.layers[place.layer][-1]
    count, size, max_bytes = fitting(call, 1, channels, max_bytes)

    def explain(x: Array, rows: Array) -> Attribution:
        model, many = call.net.program("logits", x), call.net.program("logits", repeated(x, count))
        starts = [min(start, channels - count) for start in range(0, channels, count)]  # the last block reaches back
        blocks = [_look(look, place, count, (model, many), x, rows, start) for start in starts]
        return _changed(rule, place, model, x, rows, blocks)

    with jax.default_matmul_precision("highest"):
        return in_batches(explain, (call.x, call.rows), call.batch, size, max_bytes)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _look(
    look: Callable[..., Array],
    place: Place,
    count: int,
    models: tuple[Any, Any],
    x: Array,
    rows: Array,
    start: int | Array,
) -> Float[Array, "n batch t"]:
    """Return the targets' logits of a block of changed channels."""
    model, many = models
    logits = look(place, many, x, value_at(model, place.layer, x), start + jnp.arange(count))
    return chosen(logits, jnp.tile(rows, (count, 1))).reshape(count, *rows.shape)


@partial(jax.jit, static_argnums=(0, 1))
def _changed(
    rule: Callable[[Array, Array, Array], Array], place: Place, model: Any, x: Array, rows: Array, blocks: list[Array]
) -> Attribution:
    maps, own = place.on_grid(value_at(model, place.layer, x)), chosen(model(x), rows)
    fresh = maps.shape[-1] - sum(map(len, blocks[:-1]))  # of the last block, which reaches back
    cam = rule(maps, own, jnp.concatenate([*blocks[:-1], blocks[-1][-fresh:]]))
    return Attribution(place.enlarged(cam, x), own, rows, method=rule.__name__[1:], layer=place.layer)


def _weighted(weights: Float[Array, "batch t j"], maps: Maps) -> Cam:
    return jnp.einsum("btj,bhwj->bthw", weights, maps)


def _ratio(above: Array, below: Array) -> Array:
    """Divide; 0 where the denominator is."""
    return jnp.where(below == 0, 0, above / jnp.where(below == 0, 1, below))
