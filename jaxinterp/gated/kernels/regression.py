"""Prediction with a kernel: ridge regression, Gaussian processes, support vectors, and conjugate gradients.

Everything here takes kernel matrices, of whatever kernel. Solutions are in float64, on the host: kernels of deep
networks have condition numbers that float32 does not stand.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

if TYPE_CHECKING:
    from sklearn.svm import SVC

RIDGES = tuple(10.0**k for k in range(-6, 1))

Matrix = Float[np.ndarray, "n n"]


def one_hot(labels: Int[np.ndarray, " n"], classes: int) -> Float[np.ndarray, "n classes"]:
    """Targets for regression on classes: 1 − 1/classes for the label, −1/classes for the others.

    Raises:
        ValueError: a label is not in [0, classes).

    Example:
        >>> one_hot(np.array([1]), 4).tolist()
        [[-0.25, 0.75, -0.25, -0.25]]
    """
    if labels.size and not (labels.min() >= 0 and labels.max() < classes):
        raise ValueError(f"labels: got {labels.min()} to {labels.max()}, expected classes in [0, {classes})")
    return np.eye(classes)[labels] - 1 / classes


def _checked(k: Any, targets: Any) -> tuple[Matrix, Float[np.ndarray, "n classes"]]:
    k, targets = np.asarray(k, np.float64), np.asarray(targets, np.float64)
    if k.ndim != 2 or k.shape[0] != k.shape[1] or len(k) == 0:
        raise ValueError(f"k: got shape {k.shape}, expected a square kernel matrix")
    if targets.ndim != 2 or len(targets) != len(k):
        raise ValueError(f"targets: got shape {targets.shape}, expected ({len(k)}, classes)")
    for name, array in (("k", k), ("targets", targets)):
        if not np.isfinite(array).all():
            raise ValueError(f"{name}: expected finite values, got NaN or infinity")
    largest, skew = np.abs(k).max(), np.abs(k - k.T).max()
    if not skew <= 1e-3 * largest or largest == 0:
        raise ValueError(f"k: expected a symmetric matrix other than 0, got entries up to {largest:g}, skew {skew:g}")
    return k, targets


def _cholesky(k: Matrix, ridge: float) -> tuple[np.ndarray, Any]:
    """The factor of K + λ I, for `scipy.linalg.cho_solve`."""
    import scipy.linalg

    try:
        return scipy.linalg.cho_factor(k + ridge * np.eye(len(k)), lower=True)
    except np.linalg.LinAlgError as error:
        raise ValueError(f"k: not positive semidefinite, expected one (with {ridge:g} on its diagonal)") from error


@dataclass(frozen=True)
class Ridge:
    """A solved kernel ridge regression, f(x) = offset + Σ_i α_i K(x, x_i).

    Attributes:
        alpha: (n, classes).
        offset: mean of the targets, (classes,).
        ridge: λ, as a share of the kernel's mean diagonal.
        errors: mean squared leave-one-out error of every λ that was tried.
    """

    alpha: Float[np.ndarray, "n classes"]
    offset: Float[np.ndarray, " classes"]
    ridge: float
    errors: dict[float, float]

    def predict(self, k: Float[np.ndarray, "m n"]) -> Float[np.ndarray, "m classes"]:
        """Predictions from the kernel between new and training examples."""
        return np.asarray(k, np.float64) @ self.alpha + self.offset

    def shares(self, k: Float[np.ndarray, "m n"]) -> Float[np.ndarray, "m n classes"]:
        """Which training examples decided: α_i K(x, x_i), signed; their sum and the offset are the prediction."""
        return np.asarray(k, np.float64)[:, :, None] * self.alpha[None]


def kernel_ridge(
    k: Float[np.ndarray, "..."], targets: Float[np.ndarray, "..."], ridges: Sequence[float] = RIDGES
) -> Ridge:
    """Kernel ridge regression, α = (K + λ d I)⁻¹ (Y − mean), d the mean diagonal; λ by leave-one-out.

    The error of leaving example i out, the mean of the targets kept, is (Y − Ŷ)_i / (1 − H_ii) with
    H = K (K + λ d I)⁻¹, for all λ from one eigendecomposition; the solution is then a Cholesky one.

    Args:
        k: kernel of the training examples, (n, n), symmetric positive semidefinite.
        targets: (n, classes).
        ridges: λ to choose from, > 0.

    Returns:
        The solution with the least leave-one-out error.

    Raises:
        ValueError: shapes that do not fit, values that are not finite, a λ that is not positive and finite, or a
            kernel that is zero, not symmetric or not positive semidefinite.
    """
    import scipy.linalg

    k, targets = _checked(k, targets)
    if not ridges or not all(0 < ridge < np.inf for ridge in ridges):
        raise ValueError(f"ridges: got {tuple(ridges)}, expected positive finite numbers")
    size, offset = float(np.diagonal(k).mean()), targets.mean(0)
    y, errors = targets - offset, {}
    if len(ridges) == 1:
        best = ridges[0]
    else:
        values, vectors = np.linalg.eigh(k)
        turned = vectors.T @ y
        for ridge in ridges:
            kept = values / (values + ridge * size)
            leverage = (vectors**2) @ kept
            left_out = (y - vectors @ (kept[:, None] * turned)) / (1 - leverage)[:, None]
            errors[ridge] = float((left_out**2).mean())
        best = min(errors, key=errors.__getitem__)
    factor = _cholesky(k, best * size)
    return Ridge(scipy.linalg.cho_solve(factor, y), offset, best, errors)


def gaussian_process(
    k: Float[np.ndarray, "..."],
    targets: Float[np.ndarray, "..."],
    k_new: Float[np.ndarray, "m n"],
    k_diagonal: Float[np.ndarray, " m"],
    noise: float,
) -> tuple[Float[np.ndarray, "m classes"], Float[np.ndarray, " m"]]:
    """Posterior mean and variance of a Gaussian process with this kernel.

        mean = K_* (K + s² I)⁻¹ Y,   variance = K_** − K_* (K + s² I)⁻¹ K_*ᵀ   (of the function, without the noise)

    Args:
        k: prior covariance of the training examples, (n, n).
        targets: (n, classes), each class a process of its own with mean zero.
        k_new: between new and training examples, (m, n).
        k_diagonal: K(x, x) of the new ones, (m,).
        noise: variance s² > 0 of the observations.

    Returns:
        (m, classes) and (m,).

    Raises:
        ValueError: as `kernel_ridge`.

    Source: Rasmussen, Williams, "Gaussian Processes for Machine Learning" (2006), Eq. 2.25–2.26.
    """
    import scipy.linalg

    k, targets = _checked(k, targets)
    if not 0 < noise < np.inf:
        raise ValueError(f"noise: got {noise}, expected a positive finite variance")
    k_new, k_diagonal = np.asarray(k_new, np.float64), np.asarray(k_diagonal, np.float64)
    if k_new.ndim != 2 or k_new.shape[1] != len(k) or k_diagonal.shape != k_new.shape[:1]:
        raise ValueError(
            f"k_new, k_diagonal: got shapes {k_new.shape} and {k_diagonal.shape}, expected (m, {len(k)}) and (m,)"
        )
    factor = _cholesky(k, noise)
    explained = scipy.linalg.solve_triangular(factor[0], k_new.T, lower=True)
    variance = k_diagonal - (explained**2).sum(0)
    return k_new @ scipy.linalg.cho_solve(factor, targets), np.maximum(variance, 0)


def support_vectors(k: Float[np.ndarray, "n n"], labels: Int[np.ndarray, " n"], cost: float = 1.0) -> "SVC":
    """A support vector classifier (scikit-learn's, one against one) on a precomputed kernel.

    Args:
        k: (n, n).
        labels: (n,).
        cost: C > 0.

    Returns:
        The fitted classifier; `predict` takes the kernel between new and training examples.
    """
    from sklearn.svm import SVC

    return SVC(C=cost, kernel="precomputed").fit(np.asarray(k, np.float64), labels)


@dataclass(frozen=True)
class Nystrom:
    """A rank-m approximation K ≈ U diag(values) Uᵀ, from m columns of K.

    Attributes:
        vectors: U, orthonormal, (n, m).
        values: (m,), falling.
    """

    vectors: Float[np.ndarray, "n m"]
    values: Float[np.ndarray, " m"]

    def precondition(self, y: Float[np.ndarray, "n classes"], ridge: float) -> Float[np.ndarray, "n classes"]:
        """(v_m + λ) U (V + λ)⁻¹ Uᵀ y + (1 − U Uᵀ) y."""
        turned = self.vectors.T @ y
        return y + self.vectors @ ((((self.values[-1] + ridge) / (self.values + ridge)) - 1)[:, None] * turned)


def nystrom(columns: Float[np.ndarray, "n m"], chosen: Int[np.ndarray, " m"]) -> Nystrom:
    """The Nyström approximation K_nm K_mm⁻¹ K_mn, by its eigenvectors.

    Args:
        columns: columns of K, (n, m).
        chosen: their indices, (m,).

    Source: Frangella, Tropp, Udell, "Randomized Nyström preconditioning" (2021), Alg. 2.1, on
        columns instead of random vectors.
    """
    import scipy.linalg

    columns = np.asarray(columns, np.float64)
    shift = np.finfo(np.float64).eps * np.sqrt(len(columns)) * np.linalg.norm(columns, 2)
    shifted = columns.copy()
    shifted[chosen, np.arange(len(chosen))] += shift
    core = (shifted[chosen] + shifted[chosen].T) / 2
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
    """Solve (K + λ I) α = Y for a kernel that is only known by its products.

    All classes share their steps: it is one system of n · classes unknowns, so that each step asks for one product.

    Args:
        product: α ↦ K α, for instance tile by tile.
        targets: Y, (n, classes).
        ridge: λ > 0, absolute.
        approximation: of K, to precondition with.
        tolerance: least relative residual.
        steps: most products.

    Returns:
        α, (n, classes), and how many products it took.

    Raises:
        ValueError: the residual did not fall below `tolerance` in so many steps, targets are not finite (n, classes),
            or `ridge`, `tolerance` or `steps` is not positive.
    """
    from scipy.sparse.linalg import LinearOperator, cg

    targets = np.asarray(targets, np.float64)
    if targets.ndim != 2 or not np.isfinite(targets).all():
        raise ValueError(f"targets: got {targets.shape}, expected finite values (n, classes)")
    if not (0 < ridge < np.inf and tolerance > 0 and steps >= 1):
        raise ValueError(f"ridge, tolerance, steps: got {ridge}, {tolerance}, {steps}, expected positive numbers")
    shape, count = targets.shape, 0

    def shifted(flat: np.ndarray) -> np.ndarray:
        nonlocal count
        count += 1
        block = flat.reshape(shape)
        return (np.asarray(product(block), np.float64) + ridge * block).ravel()

    def preconditioned(flat: np.ndarray) -> np.ndarray:
        return flat if approximation is None else approximation.precondition(flat.reshape(shape), ridge).ravel()

    size = (targets.size, targets.size)
    found, failed = cg(
        LinearOperator(size, shifted, dtype=np.float64),
        targets.ravel(),
        rtol=tolerance,
        maxiter=steps,
        M=LinearOperator(size, preconditioned, dtype=np.float64),
    )
    if failed:
        raise ValueError(
            f"steps: {steps} did not reach a relative residual of {tolerance:g}; allow more, or raise ridge"
        )
    return found.reshape(shape), count
