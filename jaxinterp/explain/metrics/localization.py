"""Localization: whether the evidence lies on the object, by a mask of it, or on a class' own image in a grid of images.

The grid pointing game of the CoDA Nets paper: n × n images of distinct classes are tiled at full resolution, the
network runs on the whole, and the score of cell i is the part of the positive attribution of its class that it holds,

    L_i = Σ_{p ∈ cell i} A⁺(p) / Σ_p A⁺(p)        A⁺ = max(0, channel-summed attribution)        (Eq. 11)

1 is perfect, 1/n² is the score of a uniform map, and 0 that of a map without positive evidence. A zero map is not
eligible.

The metrics with a mask take the labels' maps, summed over channels and enlarged (nearest pixel) to the mask's size, and
`mask`, booleans (batch, H, W), True on the object. An example whose map is constant, or whose mask is empty or full
where that leaves nothing to find, is not eligible.
"""

from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import rankdata
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, UInt8

from jaxinterp.checks import (
    random_key,
    require,
    require_at_least,
    require_channels_last,
    require_finite,
    require_labels,
    require_number,
    require_one_of,
    require_whole,
    warn,
)
from jaxinterp.errors import ConfigError
from jaxinterp.explain.batches import MAX_BYTES, as_array, in_batches, padded
from jaxinterp.explain.explainable import Explainable, explainable
from jaxinterp.explain.meshes import on_automatic_axes
from jaxinterp.explain.metrics.explained import (
    Explained,
    Method,
    Scores,
    attribution,
    bytes_of_a_pass,
    example_parts,
    in_float32,
    is_constant,
    joined_parts,
    judged,
    label_maps,
    part_of,
)


class Grids(NamedTuple):
    """Images that make up each grid; cell k of a grid lies in row k mod n, column k div n.

    Attributes:
        images: indices into the images.
        classes: their labels, distinct in each grid.
        eligible: number of images predicted correctly and with enough confidence.
    """

    images: Int[np.ndarray, "grids cells"]
    classes: Int[np.ndarray, "grids cells"]
    eligible: int


class Localization(NamedTuple):
    """Result of `grid_pointing_game`; the scores count positive attribution only.

    Attributes:
        scores: in [0, 1], (grids, n²); NaN of those that are not eligible.
        eligible: whether a cell could be scored: its class' map is not zero, (grids, n²).
        mean: mean of the eligible scores; NaN where there is none.
        quartiles: 25, 50 and 75 % of the eligible scores.
        images: number of images that the grids could draw from.
    """

    scores: Float[np.ndarray, "grids cells"]
    eligible: Bool[np.ndarray, "grids cells"]
    mean: float
    quartiles: tuple[float, float, float]
    images: int


def sample_grids(
    logits: Float[np.ndarray, "images classes"] | Float[Array, "images classes"],
    labels: Int[np.ndarray, " images"] | Int[Array, " images"],
    *,
    n: int = 3,
    count: int = 500,
    sampler: Literal["aligned", "compat"] = "aligned",
    key: PRNGKeyArray | None = None,
    confidence: int | float = 0.5,
) -> Grids:
    """Draw grids of the most confident correct predictions, each image at most once.

    Eligible are images whose label has the largest logit and sigmoid(logit) > `confidence`; of a softmax, give
    `net.log_odds(logits)`. For each grid n² classes are drawn without replacement among those with images left, and
    each gives its most confident unused image.

    Args:
        logits: of all images, (images, classes), finite.
        labels: (images,), in [0, classes).
        n: images along one side of a grid.
        count: grids wanted; fewer come where the images run out.
        sampler: "aligned", each grid one draw; or "compat", the authors' code: NumPy's RandomState(42), drawing only
            while *more* than n² classes have images left, and reading the drawn list with a step one too long, so that
            after the first grid a grid straddles two draws, skips classes it already has and loses one image.
        key: key of the "aligned" draws; None for "compat", which has its own seed.
        confidence: probability that an eligible image's label must exceed, in [0, 1).

    Returns:
        `Grids`, the most confident first.

    Raises:
        ConfigError: too few eligible images for one grid, or an argument does not fit.

    Example:
        >>> grids = sample_grids(5 * np.eye(4)[[0, 1, 2, 3, 0]], np.array([0, 1, 2, 3, 1]), n=2, key=jax.random.key(0))
        >>> sorted(grids.images[0].tolist()), grids.eligible
        ([0, 1, 2, 3], 4)

    Source: CVPR 2021 (CoDA Nets), Sec. 5.2, and the released evaluation code for "compat".
    """
    logits, labels = np.asarray(logits), np.asarray(labels)
    require(logits.ndim == 2, "logits", f"shape {logits.shape}", "(images, classes)")
    require_labels("labels", labels, *logits.shape)
    require_finite("logits", logits)
    require_whole("n", n, 1)
    require_whole("count", count, 1)
    require_one_of("sampler", sampler, ("aligned", "compat"))
    require_number("confidence", confidence, "a probability in [0, 1)", lambda v: 0 <= v < 1)
    require((sampler == "aligned") == (key is not None), "key", key, "one with 'aligned', None with 'compat'")
    queues = _queues(logits, labels, confidence)
    if key is None:
        drawn = _draws(queues, n * n, np.random.RandomState(42), spare=1)
        chosen = _read_straddling(drawn, labels, n * n, count)
    else:
        rng = np.random.default_rng(np.asarray(_bits(key)))
        chosen = _draws(queues, n * n, rng, spare=0)[:count]
    eligible = sum(map(len, queues))
    got = f"{eligible} images of {sum(map(bool, map(len, queues)))} classes predicted correctly with p > {confidence}"
    require(chosen, "logits", got, f"enough for one {n}x{n} grid by the {sampler!r} sampler")
    images = np.array(chosen, np.int32)
    return Grids(images, labels[images].astype(np.int32), eligible)


@jax.jit
def _bits(key: PRNGKeyArray) -> Array:
    return jax.random.bits(key, (4,), jnp.uint32)


def _queues(logits: np.ndarray, labels: np.ndarray, confidence: float) -> list[np.ndarray]:
    """Return each class' eligible images, the most confident first, ties in file order."""
    from scipy.special import expit

    own = logits[np.arange(len(labels)), labels]
    sure = (logits.argmax(1) == labels) & (expit(own) > confidence)
    queues = [np.flatnonzero(sure & (labels == c)) for c in range(logits.shape[1])]
    return [queue[np.argsort(-own[queue], kind="stable")] for queue in queues]


def _draws(
    queues: list[np.ndarray], cells: int, rng: np.random.Generator | np.random.RandomState, spare: int
) -> list[list[int]]:
    """Draw blocks of the next images of distinct classes while at least `cells + spare` classes have images left."""
    used, lengths = np.zeros(len(queues), int), np.array([len(queue) for queue in queues])
    blocks: list[list[int]] = []
    while (used < lengths).sum() >= cells + spare:
        classes = rng.choice(np.flatnonzero(used < lengths), size=cells, replace=False)
        blocks.append([int(queues[c][used[c]]) for c in classes])
        used[classes] += 1
    return blocks


def _read_straddling(blocks: list[list[int]], labels: np.ndarray, cells: int, count: int) -> list[list[int]]:
    """Read a list of blocks as the authors' code does: classes already in the grid are skipped, then one entry is."""
    grids: list[list[int]] = []
    grid: dict[int, int] = {}
    for image in (image for block in blocks for image in block):
        if len(grid) == cells:  # complete: this entry is skipped
            grid = {}
            continue
        grid.setdefault(int(labels[image]), image)
        if len(grid) == cells:
            grids.append(list(grid.values()))
    return grids[:count]


def tile_grid(images: Any) -> Any:
    """Tile images into square grids at full resolution, without gaps: image k in row k mod n, column k div n.

    Args:
        images: (grids, n², H, W, C), of JAX or NumPy.

    Returns:
        (grids, n·H, n·W, C), of the same kind.

    Example:
        >>> tile_grid(jnp.arange(4.0).reshape(1, 4, 1, 1, 1))[0, :, :, 0].tolist()
        [[0.0, 2.0], [1.0, 3.0]]
    """
    grids, cells, height, width, channels = images.shape
    n = _side(cells)
    cube = images.reshape(grids, n, n, height, width, channels).transpose(0, 2, 3, 1, 4, 5)
    return cube.reshape(grids, n * height, n * width, channels)


@jax.jit
def _mosaic(pool: Array, members: Int[Array, "grids cells"]) -> Float[Array, "grids tall wide channels"]:
    return tile_grid(pool[members])


def grid_pointing_scores(maps: Float[Array, "grids cells tall wide"]) -> Float[Array, "grids cells"]:
    """Score each cell's own map: the share of its positive attribution inside the cell, Eq. 11.

    Args:
        maps: channel-summed signed attribution of cell k's class over the whole grid, (grids, n², n·H, n·W).

    Returns:
        (grids, n²), in [0, 1]; 0 where a map has no positive part.

    Example:
        >>> grid_pointing_scores(jnp.ones((1, 4, 2, 2))).tolist()
        [[0.25, 0.25, 0.25, 0.25]]
    """
    grids, cells, tall, wide = maps.shape
    n = _side(cells)
    require(tall % n == wide % n == 0, "maps", f"{tall}x{wide} pixels", f"multiples of {n} for {n}x{n} cells")
    positive = jax.nn.relu(maps).reshape(grids, cells, n, tall // n, n, wide // n).sum((3, 5))
    held = positive.transpose(0, 1, 3, 2).reshape(grids, cells, cells)
    own, total = jnp.diagonal(held, axis1=1, axis2=2), held.sum(-1)
    return jnp.where(total > 0, own / jnp.where(total > 0, total, 1), 0)


@on_automatic_axes
def grid_pointing_game(
    net: Any,
    method: Method,
    x: Float[Array | np.ndarray, "images height width channels"] | UInt8[Array, "images height width channels"],
    labels: Any = None,
    *,
    grids: Grids | None = None,
    n: int = 3,
    count: int = 500,
    confidence: int | float = 0.5,
    key: PRNGKeyArray | None = None,
    upsample: Literal["nearest", "linear"] = "nearest",
    max_bytes: int = MAX_BYTES,
) -> Localization:
    """Score an attribution method on grids of images, all n² classes of a grid in one pass.

    Args:
        net: a network, see `explainable`. One that reads one image size only is given the grids in its size, and a
            warning says so.
        method: (net, grid images (g, n·H, n·W, C), classes (g, n²)) ↦ `Attribution`, maps of any resolution.
        x: images, (images, H, W, C), in the unit of the network.
        labels: their classes, (images,), of which grids are drawn, see `sample_grids`: the most confident right ones.
        grids: from `sample_grids`, drawn once for several methods, instead of `labels`.
        n: images along one side of a grid, where they are drawn here.
        count: grids wanted, where they are drawn here.
        confidence: the network's own probability, sigmoid or softmax, that an eligible image's label must exceed.
        key: of the draws; default `jax.random.key(0)`.
        upsample: interpolation of maps of another resolution to the grid's, "nearest" or "linear" (bilinear).
        max_bytes: bytes that one pass may take by estimate; images, then grids, run in parts.

    Returns:
        `Localization`.

    Source: CVPR 2021 (CoDA Nets), Sec. 5.2, Eq. 11; Rao, Böhle, Schiele, CVPR 2022, Sec. 3.1 (grid pointing game).
    """
    require_one_of("upsample", upsample, ("nearest", "linear"))
    net, pool = explainable(net), as_array(x)
    require(pool.ndim == 4 and len(pool), "x", f"shape {pool.shape}", "images (batch, height, width, channels)")
    require_channels_last("x", pool.shape)
    require((grids is None) == (labels is not None), "labels, grids", "both or none", "labels, or grids drawn before")
    if grids is None:
        key = random_key(key)
        parts = example_parts(len(pool), bytes_of_a_pass(net, pool[:1]), max_bytes)
        logits = joined_parts([net.logits(part_of(pool, part)) for part in parts], len(pool))
        grids = sample_grids(net.log_odds(logits), labels, n=n, count=count, key=key, confidence=confidence)
    drawn = np.asarray(grids.images)
    inside = drawn.size and drawn.min() >= 0 and drawn.max() < len(pool)
    got = f"images {drawn.min()}..{drawn.max()}" if drawn.size else "none"
    require(inside, "grids", got, f"some of [0, {len(pool)})")
    cells = drawn.shape[1]
    shape = _readable(net, pool, _tiled_shape(pool.shape, cells))

    def score(members: Array, classes: Array) -> tuple[Array, Array]:
        mosaic = _mosaic(pool, members)
        if shape != mosaic.shape[1:3]:
            mosaic = _resized(mosaic, shape)
        parts = in_float32(attribution(net, method, mosaic, classes))
        fits = parts.contributions.ndim == 5 and parts.contributions.shape[:2] == classes.shape
        require(fits, "method", f"contributions {parts.contributions.shape}", f"{(*classes.shape, 'h', 'w', 'c')}")
        return _score(parts.maps(), _tiled_shape(pool.shape, cells), upsample)

    # Of every grid and class: weights, contributions and their encoded double, in float32.
    bytes_each = 4 * 4 * cells * cells * int(np.prod(pool.shape[1:]))
    members, classes = (padded(as_array(array)) for array in (grids.images, grids.classes))
    found = in_batches(score, (members, classes), len(grids.images), bytes_each * len(members), max_bytes)
    flat, zero = (np.asarray(array).ravel() for array in found)
    judge = judged("grid_pointing_game", flat, zero_map=zero)
    fit = flat[judge.eligible] if judge.eligible.any() else judge.scores
    low, middle, high = np.percentile(fit, [25, 50, 75]).tolist()
    scores, eligible = (array.reshape(drawn.shape) for array in judge)
    return Localization(scores, eligible, judge.mean, (low, middle, high), grids.eligible)


def _tiled_shape(shape: tuple[int, ...], cells: int) -> tuple[int, int]:
    return _side(cells) * shape[1], _side(cells) * shape[2]


def _readable(net: Explainable, pool: Array, tiled: tuple[int, int]) -> tuple[int, ...]:
    """Return the size in which a network reads a grid: the grid's, else that of the images."""

    def grid(height: int, width: int) -> Array:
        return as_array(np.zeros((1, height, width, pool.shape[3]), pool.dtype))

    own = pool.shape[1:3]
    try:
        net.program("logits", grid(*tiled))
    except ConfigError:
        net.program("logits", grid(*own))
        got = "x".join(map(str, tiled))
        warn(f"net: cannot read grids of {got} pixels; they are made small, {own[0]}x{own[1]}")
        return own
    return tiled


@partial(jax.jit, static_argnums=1)
def _resized(mosaic: Array, shape: tuple[int, ...]) -> Array:
    return jax.image.resize(mosaic, (len(mosaic), *shape, mosaic.shape[-1]), "linear")


@partial(jax.jit, static_argnums=(1, 2))
def _score(maps: Array, shape: tuple[int, int], upsample: str) -> tuple[Array, Array]:
    """Return the scores, and whether a map is zero."""
    resized = jax.image.resize(maps, (*maps.shape[:2], *shape), upsample)
    return grid_pointing_scores(resized), (maps == 0).all((2, 3))


def _side(cells: int) -> int:
    n = int(np.sqrt(cells))
    require(n * n == cells, "cells", cells, "a square number of images")
    return n


class Masked(NamedTuple):
    """Maps with the masks of their objects.

    Attributes:
        maps: (batch, H, W).
        mask: (batch, H, W).
        unfit: reason ↦ examples that are not eligible.
    """

    maps: Float[Array, "batch h w"]
    mask: Bool[Array, "batch h w"]
    unfit: dict[str, Any]


@on_automatic_axes
def pointing_game(
    net: Any, method: Explained, x: Any, labels: Any, mask: Any, *, tolerance: int | float = 0.0, absolute: bool = False
) -> Scores:
    """Look whether the largest entry of the map lies on the object.

    Args:
        net: a network, see `explainable`; not read where `method` is an `Attribution`.
        method: (net, x, targets) ↦ `Attribution`, or an `Attribution` to the labels' logits.
        x: images, (batch, H, W, C).
        labels: (batch,) integers.
        mask: True on the object, (batch, H, W).
        tolerance: distance in pixels within which a miss is a hit; 15 in the paper's images.
        absolute: whether entries count by |map|.

    Returns:
        `Scores`, 1 or 0; of several largest entries one on the object is enough (as in Quantus).

    Example:
        >>> from jaxinterp.explain.attribute import input_x_gradient
        >>> x = jnp.array([[[[1.0], [2.0]]]])
        >>> given = lambda x: x.sum((1, 2)), input_x_gradient, x, [0]
        >>> pointing_game(*given, [[[False, True]]]).scores.tolist()
        [1.0]

    Source: Zhang, Bargal, Lin, Brandt, Shen, Sclaroff, arXiv 1608.00507, Sec. 4.2.
    """
    require_at_least("tolerance", tolerance, 0)
    given = _masked(net, method, x, labels, mask, absolute)
    return judged("pointing_game", _pointing(given.maps, _dilated(given.mask, float(tolerance))), **given.unfit)


Part = Literal["positive", "absolute", "signed"]


@on_automatic_axes
def relevance_mass_accuracy(
    net: Any, method: Explained, x: Any, labels: Any, mask: Any, *, part: Part = "positive"
) -> Scores:
    """Measure the share of the map's mass that lies on the object, Σ_{p ∈ mask} a_p / Σ_p a_p.

    Args:
        net: see `pointing_game`.
        method: see `pointing_game`.
        x: see `pointing_game`.
        labels: see `pointing_game`.
        mask: see `pointing_game`.
        part: what of the map is a: its "positive" part, which the definition is of, "absolute" values, or the "signed"
            map, whose share has no bounds (as Quantus takes it).

    Returns:
        `Scores`, in [0, 1] but of signed maps. A map without mass is not eligible.

    Source: Arras, Osman, Samek, arXiv 2003.07258, Eq. 1 (relevance mass accuracy).
    """
    return _mass("relevance_mass_accuracy", net, method, x, labels, mask, part, False)


@on_automatic_axes
def attribution_localization(
    net: Any, method: Explained, x: Any, labels: Any, mask: Any, *, weighted: bool = False, part: Part = "positive"
) -> Scores:
    """Measure the inside–total relevance ratio μ = R_in / R_tot, perhaps by the object's size.

    Args:
        net: see `relevance_mass_accuracy`.
        method: see `relevance_mass_accuracy`.
        x: see `relevance_mass_accuracy`.
        labels: see `relevance_mass_accuracy`.
        mask: see `relevance_mass_accuracy`.
        part: see `relevance_mass_accuracy`.
        weighted: whether μ is multiplied by S_tot / S_in, pixels of the image over those of the object, so that a
            uniform map scores 1.

    Source: Kohlbrenner et al., arXiv 1910.09840, Eq. 7 and 8.
    """
    return _mass("attribution_localization", net, method, x, labels, mask, part, weighted)


@on_automatic_axes
def top_k_intersection(
    net: Any,
    method: Explained,
    x: Any,
    labels: Any,
    mask: Any,
    *,
    k: int = 100,
    concept_influence: bool = False,
    absolute: bool = False,
) -> Scores:
    """Measure the share of the k largest entries of the map that lie on the object.

    Args:
        net: see `pointing_game`.
        method: see `pointing_game`.
        x: see `pointing_game`.
        labels: see `pointing_game`.
        mask: see `pointing_game`.
        absolute: see `pointing_game`.
        k: number of entries, at most H·W; equal ones count in reading order.
        concept_influence: whether the share is divided by the object's share of the image.

    Source: Theiner, Müller-Budack, Ewerth, arXiv 2104.14995, Sec. 3.3.
    """
    given = _masked(net, method, x, labels, mask, absolute)
    pixels = given.mask[0].size
    require_whole("k", k, 1)
    require(k <= pixels, "k", k, f"at most the image's {pixels} pixels")
    found = _hits(given.maps, given.mask, jnp.full(len(given.maps), k))
    area = given.mask.mean((1, 2)) if concept_influence else jnp.ones_like(found)
    return judged("top_k_intersection", found / area.astype(found.dtype), **given.unfit)


@on_automatic_axes
def relevance_rank_accuracy(
    net: Any, method: Explained, x: Any, labels: Any, mask: Any, *, absolute: bool = False
) -> Scores:
    """Measure the share of the K largest entries that lie on the object, K the number of its pixels.

    Arguments are those of `pointing_game`.

    Source: Arras, Osman, Samek, arXiv 2003.07258, Eq. 2 (relevance rank accuracy).
    """
    given = _masked(net, method, x, labels, mask, absolute)
    found = _hits(given.maps, given.mask, given.mask.sum((1, 2)))
    return judged("relevance_rank_accuracy", found, **given.unfit)


@on_automatic_axes
def localization_auc(net: Any, method: Explained, x: Any, labels: Any, mask: Any, *, absolute: bool = False) -> Scores:
    """Measure the area under the ROC curve of the map as a detector of the object's pixels.

    The probability that a pixel of the object has a larger entry than one outside, ties counting half.

    Arguments are those of `pointing_game`.

    Source: Fawcett, Pattern Recognition Letters 2006, Sec. 7; Quantus' AUC.
    """
    given = _masked(net, method, x, labels, mask, absolute)
    full = np.asarray(given.mask).all((1, 2))
    return judged("localization_auc", _roc(given.maps, given.mask), **given.unfit, full_mask=full)


def _masked(net: Any, method: Explained, x: Any, labels: Any, mask: Any, absolute: bool) -> Masked:
    """Check masks and labels, and compute the labels' maps in the masks' size."""
    shape, batch = np.shape(x), len(x)
    require(len(shape) == 4, "x", f"shape {shape}", "images (batch, height, width, channels)")
    require_labels("labels", labels, batch)
    masks = np.asarray(mask)
    wanted = f"booleans {shape[:3]}"
    require(masks.shape == shape[:3] and masks.dtype == bool, "mask", f"{masks.dtype}{masks.shape}", wanted)
    maps = label_maps(net, method, jnp.asarray(x), jnp.asarray(labels), shape[1:3])
    require_finite("maps", maps)
    maps = jnp.abs(maps) if absolute else maps
    unfit = {"constant_map": is_constant(maps), "empty_mask": ~masks.any((1, 2))}
    return Masked(maps, jnp.asarray(masks), unfit)


def _mass(
    metric: str, net: Any, method: Explained, x: Any, labels: Any, mask: Any, part: Part, weighted: bool
) -> Scores:
    require_one_of("part", part, get_args(Part))
    given = _masked(net, method, x, labels, mask, part == "absolute")
    inside, total = _inside(given.maps, given.mask, part == "positive")
    none, size = np.asarray(total == 0), given.mask.mean((1, 2)).astype(inside.dtype)
    share = inside / jnp.where(total == 0, 1, total)
    share = share / jnp.where(size > 0, size, 1) if weighted else share
    unfit = given.unfit if part == "signed" else {"empty_mask": given.unfit["empty_mask"]}  # constant mass has a share
    return judged(metric, share, **unfit, no_mass=none)


@jax.jit
def _pointing(maps: Array, mask: Array) -> Float[Array, " batch"]:
    largest = maps == maps.max((1, 2), keepdims=True)
    return (largest & mask).any((1, 2)).astype(maps.dtype)


def _dilated(mask: Bool[Array, "batch h w"], tolerance: float) -> Bool[Array, "batch h w"]:
    """Add all pixels within a distance of the object."""
    if tolerance == 0:
        return mask
    from scipy.ndimage import distance_transform_edt

    near = [distance_transform_edt(~one) <= tolerance for one in np.asarray(mask)]
    return jnp.asarray(np.stack(near))


@partial(jax.jit, static_argnums=2)
def _inside(maps: Array, mask: Array, positive: bool) -> tuple[Array, Array]:
    mass = jax.nn.relu(maps) if positive else maps
    return jnp.where(mask, mass, 0).sum((1, 2)), mass.sum((1, 2))


@jax.jit
def _hits(maps: Array, mask: Array, k: Array) -> Float[Array, " batch"]:
    """Return the share of each map's k largest entries that lie in the mask."""
    flat = maps.reshape(len(maps), -1)
    order = jnp.argsort(-flat, axis=1, stable=True)
    inside = jnp.take_along_axis(mask.reshape(flat.shape), order, axis=1)
    first = jnp.arange(flat.shape[1])[None] < k[:, None]
    return (inside & first).sum(1).astype(maps.dtype) / jnp.maximum(k, 1).astype(maps.dtype)


@jax.jit
def _roc(maps: Array, mask: Array) -> Float[Array, " batch"]:
    """Return the area under the ROC curve by the sum of the ranks of the object's pixels."""
    flat, on = maps.reshape(len(maps), -1), mask.reshape(len(maps), -1)
    ranks = rankdata(flat, axis=1).astype(flat.dtype)
    count = on.sum(1).astype(flat.dtype)
    wins = jnp.where(on, ranks, 0).sum(1) - count * (count + 1) / 2
    return wins / jnp.maximum(count * (flat.shape[1] - count), 1)
