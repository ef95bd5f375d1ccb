"""A trained network under examination: its exact explanation, and post-hoc baselines on the same network."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from jaxinterp.explain.attribute.gradcam import grad_cam
from jaxinterp.explain.attribute.gradient import gradient, input_x_gradient
from jaxinterp.explain.attribute.integrated import integrated_gradients
from jaxinterp.explain.attribute.occlusion import occlusion
from jaxinterp.explain.decompose import Decomposition, Targets, decompose
from jaxinterp.recipe.config import Run

Images = Float[Array | np.ndarray, "batch height width channels"]
Maps = Float[Array, "batch targets height width"]
Apply = Callable[[Any, Array], Any]
Method = Callable[[Images, Targets], Maps]

OURS = "decomposition"


@dataclass(frozen=True)
class Subject:
    """A network with its variables; its functions take (variables, x), so that they are compiled once.

    Attributes:
        variables: the network's variables.
        apply: (variables, images) ↦ logits.
        predict: (variables, input) ↦ logits, on what `encode` makes of images.
        frozen: the same with every coefficient held constant.
        encode: images ↦ the input that is explained.
        bias: the constant that contributions leave out of every logit; None where it depends on the image.
        layer: activation at which the network is decomposed; its input where None.
        layers: further activations at which it can be decomposed exactly, from the input up.
        pooled: the activation whose maps are pooled into logits, for Grad-CAM; None where there is none.
        occlusions: window sizes of the occlusion baselines in pixels.
        stride: step of their windows in pixels.
        probability: what the logits were trained as, each class on its own or one of all.
        constant: what contributions leave out of a logit, in words, where `bias` is None.
    """

    variables: Any
    apply: Apply
    predict: Apply
    frozen: Apply
    encode: Callable[[Array], Array]
    bias: float | None
    layer: str | None
    layers: tuple[str, ...]
    pooled: str | None
    occlusions: tuple[int, ...]
    stride: int
    probability: Literal["sigmoid", "softmax"] = "sigmoid"
    constant: str = "a part that depends on the image"

    def odds(self, logits: Float[np.ndarray, "n classes"]) -> Float[np.ndarray, "n classes"]:
        """Log odds log p/(1 − p) of every class: the logits, or what softmax makes of them."""
        if self.probability == "sigmoid":
            return logits
        others = np.where(np.eye(logits.shape[1], dtype=bool), -np.inf, logits[:, None])
        return logits - np.logaddexp.reduce(others, axis=-1)

    def decompose(self, images: Images, targets: Targets = None) -> Decomposition:
        """The exact decomposition of the targets' logits, at the network's own level."""
        x = self.encode(jnp.asarray(images))
        return decompose(self.frozen, x, targets, self.layer, variables=self.variables, check=False)

    def maps(self, images: Images, targets: Targets = None) -> Maps:
        """Contributions summed over channels and, above the input, enlarged to the images (nearest pixel)."""
        return summed(self.decompose(images, targets), images)

    def levels(self, images: Images, targets: Targets = None) -> list[Maps]:
        """The same maps at the network's own level, then at every further activation."""
        x = self.encode(jnp.asarray(images))
        layer = [self.layer, *self.layers]
        parts = decompose(self.frozen, x, targets, layer=layer, variables=self.variables, check=False)
        return [summed(part, images) for part in parts]

    def methods(self) -> Mapping[str, Method]:
        """The decomposition, and post-hoc methods on the same network with the paper's settings (Sec. 5.2)."""
        given = {"variables": self.variables}
        methods: dict[str, Callable[..., Any]] = {
            "gradient": partial(gradient, self.apply, **given),
            "input_x_gradient": partial(input_x_gradient, self.apply, **given),
            "integrated_gradients": partial(integrated_gradients, self.apply, steps=20, **given),
            **{
                f"occlusion_{k}": partial(occlusion, self.apply, window=k, stride=self.stride, **given)
                for k in self.occlusions
            },
        }
        if self.pooled is not None:
            methods["grad_cam"] = partial(grad_cam, self.apply, layer=self.pooled, **given)
        return {OURS: self.maps, **{name: _summed(method) for name, method in methods.items()}}


def plain_subject(config: Run, model: nn.Module, variables: Any, **fields: Any) -> Subject:
    """A classifier by softmax that takes images as they are, and is affine in them with `frozen`.

    Args:
        config: its run.
        model: a Flax model, called with (x) or (x, frozen=True).
        variables: its variables.
        **fields: of `Subject`, in place of no layers and no pooled maps.
    """

    def apply(variables: Any, x: Array) -> Any:
        return model.apply(variables, x)

    own: dict[str, Any] = {"bias": None, "at": None, "layers": (), "pooled": None}
    return Subject(
        variables=variables,
        apply=apply,
        predict=apply,
        frozen=lambda variables, x: model.apply(variables, x, frozen=True),
        encode=lambda x: x,
        occlusions=config.occlusion,
        stride=config.occlusion_stride,
        probability="softmax",
        **(own | fields),
    )


def summed(parts: Decomposition, images: Float[Array | np.ndarray, "n height width channels"]) -> Maps:
    """Contributions summed over channels and enlarged to the images (nearest pixel)."""
    sums = parts.contributions.sum(-1)
    return jax.image.resize(sums, (*sums.shape[:2], *images.shape[1:3]), "nearest")


def _summed(method: Callable[..., Any]) -> Method:
    """A method's contributions, summed over channels."""

    def maps(images: Images, targets: Targets = None) -> Maps:
        return method(jnp.asarray(images), targets).contributions.sum(-1)

    return maps
