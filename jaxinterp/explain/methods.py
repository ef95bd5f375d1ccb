"""The decomposition and post-hoc methods beside it, as they are compared, and the catalogue of all of them."""

from collections.abc import Mapping, Sequence
from functools import partial

from jaxinterp.explain.attribute import (
    ablation_cam,
    blur_integrated_gradients,
    deconvolution,
    deep_lift,
    eigen_cam,
    excitation_backprop,
    feature_ablation,
    grad_cam,
    grad_cam_plus_plus,
    gradient,
    guided_backpropagation,
    guided_grad_cam,
    hires_cam,
    input_x_gradient,
    integrated_gradients,
    kernel_shap,
    layer_cam,
    lime,
    lrp,
    meaningful_perturbation,
    occlusion,
    rise,
    saliency,
    score_cam,
    smooth_grad,
    vargrad,
    xgrad_cam,
)
from jaxinterp.explain.decompose import decompose
from jaxinterp.explain.explainable import Explainable
from jaxinterp.explain.metrics.explained import Method

OURS = "decomposition"

CATALOGUE: Mapping[str, Method] = {
    "gradient": gradient,
    "saliency": saliency,
    "input_x_gradient": input_x_gradient,
    "integrated_gradients": partial(integrated_gradients, steps=32),
    "blur_integrated_gradients": blur_integrated_gradients,
    "smooth_grad": smooth_grad,
    "vargrad": vargrad,
    "guided_backpropagation": guided_backpropagation,
    "deconvolution": deconvolution,
    "deep_lift": deep_lift,
    "lrp_epsilon": partial(lrp, composite="epsilon"),
    "lrp_epsilon_plus": lrp,
    "excitation_backprop": excitation_backprop,
    "occlusion": occlusion,
    "feature_ablation": feature_ablation,
    "rise": partial(rise, masks=1000),
    "lime": lime,
    "kernel_shap": partial(kernel_shap, samples=1000),
    "meaningful_perturbation": meaningful_perturbation,
}
"""Methods of every network, by name; a line each."""
OF_MAPS: Mapping[str, Method] = {
    "grad_cam": grad_cam,
    "grad_cam_plus_plus": grad_cam_plus_plus,
    "hires_cam": hires_cam,
    "layer_cam": layer_cam,
    "xgrad_cam": xgrad_cam,
    "eigen_cam": eigen_cam,
    "score_cam": score_cam,
    "ablation_cam": ablation_cam,
    "guided_grad_cam": guided_grad_cam,
}
"""Methods of networks that name the layer whose maps are pooled."""


def catalogue(net: Explainable) -> dict[str, Method]:
    """Return the post-hoc methods that can be tried on a network, by name: (net, x, targets) ↦ `Attribution`.

    Example:
        >>> from jaxinterp.explain.explainable import explainable
        >>> list(catalogue(explainable(lambda x: x)))[:2]
        ['gradient', 'saliency']
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
