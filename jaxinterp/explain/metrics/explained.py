"""What a metric measures, an attribution or the method that makes it, and what it returns: a score per example."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float

from jaxinterp.checks import require, require_at_least, require_finite, require_labels, warn
from jaxinterp.explain.attribution import Attribution
from jaxinterp.explain.batches import Targets, as_array, sliced
from jaxinterp.explain.explainable import Explainable

Method = Callable[..., Attribution]
"""(net, x, targets) ↦ `Attribution`, such as every function of `jaxinterp.attribute`."""
Explained = Attribution | Method


class Scores(NamedTuple):
    """Result of most metrics.

    Attributes:
        scores: one of each example, (batch,); NaN of those that are not eligible.
        eligible: whether an example could be scored, (batch,).
    """

    scores: Float[np.ndarray, " batch"]
    eligible: Bool[np.ndarray, " batch"]

    @property
    def mean(self) -> float:
        """Mean over the eligible examples; NaN where there is none."""
        return float(self.scores[self.eligible].mean()) if self.eligible.any() else float("nan")


def judged(metric: str, scores: Any, **unfit: Any) -> Scores:
    """Return scores with NaN where an example is not fit to be scored, and warn of these examples.

    Args:
        metric: the metric's name, for the warning.
        scores: (batch,).
        **unfit: reason, with _ for spaces, ↦ (batch,) booleans.

    Example:
        >>> import warnings
        >>> with warnings.catch_warnings(record=True) as seen:
        ...     warnings.simplefilter("always")
        ...     judged("entropy", [0.5, 0.0], constant_map=[False, True]).mean, str(seen[0].message)
        (0.5, 'entropy: NaN at 1 of 2 examples: constant map (1)')
    """
    values = np.array(scores)
    reasons = {name.replace("_", " "): np.asarray(wrong) for name, wrong in unfit.items()}
    left = np.isnan(values) & ~np.any([np.zeros(len(values), bool), *reasons.values()], axis=0)
    eligible = ~np.any([left, *reasons.values()], axis=0)
    values[~eligible] = np.nan
    if not eligible.all():
        reasons["the score is not defined"] = left
        said = [f"{reason} ({_listed(wrong)})" for reason, wrong in reasons.items() if wrong.any()]
        count = f"{int((~eligible).sum())} of {len(values)} examples"
        warn(f"{metric}: NaN at {count}: {', '.join(said)}")
    return Scores(values, eligible)


def _listed(wrong: np.ndarray) -> str:
    places = np.flatnonzero(wrong)
    return ", ".join(map(str, places[:5])) + (", ..." if len(places) > 5 else "")


def is_constant(maps: Any) -> Bool[np.ndarray, " batch"]:
    """Whether all entries of an example's map are the same: it orders and points at nothing."""
    flat = np.asarray(maps).reshape(len(maps), -1)
    return np.asarray(flat.max(1) == flat.min(1))


def attribution(net: Any, method: Explained, x: Any, targets: Targets) -> Attribution:
    """Return an attribution as it is, or what a method makes of a batch.

    Raises:
        ConfigError: it is neither, or the method returns something else.
    """
    if isinstance(method, Attribution):
        return method
    require(callable(method), "method", type(method).__name__, "an Attribution, or (net, x, targets) ↦ Attribution")
    parts = method(net, x, targets)
    require(isinstance(parts, Attribution), "method", f"a {type(parts).__name__} from it", "an Attribution")
    return parts


def label_attribution(net: Any, method: Explained, x: Any, labels: Any) -> Attribution:
    """Return an attribution to the labels' logits, (batch, 1, ...)."""
    parts = attribution(net, method, x, labels)
    shape = parts.logits.shape
    require(shape == (len(labels), 1), "method", f"attributions to {shape} targets", f"({len(labels)}, 1), the labels'")
    same = bool((np.asarray(parts.targets)[:, 0] == np.asarray(labels)).all())
    require(same, "method", "attributions to other classes", "those to the labels")
    return parts


def label_maps(
    net: Any, method: Explained, x: Any, labels: Any, size: Sequence[int]
) -> Float[Array, "batch height width"]:
    """Return the maps of the labels' logits, at a size in pixels."""
    return in_float32(label_attribution(net, method, x, labels)).maps(size)[:, 0]


def own_maps(net: Any, method: Explained, x: Any, labels: Any) -> Float[Array, "batch *shape"]:
    """Return the labels' maps at the method's own resolution: of images summed over channels, else contributions.

    Raises:
        ConfigError: labels do not fit, or a map is not finite.
    """
    require_labels("labels", labels, len(x) if x is not None else len(labels))
    maps = channel_summed(label_attribution(net, method, x, labels))
    require_finite("maps", maps)
    return maps


def bytes_of_a_pass(net: Explainable, x: Array) -> float:
    """Return an estimate of the bytes that a forward and backward pass takes for each example, at least 1."""
    (whole,) = net.fitted("logits", x)
    return max(1.0, 2 * net.program("logits", whole).program.memory[0] / len(whole))


def example_parts(batch: int, bytes_each: float, max_bytes: int) -> list[slice]:
    """Return slices of one size, each within the budget, that cover a batch; the last reaches back.

    Example:
        >>> example_parts(5, 10.0, 29)
        [slice(0, 2, None), slice(2, 4, None), slice(3, 5, None)]
    """
    require_at_least("max_bytes", max_bytes, 1)
    size = max(1, min(batch, int(max_bytes // bytes_each)))
    size = -(-batch // -(-batch // size))
    starts = (min(start, batch - size) for start in range(0, batch, size))
    return [slice(start, start + size) for start in starts]


def joined_parts(parts: Sequence[Any], batch: int) -> np.ndarray:
    """Join the results of `example_parts`."""
    arrays = list(map(np.asarray, parts))
    repeated = sum(map(len, arrays)) - batch
    return np.concatenate([*arrays[:-1], arrays[-1][repeated:]])


def part_of(x: Array, part: slice) -> Array:
    """Return some examples, by one compiled program for all parts of a size."""
    return sliced(x, part.start, part.stop - part.start)


def maps_in_parts(
    net: Explainable, method: Explained, x: Array, labels: np.ndarray, max_bytes: int
) -> Float[Array, "batch *shape"]:
    """Return the labels' maps at their own resolution, `channel_summed`, the method called on some examples at a time.

    Raises:
        ConfigError: the method is no method of the labels, or a map is not finite.
    """
    parts = example_parts(len(x), bytes_of_a_pass(net, x), max_bytes)
    if isinstance(method, Attribution) or len(parts) == 1:
        return channel_summed(label_attribution(net, method, x, labels))
    found = [channel_summed(label_attribution(net, method, part_of(x, part), labels[part])) for part in parts]
    return as_array(joined_parts(found, len(x)))


def in_float32(parts: Attribution) -> Attribution:
    """Return an attribution whose contributions are at least of float32: half precision can neither count nor sum."""
    kind = np.promote_types(parts.contributions.dtype, np.float32)
    return replace(parts, contributions=parts.contributions.astype(kind))


def channel_summed(parts: Attribution) -> Float[Array, "batch *shape"]:
    """Return the first target's maps at their own resolution: of images summed over channels, else contributions."""
    parts = in_float32(parts)
    return parts.maps()[:, 0] if parts.contributions.ndim == 5 else parts.contributions[:, 0]
