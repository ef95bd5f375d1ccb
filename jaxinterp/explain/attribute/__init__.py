"""Post-hoc methods, the baselines of the exact decomposition: `method(net, x, targets=None, ...) -> Attribution`."""

from jaxinterp.explain.attribute.deep_lift import deep_lift, deep_lift_shap
from jaxinterp.explain.attribute.excitation import excitation_backprop
from jaxinterp.explain.attribute.gradcam import grad_cam
from jaxinterp.explain.attribute.gradient import gradient, input_x_gradient
from jaxinterp.explain.attribute.integrated import integrated_gradients
from jaxinterp.explain.attribute.lrp import lrp
from jaxinterp.explain.attribute.occlusion import occlusion
from jaxinterp.explain.attribute.rules import deconvolution, guided_backpropagation

__all__ = [
    "deconvolution",
    "deep_lift",
    "deep_lift_shap",
    "excitation_backprop",
    "grad_cam",
    "gradient",
    "guided_backpropagation",
    "input_x_gradient",
    "integrated_gradients",
    "lrp",
    "occlusion",
]
