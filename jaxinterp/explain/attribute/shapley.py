"""Shapley values: what a group of entries adds to the logit, averaged over all orders in which groups can come in.

    φ_g = Σ_{S ∌ g} |S|! (d − |S| − 1)! / d! · (v(S ∪ g) − v(S))          Σ_g φ_g = v(all) − v(∅) = f(x) − f(x')

where v(S) is the logit with the groups of S present and the others at the baseline x'. With a mask, each entry has an
equal part of its group's value, so that contributions and bias sum to the logit.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key

from jaxinterp.checks import random_key, require, require_whole
from jaxinterp.explain.attribute.coalitions import Mask, game, listed, play, subsets
from jaxinterp.explain.attribution import Attribution
from jaxinterp.explain.batches import MAX_BYTES, Targets
from jaxinterp.explain.meshes import on_automatic_axes

MOST = 16
"""Groups of which all coalitions, 2^16, are looked at."""


@on_automatic_axes
def shapley_values(
    net: Any,
    x: Any,
    targets: Targets = None,
    *,
    layer: str | None = None,
    mask: Mask = None,
    baseline: ArrayLike = 0.0,
    max_bytes: int = MAX_BYTES,
) -> Attribution:
    """Compute exact Shapley values of at most 16 groups of entries, from the logits of all 2^d coalitions.

    Args:
        net: a network, see `explainable`.
        x: a batch, (batch, ...), floating.
        targets: None for all classes, an int, (batch,) or (batch, T) classes.
        layer: name of a layer, whose output takes the place of `x`.
        mask: integers, the group of each entry: (...) for all examples or (batch, ...), with the channels or without,
            such as (H, W); by default each entry is a group of its own.
        baseline: x', a number or an array that broadcasts to `x`, or to the layer's output.
        max_bytes: bytes that one pass may take by estimate; examples, then coalitions, run in parts.

    Returns:
        An `Attribution` on the shape of `x`, with one channel where the mask has none; bias f_k(x') and residual
        f_k(x) − f_k(x') − Σ contributions_k, rounding.

    Raises:
        ConfigError: there are more than 16 groups.

    Example:
        >>> both = lambda x: x.prod(1, keepdims=True) + x[:, :1]
        >>> shapley_values(both, jnp.array([[2.0, 3.0]])).contributions.tolist()
        [[[5.0, 3.0]]]

    Source: Shapley, A value for n-person games, 1953; Lundberg, Lee, arXiv 1705.07874, Eq. 4.
    """
    found = game(net, x, targets, layer, mask, baseline, max_bytes)
    d = found.players
    require(d <= MOST, "mask", f"{d} groups", f"at most {MOST}; else shapley_sampling or kernel_shap")
    weights = [math.factorial(s) * math.factorial(d - s - 1) / math.factorial(d) for s in range(d)]
    data = jnp.arange(d, dtype=jnp.int32), jnp.asarray(weights, float)
    return play("shapley_values", found, 2**d, subsets, _exact, *data, spread=True, complete=True, max_bytes=max_bytes)


def _exact(
    values: Float[Array, "N batch t"],
    logits: Array,
    bias: Array,
    groups: Array,
    players: Int[Array, " d"],
    weights: Float[Array, " d"],
) -> Float[Array, "batch t d"]:
    """Sum over coalitions: the weight of S without g where g is in S, less the weight of S where it is not."""
    present = subsets(jnp.arange(len(values), dtype=jnp.int32), players)
    members = present.sum(1, keepdims=True)
    weight = jnp.where(present, weights[members - 1], -weights[jnp.minimum(members, len(players) - 1)])
    return jnp.einsum("ng,nbt->btg", weight.astype(values.dtype), values)


@on_automatic_axes
def shapley_sampling(
    net: Any,
    x: Any,
    targets: Targets = None,
    *,
    layer: str | None = None,
    mask: Mask = None,
    samples: int = 25,
    baseline: ArrayLike = 0.0,
    key: Key[Array, ""] | None = None,
    max_bytes: int = MAX_BYTES,
) -> Attribution:
    """Estimate Shapley values from random orders, in which groups come in one after the other.

        φ_g = mean over orders of v(groups up to g) − v(groups before g)

    Unbiased, and complete with any number of orders.

    Args:
        net: a network, see `explainable`.
        x: a batch, (batch, ...), floating.
        targets: None for all classes, an int, (batch,) or (batch, T) classes.
        layer: name of a layer, whose output takes the place of `x`.
        mask: integers, the group of each entry, see `shapley_values`; of any number.
        samples: number of orders, ≥ 1, each of as many forward passes as there are groups.
        baseline: x', a number or an array that broadcasts to `x`, or to the layer's output.
        key: typed random key; `jax.random.key(0)` by default.
        max_bytes: bytes that one pass may take by estimate; examples, then coalitions, run in parts.

    Returns:
        An `Attribution` as of `shapley_values`.

    Example:
        >>> both = lambda x: x.prod(1, keepdims=True) + x[:, :1]
        >>> parts = shapley_sampling(both, jnp.array([[2.0, 3.0]]), samples=1)
        >>> parts.contributions.sum().item(), parts.residual.item()
        (8.0, 0.0)

    Source: Castro, Gómez, Tejada, Computers & Operations Research 36, 2009; Štrumbelj, Kononenko, JMLR 11, 2010.
    """
    require_whole("samples", samples, 1)
    found = game(net, x, targets, layer, mask, baseline, max_bytes)
    ranks = _orders(samples, found.players, random_key(key))
    options: dict[str, Any] = {"spread": True, "complete": True, "max_bytes": max_bytes}
    return play("shapley_sampling", found, samples * found.players, _first_groups, _mean_steps, ranks, **options)


@partial(jax.jit, static_argnums=(0, 1))
def _orders(samples: int, players: int, key: Key[Array, ""]) -> Int[Array, "samples d"]:
    """Draw orders, as the place of each group."""
    groups = jnp.arange(players, dtype=jnp.int32)
    return jax.vmap(lambda key: jax.random.permutation(key, groups))(jax.random.split(key, samples))


def _first_groups(indices: Int[Array, " n"], ranks: Int[Array, "samples d"]) -> Bool[Array, "n d"]:
    """Return the first 1, 2, ..., d groups of the first order, then of the next."""
    order, last = indices // ranks.shape[1], indices % ranks.shape[1]
    return ranks[order] <= last[:, None]


def _mean_steps(
    values: Float[Array, "N batch t"], logits: Array, bias: Array, groups: Array, ranks: Int[Array, "samples d"]
) -> Float[Array, "batch t d"]:
    paths = values.reshape(*ranks.shape, *logits.shape)
    starts = jnp.broadcast_to(bias[None, None], (len(ranks), 1, *bias.shape))
    steps = jnp.diff(jnp.concatenate([starts, paths], axis=1), axis=1)
    return jnp.moveaxis(jnp.take_along_axis(steps, ranks[:, :, None, None], axis=1).mean(0), 0, -1)


@on_automatic_axes
def kernel_shap(
    net: Any,
    x: Any,
    targets: Targets = None,
    *,
    layer: str | None = None,
    mask: Mask = None,
    samples: int | None = None,
    baseline: ArrayLike = 0.0,
    key: Key[Array, ""] | None = None,
    max_bytes: int = MAX_BYTES,
) -> Attribution:
    """Estimate Shapley values by a weighted linear regression on coalitions.

        φ = argmin Σ_S π(S) (v(S) − v(∅) − Σ_{g ∈ S} φ_g)²        subject to Σ_g φ_g = v(all) − v(∅)
        π(S) = (d − 1) / (C(d, |S|) |S| (d − |S|))

    Exact where all 2^d − 2 coalitions are within `samples`; else coalitions are drawn with chances π, each together
    with its complement.

    Args:
        net: a network, see `explainable`.
        x: a batch, (batch, ...), floating.
        targets: None for all classes, an int, (batch,) or (batch, T) classes.
        layer: name of a layer, whose output takes the place of `x`.
        mask: integers, the group of each entry, see `shapley_values`; two groups at least. The regression holds
            samples × groups and groups × groups numbers: large images want a mask.
        samples: number of coalitions, at least 2; 2·d + 2048 by default.
        baseline: x', a number or an array that broadcasts to `x`, or to the layer's output.
        key: typed random key; `jax.random.key(0)` by default.
        max_bytes: bytes that one pass may take by estimate; examples, then coalitions, run in parts.

    Returns:
        An `Attribution` as of `shapley_values`.

    Example:
        >>> both = lambda x: x.prod(1, keepdims=True) + x[:, :1]
        >>> kernel_shap(both, jnp.array([[2.0, 3.0]])).contributions.round(4).tolist()
        [[[5.0, 3.0]]]

    Source: Lundberg, Lee, arXiv 1705.07874, Theorem 2; in closed form: Covert, Lee, arXiv 2012.01536, Eq. 7.
    """
    if samples is not None:
        require_whole("samples", samples, 2)
    found = game(net, x, targets, layer, mask, baseline, max_bytes)
    d = found.players
    require(d > 1, "mask", "one group", "at least two")
    samples = 2 * d + 2048 if samples is None else samples
    if d < 64 and 2**d - 2 <= samples:
        everything = np.arange(1, 2**d - 1)[:, None] >> np.arange(d)[None] & 1 == 1
        size = everything.sum(1)
        weights = [(d - 1) / (math.comb(d, s) * s * (d - s)) for s in size.tolist()]
        table, weight = jnp.asarray(everything), jnp.asarray(weights, float)
    else:
        table, weight = _kernel(samples // 2, d, random_key(key))
    options: dict[str, Any] = {"spread": True, "complete": True, "max_bytes": max_bytes}
    return play("kernel_shap", found, len(table), listed, _regression, table, weight, **options)


@partial(jax.jit, static_argnums=(0, 1))
def _kernel(pairs: int, d: int, key: Key[Array, ""]) -> tuple[Bool[Array, "N d"], Float[Array, " N"]]:
    """Draw coalitions by π, the size first, and their complements; all have the same weight then."""
    of_size, of_group = jax.random.split(key)
    size = jnp.arange(1, d)
    chances = -jnp.log(size.astype(float)) - jnp.log((d - size).astype(float))
    sizes = 1 + jax.random.categorical(of_size, chances, shape=(pairs,))
    ranks = jax.vmap(lambda key: jax.random.permutation(key, d))(jax.random.split(of_group, pairs))
    table = ranks < sizes[:, None]
    return jnp.concatenate([table, ~table]), jnp.ones(2 * pairs)


def _regression(
    values: Float[Array, "N batch t"],
    logits: Array,
    bias: Array,
    groups: Array,
    table: Bool[Array, "N d"],
    weight: Float[Array, " N"],
) -> Float[Array, "batch t d"]:
    """Solve the regression, with a multiplier for the sum."""
    z, weight = table.astype(values.dtype), weight.astype(values.dtype)
    weighted = z.T * (weight / weight.sum())[None]
    inverse = jnp.linalg.pinv(weighted @ z, hermitian=True)  # few coalitions leave some directions open
    moments = jnp.einsum("gn,nbt->btg", weighted, values - bias[None])
    ones = inverse.sum(0)
    missed = (moments @ ones - (logits - bias)) / ones.sum()
    return moments @ inverse - missed[..., None] * ones[None, None]
