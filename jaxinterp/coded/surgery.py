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
        model: the whole network, with its codes.
        variables: its variables.
        class_index: the class, in [0, classes).

    Returns:
        The smaller network and its variables.

    Source: arXiv 2202.05343, Sec. 4.3.
    """
    require_integer("class_index", class_index, 0, model.classes - 1)
    model.require_codes()
    cut = any(stage.kept is not None for stage in model.stages)
    require(not cut, "model", "a network with paths removed", "the whole network")
    params, stats = dict(variables["params"]), dict(variables["batch_stats"])
    for i, code in zip(model.coded_blocks, model.codes, strict=True):
        name, stage = f"block_{i}", model.blocks[i - 1][0]
        shape, expected = params[name]["expand_kernel"].shape, (stage.paths, stage.width, stage.features)
        require(shape == expected, "variables", f"expand_kernel {shape} in {name}", f"{expected} as in the model")
        paths = np.flatnonzero(code.table[class_index])
        channels = (paths[:, None] * stage.width + np.arange(stage.width)).ravel()
        block, norms = params[name], ("norm_reduce", "norm_inner")
        sliced = {key: _select(block[key], channels) for key in ("reduce", "inner_kernel", *norms)}
        params[name] = {**block, **sliced, "expand_kernel": block["expand_kernel"][paths]}
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
    """Return the `keep` argument that leaves a whole network only the paths of one class: its word in each block."""
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
    """Count parameters and multiply-adds of a network's stem, each block and classifier.

    Args:
        model: the network, whole or with paths removed.
        image_shape: (H, W, C) of one image in pixels.
    """
    size, channels = np.array(image_shape[:2]), image_shape[2]
    side, strides = model.stem
    size = -(-size // strides)
    parts = [Cost("stem", 64 * (side**2 * channels + 2), 0, int(size.prod()) * 64 * side**2 * channels)]
    if model.pool and strides != 1:
        size = -(-size // 2)
    channels = 64
    for i, (stage, step) in enumerate(model.blocks, 1):
        before, size = int(size.prod()), -(-size // step)
        after, inner, d, c = int(size.prod()), stage.present * stage.width, stage.width, stage.features
        products = before * channels * inner, after * 9 * d * inner, after * inner * c
        parameters = inner * channels + 2 * inner + 9 * d * inner + 2 * inner + inner * c + 2 * c
        shortcut = channels * c + 2 * c if step != 1 or channels != c else 0
        adds = sum(products) + (after * channels * c if shortcut else 0)
        parts.append(Cost(f"block_{i}", parameters + shortcut, shortcut, adds))
        channels = c
    parts.append(Cost("classifier", channels * model.classes, 0, channels * model.classes))
    return parts
