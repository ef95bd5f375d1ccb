"""Convolutional Dynamic Alignment networks: every layer is linear in its input, with weights that align to it.

Böhle, Fritz, Schiele, "Convolutional Dynamic Alignment Networks for Interpretable Classifications", CVPR 2021
(arXiv 2104.00032). One dynamic alignment unit (DAU) j of a layer sees the patch x ∈ R^D and answers

    h   = B x                  B ∈ R^{r×D}, shared by the units of the layer        (Sec. 3.4)
    v_j = A_j h + b_j          A_j ∈ R^{D×r}, b_j ∈ R^D                             (Eq. 2)
    w_j = g(v_j)               g keeps the direction and bounds the length          (Eq. 3, 4)
    o_j = <w_j, x>                                                                  (Eq. 1)

The dynamic weights are never formed. With h̃ = [h; 1] and Ã_j = [A_j | b_j],

    <v_j, x> = Σ_k h̃_k <Ã_jk, x>          ||v_j||² = h̃ᵀ (Ã_jᵀ Ã_j) h̃

which is one matrix product over the patches and one small one over h̃.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

Rescale = Literal["squash", "l2"]

# Keeps d sqrt(u) finite at u = 0 (a unit whose b_j is zero on an empty patch); 1e-24 is below float64's
# resolution of the published figures and keeps ||w|| exact to 1e-12.
TINY = 1e-24

CACHE = 4 << 20  # bytes of a chunk's largest intermediate on a CPU

LOGIT_BIAS = math.log(0.1 / 0.9)  # the prior probability 0.1 of the authors' configurations


def encode(x: Float[Array, "*batch channels"]) -> Float[Array, "*batch two_channels"]:
    """Encode an image so that a colour is a direction and every pixel has the same L1 norm.

    e(x) = [x, 1 − x], so (r, g, b) becomes (r, g, b, 1−r, 1−g, 1−b). An absent (padded, removed) pixel is the
    zero vector, which is not black.

    Args:
        x: image, (..., C), in [0, 1], floating.

    Returns:
        (..., 2C), in [0, 1], of the same dtype.

    Raises:
        ValueError: `x` holds integers, of which 1 − x would wrap around.

    Example:
        >>> encode(jnp.array([0.25, 0.5, 1.0])).tolist()
        [0.25, 0.5, 1.0, 0.75, 0.5, 0.0]

    Source: CVPR 2021, Sec. 4 (input encoding).
    """
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x: got {x.dtype}, expected a floating image in [0, 1]")
    return jnp.concatenate([x, 1 - x], axis=-1)


def patches(
    x: Float[Array, "n h w c"], kernel: tuple[int, int], strides: tuple[int, int], padding: tuple[int, int]
) -> Float[Array, "n h2 w2 d"]:
    """Zero-padded patches of an image, as explicit slices.

    Args:
        x: images, (N, H, W, C).
        kernel: patch size (k_y, k_x) in pixels.
        strides: step between patches (s_y, s_x) in pixels.
        padding: zero padding (p_y, p_x) on each side, in pixels.

    Returns:
        (N, H', W', k_y·k_x·C) with entries ordered (k_y, k_x, c) and H' = ⌊(H + 2p − k)/s⌋ + 1.
    """
    (ky, kx), (sy, sx), (py, px) = kernel, strides, padding
    x = jnp.pad(x, ((0, 0), (py, py), (px, px), (0, 0)))
    height, width = (x.shape[1] - ky) // sy + 1, (x.shape[2] - kx) // sx + 1
    return jnp.concatenate(
        [
            x[:, i : i + sy * (height - 1) + 1 : sy, j : j + sx * (width - 1) + 1 : sx]
            for i in range(ky)
            for j in range(kx)
        ],
        axis=-1,
    )


def widened(dtype: DTypeLike) -> DTypeLike:
    """The type of norms, Gram matrices and logits: float32, or float64 where the rest is."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32


def _times(h: Float[Array, "m k"], gram: Float[Array, "k l j"]) -> Float[Array, "m l j"]:
    return jnp.matmul(h, gram.reshape(gram.shape[0], -1)).reshape(-1, *gram.shape[1:])


@jax.custom_jvp
def quadratic_form(h: Float[Array, "m k"], gram: Float[Array, "k k j"]) -> Float[Array, "m j"]:
    """hᵀ G_j h for symmetric positive semidefinite G_j, clipped at 0, as a product and a multiply-and-sum.

    Its derivative 2 (G_j h)ᵀ dh + hᵀ dG_j h reuses the product, which autodiff would form twice.
    """
    return jnp.maximum((_times(h, gram) * h[:, :, None]).sum(1), 0)


@quadratic_form.defjvp
def _quadratic_form_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    (h, gram), (dh, dgram) = primals, tangents
    gram_h = _times(h, gram)
    value = jnp.maximum((gram_h * h[:, :, None]).sum(1), 0)
    return value, 2 * (gram_h * dh[:, :, None]).sum(1) + (_times(h, dgram) * h[:, :, None]).sum(1)


def coefficients(
    p: Float[Array, "m d"], B: Float[Array, "d r"], gram: Float[Array, "r1 r1 j"], rescale: Rescale
) -> tuple[Float[Array, "m r1"], Float[Array, "m j"]]:
    """What a layer's dynamic weights are made of at each patch: w_j = scale_j · Σ_k h̃_k Ã_jk.

    Args:
        p: patches, (M, D).
        B: (D, r), the shared projection.
        gram: Ã_jᵀ Ã_j for every unit, (r + 1, r + 1, J), float32 or wider.
        rescale: "squash", scale = ||v|| / (1 + ||v||²), or "l2", scale = 1 / ||v||.

    Returns:
        h̃, (M, r + 1), of p's type, and scale, (M, J), of gram's.

    Source: CVPR 2021, Eq. 2–4 and Sec. 3.4; ||v_j||² = h̃ᵀ(Ã_jᵀÃ_j)h̃.
    """
    h = jnp.matmul(p, B)
    h = jnp.concatenate([h, jnp.ones_like(h[:, :1])], axis=-1)
    square = quadratic_form(h.astype(gram.dtype), gram)
    norm = jnp.sqrt(square + TINY)
    return h, norm / (1 + square) if rescale == "squash" else 1 / norm


def align(
    p: Float[Array, "m d"], generator: Float[Array, "r1 j d"], h: Float[Array, "m r1"], scale: Float[Array, "m j"]
) -> Float[Array, "m j"]:
    """<w_j, p> without forming w: scale_j · Σ_k h̃_k <Ã_jk, p> (CVPR 2021, Eq. 1, factored)."""
    u = jnp.matmul(p, generator.reshape(-1, generator.shape[-1]).T).reshape(-1, *generator.shape[:2])
    return ((u * h[:, :, None]).sum(1).astype(scale.dtype) * scale).astype(p.dtype)


def align_explicitly(
    p: Float[Array, "m d"], generator: Float[Array, "r1 j d"], h: Float[Array, "m r1"], scale: Float[Array, "m j"]
) -> Float[Array, "m j"]:
    """<w_j, p> through w itself, so that the transpose for many classes shares one w.

    Forming w once costs as much as one factored pass; each class then costs J·D per position instead of
    (r + 1)·J·D. Only one chunk's w is alive at any time.
    """
    w = jnp.matmul(h, generator.reshape(generator.shape[0], -1)).reshape(-1, *generator.shape[1:])
    return jnp.einsum("mjd,md->mj", (w.astype(scale.dtype) * scale[..., None]).astype(p.dtype), p)


def in_cache(function: Callable[..., Any], row_bytes: int, *arrays: Float[Array, "m _"]) -> Any:
    """Apply a per-row function to chunks of rows whose largest intermediate stays in a CPU core's cache.

    The chunks are computed again in the backward pass, so that nothing of theirs is stored. On an accelerator the
    function is applied at once.

    Args:
        function: (rows of each array) ↦ pytree of arrays with the same rows.
        row_bytes: size of the largest intermediate, bytes per row.
        arrays: arrays with a common first axis, (M, ...).

    Returns:
        The pytree for all rows.
    """
    rows = arrays[0].shape[0]
    chunks = math.ceil(rows / max(64, CACHE // row_bytes))
    if chunks == 1 or jax.default_backend() != "cpu":
        return function(*arrays)
    size = math.ceil(rows / chunks)
    padded = (jnp.pad(a, ((0, chunks * size - rows), (0, 0))).reshape(chunks, size, -1) for a in arrays)
    out = lax.map(lambda chunk: jax.checkpoint(function)(*chunk), tuple(padded))
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[:rows], out)


class DynamicAlignmentConv(nn.Module):
    """A convolution whose weights align to each patch; usable alone in any Flax model.

    y_j(q) = g(A_j B x(q) + b_j)ᵀ x(q), at every position q, in the factored form of this file's head: no output bias,
    no activation, no normalisation. With `frozen=True` the dynamic weights are held constant, so the value is
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

    Source: CVPR 2021, Eq. 1–4, Sec. 3.4; initialisation is PyTorch's default for the two convolutions of the
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
        if self.rescale not in get_args(Rescale):
            raise ValueError(f"rescale: got {self.rescale!r}, expected one of {', '.join(get_args(Rescale))}")
        if self.rank < 1 or self.features < 1:
            raise ValueError(f"features, rank: got {self.features}, {self.rank}, expected positive numbers")

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], frozen: bool = False, through: Float[Array, "n h w c"] | None = None
    ) -> Any:
        """Align to every patch of `x`.

        Args:
            x: input, (N, H, W, C), floating.
            frozen: hold the dynamic weights W(x) constant under differentiation.
            through: a second input u that is sent through the weights of `x`, which stay differentiable in
                everything; used to regularise the weights themselves.

        Returns:
            y = W(x) x, (N, H', W', J), or the pair (W(x) x, W(x) u) where `through` is given.
        """
        (ky, kx), pad = self.kernel_size, self.padding
        if pad is None:
            pad = ((ky - 1) // 2, (kx - 1) // 2)
        geometry = (self.kernel_size, self.strides, (pad, pad) if isinstance(pad, int) else pad)
        p = patches(x, *geometry)
        positions, d, r, j = p.shape[:-1], p.shape[-1], self.rank, self.features
        B = self.param("B", _uniform(d), (d, r), self.param_dtype)
        A = self.param("A", _uniform(r), (r, j, d), self.param_dtype)
        b = self.param("b", _uniform(r), (j, d), self.param_dtype)
        p, B, A, b = nn.dtypes.promote_dtype(p.reshape(-1, d), B, A, b, dtype=self.dtype)
        generator = jnp.concatenate([A, b[None]])

        gram = jnp.einsum("kjd,ljd->klj", generator, generator, preferred_element_type=widened(p.dtype))

        # One flat axis of positions: XLA's CPU compiler (jaxlib 0.10.2) fuses these reductions wrongly where a
        # spatial axis has length 1.
        def respond(p: Array) -> Array:
            return align(p, generator, *coefficients(p, B, gram, self.rescale))

        def respond_frozen(p: Array) -> Array:
            held = coefficients(lax.stop_gradient(p), B, gram, self.rescale)
            return align_explicitly(p, *lax.stop_gradient((generator, *held)))

        def respond_through(p: Array, u: Array) -> tuple[Array, Array]:
            h, scale = coefficients(p, B, gram, self.rescale)
            return align(p, generator, h, scale), align_explicitly(u, generator, h, scale)

        width = j * p.dtype.itemsize  # bytes of one position's row, times r + 1 for U = Ãx or D for w
        if through is not None:
            u = patches(through, *geometry).reshape(-1, d).astype(p.dtype)
            y, wu = in_cache(respond_through, width * max(d, r + 1), p, u)
            return y.reshape(*positions, j), wu.reshape(*positions, j)
        y = in_cache(respond_frozen, width * d, p) if frozen else in_cache(respond, width * (r + 1), p)
        return y.reshape(*positions, j)


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
        lengths = {
            name: len(value)
            for name in ("features", "ranks", "kernel_sizes", "strides", "paddings")
            if (value := getattr(self, name)) is not None
        }
        if len(set(lengths.values())) != 1:
            raise ValueError(f"CoDANet: one entry per layer expected in each of {lengths}")
        if not self.temperature > 0:
            raise ValueError(f"temperature: got {self.temperature}, expected a positive number")

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
            train: accepted for all models alike; a CoDA Net behaves the same in training.
            frozen: hold every dynamic weight constant: the logits are then affine in the input.
            encoded: `images` are encoded already.
            through: an encoded input u; the second output is then the linear part of the logits, W(x) u.

        Returns:
            Logits, (N, classes); with `through` the pair (logits, W(x) u), both (N, classes).
        """
        del train
        x = images if encoded else encode(images)
        paddings = self.paddings or tuple((k - 1) // 2 for k in self.kernel_sizes)
        rows = zip(self.features, self.ranks, self.kernel_sizes, self.strides, paddings, strict=True)
        for i, (features, rank, kernel, stride, padding) in enumerate(rows):
            layer = DynamicAlignmentConv(
                features,
                rank,
                (kernel, kernel),
                (stride, stride),
                padding,
                self.rescale,
                self.dtype,
                self.param_dtype,
                name=f"layer_{i}",
            )
            if through is None:
                x = layer(x, frozen)
            else:
                x, through = layer(x, frozen, through)
        logits = self._pool(x) + self.logit_bias
        return logits if through is None else (logits, self._pool(through))

    def _pool(self, x: Float[Array, "n h w k"]) -> Float[Array, "n k"]:
        return x.astype(widened(x.dtype)).sum((1, 2)) / self.temperature


def s_coda(temperature: float = 1000.0, rank: int = 32, classes: int = 10, **fields: Any) -> CoDANet:
    """The paper's 9-layer S net for 32×32 images: 7,782,816 parameters at rank 32 and 10 classes.

    Args:
        temperature: T on the sum over the 8×8 final positions; 1000 is the headline model.
        rank: f of the rank ablation, ranks (f, f, 2f × 7); 4, 8, 16, 32 (base) or 144.
        classes: number of classes.
        **fields: further fields of `CoDANet`.

    Returns:
        The network.

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
    """The authors' 9-layer L net for 240×240 images: 47,517,408 parameters at 100 classes.

    Args:
        temperature: T on the sum over the 20×20 final positions.
        classes: number of classes.
        **fields: further fields of `CoDANet`.

    Returns:
        The network.

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
    """Mean size of the entries of W_{0→L}(x): the paper's regulariser of the explanation itself.

    ⟨|W_{0→L}(x)|^power⟩ over images, target classes and encoded input entries. W includes the pooling sum and 1/T.
    Its gradient reaches the parameters through the dynamic weights of every layer, so W is taken from a second,
    linear stream u ↦ W(x) u and not through a frozen pass, which would cut it.

    Args:
        model: a `CoDANet`.
        variables: its variables.
        images: (N, H, W, C) in [0, 1].
        targets: classes whose rows are penalised, (N, T); None for all.
        power: 1 or 2.

    Returns:
        The penalty, a scalar ≥ 0; the loss adds λ times it.

    Source: CVPR 2021, Sec. 3.3 (loss with λ⟨|W_{0→L}|⟩).
    """
    if power not in (1, 2):
        raise ValueError(f"power: got {power}, expected 1 or 2")
    e = encode(images)

    def linear_part(u: Array) -> Array:
        return model.apply(variables, e, encoded=True, through=u)[1]  # type: ignore[return-value, index]

    linear, pullback = jax.vjp(linear_part, e)
    classes = linear.shape[-1]
    rows = jnp.broadcast_to(jnp.arange(classes), linear.shape) if targets is None else targets
    cotangents = jax.nn.one_hot(rows.T, classes, dtype=linear.dtype)
    weights = jax.vmap(lambda c: pullback(c)[0])(cotangents)
    return (jnp.abs(weights) if power == 1 else weights**2).mean()


def _uniform(fan_in: int) -> nn.initializers.Initializer:
    """U(−1/√fan_in, 1/√fan_in)."""
    bound = 1 / math.sqrt(fan_in)

    def init(key: Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init
