"""Expected gradients (GradientSHAP): integrated gradients averaged over a distribution of baselines, by sampling."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from jaxinterp.checks import random_key, require, require_finite, require_number, require_whole
from jaxinterp.explain.attribute.backward import along_path, checked, chosen, completed, fitting, head, repeated
from jaxinterp.explain.attribution import Attribution
from jaxinterp.explain.batches import MAX_BYTES, Targets, in_batches, over_targets
from jaxinterp.explain.meshes import on_automatic_axes
from jaxinterp.explain.program import called, value_at


@on_automatic_axes
def expected_gradients(
    net: Any,
    x: Any,
    targets: Targets = None,
    *,
    baselines: Any,
    layer: str | None = None,
    samples: int = 50,
    noise: float = 0.0,
    key: Key[Array, ""] | None = None,
    max_bytes: int = MAX_BYTES,
) -> Attribution:
    """Compute expected gradients: random points between the input and random baselines, one slope at each.

        contributions_k = E[(x̃ − x') ⊙ ∂f_k/∂x (x' + α (x̃ − x'))]          x' ~ baselines,  α ~ U(0, 1)
        E Σ contributions_k = f_k(x) − E f_k(x')                              x̃ = x + noise · N(0, 1)

    Every baseline is drawn once before one is drawn again. All examples share the draws, so that a result does not
    depend on the other examples.

    Args:
        net: a network, see `explainable`.
        x: a batch, (batch, ...), floating.
        targets: None for all classes, an int, (batch,) or (batch, T) classes.
        baselines: x', (n, ...), such as training images.
        layer: name of a layer: the paths then run straight between its outputs for x' and for x̃, and what goes around
            the layer is that of x.
        samples: number of points, ≥ 1; a multiple of n weights all baselines equally.
        noise: standard deviation of Gaussian noise on x, in the unit of `x`.
        key: of the draws; `jax.random.key(0)` by default.
        max_bytes: bytes that one pass may take by estimate; examples, then points, run in parts.

    Returns:
        An `Attribution` on the shape of `x` or of the layer's output, with the mean logit of the baselines drawn as
        bias, and residual f_k(x) − bias_k − Σ contributions_k.

    Example:
        >>> weights, baselines = jnp.array([[2.0], [-1.0]]), jnp.array([[0.0, 0.0], [1.0, 1.0]])
        >>> linear = expected_gradients(lambda x: x @ weights, jnp.ones((1, 2)), baselines=baselines, samples=4)
        >>> linear.contributions.tolist(), linear.bias.tolist(), linear.residual.tolist()
        ([[[1.0, -0.5]]], [[0.5]], [[0.0]])

    Source: Erion, Janizek, Sturmfels, Lundberg, Lee, arXiv 1906.10670, Eq. 3; Lundberg, Lee, arXiv 1705.07874 (SHAP).
    """
    require_whole("samples", samples, 1)
    require_number("noise", noise, "at least 0", lambda v: v >= 0)
    call = checked(net, x, targets, layer, max_bytes)
    base, wanted = jnp.asarray(baselines, call.x.dtype), f"(n, {', '.join(map(str, call.x.shape[1:]))}), n at least 1"
    require(base.shape[1:] == call.x.shape[1:] and base.size, "baselines", f"shape {base.shape}", wanted)
    require_finite("baselines", base)
    key = random_key(key)
    order, alphas = _draw(samples, len(base), key)
    count, size, max_bytes = fitting(call, 2 * call.rows.shape[1] + 3, samples, max_bytes)
    passes = math.ceil(samples / count)
    # The last point again, with weight zero, fills up the last pass, so that one compiled program serves all.
    places = np.minimum(np.arange(passes * count), samples - 1).reshape(passes, count)
    weights = (np.arange(passes * count) < samples).reshape(passes, count) / samples
    blocks = [
        (jnp.asarray(i, jnp.int32), jnp.asarray(weight, float)) for i, weight in zip(places, weights, strict=True)
    ]

    def explain(x: Array, rows: Array) -> Attribution:
        model, around = call.net.program("logits", x), repeated(x, count)
        many = call.net.program("logits", around)

        def run(rows: Array) -> Attribution:
            sums: Any = None
            for block in blocks:
                sums = _add(layer, many, x, around, rows, base, (order, alphas), block, noise, key, sums)
            return _finish(layer, called(model, x), rows, *sums)

        return over_targets(run, rows)

    with jax.default_matmul_precision("highest"):
        return in_batches(explain, (call.x, call.rows), call.batch, size, max_bytes)


@partial(jax.jit, static_argnums=(0, 1))
def _draw(samples: int, count: int, key: Key[Array, ""]) -> tuple[Int[Array, " samples"], Float[Array, " samples"]]:
    """Return a baseline's place and α of every sample; places in permutations, one after the other."""
    places, between = jax.random.split(jax.random.fold_in(key, samples))
    turns = jax.random.split(places, math.ceil(samples / count))
    order = jax.vmap(lambda turn: jax.random.permutation(turn, count))(turns)
    return order.reshape(-1)[:samples], jax.random.uniform(between, (samples,))


@partial(jax.jit, static_argnums=0)
def _add(
    layer: str | None,
    many: Any,
    x: Array,
    around: Array,
    rows: Array,
    base: Float[Array, "n *shape"],
    draws: tuple[Array, Array],
    block: tuple[Int[Array, " s"], Float[Array, " s"]],
    noise: float | Array,
    key: Key[Array, ""],
    sums: tuple[Array, Array] | None,
) -> tuple[Array, Array]:
    """Add what a block of samples contributes, and their baselines' logits, with the samples' weights."""
    (order, alphas), (places, weights) = draws, block
    wide = np.promote_types(x.dtype, np.float32)
    drawn = jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), x.shape[1:], wide))(places)
    noisy = x[None] + jnp.asarray(noise, x.dtype) * drawn[:, None].astype(x.dtype)

    def values(images: Array) -> Array:
        found = value_at(many, layer, images.reshape(around.shape))
        return found.reshape(len(images), len(x), *found.shape[1:])

    start, end = values(jnp.broadcast_to(base[order[places]][:, None], noisy.shape)), values(noisy)
    alpha, weight = (v.reshape(-1, *(1,) * (end.ndim - 1)).astype(end.dtype) for v in (alphas[places], weights))
    step = end - start
    part = along_path(many, layer, start + alpha * step, weight * step, around, rows)
    logits = head(many, layer, start.reshape(-1, *start.shape[2:]), around)
    own = chosen(logits, jnp.tile(rows, (len(places), 1))).reshape(len(places), *rows.shape)
    bias = jnp.tensordot(weights.astype(own.dtype), own, axes=1)
    return (part, bias) if sums is None else (sums[0] + part, sums[1] + bias)


@partial(jax.jit, static_argnums=0)
def _finish(layer: str | None, logits: Array, rows: Array, contributions: Array, bias: Array) -> Attribution:
    return completed("expected_gradients", layer, chosen(logits, rows), bias, rows, contributions)
