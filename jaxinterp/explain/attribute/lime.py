"""LIME: a linear model of the logit around x, whose variables say which segments of x are present."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key

from jaxinterp.checks import random_key, require, require_number, require_one_of, require_whole
from jaxinterp.explain.attribute.ablation import RULES, Rule
from jaxinterp.explain.attribute.coalitions import Mask, game, listed, play, sizes
from jaxinterp.explain.attribute.segments import Superpixels, squares
from jaxinterp.explain.attribute.segments import superpixels as algorithm
from jaxinterp.explain.attribution import Attribution
from jaxinterp.explain.batches import MAX_BYTES, Targets
from jaxinterp.explain.explainable import Explainable, explainable
from jaxinterp.explain.meshes import on_automatic_axes

Distance = Literal["cosine", "l2"]
Fit = Literal["lasso", "ridge"]
SWEEPS = 100
"""Rounds of coordinate descent; segments are drawn independently, so a few are enough."""


@on_automatic_axes
def lime(
    net: Any,
    x: Any,
    targets: Targets = None,
    *,
    layer: str | None = None,
    mask: Mask = None,
    superpixels: Superpixels | Callable[[np.ndarray], Any] | None = None,
    cells: int = 8,
    samples: int = 1000,
    distance: Distance = "cosine",
    width: float = 0.25,
    fit: Fit = "ridge",
    penalty: float = 1.0,
    baseline: ArrayLike = 0.0,
    key: Key[Array, ""] | None = None,
    rule: Rule = "mean",
    max_bytes: int = MAX_BYTES,
) -> Attribution:
    """Fit a linear model of each logit to random coalitions of segments, weighted by their closeness to x.

        contributions_k = argmin_β min_b Σ_i π(z_i) (f_k(x on z_i, x' elsewhere) − b − βᵀz_i)² + penalty ‖β‖²
        z_i ∈ {0, 1}^d with equal chances, z_1 = 1        π(z) = exp(−D(z)² / width²)
        D(z) = 1 − √(|z|/d), the cosine distance to x, or √(1 − |z|/d), the Euclidean one over √d

    Args:
        net: a network, see `explainable`.
        x: a batch, (batch, ...), floating.
        targets: None for all classes, an int, (batch,) or (batch, T) classes.
        layer: name of a layer, whose output takes the place of `x`.
        mask: integers, the segment of each entry, see `feature_ablation`.
        superpixels: an algorithm of scikit-image (extra `superpixels`) with its own settings, or a function image ↦
            integers (H, W), where no mask is given; by default images have squares, and each entry of other inputs is
            a segment of its own.
        cells: squares along each side of an image; "slic" is asked for as many segments in all.
        samples: number of coalitions, ≥ 1; some times the number of segments.
        distance: D.
        width: of the kernel, above 0.
        fit: "ridge" in closed form, or "lasso" by coordinate descent: ½ Σ_i π_i (...)² / Σ_i π_i + penalty ‖β‖₁.
        penalty: as `alpha` of scikit-learn's `Ridge` and `Lasso`, at least 0; above 0 if segments outnumber samples.
        baseline: x', a number or an array that broadcasts to `x`, or to the layer's output.
        key: typed random key; `jax.random.key(0)` by default.
        rule: "mean", each entry has its segment's coefficient; or "spread", it is divided among the entries.
        max_bytes: bytes that one pass may take by estimate; examples, then coalitions, run in parts.

    Returns:
        An `Attribution` on the shape of `x`, with one channel where the segments have none; without a residual.

    Example:
        >>> parts = lime(lambda x: x @ jnp.array([[3.0], [-1.0]]), jnp.ones((1, 2)), penalty=0.0)
        >>> parts.contributions.round().astype(int).tolist()
        [[[3, -1]]]

    Source: Ribeiro, Singh, Guestrin, arXiv 1602.04938, Eq. 2 and Sec. 3.4.
    """
    require_one_of("rule", rule, RULES)
    require_one_of("distance", distance, get_args(Distance))
    require_one_of("fit", fit, get_args(Fit))
    require_whole("samples", samples, 1)
    require_number("width", width, "more than 0", lambda v: v > 0)
    require_number("penalty", penalty, "at least 0", lambda v: v >= 0)
    net = explainable(net)
    if mask is None:
        mask = _segments(net, x, layer, superpixels, cells)
    found = game(net, x, targets, layer, mask, baseline, max_bytes)
    key = random_key(key)
    table = _drawn(samples, found.players, key)
    data = table, jnp.asarray(width, float), jnp.asarray(penalty, float)
    options: dict[str, Any] = {"spread": rule == "spread", "complete": False, "max_bytes": max_bytes}
    return play("lime", found, samples, listed, _SOLVERS[distance, fit], *data, **options)


@partial(jax.jit, static_argnums=(0, 1))
def _drawn(samples: int, players: int, key: Key[Array, ""]) -> Bool[Array, "N segments"]:
    """Draw coalitions; the first is x itself."""
    return jax.random.bernoulli(key, 0.5, (samples, players)).at[0].set(True)


def _segments(net: Explainable, x: Any, layer: str | None, superpixels: Any, cells: int) -> Any:
    """Return squares or superpixels of images, (H, W) or (batch, H, W); None for what has no image's shape."""
    shape = np.shape(x) if layer is None else net.layers(x).get(layer, ())
    if superpixels is None:
        return squares((shape[1], shape[2]), cells) if len(shape) == 4 else None
    require(layer is None, "superpixels", superpixels, "none at a layer: give mask=")
    known = not isinstance(x, jax.core.Tracer)
    require(known and len(shape) == 4, "superpixels", "x that is " + ("no image" if known else "traced"),
            "known images (batch, height, width, channels); or give mask=")  # fmt: skip
    if not callable(superpixels):
        require_one_of("superpixels", superpixels, get_args(Superpixels))
        superpixels = algorithm("superpixels", superpixels, cells**2)
    return np.stack([np.asarray(superpixels(image)) for image in np.asarray(x)])


def _surrogate(
    distance: Distance,
    fit: Fit,
    values: Float[Array, "N batch t"],
    logits: Array,
    bias: Array,
    groups: Int[Array, "shared_or_batch *places"],
    table: Bool[Array, "N segments"],
    width: Float[Array, ""],
    penalty: Float[Array, ""],
) -> Float[Array, "batch t segments"]:
    """Fit the linear models of all targets; examples that have fewer segments leave the others at 0."""
    real = jnp.broadcast_to(sizes(groups, table.shape[1]) > 0, (values.shape[1], table.shape[1]))

    def one(real: Bool[Array, " segments"], values: Float[Array, "N t"]) -> Float[Array, "t segments"]:
        z = (table & real[None]).astype(values.dtype)
        present = z.sum(1) / real.sum().astype(z.dtype)
        far = 1 - jnp.sqrt(present) if distance == "cosine" else jnp.sqrt(1 - present)
        weights = jnp.exp(-jnp.square(far / width.astype(z.dtype)))
        total = weights.sum()
        z, y = (v - (weights @ v / total)[None] for v in (z, values))
        gram, moments = (z.T * weights[None]) @ z, (z.T * weights[None]) @ y
        alpha = penalty.astype(z.dtype)
        if fit == "lasso":
            return _lasso(gram / total, moments / total, alpha).T
        pole = jnp.where(real, alpha, 1)  # a segment that is not there has a zero coefficient, not any
        return jnp.linalg.solve(gram + jnp.diag(pole), moments).T

    return jax.vmap(one, in_axes=(0, 1))(real, values)


def _lasso(gram: Float[Array, "d d"], moments: Float[Array, "d t"], penalty: Array) -> Float[Array, "d t"]:
    """Minimize ½ βᵀ gram β − βᵀ moments + penalty ‖β‖₁ coordinate by coordinate."""
    diagonal = jnp.diag(gram)

    def step(i: Array, beta: Float[Array, "d t"]) -> Float[Array, "d t"]:
        j = i % len(gram)
        free = moments[j] - gram[j] @ beta + diagonal[j] * beta[j]
        shrunk = jnp.sign(free) * jnp.maximum(jnp.abs(free) - penalty, 0)
        return beta.at[j].set(jnp.where(diagonal[j] > 0, shrunk / diagonal[j], 0))

    return jax.lax.fori_loop(0, SWEEPS * len(gram), step, jnp.zeros_like(moments))


_SOLVERS = {(d, f): partial(_surrogate, d, f) for d in get_args(Distance) for f in get_args(Fit)}
"""One function for each choice, so that it is compiled once."""
