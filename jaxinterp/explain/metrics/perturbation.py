"""What metrics of faithfulness share: which pixels are removed, what takes their place, what the network then says.

Every such metric is a table of points. A point removes from an image all pixels whose rank lies in [low, high), where
ranks come from a map, from its regions, or are drawn anew at each point; a filling takes their place.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key, PRNGKeyArray

from jaxinterp.checks import (
    random_key,
    require,
    require_finite,
    require_labels,
    require_number,
    require_one_of,
    require_whole,
)
from jaxinterp.explain.attribute.backward import Call, checked, chosen, head
from jaxinterp.explain.attribute.blur import blurred
from jaxinterp.explain.attribute.segments import squares
from jaxinterp.explain.batches import as_array, in_batches, padded
from jaxinterp.explain.metrics.explained import Explained, is_constant, label_maps
from jaxinterp.explain.program import INPUT, value_of

Baseline = str | ArrayLike | Sequence[int | float]
"""What takes the place of removed pixels: a name, a number, or a value for each channel; see `baseline_of`."""
Space = Literal["image", "encoded"]
Score = Literal["probability", "logit", "correct"]
Draw = Literal["none", "pixels", "squares"]
Order = Literal["most", "least"]
NAMES = ("zero", "mean", "min", "max", "blur", "noise")


@dataclass(frozen=True)
class Reading:
    """How a metric reads the network; common keywords of all metrics that perturb.

    Attributes:
        space: what is perturbed, the "image", or the "encoded" input that the network reads.
        score: what is read, the label's own "probability" (sigmoid or softmax, as it was trained), its "logit", or
            "correct", 1 where no other class has a larger logit, else 0.
    """

    space: Space = "image"
    score: Score = "probability"

    def __post_init__(self) -> None:
        """Check both."""
        require_one_of("space", self.space, get_args(Space))
        require_one_of("score", self.score, get_args(Score))


class Examples(NamedTuple):
    """Checked examples with their maps, padded.

    Attributes:
        maps: the labels' maps in the size of what is perturbed, (n, H, W).
        shape: of what is perturbed, (n, H, W, C).
        constant: whether an example's map is constant, (batch,).
        reading: what is perturbed, and what is read.
        max_bytes: bytes of one pass.
    """

    call: Call
    maps: Float[Array, "n h w"]
    shape: tuple[int, ...]
    constant: Bool[np.ndarray, " batch"]
    reading: Reading
    max_bytes: int

    @property
    def pixels(self) -> int:
        """Pixels of an image."""
        return self.shape[1] * self.shape[2]


def examples(
    net: Any, method: Explained, x: Any, labels: Any, *, reading: Reading, absolute: bool, max_bytes: int
) -> Examples:
    """Check what all metrics that perturb take, and compute the labels' maps."""
    call = checked(net, x, 0, None if reading.space == "image" else INPUT, max_bytes)
    model = call.net.program("logits", call.x)
    shape = call.x.shape if reading.space == "image" else model.program.layers[INPUT]
    require(len(shape) == 4, "x", f"shape {call.x.shape}", "images (batch, height, width, channels)")
    require_labels("labels", labels, call.batch, model.program.output.shape[1])
    maps = label_maps(call.net, method, as_array(x), as_array(labels), shape[1:3])
    require_finite("maps", maps)
    maps = jnp.abs(maps) if absolute else maps
    call = call._replace(rows=padded(as_array(np.asarray(labels, np.int32)[:, None]), len(call.x)))
    return Examples(call, padded(maps, len(call.x)), shape, is_constant(maps), reading, max_bytes)


def baseline_of(
    baseline: Baseline, z: Float[Array, "n h w c"], key: PRNGKeyArray, first: int | Array = 0
) -> Float[Array, "n h w c"]:
    """Return what takes the place of removed pixels, for every pixel.

    Args:
        baseline: "zero"; "mean", "min" or "max" of each channel of the image; "blur", the image under a Gaussian of a
            standard deviation of 1/16 of its longer side; "noise", uniform between the least and the largest value of
            the image's channel; a number; or a value for each channel.
        z: images, or encoded ones.
        key: of the noise.
        first: number of the first image, so that noise does not depend on how images are cut into parts.

    Example:
        >>> z = jnp.array([[[[1.0], [3.0]]]])
        >>> [baseline_of(name, z, jax.random.key(0)).ravel().tolist() for name in ("mean", 0.5)]
        [[2.0, 2.0], [0.5, 0.5]]
    """
    if isinstance(baseline, str):
        require_one_of("baseline", baseline, NAMES)
        return _named_baseline(baseline, z, key, as_array(np.int32(first)) if isinstance(first, int) else first)
    value = jnp.asarray(baseline, z.dtype)
    require(value.shape in ((), z.shape[3:]), "baseline", f"shape {value.shape}", f"a number, or {z.shape[3:]}")
    require_finite("baseline", value)
    return jnp.broadcast_to(value, z.shape)


@partial(jax.jit, static_argnums=0)
def _named_baseline(name: str, z: Array, key: PRNGKeyArray, first: Array) -> Array:
    if name == "zero":
        return jnp.zeros_like(z)
    if name == "blur":
        return blurred(z, jnp.asarray([max(z.shape[1:3]) / 16], float), cut=3)[0]
    if name in ("mean", "min", "max"):
        return jnp.broadcast_to(getattr(jnp, name)(z, axis=(1, 2), keepdims=True), z.shape)
    low, high = z.min((1, 2), keepdims=True), z.max((1, 2), keepdims=True)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, first + jnp.arange(len(z)))
    return low + (high - low) * jax.vmap(lambda k: jax.random.uniform(k, z.shape[1:], z.dtype))(keys)


Fill = Callable[[Array, Array, Array, Array], Array]


def replaced(z: Array, base: Array, removed: Bool[Array, "p n h w"], keys: Array) -> Float[Array, "p n h w c"]:
    """Fill removed pixels with the baseline."""
    return jnp.where(removed[..., None], base[None], z[None])


class Points(NamedTuple):
    """Points at which the network is read; every array is (points,).

    Attributes:
        low: least rank that is removed.
        high: the next after the largest.
        draw: number of the draw, where ranks are drawn anew; else 0.
    """

    low: Any
    high: Any
    draw: Any


def points(low: Any, high: Any, draw: Any = 0) -> Points:
    """Return points from numbers and sequences, broadcast to one length."""
    return Points(*(np.atleast_1d(a).astype(np.int32) for a in np.broadcast_arrays(low, high, draw)))


@dataclass(frozen=True)
class How:
    """What is fixed of a compiled reading."""

    fill: Fill
    draw: Draw
    side: int
    encoded: bool
    score: Score
    sigmoid: bool


def look(
    given: Examples,
    ranks: Int[Array, "n h w"],
    at: Points,
    *,
    baseline: Baseline = "zero",
    key: PRNGKeyArray | None = None,
    fill: Fill = replaced,
    draw: Draw = "none",
    side: int = 1,
) -> tuple[Float[np.ndarray, "batch points"], Float[np.ndarray, "batch points"]]:
    """Read the labels' scores at points, and the sums of the maps over what is removed.

    Args:
        given: the examples.
        ranks: of every pixel; not read where they are drawn.
        at: which ranks each point removes.
        baseline: what takes the place of removed pixels, see `baseline_of`.
        key: of noise and draws; default `jax.random.key(0)`.
        fill: how they are filled.
        draw: "none", the ranks given; "pixels", a random order of the pixels at each point; "squares", rank 0 inside
            of a square at a random place and 1 outside.
        side: of the squares, in pixels.

    Returns:
        Scores and sums of the examples, padding left out.
    """
    call, model = given.call, given.call.net.program("logits", given.call.x)
    encoded, count = given.reading.space == "encoded", len(at.low)
    sigmoid = call.net.probability == "sigmoid"
    how = How(fill, draw, side, encoded, given.reading.score, sigmoid)
    key = random_key(key)
    layer = INPUT if encoded else None
    with jax.default_matmul_precision("highest"):
        z = value_of(model, layer, call.x)
        base = baseline_of(baseline, z, key)
        keys = _keys(key, len(z))
        each = 3 * (call.memory[1] + z.nbytes) / len(z)
        size = max(1, min(count, int(given.max_bytes // max(1, each))))  # points at once, of one image at least
        size = -(-count // -(-count // size))

        def read(x: Array, z: Array, base: Array, maps: Array, ranks: Array, keys: Array, rows: Array) -> Any:
            many = jnp.tile(x, (size, *(1,) * (x.ndim - 1)))
            model, parts = call.net.program("logits", many), []
            for start in range(0, count, size):
                few = Points(*(as_array(a[min(start, count - size) :][:size]) for a in at))
                parts.append(_look(how, model, z, base, many, maps, ranks, keys, rows, few))
            repeated = len(parts) * size - count  # the last part reaches back
            return tuple(jnp.concatenate([*a[:-1], a[-1][repeated:]]).T for a in zip(*parts, strict=True))

        arrays = (call.x, z, base, given.maps, ranks, keys, call.rows)
        scores, sums = in_batches(read, arrays, call.batch, each * len(z) * size, given.max_bytes)
    return np.asarray(scores), np.asarray(sums)


@partial(jax.jit, static_argnums=1)
def _keys(key: PRNGKeyArray, count: int) -> Key[Array, " n"]:
    """Return a key for every example, the same however they are cut into parts."""
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, 1), jnp.arange(count))


@partial(jax.jit, static_argnums=0)
def _look(
    how: How, model: Any, z: Array, base: Array, x: Array, maps: Array, ranks: Array, keys: Array, rows: Array, at: Any
) -> tuple[Float[Array, "points n"], Float[Array, "points n"]]:
    """Return scores and sums of a block of points, all in one batch."""
    here = ranks[None] if how.draw == "none" else _drawn(how, keys, at.draw, maps.shape[1:])
    low, high = (a[:, None, None, None] for a in (at.low, at.high))
    removed = (low <= here) & (here < high)
    perturbed = how.fill(z, base, removed, keys).reshape(-1, *z.shape[1:])
    logits = head(model, INPUT if how.encoded else None, perturbed, x)
    if how.score == "correct":
        logits = (logits == logits.max(1, keepdims=True)).astype(logits.dtype)
    elif how.score == "probability":
        logits = jax.nn.sigmoid(logits) if how.sigmoid else jax.nn.softmax(logits)
    scores = chosen(logits, jnp.tile(rows, (len(at.low), 1))).reshape(len(at.low), len(z))
    return scores, jnp.where(removed, maps[None], 0).sum((2, 3))


def _drawn(how: How, keys: Array, draws: Array, shape: tuple[int, ...]) -> Int[Array, "points n h w"]:
    """Return random ranks of the pixels, one draw for each point and example."""

    def one(draw: Array, key: PRNGKeyArray) -> Array:
        key = jax.random.fold_in(key, draw)
        if how.draw == "pixels":
            return jax.random.permutation(key, math.prod(shape)).astype(jnp.int32).reshape(shape)
        most = jnp.array([size - how.side + 1 for size in shape])
        top, left = jax.random.randint(key, (2,), 0, most)
        row, column = jnp.arange(shape[0])[:, None], jnp.arange(shape[1])[None]
        inside = (top <= row) & (row < top + how.side) & (left <= column) & (column < left + how.side)
        return jnp.where(inside, 0, 1).astype(jnp.int32)

    return jax.vmap(lambda draw: jax.vmap(partial(one, draw))(keys))(draws)


# Neighbors of a pixel and their weights, Rong et al., Sec. 4.1: direct ones 1/6, diagonal ones 1/12.
_NEIGHBORS = {(i, j): 1 / 6 if i == 0 or j == 0 else 1 / 12 for i in (-1, 0, 1) for j in (-1, 0, 1) if i or j}


@dataclass(frozen=True)
class Imputed:
    """Fill removed pixels with what a noisy linear interpolation says, so that their shape is not seen.

    Every removed pixel is the mean of its up to eight neighbors, weighted 1/6 or 1/12, which is a sparse linear system
    of the removed pixels, positive definite, solved by conjugate gradients; then noise is added.

    Attributes:
        noise: standard deviation of the noise.

    Source: Rong et al., arXiv 2202.00449, Sec. 4.1 and Eq. 6.
    """

    noise: int | float = 0.01

    def __call__(self, z: Array, base: Array, removed: Bool[Array, "p n h w"], keys: Array) -> Array:
        """Return the images of every point, filled."""

        def one(z: Array, removed: Array, key: PRNGKeyArray) -> Array:
            filled = interpolated(z, removed)
            noise = self.noise * jax.random.normal(key, z.shape, z.dtype)
            return jnp.where(removed[..., None], filled + noise, z)

        return jax.vmap(lambda mask: jax.vmap(one)(z, mask, keys))(removed)


def interpolated(z: Float[Array, "h w c"], removed: Bool[Array, "h w"]) -> Float[Array, "h w c"]:
    """Replace removed pixels by the weighted means of their neighbors, all at once.

    Example:
        >>> z = jnp.array([[[0.0], [9.0], [2.0]]])
        >>> interpolated(z, jnp.array([[False, True, False]])).ravel().round(4).tolist()
        [0.0, 1.0, 2.0]
    """
    hole = removed[..., None].astype(z.dtype)
    degree = _around(jnp.ones_like(z))

    def system(value: Array) -> Array:
        return hole * (degree * value - _around(hole * value)) + (1 - hole) * value

    known = (1 - hole) * z
    start = hole * known.sum((0, 1), keepdims=True) / jnp.maximum((1 - hole).sum((0, 1), keepdims=True), 1)
    right = hole * _around(known)
    found, _ = jax.scipy.sparse.linalg.cg(system, right, x0=start, tol=1e-6, maxiter=removed.size)
    return known + hole * found


def _around(value: Float[Array, "h w c"]) -> Float[Array, "h w c"]:
    """Return the weighted sum of every pixel's neighbors."""
    height, width, _ = value.shape
    wide = jnp.pad(value, ((1, 1), (1, 1), (0, 0)))
    shifted = [w * wide[1 + i : 1 + i + height, 1 + j : 1 + j + width] for (i, j), w in _NEIGHBORS.items()]
    return jnp.stack(shifted).sum(0)


@partial(jax.jit, static_argnums=1)
def removal_ranks(maps: Float[Array, "batch height width"], order: Order = "least") -> Int[Array, "batch height width"]:
    """Rank the pixels by the turn at which each is removed, from 0; equal pixels go in reading order.

    Args:
        maps: signed importance of each pixel, (batch, H, W).
        order: "least", from the most negative to the most important, or "most", the other way round.

    Returns:
        (batch, H, W) int32, each image a permutation of 0..H·W − 1.

    Example:
        >>> removal_ranks(jnp.array([[[0.5, -1.0], [0.5, 2.0]]])).tolist()
        [[[1, 0], [2, 3]]]
    """
    require_one_of("order", order, get_args(Order))
    flat = maps.reshape(len(maps), -1)
    turns = jnp.argsort(flat if order == "least" else -flat, axis=1, stable=True)
    return jnp.argsort(turns, axis=1).astype(jnp.int32).reshape(maps.shape)


def regions(segments: Any, given: Examples, side: int) -> tuple[Int[Array, "n h w"], Int[np.ndarray, " batch"]]:
    """Return the number of each pixel's region, from 0 without gaps, and how many regions each example has.

    Args:
        segments: integers (H, W) or (batch, H, W); None for squares.
        given: the examples.
        side: of the squares, in pixels.

    Raises:
        ConfigError: segments do not fit the images.
    """
    height, width = given.shape[1:3]
    if segments is None:
        require(side <= min(height, width), "side", side, f"at most the image's side, {min(height, width)}")
    labels = np.asarray(squares((height, width), side=side) if segments is None else segments)
    fits = labels.shape in ((height, width), (given.call.batch, height, width)) and labels.dtype.kind in "iu"
    wanted = f"integers ({height}, {width}) or ({given.call.batch}, {height}, {width})"
    require(fits, "segments", f"{labels.dtype}{labels.shape}", wanted)
    numbered = [
        np.unique(one, return_inverse=True)[1].reshape(height, width) for one in labels.reshape(-1, height, width)
    ]
    counts = np.array([int(one.max()) + 1 for one in numbered])
    whole = np.stack(numbered).astype(np.int32)
    batch = given.call.batch
    whole, counts = np.broadcast_to(whole, (batch, height, width)), np.broadcast_to(counts, (batch,))
    return padded(jnp.asarray(whole), len(given.maps)), counts


@partial(jax.jit, static_argnums=(2, 3))
def region_ranks(
    maps: Float[Array, "n h w"], parts: Int[Array, "n h w"], count: int, order: Order
) -> Int[Array, "n h w"]:
    """Return the turn of every pixel's region, from 0, by the mean of the map over it; ties in the regions' order."""

    def one(values: Array, parts: Array) -> Array:
        ones = jnp.ones_like(values)
        total, size = (jax.ops.segment_sum(a, parts, num_segments=count) for a in (values, ones))
        mean = total / jnp.maximum(size, 1)
        last = jnp.where(size > 0, -mean if order == "most" else mean, jnp.inf)  # regions that there are not
        return jnp.argsort(jnp.argsort(last, stable=True)).astype(jnp.int32)[parts]

    return jax.vmap(lambda v, p: one(v.ravel(), p.ravel()).reshape(v.shape))(maps, parts)


def levels(total: int, count: int, fraction: int | float = 1.0) -> Int[np.ndarray, " points"]:
    """Return numbers of removed pixels, from 0 to ⌊fraction · total⌋ in at most `count` steps, evenly.

    Example:
        >>> levels(10, 4).tolist()
        [0, 2, 5, 8, 10]
    """
    require_number("fraction", fraction, "a number in (0, 1]", lambda v: 0 < v <= 1)
    require_whole("points", count, 1)
    most = int(fraction * total)
    require(most > 0, "fraction", f"{fraction} of {total}", "at least one to remove")
    return np.unique(np.round(np.linspace(0, most, min(count, most) + 1)).astype(np.int32))


def trapezoid(fractions: np.ndarray, curves: Float[np.ndarray, "batch points"]) -> Float[np.ndarray, " batch"]:
    """Return the mean height of curves over their range, by the trapezoidal rule."""
    area = ((curves[:, 1:] + curves[:, :-1]) / 2 * np.diff(fractions)).sum(1)
    return np.asarray(area / (fractions[-1] - fractions[0]))
