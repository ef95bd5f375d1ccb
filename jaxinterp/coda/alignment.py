"""The dynamic alignment layer: a convolution whose weights are linear-algebraic functions of each patch.

Böhle, Fritz, Schiele, "Convolutional Dynamic Alignment Networks for Interpretable Classifications", CVPR 2021
(arXiv 2104.00032). One dynamic alignment unit (DAU) j of a layer sees the patch x ∈ R^D and answers

    h   = B x                  B ∈ R^{r×D}, shared by the units of the layer        (Sec. 3.4)
    v_j = A_j h + b_j          A_j ∈ R^{D×r}, b_j ∈ R^D                             (Eq. 2)
    w_j = g(v_j)               g keeps the direction and bounds the length          (Eq. 3, 4)
    o_j = <w_j, x>                                                                  (Eq. 1)

The dynamic weights are never formed. With A_jk the k-th column of A_j,

    <v_j, x> = Σ_k h_k <A_jk, x> + <b_j, x>
    ||v_j||² = hᵀ (A_jᵀ A_j) h + 2 (A_jᵀ b_j)ᵀ h + ||b_j||²

which is one matrix product over the patches and one small one over h.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from numbers import Integral
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxinterp.checks import require, require_at_least, require_one_of
from jaxinterp.nn.patches import patches
from jaxinterp.nn.platform import by_platform

Rescale = Literal["squash", "l2"]
Generator = tuple[Float[Array, "r j d"], Float[Array, "j d"]]  # A and b
Coefficients = tuple[Float[Array, "m r"], Float[Array, "m j"]]  # h and scale

# Keeps d sqrt(u) finite at u = 0 (a unit whose b_j is zero on an empty patch); below float64's resolution of ||v||².
SQRT_EPSILON = 1e-24

CHUNK_BYTES = 3 << 20  # a chunk's largest intermediate on a CPU; a backward pass holds several of them


def widened(dtype: DTypeLike) -> DTypeLike:
    """Return the type of norms, Gram matrices and logits: float32, or float64 where the rest is."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32


@jax.custom_jvp
def contract(h: Float[Array, "m k"], u: Float[Array, "m k j"]) -> Float[Array, "m j"]:
    """Compute Σ_k h_k u_kj, with multiply-and-sum as its derivative.

    On a CPU a batched product is faster to evaluate, but the backward pass of the sum is several times cheaper
    than that of the product. An accelerator sums, so that norms are not rounded to TF32 or bfloat16.
    """
    return by_platform(partial(jnp.einsum, "mk,mkj->mj"), lambda h, u: (h[:, :, None] * u).sum(1), h, u)


@contract.defjvp
def _contract_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    (h, u), (dh, du) = primals, tangents
    return contract(h, u), (dh[:, :, None] * u).sum(1) + (h[:, :, None] * du).sum(1)


def _exactly(a: Array, b: Array) -> Array:
    """Multiply at full precision: norms must not be rounded to TF32 or bfloat16."""
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def _times(h: Float[Array, "m k"], g: Float[Array, "k l j"]) -> Float[Array, "m l j"]:
    return _exactly(h, g.reshape(g.shape[0], -1)).reshape(-1, *g.shape[1:])


@jax.custom_jvp
def quadratic_form(h: Float[Array, "m k"], g: Float[Array, "k k j"]) -> Float[Array, "m j"]:
    """Compute hᵀ G_j h for symmetric G_j.

    The derivative 2 (G_j h)ᵀ dh + hᵀ dG_j h reuses the product G_j h, which autodiff would form twice.
    """
    return contract(h, _times(h, g))


@quadratic_form.defjvp
def _quadratic_form_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    (h, g), (dh, dg) = primals, tangents
    gh = _times(h, g)
    return contract(h, gh), 2 * (gh * dh[:, :, None]).sum(1) + (_times(h, dg) * h[:, :, None]).sum(1)


def _inner(a: Array, b: Array) -> Array:
    """Compute the inner products of rows, at full precision, in float32 or wider."""
    wide = widened(a.dtype)
    return jnp.einsum("kd,ld->kl", a, b, precision=lax.Precision.HIGHEST, preferred_element_type=wide)


def _rows(A: Float[Array, "r j d"], b: Float[Array, "j d"], j: Array | int) -> Float[Array, "r1 d"]:
    """Return unit j's A_jᵀ and below it b_j."""
    return jnp.concatenate([lax.dynamic_index_in_dim(a, j, -2, keepdims=False) for a in (A, b[None])])


@jax.custom_jvp
def _unit_by_unit(A: Float[Array, "r j d"], b: Float[Array, "j d"]) -> Float[Array, "j r1 r1"]:
    """Compute [A_j b_j]ᵀ[A_j b_j] of one unit after the other, where they lie: a batched product would copy A."""

    def unit(j: Array) -> Array:
        rows = _rows(A, b, j)
        return _inner(rows, rows)

    return lax.map(unit, jnp.arange(len(b)))


@_unit_by_unit.defjvp
def _unit_by_unit_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    (A, b), (dA, db) = primals, tangents
    moved = jnp.concatenate([dA.swapaxes(0, 1), db[:, None]], 1)  # scanned, for its transpose must not sum over units
    half = lax.map(lambda unit: _inner(_rows(A, b, unit[0]), unit[1]), (jnp.arange(len(b)), moved))
    return _unit_by_unit(A, b), half + half.swapaxes(1, 2)


def gram(A: Float[Array, "r j d"], b: Float[Array, "j d"]) -> tuple[Array, Array, Array]:
    """Compute the terms of ||v_j||², A_jᵀ A_j (r, r, J), A_jᵀ b_j (r, J) and ||b_j||² (1, J), in float32 or wider."""

    def at_once(A: Array, b: Array) -> tuple[Array, Array, Array]:
        wide = widened(A.dtype)
        product = partial(jnp.einsum, precision=lax.Precision.HIGHEST, preferred_element_type=wide)
        return product("kjd,ljd->klj", A, A), product("kjd,jd->kj", A, b), (b.astype(wide) ** 2).sum(-1)[None]

    def unit_by_unit(A: Array, b: Array) -> tuple[Array, Array, Array]:
        products = jnp.moveaxis(_unit_by_unit(A, b), 0, 2)
        return products[:-1, :-1], products[:-1, -1], products[-1, -1:]

    return by_platform(unit_by_unit, at_once, A, b)


def coefficients(h: Float[Array, "m r"], norms: tuple[Array, Array, Array], rescale: Rescale) -> Coefficients:
    """Compute the scale of the dynamic weights of h = B p, w_j = scale_j (A_j h + b_j), with `norms` from `gram`.

    The scale, in the norms' type, is ||v|| / (1 + ||v||²) ("squash") or 1 / ||v|| ("l2"). The terms of ||v||² may
    cancel: below their rounding error it is held at that error, without gradient.
    """
    square, cross, constant = norms
    wide = h.astype(square.dtype)
    form = quadratic_form(wide, square)
    squared = form + 2 * _exactly(wide, cross) + constant
    floor = lax.stop_gradient(jnp.finfo(square.dtype).eps * (form + constant))
    squared = jnp.where(squared > floor, squared, floor)
    norm = jnp.sqrt(squared + SQRT_EPSILON)
    return h, norm / (1 + squared) if rescale == "squash" else 1 / norm


def align(p: Float[Array, "m d"], generator: Generator, coefficients: Coefficients) -> Float[Array, "m j"]:
    """Compute <w_j, p> without forming w: scale_j (Σ_k h_k <A_jk, p> + <b_j, p>) (CVPR 2021, Eq. 1, factored)."""
    (A, b), (h, scale) = generator, coefficients
    u = jnp.einsum("md,nd->mn", p, A.reshape(-1, A.shape[-1])).reshape(-1, *A.shape[:2])
    through_b = jnp.matmul(p, b.T, preferred_element_type=scale.dtype)
    return ((contract(h, u).astype(scale.dtype) + through_b) * scale).astype(p.dtype)


def align_explicitly(p: Float[Array, "m d"], generator: Generator, coefficients: Coefficients) -> Float[Array, "m j"]:
    """Compute <w_j, p> through w itself, so that the transpose for many classes shares one w.

    Forming w once costs as much as one factored pass; each class then costs J·D per position instead of
    (r + 1)·J·D. Only one chunk's w is alive at any time.
    """
    (A, b), (h, scale) = generator, coefficients
    w = jnp.matmul(h, A.reshape(A.shape[0], -1)).reshape(-1, *A.shape[1:]) + b[None]
    return jnp.einsum("mjd,md->mj", (w.astype(scale.dtype) * scale[..., None]).astype(p.dtype), p)


@jax.custom_jvp
def align_held(p: Float[Array, "m d"], generator: Generator, coefficients: Coefficients) -> Float[Array, "m j"]:
    """Compute <w_j, p> as `align` does, with w_j held constant under differentiation, and derivatives through w.

    Generator and coefficients must not depend on what is differentiated: their tangents are left out.
    """
    return align(p, generator, coefficients)


@align_held.defjvp
def _align_held_jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
    p, generator, coefficients = primals
    return align_held(p, generator, coefficients), align_explicitly(tangents[0], generator, coefficients)


def in_cache(function: Callable[..., Any], row_bytes: int, *arrays: Float[Array, "m _"]) -> Any:
    """Apply a per-row function to chunks of rows whose largest intermediate stays in a CPU core's cache.

    `row_bytes` is its size per row. The chunks are computed again in the backward pass instead of stored. On an
    accelerator the function is applied at once.
    """
    rows = arrays[0].shape[0]
    chunks = math.ceil(rows / max(64, CHUNK_BYTES // row_bytes))
    size = math.ceil(rows / chunks)

    def chunked(*arrays: Array) -> Any:
        padded = (jnp.pad(a, ((0, chunks * size - rows), (0, 0))).reshape(chunks, size, -1) for a in arrays)
        out = lax.map(lambda chunk: jax.checkpoint(function)(*chunk), tuple(padded))
        return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[:rows], out)

    return function(*arrays) if chunks == 1 else by_platform(chunked, function, *arrays)


class DynamicAlignmentConv(nn.Module):
    """A convolution whose weights align to each patch; usable alone in any Flax model.

    y_j(q) = g(A_j B x(q) + b_j)ᵀ x(q), at every position q, in the factored form of this file's head: no output bias,
    no activation, no normalization. With `frozen=True` the dynamic weights are held constant, so the value is
    unchanged and the layer is linear in the `x` that flows through it.

    Attributes:
        features: number of units J, the output channels.
        rank: rank r of the weight generator's bottleneck.
        kernel_size: patch size in pixels, (k_y, k_x).
        strides: step between patches in pixels, (s_y, s_x).
        padding: zero padding per side in pixels, one int, (p_y, p_x), or None for (k − 1) // 2.
        rescale: "squash", ||w|| = ||v||² / (1 + ||v||²) < 1, or "l2", ||w|| = 1.
        dtype: type of the large products, e.g. bfloat16; norms are float32 or wider. None keeps the input's.
        param_dtype: type of the parameters B (D, r), A (r, J, D) and b (J, D), with D ordered (k_y, k_x, C).

    Source: CVPR 2021, Eq. 1–4, Sec. 3.4; initialization is PyTorch's default for the two convolutions of the
    authors' layer, U(±1/√fan_in) with fan-in D for B and r for A and b.
    """

    features: int
    rank: int
    kernel_size: tuple[int, int] = (3, 3)
    strides: tuple[int, int] = (1, 1)
    padding: int | tuple[int, int] | None = None
    rescale: Rescale = "squash"
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    def __post_init__(self) -> None:
        super().__post_init__()
        padding = (0, 0) if self.padding is None else _pair(self.padding)
        fields = (("kernel_size", self.kernel_size, 1), ("strides", self.strides, 1), ("padding", padding, 0))
        for name, pair, bound in fields:
            fits = _is_pair(pair) and min(pair) >= bound
            require(fits, name, getattr(self, name), f"whole numbers (y, x) of at least {bound}")
        require_one_of("rescale", self.rescale, get_args(Rescale))
        require_at_least("features, rank", (self.features, self.rank), 1)

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], frozen: bool = False, through: Float[Array, "n h w c"] | None = None
    ) -> Any:
        """Align to every patch of `x`.

        Args:
            x: input, (N, H, W, C), floating.
            frozen: hold the dynamic weights W(x) constant under differentiation.
            through: a second input u for the weights of `x`, which stay differentiable in everything; used to
                regularize the weights themselves.

        Returns:
            y = W(x) x, (N, H', W', J), or the pair (W(x) x, W(x) u) where `through` is given.
        """
        floating = x.ndim == 4 and jnp.issubdtype(x.dtype, jnp.floating)
        require(floating, "x", f"{x.dtype}{x.shape}", "floating images (N, H, W, C)")
        ky, kx = self.kernel_size
        py, px = ((ky - 1) // 2, (kx - 1) // 2) if self.padding is None else _pair(self.padding)
        geometry = ((ky, kx), self.strides, ((py, py), (px, px)))
        *positions, d = jax.eval_shape(lambda x: patches(x, *geometry), x).shape
        r, j = self.rank, self.features
        B = self.param("B", _uniform(d), (d, r), self.param_dtype)
        A = self.param("A", _uniform(r), (r, j, d), self.param_dtype)
        b = self.param("b", _uniform(r), (j, d), self.param_dtype)
        dtype = np.promote_types(x.dtype, self.param_dtype) if self.dtype is None else self.dtype
        x, B, A, b = nn.dtypes.promote_dtype(x, B, A, b, dtype=dtype)
        norms = gram(A, b)

        def rows(x: Array) -> Array:
            # One flat axis of positions: XLA's CPU compiler (jaxlib 0.10.2) fuses these reductions wrongly where a
            # spatial axis has length 1.
            return patches(x, *geometry).reshape(-1, d)

        def respond(p: Array) -> Array:
            return align(p, (A, b), coefficients(jnp.matmul(p, B), norms, self.rescale))

        def respond_frozen(p: Array) -> Array:
            held = coefficients(jnp.matmul(lax.stop_gradient(p), B), norms, self.rescale)
            return align_held(p, *lax.stop_gradient(((A, b), held)))

        def respond_through(p: Array, u: Array) -> tuple[Array, Array]:
            held = coefficients(jnp.matmul(p, B), norms, self.rescale)
            return align(p, (A, b), held), align_explicitly(u, (A, b), held)

        # Bytes of one position's Gh, and of the larger of it and w.
        factored = j * r * jnp.dtype(widened(x.dtype)).itemsize
        explicit = max(factored, j * d * x.dtype.itemsize)
        if through is not None:
            u = rows(through.astype(x.dtype))
            y, wu = in_cache(respond_through, explicit, rows(x), u)
            return y.reshape(*positions, j), wu.reshape(*positions, j)
        y = in_cache(respond_frozen, explicit, rows(x)) if frozen else in_cache(respond, factored, rows(x))
        return y.reshape(*positions, j)


def _pair(padding: Any) -> Any:
    return (padding, padding) if isinstance(padding, int) else padding


def _is_pair(value: Any) -> bool:
    return isinstance(value, Sequence) and len(value) == 2 and all(isinstance(v, Integral) for v in value)


def _uniform(fan_in: int) -> nn.initializers.Initializer:
    return partial(jax.random.uniform, minval=-1 / math.sqrt(fan_in), maxval=1 / math.sqrt(fan_in))
