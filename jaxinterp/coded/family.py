"""Coded ResNeXts as a family of runs: network, coding loss, and the measures of its paths.

Avranas and Kountouris, NeurIPS 2022 (arXiv 2202.05343).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxinterp.checks import require, require_one_of
from jaxinterp.coded import report as coded_report
from jaxinterp.coded.codes import code_for, code_names, load_code
from jaxinterp.coded.measures import measure_paths, to_unit_floats
from jaxinterp.coded.network import CodedResNeXt, Stage, coding_loss
from jaxinterp.data import hold_out
from jaxinterp.errors import DataError
from jaxinterp.figures.explorer import Panel
from jaxinterp.figures.html import Section
from jaxinterp.nn.losses import ClassificationLoss, LossFn
from jaxinterp.recipe.config import Count, DataSet, Model, Natural, NonNegative, Positive, Run, Share, small
from jaxinterp.recipe.data import split
from jaxinterp.recipe.family import Family, Log, Reading, Report, TrainedRun
from jaxinterp.recipe.presets import SCALES, Images, Scale, fitted

MEAN = {
    "cifar10": (0.4914, 0.4822, 0.4465),
    "cifar100": (0.5071, 0.4867, 0.4408),
    "imagenet2012": (0.485, 0.456, 0.406),
}
STD = {"cifar10": (0.2023, 0.1994, 0.2010), "cifar100": (0.2673, 0.2564, 0.2762), "imagenet2012": (0.229, 0.224, 0.225)}

CIFAR = ((3, 3, 3), (256, 512, 1024), (11, 22, 44))  # blocks, channels, and channels of a path, of each stage
MINI, TINY = ((1, 2, 2), (64, 128, 256), (4, 8, 12)), ((1, 1, 1), (32, 64, 128), (4, 4, 8))
PATHS = ((10, 5, 3), (20, 8, 4), (32, 16, 8))  # paths, and how many of them serve a class, in the two last stages


@dataclass(frozen=True)
class CodedModel(Model):
    """A coded ResNeXt and what is measured of it; the defaults are the paper's CIFAR-10 network.

    Attributes:
        classes: outputs of the network.
        depths: blocks of each stage.
        features: output channels of each stage.
        widths: channels of a path, in each stage.
        paths: N, in all stages.
        codes: name of each stage's code (see `coded.codes.load_code`), empty for ordinary blocks.
        stem: kernel side and stride of the first convolution in pixels.
        pool: whether 3×3 maxima, stride 2, follow it where its stride is not 1.
        mean: of each channel, subtracted; none if empty.
        std: of each channel, divided by; none if empty.
        mu: μ of cross-entropy + μ Σ coding losses.
        power: exponent of the coding loss, at least 1.
        drop: probability with which a path is dropped.
        smoothing: of the labels.
        ghost: images that share BatchNorm's statistics; the whole batch if 0.
        classifier_images: training images on which the thresholds of the single-class classifiers are chosen.
        classifiers: for how many classes these are measured.
        path_images: test images on which removals are measured.
        foreign: data set whose images are negatives that no class knows; none if empty.
    """

    classes: Count = 10
    depths: tuple[Count, ...] = (3, 3, 3)
    features: tuple[Count, ...] = (256, 512, 1024)
    widths: tuple[Count, ...] = (11, 22, 44)
    paths: Count = 10
    codes: tuple[str, ...] = ("", "cifar10-5-of-10", "cifar10-3-of-10")
    stem: tuple[Count, Count] = (3, 1)
    pool: bool = True
    mean: tuple[float, ...] = MEAN["cifar10"]
    std: tuple[Positive, ...] = STD["cifar10"]
    mu: NonNegative = 6.0
    power: Positive = 4.0
    drop: Share = 0.1
    smoothing: Share = 0.0
    ghost: Natural = 64
    classifier_images: Count = 10_000
    classifiers: Natural = 10
    path_images: Count = 2000
    foreign: DataSet | Literal[""] = "cifar100"

    def check(self) -> None:
        """Require as many entries as stages, and codes with as many paths as the network."""
        for name in ("features", "widths", "codes"):
            fields = getattr(self, name)
            require(len(fields) == len(self.depths), name, fields, f"{len(self.depths)} entries, as depths")
        coded = any(self.codes)
        require(coded or not (self.mu or self.drop), "mu, drop", f"{self.mu}, {self.drop} without codes", "0, 0")
        require(self.power >= 1, "power", self.power, "at least 1")
        require(self.classifiers <= self.classes, "classifiers", self.classifiers, f"at most classes={self.classes}")
        require(self.foreign != "imagenet2012", "foreign", self.foreign, "a data set that fits in memory")
        for name in filter(None, self.codes):
            if ":" not in name:
                require_one_of("codes", name, code_names())
            length = load_code(name).length
            require(length == self.paths, "paths", self.paths, f"{length} as in the code {name}")


@dataclass(frozen=True)
class CodedLoss(ClassificationLoss):
    """CE(logits, y) + μ Σ_l L_l, the coding losses of all coded blocks (arXiv 2202.05343, Eq. 6)."""

    mu: float
    power: float

    def __call__(
        self, params: Any, batch_stats: Any, batch: Mapping[str, Any], key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], tuple[Any, dict[str, Array]]]:
        """Return the loss of a batch, with Σ_l L_l among its metrics."""
        assert isinstance(self.model, CodedResNeXt)
        apply = partial(self.model.apply, train=True, energies=True, mutable=["batch_stats"], rngs={"dropout": key})
        (logits, energies), updates = apply({"params": params, "batch_stats": batch_stats}, batch["image"])
        coding = jnp.float32(0)
        for energy, code in zip(energies, self.model.codes, strict=True):
            coding += coding_loss(energy, jnp.asarray(code.table, energy.dtype)[batch["label"]], self.power)
        metrics = self.of_logits(logits, batch["label"], batch.get("target"))
        loss = metrics["loss"] + self.mu * coding
        return loss, (updates["batch_stats"], {**metrics, "loss": loss, "coding": coding})


@dataclass(frozen=True)
class SmoothedCrossEntropy:
    """Cross-entropy with labels (1 − s) y + s Σy / K."""

    smoothing: float

    def __call__(self, logits: Float[Array, "batch classes"], labels: Array) -> Float[Array, ""]:
        """Return the mean over the batch, float32, of labels or of soft targets."""
        if labels.ndim == 1:
            targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), self.smoothing)
        else:
            targets = (1 - self.smoothing) * labels + self.smoothing * labels.mean(-1, keepdims=True)
        return optax.softmax_cross_entropy(logits.astype(jnp.float32), targets).mean()


class CodedFamily(Family[CodedModel]):
    """Coded ResNeXts, and their baselines without codes."""

    title = "Coded ResNeXt"
    Model = CodedModel
    scales = SCALES
    normalizes = True
    streams = True

    def smoke(self, run: Run[CodedModel]) -> Run[CodedModel]:
        """Shrink a run to seconds: one block a stage and few channels."""
        stages = len(run.model.depths)
        return small(run).replace(
            model={
                "depths": (1,) * stages,
                "features": tuple(range(8, 8 * stages + 1, 8)),
                "widths": (2,) * stages,
                "ghost": min(run.model.ghost, 8),
                "classifier_images": 48,
                "classifiers": 2,
                "foreign": "",
            },
            train={"dtype": "float32"},
        )

    def preset(self, scale: Scale, images: Images) -> Run[CodedModel]:
        """Return three stages of coded blocks; the paper's are those of CIFAR up to 64 pixels, of ImageNet above."""
        classes, side = images.classes, min(images.side, {"small": 64, "medium": 128, "paper": 160}[scale])
        paths, *weights = next(
            sizes for sizes in PATHS if classes <= sizes[0] or (classes <= 100 and sizes[0] > 10) or sizes[0] > 20
        )
        codes = tuple(code_for(classes, weight, paths) for weight in weights)
        fields: dict[str, Any] = {"classes": classes, "paths": paths, "classifiers": min(classes, 10)}
        fields |= {"foreign": "", "mean": (), "std": (), "ghost": 0}
        sgd: dict[str, Any] = {
            "optimizer": "sgd", "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4, "decay_all": True,
            "schedule": "cosine_by_epoch", "end_lr": 1e-5,
        }  # fmt: skip
        if scale == "paper":
            large = side > 64
            depths, features, widths = ((3, 4, 6, 3), (256, 512, 1024, 2048), (4, 8, 16, 32)) if large else CIFAR
            stem, mu, every = ((7, 2), 1.0, ("", "", *codes)) if large else ((3, 1), 6.0, ("", *codes))
            model = CodedModel(depths=depths, features=features, widths=widths, codes=every, stem=stem, mu=mu, **fields)
            run = fitted(model, images, side, steps=1, batch_size=512, learning_rate=0.1, **sgd)
            return run.replace(train={"epochs": 150 if large else 300, "dtype": "bfloat16"})
        first = max(1, round(side / 16))  # stride of the first convolution
        stem = (3 if first <= 2 else 2 * first - 1, first)
        depths, features, widths = MINI if scale == "medium" else TINY
        fields |= {"depths": depths, "features": features, "widths": widths, "stem": stem, "mu": 2.0}
        model = CodedModel(codes=("", *codes), **fields)
        steps, batch = (1000, 32) if scale == "small" else (8000, 128)
        return fitted(model, images, side, steps=steps, batch_size=batch, learning_rate=0.05, **sgd)

    def build(self, run: Run[CodedModel], dtype: Literal["float32", "bfloat16"] = "float32") -> CodedResNeXt:
        """Return the network of a run."""
        model, size = run.model, run.train.batch_size // run.train.grad_accum_steps
        fits = not model.ghost or size % model.ghost == 0
        require(fits, "model.ghost", model.ghost, f"a divisor of {size}, the images of a micro-batch")
        other = not model.foreign or model.foreign != run.data.name
        require(other, "model.foreign", model.foreign, "another data set than the run's own")
        codes = [load_code(code) if code else None for code in model.codes]
        strides = [1] + [2] * (len(codes) - 1)
        sizes = zip(model.depths, model.features, model.widths, strides, codes, strict=True)
        stages = tuple(Stage(depth, c, width, model.paths, step, code) for depth, c, width, step, code in sizes)
        return CodedResNeXt(
            stages=stages,
            classes=model.classes,
            stem=model.stem,
            pool=model.pool,
            drop=model.drop,
            ghost=model.ghost or None,
            mean=run.data.mean or model.mean or None,
            std=run.data.std or model.std or None,
            dtype=jnp.bfloat16 if dtype == "bfloat16" else None,
        )

    def loss(self, run: Run[CodedModel], network: nn.Module) -> LossFn:
        """Return the cross-entropy and μ times the coding losses."""
        model = run.model
        return CodedLoss(network, SmoothedCrossEntropy(model.smoothing), model.mu, model.power)

    def fingerprint(self, run: Run[CodedModel]) -> Mapping[str, Any]:
        """Return the words of the codes: energies of a network trained with others mean nothing."""
        return {"words": {name: list(load_code(name).words) for name in run.model.codes if name}}

    def measure(self, trained: TrainedRun[CodedModel], log: Log) -> dict[str, Any]:
        """Measure decoding, single-class classifiers, early exit, removals and specificity."""
        if not trained.network.codes:
            return {}
        model, options, data = trained.run.model, trained.run.train, trained.train_data
        train, held = hold_out(data, options.val_fraction, options.seed) if options.val_fraction else (data, None)
        images, labels = trained.test_data
        with jax.default_matmul_precision("highest"):
            return measure_paths(
                trained.network,
                trained.variables,
                train=train,
                held=held,
                test_images=images,
                test_labels=labels,
                foreign=foreign_images(trained, log),
                folder=trained.run_dir,
                classifiers=model.classifiers,
                classifier_images=model.classifier_images,
                path_images=model.path_images,
                batch=options.eval_batch,
                seed=options.seed,
                log=log,
            )

    def explain_image(
        self, trained: TrainedRun[CodedModel], image: Float[np.ndarray, "h w c"], top: Int[np.ndarray, " t"]
    ) -> Reading | None:
        """Return the contributions of every block's paths to the `top` classes' logits; None for a baseline."""
        return coded_report.reading(trained, image, top) if trained.network.codes else None

    def explore(
        self,
        trained: TrainedRun[CodedModel],
        images: Float[np.ndarray, "n h w c"],
        targets: Int[np.ndarray, " n"],
        rows: Int[np.ndarray, " n"] | None = None,
        results: Mapping[str, Any] | None = None,
    ) -> Sequence[Panel]:
        """Return the energy of every path by block beside the code words, and what it hands on; none of a baseline."""
        return [coded_report.panel(trained, images, targets)] if trained.network.codes else []

    def report(self, report: Report) -> Sequence[Section]:
        """Return the sections: paths beside the code, decoding, classifiers, removals."""
        return coded_report.sections(report) if report.trained.network.codes else ()


def foreign_images(trained: TrainedRun[CodedModel], log: Log) -> Float[np.ndarray, "n h w c"] | None:
    """Return test images of classes that the network does not know; None if the run names none or they are missing."""
    run, name = trained.run, trained.run.model.foreign
    if not name:
        return None
    own: dict[str, Any] = {"class_subset": (), "classes": (), "bits": 0, "distilled": ""}  # of the run's images alone
    other = run.replace(data={"name": name, "image_size": run.data.image_shape[0], **own})
    try:
        return to_unit_floats(split(other, "test", trained.data_dir))
    except DataError as error:
        log(f"foreign images: {error}; left out")
        return None
