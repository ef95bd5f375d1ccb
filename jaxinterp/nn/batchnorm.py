"""BatchNorm with PyTorch's conventions, on one device or many, over whole batches or ghost batches."""

import math

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from jaxinterp.checks import require
from jaxinterp.nn.layers import Layer


class BatchNorm(Layer):
    """Batch normalization as in PyTorch, optionally over ghost batches.

    y = γ (x − μ) / √(σ² + 1e-5) + β, per channel. In training μ and σ² are the batch's, or those of each part of
    `ghost` examples; the running statistics keep 0.9 of themselves per step and take up the unbiased σ². Parts of one
    batch contribute their mean.

    Attributes:
        zero: start from γ = 0 instead of 1.
        ghost: examples that share statistics in training; None for the whole batch.

    Source: Ioffe & Szegedy, ICML 2015; ghost batches: Hoffer, Hubara, Soudry, NeurIPS 2017.
    """

    zero: bool = False
    ghost: int | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "n *shape c"], train: bool = False) -> Float[Array, "n *shape c"]:
        """Normalize with the batch's statistics, and update the running ones (train), or with the running ones.

        Computed in float32 or wider; returns the type of `x`. `ghost` must divide the batch.
        """
        channels, wide = x.shape[-1], np.promote_types(np.float32, self.param_dtype)
        init = nn.initializers.zeros if self.zero else nn.initializers.ones
        scale = self.param("scale", init, (channels,), wide)
        bias = self.param("bias", nn.initializers.zeros, (channels,), wide)
        mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), wide)
        var = self.variable("batch_stats", "var", jnp.ones, (channels,), wide)
        y = x.astype(np.promote_types(wide, x.dtype))
        if not train:
            factor = scale * lax.rsqrt(var.value + 1e-5)
            shift = bias - mean.value * factor
            per_channel = (1,) * (x.ndim - 1) + (channels,)
            return (y * factor.reshape(per_channel) + shift.reshape(per_channel)).astype(x.dtype)
        size = len(x) if self.ghost is None else self.ghost
        require(len(x) % size == 0, "ghost", size, f"a divisor of the batch, {len(x)}")
        parts = y.reshape(-1, size, *y.shape[1:])
        axes = tuple(range(1, parts.ndim - 1))
        mu, square = parts.mean(axes), (parts**2).mean(axes)
        devices = 1
        if self.axis_name is not None and self.ghost is None and not self.is_initializing():
            mu, square = lax.pmean((mu, square), self.axis_name)
            devices = lax.axis_size(self.axis_name)
        sigma2 = jnp.maximum(square - mu**2, 0)
        factor = scale[None] * lax.rsqrt(sigma2 + 1e-5)
        shift = bias[None] - mu * factor
        if not self.is_initializing():
            count = devices * math.prod(parts.shape[1:-1])
            mean.value = 0.9 * mean.value + 0.1 * mu.mean(0)
            var.value = 0.9 * var.value + 0.1 * sigma2.mean(0) * (count / max(1, count - 1))
        per_part = (-1, *(1,) * len(axes), channels)
        return (parts * factor.reshape(per_part) + shift.reshape(per_part)).reshape(y.shape).astype(x.dtype)
