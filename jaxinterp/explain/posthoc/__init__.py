"""Post-hoc methods, the rivals of the exact decomposition: `method(apply, x, targets=None, ...) -> Attribution`."""

from jaxinterp.explain.posthoc.attribution import Attribution
from jaxinterp.explain.posthoc.gradcam import grad_cam
from jaxinterp.explain.posthoc.gradient import gradient, input_x_gradient
from jaxinterp.explain.posthoc.integrated import integrated_gradients
from jaxinterp.explain.posthoc.occlusion import occlusion

__all__ = ["Attribution", "grad_cam", "gradient", "input_x_gradient", "integrated_gradients", "occlusion"]
