"""A network seen from outside: its exact explanation, and post-hoc baselines on the same network."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
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

Images = Float[Array | np.ndarray, "batch height width channels"]
Maps = Float[Array, "batch targets height width"]
Apply = Callable[[Any, Array], Any]
Method = Callable[[Images, Targets], Maps]

OURS = "decomposition"


@dataclass(frozen=True)
class Explainable:
    """A network with its variables; its functions take (variables, x), so that each is compiled once.

    Attributes:
        variables: the network's variables.
        apply: (variables, images) ↦ logits.
        predict: (variables, input) ↦ logits, on the output of `encode`.
        frozen: as `predict`, with every coefficient held constant.
        encode: images ↦ the input that is explained.
        bias: the constant that contributions leave out of every logit; None where it depends on the image.
        layer: activation at which the network is decomposed; its input where None.
        layers: further activations at which it can be decomposed exactly, from the input up.
        pooled: the activation whose maps are pooled into logits, for Grad-CAM; None where there is none.
        occlusions: window sizes of the occlusion baselines in pixels.
        stride: step of their windows in pixels.
        probability: how the logits were trained, each class on its own or one of all.
        constant: the part of a logit outside of the contributions, in words, where `bias` is None.
    """

    variables: Any = field(repr=False)
    apply: Apply
    predict: Apply
    frozen: Apply
    encode: Callable[[Array], Array]
    bias: float | None = None
    layer: str | None = None
    layers: tuple[str, ...] = ()
    pooled: str | None = None
    occlusions: tuple[int, ...] = (5, 9)
    stride: int = 2
    probability: Literal["sigmoid", "softmax"] = "sigmoid"
    constant: str = "a part that depends on the image"

    def log_odds(self, logits: Float[np.ndarray, "n classes"]) -> Float[np.ndarray, "n classes"]:
        """Return log p/(1 − p) of every class: the logits of sigmoids, or derived from the softmax."""
        if self.probability == "sigmoid":
            return logits
        others = np.where(np.eye(logits.shape[1], dtype=bool), -np.inf, logits[:, None])
        return logits - np.logaddexp.reduce(others, axis=-1)

    def decompose(self, images: Images, targets: Targets = None) -> Decomposition:
        """Decompose the targets' logits exactly, at the network's own layer."""
        return self._decompose(images, targets, [self.layer])[0]

    def maps(self, images: Images, targets: Targets = None) -> Maps:
        """Return contributions summed over channels and, above the input, enlarged to the images (nearest pixel)."""
        return summed(self.decompose(images, targets), images)

    def levels(self, images: Images, targets: Targets = None) -> list[Maps]:
        """Return the maps at the network's own layer, then at every further one of `layers`."""
        return [summed(part, images) for part in self._decompose(images, targets, [self.layer, *self.layers])]

    def _decompose(self, images: Images, targets: Targets, layers: list[str | None]) -> list[Decomposition]:
        x = self.encode(jnp.asarray(images))
        return decompose(self.frozen, x, targets, layer=layers, variables=self.variables, check=False)

    def methods(self) -> Mapping[str, Method]:
        """Return the decomposition and post-hoc methods on the same network, as set in CVPR 2021, Sec. 5.2."""
        methods: dict[str, Callable[..., Any]] = {
            "gradient": gradient,
            "input_x_gradient": input_x_gradient,
            "integrated_gradients": partial(integrated_gradients, steps=20),
        }
        for k in self.occlusions:
            methods[f"occlusion_{k}"] = partial(occlusion, window=k, stride=self.stride)
        if self.pooled is not None:
            methods["grad_cam"] = partial(grad_cam, layer=self.pooled)
        return {OURS: self.maps, **{name: partial(self._summed, method) for name, method in methods.items()}}

    def _summed(self, method: Callable[..., Any], images: Images, targets: Targets = None) -> Maps:
        """Return a post-hoc method's contributions summed over channels."""
        return method(self.apply, jnp.asarray(images), targets, variables=self.variables).contributions.sum(-1)


def softmax_explainable(model: nn.Module, variables: Any, **fields: Any) -> Explainable:
    """Wrap a softmax classifier that takes images as they are, and is affine in them with `frozen`.

    `fields` are further fields of `Explainable`.
    """

    def apply(variables: Any, x: Array) -> Any:
        return model.apply(variables, x)

    def frozen(variables: Any, x: Array) -> Any:
        return model.apply(variables, x, frozen=True)

    return Explainable(variables, apply, apply, frozen, lambda x: x, probability="softmax", **fields)


def summed(parts: Decomposition, images: Float[Array | np.ndarray, "n height width channels"]) -> Maps:
    """Sum contributions over channels and enlarge them to the images (nearest pixel)."""
    sums = parts.contributions.sum(-1)
    return jax.image.resize(sums, (*sums.shape[:2], *images.shape[1:3]), "nearest")
