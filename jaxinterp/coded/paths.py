"""Paths of a coded network: their shares of every logit, and the accuracy lost without them.

Avranas and Kountouris, arXiv 2202.05343 ("Coded ResNeXt"). In a residual network a logit is the sum of what every
block's paths pass to it through the shortcuts above them, of the stem, and of constants:

    f_k(x) = Σ_l Σ_n <g_l, t̄_ln> + stem_k + shift_k         g_l: derivative of f_k by block l's sum, later paths held

so that each path of each block has a signed share, and all shares sum to the logit exactly. The paper shows removals
(Fig. 2a) averaged over classes; `specificity` measures for each class which others lose without its paths.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxinterp.checks import require, require_finite, require_labels
from jaxinterp.coded.network import CodedResNeXt, Keep
from jaxinterp.data.batches import padded_batches
from jaxinterp.explain.attribution import Attribution
from jaxinterp.explain.batches import MAX_BYTES, Targets
from jaxinterp.explain.decompose import decompose
from jaxinterp.explain.explainable import Explainable, explainable
from jaxinterp.explain.program import INPUT


class PathShares(NamedTuple):
    """Parts of the logits by name, of `by_block`; T is the number of targets.

    Attributes:
        paths: contribution of every path, for each block, coded or not, (batch, T, paths).
        stem: contribution of the input through the shortcuts alone, (batch, T).
        shift: constants of BatchNorm on the way, (batch, T).
    """

    paths: list[Float[Array, "batch t n"]]
    stem: Float[Array, "batch t"]
    shift: Float[Array, "batch t"]


def path_shares(net: Any, x: Any, targets: Targets = None, *, max_bytes: int = MAX_BYTES) -> Attribution:
    """Compute the contribution of every path of every block to every logit, in one backward pass.

    Σ paths + stem + shift = logits up to `residual`.

    Args:
        net: `explainable(model, variables)` of a `CodedResNeXt`.
        x: images, (batch, H, W, C) in [0, 1].
        targets: classes, as in `decompose`.
        max_bytes: as in `decompose`.

    Returns:
        An `Attribution` with contributions (batch, T, P + 1): those of all paths, block after block, then of the stem,
        the input through the shortcuts alone; its bias are constants of BatchNorm on the way. `by_block` names them.

    Source: the decomposition is ours; paths as in arXiv 2202.05343, Fig. 1.
    """
    net = explainable(net)
    model = coded_network(net)
    straight = explainable(model, net.variables, keywords={"shortcuts_only": True})
    levels = [INPUT, *(f"block_{i}/paths" for i in range(1, len(model.blocks) + 1))]
    first, *parts = decompose(straight, x, targets, layer=levels, max_bytes=max_bytes)
    shares = [
        part.contributions.reshape(*part.logits.shape, -1, stage.present, stage.width).sum((2, 4))
        for part, (stage, _) in zip(parts, model.blocks, strict=True)
    ]
    logits, stem = first.logits, first.contributions.sum((2, 3, 4))
    # Each level's bias is the logit less that level's linear part; their sum keeps what no level explains.
    shift = sum((part.bias for part in parts), first.bias) - len(shares) * logits
    each = jnp.concatenate([*shares, stem[..., None]], axis=-1)
    return Attribution(
        each,
        logits,
        first.targets,
        shift,
        logits - each.sum(-1) - shift,
        curvature=jnp.stack([part.curvature for part in (first, *parts)]).max(0),
        discrepancy=first.discrepancy,
        method="path_shares",
        layer="paths",
    )


def coded_network(net: Explainable) -> CodedResNeXt:
    """Return the Coded ResNeXt that is explained.

    Raises:
        ConfigError: it is another network.
    """
    model = getattr(net.network, "module", None)
    require(
        isinstance(model, CodedResNeXt), "net", type(model).__name__, "a CodedResNeXt, explainable(model, variables)"
    )
    assert isinstance(model, CodedResNeXt)
    return model


def by_block(model: CodedResNeXt, shares: Attribution) -> PathShares:
    """Return the parts of `path_shares` by name."""
    ends = np.cumsum([stage.present for stage, _ in model.blocks])
    *paths, stem = jnp.split(shares.contributions, ends, axis=-1)
    return PathShares(paths, stem[..., 0], shares.bias)


@partial(jax.jit, static_argnames="active")
def sample_removal(
    words: Float[Array, "batch paths"], count: int | Int[Array, ""], active: bool, key: PRNGKeyArray
) -> Float[Array, "batch paths"]:
    """Sample a `keep` mask, (batch, N), that removes paths of each image, drawn without replacement.

    Args:
        words: the word of each image's class, (batch, N).
        count: number of paths to remove; all of them if there are fewer.
        active: among the paths that are active for the image's class, or among the others.
        key: a JAX key.

    Source: arXiv 2202.05343, Sec. 4.2.
    """
    eligible = (words > 0.5) == active
    order = jnp.where(eligible, jax.random.uniform(key, words.shape), 2.0)
    rank = jnp.argsort(jnp.argsort(order, axis=1), axis=1)
    return ((rank >= count) | ~eligible).astype(words.dtype)


@partial(jax.jit, static_argnums=0)
def masked_logits(model: CodedResNeXt, variables: Any, images: Float[Array, "n h w c"], keep: Keep) -> Array:
    """Return the logits of a network of which only some paths are kept; see `CodedResNeXt`."""
    logits: Array = model.apply(variables, images, keep=keep)  # type: ignore[assignment]
    return logits


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
    """Measure accuracy without paths of one block, active for an image's class or not, drawn anew for each image.

    Args:
        model: a network with codes.
        variables: its variables.
        images: (N, H, W, C) in [0, 1].
        labels: their true classes.
        block: which coded block, counted from 0.
        counts: numbers of paths to remove; up to the weight of the code (active) or the rest (not).
        active: as in `sample_removal`.
        key: a JAX key.
        batch: images per pass.

    Source: arXiv 2202.05343, Fig. 2a.
    """
    _check(model, images, labels)
    require(0 <= block < len(model.codes), "block", block, f"0 to {len(model.codes) - 1}")
    code = model.codes[block]
    limit = code.weight if active else code.length - code.weight
    require(set(counts) <= set(range(limit + 1)), "counts", list(counts), f"integers from 0 to {limit}")
    correct = np.zeros(len(counts))
    keep: list[Array | None] = [None] * len(model.codes)
    for start, real, (x, y) in padded_batches(batch, images, labels.astype(np.int32)):
        words = jnp.asarray(code.table, jnp.float32)[y]
        for i, count in enumerate(counts):
            subkey = jax.random.fold_in(jax.random.fold_in(key, start), i)
            keep[block] = sample_removal(words, count, active=active, key=subkey)
            correct[i] += int((masked_logits(model, variables, x, keep).argmax(-1) == y)[:real].sum())
    return correct / len(labels)


class Specificity(NamedTuple):
    """Accuracy lost by each class without the paths of each class.

    Attributes:
        accuracy: of each class, nothing removed, (classes,); NaN for a class without images.
        lost: accuracy lost on class j when the paths of class i are removed, (i, j).
        overlap: number of paths that i and j share, over all coded blocks, (i, j).
    """

    accuracy: Float[np.ndarray, " classes"]
    lost: Float[np.ndarray, "classes classes"]
    overlap: Int[np.ndarray, "classes classes"]


def specificity(
    model: CodedResNeXt,
    variables: Any,
    images: Float[np.ndarray, "n h w c"],
    labels: Int[np.ndarray, " n"],
    batch: int = 256,
) -> Specificity:
    """Remove all paths of class i, for all images, and measure the accuracy that each class j loses.

    Args:
        model: a network with codes.
        variables: its variables.
        images: (N, H, W, C) in [0, 1].
        labels: their classes; a class without images gets NaN.
        batch: images per pass.

    Returns:
        The losses beside the number of shared paths. If paths are as disentangled as the code, the loss grows with the
        overlap and is largest on the diagonal.

    Source: ours; the paper removes paths of each image's own class only.
    """
    _check(model, images, labels)
    classes = model.classes
    tables = [code.table[:classes].astype(np.float32) for code in model.codes]
    keeps = [np.vstack([1 - table, np.ones_like(table[:1])]) for table in tables]  # the last row removes nothing
    correct = np.zeros((classes + 1, classes))
    for _, real, (x, y) in padded_batches(batch, images, labels.astype(np.int32)):
        for i in range(classes + 1):
            logits = masked_logits(model, variables, x, [jnp.asarray(keep[i]) for keep in keeps])
            correct[i] += np.bincount(np.asarray(y)[:real], np.asarray(logits.argmax(-1) == y)[:real], classes)
    with np.errstate(invalid="ignore"):
        accuracy = correct / np.bincount(labels, minlength=classes)
    overlap = np.sum([table @ table.T for table in tables], 0)
    return Specificity(accuracy[-1], accuracy[-1] - accuracy[:-1], overlap.astype(int))
