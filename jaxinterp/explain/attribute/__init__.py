"""Post-hoc methods, the baselines of the exact decomposition: `method(net, x, targets=None, ...) -> Attribution`.

Two functions of training images, `tracin` and `influence_functions`, have a call shape and a result of their own.
"""

from jaxinterp.explain.attribute.ablation import feature_ablation, feature_permutation
from jaxinterp.explain.attribute.blur import blur_integrated_gradients
from jaxinterp.explain.attribute.cams import (
    ablation_cam,
    eigen_cam,
    grad_cam,
    grad_cam_plus_plus,
    guided_grad_cam,
    hires_cam,
    layer_cam,
    score_cam,
    xgrad_cam,
)
from jaxinterp.explain.attribute.deep_lift import deep_lift, deep_lift_shap
from jaxinterp.explain.attribute.excitation import excitation_backprop
from jaxinterp.explain.attribute.expected import expected_gradients
from jaxinterp.explain.attribute.gradient import gradient, input_x_gradient, saliency
from jaxinterp.explain.attribute.hessians import pairs
from jaxinterp.explain.attribute.integrated import integrated_gradients
from jaxinterp.explain.attribute.lime import lime
from jaxinterp.explain.attribute.lrp import lrp
from jaxinterp.explain.attribute.meaningful import extremal_perturbation, meaningful_perturbation
from jaxinterp.explain.attribute.noise import noise_tunnel, smooth_grad, smooth_grad_squared, vargrad
from jaxinterp.explain.attribute.occlusion import occlusion
from jaxinterp.explain.attribute.rise import rise
from jaxinterp.explain.attribute.rollout import attention_rollout, gradient_rollout
from jaxinterp.explain.attribute.rules import deconvolution, guided_backpropagation
from jaxinterp.explain.attribute.shapley import kernel_shap, shapley_sampling, shapley_values
from jaxinterp.explain.training import influence_functions, tracin
from jaxinterp.lazy import public

__all__ = [
    "ablation_cam",
    "attention_rollout",
    "blur_integrated_gradients",
    "deconvolution",
    "deep_lift",
    "deep_lift_shap",
    "eigen_cam",
    "excitation_backprop",
    "expected_gradients",
    "extremal_perturbation",
    "feature_ablation",
    "feature_permutation",
    "grad_cam",
    "grad_cam_plus_plus",
    "gradient",
    "gradient_rollout",
    "guided_backpropagation",
    "guided_grad_cam",
    "hires_cam",
    "influence_functions",
    "input_x_gradient",
    "integrated_gradients",
    "kernel_shap",
    "layer_cam",
    "lime",
    "lrp",
    "meaningful_perturbation",
    "noise_tunnel",
    "occlusion",
    "pairs",
    "rise",
    "saliency",
    "score_cam",
    "shapley_sampling",
    "shapley_values",
    "smooth_grad",
    "smooth_grad_squared",
    "tracin",
    "vargrad",
    "xgrad_cam",
]

__dir__ = public(__all__)
