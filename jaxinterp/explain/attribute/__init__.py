"""Post-hoc methods, the baselines of the exact decomposition: `method(net, x, targets=None, ...) -> Attribution`."""

from jaxinterp.explain.attribute.gradcam import grad_cam
from jaxinterp.explain.attribute.gradient import gradient, input_x_gradient
from jaxinterp.explain.attribute.integrated import integrated_gradients
from jaxinterp.explain.attribute.occlusion import occlusion
from jaxinterp.lazy import public

__all__ = ["grad_cam", "gradient", "input_x_gradient", "integrated_gradients", "occlusion"]

__dir__ = public(__all__)
