"""VGG: torchvision's names, with and without BatchNorm, and those of the VGG for small images with one dense layer.

The layers of `features` are numbered through, poolings and ReLUs included. Their convolutions have a bias also under a
BatchNorm, which subtracts a running mean: ours have none, and the running mean less the bias.

Source: torchvision/models/vgg.py; for small images the names of github.com/kuangliu/pytorch-cifar.
"""

import math
from typing import Any

import numpy as np

from jaxinterp.checks import require
from jaxinterp.nn.baselines import VGG, VGG_STAGES, ImageNetVGG
from jaxinterp.nn.torch_weights.state_dict import COUNTER, Architecture, shape_of
from jaxinterp.nn.weights import Arrays

DENSE = {"dense_0": "classifier.0", "dense_1": "classifier.3", "classifier": "classifier.6"}


def _numbers(depth: int, norm: bool) -> list[int]:
    """Return the places of the convolutions among the layers of `features`.

    Example:
        >>> _numbers(11, False)
        [0, 3, 6, 8, 11, 13, 16, 18]
    """
    numbers, place = [], 0
    for convolutions in VGG_STAGES[depth]:
        for _ in range(convolutions):
            numbers.append(place)
            place += 3 if norm else 2
        place += 1
    return numbers


def _features(depth: int, norm: bool) -> dict[str, str]:
    """Return our convolutions' and norms' paths to the names of theirs."""
    names: dict[str, str] = {}
    for i, place in enumerate(_numbers(depth, norm)):
        if norm:
            names |= {f"conv_{i}/conv": f"features.{place}", f"conv_{i}/norm": f"features.{place + 1}"}
        else:
            names[f"conv_{i}"] = f"features.{place}"
    return names


def _is_vgg(arrays: Arrays) -> bool:
    """Whether the first filters have 3×3 pixels."""
    first = arrays.get("features.0.weight")
    return first is not None and first.ndim == 4 and first.shape[2] == 3


def _trunk(arrays: Arrays) -> dict[str, Any]:
    """Return depth, width and the presence of BatchNorm, by the places of the convolutions."""
    places = [
        int(name.split(".")[1]) for name, array in arrays.items() if name.startswith("features.") and array.ndim == 4
    ]
    norm = "features.1.weight" in arrays
    depth = next((depth for depth in VGG_STAGES if _numbers(depth, norm) == sorted(places)), None)
    got = f"convolutions {', '.join(map(str, sorted(places)))} of features"
    require(depth is not None, "state_dict", got, f"those of a VGG-{', -'.join(map(str, VGG_STAGES))}")
    return {"depth": depth, "width": shape_of(arrays, "features.0.weight", 4)[0], "norm": norm}


def imagenet(arrays: Arrays, fields: dict[str, Any]) -> ImageNetVGG:
    """Return the network with three dense layers."""
    trunk = _trunk(arrays)
    hidden, inputs = shape_of(arrays, "classifier.0.weight", 2)
    classes, _ = shape_of(arrays, "classifier.6.weight", 2)
    side = max(1, math.isqrt(inputs // (8 * trunk["width"])))
    return ImageNetVGG(**trunk | {"classes": classes, "hidden": hidden, "side": side} | fields)


def small(arrays: Arrays, fields: dict[str, Any]) -> VGG:
    """Return the network with one dense layer, and with BatchNorm."""
    trunk = _trunk(arrays)
    require(trunk.pop("norm"), "state_dict", "convolutions without BatchNorm", "a VGG of small images with it")
    return VGG(**trunk | {"classes": shape_of(arrays, "classifier.weight", 2)[0]} | fields)


def without_biases(arrays: Arrays) -> Arrays:
    """Return the parameters with the convolutions' biases taken off the running means behind them."""
    found = dict(arrays)
    for name in [name for name in arrays if name.endswith(".running_mean")]:
        bias = f"features.{int(name.split('.')[1]) - 1}.bias" if name.startswith("features.") else ""
        if bias in found and found[bias].shape == found[name].shape:
            found[name] = found[name] - found.pop(bias)
    return found


def with_biases(state_dict: Arrays) -> Arrays:
    """Return the parameters with biases of 0 in the convolutions before a BatchNorm."""
    places = [int(name.split(".")[1]) for name in state_dict if name.endswith(COUNTER)]
    zeros = {f"features.{i - 1}.bias": np.zeros_like(state_dict[f"features.{i}.bias"]) for i in places}
    return state_dict | zeros


IMAGENET = Architecture(
    "a VGG with three dense layers",
    ImageNetVGG,
    lambda arrays: _is_vgg(arrays) and "classifier.weight" not in arrays,
    imagenet,
    lambda net: _features(net.depth, net.norm) | DENSE,
    lambda net: {"dense_0": net.side},
    before=without_biases,
    after=with_biases,
)
CIFAR = Architecture(
    "a VGG of small images",
    VGG,
    lambda arrays: _is_vgg(arrays) and "classifier.weight" in arrays,
    small,
    lambda net: (
        {f"trunk/{ours}": theirs for ours, theirs in _features(net.depth, True).items()} | {"classifier": "classifier"}
    ),
    before=without_biases,
    after=with_biases,
)
