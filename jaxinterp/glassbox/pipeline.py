"""The layers after a representation: standardize, reduce, classify, in closed form by scikit-learn.

    Φ ↦ (Φ − m) d ↦ PCA ↦ classifier

Features are standardized before PCA, which would otherwise keep the directions in which all responses are bright, and
the invariant and the equivariant block are weighed apart, for PCA by variance would keep the larger one.

Source of the affine-PCA classifier: Bruna & Mallat, "Invariant scattering convolution networks", PAMI 2013, Eq. 27;
libsvm and linear discriminants as in scikit-learn.
"""

from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float, Int
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.feature_selection import VarianceThreshold
from sklearn.multiclass import OneVsOneClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from jaxinterp.checks import require, require_one_of

Labels = Int[np.ndarray, " n"]
Features = Float[np.ndarray, "n f"]
Kind = Literal["lda", "svm_linear", "svm_rbf", "knn", "naive_bayes", "affine_pca", "mlp"]
KINDS: tuple[Kind, ...] = get_args(Kind)

MIN_VARIANCE = 1e-10
"""Variance up to which a feature is rounding, such as a response that a template's symmetry cancels, and left out."""


class AffinePCA(ClassifierMixin, BaseEstimator):
    """The class whose affine subspace is nearest: argmin_c ‖(I − V_c V_cᵀ)(Φ − m_c)‖.

    Args:
        components: dimension of every class' subspace, ≥ 1; fewer where the smallest class has no more images.

    Example:
        >>> x = np.array([[0.0, 0.0], [1.0, 0.1], [2.0, 0.0], [0.0, 5.0], [1.0, 5.1], [2.0, 5.0]])
        >>> AffinePCA(1).fit(x, np.array([0, 0, 0, 1, 1, 1])).predict(np.array([[9.0, 0.3], [9.0, 4.7]])).tolist()
        [0, 1]
    """

    def __init__(self, components: int = 20) -> None:
        self.components = components

    def fit(self, X: Features, y: Labels) -> "AffinePCA":
        """Fit each class' mean and first principal components."""
        self.classes_, counts = np.unique(y, return_counts=True)
        require(counts.min() >= 2, "labels", f"{counts.min()} images of a class", "at least 2")
        require(self.components >= 1, "components", self.components, "at least 1")
        size = min(self.components, X.shape[1], counts.min() - 1)
        parts = [PCA(size, svd_solver="full").fit(X[y == c]) for c in self.classes_]
        self.means_ = np.stack([part.mean_ for part in parts])
        self.axes_ = np.stack([part.components_ for part in parts])
        return self

    def distances(self, X: Features) -> Float[np.ndarray, "n classes"]:
        """Compute the distance from every class' subspace."""
        apart = X[:, None] - self.means_
        along = np.einsum("ncf,cdf->ncd", apart, self.axes_)
        return np.sqrt(np.maximum((apart**2).sum(-1) - (along**2).sum(-1), 0))

    def decision_function(self, X: Features) -> Float[np.ndarray, "..."]:
        """Return how much nearer the second of two classes is, (n,), or −distances, (n, classes), of more than two."""
        distances = self.distances(X)
        return distances[:, 0] - distances[:, 1] if len(self.classes_) == 2 else -distances

    def predict(self, X: Features) -> Labels:
        """Return the class of the nearest subspace."""
        return self.classes_[self.distances(X).argmin(1)]


def estimator(kind: Kind, classes: int, components: int = 100, seed: int = 0) -> Any:
    """Build the classifier: a scikit-learn estimator of standardized components.

    Linear discriminants have one closed form for any number of classes; all others decide between two, and between
    more by the votes of all pairs (libsvm's are in SVC).

    Args:
        kind: which.
        classes: number of classes.
        components: that it gets; every class' affine subspace has a fifth of them.
        seed: of the perceptron.
    """
    require_one_of("kind", kind, KINDS)
    estimators: Mapping[Kind, Any] = {
        "lda": LinearDiscriminantAnalysis(),
        "svm_linear": SVC(kernel="linear", C=0.1),
        "svm_rbf": SVC(kernel="rbf", C=10.0),
        "knn": KNeighborsClassifier(3, algorithm="brute"),
        "naive_bayes": GaussianNB(),
        "affine_pca": AffinePCA(max(1, components // 5)),
        "mlp": MLPClassifier((64,), solver="lbfgs", alpha=0.1, max_iter=2000, random_state=seed),
    }
    pairs = classes > 2 and kind in ("knn", "naive_bayes", "affine_pca", "mlp")
    return OneVsOneClassifier(estimators[kind]) if pairs else estimators[kind]


def pipeline(
    kind: Kind,
    blocks: Mapping[str, slice],
    components: int = 100,
    classes: int = 2,
    equivariant_weight: int | float = 1.0,
    seed: int = 0,
) -> Pipeline:
    """Build the steps standardize, weigh the blocks, reduce, classify; not fitted yet.

    Args:
        kind: as of `estimator`.
        blocks: where the blocks of features lie, as `OrbitRepresentation.blocks`; one is enough.
        components: of the whitened PCA, exact.
        classes: number of classes.
        equivariant_weight: deviation of the whole equivariant block beside the invariant one's, > 0.
        seed: of the perceptron.

    Returns:
        A `Pipeline` of "blocks", "pca" and "classifier".
    """
    require(equivariant_weight > 0, "equivariant_weight", equivariant_weight, "a positive number")
    sizes = {name: part.stop - part.start for name, part in blocks.items()}
    weights = {name: (max(sizes.values()) / size) ** 0.5 for name, size in sizes.items()}
    if len(blocks) > 1 and "equivariant" in weights:
        weights["equivariant"] *= equivariant_weight
    scaler = make_pipeline(VarianceThreshold(MIN_VARIANCE), StandardScaler())
    scaled = ColumnTransformer([(name, scaler, part) for name, part in blocks.items()], transformer_weights=weights)
    pca = PCA(components, whiten=True, svd_solver="full")  # "auto" may draw random vectors
    last = estimator(kind, classes, components, seed)
    return Pipeline([("blocks", scaled), ("pca", pca), ("classifier", last)])
