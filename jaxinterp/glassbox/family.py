"""The glass-box CNN: representation, dimension reduction and classifier in closed form, upright and rotated.

After "Analytical interpretation of the glass-box CNN" (arXiv 2101.10443), of which the abstracts could be read and the
text could not: groups, templates, data and recipes are ours, no number of the paper is quoted, and no run reproduces
one.

    jaxinterp train RUN [key=value ...]        e.g. jaxinterp train glassbox/mnist-3-8 --seeds 0,1,2
    jaxinterp evaluate runs/RUN                all classifiers and baselines, on upright and on rotated test images
    jaxinterp report runs/RUN                  report.html

Training is one closed form: templates among upright training images, then standardization, PCA and a linear
discriminant. The single epoch that follows changes nothing; it measures. Rotated test images are the test images, each
turned by an angle drawn uniformly from the whole circle.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxinterp.data import Dataset
from jaxinterp.data.images import turned
from jaxinterp.errors import ConfigError
from jaxinterp.explain.explainable import Subject, plain_subject
from jaxinterp.explain.metrics.separability import separability
from jaxinterp.figures.html import Section
from jaxinterp.glassbox import report as glassbox_page
from jaxinterp.glassbox.network import GlassBox, Orbit, OrbitRepresentation
from jaxinterp.recipe.config import Experiment, Run, Split, at_least, shown, small
from jaxinterp.recipe.page import Reading, Report
from jaxinterp.symmetry.equivariance import equivariance_error
from jaxinterp.symmetry.groups import Group, dihedral, rotations
from jaxinterp.symmetry.invariants import Name
from jaxinterp.train import ClassificationLoss, LossFn, softmax_cross_entropy

Kinds = tuple[Literal["lda", "svm_linear", "svm_rbf", "knn", "naive_bayes", "affine_pca", "mlp"], ...]
AUGMENTED = 4  # angles at which the baseline of augmented pixels sees every training image


@dataclass(frozen=True)
class GlassBoxRun(Run):
    """A glass-box network and what it is compared with; the defaults are for pairs of MNIST's digits.

    Attributes:
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

    dataset: Literal["digits", "mnist", "fashion_mnist", "cifar10", "cifar100"] = "mnist"
    channels: int = 1
    only: tuple[int, ...] = (3, 8)
    classes: int = 2
    group: Literal["c4", "c8", "c16", "c24", "c32", "d4"] = "c24"
    templates: int = 384
    invariants: tuple[Name, ...] = ("sorted",)
    equivariant: bool = False
    equivariant_weight: float = 0.1
    components: int = 120
    per_class: int = 2500
    kinds: Kinds = ("lda", "svm_linear", "svm_rbf", "knn", "naive_bayes", "affine_pca", "mlp")
    baselines: tuple[Literal["pixels", "augmented", "scattering"], ...] = ("pixels", "augmented", "scattering")
    equivariance_images: int = 200
    flip: bool = False
    crop: int = 0
    validation: float = 0.0
    epochs: int = 1
    batch_size: int = 500  # every batch turns all templates anew
    eval_batch: int = 500
    grid_sizes: tuple[int, ...] = ()
    removal_images: int = 40
    occlusion: tuple[int, ...] = (5,)
    occlusion_stride: int = 4

    def __post_init__(self) -> None:
        """Refuse values that no run can have; those that do not fit one another are left to `build`.

        Raises:
            ConfigError: in one line, which field, what came and what was expected.
        """
        super().__post_init__()
        at_least(self, 1, "classes", "templates", "components", "per_class", "equivariance_images")
        if not self.equivariant_weight > 0:
            raise ConfigError(f"equivariant_weight: got {self.equivariant_weight}, expected a positive number")
        if "lda" not in self.kinds:
            raise ConfigError(f"kinds: got {shown(self.kinds)}, expected lda among them, the network's own classifier")


PAIR = GlassBoxRun()
MNIST = replace(
    PAIR, only=(), classes=10, components=200, per_class=1000, kinds=("lda", "svm_rbf"), baselines=("pixels",)
)
DIGITS = replace(
    MNIST,
    dataset="digits",
    group="c16",
    templates=128,
    invariants=("sorted", "bispectrum"),
    components=60,
    per_class=100,
    kinds=PAIR.kinds,
    batch_size=400,
    removal_images=120,
    occlusion=(3,),
)

TIME = "1 min on one CPU core, and 3 to evaluate"
REFERENCE_NAME = "no configuration: the paper's numbers could not be had"
REFERENCE: dict[str, float] = {}

RUNS: dict[str, Experiment[GlassBoxRun]] = {
    "glassbox/digits": Experiment(DIGITS, "ours", time="1 min on one CPU core", headline=False),
    "glassbox/mnist-3-8": Experiment(PAIR, "ours: two classes, as in the abstract", time=TIME),
    "glassbox/mnist-4-9": Experiment(replace(PAIR, only=(4, 9)), "ours: two classes that are hard to tell", time=TIME),
    "glassbox/mnist-0-1": Experiment(replace(PAIR, only=(0, 1)), "ours: easy to tell", time=TIME, headline=False),
    "glassbox/mnist": Experiment(MNIST, "ours: ten classes"),
    "glassbox/cifar10-cat-dog": Experiment(
        replace(PAIR, dataset="cifar10", channels=3, only=(3, 5), baselines=("pixels",)),
        "ours: natural images",
        headline=False,
    ),
}


def smoke(config: GlassBoxRun) -> GlassBoxRun:
    """The same run in seconds: see `small`, with few templates and the first classes."""
    return replace(
        small(config),
        validation=0.0,
        image_size=None,
        images=160,
        grid_sizes=(),
        only=tuple(range(len(config.only))),
        templates=2 * config.classes,
        components=4,
        per_class=4,
        kinds=("lda", "svm_rbf"),
        baselines=("pixels",),
        equivariance_images=8,
    )


def group_of(config: GlassBoxRun) -> Group:
    """The group of a run."""
    order = int(config.group[1:])
    return dihedral(order) if config.group[0] == "d" else rotations(order)


def build(config: GlassBoxRun) -> GlassBox:
    """The network of a run, on images of [0, 1].

    Raises:
        ConfigError: fields that do not fit one another.
    """
    if config.grid_sizes:
        raise ConfigError(f"grid_sizes: got {shown(config.grid_sizes)}, expected none: templates have the image's size")
    if config.rotated:
        raise ConfigError(
            "rotated: got True, expected False: a glass box is fitted to upright images, and tested on both"
        )
    if config.validation:
        raise ConfigError(
            f"validation: got {config.validation}, expected 0: nothing is chosen while a closed form trains"
        )
    if config.only and len(config.only) != config.classes:
        raise ConfigError(f"only: got {len(config.only)} classes, expected {config.classes}, as classes")
    network = GlassBox(
        group_of(config),
        config.templates,
        config.invariants,
        config.equivariant,
        config.components,
        config.classes,
    )
    try:
        _representation(config)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return network


def _representation(config: GlassBoxRun) -> OrbitRepresentation:
    return OrbitRepresentation(group_of(config), config.templates, config.invariants, config.equivariant)


def fixed(config: GlassBoxRun) -> Callable[[str], bool]:
    """Which parameters are not trained: none is."""
    return lambda path: True


class MeasuredLoss(ClassificationLoss):
    """A loss without derivatives, which are then not computed."""

    def __call__(self, params: Any, batch_stats: Any, batch: Mapping[str, Array], key: PRNGKeyArray) -> Any:
        """The loss of a batch, and the metrics."""
        return super().__call__(jax.lax.stop_gradient(params), batch_stats, batch, key)


def loss_of(config: GlassBoxRun, model: nn.Module) -> LossFn:
    """Cross-entropy, which is only measured."""
    return MeasuredLoss(model, softmax_cross_entropy)


def initial(config: GlassBoxRun, variables: Any, prior: Any | None, data: Dataset) -> Any:
    """The closed form: templates, standardization, PCA and linear discriminant of the first images of each class.

    Raises:
        ConfigError: too few images for the templates or components.
    """
    from jaxinterp.glassbox.classifier import GlassBoxClassifier

    images, labels = training(config, data)
    own = GlassBoxClassifier(_representation(config), "lda", config.components, config.equivariant_weight, config.seed)
    try:
        return {**variables, **own.fit(images, labels).network()[1]}
    except ValueError as error:
        raise ConfigError(str(error)) from error


def training(config: GlassBoxRun, data: Dataset) -> tuple[Float[np.ndarray, "n h w c"], Int[np.ndarray, " n"]]:
    """The first images of each class, in [0, 1], and their labels."""
    places = np.sort(
        np.concatenate([np.flatnonzero(data.labels == k)[: config.per_class] for k in range(config.classes)])
    )
    return data.images[places].astype(np.float32) / np.float32(data.maximum), data.labels[places]


def subject(config: GlassBoxRun, model: nn.Module, variables: Any) -> Subject:
    """A fitted network as it is examined."""
    return plain_subject(config, model, variables, constant="a constant of the class")


def measure(
    config: GlassBoxRun,
    variables: Any,
    run_dir: Path,
    images: Float[np.ndarray, "n h w c"],
    labels: Int[np.ndarray, " n"],
    split: Split,
    log: Callable[[str], None],
) -> dict[str, Any]:
    """Measure every classifier on the representation and its baselines, upright and rotated; separability; the law."""
    from sklearn.pipeline import Pipeline

    from jaxinterp.glassbox.classifier import GlassBoxClassifier
    from jaxinterp.glassbox.pipeline import estimator, pipeline

    labels = labels.astype(int)
    rotated = turned(images, config.seed)
    train, wanted = training(config, split(config, "train"))
    templates = np.asarray(variables["params"]["representation"]["orbit"]["templates"])
    own = GlassBoxClassifier(
        _representation(config), "lda", config.components, config.equivariant_weight, config.seed, templates=templates
    )
    metrics: dict[str, float] = {"parameters": float(sum(leaf.size for leaf in jax.tree.leaves(variables["params"])))}
    rows: list[dict[str, Any]] = []

    def compare(name: str, kinds: Kinds, fit: Any, upright: Any, moved: Any, blocks: Mapping[str, slice]) -> None:
        features, targets = fit
        components = min(config.components, *features.shape)
        spread = [separability(part, labels).ratio for part in (upright, moved)]
        row = {"name": name, "features": features.shape[1], "J": spread, "accuracy": {}}
        front = pipeline("lda", blocks, components, config.classes, config.equivariant_weight, config.seed)[:-1]
        reduced, *seen = front.fit_transform(features), *(front.transform(part) for part in (upright, moved))
        for kind in kinds:
            last = estimator(kind, config.classes, components, config.seed).fit(reduced, targets)
            predicted = [last.predict(part) for part in seen]
            found = [float((part == labels).mean()) for part in predicted]
            row["accuracy"][kind] = found
            log(f"{name}, {kind}: upright {found[0]:.2%}, rotated {found[1]:.2%}")
            if name == "orbit":
                metrics.update({f"upright_accuracy_{kind}": found[0], f"rotated_accuracy_{kind}": found[1]})
                metrics.update(_six_and_nine(config, kind, predicted[1], labels))
                steps = Pipeline([*front.steps, ("classifier", last)])
                replace(own, kind=kind, steps=steps).save(run_dir / "classifiers" / kind)
            else:
                metrics[f"rotated_accuracy_{name}_{kind}"] = found[1]
        rows.append(row)

    known, upright, moved = (own.transform(part) for part in (train, images, rotated))
    compare("orbit", config.kinds, (known, wanted), upright, moved, own.representation.blocks())
    few: Kinds = tuple(kind for kind in config.kinds if kind in ("lda", "svm_rbf"))
    for baseline in config.baselines:
        made = _baseline(baseline, config, train, wanted, log)
        if made is not None:
            transform, fit = made
            upright, moved = transform(images), transform(rotated)
            compare(baseline, few, fit, upright, moved, {"features": slice(0, upright.shape[1])})
    orbit = Orbit(group_of(config), config.templates)
    some = jnp.asarray(images[: config.equivariance_images])
    placed = {"params": variables["params"]["representation"]["orbit"]}
    respond = partial(jax.jit(orbit.apply), placed)  # as an argument: XLA would fold constants for minutes
    law = equivariance_error(respond, group_of(config), some, "orbit")[1:]
    none = equivariance_error(respond, group_of(config), some, lambda g, y: y)[1:]
    metrics |= {"equivariance_residual": float(law.max()), "equivariance_uncompensated": float(none.mean())}
    log(f"E(h x)[g] = E(x)[g h] to {law.max():.2e} (without the permutation {none.mean():.2f})")
    metrics["black_residual"] = black_residual(config, variables, images[: config.removal_images])
    log(f"logits are their contributions and the logits of black to {metrics['black_residual']:.2e}")
    return {"metrics": metrics, "representations": rows}


def black_residual(config: GlassBoxRun, variables: Any, images: Float[np.ndarray, "n h w c"]) -> float:
    """Largest |f(x) − f(0) − Σ contributions| over the largest |f(x)|: invariants are 0 where no template answers."""
    model = build(config)
    x = jnp.asarray(images)
    one = subject(config, model, variables)
    found = one.decompose(images)
    logits, black = (one.apply(variables, y) for y in (x, jnp.zeros_like(x[:1])))
    return float(jnp.abs(logits - black - found.contributions.sum((2, 3, 4))).max() / jnp.abs(logits).max())


def _six_and_nine(
    config: GlassBoxRun, kind: str, predicted: Int[np.ndarray, " n"], labels: Int[np.ndarray, " n"]
) -> dict[str, float]:
    """Share of all turned digits that are a 6 taken for a 9 or a 9 for a 6, alike up to a turn."""
    if config.classes < 10 or config.dataset not in ("digits", "mnist"):
        return {}
    confused = ((predicted == 6) & (labels == 9)) | ((predicted == 9) & (labels == 6))
    return {f"rotated_6_9_confusion_{kind}": float(confused.mean())}


def _baseline(
    name: str, config: GlassBoxRun, train: np.ndarray, wanted: np.ndarray, log: Callable[[str], None]
) -> tuple[Callable[[np.ndarray], np.ndarray], tuple[np.ndarray, np.ndarray]] | None:
    """Features of a baseline, and those it is fitted to with their labels; None where it cannot be had."""

    def pixels(images: np.ndarray) -> np.ndarray:
        return images.reshape(len(images), -1)

    if name == "pixels":
        return pixels, (pixels(train), wanted)
    if name == "augmented":
        seen = np.concatenate([turned(train, zlib.crc32(f"{config.seed} {i}".encode())) for i in range(AUGMENTED)])
        return pixels, (pixels(seen), np.tile(wanted, AUGMENTED))
    scattering = _scattering(config.image_shape[0])
    if scattering is None:
        log("scattering: kymatio cannot be imported; left out")
        return None
    return scattering, (scattering(train), wanted)


def _scattering(side: int) -> Callable[[np.ndarray], np.ndarray] | None:
    """Scattering coefficients on their grid of positions, by kymatio where it is installed."""
    import scipy.special

    if not hasattr(scipy.special, "sph_harm"):  # which kymatio imports for three dimensions, and SciPy has renamed
        scipy.special.sph_harm = lambda m, n, theta, phi: scipy.special.sph_harm_y(n, m, phi, theta)
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


def reading(
    config: GlassBoxRun,
    subject: Subject,
    image: Float[np.ndarray, "h w c"],
    top: Int[np.ndarray, " t"],
    names: Sequence[str],
) -> Reading:
    """The templates with the largest contributions to the logits of the `top` classes."""
    return glassbox_page.reading(build(config), subject, image, top, names)


def sections(report: Report, split: Split) -> list[Section]:
    """What the report of a glass box shows besides: classifiers and baselines, the orbit, its contributions."""
    return glassbox_page.sections(report, build(report.config))
