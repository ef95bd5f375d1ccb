"""What a metric measures: an attribution, or the method that makes it."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Array, Float

from jaxinterp.checks import require
from jaxinterp.explain.attribution import Attribution
from jaxinterp.explain.batches import Targets

Method = Callable[..., Attribution]
"""(net, x, targets) ↦ `Attribution`, such as every function of `jaxinterp.attribute`."""
Explained = Attribution | Method


def attribution(net: Any, method: Explained, x: Any, targets: Targets) -> Attribution:
    """Return an attribution as it is, or what a method makes of a batch.

    Raises:
        ConfigError: it is neither, or the method returns something else.
    """
    if isinstance(method, Attribution):
        return method
    require(callable(method), "method", type(method).__name__, "an Attribution, or (net, x, targets) ↦ Attribution")
    parts = method(net, x, targets)
    require(isinstance(parts, Attribution), "method", f"a {type(parts).__name__} from it", "an Attribution")
    return parts


def label_maps(
    net: Any, method: Explained, x: Any, labels: Any, size: Sequence[int]
) -> Float[Array, "batch height width"]:
    """Return the maps of the labels' logits, at a size in pixels."""
    parts = attribution(net, method, x, labels)
    shape = parts.logits.shape
    require(shape == (len(labels), 1), "method", f"attributions to {shape} targets", f"({len(labels)}, 1), the labels'")
    same = bool((np.asarray(parts.targets)[:, 0] == np.asarray(labels)).all())
    require(same, "method", "attributions to other classes", "those to the labels")
    return parts.maps(size)[:, 0]
