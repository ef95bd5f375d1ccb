"""Faithfulness: whether what a map calls important changes the output when it is taken away.

Every metric removes pixels, see `perturbation`, and takes these keywords:

    space      what is perturbed, the "image" or the "encoded" input that the network reads
    score      what is read of the label, "probability" (the network's own), "logit", or "correct" (0 or 1)
    baseline   what takes the place of a pixel: "zero", "mean", "min", "max", "blur", "noise", a number, or a value per
               channel
    absolute   whether pixels count by |map|; signed maps, the default, put evidence against the label last
    key        of noise and of draws, default `jax.random.key(0)`
    max_bytes  bytes that one pass may take by estimate; images, then points, run in parts

Maps are summed over channels and enlarged (nearest pixel) to what is perturbed. A constant map orders nothing: its
score is NaN, and a warning names the example.
"""

from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxinterp.checks import (
    random_key,
    require,
    require_at_least,
    require_finite,
    require_labels,
    require_number,
    require_one_of,
    require_whole,
)
from jaxinterp.explain.attribute.segments import superpixels
from jaxinterp.explain.batches import MAX_BYTES, padded
from jaxinterp.explain.explainable import explainable
from jaxinterp.explain.meshes import on_automatic_axes
from jaxinterp.explain.metrics.explained import (
    Explained,
    Scores,
    bytes_of_a_pass,
    example_parts,
    joined_parts,
    judged,
    label_attribution,
    maps_in_parts,
    part_of,
)
from jaxinterp.explain.metrics.perturbation import (
    Baseline,
    Examples,
    Imputed,
    Order,
    Points,
    Reading,
    Score,
    Space,
    baseline_of,
    examples,
    levels,
    look,
    points,
    region_ranks,
    regions,
    removal_ranks,
    trapezoid,
)
from jaxinterp.explain.metrics.similarity import similar
from jaxinterp.explain.program import INPUT, value_of

SEGMENTS = 100
"""Superpixels of an image that are asked for, in `irof`."""


class Curves(NamedTuple):
    """Result of metrics that read the network while more and more of the image is taken away, or comes back.

    Attributes:
        scores: one number for each example, (batch,); NaN of those that are not eligible.
        eligible: whether an example could be scored, (batch,).
        fractions: part of the pixels or regions that is changed, in [0, 1], (points,).
        curves: what was read, (batch, points).
    """

    scores: Float[np.ndarray, " batch"]
    eligible: Bool[np.ndarray, " batch"]
    fractions: Float[np.ndarray, " points"]
    curves: Float[np.ndarray, "batch points"]

    @property
    def mean(self) -> float:
        """Mean score over the eligible examples; NaN where there is none."""
        return Scores(self.scores, self.eligible).mean


@on_automatic_axes
def pixel_flipping(
    net: Any,
    method: Explained,
    x: Any,
    labels: Any,
    *,
    order: Order = "most",
    insert: bool = False,
    baseline: Baseline = "zero",
    fraction: int | float = 1.0,
    steps: int = 32,
    space: Space = "image",
    score: Score = "probability",
    absolute: bool = False,
    key: PRNGKeyArray | None = None,
    max_bytes: int = MAX_BYTES,
) -> Curves:
    """Take pixels away in the order of a map, or put them back, and read the label's score on the way.

    Args:
        net: a network, see `explainable`.
        method: (net, x, targets) ↦ `Attribution`, or an `Attribution` to the labels' logits.
        x: images, (batch, H, W, C).
        labels: (batch,) integers.
        order: "most" or "least" important pixels first.
        insert: whether pixels come back to an image that is all baseline, instead of leaving the image.
        baseline: what takes the place of pixels, see this file's head.
        fraction: largest part of the pixels that is changed, in (0, 1].
        steps: steps of the curve, of equal size but for rounding.
        space: see this file's head.
        score: see this file's head.
        absolute: see this file's head.
        key: see this file's head.
        max_bytes: see this file's head.

    Returns:
        `Curves`, whose scores are the area under the curve over its range of fractions, in the unit of `score`: with
        "most" low is good where pixels leave, and high is good where they come back.

    Example:
        >>> from jaxinterp.explain.attribute import input_x_gradient
        >>> x = jnp.array([[[[2.0], [1.0]]]])
        >>> found = pixel_flipping(lambda x: x.sum((1, 2)), input_x_gradient, x, [0], score="logit")
        >>> found.curves.tolist(), found.scores.tolist()
        ([[3.0, 1.0, 0.0]], [1.25])

    Source: Bach et al., PLOS ONE 2015, Sec. "Pixel-flipping"; Samek et al., arXiv 1509.06321. Quantus' PixelFlipping is
    its curve without the first point, with an area that is not divided by the number of steps.
    """
    require_one_of("order", order, get_args(Order))
    require_whole("steps", steps, 1)
    given = examples(net, method, x, labels, reading=Reading(space, score), absolute=absolute, max_bytes=max_bytes)
    counts = levels(given.pixels, steps, fraction)
    at = points(counts, given.pixels) if insert else points(0, counts)
    curves, _ = look(given, removal_ranks(given.maps, order), at, baseline=baseline, key=key)
    return _curves("pixel_flipping", given, counts / given.pixels, curves)


def deletion(
    net: Any, method: Explained, x: Any, labels: Any, *, baseline: Baseline = "zero", **keywords: Any
) -> Curves:
    """Delete the most important pixels first: `pixel_flipping` with the published settings; low is good.

    Example:
        >>> from jaxinterp.explain.attribute import input_x_gradient
        >>> x = jnp.array([[[[2.0], [1.0]]]])
        >>> deletion(lambda x: x.sum((1, 2)), input_x_gradient, x, [0], score="logit").curves.tolist()
        [[3.0, 1.0, 0.0]]

    Source: Petsiuk, Das, Saenko, arXiv 1806.07421, Sec. 4.1 (deletion).
    """
    return pixel_flipping(net, method, x, labels, baseline=baseline, **keywords)


def insertion(
    net: Any, method: Explained, x: Any, labels: Any, *, baseline: Baseline = "blur", **keywords: Any
) -> Curves:
    """Insert the most important pixels first into a blurred image: `pixel_flipping` with `insert`; high is good.

    Example:
        >>> from jaxinterp.explain.attribute import input_x_gradient
        >>> x, net = jnp.array([[[[2.0], [1.0]]]]), lambda x: x.sum((1, 2))
        >>> insertion(net, input_x_gradient, x, [0], score="logit", baseline=0.0).curves.tolist()
        [[0.0, 2.0, 3.0]]

    Source: Petsiuk, Das, Saenko, arXiv 1806.07421, Sec. 4.1 (insertion).
    """
    return pixel_flipping(net, method, x, labels, baseline=baseline, insert=True, **keywords)


@on_automatic_axes
def region_perturbation(
    net: Any,
    method: Explained,
    x: Any,
    labels: Any,
    *,
    side: int = 4,
    segments: Any = None,
    order: Order = "most",
    baseline: Baseline = "noise",
    space: Space = "image",
    score: Score = "probability",
    absolute: bool = False,
    key: PRNGKeyArray | None = None,
    max_bytes: int = MAX_BYTES,
) -> Curves:
    """Measure the area over the perturbation curve (AOPC) of regions, the most important first; high is good.

        1/(L + 1) Σ_{k=0..L} f(x) − f(x^(k))        x^(k): the first k regions by the mean of the map are perturbed

    Args:
        net: see `pixel_flipping`.
        method: see `pixel_flipping`.
        x: see `pixel_flipping`.
        labels: see `pixel_flipping`.
        side: of the squares in pixels, where no segments are given.
        segments: numbers of regions, (H, W) or (batch, H, W).
        order: "most" important regions first (MoRF), or "least" (LeRF).
        baseline: what takes the place of pixels; uniform noise by default.
        space: see this file's head.
        score: see this file's head.
        absolute: see this file's head.
        key: see this file's head.
        max_bytes: see this file's head.

    Returns:
        `Curves` of the drops f(x) − f(x^(k)), k = 0..L.

    Source: Samek et al., arXiv 1509.06321, Eq. 12.
    """
    given, drops, mean, counts = _by_region(
        net, method, x, labels, side, segments, order, baseline, space, score, absolute, key, max_bytes
    )
    drops = drops[:, :1] - drops
    return _curves("region_perturbation", given, mean, drops, _average(drops, counts))


@on_automatic_axes
def selectivity(
    net: Any,
    method: Explained,
    x: Any,
    labels: Any,
    *,
    side: int = 4,
    segments: Any = None,
    baseline: Baseline = "zero",
    space: Space = "image",
    score: Score = "probability",
    absolute: bool = False,
    key: PRNGKeyArray | None = None,
    max_bytes: int = MAX_BYTES,
) -> Curves:
    """Measure the area under the curve of the label's score as regions are removed, the most important first.

    Low is good: the score falls at once. Arguments are those of `region_perturbation`.

    Returns:
        `Curves` of the scores with k = 0..L regions removed; Quantus' Selectivity is its curve from k = 1 on.

    Source: Montavon, Samek, Müller, Digital Signal Processing 2018, Sec. 7.2 (explanation selectivity).
    """
    given, curves, fractions, counts = _by_region(
        net, method, x, labels, side, segments, "most", baseline, space, score, absolute, key, max_bytes
    )
    return _curves("selectivity", given, fractions, curves, _average((curves[:, 1:] + curves[:, :-1]) / 2, counts - 1))


@on_automatic_axes
def irof(
    net: Any,
    method: Explained,
    x: Any,
    labels: Any,
    *,
    side: int = 4,
    segments: Any = None,
    baseline: Baseline = "mean",
    space: Space = "image",
    score: Score = "probability",
    absolute: bool = False,
    key: PRNGKeyArray | None = None,
    max_bytes: int = MAX_BYTES,
) -> Curves:
    """Measure the area over the curve of iterative removal of segments (IROF); high is good.

        1/L Σ_{k=1..L} 1 − f(x^(k)) / f(x)        x^(k): the first k segments by the mean of the map have the baseline

    Arguments are those of `region_perturbation`; `segments` may also be "slic", about 100 superpixels by scikit-image.

    Returns:
        `Curves` of f(x^(k)) / f(x), k = 0..L; an example with f(x) = 0 is not eligible.

    Source: Rieger, Hansen, arXiv 2003.08747, Sec. 3, Eq. 4.
    """
    if isinstance(segments, str):
        require_one_of("segments", segments, ("slic",), "integers, None for squares, or slic")
        find = superpixels("segments", "slic", SEGMENTS)
        segments = np.stack([find(image) for image in np.asarray(x, float)])
    given, curves, fractions, counts = _by_region(
        net, method, x, labels, side, segments, "most", baseline, space, score, absolute, key, max_bytes
    )
    none = curves[:, :1] == 0
    curves = np.where(none, np.nan, curves / np.where(none, 1, curves[:, :1]))
    return _curves("irof", given, fractions, curves, _average(1 - curves[:, 1:], counts - 1), no_score=none[:, 0])


@on_automatic_axes
def road(
    net: Any,
    method: Explained,
    x: Any,
    labels: Any,
    *,
    fractions: Any = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    order: Order = "most",
    noise: int | float = 0.01,
    space: Space = "image",
    score: Score = "probability",
    absolute: bool = False,
    key: PRNGKeyArray | None = None,
    max_bytes: int = MAX_BYTES,
) -> Curves:
    """Remove pixels and debias (ROAD): noisy linear imputation in their place, so that no mask is seen.

    Args:
        net: see `pixel_flipping`.
        method: see `pixel_flipping`.
        x: see `pixel_flipping`.
        labels: see `pixel_flipping`.
        order: see `pixel_flipping`.
        fractions: parts of the pixels that are removed, rising, in (0, 1).
        noise: standard deviation of the noise on imputed values, in the unit of what is perturbed.
        space: see this file's head.
        score: see this file's head; "correct" gives the published accuracies, as the mean of the curves over examples.
        absolute: see this file's head.
        key: see this file's head.
        max_bytes: see this file's head.

    Returns:
        `Curves`, whose scores are the mean of each curve; low is good with "most", high with "least".

    Source: Rong, Leemann, Borisov, Kasneci, Kasneci, arXiv 2202.00449, Sec. 4.1 and 5.
    """
    require_one_of("order", order, get_args(Order))
    parts = np.atleast_1d(np.asarray(fractions))
    numbers = parts.ndim == 1 and parts.size and parts.dtype.kind in "iuf"
    inside = numbers and (parts > 0).all() and (parts < 1).all() and (np.diff(parts) > 0).all()
    require(inside, "fractions", fractions, "rising numbers in (0, 1)")
    require_at_least("noise", noise, 0)
    given = examples(net, method, x, labels, reading=Reading(space, score), absolute=absolute, max_bytes=max_bytes)
    at = points(0, np.round(parts * given.pixels))
    curves, _ = look(given, removal_ranks(given.maps, order), at, key=key, fill=Imputed(noise))
    return _curves("road", given, parts, curves, curves.mean(1))


@on_automatic_axes
def faithfulness_correlation(
    net: Any,
    method: Explained,
    x: Any,
    labels: Any,
    *,
    subset: int | float = 0.25,
    samples: int = 100,
    baseline: Baseline = "zero",
    space: Space = "image",
    score: Score = "probability",
    absolute: bool = False,
    key: PRNGKeyArray | None = None,
    max_bytes: int = MAX_BYTES,
) -> Scores:
    """Correlate the map's sum over random subsets of pixels with the drop of the score when they are removed.

        corr_S( Σ_{i ∈ S} map_i , f(x) − f(x with S at the baseline) )        |S| fixed

    Args:
        net: see `pixel_flipping`.
        method: see `pixel_flipping`.
        x: see `pixel_flipping`.
        labels: see `pixel_flipping`.
        baseline: see `pixel_flipping`.
        subset: |S| as a part of the pixels, in (0, 1).
        samples: number of subsets, at least 2.
        space: see this file's head.
        score: see this file's head.
        absolute: see this file's head.
        key: see this file's head.
        max_bytes: see this file's head.

    Returns:
        `Scores` in [−1, 1]; 1 is best. Not eligible: constant maps, and outputs that no subset changes.

    Source: Bhatt, Weller, Moura, arXiv 2005.00631, Definition 3 (there with the output at the perturbed input).
    """
    require_number("subset", subset, "a part of the pixels, in (0, 1)", lambda v: 0 < v < 1)
    require_whole("samples", samples, 2)
    given = examples(net, method, x, labels, reading=Reading(space, score), absolute=absolute, max_bytes=max_bytes)
    size = max(1, round(subset * given.pixels))
    at = points([0] + [0] * samples, [0] + [size] * samples, np.arange(samples + 1))
    read, sums = look(given, _no_ranks(given), at, baseline=baseline, key=key, draw="pixels")
    return _correlated("faithfulness_correlation", given, "pearson", sums[:, 1:], read[:, :1] - read[:, 1:])


@on_automatic_axes
def faithfulness_estimate(
    net: Any,
    method: Explained,
    x: Any,
    labels: Any,
    *,
    steps: int = 64,
    baseline: Baseline = "zero",
    space: Space = "image",
    score: Score = "probability",
    absolute: bool = False,
    key: PRNGKeyArray | None = None,
    max_bytes: int = MAX_BYTES,
) -> Scores:
    """Correlate the map's sum over groups of pixels, next in its order, with the drop when each is removed alone.

    Args:
        net: see `pixel_flipping`.
        method: see `pixel_flipping`.
        x: see `pixel_flipping`.
        labels: see `pixel_flipping`.
        baseline: see `pixel_flipping`.
        steps: number of groups, of equal size but for rounding; H·W for single pixels.
        space: see this file's head.
        score: see this file's head.
        absolute: see this file's head.
        key: see this file's head.
        max_bytes: see this file's head.

    Returns:
        `Scores` in [−1, 1]; 1 is best.

    Source: Alvarez-Melis, Jaakkola, arXiv 1806.07538, Sec. 5 (faithfulness).
    """
    given = examples(net, method, x, labels, reading=Reading(space, score), absolute=absolute, max_bytes=max_bytes)
    read, sums = look(given, removal_ranks(given.maps, "most"), _groups(given, steps), baseline=baseline, key=key)
    return _correlated("faithfulness_estimate", given, "pearson", sums[:, 1:], read[:, :1] - read[:, 1:])


class Monotonicity(NamedTuple):
    """Result of `monotonicity`.

    Attributes:
        scores: share of the steps at which the label's score does not fall, in [0, 1], (batch,).
        eligible: whether an example could be scored, (batch,).
        holds: whether it falls at no step, (batch,).
    """

    scores: Float[np.ndarray, " batch"]
    eligible: Bool[np.ndarray, " batch"]
    holds: Bool[np.ndarray, " batch"]


@on_automatic_axes
def monotonicity(
    net: Any,
    method: Explained,
    x: Any,
    labels: Any,
    *,
    steps: int = 32,
    baseline: Baseline = "zero",
    space: Space = "image",
    score: Score = "probability",
    absolute: bool = False,
    key: PRNGKeyArray | None = None,
    max_bytes: int = MAX_BYTES,
) -> Monotonicity:
    """Put pixels back into a baseline, the least important first, and count the steps at which the score does not fall.

    Args:
        net: see `pixel_flipping`.
        method: see `pixel_flipping`.
        x: see `pixel_flipping`.
        labels: see `pixel_flipping`.
        baseline: see `pixel_flipping`.
        steps: see `pixel_flipping`.
        space: see this file's head.
        score: see this file's head.
        absolute: see this file's head.
        key: see this file's head.
        max_bytes: see this file's head.

    Source: Arya et al., arXiv 1909.03012, Sec. 5 (monotonicity metric): all steps, which is `holds`.
    """
    require_whole("steps", steps, 1)
    given = examples(net, method, x, labels, reading=Reading(space, score), absolute=absolute, max_bytes=max_bytes)
    at = points(levels(given.pixels, steps), given.pixels)
    read, _ = look(given, removal_ranks(given.maps, "least"), at, baseline=baseline, key=key)
    rises = np.diff(read, axis=1) >= 0
    found = judged("monotonicity", rises.mean(1), constant_map=given.constant)
    return Monotonicity(found.scores, found.eligible, rises.all(1) & found.eligible)


@on_automatic_axes
def monotonicity_correlation(
    net: Any,
    method: Explained,
    x: Any,
    labels: Any,
    *,
    steps: int = 32,
    samples: int = 10,
    baseline: Baseline = "noise",
    space: Space = "image",
    score: Score = "probability",
    absolute: bool = True,
    key: PRNGKeyArray | None = None,
    max_bytes: int = MAX_BYTES,
) -> Scores:
    """Rank-correlate the importance of groups of pixels with the mean squared change when each is replaced by noise.

        spearman_g( Σ_{i ∈ g} |map_i| , E[(f(x) − f(x with g from the baseline))²] )

    Args:
        net: see `pixel_flipping`.
        method: see `pixel_flipping`.
        x: see `pixel_flipping`.
        labels: see `pixel_flipping`.
        steps: number of groups, taken in the order of the map.
        samples: draws of the baseline; more than one changes nothing where it is no noise.
        baseline: uniform noise by default.
        absolute: the definition's |map|, as a change has no sign.
        space: see this file's head.
        score: see this file's head.
        key: see this file's head.
        max_bytes: see this file's head.

    Returns:
        `Scores` in [−1, 1]; 1 is best.

    Source: Nguyen, Martínez, arXiv 2007.07584, Sec. 3.2, Eq. 4 and 5 (there over f(x)², a factor without rank).
    """
    require_whole("samples", samples, 1)
    given = examples(net, method, x, labels, reading=Reading(space, score), absolute=absolute, max_bytes=max_bytes)
    ranks, at = removal_ranks(given.maps, "least"), _groups(given, steps)
    key, changes = random_key(key), []
    for i in range(samples):
        read, sums = look(given, ranks, at, baseline=baseline, key=jax.random.fold_in(key, i))
        changes.append((read[:, :1] - read[:, 1:]) ** 2)
    return _correlated("monotonicity_correlation", given, "spearman", sums[:, 1:], np.mean(changes, axis=0))


@on_automatic_axes
def infidelity(
    net: Any,
    method: Explained,
    x: Any,
    labels: Any,
    *,
    side: int = 4,
    samples: int | None = None,
    multiplied: bool = True,
    scaled: bool = False,
    baseline: Baseline = "zero",
    space: Space = "image",
    score: Score = "logit",
    key: PRNGKeyArray | None = None,
    max_bytes: int = MAX_BYTES,
) -> Scores:
    """Measure how far a map is from the change of the output when squares are removed; 0 is best.

        E_I[ (β Iᵀφ − (f(x) − f(x − I)))² ]        I: x minus the baseline inside of a square, 0 outside

    Args:
        net: see `pixel_flipping`.
        method: see `pixel_flipping`.
        x: see `pixel_flipping`.
        labels: see `pixel_flipping`.
        baseline: see `pixel_flipping`.
        side: of the squares in pixels.
        samples: squares at random places; None for every square of a grid, once.
        multiplied: whether maps are contributions, that hold the factor x − baseline already, so that Iᵀφ is their sum
            over the square; False for slopes, such as `gradient`'s, as Quantus takes all maps.
        scaled: whether β is the best factor for each example, instead of 1.
        score: "logit" by default, which contributions are of.
        space: see this file's head.
        key: see this file's head.
        max_bytes: see this file's head.

    Returns:
        `Scores`, ≥ 0, in the squared unit of `score`. Constant maps are not eligible.

    Source: Yeh, Hsieh, Suggala, Inouye, Ravikumar, arXiv 1901.09392, Definition 2.1, Sec. 2.2 (square removal).
    """
    require_whole("side", side, 1)
    parts = label_attribution(net, method, x, labels)
    key = random_key(key)
    given = examples(net, parts, x, labels, reading=Reading(space, score), absolute=False, max_bytes=max_bytes)
    if not multiplied:
        given = given._replace(maps=_along_removal(given, parts.contributions[:, 0], baseline, key))
    if samples is None:
        ranks, counts = regions(None, given, side)
        at, draw = points(np.r_[0, : counts.max()], np.r_[0, 1 : counts.max() + 1]), "none"
    else:
        require_whole("samples", samples, 1)
        require(side <= min(given.shape[1:3]), "side", side, f"at most the image's side, {min(given.shape[1:3])}")
        ranks, draw = _no_ranks(given), "squares"
        at = points(0, [0] + [1] * samples, np.arange(samples + 1))
    read, sums = look(given, ranks, at, baseline=baseline, key=key, draw=draw, side=side)  # type: ignore[arg-type]
    drops, sums = read[:, :1] - read[:, 1:], sums[:, 1:]
    if scaled:
        square = (sums**2).sum(1, keepdims=True)
        sums = sums * np.where(square > 0, (sums * drops).sum(1, keepdims=True) / np.where(square > 0, square, 1), 0)
    return judged("infidelity", ((sums - drops) ** 2).mean(1), constant_map=given.constant)


@on_automatic_axes
def sufficiency(
    net: Any,
    method: Explained,
    x: Any,
    labels: Any,
    *,
    threshold: int | float = 0.6,
    relative: bool = True,
    max_bytes: int = MAX_BYTES,
) -> Scores:
    """Measure how often examples with similar maps are predicted alike.

    Maps are similar whose standardized Euclidean distance, Σ (a_i − b_i)² / variance_i of the batch under the root, is
    at most a threshold.

    Args:
        net: a network, see `explainable`.
        method: (net, x, targets) ↦ `Attribution`, or an `Attribution` to the labels' logits.
        x: (batch, ...), at least two examples.
        labels: (batch,) integers.
        threshold: largest distance of similar maps, ≥ 0.
        relative: whether distances are divided by the largest of the batch.
        max_bytes: bytes that one pass may take by estimate; examples run in parts.

    Returns:
        `Scores` in [0, 1]: of each example, the share of the others with similar maps that have its predicted class.
        One without any such other is not eligible (Quantus: 0).

    Source: Dasgupta, Frost, Moshkovitz, arXiv 2202.00734, Sec. 3.2 (sufficiency).
    """
    from scipy.spatial.distance import cdist

    require_at_least("threshold", threshold, 0)
    net, x = explainable(net), jnp.asarray(x)
    require_labels("labels", labels, len(x))
    require(len(x) > 1, "x", f"{len(x)} example", "at least two")
    found = maps_in_parts(net, method, x, np.asarray(labels), max_bytes)
    require_finite("maps", found)
    maps = np.asarray(found, float).reshape(len(x), -1)
    spread = maps.std(0, ddof=1)
    scaled = maps[:, spread > 0] / spread[spread > 0]
    distance = cdist(scaled, scaled) if scaled.size else np.zeros((len(maps),) * 2)
    distance = distance / (distance.max() or 1) if relative else distance
    near = (distance <= threshold) & ~np.eye(len(maps), dtype=bool)
    parts = example_parts(len(x), bytes_of_a_pass(net, x), max_bytes)
    predicted = joined_parts([net.logits(part_of(x, part)) for part in parts], len(x)).argmax(1)
    same, count = (near & (predicted[:, None] == predicted)).sum(1), near.sum(1)
    share = same / np.maximum(count, 1)
    return judged("sufficiency", share, no_similar_map=count == 0)


def _curves(
    metric: str, given: Examples, fractions: Any, curves: np.ndarray, scores: np.ndarray | None = None, **unfit: Any
) -> Curves:
    """Return curves and their scores, by default the area under each."""
    scores = trapezoid(fractions, curves) if scores is None else scores
    found = judged(metric, scores, constant_map=given.constant, **unfit)
    return Curves(found.scores, found.eligible, fractions, curves)


def _by_region(
    net: Any,
    method: Explained,
    x: Any,
    labels: Any,
    side: int,
    segments: Any,
    order: Order,
    baseline: Baseline,
    space: Space,
    score: Score,
    absolute: bool,
    key: PRNGKeyArray | None,
    max_bytes: int,
) -> tuple[Examples, np.ndarray, np.ndarray, Int[np.ndarray, " batch"]]:
    """Return the label's score with 0..L regions removed, and each example's own number of points, L + 1."""
    require_one_of("order", order, get_args(Order))
    require_whole("side", side, 1)
    given = examples(net, method, x, labels, reading=Reading(space, score), absolute=absolute, max_bytes=max_bytes)
    parts, counts = regions(segments, given, side)
    most = int(counts.max())
    ranks = region_ranks(given.maps, parts, most, order)
    read, _ = look(given, ranks, points(0, np.arange(most + 1)), baseline=baseline, key=key)
    return given, read, np.arange(most + 1) / most, counts + 1


def _average(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the mean over the first points of each example, as many as it has."""
    own = np.arange(values.shape[1]) < counts[:, None]
    return np.where(own, values, 0).sum(1) / counts


def _groups(given: Examples, steps: int) -> Points:
    """Return a point at which nothing is removed, and one for each group of pixels that are next in order."""
    require_whole("steps", steps, 1)
    edges = levels(given.pixels, steps)
    return points(np.r_[0, edges[:-1]], np.r_[0, edges[1:]])


def _no_ranks(given: Examples) -> Int[Array, "n h w"]:
    return jnp.zeros(given.maps.shape, jnp.int32)


def _correlated(metric: str, given: Examples, kind: Any, sums: np.ndarray, drops: np.ndarray) -> Scores:
    """Correlate sums and drops of every example."""
    found = similar(kind, jnp.asarray(sums), jnp.asarray(drops))
    still = drops.max(1) == drops.min(1)
    return judged(metric, found, constant_map=given.constant, output_that_does_not_move=still)


def _along_removal(given: Examples, slopes: Array, baseline: Baseline, key: PRNGKeyArray) -> Float[Array, "n h w"]:
    """Return (x − baseline)·φ of each pixel."""
    layer = INPUT if given.reading.space == "encoded" else None
    z = value_of(given.call.net.program("logits", given.call.x), layer, given.call.x)
    wanted = (given.call.batch, *given.shape[1:])
    fits = slopes.shape[:-1] == wanted[:-1] and slopes.shape[-1] in (1, wanted[-1])
    require(fits, "method", f"slopes {slopes.shape}", f"{wanted}, of what is perturbed")
    step = z - baseline_of(baseline, z, key)
    return (step * padded(slopes, len(z))).sum(-1).astype(given.maps.dtype)
