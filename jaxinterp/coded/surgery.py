"""Networks cut out of a coded one, smaller by the paths that one class does not use, and what every part costs.

Avranas and Kountouris, arXiv 2202.05343 ("Coded ResNeXt"), Sec. 4.3.
"""

from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from jaxinterp.coded.network import CodedResNeXt


def binary_classifier(model: CodedResNeXt, variables: Any, class_index: int) -> tuple[CodedResNeXt, Any]:
    """The part of a trained network that serves one class, as a smaller network with one logit.

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
        ValueError: `class_index` out of range, a network without codes, or one of which paths were removed before,
            or variables of another number of paths, width or classes.

    Source: arXiv 2202.05343, Sec. 4.3.
    """
    _require_class(model, class_index)
    model.require_codes()
    if any(stage.kept is not None for stage in model.stages):
        raise ValueError("model: paths were removed from it before, expected the whole network")
    params = dict(variables["params"])
    stats = dict(variables["batch_stats"])
    for i, (stage, _) in enumerate(model.blocks, 1):
        if stage.code is None:
            continue
        name = f"block_{i}"
        had = len(params[name]["expand_kernel"])
        if had != stage.paths:
            raise ValueError(f"variables: got {had} paths in {name}, expected {stage.paths} as of the model's code")
        width = params[name]["expand_kernel"].shape[1]
        if width != stage.width:
            raise ValueError(f"variables: got paths of width {width} in {name}, expected {stage.width} as of the model")
        paths = np.flatnonzero(stage.code.table[class_index])
        channels = (paths[:, None] * stage.width + np.arange(stage.width)).ravel()
        block = dict(params[name])
        block["reduce"] = {"kernel": block["reduce"]["kernel"][:, channels]}
        block["inner_kernel"] = block["inner_kernel"][..., channels]
        block["expand_kernel"] = block["expand_kernel"][paths]
        norms = {key: jax.tree.map(lambda leaf: leaf[channels], block[key]) for key in ("norm_reduce", "norm_inner")}  # noqa: B023
        params[name] = block | norms
        kept = {key: jax.tree.map(lambda leaf: leaf[channels], stats[name][key]) for key in norms}  # noqa: B023
        stats[name] = dict(stats[name]) | kept
    classes = params["classifier"]["kernel"].shape[1]
    if classes != model.classes:
        raise ValueError(f"variables: got {classes} classes, expected {model.classes} as of the model")
    params["classifier"] = {"kernel": params["classifier"]["kernel"][:, class_index : class_index + 1]}
    stages = tuple(s if s.code is None else replace(s, kept=s.code.weight) for s in model.stages)
    return model.clone(stages=stages, classes=1, drop=0.0, ghost=None), {"params": params, "batch_stats": stats}


def _require_class(model: CodedResNeXt, class_index: int) -> None:
    if not isinstance(class_index, int | np.integer) or not 0 <= class_index < model.classes:
        raise ValueError(f"class_index: got {class_index!r}, expected an integer from 0 to {model.classes - 1}")


def keep_only(model: CodedResNeXt, class_index: int) -> list[Float[np.ndarray, " paths"]]:
    """The `keep` argument that leaves a whole network only the paths of one class: its word, for each coded block.

    Args:
        model: the network, with its codes.
        class_index: the class, in [0, classes).

    Returns:
        0 and 1, (paths,), for each coded block.

    Raises:
        ValueError: `class_index` out of range.
    """
    _require_class(model, class_index)
    return [code.table[class_index].astype(np.float32) for code in model.codes]


@dataclass(frozen=True)
class Cost:
    """What a part of a network costs.

    Attributes:
        name: "stem", "block_1", ..., "classifier".
        parameters: trained numbers of the part.
        shortcut: those of them in a projection shortcut and its BatchNorm.
        multiply_adds: of its convolutions and products for one image, energies and normalization left out.
    """

    name: str
    parameters: int
    shortcut: int
    multiply_adds: int


def costs(model: CodedResNeXt, image_shape: tuple[int, int, int]) -> list[Cost]:
    """Parameters and multiply-adds of every part of a network.

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
    found = [Cost("stem", 64 * (side**2 * channels + 2), 0, height * width * 64 * side**2 * channels)]
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
        found.append(Cost(f"block_{i}", parameters + shortcut, shortcut, adds))
        channels = c
    found.append(Cost("classifier", channels * model.classes, 0, channels * model.classes))
    return found
