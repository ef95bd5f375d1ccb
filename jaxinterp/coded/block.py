"""The residual block of a Coded ResNeXt: paths (subNNs) whose energies are normalized and sum to the output.

Avranas and Kountouris, "Towards Disentangling Information Paths with Coded ResNeXt", NeurIPS 2022 (arXiv 2202.05343).
A block has N paths of width d; path n answers t_n = W_n u_n, with u_n the output of its 1×1 and grouped 3×3
convolutions. In a coded block (Sec. 3)

    E_n   = mean over positions and channels of t_n²                          energy of a path
    ρ     = √(1/N Σ_n E_n)        t̄_n = t_n / ρ                               energy normalization      (Eq. 2, 3)
    y     = Σ_n m_n t̄_n                                                       m: paths dropped or removed

followed by BatchNorm (the only one after the sum), the shortcut and a ReLU. W_n is linear and without bias, and ρ and m
are numbers per image and path, so the (B, H, W, N, C) tensor of all t_n is never formed:

    E_n   = <Σ_hw u_n u_nᵀ, W_n W_nᵀ> / (C H W)        y = [u_n m_n / ρ]_n [W_n]_n, one dense product

At each input the block is affine once ρ is held (`frozen=True`); ReLUs hold their own gates.
"""

import math
from functools import partial

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from jaxinterp.checks import require
from jaxinterp.nn.batchnorm import BatchNorm
from jaxinterp.nn.layers import Layer
from jaxinterp.nn.platform import by_platform

MAX_DENSE_MULTIPLY_ADDS = 1 << 26  # up to here one dense convolution is used: it compiles faster than one per group


def grouped_conv(
    x: Float[Array, "n h w c"], kernel: Float[Array, "3 3 d c"], strides: int = 1
) -> Float[Array, "n h2 w2 c"]:
    """Convolve C/d groups of d channels each by 3×3 filters, zero padding 1.

    On a CPU every group gets a convolution of its own: the backward pass of XLA's grouped convolution is a hundred
    times slower, a dense one with zeros between the groups takes four times as long, products batched over the groups
    twice. For very few images or channels the dense one is used all the same, as it compiles in a tenth of the time. On
    a TPU it is dense too: the matrix unit, 128 channels wide, pads what is narrower, and the program of ResNeXt-29's
    step is a third smaller.
    """
    d, channels = kernel.shape[2:]
    groups = channels // d
    convolve = partial(
        lax.conv_general_dilated,
        window_strides=(strides, strides),
        padding=((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    if groups == 1:
        return convolve(x, kernel)

    def dense(x: Array, kernel: Array) -> Array:
        diagonal = jnp.eye(groups, dtype=kernel.dtype)[None, None, :, None, :, None]
        filled = diagonal * kernel.reshape(3, 3, 1, d, groups, -1)
        return convolve(x, filled.reshape(3, 3, channels, -1))

    def group_by_group(x: Array, kernel: Array) -> Array:
        parts = zip(jnp.split(x, groups, axis=3), jnp.split(kernel, groups, axis=3), strict=True)
        return jnp.concatenate([convolve(part, taps) for part, taps in parts], axis=3)

    few = x.size // strides**2 * 9 * channels <= MAX_DENSE_MULTIPLY_ADDS
    grouped = partial(convolve, feature_group_count=groups)
    return by_platform(dense if few else group_by_group, grouped, x, kernel, tpu=dense)


def path_energies(
    u: Float[Array, "batch h w paths d"], expand: Float[Array, "paths d c"], train: bool = False
) -> Float[Array, "batch paths"]:
    """Compute E_n ≥ 0, the mean of (W_n u_n)² over positions and channels, float32 or wider, in the Gram form above.

    Products are exact, as energies are held when logits are split, but in training, where they have JAX's default
    precision: that of the convolutions beside them.

    Source: arXiv 2202.05343, Eq. 2; the Gram form is ours.
    """
    wide = np.promote_types(np.float32, u.dtype)
    u, expand = u.astype(wide), expand.astype(wide)
    product = partial(jnp.einsum, precision=None if train else lax.Precision.HIGHEST)
    second = product("bhwnd,bhwne->bnde", u, u)
    gram = product("ndc,nec->nde", expand, expand)
    energies = product("bnde,nde->bn", second, gram)
    return jnp.maximum(energies, 0) / (expand.shape[2] * u.shape[1] * u.shape[2])


def _he(fan_out: int) -> nn.initializers.Initializer:
    """Return the initializer N(0, 2 / fan_out)."""
    return nn.initializers.normal(math.sqrt(2 / fan_out))


class Pointwise(Layer):
    """A 1×1 convolution without bias, as a product of two matrices.

    For the gradient of the weights XLA's CPU backend copies an operand with more than two axes, transposed and value by
    value, which took a third of a step's time.

    Attributes:
        features: output channels.
        fan_out: the initial weights have the variance 2 / fan_out.
    """

    features: int
    fan_out: int

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w features"]:
        """Mix the channels of every pixel."""
        kernel = self.param("kernel", _he(self.fan_out), (x.shape[3], self.features), self.param_dtype)
        x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype)
        return (x.reshape(-1, x.shape[3]) @ kernel).reshape(*x.shape[:3], self.features)


class Paths(nn.Module):
    """The scaled outputs of the paths, u_n m_n / ρ: the layer at which a path's share of a logit is read."""

    def __call__(self, u: Float[Array, "batch h w paths d"], scale: Float[Array, "batch paths"]) -> Array:
        """Scale every path; (B, H, W, N·d), path by path."""
        return (u * scale[:, None, None, :, None].astype(u.dtype)).reshape(*u.shape[:3], -1)


class Out(nn.Module):
    """A block's output, ReLU(y + shortcut); a module so that `layer=` can name it."""

    def __call__(self, y: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        """Rectify."""
        return nn.relu(y)


class CodedBlock(Layer):
    """A residual block: coded (the paths' energies are normalized) or an ordinary ResNeXt block.

    Attributes:
        features: output channels C.
        width: channels d of a path.
        paths: paths that are present.
        divisor: N, which divides the sum of the energies; `paths` unless some were removed.
        strides: step of the 3×3 convolution in pixels.
        normalize: normalize energies; False for an ordinary ResNeXt block.
        ghost: see `BatchNorm`.

    Source: arXiv 2202.05343, Fig. 1 and Sec. 3.1; initialization is the authors' (He, fan out, as PyTorch counts it).
    """

    features: int
    width: int
    paths: int
    divisor: int
    strides: int = 1
    normalize: bool = True
    ghost: int | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "n h w c"],
        train: bool = False,
        frozen: bool = False,
        mask: Float[Array, "n paths"] | None = None,
        keep: Float[Array | np.ndarray, "..."] | None = None,
        shortcuts_only: bool = False,
    ) -> tuple[Float[Array, "n h2 w2 features"], Float[Array, "n paths"] | None]:
        """Run the block.

        Args:
            x: input, (N, H, W, C).
            train: BatchNorm with the batch's statistics.
            frozen: hold ρ under differentiation, and BatchNorm in evaluation.
            mask: factor of every path after the normalization (dropSubNNs), (N, paths).
            keep: factor of every path before it, (paths,) or (N, paths): 0 removes a path.
            shortcuts_only: hold the paths' inputs too, so that derivatives pass through the shortcut alone.

        Returns:
            The output, and the energies of all paths, (N, paths), float32 or wider; None for an ordinary block.
        """
        train = train and not frozen
        inner, size = self.paths * self.width, self.divisor * self.width
        norm = partial(BatchNorm, ghost=self.ghost, **self.shared)
        u = lax.stop_gradient(x) if shortcuts_only else x
        u = nn.relu(norm(name="norm_reduce")(Pointwise(inner, size, name="reduce", **self.shared)(u), train))
        kernel = self.param("inner_kernel", _he(9 * size), (3, 3, self.width, inner), self.param_dtype)
        u, kernel = nn.dtypes.promote_dtype(u, kernel, dtype=self.dtype)
        u = nn.relu(norm(name="norm_inner")(grouped_conv(u, kernel, self.strides), train))
        init = _he(self.features * (self.divisor if self.normalize else 1))
        expand = self.param("expand_kernel", init, (self.paths, self.width, self.features), self.param_dtype)
        u = u.reshape(*u.shape[:3], self.paths, self.width)
        wide = np.promote_types(np.float32, u.dtype)
        scale, energies = jnp.ones((len(x), self.paths), wide), None
        if keep is not None:
            shapes = scale.shape[1:], scale.shape
            require(jnp.shape(keep) in shapes, "keep", f"shape {jnp.shape(keep)}", f"one of {shapes}")
            keep = jnp.broadcast_to(jnp.asarray(keep), scale.shape).astype(wide)
        if self.normalize:
            energies = path_energies(u, expand, train) * (1 if keep is None else keep)
            mean = energies.sum(1, keepdims=True) / self.divisor
            rho = lax.rsqrt(jnp.where(mean > 0, mean, 1))  # without energy every t_n is 0, and the sum, whatever ρ
            scale = scale * (lax.stop_gradient(rho) if frozen else rho)
        for factor in (mask, keep):
            scale = scale if factor is None else scale * factor.astype(wide)
        v, stacked = nn.dtypes.promote_dtype(Paths(name="paths")(u, scale), expand.reshape(inner, -1), dtype=self.dtype)
        y = (v.reshape(-1, inner) @ stacked).reshape(*v.shape[:3], -1)
        y = norm(zero=True, name="norm_expand")(y, train)
        if self.strides != 1 or x.shape[-1] != self.features:
            skip = Pointwise(self.features, self.features, name="skip", **self.shared)
            x = norm(name="norm_skip")(skip(x[:, :: self.strides, :: self.strides]), train)
        return Out(name="out")(y + x.astype(y.dtype)), energies
