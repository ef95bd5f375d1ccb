"""CoDA layers on top of a conventional network: exact explanations down to a chosen depth.

Böhle, Fritz, Schiele, "Optimizing for Interpretability: Convolutional Dynamic Alignment Networks", TPAMI 2022
(arXiv 2109.13004): f = CoDA ∘ E_q with the embedding E_q = the first q blocks of a conventional network. The
paper's configurations are not public; this is the definition, with any trunk.

At the trunk's output a = E_q(x) and at every CoDA layer above it the contributions are exact and complete,

    Σ a ⊙ W(x)ᵀe_k = logit_k − logit bias,

because a CoDA layer has no additive bias. Below, the trunk is affine at each input, and its BatchNorm and
shifts leave a bias: `decompose` at the image returns input × gradient as contributions and the rest as
`bias`. How far the exact part reaches down is the *interpretable depth* (`jaxinterp.coda.depth`).
"""

from typing import Any

from flax import linen as nn
from jaxtyping import Array, Float

from jaxinterp.coda.network import CoDANet, encode
from jaxinterp.explain.explainable import Explainable, explainable


class Hybrid(nn.Module):
    """A conventional trunk under a CoDA net.

    Named activations: `trunk`, its own (`trunk/block_0`, …), and `coda/layer_0`, ….

    Attributes:
        trunk: the embedding, called as `trunk(x, train, frozen)`, affine at each input in evaluation: a
            `ResNetTrunk`, a `VGGTrunk`. Trained parameters of a `CifarResNet`'s trunk fit.
        coda: the CoDA net on the trunk's features as they are (ReLU features need no encoding).
        encode_input: encode images as (r, g, b, 1−r, 1−g, 1−b) for the trunk.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxinterp.nn.baselines import ResNetTrunk
        >>> trunk = ResNetTrunk(depth=8, blocks=2, width=4)
        >>> shape = {"features": (6, 10), "ranks": (3, 4), "kernel_sizes": (3, 1), "strides": (2, 1)}
        >>> coda = CoDANet(**shape, temperature=16.0)
        >>> init = Hybrid(trunk, coda).init_with_output
        >>> logits, _ = jax.eval_shape(init, jax.random.key(0), jnp.zeros((2, 8, 8, 3)))
        >>> logits.shape
        (2, 10)

    Source: TPAMI 2022; specification of the trunk: He et al. 2016.
    """

    trunk: nn.Module
    coda: CoDANet
    encode_input: bool = True

    def __call__(
        self, images: Float[Array, "n h w c"], train: bool = False, frozen: bool = False, encoded: bool = False
    ) -> Float[Array, "n classes"]:
        """Return the logits of images in [0, 1], or of their encoding; `frozen` holds weights and statistics."""
        x = encode(images) if self.encode_input and not encoded else images
        return self.coda(self.trunk(x, train, frozen), train, frozen, encoded=True)

    def __explainable__(self, variables: Any) -> Explainable:
        """Return the network as it is explained: from the trunk's output, whose contributions leave out b_0 alone."""
        coda = self.coda.__explainable__(variables)
        encoded = self.encode_input
        return explainable(
            self,
            variables,
            keywords={"encoded": True} if encoded else {},
            encoding=coda.encoding if encoded else None,
            bias=coda.bias,
            layer="trunk",
            levels=tuple(f"coda/{name}" for name in coda.levels),
            pooled=f"coda/{coda.pooled}",
            probability=coda.probability,
        )
