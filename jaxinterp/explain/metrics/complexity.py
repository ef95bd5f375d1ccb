"""Complexity: on how few entries a map rests. Maps are taken at their own resolution, of images summed over channels.

All three take |map|, as their definitions do: a share, a count and an entropy have no sign.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinterp.checks import require_at_least
from jaxinterp.explain.meshes import on_automatic_axes
from jaxinterp.explain.metrics.explained import Explained, Scores, judged, own_maps


@on_automatic_axes
def sparseness(net: Any, method: Explained, x: Any, labels: Any) -> Scores:
    """Measure the Gini index of |map|, entries a_1 ≤ … ≤ a_n.

        Σ_k (2k − n − 1) a_k / (n Σ_k a_k)

    Args:
        net: a network, see `explainable`; not read where `method` is an `Attribution`.
        method: (net, x, targets) ↦ `Attribution`, or an `Attribution` to the labels' logits.
        x: a batch, (batch, ...).
        labels: (batch,) integers.

    Returns:
        `Scores` in [0, 1 − 1/n]: 0 of equal entries, 1 − 1/n of one entry. A zero map is not eligible.

    Example:
        >>> from jaxinterp.explain.attribution import Attribution
        >>> parts = Attribution(jnp.array([[[0.0, 0.0, 0.0, 5.0]]]), jnp.zeros((1, 1)), jnp.array([[0]]))
        >>> sparseness(None, parts, jnp.ones((1, 4)), [0]).scores.tolist()
        [0.75]

    Source: Chalasani et al., arXiv 1810.06583, Sec. 4 (Gini index of attributions).
    """
    maps = own_maps(net, method, x, labels)
    return judged("sparseness", _gini(maps), zero_map=_zero(maps))


@on_automatic_axes
def complexity(net: Any, method: Explained, x: Any, labels: Any) -> Scores:
    """Measure the entropy of the shares of |map|, in nats: −Σ p ln p, p = |map| / Σ |map|.

    Arguments are those of `sparseness`.

    Returns:
        `Scores` in [0, ln n]: low is simple. A zero map is not eligible.

    Example:
        >>> from jaxinterp.explain.attribution import Attribution
        >>> parts = Attribution(jnp.array([[[1.0, -1.0, 0.0]]]), jnp.zeros((1, 1)), jnp.array([[0]]))
        >>> complexity(None, parts, jnp.ones((1, 3)), [0]).scores.round(4).tolist()
        [0.6930999755859375]

    Source: Bhatt, Weller, Moura, arXiv 2005.00631, Definition 4 (complexity).
    """
    maps = own_maps(net, method, x, labels)
    return judged("complexity", _entropy(maps), zero_map=_zero(maps))


@on_automatic_axes
def effective_complexity(
    net: Any, method: Explained, x: Any, labels: Any, *, epsilon: int | float = 1e-5, normalize: bool = True
) -> Scores:
    """Count the entries with |map| > ε.

    Args:
        net: see `sparseness`.
        method: see `sparseness`.
        x: see `sparseness`.
        labels: see `sparseness`.
        epsilon: ε, ≥ 0.
        normalize: whether ε is in the unit of the map's largest |entry| (Quantus' default); else in logits.

    Returns:
        `Scores`, whole numbers. A zero map is not eligible.

    Example:
        >>> from jaxinterp.explain.attribution import Attribution
        >>> parts = Attribution(jnp.array([[[4.0, -1.0, 0.1]]]), jnp.zeros((1, 1)), jnp.array([[0]]))
        >>> effective_complexity(None, parts, jnp.ones((1, 3)), [0], epsilon=0.2).scores.tolist()
        [2.0]

    Source: Nguyen, Martínez, arXiv 2007.07584, Sec. 3.2 (effective complexity; there the number of entries that hold
    the output to a tolerance, of which Quantus counts the entries above a threshold).
    """
    require_at_least("epsilon", epsilon, 0)
    maps = own_maps(net, method, x, labels)
    counts = _above(maps, jnp.asarray(epsilon, maps.dtype), jnp.asarray(normalize))
    return judged("effective_complexity", counts, zero_map=_zero(maps))


def _flat(maps: Array) -> Float[Array, "batch n"]:
    return jnp.abs(maps.reshape(len(maps), -1))


@jax.jit
def _zero(maps: Array) -> Array:
    return _flat(maps).max(1) == 0


@jax.jit
def _gini(maps: Array) -> Float[Array, " batch"]:
    a = jnp.sort(_flat(maps), axis=1)
    n = a.shape[1]
    weight = (2 * jnp.arange(1, n + 1) - n - 1).astype(a.dtype)[None]
    return (weight * a).sum(1) / (n * a.sum(1))


@jax.jit
def _entropy(maps: Array) -> Float[Array, " batch"]:
    a = _flat(maps)
    return jax.scipy.special.entr(a / a.sum(1, keepdims=True)).sum(1)


@jax.jit
def _above(maps: Array, epsilon: Array, normalize: Array) -> Float[Array, " batch"]:
    a = _flat(maps)
    unit = jnp.where(normalize, a.max(1, keepdims=True), 1)
    return (a > epsilon * unit).sum(1).astype(a.dtype)
