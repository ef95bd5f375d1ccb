"""The audit: how far each method's maps are from the network's exact decomposition, and whether metrics know it.

A network that is affine at each input has one exact answer, so a method can be measured against it instead of by
metrics alone; and a metric can be measured too, by whether it ranks methods as the truth does.
"""

import json
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxinterp.checks import counted, require, require_labels, require_one_of
from jaxinterp.errors import ConfigError
from jaxinterp.explain.attribution import Attribution
from jaxinterp.explain.batches import MAX_BYTES
from jaxinterp.explain.decompose import decompose
from jaxinterp.explain.explainable import Explainable, with_batch
from jaxinterp.explain.methods import catalogue
from jaxinterp.explain.metrics import (
    completeness,
    deletion,
    faithfulness_correlation,
    infidelity,
    insertion,
    max_sensitivity,
    random_logit,
    sparseness,
)
from jaxinterp.explain.metrics.explained import Explained, Method, channel_summed, label_attribution
from jaxinterp.explain.metrics.similarity import cosine, misplaced, sign_agreement, spearman
from jaxinterp.explain.propagation import NotPolynomialError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from jaxinterp.figures.html import Table

Log = Callable[[str], None]
CALLS = 3
"""Calls, after the first, whose median time is a method's."""
SHOWN = 4
"""Images that a picture of an audit shows."""
REFUSALS = ConfigError, NotImplementedError, NotPolynomialError
"""What methods and metrics raise of a network or input that they are not for."""
DISTANCES = {
    "cosine": "cosine with the truth",
    "rank_correlation": "Spearman's rank correlation with the truth",
    "sign_agreement": "share of entries with the sign of the truth",
    "misplaced": "share of mass in the wrong place",
}
"""What is measured of a map beside the true one, per example, and in words; of "misplaced" low is good."""


class Metric(NamedTuple):
    """A metric of an audit.

    Attributes:
        function: (net, method, x, labels) ↦ a result with `scores` (batch,), NaN of examples that are not eligible.
        best: whether "high" or "low" scores are good.
        reruns: whether it runs the method on other inputs; else it gets the `Attribution` that is known.
    """

    function: Any
    best: Literal["high", "low"] = "high"
    reruns: bool = True


def default_metrics(images: bool, max_bytes: int = MAX_BYTES) -> dict[str, Metric]:
    """Return a small set of metrics, one or two of each family; for inputs that are no images, those without pixels."""
    pixels = {
        "deletion": Metric(partial(deletion, max_bytes=max_bytes), "low", False),
        "insertion": Metric(partial(insertion, max_bytes=max_bytes), "high", False),
        "faithfulness_correlation": Metric(partial(faithfulness_correlation, max_bytes=max_bytes), "high", False),
        "infidelity": Metric(partial(infidelity, scaled=True, max_bytes=max_bytes), "low", False),
    }
    others = {
        "max_sensitivity": Metric(partial(max_sensitivity, samples=4, max_bytes=max_bytes), "low"),
        "sparseness": Metric(sparseness, "high", False),
        "random_logit": Metric(partial(random_logit, max_bytes=max_bytes), "low"),
    }
    return {**pixels, **others} if images else others


@dataclass(frozen=True, repr=False)
class Audit:
    """Result of `audit`. Numbers are per example, (batch,), NaN where there is none; means are over the others.

    Attributes:
        truth: what the methods are compared with, in words; None where the network has no exact answer.
        without: why it has none.
        distances: method ↦ name, of `DISTANCES` ↦ numbers; empty without a truth.
        gaps: method ↦ |f − bias − Σ contributions| / |f − bias|, the bias 0 where the method has none.
        scores: method ↦ metric ↦ numbers.
        seconds: method ↦ time of a call on all examples, compiled.
        best: metric ↦ "high" or "low".
        agreement: metric ↦ name, of `DISTANCES` ↦ rank correlation over the methods of the metric's mean with the mean
            distance, signed so that 1 is a metric that ranks methods as the truth does; NaN for fewer than three.
        skipped: method, or method and metric ↦ why it could not be computed.
        labels: classes explained, (batch,).
        x: the examples.
        maps: "truth" and method ↦ maps, (batch, H, W) of images, else contributions.
    """

    truth: str | None
    without: str
    distances: dict[str, dict[str, np.ndarray]]
    gaps: dict[str, np.ndarray]
    scores: dict[str, dict[str, np.ndarray]]
    seconds: dict[str, float]
    best: dict[str, Literal["high", "low"]]
    agreement: dict[str, dict[str, float]]
    skipped: dict[str, str]
    labels: Int[np.ndarray, " batch"]
    x: Any = field(repr=False)
    maps: dict[str, np.ndarray] = field(repr=False)

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of the methods, the nearest to the truth first."""
        near = {name: _mean(self.distances[name]["cosine"]) if self.distances else 0.0 for name in self.seconds}
        return tuple(sorted(near, key=lambda name: -math.inf if math.isnan(near[name]) else near[name], reverse=True))

    def to_dict(self) -> dict[str, Any]:
        """Return everything but examples and maps as JSON values: mean, deviation and count; None for no number."""
        rows = {
            name: {
                **({} if not self.distances else {"distances": _summaries(self.distances[name])}),
                "completeness_gap": _summary(self.gaps[name]),
                "metrics": _summaries(self.scores[name]),
                "seconds": self.seconds[name],
            }
            for name in self.methods
        }
        return {
            "truth": self.truth,
            "without": self.without,
            "examples": len(self.labels),
            "labels": self.labels.tolist(),
            "methods": rows,
            "best": self.best,
            "agreement": {k: {n: _number(v) for n, v in row.items()} for k, row in self.agreement.items()},
            "skipped": self.skipped,
        }

    def to_json(self) -> str:
        """Return `to_dict` as a JSON text."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    def table(self) -> "Table":
        """Return a table: a row for every method, the nearest to the truth first; last how metrics rank them."""
        from jaxinterp.figures.html import Table

        names = list(DISTANCES) if self.distances else []
        arrows = {"high": "↑", "low": "↓"}
        header = ["method", *(name.replace("_", " ") for name in names), "gap"]
        header += [f"{name.replace('_', ' ')} {arrows[best]}" for name, best in self.best.items()] + ["ms"]
        rows = [
            [
                name,
                *(_cell(self.distances[name][n], True) for n in names),
                _cell(self.gaps[name]),
                *(_cell(self.scores[name].get(metric, np.array([]))) for metric in self.best),
                f"{1e3 * self.seconds[name]:.3g}",
            ]
            for name in self.methods
        ]
        if self.distances and self.best:
            found = [_cell(np.array([self.agreement[metric]["cosine"]])) for metric in self.best]
            rows.append(["ranks methods as the truth", *[""] * (len(names) + 1), *found, ""])
        return Table(header, rows, self.caption)

    @property
    def caption(self) -> str:
        """What the methods are compared with, in a line."""
        if self.truth is None:
            return f"{len(self.labels)} examples; there is no exact answer to compare with: {self.without}"
        return f"{len(self.labels)} examples, compared with {self.truth}"

    def plot(self, images: int = SHOWN, classes: Sequence[str] = ()) -> "Figure":
        """Draw the methods' maps of the first images beside the truth, each on its own scale, with their cosines."""
        from jaxinterp.figures.maps import panel

        require(next(iter(self.maps.values())).ndim == 3, "x", f"shape {self.x.shape}", "images (batch, h, w, c)")
        count = min(images, len(self.labels))
        names = [*(["truth"] if self.distances else []), *self.methods]
        maps = np.stack([self.maps[name][:count] for name in names], axis=1)
        titles = [[self.title(name, i) for name in names] for i in range(count)]
        x = np.asarray(self.x[:count], float)
        seen = x if x.shape[-1] in (1, 3) and x.min() >= 0 and x.max() <= 1 else np.ones((*x.shape[:3], 1))
        rows = [classes[k] if len(classes) else f"class {k}" for k in self.labels[:count]]
        return panel(seen, maps, titles, rows, scale="map")

    def title(self, name: str, i: int) -> str:
        """Return the title of a method's map of an image: its name, and its cosine to the truth where there is one."""
        known = name in self.distances
        words = name.replace("_", " ")
        return f"{words}\ncosine {self.distances[name]['cosine'][i]:.2f}" if known else words

    def __repr__(self) -> str:
        """Lay out the table as text."""
        table = self.table()
        lines = [list(table.header), *table.texts]
        widths = [max(len(line[i]) for line in lines) for i in range(len(table.header))]
        texts = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines]
        skipped = [f"{name}: {reason}" for name, reason in self.skipped.items()]
        return "\n".join([self.caption, *(text.rstrip() for text in texts), *skipped])

    def _repr_html_(self) -> str:
        """Show the table and, of images, the maps."""
        from jaxinterp.figures.html import fragment, picture

        images = next(iter(self.maps.values())).ndim == 3
        return fragment(self.table(), [picture(self.plot(), "", "maps of all methods", dpi=72)] if images else [])


def audit(
    net: Any,
    x: Any,
    labels: Any = None,
    *,
    methods: Mapping[str, Method] | Sequence[str] | None = None,
    truth: Explained | None = None,
    metrics: Mapping[str, Metric | Any] | None = None,
    max_bytes: int = MAX_BYTES,
    log: Log = lambda line: None,
) -> Audit:
    """Measure methods against the exact decomposition of a network, and metrics by whether they rank them as it does.

    Maps of images are summed over channels and enlarged (nearest pixel) to the images, so that an encoded input of six
    channels, pixels, and the maps of a layer can be compared.

    Args:
        net: a network, see `explainable`.
        x: a batch, (batch, ...), floating; best at least a few dozen examples.
        labels: classes to explain, (batch,); by default those that the network predicts.
        methods: name ↦ (net, x, targets) ↦ `Attribution`, or names of `methods.catalogue`; by default all of these that
            can be computed, and the others are listed with the reason.
        truth: an `Attribution` to the labels, or a method; by default `decompose`, where the network is piecewise
            affine, or frozen in its own way; `truth=decompose` takes one that is automatically frozen as well.
        metrics: name ↦ `Metric`, or (net, method, x, labels) ↦ a result with `scores` of which high is good; by default
            `default_metrics`.
        max_bytes: bytes that one pass may take by estimate.
        log: called with a line at the start, and with one for each method and the seconds that it took, such as
            `print`; by default nothing is said.

    Returns:
        An `Audit`, which prints as a table.

    Raises:
        ConfigError: an argument does not fit, or a method that was asked for cannot be computed.

    Example:
        >>> w, few = jnp.array([[1.0, -1.0], [2.0, 1.0]]), ["gradient", "input_x_gradient"]
        >>> found = audit(lambda x: jax.nn.relu(x @ w), jnp.array([[1.0, 3.0], [-1.0, 2.0]]), methods=few, metrics={})
        >>> found.methods[0], found.distances["input_x_gradient"]["cosine"].round(5).tolist()
        ('input_x_gradient', [1.0, 1.0])
    """
    net, x = with_batch(net, x)
    logits = net.logits(x)
    labels = np.asarray(logits).argmax(1) if labels is None else labels
    require_labels("labels", labels, len(x), logits.shape[1])
    labels = np.asarray(labels)
    images = x.ndim == 4
    tried = _chosen(net, methods, max_bytes)
    scored = default_metrics(images, max_bytes) if metrics is None else dict(metrics)
    scored = {name: metric if isinstance(metric, Metric) else Metric(metric) for name, metric in scored.items()}
    exact, said, without = _truth(net, x, labels, truth, max_bytes)
    true = None if exact is None else _comparable(exact, x)
    maps: dict[str, np.ndarray] = {} if true is None else {"truth": np.asarray(true)}
    distances: dict[str, dict[str, np.ndarray]] = {}
    gaps: dict[str, np.ndarray] = {}
    scores: dict[str, dict[str, np.ndarray]] = {}
    seconds: dict[str, float] = {}
    skipped: dict[str, str] = {}
    log(f"{counted(len(tried), 'method')} and {counted(len(scored), 'metric')} on {counted(len(x), 'example')}")
    for k, (name, method) in enumerate(tried.items(), 1):
        start, place = time.perf_counter(), f"{k} of {len(tried)}: {name}"
        try:
            parts = label_attribution(net, method, x, labels)
            own = _comparable(parts, x)
            require(true is None or own.shape == true.shape, name, f"maps {own.shape}", "those of the truth")
        except Exception as error:  # a method that fails is a line of the audit, not its end
            if methods is not None:
                raise
            skipped[name] = reason(error)
            log(f"{place}, left out: {reason(error)}")
            continue
        maps[name], seconds[name] = np.asarray(own), _time(net, method, x, labels)
        gaps[name] = np.asarray(completeness(net, parts).relative[:, 0])
        if true is not None:
            found = _compared(own.reshape(len(x), -1), true.reshape(len(x), -1).astype(own.dtype))
            distances[name] = {key: np.asarray(value) for key, value in zip(DISTANCES, found, strict=True)}
        scores[name] = {}
        for key, metric in scored.items():
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", UserWarning)  # NaN of an example is in the result
                    result = metric.function(net, method if metric.reruns else parts, x, labels)
            except REFUSALS as error:
                skipped[f"{name}, {key}"] = reason(error)
                continue
            scores[name][key] = np.asarray(result.scores, float)
        log(f"{place}, {time.perf_counter() - start:.1f} s")
    require(seconds, "methods", "none that can be computed", "; ".join(skipped.values()) or "at least one")
    best = {key: metric.best for key, metric in scored.items()}
    agreement = _agreement(distances, scores, best)
    return Audit(said, without, distances, gaps, scores, seconds, best, agreement, skipped, labels, np.asarray(x), maps)


def reason(error: Exception) -> str:
    """Return the first line of an error, with its type where the line is not written for users."""
    line = (str(error).splitlines() or [""])[0]
    return line if isinstance(error, ConfigError) else f"{type(error).__name__}: {line}"


def _chosen(
    net: Explainable, methods: Mapping[str, Method] | Sequence[str] | None, max_bytes: int
) -> dict[str, Method]:
    """Return the methods by name; those of the catalogue keep within the budget."""
    if isinstance(methods, Mapping):
        return dict(methods)
    known = catalogue(net)
    require(not isinstance(methods, str), "methods", methods, f'a list of names, such as ["{methods}"]')
    for name in methods or ():
        require_one_of("methods", name, known)
    return {name: partial(known[name], max_bytes=max_bytes) for name in methods or known}


def _truth(
    net: Explainable, x: Array, labels: np.ndarray, truth: Explained | None, max_bytes: int
) -> tuple[Attribution | None, str | None, str]:
    """Return the true attribution and what it is, or None and why there is none."""
    if truth is not None:
        parts = label_attribution(net, truth, x, labels)
        return parts, f"the truth given ({parts.method or 'an Attribution'})", ""
    try:
        parts = decompose(net, x, labels, max_bytes=max_bytes)
    except ConfigError as error:
        return None, None, str(error)
    if parts.held:
        return None, None, f"an affine map only once {parts.held} are held, which is a choice: truth=decompose takes it"
    return parts, f"the network's exact decomposition at {parts.layer!r}", ""


def _comparable(parts: Attribution, x: Array) -> Float[Array, "batch *shape"]:
    """Return the labels' maps at the images' size; of other inputs the contributions."""
    image = x.ndim == 4 and parts.contributions.ndim == 5
    return parts.maps(x.shape[1:3])[:, 0] if image else channel_summed(parts)


@jax.jit
def _compared(own: Float[Array, "batch n"], true: Float[Array, "batch n"]) -> list[Float[Array, " batch"]]:
    return [distance(own, true) for distance in (cosine, spearman, sign_agreement, misplaced)]


def _time(net: Explainable, method: Method, x: Array, labels: np.ndarray) -> float:
    """Return the median time of a few calls, in seconds; the method has been called before."""
    times = []
    for _ in range(CALLS):
        start = time.perf_counter()
        jax.block_until_ready(method(net, x, labels).contributions)
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def _agreement(
    distances: Mapping[str, Mapping[str, np.ndarray]],
    scores: Mapping[str, Mapping[str, np.ndarray]],
    best: Mapping[str, Literal["high", "low"]],
) -> dict[str, dict[str, float]]:
    """Rank-correlate every metric's means with the mean distances, over the methods that have both."""
    found: dict[str, dict[str, float]] = {}
    for metric in best if distances else ():
        found[metric] = {}
        for name in DISTANCES:
            pairs = [(_mean(scores[m].get(metric, np.array([]))), _mean(distances[m][name])) for m in distances]
            rounded = [[float(f"{value:.5g}") for value in pair] for pair in pairs]  # equal but for rounding is equal
            known = np.array([pair for pair in rounded if not np.isnan(pair).any()]).reshape(-1, 2).T
            sign = (1 if best[metric] == "high" else -1) * (-1 if name == "misplaced" else 1)
            rows = [jnp.asarray(row[None]) for row in known]
            found[metric][name] = sign * float(spearman(*rows)[0]) if known.shape[1] > 2 else math.nan
    return found


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else math.nan


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _summary(values: np.ndarray) -> dict[str, Any]:
    known = values[np.isfinite(values)]
    mean, std = (float(f(known)) if known.size else None for f in (np.mean, np.std))
    return {"mean": mean, "std": std, "n": int(known.size)}


def _summaries(values: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    return {name: _summary(array) for name, array in values.items()}


def _cell(values: np.ndarray, spread: bool = False) -> str:
    """Write a mean, and a standard deviation where it is asked for; – for none."""
    found = _summary(values)
    if found["mean"] is None:
        return "–"
    return f"{found['mean']:.2f} ± {found['std']:.2f}" if spread else f"{found['mean']:.3g}"
