"""What the paths of a coded network are worth: their shares of every logit, and what is lost without them.

Avranas and Kountouris, arXiv 2202.05343 ("Coded ResNeXt"). In a residual network a logit is the sum of what every
block's paths hand on to it through the shortcuts above them, of the stem, and of constants:

    f_k(x) = Σ_l Σ_n <g_l, t̄_ln> + stem_k + shift_k         g_l: derivative of f_k by block l's sum, later paths held

so that each path of each block has a signed share, and all shares sum to the logit exactly. The paper shows removals
(Fig. 2a) averaged over classes; `specificity` asks which class pays for whose paths.
"""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxinterp.checks import require_finite, require_labels
from jaxinterp.coded.network import CodedResNeXt
from jaxinterp.data.batches import padded_batches
from jaxinterp.explain.decompose import Targets, decompose


class PathShares(NamedTuple):
    """What `path_shares` returns; T is the number of targets.

    Attributes:
        logits: (batch, T).
        paths: for each block, coded or not, what its paths contribute, (batch, T, paths).
        stem: what the input contributes through the shortcuts alone, (batch, T).
        shift: constants of BatchNorm on the way, (batch, T).
        residual: logits less all of these; zero up to rounding, (batch, T).
    """

    logits: Float[Array, "batch t"]
    paths: list[Float[Array, "batch t n"]]
    stem: Float[Array, "batch t"]
    shift: Float[Array, "batch t"]
    residual: Float[Array, "batch t"]


@cache
def _shortcuts(model: CodedResNeXt) -> Callable[..., Array]:
    """The frozen network through whose shortcuts alone derivatives flow; one function for each, compiled once."""
    return partial(model.apply, frozen=True, shortcuts_only=True)  # type: ignore[return-value]


def path_shares(
    model: CodedResNeXt,
    variables: Any,
    x: Float[Array, "batch h w c"],
    targets: Targets = None,
    *,
    max_bytes: int = 2 << 30,
) -> PathShares:
    """The contribution of every path of every block to every logit, in one backward pass.

    Args:
        model: the network.
        variables: its variables.
        x: images, (batch, H, W, C) in [0, 1].
        targets: classes, as in `decompose`.
        max_bytes: as in `decompose`.

    Returns:
        The shares; Σ paths + stem + shift = logits up to `residual`.

    Raises:
        ValueError: as `decompose`.

    Source: the decomposition is ours; paths as in arXiv 2202.05343, Fig. 1.
    """
    levels: list[str | None] = [None, *(f"block_{i}/paths" for i in range(1, len(model.blocks) + 1))]
    parts = decompose(_shortcuts(model), x, targets, layer=levels, variables=variables, max_bytes=max_bytes)
    shares = []
    for part, (stage, _) in zip(parts[1:], model.blocks, strict=True):
        batch, count = part.logits.shape
        shares.append(part.contributions.reshape(batch, count, -1, stage.present, stage.width).sum((2, 4)))
    logits, stem = parts[0].logits, parts[0].contributions.sum((2, 3, 4))
    # Each level's bias is the logit less that level's own linear part; what no level explains is left of their sum.
    shift = sum((part.bias for part in parts[1:]), parts[0].bias) - len(shares) * logits
    explained = sum((share.sum(-1) for share in shares), stem + shift)
    return PathShares(logits, shares, stem, shift, logits - explained)


def drawn_removal(
    words: Float[Array, "batch paths"], count: int | Int[Array, ""], active: bool, key: PRNGKeyArray
) -> Float[Array, "batch paths"]:
    """A `keep` mask without so many paths of each image, drawn without replacement.

    Args:
        words: the word of each image's class, (batch, N).
        count: how many paths to remove; at most as many as there are.
        active: among the paths that are active for the image's class, or among the others.
        key: a JAX key.

    Returns:
        0 for a removed path and 1 else, (batch, N).

    Raises:
        ValueError: a negative count, or more than there are paths to remove; not seen under `jit`.

    Source: arXiv 2202.05343, Sec. 4.2.
    """
    eligible = (words > 0.5) == active
    if not any(isinstance(value, jax.core.Tracer) for value in (count, words)):
        most = int(eligible.sum(1).min())
        if not 0 <= int(count) <= most:
            raise ValueError(f"count: got {int(count)}, expected 0 to {most}, the fewest such paths of an image")
    order = jnp.where(eligible, jax.random.uniform(key, words.shape), 2.0)
    rank = jnp.argsort(jnp.argsort(order, axis=1), axis=1)
    return ((rank >= count) | ~eligible).astype(words.dtype)


@partial(jax.jit, static_argnums=0)
def _right(
    model: CodedResNeXt, variables: Any, images: Array, labels: Array, keep: Sequence[Array | None]
) -> Float[Array, " batch"]:
    logits = model.apply(variables, images, keep=keep)
    return (logits.argmax(-1) == labels).astype(jnp.float32)  # type: ignore[union-attr]


@partial(jax.jit, static_argnums=(0, 4, 6))
def _right_without(
    model: CodedResNeXt,
    variables: Any,
    images: Array,
    labels: Array,
    block: int,
    count: Array,
    active: bool,
    key: PRNGKeyArray,
) -> Float[Array, " batch"]:
    words = jnp.asarray(model.codes[block].table, jnp.float32)[labels]
    keep: list[Array | None] = [None] * len(model.codes)
    keep[block] = drawn_removal(words, count, active, key)
    return _right(model, variables, images, labels, keep)


def _check(model: CodedResNeXt, images: Any, labels: Any) -> None:
    model.require_codes()
    require_finite("images", images)
    require_labels("labels", labels, len(images), min(code.classes for code in model.codes))


def accuracy_without(
    model: CodedResNeXt,
    variables: Any,
    images: Float[np.ndarray, "n h w c"],
    labels: Int[np.ndarray, " n"],
    block: int,
    counts: Sequence[int],
    active: bool,
    key: PRNGKeyArray,
    batch: int = 256,
) -> Float[np.ndarray, " counts"]:
    """Accuracy when paths of one block are removed, for each image others: of its own class, or of none of it.

    Args:
        model: a network with codes.
        variables: its variables.
        images: (N, H, W, C) in [0, 1].
        labels: their true classes.
        block: which coded block, counted from 0.
        counts: how many paths to remove; up to the weight of the code (active) or the rest (not).
        active: remove among the paths of the true class, or among the others.
        key: a JAX key.
        batch: images of one pass.

    Returns:
        The accuracy in [0, 1] for each of `counts`.

    Raises:
        ValueError: labels or counts out of range, images that are not finite, or no such block.

    Source: arXiv 2202.05343, Fig. 2a.
    """
    _check(model, images, labels)
    if not 0 <= block < len(model.codes):
        raise ValueError(f"block: got {block}, expected 0 to {len(model.codes) - 1}")
    code = model.codes[block]
    most = code.weight if active else code.length - code.weight
    if not set(counts) <= set(range(most + 1)):
        raise ValueError(f"counts: got {list(counts)}, expected integers from 0 to {most}")
    right = np.zeros(len(counts))
    for start, real, (x, y) in padded_batches(batch, images, labels.astype(np.int32)):
        for i, count in enumerate(counts):
            one = jax.random.fold_in(jax.random.fold_in(key, start), i)
            found = _right_without(model, variables, x, y, block, jnp.int32(count), active, one)
            right[i] += float(found[:real].sum())
    return right / len(labels)


class Specificity(NamedTuple):
    """What `specificity` returns.

    Attributes:
        accuracy: of each class, nothing removed, (classes,).
        lost: accuracy lost on class j when the paths of class i are removed, (i, j).
        overlap: how many paths i and j share, over all blocks concerned, (i, j).
    """

    accuracy: Float[np.ndarray, " classes"]
    lost: Float[np.ndarray, "classes classes"]
    overlap: Int[np.ndarray, "classes classes"]


def specificity(
    model: CodedResNeXt,
    variables: Any,
    images: Float[np.ndarray, "n h w c"],
    labels: Int[np.ndarray, " n"],
    blocks: Sequence[int] | None = None,
    batch: int = 256,
) -> Specificity:
    """Which class pays for whose paths: remove all paths of class i, for everybody, and look at each class j.

    Args:
        model: a network with codes.
        variables: its variables.
        images: (N, H, W, C) in [0, 1].
        labels: their classes; each class that does not occur gets NaN.
        blocks: the coded blocks in which they are removed, counted from 0; all where None.
        batch: images of one pass.

    Returns:
        The matrix, and how many paths each two classes share. Were paths as disentangled as the code, the loss would
        grow with the overlap, from its largest on the diagonal.

    Raises:
        ValueError: labels out of range, images that are not finite, no such block, none, or one twice.

    Source: ours; the paper removes paths of each image's own class only.
    """
    _check(model, images, labels)
    concerned = tuple(range(len(model.codes)) if blocks is None else blocks)
    if not set(concerned) <= set(range(len(model.codes))) or not 0 < len(set(concerned)) == len(concerned):
        raise ValueError(f"blocks: got {concerned}, expected different ones from 0 to {len(model.codes) - 1}")
    classes = model.classes
    tables = [code.table[:classes].astype(np.float32) for code in model.codes]
    right = np.zeros((classes + 1, classes))
    for _, real, (x, y) in padded_batches(batch, images, labels.astype(np.int32)):
        for i in range(classes + 1):  # the last: nothing removed
            keep = [
                jnp.ones(table.shape[1]) if i == classes or block not in concerned else jnp.asarray(1 - table[i])
                for block, table in enumerate(tables)
            ]
            found = np.asarray(_right(model, variables, x, y, keep))[:real]
            right[i] += np.bincount(np.asarray(y)[:real], found, classes)
    with np.errstate(invalid="ignore"):
        accuracy = right / np.bincount(labels, minlength=classes)
    overlap = sum(tables[block].astype(np.int64) @ tables[block].astype(np.int64).T for block in concerned)
    return Specificity(accuracy[-1], accuracy[-1] - accuracy[:-1], np.asarray(overlap))
