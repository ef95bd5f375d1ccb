"""Randomization: a map must change when what the network learned is destroyed, or when another class is asked for."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from jaxinterp.checks import (
    random_key,
    require,
    require_finite,
    require_labels,
    require_number,
    require_one_of,
    require_whole,
    warn,
)
from jaxinterp.explain.attribution import Attribution
from jaxinterp.explain.batches import MAX_BYTES
from jaxinterp.explain.explainable import Explainable, with_batch
from jaxinterp.explain.meshes import on_automatic_axes
from jaxinterp.explain.metrics.explained import (
    Explained,
    Scores,
    is_constant,
    judged,
    maps_in_parts,
)
from jaxinterp.explain.metrics.similarity import Similarity, require_similarity, similar
from jaxinterp.explain.program import first_reads

Layers = Literal["top_down", "bottom_up"]
BINS = 100
"""Bins of the histogram of a map, in `efficient_randomization`."""


class Randomization(NamedTuple):
    """Result of `parameter_randomization`.

    Attributes:
        scores: mean similarity over the layers, (batch,); NaN of those that are not eligible.
        eligible: whether an example could be scored, (batch,).
        layers: names of the groups of parameters, in the order in which they were randomized.
        similarities: of the map with the original one after each, (batch, layers).
    """

    scores: Float[np.ndarray, " batch"]
    eligible: Bool[np.ndarray, " batch"]
    layers: tuple[str, ...]
    similarities: Float[np.ndarray, "batch layers"]


@on_automatic_axes
def parameter_randomization(
    net: Any,
    method: Explained,
    x: Any,
    labels: Any,
    *,
    order: Layers = "top_down",
    cascading: bool = True,
    similarity: Similarity = "spearman",
    absolute: bool = False,
    smooth: int = 0,
    deviation: int | float = 0.1,
    key: PRNGKeyArray | None = None,
    max_bytes: int = MAX_BYTES,
) -> Randomization:
    """Randomize the parameters layer by layer, and measure how like the original the map remains; low is good.

    A layer's arrays are permuted, entry by entry, so that their values stay as they are spread. Layers are the
    submodules at the first level of the variables, in the order in which the network reads them; statistics are left as
    they are.

    Args:
        net: a network with variables, see `explainable`.
        method: (net, x, targets) ↦ `Attribution`.
        x: (batch, ...).
        labels: (batch,) integers.
        order: "top_down" from the logits, or "bottom_up" from the input.
        cascading: whether layers stay random as the next are randomized, or each is alone.
        similarity: "spearman", "pearson", "cosine", or "ssim" (of images).
        absolute: whether |map| is compared; maps of images are summed over channels.
        smooth: maps are means over this many noisy copies of the input (smooth MPRT); 0 for none.
        deviation: of that noise, as a part of the range of `x`.
        key: default `jax.random.key(0)`.
        max_bytes: bytes that one pass may take by estimate; examples run in parts.

    Returns:
        `Randomization`. An example with a constant map, original or after a layer, is not eligible. Layers whose order
        is not known, as the network reads them all at once, come in that of their names, and a warning says so.

    Source: Adebayo et al., arXiv 1810.03292, Sec. 3; smooth: Hedström et al., arXiv 2401.06465, Sec. 4.1.
    """
    require_one_of("order", order, get_args(Layers))
    require_whole("smooth", smooth, 0)
    require_number("deviation", deviation, "a number, at least 0", lambda v: v >= 0)
    net, x, labels = _checked(net, method, x, labels)
    key = random_key(key)
    copies = Copies(smooth, jnp.asarray(deviation, x.dtype), key)
    original = _map(net, method, x, labels, absolute, max_bytes, copies)
    require_similarity(similarity, original.shape)
    names, found, constant = [], [], is_constant(original)
    for name, variables in _randomized(net, x, order, cascading, key):
        there = _map(replace(net, variables=variables), method, x, labels, absolute, max_bytes, copies)
        constant |= is_constant(there)
        names.append(name)
        found.append(np.asarray(similar(similarity, original, there)))
    table = np.stack(found, axis=1)
    scores = judged("parameter_randomization", table.mean(1), constant_map=constant)
    return Randomization(scores.scores, scores.eligible, tuple(names), table)


@on_automatic_axes
def efficient_randomization(
    net: Any,
    method: Explained,
    x: Any,
    labels: Any,
    *,
    key: PRNGKeyArray | None = None,
    max_bytes: int = MAX_BYTES,
) -> Scores:
    """Measure how far a map's complexity rises when all parameters are randomized (efficient MPRT); high is good.

        (ξ(ê) − ξ(e)) / ξ(e)        ξ: entropy of the histogram of a map, e with the network as it is, ê fully random

    Args:
        net: see `parameter_randomization`.
        method: see `parameter_randomization`.
        x: see `parameter_randomization`.
        labels: see `parameter_randomization`.
        key: see `parameter_randomization`.
        max_bytes: see `parameter_randomization`.

    Returns:
        `Scores`. An example whose original map is constant is not eligible.

    Source: Hedström, Weber, Lapuschkin, Höhne, arXiv 2401.06465, Sec. 4.2, Eq. 6, with 100 bins.
    """
    net, x, labels = _checked(net, method, x, labels)
    before = _map(net, method, x, labels, False, max_bytes)
    *_, (_, variables) = _randomized(net, x, "top_down", True, random_key(key))
    after = _map(replace(net, variables=variables), method, x, labels, False, max_bytes)
    own, random = (np.asarray(_histogram_entropy(maps)) for maps in (before, after))
    constant = is_constant(before)
    return judged("efficient_randomization", (random - own) / np.where(constant, 1, own), constant_map=constant)


@on_automatic_axes
def random_logit(
    net: Any,
    method: Explained,
    x: Any,
    labels: Any,
    *,
    similarity: Similarity = "spearman",
    absolute: bool = False,
    key: PRNGKeyArray | None = None,
    max_bytes: int = MAX_BYTES,
) -> Scores:
    """Measure how like the label's map that of another class is, drawn at random; low is good.

    Args:
        net: see `parameter_randomization`.
        method: see `parameter_randomization`.
        x: see `parameter_randomization`.
        labels: see `parameter_randomization`.
        similarity: see `parameter_randomization`; Quantus' default is "ssim".
        absolute: see `parameter_randomization`.
        key: of the classes; default `jax.random.key(0)`.
        max_bytes: see `parameter_randomization`.

    Returns:
        `Scores` in [−1, 1].

    Source: Sixt, Granz, Landgraf, arXiv 1912.09818, Sec. 4 (random logit).
    """
    net, x, labels = _checked(net, method, x, labels)
    (whole,) = net.fitted("logits", x)
    classes = net.program("logits", whole).program.output.shape[1]
    require(classes > 1, "net", "one class", "at least two")
    step = jax.random.randint(random_key(key), (len(x),), 1, classes)
    others = (labels + np.asarray(step)) % classes
    own, other = (_map(net, method, x, targets, absolute, max_bytes) for targets in (labels, others))
    require_similarity(similarity, own.shape)
    constant = is_constant(own) | is_constant(other)
    return judged("random_logit", similar(similarity, own, other), constant_map=constant)


def groups(variables: Any, reads: Sequence[int | None]) -> dict[str, list[int]]:
    """Return the submodules at the first level of the variables, and which floating leaves are theirs.

    Args:
        variables: a pytree; of Flax' collections, "params" alone is looked into.
        reads: when each leaf is first read, see `first_reads`, for the order of the groups; those that are not known to
            be read come first.

    Example:
        >>> groups({"params": {"b": {"w": jnp.ones(2)}, "a": jnp.ones(1)}, "batch_stats": {}}, [5, 2])
        {'b': [1], 'a': [0]}
    """
    flat = jax.tree_util.tree_flatten_with_path(variables)[0]
    inner = isinstance(variables, Mapping) and "params" in variables
    found: dict[str, list[int]] = {}
    for i, (path, leaf) in enumerate(flat):
        names = [jax.tree_util.keystr((part,), simple=True) for part in path]
        if inner and names[0] != "params":
            continue
        if jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            found.setdefault(next(iter(names[inner:]), "variables"), []).append(i)
    first = {
        name: min((read for i in places if (read := reads[i]) is not None), default=-1)
        for name, places in found.items()
    }
    at = Counter(first.values())
    if unknown := [name for name in found if at[first[name]] > 1]:
        warn(f"net: the order in which it reads {', '.join(unknown)} is not known; they come in that of their names")
    return dict(sorted(found.items(), key=lambda item: first[item[0]]))


def _randomized(
    net: Explainable, x: Array, order: Layers, cascading: bool, key: PRNGKeyArray
) -> Iterator[tuple[str, Any]]:
    """Yield the name of each layer, and the variables once it is randomized."""
    leaves, structure = jax.tree.flatten(net.variables)
    (whole,) = net.fitted("logits", x)
    parts = list(groups(net.variables, first_reads(net.program("logits", whole))).items())
    require(parts, "net", "no floating variables", "a network with its variables: explainable(network, variables)")
    now = list(leaves)
    for name, places in reversed(parts) if order == "top_down" else parts:
        now = now if cascading else list(leaves)
        for i in places:
            now[i] = _permuted(jax.random.fold_in(key, i), jnp.asarray(leaves[i]))
        yield name, jax.tree.unflatten(structure, now)


@jax.jit
def _permuted(key: PRNGKeyArray, leaf: Array) -> Array:
    return jax.random.permutation(key, leaf.ravel()).reshape(leaf.shape)


def _checked(net: Any, method: Explained, x: Any, labels: Any) -> tuple[Explainable, Array, np.ndarray]:
    net, x = with_batch(net, x)
    require(jnp.issubdtype(x.dtype, jnp.floating), "x", f"{x.dtype}{x.shape}", "a floating array")
    require(not isinstance(method, Attribution), "method", "an Attribution", "(net, x, targets) ↦ Attribution")
    require_labels("labels", labels, len(x))
    return net, x, np.asarray(labels)


class Copies(NamedTuple):
    """Noisy copies of the input: how many, 0 for the input itself, and the noise as a part of the input's range."""

    number: int
    deviation: Array
    key: PRNGKeyArray


def _map(
    net: Explainable,
    method: Explained,
    x: Array,
    labels: np.ndarray,
    absolute: bool,
    max_bytes: int,
    copies: Copies | None = None,
) -> Array:
    """Return the labels' maps, averaged over copies of the input with noise."""
    if copies is None or not copies.number:
        mean = maps_in_parts(net, method, x, labels, max_bytes)
    else:
        noisy = (_noisy(x, copies, jnp.asarray(i)) for i in range(copies.number))
        maps = (maps_in_parts(net, method, one, labels, max_bytes) for one in noisy)
        mean = reduce(jnp.add, maps) / copies.number
    require_finite("maps", mean)
    return jnp.abs(mean) if absolute else mean


@jax.jit
def _noisy(x: Array, copies: Copies, number: Array) -> Float[Array, "batch *shape"]:
    noise = jax.random.normal(jax.random.fold_in(copies.key, number), x.shape, x.dtype)
    return x + copies.deviation * (x.max() - x.min()) * noise


@jax.jit
def _histogram_entropy(maps: Float[Array, "batch *shape"]) -> Float[Array, " batch"]:
    """Return the entropy, in nats, of each map's histogram between its least and its largest entry."""

    def one(values: Array) -> Array:
        counts = jnp.histogram(values, BINS)[0].astype(values.dtype)
        return jax.scipy.special.entr(counts / values.size).sum()

    return jax.vmap(one)(maps.reshape(len(maps), -1))
