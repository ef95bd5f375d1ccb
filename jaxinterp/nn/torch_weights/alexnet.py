"""AlexNet: torchvision's names, of any widths and any size of images.

Source: torchvision/models/alexnet.py.
"""

import math
from typing import Any

from jaxinterp.nn.baselines import AlexNet
from jaxinterp.nn.torch_weights.state_dict import Architecture, shape_of
from jaxinterp.nn.weights import Arrays

NAMES = {f"conv_{i}": f"features.{j}" for i, j in enumerate((0, 3, 6, 8, 10))}
NAMES |= {"dense_0": "classifier.1", "dense_1": "classifier.4", "classifier": "classifier.6"}
"""Paths of our layers to torchvision's names."""


def recognizes(arrays: Arrays) -> bool:
    """Whether the first filters, which VGG has of 3×3 pixels, are others, and there are three dense layers."""
    first = arrays.get("features.0.weight")
    return first is not None and first.ndim == 4 and first.shape[2] != 3 and "classifier.6.weight" in arrays


def network(arrays: Arrays, fields: dict[str, Any]) -> AlexNet:
    """Return the network of these shapes; the first convolution's step and padding are torchvision's if not given."""
    shapes = [shape_of(arrays, f"{NAMES[f'conv_{i}']}.weight", 4) for i in range(5)]
    hidden, inputs = shape_of(arrays, "classifier.1.weight", 2)
    classes, _ = shape_of(arrays, "classifier.6.weight", 2)
    side = max(1, math.isqrt(inputs // shapes[-1][0]))
    widths = tuple(shape[0] for shape in shapes)
    found: dict[str, Any] = {"classes": classes, "widths": widths, "hidden": hidden, "side": side}
    return AlexNet(**found | {"kernel": shapes[0][2]} | fields)


def sides(network: AlexNet) -> dict[str, int]:
    """Return the side of the map that the first dense layer reads."""
    return {"dense_0": network.side}


ALEXNET = Architecture("an AlexNet", AlexNet, recognizes, network, lambda _: NAMES, sides)
