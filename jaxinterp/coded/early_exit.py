"""Early decoding: a block's energies tell the class, and images with a clear margin leave the network there.

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

from jaxinterp.checks import require, require_at_least, require_finite, require_labels
from jaxinterp.coded.codes import Code
from jaxinterp.coded.network import CodedResNeXt
from jaxinterp.coded.surgery import costs
from jaxinterp.data.batches import padded_batches


class Decoded(NamedTuple):
    """Classes decoded from one block's energies.

    Attributes:
        classes: the class whose word is nearest, (batch,).
        margins: the share of energy by which it leads the next, in [0, 1], (batch,).
    """

    classes: Int[Array, " batch"]
    margins: Float[Array, " batch"]


def decode(energies: Float[Array, "batch paths"], code: Code) -> Decoded:
    """Read the class off a block's energies.

    Args:
        energies: (batch, N), finite and ≥ 0, of all paths; no image without any.
        code: the block's code, of at least two words.

    Example:
        >>> decoded = decode(jnp.array([[3.0, 0.0, 1.0, 0.0]]), Code(("1100", "1010", "0011")))
        >>> int(decoded.classes[0]), float(decoded.margins[0])
        (1, 0.25)

    Source: arXiv 2202.05343, Sec. 4.4.
    """
    require(energies.shape[1] == code.length, "energies", f"{energies.shape[1]} paths", f"the code's {code.length}")
    require(code.classes > 1, "code", "a single word", "at least two to tell apart")
    total = energies.sum(1)
    if not isinstance(energies, jax.core.Tracer):
        require_finite("energies", energies)
        squares = bool((energies >= 0).all() & (total > 0).all())
        require(squares, "energies", "negative values, or an image without any", "mean squares, not all zero")
    scores = jnp.matmul(energies, jnp.asarray(code.table, energies.dtype).T, precision="highest")
    first, second = jnp.moveaxis(jax.lax.top_k(scores, 2)[0], 1, 0)
    return Decoded(scores.argmax(1), (first - second) / total)


class BlockPredictions(NamedTuple):
    """Predictions of every coded block and of the whole network.

    Attributes:
        classes: the decoded class of each coded block, then the class of the logits, (blocks + 1, n).
        margins: the margin of each coded block, (blocks, n).
    """

    classes: Int[np.ndarray, "stops n"]
    margins: Float[np.ndarray, "blocks n"]


@partial(jax.jit, static_argnums=0)
def _decode_batch(model: CodedResNeXt, variables: Any, images: Array) -> tuple[Array, Array]:
    logits, energies = model.apply(variables, images, energies=True)  # type: ignore[misc]
    decoded = [decode(energy, code) for energy, code in zip(energies, model.codes, strict=True)]
    classes = jnp.stack([*(block.classes for block in decoded), logits.argmax(-1)])
    return classes, jnp.stack([block.margins for block in decoded])


def decode_blocks(
    model: CodedResNeXt, variables: Any, images: Float[np.ndarray, "n h w c"], batch: int = 256
) -> BlockPredictions:
    """Decode every coded block in one pass through the network.

    Args:
        model: a network with codes.
        variables: its variables.
        images: (n, H, W, C) in [0, 1].
        batch: images per pass; the last batch is padded.

    Raises:
        ConfigError: an image has no energy in a block, or NaN.
    """
    _check(model, images)
    parts = [
        [np.asarray(a)[:, :real] for a in _decode_batch(model, variables, x)]
        for _, real, (x,) in padded_batches(batch, images)
    ]
    predictions = BlockPredictions(*(np.concatenate(part, axis=1) for part in zip(*parts, strict=True)))
    _require_energy(predictions.margins)
    return predictions


def _check(model: CodedResNeXt, images: Any) -> None:
    model.require_codes()
    require(len(images), "images", "none", "at least one")
    require_finite("images", images)


def _require_energy(margins: np.ndarray) -> None:
    """Raise for margins that are not finite: quotients of energies that sum to zero, or are NaN themselves."""
    wrong = np.flatnonzero(~np.isfinite(np.atleast_2d(margins)).all(0))
    require(not wrong.size, "energies", f"a sum of zero or NaN for image {wrong[:1]} in a block", "positive sums")


def _require_thresholds(thresholds: np.ndarray, blocks: int) -> None:
    fits = len(thresholds) == blocks and not np.isnan(thresholds).any()
    require(fits, "thresholds", thresholds, f"one for each of {blocks} coded blocks, inf to let no image leave")


def choose_thresholds(
    held: BlockPredictions, labels: Int[np.ndarray, " n"], points: float
) -> Float[np.ndarray, " blocks"]:
    """Choose the margin at which images leave each coded block, for a bounded loss of accuracy.

    Every block may spend the same share of the points. Block by block, from the first, the remaining images with the
    largest margins leave: as many as keep the loss within that share. The loss counts the images that only the whole
    network classifies correctly, less those that only the block does.

    Args:
        held: predictions for held-out images.
        labels: their true classes.
        points: accuracy that may be lost, in [0, 1): 0.005 is half a point.

    Returns:
        Thresholds in [0, ∞]; ∞ where no image may leave.
    """
    require(0 <= points < 1, "points", points, "a share in [0, 1)")
    require_labels("labels", labels, held.classes.shape[1])
    _require_energy(held.margins)
    correct = held.classes == labels
    blocks = len(held.margins)
    thresholds, remaining = np.full(blocks, np.inf), np.ones(len(labels), bool)
    for block in range(blocks):
        index = np.flatnonzero(remaining)
        index = index[np.argsort(-held.margins[block, index], kind="stable")]
        lost = np.cumsum(correct[-1, index].astype(int) - correct[block, index])
        ends = np.append(np.diff(held.margins[block, index]) < 0, True)  # equal margins leave together
        fit = np.flatnonzero(ends & (lost <= points * len(labels) / blocks))
        if len(fit):
            thresholds[block] = held.margins[block, index[fit[-1]]]
            remaining &= held.margins[block] < thresholds[block]
    return thresholds


def exit_blocks(
    predictions: BlockPredictions, thresholds: Float[np.ndarray, " blocks"]
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """Return where images leave, and with which class.

    Args:
        predictions: from `decode_blocks`.
        thresholds: from `choose_thresholds`, one for each coded block.

    Returns:
        The coded block, counted from 0, or their number for the whole network, (n,); and the class, (n,).

    Example:
        >>> predictions = BlockPredictions(np.array([[1, 2], [0, 0]]), np.array([[0.5, 0.1]]))
        >>> [part.tolist() for part in exit_blocks(predictions, np.array([0.3]))]
        [[0, 1], [1, 0]]
    """
    classes, margins = predictions
    _require_thresholds(thresholds, len(margins))
    leave = np.concatenate([margins >= thresholds[:, None], np.ones((1, classes.shape[1]), bool)])
    stop = leave.argmax(0)
    return stop, np.take_along_axis(classes, stop[None], 0)[0]


def compute_share(model: CodedResNeXt, stops: Int[np.ndarray, " n"], image_shape: tuple[int, int, int]) -> float:
    """Compute the multiply-adds of images that leave early, as a share of the whole network's.

    Args:
        model: a network with codes.
        stops: from `exit_blocks`.
        image_shape: (H, W, C).

    Returns:
        The mean share in (0, 1]; the block at which an image leaves counts in full.
    """
    blocks = model.coded_blocks
    require_at_least("image_shape", image_shape, 1)
    require_labels("stops", stops, len(stops), len(blocks) + 1)
    sums = np.cumsum([part.multiply_adds for part in costs(model, image_shape)])
    return float(np.mean(np.array([*sums[blocks], sums[-1]])[stops]) / sums[-1])


@partial(jax.jit, static_argnums=(0, 3, 4))
def _segment(model: CodedResNeXt, variables: Any, x: Array, first: int, last: int | None) -> Any:
    output, energies = model.apply(variables, x, energies=True, first=first, last=last)  # type: ignore[misc]
    if last is None:
        return output.argmax(-1)
    return output, decode(energies[-1], model.codes[model.coded_blocks.index(last)])  # type: ignore[index]


class EarlyExit:
    """A network that stops at the first coded block with a sufficient margin; later blocks do not run for those images.

    The remaining images are gathered into batches of half the size, a quarter and so on, so that a handful of compiled
    programs serves every batch.

    Args:
        model: a network with codes.
        variables: its variables.
        thresholds: a margin for each coded block; ∞ to let no image leave there.
    """

    def __init__(self, model: CodedResNeXt, variables: Any, thresholds: Sequence[float] | np.ndarray) -> None:
        self.model, self.variables, self.thresholds = model, variables, np.asarray(thresholds, float)
        _require_thresholds(self.thresholds, len(model.codes))

    def __call__(
        self, images: Float[np.ndarray, "n h w c"] | Float[Array, "n h w c"]
    ) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
        """Return the class of each image of a batch, and where it left, as `exit_blocks` counts."""
        _check(self.model, images)
        count = len(images)
        classes, stops = np.zeros(count, int), np.full(count, len(self.thresholds))
        x, remaining, first = jnp.asarray(images), np.arange(count), 0
        for block, (last, threshold) in enumerate(zip(self.model.coded_blocks, self.thresholds, strict=True)):
            if np.isposinf(threshold):
                continue
            x, decoded = _segment(self.model, self.variables, x, first, last)
            predicted, margins = (part[: len(remaining)] for part in jax.device_get(decoded))
            _require_energy(margins)
            leave, first = margins >= threshold, last
            classes[remaining[leave]], stops[remaining[leave]] = predicted[leave], block
            rows, size = np.flatnonzero(~leave), len(x)
            remaining = remaining[rows]
            if not len(rows):
                return classes, stops
            while size >= 2 * len(rows):
                size = -(-size // 2)
            if len(rows) < len(x):
                x = jnp.take(x, jnp.asarray(np.resize(rows, size)), axis=0)
        classes[remaining] = np.asarray(_segment(self.model, self.variables, x, first, None))[: len(remaining)]
        return classes, stops
