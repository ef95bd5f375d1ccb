"""Interpretable depth: how far below the output a network's decision can be read.

A network's output is decomposed at every level, s_l = a_l ⊙ W_l(x)ᵀe_k, and each level's spatial contribution map is
scored by the grid pointing game, bilinearly brought to the image. In a CoDA layer the contributions sum to the logit
minus a constant. In the conventional trunk of a hybrid they are input × gradient, which leaves a bias that depends on
the input. The curve of scores over levels is compared with that of a conventional network alone.

Böhle, Fritz, Schiele, "Optimizing for Interpretability: Convolutional Dynamic Alignment Networks", TPAMI 2022
(arXiv 2109.13004); the score is that of CVPR 2021, Eq. 11.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxinterp.checks import require
from jaxinterp.explain.attribution import Attribution
from jaxinterp.explain.batches import MAX_BYTES
from jaxinterp.explain.decompose import decompose
from jaxinterp.explain.explainable import explainable
from jaxinterp.explain.metrics.localization import Grids, Localization, grid_pointing_game, tile_grid
from jaxinterp.explain.program import INPUT

_LEVEL = re.compile(r"(?:trunk/|coda/)?(?:stem|block_\d+|conv_\d+|layer_\d+)")


class Level(NamedTuple):
    """One point of the curve.

    Attributes:
        name: path of the activation, or "input" for what the network reads.
        shape: (height, width, channels) of the activation on a grid of images.
        unexplained: the part of the logits that depends on the input and that this level's contributions leave out,
            max |b_l − b_top| / max |f − b_top| over the grids; ≤ 1e-4 where the level is exact.
        localization: grid pointing scores of the layer's contribution maps (positive contributions only).
    """

    name: str
    shape: tuple[int, ...]
    unexplained: float
    localization: Localization


def level_names(net: Any, x: Float[Array, "n h w c"]) -> tuple[str, ...]:
    """List "input", then the paths of stem, residual blocks, convolutions and CoDA layers in the order of their calls.

    The network is a CoDA net, a hybrid, a `CifarResNet` or a `VGG`.
    """
    return (INPUT, *(name for name in explainable(net).layers(x) if _LEVEL.fullmatch(name)))


def interpretable_depth(
    net: Any,
    images: Float[Array | np.ndarray, "images h w c"],
    grids: Grids,
    levels: Sequence[str] | None = None,
    *,
    max_bytes: int = MAX_BYTES,
) -> list[Level]:
    """Score the contributions of every layer of a network by the grid pointing game.

    Args:
        net: a network that is affine once frozen, see `explainable`. The maps of the level "input" are those of what
            it reads: of a CoDA Net all six channels' contributions.
        images: (images, H, W, C).
        grids: from `sample_grids`, drawn once and used for every network that is compared.
        levels: names from `level_names`, ordered from the image to the output; None for all.
        max_bytes: bytes that one pass may take by estimate.

    Returns:
        One `Level` per name, in the same order.

    Source: TPAMI 2022 for the curve; CVPR 2021, Eq. 5–8 (contributions) and Eq. 11 (score).
    """
    net, pool = explainable(net), jnp.asarray(images)
    if levels is None:
        levels = level_names(net, tile_grid(pool[grids.images[:1]]))
    require(levels, "levels", "none", "at least one name")
    seen: dict[str, list[tuple[Array, Array]]] = {}
    shapes, scores = {}, {}
    for name in levels:
        here = net.at(name)

        def attribute(net: Any, x: Array, classes: Array, name: str = name) -> Attribution:
            parts = decompose(net, x, classes, max_bytes=max_bytes)
            seen.setdefault(name, []).append((parts.logits, parts.bias))
            shapes[name] = parts.contributions.shape[2:]
            return parts

        scores[name] = grid_pointing_game(here, attribute, pool, grids=grids, upsample="linear", max_bytes=max_bytes)
    joined = {name: [np.concatenate(arrays) for arrays in zip(*passes, strict=True)] for name, passes in seen.items()}
    logits, top = joined[levels[-1]]
    gaps = {name: np.abs(bias - top).max() / np.abs(logits - top).max() for name, (_, bias) in joined.items()}
    return [Level(name, shapes[name], float(gaps[name]), scores[name]) for name in levels]
