"""Post-hoc methods, the baselines of the exact decomposition: `method(net, x, targets=None, ...) -> Attribution`."""

from jaxinterp.explain.attribute.ablation import feature_ablation, feature_permutation
from jaxinterp.explain.attribute.gradcam import grad_cam
from jaxinterp.explain.attribute.gradient import gradient, input_x_gradient
from jaxinterp.explain.attribute.integrated import integrated_gradients
from jaxinterp.explain.attribute.lime import lime
from jaxinterp.explain.attribute.meaningful import extremal_perturbation, meaningful_perturbation
from jaxinterp.explain.attribute.occlusion import occlusion
from jaxinterp.explain.attribute.rise import rise
from jaxinterp.explain.attribute.shapley import kernel_shap, shapley_sampling, shapley_values

__all__ = [
    "extremal_perturbation",
    "feature_ablation",
    "feature_permutation",
    "grad_cam",
    "gradient",
    "input_x_gradient",
    "integrated_gradients",
    "kernel_shap",
    "lime",
    "meaningful_perturbation",
    "occlusion",
    "rise",
    "shapley_sampling",
    "shapley_values",
]
