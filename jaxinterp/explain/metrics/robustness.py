"""Robustness: how far a map moves when the input moves a little.

A method is run anew on every perturbed batch, so a metric takes a method, not an `Attribution`. Maps are contributions
as they are, all channels, signed. All samples of a call are batches of one size, so that a method is compiled once.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from jaxinterp.checks import require, require_finite, require_labels, require_one_of
from jaxinterp.explain.attribution import Attribution
from jaxinterp.explain.explainable import Explainable, with_batch
from jaxinterp.explain.meshes import on_automatic_axes
from jaxinterp.explain.metrics.explained import Explained, Scores, judged, label_attribution
from jaxinterp.explain.metrics.perturbation import require_counts

TOGETHER = 64
"""Examples of a batch that a method is called on, by which samples are run together."""
Noise = Literal["uniform", "normal"]


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

    Returns:
        `Scores`, ≥ 0; low is stable. A zero map (or input) that is divided by is not eligible.

    Example:
        >>> from jaxinterp.explain.attribute import gradient
        >>> x = jnp.ones((1, 2))
        >>> max_sensitivity(lambda x: x @ jnp.ones((2, 2)), gradient, x, [0]).scores.tolist()
        [0.0]

    Source: Yeh, Hsieh, Suggala, Inouye, Ravikumar, arXiv 1901.09392, Definition 3.1, divided as in its Sec. 5.
    """
    return _sensitivity("max_sensitivity", net, method, x, labels, radius, samples, relative_to, key)


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
) -> Scores:
    """Measure the mean change of the map over random points of a cube around the input: see `max_sensitivity`.

    Source: Bhatt, Weller, Moura, arXiv 2005.00631, Definition 3 (average sensitivity).
    """
    return _sensitivity("average_sensitivity", net, method, x, labels, radius, samples, relative_to, key)


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
) -> Scores:
    """Estimate the local Lipschitz constant of the map, max ‖φ(x') − φ(x)‖₂ / ‖x' − x‖₂ over normal noise.

    Args:
        net: see `max_sensitivity`.
        method: see `max_sensitivity`.
        x: see `max_sensitivity`.
        labels: see `max_sensitivity`.
        samples: see `max_sensitivity`.
        key: see `max_sensitivity`.
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
    moved = _moved(net, method, x, labels, "normal", deviation, samples, key)
    return judged("local_lipschitz", _largest(_change(moved) / _norm(moved.steps)))


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
        radius: x' lies in a cube of this half side around x, drawn evenly.
        epsilon: ε.

    Returns:
        `Scores`, ≥ 0; low is stable. An example without a x' of the same prediction is not eligible.

    Source: Agarwal et al., arXiv 2203.06877, Eq. 2.
    """
    require(epsilon > 0, "epsilon", epsilon, "a positive number")
    moved = _moved(net, method, x, labels, "uniform", radius, samples, key)
    below = jnp.maximum(_norm(_relative(moved.steps, moved.x, epsilon)), epsilon)
    return _stability("relative_input_stability", moved, below, epsilon)


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
) -> Scores:
    """Measure the relative change of the map per change of the logits h (ROS): see `relative_input_stability`.

        max_{x'} ‖(φ(x) − φ(x')) / φ(x)‖₂ / max(‖h(x) − h(x')‖₂, ε)        over x' with the same prediction

    Source: Agarwal et al., arXiv 2203.06877, Eq. 5.
    """
    require(epsilon > 0, "epsilon", epsilon, "a positive number")
    moved = _moved(net, method, x, labels, "uniform", radius, samples, key)
    below = jnp.maximum(_norm(moved.moved - moved.logits[None]), epsilon)
    return _stability("relative_output_stability", moved, below, epsilon)


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
) -> Scores:
    require_one_of("relative_to", relative_to, ("map", "input", None))
    moved = _moved(net, method, x, labels, "uniform", radius, samples, key)
    change = _change(moved)
    found = np.asarray(_largest(change) if metric == "max_sensitivity" else change.mean(0))
    if relative_to is None:
        return judged(metric, found)
    size = np.asarray(_norm((moved.here if relative_to == "map" else moved.x)[None])[0])
    zero = size == 0
    return judged(metric, found / np.where(zero, 1, size), **{f"zero_{relative_to}": zero})


def _stability(metric: str, moved: Moved, below: Array, epsilon: float) -> Scores:
    above = _norm(_relative(moved.there - moved.here[None], moved.here, epsilon))
    same = moved.moved.argmax(-1) == moved.logits.argmax(-1)[None]
    found = _largest(jnp.where(same, above / below, -jnp.inf))
    return judged(metric, found, another_prediction_everywhere=~np.asarray(same.any(0)))


def _relative(change: Array, of: Array, epsilon: float) -> Array:
    return change / jnp.where(of == 0, jnp.asarray(epsilon, of.dtype), of)[None]


def _norm(values: Float[Array, "s batch *shape"]) -> Float[Array, "s batch"]:
    """Return the Euclidean norm of every sample and example."""
    return jnp.linalg.norm(values.reshape(*values.shape[:2], -1), axis=-1)


def _change(moved: Moved) -> Float[Array, "s batch"]:
    return _norm(moved.there - moved.here[None])


def _largest(values: Float[Array, "s batch"]) -> Float[Array, " batch"]:
    return values.max(0)


def _moved(
    net: Any, method: Explained, x: Any, labels: Any, noise: Noise, size: float, samples: int, key: PRNGKeyArray | None
) -> Moved:
    """Run a method on a batch and on perturbed copies of it."""
    net, x = with_batch(net, x)
    require(jnp.issubdtype(x.dtype, jnp.floating), "x", f"{x.dtype}{x.shape}", "a floating array")
    require_finite("x", x)
    require(not isinstance(method, Attribution), "method", "an Attribution", "(net, x, targets) ↦ Attribution")
    require(np.isfinite(size) and size > 0, "radius, deviation", size, "a positive number")
    require_counts(samples=samples)
    logits = net.logits(x)
    require_labels("labels", labels, len(x), logits.shape[1])
    labels = np.asarray(labels)
    here = label_attribution(net, method, x, labels).contributions[:, 0]
    steps = _steps(noise, samples, jax.random.key(0) if key is None else key, x, jnp.asarray(size, x.dtype))
    parts = list(_runs(net, method, x, labels, steps))
    there, moved = (jnp.concatenate(arrays)[:samples] for arrays in zip(*parts, strict=True))
    require_finite("maps", there)
    return Moved(x, steps, here, there, logits, moved)


def _runs(
    net: Explainable, method: Explained, x: Array, labels: np.ndarray, steps: Array
) -> Iterator[tuple[Array, Array]]:
    """Yield the maps and logits of a few samples at a time, in one batch that the last sample fills up."""
    batch, samples = len(x), len(steps)
    count = max(1, min(samples, TOGETHER // batch))
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
    noise: Noise, samples: int, key: PRNGKeyArray, x: Array, size: Array
) -> Float[Array, "samples batch *shape"]:
    shape = (samples, *x.shape)
    if noise == "normal":
        return size * jax.random.normal(key, shape, x.dtype)
    return size * jax.random.uniform(key, shape, x.dtype, -1, 1)
