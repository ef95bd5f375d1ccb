"""Early decoding: the class is read off the energies of a block, and images that are sure of it leave the network.

Avranas and Kountouris, arXiv 2202.05343 ("Coded ResNeXt"), Sec. 4.4. The decoder answers with the word that is nearest
to the shares of energy v = a E / Σ E; all words weigh a, so that is the word on which most energy lies:

    argmin_k |v − w_k|₂ = argmax_k <E, w_k>        margin = (<E, w_1st> − <E, w_2nd>) / Σ E  ∈ [0, 1]

The paper gives the accuracy of every block. What follows is ours: an image leaves at the first block whose margin
reaches that block's threshold, the later blocks are not run for it, and thresholds are chosen on held-out images for a
number of points of accuracy that may be lost.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxinterp.checks import require_finite, require_labels
from jaxinterp.coded.codes import Code
from jaxinterp.coded.network import CodedResNeXt
from jaxinterp.coded.surgery import costs
from jaxinterp.data.batches import padded_batches


class Decoded(NamedTuple):
    """What `decode` returns.

    Attributes:
        classes: the class that the energies speak for, (batch,).
        margins: the share of energy by which it leads the next, in [0, 1], (batch,).
    """

    classes: Int[Array, " batch"]
    margins: Float[Array, " batch"]


def decode(energies: Float[Array, "batch paths"], code: Code) -> Decoded:
    """Read the class off a block's energies.

    Args:
        energies: (batch, N), ≥ 0, of all paths.
        code: the block's code.

    Returns:
        Classes and margins.

    Raises:
        ValueError: not N energies, negative or not finite ones, an image without any, or a code of a single word,
            which leads no other.

    Example:
        >>> found = decode(jnp.array([[3.0, 0.0, 1.0, 0.0]]), Code(("1100", "1010", "0011")))
        >>> int(found.classes[0]), float(found.margins[0])
        (1, 0.25)

    Source: arXiv 2202.05343, Sec. 4.4.
    """
    if energies.shape[1] != code.length:
        raise ValueError(f"energies: got {energies.shape[1]} paths, expected the code's {code.length}")
    if code.classes < 2:
        raise ValueError("code: got a single word, expected at least two to tell apart")
    total = energies.sum(1)
    if not isinstance(total, jax.core.Tracer) and not bool((energies >= 0).all() & jnp.isfinite(energies).all()):
        raise ValueError("energies: got values that are negative, NaN or infinite, expected mean squares")
    if not isinstance(total, jax.core.Tracer) and not bool((total > 0).all()):
        row = int(jnp.argmin(total > 0))
        raise ValueError(f"energies: image {row} has a total of {float(total[row])}, expected a positive number")
    scores = jnp.matmul(energies, jnp.asarray(code.table, energies.dtype).T, precision="highest")
    first, second = jnp.moveaxis(jax.lax.top_k(scores, 2)[0], 1, 0)
    return Decoded(scores.argmax(1), (first - second) / total)


class BlockPredictions(NamedTuple):
    """What every coded block and the whole network say of images.

    Attributes:
        classes: the decoded class of each coded block, then that of the logits, (blocks + 1, n).
        margins: the margin of each coded block, (blocks, n).
    """

    classes: Int[np.ndarray, "stops n"]
    margins: Float[np.ndarray, "blocks n"]


@partial(jax.jit, static_argnums=0)
def _everywhere(model: CodedResNeXt, variables: Any, images: Array) -> tuple[Array, Array]:
    logits, energies = model.apply(variables, images, energies=True)  # type: ignore[misc]
    found = [decode(energy, code) for energy, code in zip(energies, model.codes, strict=True)]
    classes = jnp.stack([*(one.classes for one in found), logits.argmax(-1)])
    return classes, jnp.stack([one.margins for one in found])


def decode_blocks(
    model: CodedResNeXt, variables: Any, images: Float[np.ndarray, "n h w c"], batch: int = 256
) -> BlockPredictions:
    """Decode every coded block of a whole pass.

    Args:
        model: a network with codes.
        variables: its variables.
        images: (n, H, W, C) in [0, 1].
        batch: images of one pass; the last batch is padded.

    Returns:
        Classes and margins.

    Raises:
        ValueError: a network without codes, no images, NaN, or an image without energy in a block.
    """
    _check(model, images)
    parts = [
        [np.asarray(a)[:, :real] for a in _everywhere(model, variables, x)]
        for _, real, (x,) in padded_batches(batch, images)
    ]
    seen = BlockPredictions(*(np.concatenate(side, axis=1) for side in zip(*parts, strict=True)))
    _require_finite(seen.margins)
    return seen


def _check(model: CodedResNeXt, images: Any) -> None:
    model.require_codes()
    if not len(images):
        raise ValueError("images: got none, expected at least one")
    require_finite("images", images)


def _require_finite(margins: np.ndarray) -> None:
    if not np.isfinite(margins).all():
        wrong = int(np.argmin(np.isfinite(np.atleast_2d(margins)).all(0)))
        raise ValueError(f"energies: image {wrong} has none in a block, or NaN, expected a positive total")


def choose_thresholds(
    held: BlockPredictions, labels: Int[np.ndarray, " n"], points: float
) -> Float[np.ndarray, " blocks"]:
    """A margin for every coded block from which an image may leave there, for so much accuracy lost at most.

    Every block may spend the same share of the points. Block by block, from the first, the surest of the images that
    are still there leave: as many as leave the loss within that share. Lost are those that only the whole network has
    right, less those that only the block has right.

    Args:
        held: what the blocks say of held-out images.
        labels: their true classes.
        points: accuracy that may be lost, in [0, 1): 0.005 is half a point.

    Returns:
        Thresholds in [0, ∞]; ∞ where nobody may leave.

    Raises:
        ValueError: `points` out of range, not one label for each image, or margins that are not finite.
    """
    if not 0 <= points < 1:
        raise ValueError(f"points: got {points}, expected a share in [0, 1)")
    require_labels("labels", labels, held.classes.shape[1])
    _require_finite(held.margins)
    right = held.classes == labels
    blocks = len(held.margins)
    thresholds, here = np.full(blocks, np.inf), np.ones(len(labels), bool)
    for block in range(blocks):
        index = np.flatnonzero(here)
        index = index[np.argsort(-held.margins[block, index], kind="stable")]
        lost = np.cumsum(right[-1, index].astype(int) - right[block, index])
        ends = np.append(np.diff(held.margins[block, index]) < 0, True)  # equal margins leave together
        fit = np.flatnonzero(ends & (lost <= points * len(labels) / blocks))
        if len(fit):
            thresholds[block] = held.margins[block, index[fit[-1]]]
            here &= held.margins[block] < thresholds[block]
    return thresholds


def exit_blocks(
    seen: BlockPredictions, thresholds: Float[np.ndarray, " blocks"]
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """Where images leave, and the class that they leave with.

    Args:
        seen: what the blocks say.
        thresholds: as `choose_thresholds` gives them.

    Returns:
        The coded block, counted from 0, or their number for the whole network, (n,); and the class, (n,).

    Raises:
        ValueError: not one threshold for each coded block, or NaN.

    Example:
        >>> seen = BlockPredictions(np.array([[1, 2], [0, 0]]), np.array([[0.5, 0.1]]))
        >>> [part.tolist() for part in exit_blocks(seen, np.array([0.3]))]
        [[0, 1], [1, 0]]
    """
    if len(thresholds) != len(seen.margins):
        raise ValueError(
            f"thresholds: got {len(thresholds)}, expected one for each of {len(seen.margins)} coded blocks"
        )
    if np.isnan(thresholds).any():
        raise ValueError("thresholds: got NaN, expected numbers, inf to let nobody leave")
    sure = np.concatenate([seen.margins >= thresholds[:, None], np.ones((1, seen.classes.shape[1]), bool)])
    stop = sure.argmax(0)
    return stop, np.take_along_axis(seen.classes, stop[None], 0)[0]


def compute_spent(model: CodedResNeXt, stops: Int[np.ndarray, " n"], image_shape: tuple[int, int, int]) -> float:
    """Multiply-adds of images that leave early, as a share of the whole network's.

    Args:
        model: a network with codes.
        stops: as `exit_blocks` gives them.
        image_shape: (H, W, C).

    Returns:
        The mean share in (0, 1]; the block at which an image leaves is counted whole.

    Raises:
        ValueError: no stop, one that the network does not have, or no image's shape.
    """
    most = len(model.codes)
    if len(image_shape) != 3 or min(image_shape) < 1:
        raise ValueError(f"image_shape: got {image_shape}, expected (H, W, C), each at least 1")
    if not len(stops) or not 0 <= stops.min() <= stops.max() <= most:
        seen = f"{stops.min()}..{stops.max()}" if len(stops) else "none"
        raise ValueError(f"stops: got {seen}, expected coded blocks in [0, {most}]")
    sums = np.cumsum([part.multiply_adds for part in costs(model, image_shape)])
    ends = [i for i, (stage, _) in enumerate(model.blocks, 1) if stage.code is not None]
    return float(np.mean(np.array([*(sums[i] for i in ends), sums[-1]])[stops]) / sums[-1])


@partial(jax.jit, static_argnums=(0, 3, 4))
def _segment(model: CodedResNeXt, variables: Any, x: Array, first: int, last: int | None) -> Any:
    out: Any = model.apply(variables, x, energies=True, first=first, last=last)
    features, energies = out
    if last is None:
        return features.argmax(-1)
    code = model.blocks[last - 1][0].code
    assert code is not None
    return features, decode(energies[-1], code)


@jax.jit
def _compact(x: Array, index: Array) -> Array:
    return jnp.take(x, index, axis=0)


class EarlyExit:
    """A network that stops at the first coded block that is sure enough; later blocks are not run for those images.

    Images that go on are gathered into batches of half the size, a quarter and so on, so that a handful of compiled
    programs serves every batch.
    """

    def __init__(self, model: CodedResNeXt, variables: Any, thresholds: Sequence[float] | np.ndarray) -> None:
        """Take a network apart at its coded blocks.

        Args:
            model: a network with codes.
            variables: its variables.
            thresholds: a margin for each coded block; ∞ to let nobody leave there.

        Raises:
            ValueError: not one threshold for each coded block, or NaN.
        """
        if len(thresholds) != len(model.codes):
            raise ValueError(f"thresholds: got {len(thresholds)}, expected one for each of {len(model.codes)} blocks")
        self.model, self.variables, self.thresholds = model, variables, np.asarray(thresholds, float)
        if np.isnan(self.thresholds).any():
            raise ValueError("thresholds: got NaN, expected numbers, inf to let nobody leave")

    def __call__(
        self, images: Float[np.ndarray, "n h w c"] | Float[Array, "n h w c"]
    ) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
        """Classify one batch of images.

        Returns:
            The class of each image, and where it left, as `exit_blocks` counts.
        """
        count = len(images)
        _check(self.model, images)
        classes, stops = np.zeros(count, int), np.full(count, len(self.thresholds))
        x, here, first = jnp.asarray(images), np.arange(count), 0
        ends = [i for i, (stage, _) in enumerate(self.model.blocks, 1) if stage.code is not None]
        for block, (last, threshold) in enumerate(zip(ends, self.thresholds, strict=True)):
            if np.isposinf(threshold):
                continue
            x, found = _segment(self.model, self.variables, x, first, last)
            decoded, margins = jax.device_get(found)
            _require_finite(margins[: len(here)])
            sure, first = margins[: len(here)] >= threshold, last
            classes[here[sure]], stops[here[sure]] = decoded[: len(here)][sure], block
            rows = np.flatnonzero(~sure)
            here = here[rows]
            if not len(here):
                return classes, stops
            size = len(x)
            while size >= 2 * len(here):
                size = -(-size // 2)
            if len(rows) < len(x):
                x = _compact(x, jnp.asarray(np.resize(rows, size)))
        classes[here] = np.asarray(_segment(self.model, self.variables, x, first, None))[: len(here)]
        return classes, stops
