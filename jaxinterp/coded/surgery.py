"""Binary classifiers cut out of a coded network, without the paths that their class does not use, and their cost.

Avranas and Kountouris, arXiv 2202.05343 ("Coded ResNeXt"), Sec. 4.3.
"""

from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from jaxinterp.checks import require
from jaxinterp.coded.codes import require_integer
from jaxinterp.coded.network import CodedResNeXt


def binary_classifier(model: CodedResNeXt, variables: Any, class_index: int) -> tuple[CodedResNeXt, Any]:
    """Cut out the part of a trained network that serves one class, as a smaller network with one logit.

    In every coded block the paths that the class does not use are removed, with their parameters; energies are still
    divided by N, as in the whole network with the energies of those paths at zero. Everything else, BatchNorm's
    statistics too, is kept, and of the classifier one column.

    Args:
        model: the network, with its codes.
        variables: its variables.
        class_index: the class, in [0, classes).

    Returns:
        The smaller network and its variables.

    Raises:
        ConfigError: `class_index` out of range, a network without codes or with paths removed before, or variables of
            another number of paths, width or classes.

    Source: arXiv 2202.05343, Sec. 4.3.
    """
    require_integer("class_index", class_index, 0, model.classes - 1)
    model.require_codes()
    cut = any(stage.kept is not None for stage in model.stages)
    require(not cut, "model", "a network with paths removed", "the whole network")
    params = dict(variables["params"])
    stats = dict(variables["batch_stats"])
    for i in model.coded_blocks:
        name, stage = f"block_{i}", model.blocks[i - 1][0]
        assert stage.code is not None
        shape, expected = params[name]["expand_kernel"].shape, (stage.paths, stage.width, stage.features)
        require(shape == expected, "variables", f"expand_kernel {shape} in {name}", f"{expected} as in the model")
        paths = np.flatnonzero(stage.code.table[class_index])
        channels = (paths[:, None] * stage.width + np.arange(stage.width)).ravel()
        block, norms = params[name], ("norm_reduce", "norm_inner")
        params[name] = {
            **block,
            **{key: _select(block[key], channels) for key in ("reduce", "inner_kernel", *norms)},
            "expand_kernel": block["expand_kernel"][paths],
        }
        stats[name] = {**stats[name], **{key: _select(stats[name][key], channels) for key in norms}}
    kernel = params["classifier"]["kernel"]
    require(kernel.shape[1] == model.classes, "variables", f"{kernel.shape[1]} classes", f"{model.classes}")
    params["classifier"] = {"kernel": kernel[:, class_index : class_index + 1]}
    stages = tuple(s if s.code is None else replace(s, kept=s.code.weight) for s in model.stages)
    return model.clone(stages=stages, classes=1, drop=0.0, ghost=None), {"params": params, "batch_stats": stats}


def _select(tree: Any, channels: Int[np.ndarray, " kept"]) -> Any:
    """Select channels of the last axis of every array."""
    return jax.tree.map(lambda leaf: leaf[..., channels], tree)


def keep_only(model: CodedResNeXt, class_index: int) -> list[Float[np.ndarray, " paths"]]:
    """Return the `keep` argument that leaves a whole network only the paths of one class: its words.

    Args:
        model: the network, with its codes.
        class_index: the class, in [0, classes).

    Returns:
        0 and 1, (paths,), for each coded block.

    Raises:
        ConfigError: `class_index` out of range.
    """
    require_integer("class_index", class_index, 0, model.classes - 1)
    return [code.table[class_index].astype(np.float32) for code in model.codes]


@dataclass(frozen=True)
class Cost:
    """Cost of one part of a network.

    Attributes:
        name: "stem", "block_1", ..., "classifier".
        parameters: number of trained parameters.
        shortcut: number of them in a projection shortcut and its BatchNorm.
        multiply_adds: of its convolutions and products for one image, without energies and normalization.
    """

    name: str
    parameters: int
    shortcut: int
    multiply_adds: int


def costs(model: CodedResNeXt, image_shape: tuple[int, int, int]) -> list[Cost]:
    """Count parameters and multiply-adds of every part of a network.

    Args:
        model: the network, whole or with paths removed.
        image_shape: (H, W, C) of one image in pixels.

    Returns:
        One entry for the stem, each block and the classifier.
    """
    height, width, channels = image_shape
    side, strides = model.stem

    def shrunk(size: int, by: int) -> int:
        return -(-size // by)

    height, width = shrunk(height, strides), shrunk(width, strides)
    parts = [Cost("stem", 64 * (side**2 * channels + 2), 0, height * width * 64 * side**2 * channels)]
    if strides != 1:
        height, width = shrunk(height, 2), shrunk(width, 2)
    channels = 64
    for i, (stage, step) in enumerate(model.blocks, 1):
        before = height * width
        height, width = shrunk(height, step), shrunk(width, step)
        after, inner, d, c = height * width, stage.present * stage.width, stage.width, stage.features
        products = before * channels * inner, after * 9 * d * inner, after * inner * c
        parameters = inner * channels + 2 * inner + 9 * d * inner + 2 * inner + inner * c + 2 * c
        shortcut = channels * c + 2 * c if step != 1 or channels != c else 0
        adds = sum(products) + (after * channels * c if shortcut else 0)
        parts.append(Cost(f"block_{i}", parameters + shortcut, shortcut, adds))
        channels = c
    parts.append(Cost("classifier", channels * model.classes, 0, channels * model.classes))
    return parts
