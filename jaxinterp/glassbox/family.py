"""The glass-box CNN as a family of runs: fitted in closed form, measured on upright and on rotated images."""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Float, Int

from jaxinterp.checks import require
from jaxinterp.data import Dataset
from jaxinterp.data.images import rotate_randomly
from jaxinterp.data.stream import Stream
from jaxinterp.explain.decompose import decompose
from jaxinterp.explain.explainable import Explainable, explainable
from jaxinterp.explain.metrics.separability import separability
from jaxinterp.figures.explorer import Panel
from jaxinterp.figures.html import Section
from jaxinterp.glassbox import report as glassbox_report
from jaxinterp.glassbox.network import GlassBox, Orbit, OrbitRepresentation, with_orbit
from jaxinterp.nn.losses import softmax_cross_entropy
from jaxinterp.recipe.config import Count, Model, Positive, Run, small
from jaxinterp.recipe.data import require_plain_labels
from jaxinterp.recipe.family import Family, Job, Log, Reading, Report, TrainedRun
from jaxinterp.recipe.presets import SCALES, Images, Scale, fitted
from jaxinterp.symmetry.equivariance import equivariance_error, invariance_error
from jaxinterp.symmetry.groups import Group, dihedral, rotations
from jaxinterp.symmetry.invariants import Name
from jaxinterp.train import FitResult, fit_closed_form

Kinds = tuple[Literal["lda", "svm_linear", "svm_rbf", "knn", "naive_bayes", "affine_pca", "mlp"], ...]
AUGMENTED = 4  # angles at which the baseline of augmented pixels is fitted to every training image


@dataclass(frozen=True)
class GlassBoxModel(Model):
    """A glass-box network and what it is compared with; the defaults are for pairs of MNIST's digits.

    Attributes:
        classes: outputs.
        group: rotations (c4, c8, …) or rotations and mirrors (d4).
        templates: number of templates.
        invariants: of their responses.
        equivariant: whether the responses themselves are features too.
        equivariant_weight: of these beside the invariant ones.
        components: that the reduction keeps.
        per_class: training images of each class, the first ones.
        kinds: classifiers that are measured on the representation; the network's own is lda.
        baselines: representations that are measured beside it: pixels, pixels of rotated training images, scattering.
        equivariance_images: test images on which the laws are measured.
    """

    classes: Count = 2
    group: Literal["c4", "c8", "c16", "c24", "c32", "d4"] = "c24"
    templates: Count = 384
    invariants: tuple[Name, ...] = ("sorted",)
    equivariant: bool = False
    equivariant_weight: Positive = 0.1
    components: Count = 120
    per_class: Count = 2500
    kinds: Kinds = ("lda", "svm_linear", "svm_rbf", "knn", "naive_bayes", "affine_pca", "mlp")
    baselines: tuple[Literal["pixels", "augmented", "scattering"], ...] = ("pixels", "augmented", "scattering")
    equivariance_images: Count = 200

    def check(self) -> None:
        """Require the network's own classifier among those measured."""
        require("lda" in self.kinds, "kinds", self.kinds, "lda among them, the network's own classifier")

    @property
    def elements(self) -> Group:
        """The group."""
        order = int(self.group[1:])
        return dihedral(order) if self.group[0] == "d" else rotations(order)

    @property
    def representation(self) -> OrbitRepresentation:
        """Templates and invariants."""
        return OrbitRepresentation(self.elements, self.templates, self.invariants, self.equivariant)


class GlassBoxFamily(Family[GlassBoxModel]):
    """Glass-box CNNs: orbits of templates, PCA and a linear discriminant, in closed form."""

    title = "glass box"
    Model = GlassBoxModel
    scales = SCALES

    def smoke(self, run: Run[GlassBoxModel]) -> Run[GlassBoxModel]:
        """Shrink a run to seconds: see `small`, with few templates and the first classes."""
        return small(run).replace(
            data={"image_size": None, "max_images": 160, "class_subset": tuple(range(len(run.data.class_subset)))},
            model={
                "templates": 2 * run.model.classes,
                "components": 4,
                "per_class": 4,
                "kinds": ("lda", "svm_rbf"),
                "baselines": ("pixels",),
                "equivariance_images": 8,
            },
            train={"val_fraction": 0.0},
            evaluate={"grid_sizes": ()},
        )

    def preset(self, scale: Scale, images: Images) -> Run[GlassBoxModel]:
        """Return orbits of templates on up to 28, 32 or 48 pixels; the largest is ours."""
        side = min(images.side, {"small": 28, "medium": 32, "paper": 48}[scale])
        sizes: dict[Scale, tuple[Literal["c16", "c24", "c32"], int, int, int]] = {
            "small": ("c16", 128, 60, 200), "medium": ("c24", 384, 120, 1000), "paper": ("c32", 768, 200, 2500),
        }  # fmt: skip
        group, templates, components, per_class = sizes[scale]
        most = max(images.classes, min(images.count // 2, images.classes * per_class))
        model = GlassBoxModel(
            classes=images.classes,
            group=group,
            templates=max(min(templates, most), images.classes),
            components=min(components, most),
            per_class=per_class,
            kinds=("lda", "svm_rbf"),
            baselines=("pixels",),
        )
        run = fitted(model, images, side, steps=1, batch_size=256)
        plain = {"epochs": 1, "eval_every": 1, "checkpoint_every": 1, "val_fraction": 0.0}
        still = {"flip": False, "crop_padding": 0}
        return run.replace(train=plain, augment=still, evaluate={"grid_sizes": (), "removal_images": 40})

    def build(self, run: Run[GlassBoxModel], dtype: Literal["float32", "bfloat16"] = "float32") -> GlassBox:
        """Return the network of a run."""
        model, data, sizes = run.model, run.data, run.evaluate.grid_sizes
        require(not sizes, "evaluate.grid_sizes", sizes, "none: templates have the image's size")
        require(not data.rotated, "data.rotated", True, "False: it is fitted to upright images, and tested on both")
        share = run.train.val_fraction
        require(not share, "train.val_fraction", share, "0: a closed form chooses no epoch")
        kept, wanted = len(data.class_subset), f"{model.classes}, as model.classes"
        require(kept in (0, model.classes), "data.class_subset", f"{kept} classes", wanted)
        require(data.name != "imagenet2012", "data.name", data.name, "a data set that fits in memory")
        return GlassBox(
            model.elements, model.templates, model.invariants, model.equivariant, model.components, model.classes
        )

    def check(self, run: Run[GlassBoxModel], network: nn.Module, data: Dataset | Stream) -> None:
        """Check the representation; there is nothing to train."""
        require_plain_labels(run, "a closed form minimizes no loss")
        _ = run.model.representation

    def init_from(self, run: Run[GlassBoxModel], network: nn.Module, variables: Any, pretrained: Any, data: Any) -> Any:
        """Return the closed form of the first images of each class: templates, standardization, PCA, discriminant."""
        return {**variables, **_classifier(run).fit(*first_of_classes(run, data)).network()[1]}

    def fit(self, job: Job[GlassBoxModel]) -> FitResult:
        """Fit the closed form, and measure it on the training and the test images."""
        assert isinstance(job.data, Dataset)
        arguments = job.run_dir, job.network, job.init_from, softmax_cross_entropy, job.data, job.test, job.run.train
        return fit_closed_form(*arguments, fingerprint=job.fingerprint, allow_older=job.allow_older)

    def explainable(self, trained: TrainedRun[GlassBoxModel]) -> Explainable:
        """Explain a fitted network, the orbits of whose templates are made once."""
        return explainable(trained.network, with_orbit(trained.network, trained.variables))

    def measure(self, trained: TrainedRun[GlassBoxModel], log: Log) -> dict[str, Any]:
        """Measure classifiers on the representation and its baselines, upright and rotated; and the group's law."""
        from sklearn.pipeline import Pipeline

        from jaxinterp.glassbox.pipeline import estimator, pipeline

        run, model, seed = trained.run, trained.run.model, trained.run.train.seed
        images, labels = trained.test_data[0], trained.test_data[1].astype(int)
        rotated = rotate_randomly(images, seed)
        train, train_labels = first_of_classes(run, trained.train_data)
        params = trained.variables["params"]["representation"]["orbit"]
        classifier = replace(_classifier(run), templates=np.asarray(params["templates"]))
        metrics: dict[str, float] = {"parameters": float(trained.parameters)}
        rows: list[dict[str, Any]] = []

        def compare(name: str, kinds: Kinds, fit: Any, tested: Sequence[Any], blocks: Mapping[str, slice]) -> None:
            features, targets = fit
            components = min(model.components, *features.shape)
            ratios = [separability(part, labels).ratio for part in tested]
            metrics.update({f"separability_{name}_upright": ratios[0], f"separability_{name}_rotated": ratios[1]})
            row = {"name": name, "features": features.shape[1], "J": ratios, "accuracy": {}}
            front = pipeline("lda", blocks, components, model.classes, model.equivariant_weight, seed)[:-1]
            reduced, *tested = front.fit_transform(features), *map(front.transform, tested)
            for kind in kinds:
                last = estimator(kind, model.classes, components, seed).fit(reduced, targets)
                predicted = [last.predict(part) for part in tested]
                accuracy = [float((part == labels).mean()) for part in predicted]
                row["accuracy"][kind] = accuracy
                log(f"{name}, {kind}: upright {accuracy[0]:.2%}, rotated {accuracy[1]:.2%}")
                if name == "orbit":
                    metrics.update({f"upright_accuracy_{kind}": accuracy[0], f"rotated_accuracy_{kind}": accuracy[1]})
                    metrics.update(_six_and_nine(run, kind, predicted[1], labels))
                    steps = Pipeline([*front.steps, ("classifier", last)])
                    replace(classifier, kind=kind, steps=steps).save(trained.run_dir / "classifiers" / kind)
                else:
                    metrics[f"rotated_accuracy_{name}_{kind}"] = accuracy[1]
            rows.append(row)

        features, *tested = map(classifier.transform, (train, images, rotated))
        compare("orbit", model.kinds, (features, train_labels), tested, classifier.representation.blocks())
        baseline_kinds: Kinds = tuple(kind for kind in model.kinds if kind in ("lda", "svm_rbf"))
        for name in model.baselines:
            if (baseline := _baseline(name, run, train, train_labels, log)) is not None:
                transform, fit = baseline
                tested = [transform(images), transform(rotated)]
                compare(name, baseline_kinds, fit, tested, {"features": slice(0, tested[0].shape[1])})
        x = jnp.asarray(images[: model.equivariance_images])
        # The templates are an argument: XLA would fold constants for minutes.
        respond = partial(jax.jit(Orbit(model.elements, model.templates).apply), {"params": params})
        law = equivariance_error(respond, model.elements, x, "orbit")[1:]
        unmoved = invariance_error(respond, model.elements, x)[1:]
        metrics |= {"equivariance_residual": float(law.max()), "equivariance_uncompensated": float(unmoved.mean())}
        log(f"E(h x)[g] = E(x)[g h] to {law.max():.2e} (without the permutation {unmoved.mean():.2f})")
        metrics["black_residual"] = black_residual(trained.explainable, images[: run.evaluate.removal_images])
        log(f"logits are their contributions and the logits of black to {metrics['black_residual']:.2e}")
        return {"metrics": metrics, "representations": rows}

    def explain_image(
        self, trained: TrainedRun[GlassBoxModel], image: Float[np.ndarray, "h w c"], top: Int[np.ndarray, " t"]
    ) -> Reading:
        """Return the templates with the largest contributions to the logits of the `top` classes."""
        return glassbox_report.reading(trained.network, trained.explainable, image, top, trained.classes)

    def explore(
        self,
        trained: TrainedRun[GlassBoxModel],
        images: Float[np.ndarray, "n h w c"],
        targets: Int[np.ndarray, " n"],
        rows: Int[np.ndarray, " n"] | None = None,
        results: Mapping[str, Any] | None = None,
    ) -> Sequence[Panel]:
        """Return the templates that decided, and the image moved by the group."""
        return glassbox_report.panels(trained.network, trained.explainable, images, targets, trained.classes)

    def report(self, report: Report) -> Sequence[Section]:
        """Return the sections: classifiers and baselines, the orbit, its contributions."""
        return glassbox_report.sections(report, report.trained.network)


def _classifier(run: Run[GlassBoxModel]) -> Any:
    """Return the network's own classifier, not fitted yet."""
    from jaxinterp.glassbox.classifier import GlassBoxClassifier

    model = run.model
    return GlassBoxClassifier(model.representation, "lda", model.components, model.equivariant_weight, run.train.seed)


def first_of_classes(
    run: Run[GlassBoxModel], data: Dataset
) -> tuple[Float[np.ndarray, "n h w c"], Int[np.ndarray, " n"]]:
    """Return the first images of each class, in [0, 1], and their labels."""
    places = [np.flatnonzero(data.labels == k)[: run.model.per_class] for k in range(run.model.classes)]
    chosen = np.sort(np.concatenate(places))
    return data.floats(chosen), data.labels[chosen]


def black_residual(net: Explainable, images: Float[np.ndarray, "n h w c"]) -> float:
    """Return the largest |f(x) − f(0) − Σ contributions| over the largest |f(x)|; invariants of black are 0."""
    x, sums = jnp.asarray(images), decompose(net, images, check=False).contributions.sum((2, 3, 4))
    logits, black = (net.logits(y) for y in (x, jnp.zeros_like(x[:1])))
    return float(jnp.abs(logits - black - sums).max() / jnp.abs(logits).max())


def _six_and_nine(
    run: Run[GlassBoxModel], kind: str, predicted: Int[np.ndarray, " n"], labels: Int[np.ndarray, " n"]
) -> dict[str, float]:
    """Return the share of all turned digits that are a 6 taken for a 9 or a 9 for a 6."""
    if run.model.classes < 10 or run.data.name not in ("digits", "mnist"):
        return {}
    confused = ((predicted == 6) & (labels == 9)) | ((predicted == 9) & (labels == 6))
    return {f"rotated_6_9_confusion_{kind}": float(confused.mean())}


def _baseline(
    name: str, run: Run[GlassBoxModel], train: np.ndarray, labels: np.ndarray, log: Log
) -> tuple[Callable[[np.ndarray], np.ndarray], tuple[np.ndarray, np.ndarray]] | None:
    """Return a baseline's features as a function, and those it is fitted to, with labels; None if not installed."""

    def pixels(images: np.ndarray) -> np.ndarray:
        return images.reshape(len(images), -1)

    if name == "scattering":
        scattering = _scattering(run.data.image_shape[0])
        if scattering is None:
            log("scattering: kymatio cannot be imported; left out")
        return None if scattering is None else (scattering, (scattering(train), labels))
    if name == "pixels":
        return pixels, (pixels(train), labels)
    seeds = [zlib.crc32(f"{run.train.seed} {i}".encode()) for i in range(AUGMENTED)]
    return pixels, (np.concatenate([pixels(rotate_randomly(train, s)) for s in seeds]), np.tile(labels, AUGMENTED))


def _scattering(side: int) -> Callable[[np.ndarray], np.ndarray] | None:
    """Return scattering coefficients on their grid of positions, by kymatio if it is installed (with SciPy < 1.17)."""
    try:
        from kymatio.jax import Scattering2D
    except ImportError:
        return None
    scatter = jax.jit(Scattering2D(J=3, shape=(side, side), L=8))

    def features(images: np.ndarray) -> np.ndarray:
        planes = np.moveaxis(images, -1, 1)
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # kymatio mixes types
            parts = [np.asarray(scatter(jnp.asarray(planes[i : i + 500]))) for i in range(0, len(planes), 500)]
        return np.concatenate(parts).reshape(len(images), -1)

    return features
