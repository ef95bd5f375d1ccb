"""Feature ablation and feature permutation: how far a logit drops when a group of entries is taken away."""

from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from jaxinterp.checks import random_key, require, require_one_of, require_whole
from jaxinterp.explain.attribute.backward import chosen
from jaxinterp.explain.attribute.coalitions import Mask, at_once, game, logits_of_versions, many_program, play, sizes
from jaxinterp.explain.attribution import Attribution
from jaxinterp.explain.batches import MAX_BYTES, Targets, in_batches
from jaxinterp.explain.meshes import on_automatic_axes
from jaxinterp.explain.program import INPUT, Model, called, value_of

Rule = Literal["mean", "spread"]
RULES = ("mean", "spread")


@on_automatic_axes
def feature_ablation(
    net: Any,
    x: Any,
    targets: Targets = None,
    *,
    layer: str | None = None,
    mask: Mask = None,
    baseline: ArrayLike = 0.0,
    rule: Rule = "mean",
    max_bytes: int = MAX_BYTES,
) -> Attribution:
    """Set each group of entries to the baseline in turn, and measure the drop of the logit.

        drop_k(g) = f_k(x) − f_k(x with group g at x')

    Args:
        net: a network, see `explainable`.
        x: a batch, (batch, ...), floating.
        targets: None for all classes, an int, (batch,) or (batch, T) classes.
        layer: name of a layer, whose output takes the place of `x`.
        mask: integers, the group of each entry: (...) for all examples or (batch, ...), with the channels or without,
            such as (H, W); by default each entry is a group of its own.
        baseline: x', a number or an array that broadcasts to `x`, or to the layer's output.
        rule: "mean", each entry has its group's drop; or "spread", the drop is divided among the group's entries.
        max_bytes: bytes that one pass may take by estimate; examples, then groups, run in parts.

    Returns:
        An `Attribution` on the shape of `x` or of the layer's output, with one channel where the mask has none;
        without a residual.

    Example:
        >>> both = lambda x: x.prod(1, keepdims=True)
        >>> feature_ablation(both, jnp.array([[2.0, 3.0]]), baseline=1.0).contributions.tolist()
        [[[3.0, 4.0]]]

    Source: Li, Monroe, Jurafsky, arXiv 1612.08220, Sec. 3 (there relative to the score).
    """
    require_one_of("rule", rule, RULES)
    found = game(net, x, targets, layer, mask, baseline, max_bytes)
    players = jnp.arange(found.players, dtype=jnp.int32)
    options: dict[str, Any] = {"spread": rule == "spread", "complete": False, "max_bytes": max_bytes}
    return play("feature_ablation", found, found.players, _all_but_one, _drops, players, **options)


def _all_but_one(indices: Int[Array, " n"], players: Int[Array, " groups"]) -> Bool[Array, "n groups"]:
    return indices[:, None] != players[None]


def _drops(values: Float[Array, "groups batch t"], logits: Array, *rest: Array) -> Float[Array, "batch t groups"]:
    return jnp.moveaxis(logits[None] - values, 0, -1)


@on_automatic_axes
def feature_permutation(
    net: Any,
    x: Any,
    targets: Targets = None,
    *,
    layer: str | None = None,
    mask: Mask = None,
    samples: int = 1,
    key: Array | None = None,
    rule: Rule = "mean",
    max_bytes: int = MAX_BYTES,
) -> Attribution:
    """Exchange each group of entries for another example's of the batch, and measure the drop of the logit.

        drop_k(g, x_b) = mean over random permutations π of f_k(x_b) − f_k(x_b with group g of x_π(b))

    The baseline is the batch itself, so a contribution depends on the other examples.

    Args:
        net: a network, see `explainable`.
        x: a batch of at least two examples, (batch, ...), floating.
        targets: None for all classes, an int, (batch,) or (batch, T) classes.
        layer: name of a layer, whose output takes the place of `x`.
        mask: integers, the group of each entry, see `feature_ablation`.
        samples: number of permutations for each group, ≥ 1.
        key: typed random key; `jax.random.key(0)` by default.
        rule: "mean" or "spread", see `feature_ablation`.
        max_bytes: bytes that one pass may take by estimate; examples, then groups, run in parts.

    Returns:
        An `Attribution` as of `feature_ablation`.

    Example:
        >>> x = jnp.array([[2.0, 5.0], [3.0, 5.0]])
        >>> parts = feature_permutation(lambda x: x.sum(1, keepdims=True), x, samples=100)
        >>> parts.contributions[:, 0, 1].tolist()  # equal in all examples
        [0.0, 0.0]

    Source: Fisher, Rudin, Dominici, arXiv 1801.01489, Sec. 3 (there of the loss).
    """
    require_one_of("rule", rule, RULES)
    require_whole("samples", samples, 1)
    found = game(net, x, targets, layer, mask, 0.0, max_bytes)
    call, groups, count = found.call, found.groups, found.players * samples
    require(call.batch > 1, "x", "one example", "at least two, to exchange their entries")
    part, each, max_bytes = at_once(call, layer, count, max_bytes)
    key = random_key(key)
    last = jnp.minimum(jnp.arange(len(call.x)), call.batch - 1)
    everything = value_of(call.net.program("logits", call.x), layer, call.x)

    def explain(x: Array, rows: Array, own: Array, places: Array) -> Attribution:
        model, many = call.net.program("logits", x), many_program(call, x, part)
        values = jnp.zeros((count, *rows.shape), model.program.output.dtype)
        for start in range(0, count, part):
            start = min(start, count - part)  # the last part reaches back
            given = (everything, call.batch, own, places, key, x, rows)
            values = _exchange(layer, part, found.players, values, start, many, *given)
        logits = chosen(called(model, x), rows)
        parts = _mean_drops(rule, found.players, values, logits, places)
        return Attribution(parts, logits, rows, method="feature_permutation", layer=layer or INPUT)

    whole = jnp.broadcast_to(groups, (len(call.x), *groups.shape[1:]))
    with jax.default_matmul_precision("highest"):
        return in_batches(explain, (call.x, call.rows, last, whole), call.batch, each * part * len(call.x), max_bytes)


@partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=3)
def _exchange(
    layer: str | None,
    part: int,
    players: int,
    values: Float[Array, "N batch t"],
    start: int | Array,
    model: Model,
    everything: Float[Array, "examples *shape"],
    examples: int | Array,
    own: Int[Array, " batch"],
    groups: Int[Array, "batch *places"],
    key: Array,
    x: Array,
    rows: Array,
) -> Float[Array, "N batch t"]:
    """Write the targets' logits with one group exchanged each into the whole; padding is exchanged for itself."""
    indices = start + jnp.arange(part, dtype=jnp.int32)

    def permutation(index: Array) -> Int[Array, " batch"]:
        drawn = jax.random.uniform(jax.random.fold_in(key, index), (len(everything),))
        return jnp.argsort(jnp.where(jnp.arange(len(everything)) < examples, drawn, 2.0))[own]

    others = everything[jax.vmap(permutation)(indices)]
    exchanged = groups[None] == (indices % players).reshape(-1, *(1,) * groups.ndim)
    versions = jnp.where(exchanged, others, everything[own][None])
    return jax.lax.dynamic_update_slice(values, logits_of_versions(model, layer, versions, x, rows), (start, 0, 0))


@partial(jax.jit, static_argnums=(0, 1))
def _mean_drops(
    rule: Rule, players: int, values: Array, logits: Array, groups: Int[Array, "batch *places"]
) -> Float[Array, "batch t *places"]:
    """Average the drops over the permutations, and give them to the groups' entries."""
    drops = (logits[None] - values).reshape(-1, players, *logits.shape).mean(0)
    if rule == "spread":
        drops = drops / jnp.maximum(sizes(groups, players), 1).T[..., None].astype(drops.dtype)
    parts = jax.vmap(lambda drop, group: drop[group], in_axes=(1, 0))(drops, groups)
    return jnp.moveaxis(parts, -1, 1)
