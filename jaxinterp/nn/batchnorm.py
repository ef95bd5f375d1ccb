"""BatchNorm with PyTorch's conventions, on one device or many, over whole batches or ghost batches."""

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from jaxinterp.nn.layers import Layer


class BatchNorm(Layer):
    """BatchNorm as PyTorch's, with statistics of ghost batches where these are asked for.

    y = γ (x − μ) / √(σ² + 1e-5) + β. In training μ and σ² are those of the batch, or of each part of `ghost` images of
    it; the running statistics keep 0.9 of themselves per step and take σ² with n − 1 as PyTorch does. Parts that share
    a batch hand on their mean.

    Attributes:
        zero: start from γ = 0 instead of 1.
        ghost: images that share statistics in training; None for the whole batch.
    """

    zero: bool = False
    ghost: int | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool = False) -> Float[Array, "n h w c"]:
        """Normalize with the batch's statistics (train) or the running ones, in float32 or wider.

        Args:
            x: (N, H, W, C).
            train: with the batch's statistics, which the running ones then take up.

        Returns:
            (N, H, W, C), in the type of `x`.

        Raises:
            ValueError: the batch cannot be cut into parts of `ghost` images.
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
            return (y * factor[None, None, None] + shift[None, None, None]).astype(x.dtype)
        size = len(x) if self.ghost is None else self.ghost
        if len(x) % size:
            raise ValueError(f"ghost: got {size}, expected a divisor of the batch, {len(x)}")
        parts = y.reshape(-1, size, *y.shape[1:])
        mu = parts.mean((1, 2, 3))
        square = (parts**2).mean((1, 2, 3))
        if self.axis_name is not None and self.ghost is None and not self.is_initializing():
            mu, square = lax.pmean((mu, square), self.axis_name)
        sigma2 = jnp.maximum(square - mu**2, 0)
        factor = scale[None] * lax.rsqrt(sigma2 + 1e-5)
        shift = bias[None] - mu * factor
        if not self.is_initializing():
            devices = 1 if self.axis_name is None or self.ghost is not None else lax.axis_size(self.axis_name)
            count = devices * size * x.shape[1] * x.shape[2]
            mean.value = 0.9 * mean.value + 0.1 * mu.mean(0)
            var.value = 0.9 * var.value + 0.1 * sigma2.mean(0) * (count / max(1, count - 1))
        spread = (slice(None), None, None, None)
        return (parts * factor[spread] + shift[spread]).reshape(y.shape).astype(x.dtype)
