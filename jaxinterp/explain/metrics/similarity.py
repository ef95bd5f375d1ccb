"""How alike two maps are: correlations, cosine, sign agreement, structural similarity."""

from collections.abc import Callable
from functools import partial
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import rankdata
from jaxtyping import Array, Float

from jaxinterp.checks import require, require_one_of

Similarity = Literal["spearman", "pearson", "cosine", "ssim"]
WINDOW = 7
"""Side of the window of the structural similarity, in pixels."""


def cosine(a: Float[Array, "batch n"], b: Float[Array, "batch n"]) -> Float[Array, " batch"]:
    """Return the cosine of the angle between rows, in [−1, 1]; NaN where one is zero.

    Example:
        >>> cosine(jnp.array([[3.0, 4.0]]), jnp.array([[4.0, 3.0]])).round(2).tolist()
        [0.9599999785423279]
    """
    scaled = [row / jnp.abs(row).max(1, keepdims=True) for row in (a, b)]  # without underflow
    unit = [row / jnp.linalg.norm(row, axis=1, keepdims=True) for row in scaled]
    return jnp.clip((unit[0] * unit[1]).sum(1), -1, 1)


def pearson(a: Float[Array, "batch n"], b: Float[Array, "batch n"]) -> Float[Array, " batch"]:
    """Return the correlation of rows, in [−1, 1]; NaN where one is constant.

    Example:
        >>> pearson(jnp.array([[1.0, 2.0, 3.0]]), jnp.array([[5.0, 3.0, 1.0]])).round(4).tolist()
        [-1.0]
    """
    constant = (a.max(1) == a.min(1)) | (b.max(1) == b.min(1))  # whose deviations from the mean are rounding
    found = cosine(*(row - row.mean(1, keepdims=True) for row in (a, b)))
    return jnp.where(constant, jnp.nan, found)


def spearman(a: Float[Array, "batch n"], b: Float[Array, "batch n"]) -> Float[Array, " batch"]:
    """Return the rank correlation of rows, in [−1, 1], equal entries having their mean rank; NaN where one is constant.

    Example:
        >>> spearman(jnp.array([[1.0, 2.0, 9.0]]), jnp.array([[0.0, 1.0, 1.5]])).round(4).tolist()
        [1.0]
    """
    return pearson(*(rankdata(row, axis=1).astype(row.dtype) for row in (a, b)))


def sign_agreement(a: Float[Array, "batch n"], b: Float[Array, "batch n"]) -> Float[Array, " batch"]:
    """Return the share of the entries nonzero in b whose sign is the same in a, in [0, 1]; NaN where b is zero.

    Example:
        >>> sign_agreement(jnp.array([[1.0, 2.0, 0.0]]), jnp.array([[3.0, -1.0, 0.0]])).tolist()
        [0.5]
    """
    known = b != 0
    return (known & (jnp.sign(a) == jnp.sign(b))).sum(1).astype(b.dtype) / known.sum(1).astype(b.dtype)


def misplaced(a: Float[Array, "batch n"], b: Float[Array, "batch n"]) -> Float[Array, " batch"]:
    """Return the share of a's mass that lies where b has less, ½ Σ |a/‖a‖₁ − b/‖b‖₁|, in [0, 1]; NaN where one is zero.

    Signs count: mass of the other sign is in the wrong place.

    Example:
        >>> misplaced(jnp.array([[1.0, 1.0]]), jnp.array([[2.0, 0.0]])).tolist()
        [0.5]
    """
    share = [row / jnp.abs(row).sum(1, keepdims=True) for row in (a, b)]
    return jnp.abs(share[0] - share[1]).sum(1) / 2


def ssim(a: Float[Array, "batch h w"], b: Float[Array, "batch h w"]) -> Float[Array, " batch"]:
    """Return the mean structural similarity of maps over windows of 7×7 pixels, in [−1, 1].

        (2 μ_a μ_b + c₁)(2 σ_ab + c₂) / ((μ_a² + μ_b² + c₁)(σ_a² + σ_b² + c₂))

    c₁ = (0.01 R)², c₂ = (0.03 R)², R the range of both maps together; sample variances; whole windows only.

    Source: Wang, Bovik, Sheikh, Simoncelli, IEEE TIP 2004, Eq. 13.
    """
    low, high = (jnp.stack([f(a, axis=(1, 2)), f(b, axis=(1, 2))]) for f in (jnp.min, jnp.max))
    size = (high.max(0) - low.min(0))[:, None, None]
    c1, c2 = (0.01 * size) ** 2, (0.03 * size) ** 2
    n = WINDOW**2

    def mean(values: Array) -> Array:
        return jax.lax.reduce_window(values, 0.0, jax.lax.add, (1, WINDOW, WINDOW), (1, 1, 1), "valid") / n

    mu_a, mu_b = mean(a), mean(b)
    over = n / (n - 1)
    var_a, var_b, cov = (
        over * (mean(u * v) - m * w) for u, v, m, w in ((a, a, mu_a, mu_a), (b, b, mu_b, mu_b), (a, b, mu_a, mu_b))
    )
    found = (2 * mu_a * mu_b + c1) * (2 * cov + c2) / ((mu_a**2 + mu_b**2 + c1) * (var_a + var_b + c2))
    return found.mean((1, 2))


SIMILARITIES: dict[str, Callable[[Array, Array], Array]] = {
    "spearman": spearman,
    "pearson": pearson,
    "cosine": cosine,
    "ssim": ssim,
}


def require_similarity(name: Similarity, shape: tuple[int, ...]) -> None:
    """Raise for an unknown similarity, and for maps (batch, ...) too small for the windows of "ssim"."""
    require_one_of("similarity", name, get_args(Similarity))
    fits = name != "ssim" or (len(shape) == 3 and min(shape[1:]) >= WINDOW)
    require(fits, "similarity", f"'ssim' of maps {shape[1:]}", f"maps of at least {WINDOW}x{WINDOW} pixels")


@partial(jax.jit, static_argnums=0)
def similar(name: Similarity, a: Float[Array, "batch *shape"], b: Float[Array, "batch *shape"]) -> Array:
    """Return a similarity of maps by its name, (batch,), computed in float32 at least."""
    a, b = (maps.astype(np.promote_types(maps.dtype, np.float32)) for maps in (a, b))
    pair = (a, b) if name == "ssim" else (a.reshape(len(a), -1), b.reshape(len(b), -1))
    return SIMILARITIES[name](*pair)
