"""Localization: the share of a class' positive evidence on its own image in a grid of images.

The grid pointing game of the CoDA Nets paper: n × n images of distinct classes are tiled at full resolution, the
network runs on the whole, and the score of cell i is the part of the positive attribution of its class that it holds,

    L_i = Σ_{p ∈ cell i} A⁺(p) / Σ_p A⁺(p)        A⁺ = max(0, channel-summed attribution)        (Eq. 11)

1 is perfect, 1/n² is what a uniform map scores, and a map without positive evidence scores 0.
"""

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt8

from jaxinterp.checks import (
    require,
    require_at_least,
    require_channels_last,
    require_finite,
    require_labels,
    require_one_of,
    warn,
)
from jaxinterp.errors import ConfigError
from jaxinterp.explain.batches import MAX_BYTES, in_batches, padded
from jaxinterp.explain.explainable import Explainable, explainable
from jaxinterp.explain.meshes import on_automatic_axes
from jaxinterp.explain.metrics.explained import Method, attribution


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
        scores: in [0, 1], (grids, n²).
        mean: mean of all scores.
        quartiles: 25, 50 and 75 % of all scores.
        eligible: number of images that the grids could draw from.
    """

    scores: Float[np.ndarray, "grids cells"]
    mean: float
    quartiles: tuple[float, float, float]
    eligible: int


def sample_grids(
    logits: Float[np.ndarray, "images classes"] | Float[Array, "images classes"],
    labels: Int[np.ndarray, " images"] | Int[Array, " images"],
    *,
    n: int = 3,
    count: int = 500,
    sampler: Literal["aligned", "compat"] = "aligned",
    key: PRNGKeyArray | None = None,
    confidence: float = 0.5,
) -> Grids:
    """Draw grids of the most confident correct predictions, each image at most once.

    Eligible are images whose label has the largest logit and sigmoid(logit) > `confidence`; of a softmax, give
    `net.log_odds(logits)`. For each grid n² classes
    are drawn without replacement among those with images left, and each gives its most confident unused image.

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
    require_at_least("n, count", (n, count), 1)
    require_one_of("sampler", sampler, ("aligned", "compat"))
    require((sampler == "aligned") == (key is not None), "key", key, "one with 'aligned', None with 'compat'")
    queues = _queues(logits, labels, confidence)
    if key is None:
        drawn = _draws(queues, n * n, np.random.RandomState(42), spare=1)
        chosen = _read_straddling(drawn, labels, n * n, count)
    else:
        rng = np.random.default_rng(np.asarray(jax.random.bits(key, (4,), jnp.uint32)))
        chosen = _draws(queues, n * n, rng, spare=0)[:count]
    eligible = sum(map(len, queues))
    got = f"{eligible} images of {sum(map(bool, map(len, queues)))} classes predicted correctly with p > {confidence}"
    require(chosen, "logits", got, f"enough for one {n}x{n} grid by the {sampler!r} sampler")
    images = np.array(chosen, np.int32)
    return Grids(images, labels[images].astype(np.int32), eligible)


def _queues(logits: np.ndarray, labels: np.ndarray, confidence: float) -> list[np.ndarray]:
    """Return each class' eligible images, the most confident first, ties in file order."""
    own = logits[np.arange(len(labels)), labels]
    sure = (logits.argmax(1) == labels) & (np.asarray(jax.nn.sigmoid(own)) > confidence)
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


def tile_grid(images: Float[Array, "grids cells height width channels"]) -> Float[Array, "grids tall wide channels"]:
    """Tile images into square grids at full resolution, without gaps: image k in row k mod n, column k div n.

    Example:
        >>> tile_grid(jnp.arange(4.0).reshape(1, 4, 1, 1, 1))[0, :, :, 0].tolist()
        [[0.0, 2.0], [1.0, 3.0]]
    """
    grids, cells, height, width, channels = images.shape
    n = _side(cells)
    cube = images.reshape(grids, n, n, height, width, channels).transpose(0, 2, 3, 1, 4, 5)
    return cube.reshape(grids, n * height, n * width, channels)


_tile = jax.jit(tile_grid)


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
        key: of the draws; default `jax.random.key(0)`.
        upsample: interpolation of maps of another resolution to the grid's, "nearest" or "linear" (bilinear).
        max_bytes: bytes for the attributions of one pass by estimate; the grids run in equal parts.

    Source: CVPR 2021 (CoDA Nets), Sec. 5.2, Eq. 11; Rao, Böhle, Schiele, CVPR 2022, Sec. 3.1 (grid pointing game).
    """
    require_one_of("upsample", upsample, ("nearest", "linear"))
    net, pool = explainable(net), jnp.asarray(x)
    require(pool.ndim == 4 and len(pool), "x", f"shape {pool.shape}", "images (batch, height, width, channels)")
    require_channels_last("x", pool.shape)
    require((grids is None) == (labels is not None), "labels, grids", "both or none", "labels, or grids drawn before")
    if grids is None:
        key = jax.random.key(0) if key is None else key
        logits = np.concatenate([np.asarray(net.logits(pool[i : i + 256])) for i in range(0, len(pool), 256)])
        grids = sample_grids(net.log_odds(logits), labels, n=n, count=count, key=key)
    drawn = np.asarray(grids.images)
    inside = drawn.size and drawn.min() >= 0 and drawn.max() < len(pool)
    got = f"images {drawn.min()}..{drawn.max()}" if drawn.size else "none"
    require(inside, "grids", got, f"some of [0, {len(pool)})")
    cells = drawn.shape[1]
    shape = _readable(net, _tile(pool[jnp.asarray(grids.images[:1])]), pool.shape[1:3])

    def score(members: Array, classes: Array) -> Array:
        mosaic = _tile(pool[members])
        if shape != mosaic.shape[1:3]:
            mosaic = _resized(mosaic, shape)
        parts = attribution(net, method, mosaic, classes)
        fits = parts.contributions.ndim == 5 and parts.contributions.shape[:2] == classes.shape
        require(fits, "method", f"contributions {parts.contributions.shape}", f"{(*classes.shape, 'h', 'w', 'c')}")
        return _score(parts.maps(), _tiled_shape(pool.shape, cells), upsample)

    # Of every grid and class: weights, contributions and their encoded double, in float32.
    bytes_each = 4 * 4 * cells * cells * int(np.prod(pool.shape[1:]))
    members, classes = (padded(jnp.asarray(array)) for array in (grids.images, grids.classes))
    scores = np.asarray(in_batches(score, (members, classes), len(grids.images), bytes_each * len(members), max_bytes))
    low, middle, high = np.percentile(scores, [25, 50, 75]).tolist()
    return Localization(scores, float(scores.mean()), (low, middle, high), grids.eligible)


def _tiled_shape(shape: tuple[int, ...], cells: int) -> tuple[int, int]:
    return _side(cells) * shape[1], _side(cells) * shape[2]


def _readable(net: Explainable, mosaic: Array, own: tuple[int, ...]) -> tuple[int, ...]:
    """Return the size in which a network reads a grid: the grid's, else that of the images."""
    try:
        net.program("logits", mosaic)
    except ConfigError:
        net.program("logits", _resized(mosaic, own))
        got = "x".join(map(str, mosaic.shape[1:3]))
        warn(f"net: cannot read grids of {got} pixels; they are made small, {own[0]}x{own[1]}")
        return own
    return mosaic.shape[1:3]


@partial(jax.jit, static_argnums=1)
def _resized(mosaic: Array, shape: tuple[int, ...]) -> Array:
    return jax.image.resize(mosaic, (len(mosaic), *shape, mosaic.shape[-1]), "linear")


@partial(jax.jit, static_argnums=(1, 2))
def _score(maps: Array, shape: tuple[int, int], upsample: str) -> Array:
    return grid_pointing_scores(jax.image.resize(maps, (*maps.shape[:2], *shape), upsample))


def _side(cells: int) -> int:
    n = int(np.sqrt(cells))
    require(n * n == cells, "cells", cells, "a square number of images")
    return n
