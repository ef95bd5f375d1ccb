"""Axioms: what a map must not say. Completeness has a file of its own."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from jaxinterp.checks import require, require_at_least, require_labels, require_number, require_whole
from jaxinterp.explain.attribution import Attribution
from jaxinterp.explain.batches import MAX_BYTES
from jaxinterp.explain.explainable import with_batch
from jaxinterp.explain.meshes import on_automatic_axes
from jaxinterp.explain.metrics.explained import Explained, Scores, judged, label_attribution
from jaxinterp.explain.metrics.perturbation import (
    Baseline,
    Reading,
    Score,
    Space,
    examples,
    levels,
    look,
    points,
    removal_ranks,
)


@on_automatic_axes
def non_sensitivity(
    net: Any,
    method: Explained,
    x: Any,
    labels: Any,
    *,
    epsilon: int | float = 1e-5,
    steps: int | None = None,
    baseline: Baseline = "zero",
    space: Space = "image",
    score: Score = "probability",
    key: PRNGKeyArray | None = None,
    max_bytes: int = MAX_BYTES,
) -> Scores:
    """Count the pixels of which map and network disagree whether they matter at all; 0 is best.

        |{i : |map_i| ≤ ε}  △  {i : |f(x) − f(x with i at the baseline)| ≤ ε}|

    Args:
        net: a network, see `explainable`.
        method: (net, x, targets) ↦ `Attribution`, or an `Attribution` to the labels' logits.
        x: images, (batch, H, W, C).
        labels: (batch,) integers.
        epsilon: ε, ≥ 0, in logits for the map and in the unit of `score` for the network.
        steps: number of groups of pixels, next to each other in the map's order, that are perturbed together; None for
            single pixels. Of a group the sum of |map| counts, and a disagreement counts once for each of its pixels.
        baseline: see `faithfulness`.
        space: see `faithfulness`.
        score: see `faithfulness`.
        key: see `faithfulness`.
        max_bytes: see `faithfulness`.

    Returns:
        `Scores`, whole numbers of pixels. Every map can be scored.

    Example:
        >>> from jaxinterp.explain.attribute import gradient
        >>> x = jnp.array([[[[2.0], [1.0], [0.0]]]])
        >>> non_sensitivity(lambda x: x[:, :, :2].sum((1, 2)), gradient, x, [0], score="logit").scores.tolist()
        [0.0]

    Source: Nguyen, Martínez, arXiv 2007.07584, Sec. 3.2 (non-sensitivity), after Ancona et al., arXiv 1711.06104.
    """
    require_at_least("epsilon", epsilon, 0)
    given = examples(net, method, x, labels, reading=Reading(space, score), absolute=True, max_bytes=max_bytes)
    steps = given.pixels if steps is None else steps
    require_whole("steps", steps, 1)
    edges = levels(given.pixels, steps)
    at = points(np.r_[0, edges[:-1]], np.r_[0, edges[1:]])
    read, sums = look(given, removal_ranks(given.maps, "least"), at, baseline=baseline, key=key)
    apart = (sums[:, 1:] <= epsilon) != (np.abs(read[:, 1:] - read[:, :1]) <= epsilon)
    return judged("non_sensitivity", (apart * np.diff(edges)).sum(1).astype(float))


class Invariance(NamedTuple):
    """Result of `input_invariance`.

    Attributes:
        scores: ‖φ' − φ‖₂ / ‖φ‖₂, (batch,); NaN of those that are not eligible.
        eligible: whether an example could be scored, (batch,).
        holds: whether the maps are the same but for rounding, (batch,).
    """

    scores: Float[np.ndarray, " batch"]
    eligible: Bool[np.ndarray, " batch"]
    holds: Bool[np.ndarray, " batch"]


@dataclass(frozen=True)
class Shifted:
    """A function of (variables, x, ...) that takes the shift off x first, as its first bias could."""

    function: Callable[..., Any]
    shift: int | float

    def __call__(self, variables: Any, x: Array, *given: Array) -> Any:
        """Call the function."""
        return self.function(variables, x - jnp.asarray(self.shift, x.dtype), *given)


@on_automatic_axes
def input_invariance(
    net: Any, method: Explained, x: Any, labels: Any, *, shift: int | float = 1.0, tolerance: int | float = 1e-3
) -> Invariance:
    """Shift all inputs by a constant that the network takes off again, and measure how far the map moves.

        f'(x) = f(x − c)        φ' = map of f' at x + c, φ = map of f at x        f'(x + c) = f(x)

    The constant is taken off before the first operation, which is the same function as a first layer with another bias.
    Slopes stay as they are; contributions x ⊙ W move, as an input is their reference.

    Args:
        net: a network, see `explainable`.
        method: (net, x, targets) ↦ `Attribution`.
        x: (batch, ...), floating.
        labels: (batch,) integers.
        shift: c, in the unit of `x`; taken off before any encoding.
        tolerance: largest score at which the axiom is said to hold, for rounding.

    Returns:
        `Invariance`; 0 is invariant. A zero map is not eligible.

    Example:
        >>> from jaxinterp.explain.attribute import gradient, input_x_gradient
        >>> x, net = jnp.ones((1, 2)), lambda x: 3 * x
        >>> [input_invariance(net, method, x, [0]).scores.tolist() for method in (gradient, input_x_gradient)]
        [[0.0], [1.0]]

    Source: Kindermans et al., arXiv 1711.00867, Sec. 2.
    """
    net, x = with_batch(net, x)
    require(jnp.issubdtype(x.dtype, jnp.floating), "x", f"{x.dtype}{x.shape}", "a floating array")
    require(not isinstance(method, Attribution), "method", "an Attribution", "(net, x, targets) ↦ Attribution")
    require_at_least("tolerance", tolerance, 0)
    require_number("shift", shift, "a finite number, not 0", lambda v: v != 0)
    require_labels("labels", labels, len(x))
    labels = np.asarray(labels)
    if net.encoding is None:
        moved = replace(net, network=Shifted(net.network, shift), held=Shifted(net.held, shift), bias=None)
    else:
        moved = replace(net, encoding=Shifted(net.encoding, shift))
    here = label_attribution(net, method, x, labels).contributions
    there = label_attribution(moved, method, x + jnp.asarray(shift, x.dtype), labels).contributions
    apart, size = _apart(here, there)
    found = judged("input_invariance", apart / jnp.where(size == 0, 1, size), zero_map=size == 0)
    return Invariance(found.scores, found.eligible, found.eligible & (found.scores <= tolerance))


@jax.jit
def _apart(here: Array, there: Array) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
    """Return the norms of the difference and of the first."""
    flat = [a.reshape(len(a), -1) for a in (here, there)]
    return jnp.linalg.norm(flat[1] - flat[0], axis=1), jnp.linalg.norm(flat[0], axis=1)
