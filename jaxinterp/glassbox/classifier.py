"""What follows a representation: standardize, reduce, classify, in closed form by scikit-learn.

    Φ ↦ (Φ − m) d ↦ PCA ↦ classifier

Features are standardized before PCA, which would otherwise keep the directions in which whole orbits are bright, and
the invariant and the equivariant block are weighed apart, for PCA by variance would keep the larger one.

Linear discriminants and SVMs with two classes are affine in Φ: `GlassBoxClassifier.network` writes them, with all that
comes before, as one `GlassBox`. A kernel SVM is a sum over training images instead (`support_contributions`).

Source of the affine-PCA classifier: Bruna & Mallat, "Invariant scattering convolution networks", PAMI 2013, Eq. 27;
libsvm and linear discriminants as in scikit-learn.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
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

from jaxinterp.checks import require_finite
from jaxinterp.data.batches import padded_batches
from jaxinterp.errors import CheckpointError
from jaxinterp.files import check_folder, write_arrays, write_bytes, write_text
from jaxinterp.glassbox.network import GlassBox, OrbitRepresentation, choose_templates, orbit_kernel, respond
from jaxinterp.symmetry.equivariance import warn_inexact
from jaxinterp.symmetry.groups import Element, Group

Images = Float[np.ndarray, "n h w c"]
Templates = Float[np.ndarray, "k h w c"]
Labels = Int[np.ndarray, " n"]
Features = Float[np.ndarray, "n f"]
Kind = Literal["lda", "svm_linear", "svm_rbf", "knn", "naive_bayes", "affine_pca", "mlp"]
KINDS: tuple[Kind, ...] = get_args(Kind)

NOISE = 1e-10
"""Variance up to which a feature is rounding, such as what a template's symmetry cancels, and is left out."""

SLACK = 1e-3
"""How far beyond [0, 1] a pixel may lie, as after a turn that interpolates."""

RANK = 1e-9
"""Variance of a component, as a share of the first one's, up to which it is rounding."""

DESCRIPTION, TEMPLATES, PIPELINE = "classifier.json", "templates.npz", "pipeline.skops"  # files of a saved one


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
        """Each class' mean and first principal components."""
        self.classes_ = np.unique(y)
        least = min(int((y == c).sum()) for c in self.classes_)
        if least < 2 or self.components < 1:
            raise ValueError(
                f"labels, components: got {least} images of a class and {self.components}, expected at least 2 and 1"
            )
        parts = [
            PCA(min(self.components, X.shape[1], least - 1), svd_solver="full").fit(X[y == c]) for c in self.classes_
        ]
        self.means_ = np.stack([part.mean_ for part in parts])
        self.axes_ = np.stack([part.components_ for part in parts])
        return self

    def distances(self, X: Features) -> Float[np.ndarray, "n classes"]:
        """Distance from every class' subspace."""
        apart = X[:, None] - self.means_
        along = np.einsum("ncf,cdf->ncd", apart, self.axes_)
        return np.sqrt(np.maximum((apart**2).sum(-1) - (along**2).sum(-1), 0))

    def decision_function(self, X: Features) -> Float[np.ndarray, "..."]:
        """How much nearer the second class is than the first, (n,), or −distances, (n, classes), of more than two."""
        found = self.distances(X)
        return found[:, 0] - found[:, 1] if len(self.classes_) == 2 else -found

    def predict(self, X: Features) -> Labels:
        """The class of the nearest subspace."""
        return self.classes_[self.distances(X).argmin(1)]


def estimator(kind: Kind, classes: int, components: int = 100, seed: int = 0) -> Any:
    """The last of the three layers: a scikit-learn estimator of standardized components.

    Linear discriminants have one closed form for any number of classes; all others decide between two, and between
    more by the votes of all pairs (libsvm's are in SVC).

    Args:
        kind: which.
        classes: number of classes.
        components: that it gets; every class' affine subspace has a fifth of them.
        seed: of the perceptron.

    Raises:
        ValueError: an unknown `kind`.
    """
    if kind not in KINDS:
        raise ValueError(f"kind: got {kind!r}, expected one of {', '.join(KINDS)}")
    one: Mapping[Kind, Any] = {
        "lda": LinearDiscriminantAnalysis(),
        "svm_linear": SVC(kernel="linear", C=0.1),
        "svm_rbf": SVC(kernel="rbf", C=10.0),
        "knn": KNeighborsClassifier(3, algorithm="brute"),
        "naive_bayes": GaussianNB(),
        "affine_pca": AffinePCA(max(1, components // 5)),
        "mlp": MLPClassifier((64,), solver="lbfgs", alpha=0.1, max_iter=2000, random_state=seed),
    }
    several = classes > 2 and kind in ("knn", "naive_bayes", "affine_pca", "mlp")
    return OneVsOneClassifier(one[kind]) if several else one[kind]


def pipeline(
    kind: Kind,
    blocks: Mapping[str, slice],
    components: int = 100,
    classes: int = 2,
    equivariant_weight: int | float = 1.0,
    seed: int = 0,
) -> Pipeline:
    """Standardize what varies, weigh the blocks, reduce, classify; not fitted yet.

    Args:
        kind: of the classifier.
        blocks: where the blocks of features lie, as `OrbitRepresentation.blocks`; one is enough.
        components: of the whitened PCA.
        classes: number of classes.
        equivariant_weight: deviation of the whole equivariant block beside the invariant one's, > 0.
        seed: of PCA's and the perceptron's random numbers.

    Returns:
        A `Pipeline` of "blocks", "pca" and "classifier".

    Raises:
        ValueError: an unknown `kind`, or a weight that is not positive.
    """
    if not equivariant_weight > 0:
        raise ValueError(f"equivariant_weight: got {equivariant_weight}, expected a positive number")
    sizes = {name: part.stop - part.start for name, part in blocks.items()}
    weights = {name: (max(sizes.values()) / size) ** 0.5 for name, size in sizes.items()}
    if len(blocks) > 1 and "equivariant" in weights:
        weights["equivariant"] *= equivariant_weight
    scaled = [(name, make_pipeline(VarianceThreshold(NOISE), StandardScaler()), part) for name, part in blocks.items()]
    return Pipeline(
        [
            ("blocks", ColumnTransformer(scaled, transformer_weights=weights)),
            ("pca", PCA(components, whiten=True, random_state=seed)),
            ("classifier", estimator(kind, classes, components, seed)),
        ]
    )


def _real(images: Images) -> Float[np.ndarray, "..."]:
    """Images as float32; lists are arrays too."""
    found = np.asarray(images)
    if found.dtype.kind not in "fiub":
        raise ValueError(f"images: got {found.dtype}, expected real numbers")
    return found.astype(np.float32, copy=False)


def check_training(images: Images, labels: Labels, components: int) -> None:
    """Refuse images that no classifier can be made from.

    Raises:
        ValueError: values that are not finite, other numbers of labels, one class only, too few images for the
            components, classes of unequal size where the smallest is less than the components, images that are not
            (N, H, W, C), or components or labels that are no integers.
    """
    if np.ndim(images) != 4 or 0 in np.shape(images):
        raise ValueError(f"images: got shape {np.shape(images)}, expected (N, H, W, C), none of them 0")
    if np.ndim(labels) != 1 or not np.issubdtype(np.asarray(labels).dtype, np.integer):
        raise ValueError(f"labels: got {np.asarray(labels).dtype}{np.shape(labels)}, expected integers (N,)")
    if not isinstance(components, int | np.integer) or components < 1:
        raise ValueError(f"components: got {components}, expected an integer of at least 1")
    if len(images) != len(labels):
        raise ValueError(f"labels: got {len(labels)}, expected {len(images)}, one for every image")
    require_finite("images", images)
    classes, counts = np.unique(labels, return_counts=True)
    if len(classes) < 2:
        raise ValueError(f"labels: got one class only ({', '.join(map(str, classes))}), expected at least two")
    if len(images) <= components:
        raise ValueError(f"components: got {components}, expected at most {len(images) - 1}, fewer than images")
    if counts.min() < components and counts.min() < counts.max():
        least = classes[counts.argmin()]
        raise ValueError(
            f"labels: got {counts.min()} images of class {least} and up to {counts.max()} of others, expected equally "
            f"many, or at least components={components} of each"
        )


@dataclass(frozen=True)
class GlassBoxClassifier:
    """A representation, a reduction and a classifier in one object that is fitted, predicts and is saved.

    `fit` returns a fitted copy; nothing is changed in place.

    Attributes:
        representation: the first layer.
        kind: of the classifier.
        components: of the PCA.
        equivariant_weight: see `pipeline`.
        seed: draws templates, and serves PCA and the perceptron.
        batch: images that are transformed at once.
        templates: the fitted templates, (K, H, W, C); None before.
        steps: the fitted rest; None before.
    """

    representation: OrbitRepresentation
    kind: Kind = "svm_rbf"
    components: int = 100
    equivariant_weight: int | float = 1.0
    seed: int = 0
    batch: int = 1000
    templates: Templates | None = None
    steps: Pipeline | None = None

    def fit(self, images: Images, labels: Labels) -> "GlassBoxClassifier":
        """Choose templates among the images, then fit all that follows in closed form.

        Args:
            images: (N, H, W, C), float32 in [0, 1].
            labels: (N,), at least two different integers.

        Returns:
            The fitted classifier.

        Raises:
            ValueError: see `check_training`, `choose_templates` and `symmetry.groups.transform`; images that are not
                real numbers, or a seed that is no integer in [0, 2³²).
        """
        images, labels = _real(images), np.asarray(labels)
        check_training(images, labels, self.components)
        if not isinstance(self.seed, int | np.integer) or not 0 <= self.seed < 2**32:
            raise ValueError(f"seed: got {self.seed}, expected an integer in [0, 2**32)")
        warn_inexact(self.representation.group, jnp.asarray(images[:16]))
        templates = choose_templates(images, labels, self.representation.templates, self.seed)
        return self.fit_features(replace(self, templates=templates).transform(images), labels, templates)

    def fit_features(self, features: Features, labels: Labels, templates: Templates) -> "GlassBoxClassifier":
        """The same from features that `transform` made with these templates."""
        if features.shape[1] < self.components:
            raise ValueError(f"components: got {self.components}, expected at most {features.shape[1]} features")
        steps = pipeline(
            self.kind,
            self.representation.blocks(),
            self.components,
            len(np.unique(labels)),
            self.equivariant_weight,
            self.seed,
        )
        if not (features.var(0) > NOISE).any():
            raise ValueError("images: got features that do not vary, expected different images")
        steps.fit(features, labels)
        kept = steps["pca"].explained_variance_
        rank = int((kept > RANK * kept[0]).sum())
        if rank < self.components:
            raise ValueError(f"components: got {self.components}, expected at most {rank}, the rank of the features")
        return replace(self, templates=templates, steps=steps)

    def transform(self, images: Images) -> Features:
        """Φ(x), (N, F) float32."""
        if self.templates is None:
            raise ValueError("templates: got none, expected a fitted classifier; call fit")
        images = _real(images)
        if images.shape[1:] != self.templates.shape[1:]:
            raise ValueError(f"images: got {images.shape[1:]}, expected {self.templates.shape[1:]} as in fitting")
        if not len(images):
            raise ValueError("images: got none, expected at least one")
        require_finite("images", images)
        least, most = float(images.min()), float(images.max())
        if least < -SLACK or most > 1 + SLACK:
            raise ValueError(f"images: got values in [{least:g}, {most:g}], expected [0, 1]")
        kernel = _kernel(self.representation.group, jnp.asarray(self.templates, jnp.float32))
        parts = [
            np.asarray(_features(self.representation, kernel, x))[:real]
            for _, real, (x,) in padded_batches(min(self.batch, len(images)), images)
        ]
        return np.concatenate(parts)

    @property
    def fitted(self) -> Pipeline:
        """Standardization, PCA and classifier.

        Raises:
            ValueError: not fitted yet.
        """
        if self.steps is None:
            raise ValueError("steps: got none, expected a fitted classifier; call fit")
        return self.steps

    def predict(self, images: Images) -> Labels:
        """The likeliest class of every image, among the labels of fitting."""
        return np.asarray(self.fitted.predict(self.transform(images)))

    def accuracy(self, images: Images, labels: Labels) -> float:
        """Share of right predictions, in [0, 1].

        Raises:
            ValueError: not one label for every image.
        """
        if np.shape(labels) != (len(images),):
            raise ValueError(f"labels: got shape {np.shape(labels)}, expected ({len(images)},), one for every image")
        return float((self.predict(images) == labels).mean())

    def decision_function(self, images: Images) -> Float[np.ndarray, "..."]:
        """The classifier's scores: (N,) of two classes, above 0 for the second; else (N, classes or pairs).

        Raises:
            ValueError: a classifier that has none (nearest neighbors, naive Bayes, the perceptron).
        """
        if not hasattr(self.fitted, "decision_function"):
            raise ValueError(
                f"kind: got {self.kind}, which has no scores, expected lda, svm_linear, svm_rbf, affine_pca"
            )
        return np.asarray(self.fitted.decision_function(self.transform(images)))

    def network(self) -> tuple[GlassBox, Any]:
        """The whole classifier as one Flax network, whose logits can be taken apart.

        Of two classes the logits are ∓ half the score, so that softmax gives the discriminant's probabilities.

        Returns:
            `GlassBox` and its variables.

        Raises:
            ValueError: a classifier that is not affine in the features.
        """
        last = self.fitted["classifier"]
        if self.kind not in ("lda", "svm_linear") or (self.kind == "svm_linear" and len(last.classes_) > 2):
            raise ValueError(
                f"kind: got {self.kind} of {len(last.classes_)} classes, expected lda, or svm_linear of two, which are "
                "affine"
            )
        assert self.templates is not None
        own, pca, scalers = self.representation, self.fitted["pca"], self.fitted["blocks"]
        weights = scalers.transformer_weights
        parts = {name: fitted for name, fitted, _ in scalers.transformers_}
        used = np.concatenate([part[0].get_support() for part in parts.values()])
        mean, scale = np.zeros(len(used)), np.zeros(len(used))
        mean[used] = np.concatenate([part[1].mean_ for part in parts.values()])
        scale[used] = np.concatenate([weights[name] / part[1].scale_ for name, part in parts.items()])
        reduction = np.zeros((len(used), self.components))
        reduction[used] = pca.components_.T / np.sqrt(pca.explained_variance_)
        coefficients, intercept = last.coef_.T, last.intercept_
        if len(last.classes_) == 2:
            coefficients = np.concatenate([-coefficients, coefficients], axis=1) / 2
            intercept = np.concatenate([-intercept, intercept]) / 2
        box = GlassBox(own.group, own.templates, own.invariants, own.equivariant, self.components, len(last.classes_))
        params = {
            "representation": {"orbit": {"templates": self.templates}},
            "standardize": {"mean": mean, "scale": scale},
            "reduction": {"kernel": reduction, "bias": -pca.mean_ @ reduction[used]},
            "classifier": {"kernel": coefficients, "bias": intercept},
        }
        return box, {"params": jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)}

    def save(self, folder: str | Path) -> None:
        """Write the fitted classifier into a folder: JSON, arrays, and a skops file, no pickle.

        Raises:
            ConfigError: the folder may not be written to.
        """
        import skops.io

        folder = Path(folder)
        check_folder(folder)
        own, group = self.representation, self.representation.group
        description = {
            "group": {"name": group.name, "elements": group.elements, "period": group.period},
            "representation": {
                "templates": own.templates,
                "invariants": own.invariants,
                "equivariant": own.equivariant,
            },
            "kind": self.kind,
            "components": int(self.components),
            "equivariant_weight": self.equivariant_weight,
            "seed": int(self.seed),
            "batch": self.batch,
        }
        content = skops.io.dumps(self.fitted)
        assert self.templates is not None
        write_arrays(folder / TEMPLATES, {"templates": self.templates})
        write_bytes(folder / PIPELINE, content)
        write_text(folder / DESCRIPTION, json.dumps(description, indent=2) + "\n")

    @classmethod
    def load(cls, folder: str | Path, group: Group | None = None) -> "GlassBoxClassifier":
        """The classifier that `save` wrote.

        Args:
            folder: the folder.
            group: the group that is expected; any where None.

        Raises:
            CheckpointError: a file is missing or damaged, holds foreign code, or the classifier is of another group.
        """
        import skops.io

        folder = Path(folder)
        path = folder / DESCRIPTION
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            saved = values.pop("group")
            period = None if saved["period"] is None else tuple(saved["period"])
            found = Group(saved["name"], tuple(Element(*e) for e in saved["elements"]), period)
            own = values.pop("representation")
            representation = OrbitRepresentation(found, own["templates"], tuple(own["invariants"]), own["equivariant"])
            path = folder / TEMPLATES
            with np.load(path, allow_pickle=False) as arrays:
                templates = arrays["templates"]
            path = folder / PIPELINE
            steps = skops.io.load(path, trusted=[f"{AffinePCA.__module__}.{AffinePCA.__qualname__}"])
            loaded = cls(representation, **values, templates=templates, steps=steps)
            expected = estimator(loaded.kind, len(steps["classifier"].classes_), loaded.components)
            if type(steps["classifier"]) is not type(expected) or len(templates) != representation.templates:
                raise ValueError(f"not a classifier of kind {loaded.kind} on {representation.templates} templates")
            width = max(part.stop for part in representation.blocks().values())
            if steps.n_features_in_ != width or not np.isfinite(templates).all():
                raise ValueError(f"not fitted to finite templates and the {width} features that they have")
        except Exception as error:
            line = " ".join(str(error).split())
            raise CheckpointError(
                f"{path}: not a file of a saved classifier ({type(error).__name__}: {line})"
            ) from None
        if group is not None and found != group:
            raise CheckpointError(f"{folder}: a classifier of the group {found.name}, expected {group.name}")
        return loaded


@partial(jax.jit, static_argnums=0)
def _kernel(group: Group, templates: Any) -> Any:
    return orbit_kernel(group, templates)


@partial(jax.jit, static_argnums=0)
def _features(representation: OrbitRepresentation, kernel: Any, images: Any) -> Any:
    return representation.features(respond(kernel, images))


def support_contributions(
    classifier: GlassBoxClassifier, images: Images
) -> tuple[Float[np.ndarray, "n s"], Int[np.ndarray, " s"], float]:
    """What every support vector of a two-class SVM adds to an image's score: α_s k(z, z_s).

    Args:
        classifier: fitted, of kind svm_rbf or svm_linear, two classes.
        images: (N, H, W, C).

    Returns:
        The contributions (N, S), the places of the support vectors among the training images (S,), and the constant
        b: contributions sum to `decision_function` minus b.

    Raises:
        ValueError: another classifier.
    """
    last = classifier.fitted["classifier"]
    if classifier.kind not in ("svm_rbf", "svm_linear") or len(last.classes_) != 2:
        raise ValueError(f"classifier: got {classifier.kind} of {len(last.classes_)} classes, expected an SVM of two")
    z = classifier.fitted[:-1].transform(classifier.transform(images))
    products = z @ last.support_vectors_.T
    if classifier.kind == "svm_rbf":
        squares = (z**2).sum(1)[:, None] + (last.support_vectors_**2).sum(1) - 2 * products
        products = np.exp(-last._gamma * squares)
    return products * last.dual_coef_, np.asarray(last.support_), float(last.intercept_[0])
