"""The decomposition and post-hoc methods beside it, as they are compared, and the catalogue of all of them."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from jaxinterp.checks import require
from jaxinterp.explain.attribute import (
    ablation_cam,
    attention_rollout,
    blur_integrated_gradients,
    deconvolution,
    deep_lift,
    deep_lift_shap,
    eigen_cam,
    excitation_backprop,
    expected_gradients,
    extremal_perturbation,
    feature_ablation,
    feature_permutation,
    grad_cam,
    grad_cam_plus_plus,
    gradient,
    gradient_rollout,
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
    shapley_sampling,
    smooth_grad,
    smooth_grad_squared,
    vargrad,
    xgrad_cam,
)
from jaxinterp.explain.attribute.segments import squares
from jaxinterp.explain.attribution import Attribution
from jaxinterp.explain.batches import Targets
from jaxinterp.explain.decompose import decompose
from jaxinterp.explain.explainable import Explainable
from jaxinterp.explain.metrics.explained import Method

OURS = "decomposition"

SQUARES = 8
"""Squares along each side of an image, the groups of entries of methods that take one group at a time, as of `lime`."""
BASELINES = 16
"""Examples, the first of a batch, that are the baselines of methods with many."""


def on_squares(method: Method, net: Any, x: Any, targets: Targets = None, **options: Any) -> Attribution:
    """Run a method on the squares of images; of other inputs each entry is a group of its own."""
    mask = squares((x.shape[1], x.shape[2]), SQUARES) if x.ndim == 4 else None
    return method(net, x, targets, mask=mask, **options)


def against_batch(method: Method, net: Any, x: Any, targets: Targets = None, **options: Any) -> Attribution:
    """Run a method whose baselines are examples, with the first ones of the batch."""
    require(len(x) > 1, "x", "one example", "at least two, which are baselines of one another")
    return method(net, x, targets, baselines=x[:BASELINES], **options)


def in_bounds(method: Method, net: Any, x: Any, targets: Targets = None, **options: Any) -> Attribution:
    """Run a method that takes the bounds of the input, those of the batch."""
    return method(net, x, targets, low=x.min(), high=x.max(), **options)


CATALOGUE: Mapping[str, Method] = {
    "gradient": gradient,
    "saliency": saliency,
    "input_x_gradient": input_x_gradient,
    "integrated_gradients": partial(integrated_gradients, steps=32),
    "blur_integrated_gradients": blur_integrated_gradients,
    "expected_gradients": partial(against_batch, expected_gradients),
    "smooth_grad": smooth_grad,
    "smooth_grad_squared": smooth_grad_squared,
    "vargrad": vargrad,
    "guided_backpropagation": guided_backpropagation,
    "deconvolution": deconvolution,
    "deep_lift": deep_lift,
    "deep_lift_shap": partial(against_batch, deep_lift_shap),
    "lrp_epsilon": partial(lrp, composite="epsilon"),
    "lrp_epsilon_plus": lrp,
    "lrp_epsilon_plus_flat": partial(lrp, composite="epsilon_plus_flat"),
    "lrp_epsilon_alpha2_beta1": partial(lrp, composite="epsilon_alpha2_beta1"),
    "lrp_epsilon_gamma_box": partial(in_bounds, partial(lrp, composite="epsilon_gamma_box")),
    "excitation_backprop": excitation_backprop,
    "occlusion": occlusion,
    "feature_ablation": partial(on_squares, partial(feature_ablation, rule="spread")),
    "feature_permutation": partial(on_squares, partial(feature_permutation, rule="spread", samples=8)),
    "rise": partial(rise, masks=1000),
    "lime": lime,
    "kernel_shap": partial(on_squares, partial(kernel_shap, samples=1000)),
    "shapley_sampling": partial(on_squares, shapley_sampling),
    "meaningful_perturbation": meaningful_perturbation,
    "extremal_perturbation": extremal_perturbation,
    "attention_rollout": attention_rollout,
    "gradient_rollout": gradient_rollout,
}
"""Methods by name, a line each, of every network but for those of images, and of attention."""
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

    Ablation, permutation, kernel SHAP and Shapley sampling take 8 × 8 squares of images; baselines of expected
    gradients and Deep SHAP are the first 16 examples given, the input's bounds of the z^B rule those of the examples.

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
