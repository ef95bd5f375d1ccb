"""Grad-CAM: feature maps weighted by the mean slope of the logit on each."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinterp.checks import require, require_one_of
from jaxinterp.explain.attribute.attribution import MAX_BYTES, Attribution, pull_targets
from jaxinterp.explain.decompose import Targets, bind
from jaxinterp.explain.tracing import in_chunks, split_at, unjitted

Split = tuple[Callable[..., Array], Callable[..., Array]]


def grad_cam(
    model: Callable[..., Float[Array, "batch classes"]] | Split,
    x: Array,
    targets: Targets = None,
    *,
    layer: str | None = None,
    upsample: Literal["nearest", "linear"] = "nearest",
    variables: Any = None,
    max_bytes: int = MAX_BYTES,
) -> Attribution:
    """Compute Grad-CAM on the feature maps A of one layer, usually the last before pooling.

        contributions_k(p) = ReLU(Σ_j α_kj A_j(p))          α_kj = mean over positions q of ∂f_k/∂A_j(q)

    On a CoDA Net's last layer, which has one map for each class, this is the positive part of the class' map divided
    by the temperature.

    Args:
        model: x ↦ logits calling a Flax model, with `layer`; or a pair (x ↦ feature maps, feature maps ↦ logits).
            Where `variables` is given, each takes it as first argument; see `gradient`.
        x: images, (batch, H, W, C), floating.
        targets: None for all classes, an int, (batch,) or (batch, T) classes.
        layer: path of the Flax submodule whose output (batch, H', W', J) is A, such as "layer_8".
        upsample: interpolation from H'×W' to H×W, "nearest" or "linear" (bilinear).
        variables: the model's variables, any pytree.
        max_bytes: bytes that one pass may take by estimate; larger batches run in equal chunks.

    Returns:
        An `Attribution` (batch, T, H, W, 1), never negative, without a gap.

    Example:
        >>> maps = jnp.array([[[[1.0, -1.0]]]])
        >>> cam = grad_cam((lambda x: x * maps, lambda a: a.sum((1, 2))), 3 * jnp.ones((1, 2, 2, 1)))
        >>> cam.contributions[0, :, 0, 0, 0].tolist()
        [3.0, 0.0]

    Source: Selvaraju et al., arXiv 1610.02391, Eq. 1 and 2.
    """
    pair = isinstance(model, tuple)
    require(pair == (layer is None), "layer", layer, "a layer's path with x ↦ logits, or None with a pair of functions")
    require_one_of("upsample", upsample, ("nearest", "linear"))
    parts = model if isinstance(model, tuple) else (unjitted(model),)
    with jax.default_matmul_precision("highest"):
        _, rows, size = bind(partial(_compose, *parts) if pair else parts[0], x, targets, variables, (layer,))
        compiled = variables is not None
        partials = [jax.tree_util.Partial(part, *((variables,) if compiled else ())) for part in parts]

        def explain(x: Array, rows: Array) -> Attribution:
            maps, logits, pullback = (_split if compiled else unjitted(_split))(layer, partials, x)
            slopes = pull_targets(logits, pullback, rows, compiled)
            return Attribution(_combine(maps, slopes, x.shape[1:3], upsample))

        return in_chunks(explain, (x, rows), size.bytes_each(rows.shape[1]), max_bytes)


def _compose(features: Callable[..., Array], head: Callable[..., Array], *args: Any) -> Array:
    return head(*args[:-1], features(*args))


@partial(jax.jit, static_argnums=0)
def _split(
    layer: str | None, parts: Sequence[Callable[[Array], Array]], x: Float[Array, "batch height width channels"]
) -> tuple[Array, Array, Callable[[Array], tuple[Array]]]:
    """Return the feature maps, the logits, and the pullback from the logits to the maps."""
    if layer is None:
        maps = parts[0](x)
        logits, pullback = jax.vjp(parts[1], maps)
    else:
        (zeros,), added = split_at(parts[0], x, (layer,))
        logits, pullback, activations = jax.vjp(added, zeros, has_aux=True)
        (maps,) = activations
    require(maps.ndim == 4, "layer", f"activations {maps.shape}", "(batch, height, width, features)")
    return maps, logits, pullback


@partial(jax.jit, static_argnums=(2, 3))
def _combine(
    maps: Float[Array, "batch h w j"], slopes: Float[Array, "batch t h w j"], size: tuple[int, int], upsample: str
) -> Float[Array, "batch t height width 1"]:
    """Compute Eq. 1 and 2: mean slopes, weighted sum of the maps, positive part."""
    cam = jax.nn.relu(jnp.einsum("btj,bhwj->bthw", slopes.mean((2, 3)), maps))
    return jax.image.resize(cam, (*cam.shape[:2], *size), upsample)[..., None]
