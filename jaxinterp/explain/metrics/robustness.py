"""Robustness: how far a map moves when the input moves a little.

A method is run anew on every perturbed batch, so a metric takes a method, not an `Attribution`. Maps are contributions
as they are, all channels, signed. All samples of a call are batches of one size, so that a method is compiled once.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from jaxinterp.checks import (
    random_key,
    require,
    require_finite,
    require_labels,
    require_number,
    require_one_of,
    require_whole,
)
from jaxinterp.explain.attribution import Attribution
from jaxinterp.explain.batches import MAX_BYTES
from jaxinterp.explain.explainable import Explainable, with_batch
from jaxinterp.explain.meshes import on_automatic_axes
from jaxinterp.explain.metrics.explained import (
    Explained,
    Scores,
    bytes_of_a_pass,
    example_parts,
    joined_parts,
    judged,
    label_attribution,
    part_of,
)

TOGETHER = 64
"""Examples of a batch that a method is called on, by which samples are run together."""
Noise = Literal["uniform", "normal"]


class Draw(NamedTuple):
    """How examples are perturbed: by noise of a size, how often, within a budget."""

    noise: Noise
    size: int | float
    samples: int
    key: PRNGKeyArray | None
    max_bytes: int


class Moved(NamedTuple):
    """An example and its perturbed copies; S is the number of samples.

    Attributes:
        steps: x' − x, (S, batch, ...).
        here: the maps, (batch, ...).
        there: the maps at x', (S, batch, ...).
        logits: (batch, classes).
        moved: at x', (S, batch, classes).
    """

    x: Array
    steps: Array
    here: Array
    there: Array
    logits: Array
    moved: Array


@on_automatic_axes
def max_sensitivity(
    net: Any,
    method: Explained,
    x: Any,
    labels: Any,
    *,
    radius: int | float = 0.02,
    samples: int = 10,
    relative_to: Literal["map", "input"] | None = "map",
    key: PRNGKeyArray | None = None,
    max_bytes: int = MAX_BYTES,
) -> Scores:
    """Measure the largest change of the map over random points of a cube around the input.

        max_{‖x' − x‖∞ ≤ r} ‖φ(x') − φ(x)‖₂ / ‖φ(x)‖₂

    Args:
        net: a network, see `explainable`.
        method: (net, x, targets) ↦ `Attribution`.
        x: (batch, ...), floating.
        labels: (batch,) integers.
        radius: r, half of the cube's side, in the unit of `x`.
        samples: points of the cube.
        relative_to: what the change is divided by: the norm of the "map", of the "input" (as Quantus does), or nothing.
        key: default `jax.random.key(0)`.
        max_bytes: bytes that one pass may take by estimate; examples, then samples, run in parts.

    Returns:
        `Scores`, ≥ 0; low is stable. A zero map (or input) that is divided by is not eligible.

    Example:
        >>> from jaxinterp.explain.attribute import gradient
        >>> x = jnp.ones((1, 2))
        >>> max_sensitivity(lambda x: x @ jnp.ones((2, 2)), gradient, x, [0]).scores.tolist()
        [0.0]

    Source: Yeh, Hsieh, Suggala, Inouye, Ravikumar, arXiv 1901.09392, Definition 3.1, divided as in its Sec. 5.
    """
    return _sensitivity("max_sensitivity", net, method, x, labels, radius, samples, relative_to, key, max_bytes)


@on_automatic_axes
def average_sensitivity(
    net: Any,
    method: Explained,
    x: Any,
    labels: Any,
    *,
    radius: int | float = 0.02,
    samples: int = 10,
    relative_to: Literal["map", "input"] | None = "map",
    key: PRNGKeyArray | None = None,
    max_bytes: int = MAX_BYTES,
) -> Scores:
    """Measure the mean change of the map over random points of a cube around the input: see `max_sensitivity`.

    Source: Bhatt, Weller, Moura, arXiv 2005.00631, Definition 2 (average sensitivity).
    """
    return _sensitivity("average_sensitivity", net, method, x, labels, radius, samples, relative_to, key, max_bytes)


@on_automatic_axes
def local_lipschitz(
    net: Any,
    method: Explained,
    x: Any,
    labels: Any,
    *,
    deviation: int | float = 0.1,
    samples: int = 10,
    key: PRNGKeyArray | None = None,
    max_bytes: int = MAX_BYTES,
) -> Scores:
    """Estimate the local Lipschitz constant of the map, max ‖φ(x') − φ(x)‖₂ / ‖x' − x‖₂ over normal noise.

    Args:
        net: see `max_sensitivity`.
        method: see `max_sensitivity`.
        x: see `max_sensitivity`.
        labels: see `max_sensitivity`.
        samples: see `max_sensitivity`.
        key: see `max_sensitivity`.
        max_bytes: see `max_sensitivity`.
        deviation: standard deviation of x' − x, in the unit of `x`.

    Returns:
        `Scores`, ≥ 0; low is stable.

    Example:
        >>> from jaxinterp.explain.attribute import input_x_gradient
        >>> found = local_lipschitz(lambda x: 3 * x, input_x_gradient, jnp.ones((1, 1)), [0])
        >>> found.scores.round(3).tolist()
        [3.0]

    Source: Alvarez-Melis, Jaakkola, arXiv 1806.08049, Eq. 2.
    """
    draw = Draw("normal", deviation, samples, key, max_bytes)
    (found,) = _read(net, method, x, labels, draw, lambda moved: (_largest(_change(moved) / _norm(moved.steps)),))
    return judged("local_lipschitz", found)


@on_automatic_axes
def relative_input_stability(
    net: Any,
    method: Explained,
    x: Any,
    labels: Any,
    *,
    radius: int | float = 0.05,
    samples: int = 10,
    epsilon: int | float = 1e-6,
    key: PRNGKeyArray | None = None,
    max_bytes: int = MAX_BYTES,
) -> Scores:
    """Measure the relative change of the map per relative change of the input (RIS).

        max_{x'} ‖(φ(x) − φ(x')) / φ(x)‖₂ / max(‖(x − x') / x‖₂, ε)        over x' with the same prediction

    Divided entry by entry; where an entry is 0, by ε.

    Args:
        net: see `max_sensitivity`.
        method: see `max_sensitivity`.
        x: see `max_sensitivity`.
        labels: see `max_sensitivity`.
        samples: see `max_sensitivity`.
        key: see `max_sensitivity`.
        max_bytes: see `max_sensitivity`.
        radius: x' lies in a cube of this half side around x, drawn evenly.
        epsilon: ε.

    Returns:
        `Scores`, ≥ 0; low is stable. An example without a x' of the same prediction is not eligible.

    Source: Agarwal et al., arXiv 2203.06877, Eq. 2.
    """
    require_number("epsilon", epsilon, "a positive number", lambda v: v > 0)
    draw = Draw("uniform", radius, samples, key, max_bytes)

    def below(moved: Moved) -> Array:
        return _norm(_relative(moved.steps, moved.x, epsilon))

    return _stability("relative_input_stability", net, method, x, labels, draw, below, epsilon)


@on_automatic_axes
def relative_output_stability(
    net: Any,
    method: Explained,
    x: Any,
    labels: Any,
    *,
    radius: int | float = 0.05,
    samples: int = 10,
    epsilon: int | float = 1e-6,
    key: PRNGKeyArray | None = None,
    max_bytes: int = MAX_BYTES,
) -> Scores:
    """Measure the relative change of the map per change of the logits h (ROS): see `relative_input_stability`.

        max_{x'} ‖(φ(x) − φ(x')) / φ(x)‖₂ / max(‖h(x) − h(x')‖₂, ε)        over x' with the same prediction

    Source: Agarwal et al., arXiv 2203.06877, Eq. 5.
    """
    require_number("epsilon", epsilon, "a positive number", lambda v: v > 0)
    draw = Draw("uniform", radius, samples, key, max_bytes)

    def below(moved: Moved) -> Array:
        return _norm(moved.moved - moved.logits[None])

    return _stability("relative_output_stability", net, method, x, labels, draw, below, epsilon)


def _sensitivity(
    metric: str,
    net: Any,
    method: Explained,
    x: Any,
    labels: Any,
    radius: float,
    samples: int,
    relative_to: Literal["map", "input"] | None,
    key: PRNGKeyArray | None,
    max_bytes: int,
) -> Scores:
    require_one_of("relative_to", relative_to, ("map", "input", None))

    def read(moved: Moved) -> tuple[Array, Array]:
        change, size = _change(moved), moved.x if relative_to == "input" else moved.here
        return _largest(change) if metric == "max_sensitivity" else change.mean(0), _norm(size[None])[0]

    found, size = _read(net, method, x, labels, Draw("uniform", radius, samples, key, max_bytes), read)
    if relative_to is None:
        return judged(metric, found)
    zero = size == 0
    return judged(metric, found / np.where(zero, 1, size), **{f"zero_{relative_to}": zero})


def _stability(
    metric: str,
    net: Any,
    method: Explained,
    x: Any,
    labels: Any,
    draw: Draw,
    below: Callable[[Moved], Array],
    epsilon: float,
) -> Scores:
    """Return the largest quotient of the maps' relative change by that `below`, over points of the same prediction."""

    def read(moved: Moved) -> tuple[Array, Array]:
        above = _norm(_relative(moved.there - moved.here[None], moved.here, epsilon))
        same = moved.moved.argmax(-1) == moved.logits.argmax(-1)[None]
        return _largest(jnp.where(same, above / jnp.maximum(below(moved), epsilon), -jnp.inf)), same.any(0)

    found, same = _read(net, method, x, labels, draw, read)
    return judged(metric, found, another_prediction_everywhere=~same)


def _relative(change: Array, of: Array, epsilon: float) -> Array:
    return change / jnp.where(of == 0, jnp.asarray(epsilon, of.dtype), of)[None]


def _norm(values: Float[Array, "s batch *shape"]) -> Float[Array, "s batch"]:
    """Return the Euclidean norm of every sample and example."""
    return jnp.linalg.norm(values.reshape(*values.shape[:2], -1), axis=-1)


def _change(moved: Moved) -> Float[Array, "s batch"]:
    return _norm(moved.there - moved.here[None])


def _largest(values: Float[Array, "s batch"]) -> Float[Array, " batch"]:
    return values.max(0)


def _read(
    net: Any, method: Explained, x: Any, labels: Any, draw: Draw, read: Callable[[Moved], tuple[Array, ...]]
) -> list[np.ndarray]:
    """Run a method on a batch and on perturbed copies of it, part by part; return what is read of each example."""
    net, x = with_batch(net, x)
    require(jnp.issubdtype(x.dtype, jnp.floating), "x", f"{x.dtype}{x.shape}", "a floating array")
    require_finite("x", x)
    require(not isinstance(method, Attribution), "method", "an Attribution", "(net, x, targets) ↦ Attribution")
    require_number("radius, deviation", draw.size, "a positive number", lambda v: v > 0)
    require_whole("samples", draw.samples, 1)
    (whole,) = net.fitted("logits", x)
    require_labels("labels", labels, len(x), net.program("logits", whole).program.output.shape[1])
    labels = np.asarray(labels)
    kept, each = 4 * draw.samples * x.nbytes / len(x), bytes_of_a_pass(net, x)  # kept: steps, copies, maps, changes
    parts = example_parts(len(x), kept + each, draw.max_bytes)
    count = int((draw.max_bytes / (parts[0].stop - parts[0].start) - kept) // each)  # samples of a pass
    found = [read(_moved(net, method, part_of(x, part), labels[part], draw, part.start, count)) for part in parts]
    return [joined_parts(arrays, len(x)) for arrays in zip(*found, strict=True)]


def _moved(
    net: Explainable, method: Explained, x: Array, labels: np.ndarray, draw: Draw, first: int, count: int
) -> Moved:
    here = label_attribution(net, method, x, labels).contributions[:, 0]
    key = random_key(draw.key)
    steps = _steps(draw.noise, draw.samples, key, x, jnp.asarray(draw.size, x.dtype), jnp.asarray(first))
    runs = list(_runs(net, method, x, labels, steps, count))
    there, moved = (jnp.concatenate(arrays)[: draw.samples] for arrays in zip(*runs, strict=True))
    require_finite("maps", there)
    return Moved(x, steps, here, there, net.logits(x), moved)


def _runs(
    net: Explainable, method: Explained, x: Array, labels: np.ndarray, steps: Array, most: int
) -> Iterator[tuple[Array, Array]]:
    """Yield the maps and logits of a few samples at a time, in one batch that the last sample fills up."""
    batch, samples = len(x), len(steps)
    count = max(1, min(samples, TOGETHER // batch, most))
    targets = np.tile(labels, count)
    for start in range(0, samples, count):
        chosen = np.minimum(np.arange(start, start + count), samples - 1)
        many = _added(x, steps, jnp.asarray(chosen))
        maps = label_attribution(net, method, many, targets).contributions[:, 0]
        logits = net.logits(many)
        yield maps.reshape(count, batch, *maps.shape[1:]), logits.reshape(count, batch, -1)


@jax.jit
def _added(x: Array, steps: Array, chosen: Array) -> Float[Array, "many *shape"]:
    return (x[None] + steps[chosen]).reshape(-1, *x.shape[1:])


@partial(jax.jit, static_argnums=(0, 1))
def _steps(
    noise: Noise, samples: int, key: PRNGKeyArray, x: Array, size: Array, first: Array
) -> Float[Array, "samples batch *shape"]:
    """Draw the steps of each example by its number, the same however examples are cut into parts."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, first + jnp.arange(len(x)))
    shape = (samples, *x.shape[1:])

    def one(key: PRNGKeyArray) -> Array:
        if noise == "normal":
            return size * jax.random.normal(key, shape, x.dtype)
        return size * jax.random.uniform(key, shape, x.dtype, -1, 1)

    return jax.vmap(one, out_axes=1)(keys)
