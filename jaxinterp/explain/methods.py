"""The decomposition and post-hoc methods beside it, as they are compared, and the catalogue of all of them."""

from collections.abc import Mapping, Sequence
from functools import partial

from jaxinterp.explain.attribute import grad_cam, gradient, input_x_gradient, integrated_gradients, occlusion
from jaxinterp.explain.decompose import decompose
from jaxinterp.explain.explainable import Explainable
from jaxinterp.explain.metrics.explained import Method

OURS = "decomposition"

CATALOGUE: Mapping[str, Method] = {
    "gradient": gradient,
    "input_x_gradient": input_x_gradient,
    "integrated_gradients": partial(integrated_gradients, steps=32),
    "occlusion": occlusion,
}
"""Methods of every network, by name; a line each."""
OF_MAPS: Mapping[str, Method] = {"grad_cam": grad_cam}
"""Methods of networks that name the layer whose maps are pooled."""


def catalogue(net: Explainable) -> dict[str, Method]:
    """Return the post-hoc methods that can be tried on a network, by name: (net, x, targets) ↦ `Attribution`.

    Example:
        >>> from jaxinterp.explain.explainable import explainable
        >>> list(catalogue(explainable(lambda x: x)))[:2]
        ['gradient', 'input_x_gradient']
    """
    return dict(CATALOGUE) if net.pooled is None else {**CATALOGUE, **OF_MAPS}


def compared(net: Explainable, windows: Sequence[int] = (5, 9), stride: int = 2) -> Mapping[str, Method]:
    """Return the decomposition and post-hoc methods on the same network, as set in CVPR 2021, Sec. 5.2.

    Args:
        net: the network; Grad-CAM is among the methods where it names a layer that is pooled.
        windows: sides of the windows of occlusion in pixels.
        stride: step of these windows in pixels.

    Returns:
        name → (net, x, targets) ↦ `Attribution`.
    """
    methods: dict[str, Method] = {
        OURS: partial(decompose, check=False),
        "gradient": gradient,
        "input_x_gradient": input_x_gradient,
        "integrated_gradients": partial(integrated_gradients, steps=20),
    }
    methods |= {f"occlusion_{k}": partial(occlusion, window=k, stride=stride, rule="spread") for k in windows}
    return methods if net.pooled is None else {**methods, "grad_cam": grad_cam}
