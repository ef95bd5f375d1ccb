"""Convolutional Dynamic Alignment networks: every layer is linear in its input, with weights that align to it.

Böhle, Fritz, Schiele, "Convolutional Dynamic Alignment Networks for Interpretable Classifications", CVPR 2021
(arXiv 2104.00032). The layer's formulas are in `jaxinterp.coda.alignment`; here are the encoding, the network, its
published configurations and the penalty.
"""

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Num

from jaxinterp.checks import require, require_one_of
from jaxinterp.coda.alignment import DynamicAlignmentConv as DynamicAlignmentConv
from jaxinterp.coda.alignment import Rescale, widened
from jaxinterp.explain.explainable import Explainable, explainable

LOGIT_BIAS = math.log(0.1 / 0.9)  # the prior probability 0.1 of the authors' configurations


def encode(x: Float[Array, "*batch channels"]) -> Float[Array, "*batch two_channels"]:
    """Encode an image so that a color is a direction and every pixel has the same L1 norm.

    e(x) = [x, 1 − x], so (r, g, b) becomes (r, g, b, 1−r, 1−g, 1−b). An absent (padded, removed) pixel is the
    zero vector, which is not black.

    Args:
        x: image, (..., C), in [0, 1], floating.

    Example:
        >>> encode(jnp.array([0.25, 0.5, 1.0])).tolist()
        [0.25, 0.5, 1.0, 0.75, 0.5, 0.0]

    Source: CVPR 2021, Sec. 4 (input encoding).
    """
    # The complement of unsigned integers would wrap around.
    require(jnp.issubdtype(x.dtype, jnp.floating), "x", x.dtype, "a floating image in [0, 1]")
    return jnp.concatenate([x, 1 - x], axis=-1)


def encoding(variables: Any, x: Num[Array, "..."]) -> Float[Array, "n h w c2"]:
    """Return `encode(x)`, as the input of an `Explainable`; no variables are needed."""
    images = x.ndim == 4 and jnp.issubdtype(x.dtype, jnp.floating)
    require(images, "x", f"{x.dtype}{x.shape}", "floating images (batch, height, width, channels) in [0, 1]")
    return encode(x)


class CoDANet(nn.Module):
    """A chain of dynamic alignment layers, global sum pooling, a temperature and a fixed logit bias.

    logit_c(x) = (1/T) Σ_q [W_L(a_{L−1}) … W_1(a_0) a_0]_{q,c} + b_0,   a_0 = [x, 1 − x].

    Attributes:
        features: units J of each layer; the last is the number of classes.
        ranks: rank r of each layer.
        kernel_sizes: patch size of each layer, in pixels (square).
        strides: stride of each layer, in pixels.
        paddings: zero padding of each layer in pixels, or None for (k − 1) // 2.
        temperature: T > 0; a divisor of the *sum* over positions.
        logit_bias: b_0, fixed; log(0.1/0.9) in the paper's configurations, a prior of 0.1.
        rescale: "squash" or "l2", see `DynamicAlignmentConv`.
        dtype: compute type of the layers; logits are float32 or wider.
        param_dtype: type of the parameters.

    Source: CVPR 2021, Sec. 3.2–3.4 and 4.
    """

    features: tuple[int, ...]
    ranks: tuple[int, ...]
    kernel_sizes: tuple[int, ...]
    strides: tuple[int, ...]
    paddings: tuple[int, ...] | None = None
    temperature: float = 1.0
    logit_bias: float = LOGIT_BIAS
    rescale: Rescale = "squash"
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    def __post_init__(self) -> None:
        super().__post_init__()
        names = ("features", "ranks", "kernel_sizes", "strides", "paddings")
        lengths = {name: len(getattr(self, name)) for name in names if getattr(self, name) is not None}
        fits = len(set(lengths.values())) == 1
        require(fits, ", ".join(lengths), f"lengths {lengths}", "one entry per layer in each")
        require(0 < self.temperature < math.inf, "temperature", self.temperature, "a positive finite number")

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "n h w c"],
        train: bool = False,
        frozen: bool = False,
        encoded: bool = False,
        through: Float[Array, "n h w c2"] | None = None,
    ) -> Any:
        """Classify.

        Args:
            images: (N, H, W, C) in [0, 1]; or their encoding, (N, H, W, 2C), with `encoded`.
            train: ignored; a CoDA Net behaves the same in training.
            frozen: hold every dynamic weight constant: the logits are then affine in the input.
            encoded: whether `images` are already encoded.
            through: an encoded input u; the second output is then the linear part of the logits, W(x) u.

        Returns:
            Logits, (N, classes); with `through` the pair (logits, W(x) u), both (N, classes).
        """
        del train
        x = images if encoded else encode(images)
        paddings = self.paddings or tuple((k - 1) // 2 for k in self.kernel_sizes)
        own = (self.rescale, self.dtype, self.param_dtype)
        rows = zip(self.features, self.ranks, self.kernel_sizes, self.strides, paddings, strict=True)
        for i, (features, rank, kernel, stride, padding) in enumerate(rows):
            layer = DynamicAlignmentConv(features, rank, (kernel,) * 2, (stride,) * 2, padding, *own, name=f"layer_{i}")
            if through is None:
                x = layer(x, frozen)
            else:
                x, through = layer(x, frozen, through)
        logits = self._pool(x) + self.logit_bias
        return logits if through is None else (logits, self._pool(through))

    def __explainable__(self, variables: Any) -> Explainable:
        """Return the network as it is explained: from the encoded image, whose contributions leave out b_0 alone."""
        return explainable(
            self,
            variables,
            keywords={"encoded": True},
            encoding=encoding,
            bias=self.logit_bias,
            levels=tuple(f"layer_{i}" for i in range(len(self.features) - 1)),
            pooled=f"layer_{len(self.features) - 1}",
            probability="sigmoid",
        )

    def _pool(self, x: Float[Array, "n h w k"]) -> Float[Array, "n k"]:
        return x.astype(widened(x.dtype)).sum((1, 2)) / self.temperature


def s_coda(temperature: float = 1000.0, rank: int = 32, classes: int = 10, **fields: Any) -> CoDANet:
    """Build the paper's 9-layer S net for 32×32 images: 7,782,816 parameters at rank 32 and 10 classes.

    Args:
        temperature: T on the sum over the 8×8 final positions; 1000 is the headline model.
        rank: f of the rank ablation, ranks (f, f, 2f × 7); 4, 8, 16, 32 (base) or 144.
        classes: number of classes.
        **fields: further fields of `CoDANet`.

    Source: CVPR 2021, Sec. 4; layer table from the authors' CIFAR-10 configuration.
    """
    return CoDANet(
        features=(16, 16, 32, 32, 32, 64, 64, 64, classes),
        ranks=(rank, rank) + (2 * rank,) * 7,
        kernel_sizes=(3,) * 8 + (1,),
        strides=(1, 1, 2, 1, 1, 2, 1, 1, 1),
        temperature=temperature,
        **fields,
    )


def l_coda(temperature: float = 100_000.0, classes: int = 100, **fields: Any) -> CoDANet:
    """Build the authors' 9-layer L net for 240×240 images: 47,517,408 parameters at 100 classes.

    T divides the sum over the 20×20 final positions; arguments as in `s_coda`.

    Source: CVPR 2021, Sec. 4; layer table from the authors' ImageNet-100 configuration.
    """
    return CoDANet(
        features=(16, 32, 32, 64, 64, 64, 64, 64, classes),
        ranks=(64,) * 3 + (128,) * 3 + (256,) * 3,
        kernel_sizes=(7,) + (3,) * 8,
        strides=(3, 1, 1, 2, 1, 1, 2, 1, 1),
        temperature=temperature,
        **fields,
    )


def alignment_penalty(
    model: nn.Module,
    variables: Any,
    images: Float[Array, "n h w c"],
    targets: Int[Array, "n t"] | None = None,
    power: Literal[1, 2] = 1,
) -> Float[Array, ""]:
    """Return the mean size of the entries of W_{0→L}(x), the paper's regularizer of the explanation.

    ⟨|W_{0→L}(x)|^power⟩ over images, target classes and encoded input entries. W includes the pooling sum and 1/T.
    Its gradient reaches the parameters through the dynamic weights of every layer, so W is taken from a second linear
    stream u ↦ W(x) u; a frozen pass would cut it.

    Args:
        model: a `CoDANet`.
        variables: its variables.
        images: (N, H, W, C) in [0, 1].
        targets: classes whose rows are penalized, (N, T); None for all.
        power: 1 or 2.

    Source: CVPR 2021, Sec. 3.3 (loss with λ⟨|W_{0→L}|⟩).
    """
    require_one_of("power", power, (1, 2))
    e = encode(images)

    def linear_part(u: Array) -> Array:
        return model.apply(variables, e, encoded=True, through=u)[1]  # type: ignore[return-value, index]

    linear, pullback = jax.vjp(linear_part, e)
    rows = jnp.broadcast_to(jnp.arange(linear.shape[-1]), linear.shape) if targets is None else targets
    cotangents = jax.nn.one_hot(rows.T, linear.shape[-1], dtype=linear.dtype)
    weights = jax.vmap(lambda c: pullback(c)[0])(cotangents)
    return (jnp.abs(weights) if power == 1 else weights**2).mean()
