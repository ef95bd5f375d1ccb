"""Regression with a kernel matrix: ridge regression, and conjugate gradients for matrices larger than memory.

Solutions are in float64 on the host: kernels of deep networks are too ill-conditioned for float32.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from jaxinterp.checks import require, require_finite, require_labels
from jaxinterp.errors import ConfigError

RIDGES = tuple(10.0**k for k in range(-6, 1))


def one_hot(labels: Int[np.ndarray, " n"], classes: int) -> Float[np.ndarray, "n classes"]:
    """Encode classes as regression targets: 1 − 1/classes for the label, −1/classes for the others.

    Example:
        >>> one_hot(np.array([1]), 4).tolist()
        [[-0.25, 0.75, -0.25, -0.25]]
    """
    require_labels("labels", labels, len(labels), classes)
    return np.eye(classes)[labels] - 1 / classes


@dataclass(frozen=True)
class Ridge:
    """A solved kernel ridge regression, f(x) = offset + Σ_i α_i K(x, x_i).

    Attributes:
        alpha: (n, classes).
        offset: mean of the targets, (classes,).
        ridge: λ, relative to the kernel's mean diagonal.
        errors: mean squared leave-one-out error for every λ that was tried.
    """

    alpha: Float[np.ndarray, "n classes"]
    offset: Float[np.ndarray, " classes"]
    ridge: float
    errors: dict[float, float]

    def predict(self, k: Float[np.ndarray, "m n"]) -> Float[np.ndarray, "m classes"]:
        """Predict from the kernel between new and training examples."""
        return np.asarray(k, np.float64) @ self.alpha + self.offset

    def shares(self, k: Float[np.ndarray, "m n"]) -> Float[np.ndarray, "m n classes"]:
        """Return α_i K(x, x_i), the signed share of each training example; with the offset they sum to `predict`."""
        return np.asarray(k, np.float64)[:, :, None] * self.alpha[None]


def kernel_ridge(
    k: Float[np.ndarray, "..."], targets: Float[np.ndarray, "..."], ridges: Sequence[float] = RIDGES
) -> Ridge:
    """Solve kernel ridge regression, α = (K + λ d I)⁻¹ (Y − mean), d the mean diagonal; λ by leave-one-out.

    With the mean of the targets held fixed, the error of leaving example i out is (Y − Ŷ)_i / (1 − H_ii),
    H = K (K + λ d I)⁻¹, for all λ from one eigendecomposition. The solution itself is by Cholesky.

    Args:
        k: kernel of the training examples, (n, n), symmetric positive semidefinite.
        targets: (n, classes).
        ridges: λ > 0 to choose from.

    Raises:
        ConfigError: the kernel is not symmetric positive semidefinite, or zero; if rounding is why, try a larger λ.
    """
    import scipy.linalg

    k, targets = np.asarray(k, np.float64), np.asarray(targets, np.float64)
    require(k.ndim == 2 and k.shape[0] == k.shape[1] and len(k), "k", f"shape {k.shape}", "a square kernel matrix")
    require(targets.ndim == 2 and len(targets) == len(k), "targets", f"shape {targets.shape}", f"({len(k)}, classes)")
    require_finite("k", k)
    require_finite("targets", targets)
    largest, skew = np.abs(k).max(), np.abs(k - k.T).max()
    symmetric = skew <= 1e-3 * largest and largest > 0
    require(symmetric, "k", f"entries up to {largest:g}, skew {skew:g}", "a symmetric matrix other than 0")
    require(ridges and all(0 < r < np.inf for r in ridges), "ridges", tuple(ridges), "positive finite numbers")
    size, offset = float(np.diagonal(k).mean()), targets.mean(0)
    y, errors, best = targets - offset, {}, ridges[0]
    if len(ridges) > 1:
        values, vectors = np.linalg.eigh(k)
        projected = vectors.T @ y
        for ridge in ridges:
            shrinkage = values / (values + ridge * size)
            leverage = (vectors**2) @ shrinkage
            left_out = (y - vectors @ (shrinkage[:, None] * projected)) / (1 - leverage)[:, None]
            errors[ridge] = float((left_out**2).mean())
        best = min(errors, key=errors.__getitem__)
    try:
        factor = scipy.linalg.cho_factor(k + best * size * np.eye(len(k)), lower=True)
    except np.linalg.LinAlgError as error:
        raise ConfigError(f"k: got an indefinite matrix at ridge {best:g}, expected a semidefinite one") from error
    return Ridge(scipy.linalg.cho_solve(factor, y), offset, best, errors)


@dataclass(frozen=True)
class Nystrom:
    """A rank-m approximation K ≈ U diag(values) Uᵀ, `values` falling."""

    vectors: Float[np.ndarray, "n m"]
    values: Float[np.ndarray, " m"]

    def precondition(self, y: Float[np.ndarray, "n classes"], ridge: float) -> Float[np.ndarray, "n classes"]:
        """Compute (v_m + λ) U (V + λ)⁻¹ Uᵀ y + (1 − U Uᵀ) y."""
        projected = self.vectors.T @ y
        return y + self.vectors @ ((((self.values[-1] + ridge) / (self.values + ridge)) - 1)[:, None] * projected)


def nystrom(columns: Float[np.ndarray, "n m"], indices: Int[np.ndarray, " m"]) -> Nystrom:
    """Compute the Nyström approximation K_nm K_mm⁻¹ K_mn by its eigenvectors, from m columns of K and their indices.

    Source: Frangella, Tropp, Udell, "Randomized Nyström preconditioning" (2021), Alg. 2.1; columns for random vectors.
    """
    import scipy.linalg

    columns = np.asarray(columns, np.float64)
    shift = np.finfo(np.float64).eps * np.sqrt(len(columns)) * np.linalg.norm(columns, 2)
    shifted = columns.copy()
    shifted[indices, np.arange(len(indices))] += shift
    core = (shifted[indices] + shifted[indices].T) / 2
    root = scipy.linalg.cholesky(core, lower=True)
    half = scipy.linalg.solve_triangular(root, shifted.T, lower=True).T
    vectors, singular, _ = np.linalg.svd(half, full_matrices=False)
    return Nystrom(vectors, np.maximum(singular**2 - shift, 0))


def conjugate_gradients(
    product: Callable[[Float[np.ndarray, "n classes"]], Float[np.ndarray, "n classes"]],
    targets: Float[np.ndarray, "n classes"],
    ridge: float,
    approximation: Nystrom | None = None,
    *,
    tolerance: float = 1e-6,
    steps: int = 200,
) -> tuple[Float[np.ndarray, "n classes"], int]:
    """Solve (K + λ I) α = Y from products with K alone.

    All classes form one system of n · classes unknowns, so each step takes a single product.

    Args:
        product: α ↦ K α, for instance tile by tile.
        targets: Y, (n, classes).
        ridge: λ > 0, absolute.
        approximation: of K, as preconditioner.
        tolerance: relative residual to reach.
        steps: maximum number of products.

    Returns:
        α, (n, classes), and the number of products.

    Raises:
        ConfigError: the residual did not reach `tolerance`.
    """
    from scipy.sparse.linalg import LinearOperator, cg

    targets = np.asarray(targets, np.float64)
    require(targets.ndim == 2, "targets", f"shape {targets.shape}", "(n, classes)")
    require_finite("targets", targets)
    options = (ridge, tolerance, steps)
    require(0 < ridge < np.inf and min(options) > 0, "ridge, tolerance, steps", options, "positive numbers")
    shape, count = targets.shape, 0

    def shifted(flat: np.ndarray) -> np.ndarray:
        nonlocal count
        count += 1
        block = flat.reshape(shape)
        return (np.asarray(product(block), np.float64) + ridge * block).ravel()

    def preconditioned(flat: np.ndarray) -> np.ndarray:
        return flat if approximation is None else approximation.precondition(flat.reshape(shape), ridge).ravel()

    system, inverse = (LinearOperator((targets.size,) * 2, f, dtype=np.float64) for f in (shifted, preconditioned))
    solution, failed = cg(system, targets.ravel(), rtol=tolerance, maxiter=steps, M=inverse)
    require(not failed, "steps", steps, f"enough for a relative residual of {tolerance:g}; a larger ridge needs fewer")
    return solution.reshape(shape), count
