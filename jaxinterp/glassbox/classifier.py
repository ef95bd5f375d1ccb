"""The glass box as a classifier that is fitted, predicts, is saved, and is written as one network.

Linear discriminants and SVMs with two classes are affine in Φ: `GlassBoxClassifier.network` writes them, with the
layers before, as one `GlassBox`. A kernel SVM is a sum over training images (`support_contributions`).
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import skops.io
from jaxtyping import Float, Int
from sklearn.pipeline import Pipeline

from jaxinterp.checks import require, require_finite
from jaxinterp.data.batches import padded_batches
from jaxinterp.errors import CheckpointError
from jaxinterp.files import check_folder, write_arrays, write_bytes, write_text
from jaxinterp.glassbox.network import GlassBox, OrbitRepresentation, choose_templates, orbit_kernel, respond
from jaxinterp.glassbox.pipeline import MIN_VARIANCE, AffinePCA, Features, Kind, Labels, estimator, pipeline
from jaxinterp.symmetry.equivariance import warn_inexact
from jaxinterp.symmetry.groups import Element, Group

Images = Float[np.ndarray, "n h w c"]
Templates = Float[np.ndarray, "k h w c"]

_orbit_kernel = jax.jit(orbit_kernel, static_argnums=0)
_features = jax.jit(lambda representation, kernel, x: representation.features(respond(kernel, x)), static_argnums=0)

PIXEL_SLACK = 1e-3
"""How far beyond [0, 1] a pixel may lie, as after a rotation that interpolates."""

MIN_COMPONENT = 1e-9
"""Variance of a component, as a share of the first one's, up to which it is rounding."""

DESCRIPTION_FILE, TEMPLATES_FILE, PIPELINE_FILE = "classifier.json", "templates.npz", "pipeline.skops"


@dataclass(frozen=True)
class GlassBoxClassifier:
    """A representation, a reduction and a classifier in one object; `fit` returns a fitted copy.

    Attributes:
        representation: the first layer.
        kind: of the classifier.
        components: of the PCA.
        equivariant_weight: see `pipeline`.
        seed: draws templates, and serves the perceptron.
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
        """Choose templates among the images, then fit all other layers in closed form.

        Args:
            images: (N, H, W, C), float32 in [0, 1].
            labels: (N,), at least two different integers; classes of equal size, or of at least `components` images.

        Raises:
            ConfigError: too few images for the templates or the components.
        """
        images, labels = _as_float32(images), np.asarray(labels)
        _require_training(images, labels, self.components)
        seeds = isinstance(self.seed, int | np.integer) and 0 <= self.seed < 2**32
        require(seeds, "seed", self.seed, "an integer in [0, 2**32)")
        warn_inexact(self.representation.group, jnp.asarray(images[:16]))
        templates = choose_templates(images, labels, self.representation.templates, self.seed)
        return self.fit_features(replace(self, templates=templates).transform(images), labels, templates)

    def fit_features(self, features: Features, labels: Labels, templates: Templates) -> "GlassBoxClassifier":
        """Fit the other layers to features that `transform` made with these templates."""
        width, classes = features.shape[1], len(np.unique(labels))
        require(self.components <= width, "components", self.components, f"at most {width} features")
        blocks = self.representation.blocks()
        steps = pipeline(self.kind, blocks, self.components, classes, self.equivariant_weight, self.seed)
        require((features.var(0) > MIN_VARIANCE).any(), "images", "features that do not vary", "different images")
        steps.fit(features, labels)
        variances = steps["pca"].explained_variance_
        rank = int((variances > MIN_COMPONENT * variances[0]).sum())
        require(rank >= self.components, "components", self.components, f"at most {rank}, the rank of the features")
        return replace(self, templates=templates, steps=steps)

    def transform(self, images: Images) -> Features:
        """Compute Φ(x), (N, F) float32."""
        require(self.templates is not None, "templates", "none", "a fitted classifier; call fit")
        images, templates = _as_float32(images), np.asarray(self.templates, np.float32)
        require(images.shape[1:] == templates.shape[1:], "images", f"{images.shape[1:]}", f"{templates.shape[1:]}")
        require(len(images), "images", "none", "at least one")
        require_finite("images", images)
        low, high = float(images.min()), float(images.max())
        fits = low >= -PIXEL_SLACK and high <= 1 + PIXEL_SLACK
        require(fits, "images", f"values in [{low:g}, {high:g}]", "[0, 1]")
        kernel = _orbit_kernel(self.representation.group, templates)
        batches = padded_batches(min(self.batch, len(images)), images)
        return np.concatenate([np.asarray(_features(self.representation, kernel, x))[:n] for _, n, (x,) in batches])

    @property
    def fitted(self) -> Pipeline:
        """Standardization, PCA and classifier; raises ConfigError where they are not fitted yet."""
        require(self.steps is not None, "steps", "none", "a fitted classifier; call fit")
        return self.steps

    def predict(self, images: Images) -> Labels:
        """Return the likeliest class of every image, among the labels of fitting."""
        return np.asarray(self.fitted.predict(self.transform(images)))

    def accuracy(self, images: Images, labels: Labels) -> float:
        """Return the share of correct predictions, in [0, 1]."""
        require(np.shape(labels) == (len(images),), "labels", f"shape {np.shape(labels)}", f"({len(images)},)")
        return float((self.predict(images) == labels).mean())

    def decision_function(self, images: Images) -> Float[np.ndarray, "..."]:
        """Return the scores of an SVM, LDA or affine PCA, (N,) of two classes, > 0 for the second, or (N, classes)."""
        scores = hasattr(self.fitted, "decision_function")
        require(scores, "kind", self.kind, "one with scores: lda, svm_linear, svm_rbf or affine_pca")
        return np.asarray(self.fitted.decision_function(self.transform(images)))

    def network(self) -> tuple[GlassBox, Any]:
        """Write an LDA, or a linear SVM of two classes, as a `GlassBox` and its variables: logits can be decomposed.

        Of two classes the logits are ∓ half the score, so that softmax gives the discriminant's probabilities.
        """
        last = self.fitted["classifier"]
        classes = len(last.classes_)
        affine = self.kind == "lda" or (self.kind == "svm_linear" and classes == 2)
        require(affine, "kind", f"{self.kind} of {classes} classes", "lda, or svm_linear of two, which are affine")
        pca, scalers = self.fitted["pca"], self.fitted["blocks"]
        parts = {name: fitted for name, fitted, _ in scalers.transformers_}
        used = np.concatenate([part[0].get_support() for part in parts.values()])
        mean, scale = np.zeros(len(used)), np.zeros(len(used))
        mean[used] = np.concatenate([part[1].mean_ for part in parts.values()])
        scale[used] = np.concatenate([scalers.transformer_weights[n] / part[1].scale_ for n, part in parts.items()])
        reduction = np.zeros((len(used), self.components))
        reduction[used] = pca.components_.T / np.sqrt(pca.explained_variance_)
        coefficients, intercept = last.coef_.T, last.intercept_
        if classes == 2:
            coefficients = np.concatenate([-coefficients, coefficients], axis=1) / 2
            intercept = np.concatenate([-intercept, intercept]) / 2
        first = self.representation
        box = GlassBox(first.group, first.templates, first.invariants, first.equivariant, self.components, classes)
        params = {
            "representation": {"orbit": {"templates": self.templates}},
            "standardize": {"mean": mean, "scale": scale},
            "reduction": {"kernel": reduction, "bias": -pca.mean_ @ reduction[used]},
            "classifier": {"kernel": coefficients, "bias": intercept},
        }
        return box, {"params": jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)}

    def support_contributions(self, images: Images) -> tuple[Float[np.ndarray, "n s"], Int[np.ndarray, " s"], float]:
        """Compute what every support vector of a two-class SVM adds to an image's score: α_s k(z, z_s).

        Returns:
            The contributions (N, S), the places of the support vectors among the training images (S,), and the
            constant b: contributions sum to `decision_function` minus b.
        """
        last = self.fitted["classifier"]
        fits = self.kind in ("svm_rbf", "svm_linear") and len(last.classes_) == 2
        require(fits, "kind", f"{self.kind} of {len(last.classes_)} classes", "an SVM of two")
        z = self.fitted[:-1].transform(self.transform(images))
        products = z @ last.support_vectors_.T
        if self.kind == "svm_rbf":
            squares = (z**2).sum(1)[:, None] + (last.support_vectors_**2).sum(1) - 2 * products
            products = np.exp(-last._gamma * squares)
        return products * last.dual_coef_, np.asarray(last.support_), float(last.intercept_[0])

    def save(self, folder: str | Path) -> None:
        """Write the fitted classifier into a folder: JSON, arrays, and a skops file, no pickle."""
        content, folder = skops.io.dumps(self.fitted), Path(folder)
        check_folder(folder)
        first, group = self.representation, self.representation.group
        description = {
            "group": {"name": group.name, "elements": group.elements, "period": group.period},
            "representation": {name: getattr(first, name) for name in ("templates", "invariants", "equivariant")},
            "kind": self.kind,
            "components": int(self.components),
            "equivariant_weight": self.equivariant_weight,
            "seed": int(self.seed),
            "batch": self.batch,
        }
        write_arrays(folder / TEMPLATES_FILE, {"templates": np.asarray(self.templates)})
        write_bytes(folder / PIPELINE_FILE, content)
        write_text(folder / DESCRIPTION_FILE, json.dumps(description, indent=2) + "\n")

    @classmethod
    def load(cls, folder: str | Path, group: Group | None = None) -> "GlassBoxClassifier":
        """Read a classifier that `save` wrote; where a group is given, one of this group.

        Raises:
            CheckpointError: a file is missing or damaged, holds foreign code, or the classifier is of another group.
        """
        folder = Path(folder)
        path = folder / DESCRIPTION_FILE
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            saved, first = values.pop("group"), values.pop("representation")
            period = None if saved["period"] is None else tuple(saved["period"])
            saved_group = Group(saved["name"], tuple(Element(*e) for e in saved["elements"]), period)
            representation = OrbitRepresentation(saved_group, **first | {"invariants": tuple(first["invariants"])})
            path = folder / TEMPLATES_FILE
            with np.load(path, allow_pickle=False) as arrays:
                templates = arrays["templates"]
            path = folder / PIPELINE_FILE
            steps = skops.io.load(path, trusted=[f"{AffinePCA.__module__}.{AffinePCA.__qualname__}"])
            loaded = cls(representation, **values, templates=templates, steps=steps)
            last = steps["classifier"]
            expected = type(estimator(loaded.kind, len(last.classes_), loaded.components))
            require(type(last) is expected, "classifier", type(last).__name__, f"{expected.__name__} of {loaded.kind}")
            width = max(part.stop for part in representation.blocks().values())
            require(steps.n_features_in_ == width, "features", steps.n_features_in_, f"{width}")
            require(len(templates) == first["templates"], "templates", len(templates), f"{first['templates']}")
            require_finite("templates", templates)
        except Exception as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise CheckpointError(f"{path}: not a file of a saved classifier ({reason})") from None
        if group is not None and saved_group != group:
            raise CheckpointError(f"{folder}: a classifier of the group {saved_group.name}, expected {group.name}")
        return loaded


def _as_float32(images: Images) -> Float[np.ndarray, "..."]:
    """Return images as float32; lists are arrays too."""
    array = np.asarray(images)
    require(array.dtype.kind in "fiub", "images", array.dtype, "real numbers")
    return array.astype(np.float32, copy=False)


def _require_training(images: Images, labels: Labels, components: int) -> None:
    """Raise for images, labels and components that no classifier can be fitted to."""
    require(images.ndim == 4 and images.size, "images", f"shape {images.shape}", "(N, H, W, C), none of them 0")
    fits = labels.shape == (len(images),) and np.issubdtype(labels.dtype, np.integer)
    require(fits, "labels", f"{labels.dtype}{labels.shape}", f"{len(images)} integers, one for each image")
    integer = isinstance(components, int | np.integer) and components >= 1
    require(integer, "components", components, "an integer of at least 1")
    require_finite("images", images)
    classes, counts = np.unique(labels, return_counts=True)
    require(len(classes) >= 2, "labels", f"one class only ({classes[0]})", "at least two")
    require(len(images) > components, "components", components, f"at most {len(images) - 1}, fewer than images")
    enough = counts.min() == counts.max() or counts.min() >= components
    smallest = f"{counts.min()} images of class {classes[counts.argmin()]} and up to {counts.max()} of others"
    require(enough, "labels", smallest, f"equally many, or at least components={components} of each")
