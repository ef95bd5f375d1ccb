"""Base classes that the networks share."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxinterp.checks import require


class Layer(nn.Module, kw_only=True):
    """Base class: the types and mapped-axis name that all layers share, by keyword.

    Attributes:
        dtype: type of the convolutions, e.g. bfloat16; None keeps the input's. BatchNorm is float32 or wider.
        param_dtype: type of the parameters.
        axis_name: the mapped axis over which `jax.pmap` shares the batch statistics; None under `jit`.
    """

    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    @property
    def shared(self) -> dict[str, Any]:
        """Return the same fields, for the layers inside."""
        return {"dtype": self.dtype, "param_dtype": self.param_dtype, "axis_name": self.axis_name}

    def widen(self, x: Array) -> Array:
        """Return an input at least as wide as the parameters: float16 images are read in float32."""
        return x.astype(np.promote_types(x.dtype, self.param_dtype))


class ConvNet(Layer, kw_only=True):
    """A network that optionally standardizes its images.

    Attributes:
        mean: per-channel mean that is subtracted from images in [0, 1], or None for 0.
        std: per-channel standard deviation, or None for 1.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def standardize(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        """Return (x − mean) / std, at least as wide as the parameters."""
        for name, value in (("mean", self.mean), ("std", self.std)):
            require(value is None or len(value) == x.shape[-1], name, value, f"{x.shape[-1]} numbers, one per channel")
        x = self.widen(x)
        if self.mean is not None:
            x = x - jnp.asarray(self.mean, x.dtype).reshape(1, 1, 1, -1)
        return x if self.std is None else x / jnp.asarray(self.std, x.dtype).reshape(1, 1, 1, -1)

    def classify(self, x: Float[Array, "n h w c"], classes: int) -> Float[Array, "n classes"]:
        """Apply global average pooling and the linear classifier, in float32 or wider."""
        pooled = x.astype(np.promote_types(np.float32, x.dtype)).mean((1, 2))
        init, dtype = nn.initializers.he_normal(), self.param_dtype
        return nn.Dense(classes, kernel_init=init, param_dtype=dtype, name="classifier")(pooled)
