"""Coded ResNeXt: paths switched on by class, classifiers cut out of the network, decisions before its end.

Avranas and Kountouris, NeurIPS 2022 (arXiv 2202.05343).

    jaxinterp train RUN [key=value ...]        e.g. jaxinterp train coded/mnist --seeds 0,1,2
    jaxinterp evaluate runs/RUN                accuracy, decoding, classifiers of one class, early exit, removals
    jaxinterp report runs/RUN                  report.html

`jaxinterp list` shows for each run where it stands in the paper, how long it took, and the paper's numbers: they are
the fields of `RUNS` below. A run ending in `-baseline` is the same network with every path on for every class, no
coding loss and no dropped paths.

Where the paper and the authors' code differ, the code is followed, and the paper's way is an override: the last
learning rate (floor=1e-4 in the paper, 1e-5 in the code), the order of augmentations (rand_augment_first=False in the
paper), label smoothing on ImageNet (smoothing=0 in the paper, 0.1 in effect in the code). The batch of 512 was spread
over 8 cores with BatchNorm statistics of 64 images each: ghost=64. A small part of the training images is held out to
choose the best epoch and the thresholds of early exit; the authors held out none. The tables of codes for CIFAR-100 and
ImageNet were not printed: ours are `jaxinterp.coded.codes`'.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxinterp.coded import report as coded_page
from jaxinterp.coded.codes import load_code
from jaxinterp.coded.measures import measured
from jaxinterp.coded.network import CodedResNeXt, Stage, coding_loss
from jaxinterp.errors import ConfigError
from jaxinterp.explain.explainable import Explainable, softmax_explainable
from jaxinterp.figures.html import Section
from jaxinterp.recipe.config import DataSet, Experiment, Run, Schedule, Split, at_least, shown, small
from jaxinterp.recipe.page import Reading, Report
from jaxinterp.train import ClassificationLoss, LossFn

MEAN = {
    "cifar10": (0.4914, 0.4822, 0.4465),
    "cifar100": (0.5071, 0.4867, 0.4408),
    "imagenet2012": (0.485, 0.456, 0.406),
}
STD = {"cifar10": (0.2023, 0.1994, 0.2010), "cifar100": (0.2673, 0.2564, 0.2762), "imagenet2012": (0.229, 0.224, 0.225)}


@dataclass(frozen=True)
class CodedRun(Run):
    """A coded ResNeXt and how it is trained; the defaults are the paper's CIFAR-10 network.

    Attributes:
        classes: outputs of the network.
        depths: blocks of each stage.
        features: output channels of each stage.
        widths: channels of a path, in each stage.
        paths: N, in all stages.
        codes: name of each stage's code (see `jaxinterp.coded.codes.load_code`), empty for ordinary blocks.
        stem: kernel side and stride of the first convolution in pixels.
        mean: of each channel, subtracted; none where empty.
        std: of each channel, divided by; none where empty.
        mu: μ of cross-entropy + μ Σ coding losses.
        power: exponent of the coding loss.
        drop: probability with which a path is dropped.
        smoothing: of the labels.
        ghost: images that share BatchNorm's statistics; the whole batch where 0.
        classifier_images: training images on which the thresholds of the classifiers of one class are chosen.
        classifiers: for how many classes these are measured.
        path_images: test images on which removals are measured.
        foreign: data set whose images are negatives that no class knows; none where empty.
    """

    OUTPUTS: ClassVar[str] = "classes: got"

    classes: int = 10
    depths: tuple[int, ...] = (3, 3, 3)
    features: tuple[int, ...] = (256, 512, 1024)
    widths: tuple[int, ...] = (11, 22, 44)
    paths: int = 10
    codes: tuple[str, ...] = ("", "cifar10-5-of-10", "cifar10-3-of-10")
    stem: tuple[int, ...] = (3, 1)
    mean: tuple[float, ...] = MEAN["cifar10"]
    std: tuple[float, ...] = STD["cifar10"]
    mu: float = 6.0
    power: float = 4.0
    drop: float = 0.1
    smoothing: float = 0.0
    ghost: int = 64
    classifier_images: int = 10_000
    classifiers: int = 10
    path_images: int = 2000
    foreign: DataSet | Literal[""] = "cifar100"
    rand_augment: tuple[int, ...] = (3, 4)
    rand_augment_kind: Literal["uda", "timm"] = "timm"
    rand_augment_first: bool = True
    optimizer: Literal["adam", "adamw", "sgd"] = "sgd"
    learning_rate: float = 0.1
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    decay_all: bool = True
    schedule: Schedule = "cosine_by_epoch"
    floor: float = 1e-5
    epochs: int = 300
    batch_size: int = 512

    def __post_init__(self) -> None:
        """Refuse values that no run can have; those that do not fit one another are left to `build`.

        Raises:
            ConfigError: in one line, which field, what came and what was expected.
        """
        super().__post_init__()
        at_least(
            self, 1, "classes", "depths", "features", "widths", "paths", "stem", "classifier_images", "path_images"
        )
        at_least(self, 0, "ghost", "classifiers")
        for name, least in (("mu", 0), ("power", 1)):
            if not least <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name}: got {getattr(self, name)}, expected a finite number, at least {least}")
        if any(not 0 < deviation < math.inf for deviation in self.std):
            raise ConfigError(f"std: got {shown(self.std)}, expected positive finite numbers")
        if self.foreign in (self.dataset, "imagenet2012"):
            raise ConfigError(f"foreign: got {self.foreign}, expected a small data set other than the run's own")
        for name in ("drop", "smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name}: got {getattr(self, name)}, expected a number in [0, 1)")


PLAIN: dict[str, Any] = {"codes": ("", "", ""), "mu": 0.0, "drop": 0.0}
CIFAR10 = CodedRun(dtype="bfloat16")
CIFAR100 = replace(
    CIFAR10,
    dataset="cifar100",
    classes=100,
    widths=(6, 12, 24),
    paths=20,
    codes=("", "cifar100-8-of-20", "cifar100-4-of-20"),
    mean=MEAN["cifar100"],
    std=STD["cifar100"],
    rand_augment=(1, 2),
    classifiers=100,
    foreign="cifar10",
)
IMAGENET = replace(
    CIFAR10,
    dataset="imagenet2012",
    image_size=160,
    classes=1000,
    depths=(3, 4, 6, 3),
    features=(256, 512, 1024, 2048),
    widths=(4, 8, 16, 32),
    paths=32,
    codes=("", "", "imagenet-16-of-32", "imagenet-8-of-32"),
    stem=(7, 2),
    mean=MEAN["imagenet2012"],
    std=STD["imagenet2012"],
    crop=0,
    rand_augment=(2, 10),
    rand_augment_first=False,
    mu=1.0,
    smoothing=0.1,
    ghost=128,
    learning_rate=0.4,
    weight_decay=1e-4,
    decay_all=False,
    warmup_epochs=5,
    epochs=150,
    batch_size=1024,
    validation=0.0,
    grids=250,
    foreign="",
    eval_batch=64,
)
DIGITS = replace(
    CIFAR10,
    dataset="digits",
    channels=1,
    dtype="float32",
    flip=False,
    crop=1,
    rand_augment=(),
    depths=(1, 1, 1),
    features=(32, 64, 128),
    widths=(4, 4, 8),
    mean=(),
    std=(),
    mu=2.0,
    ghost=0,
    learning_rate=0.05,
    epochs=20,
    batch_size=32,
    validation=0.1,
    grid_sizes=(),
    removal_images=120,
    occlusion=(3,),
    classifier_images=1300,
    foreign="",
)
MNIST = replace(
    DIGITS,
    dataset="mnist",
    stem=(3, 2),
    crop=2,
    widths=(4, 6, 8),
    epochs=5,
    batch_size=64,
    validation=0.02,
    foreign="fashion_mnist",
)
MINI = replace(
    CIFAR10,
    dtype="float32",
    depths=(1, 2, 2),
    features=(64, 128, 256),
    widths=(4, 8, 12),
    stem=(3, 2),
    rand_augment=(),
    ghost=0,
    epochs=5,
    batch_size=128,
    grids=20,
    occlusion=(9,),
    occlusion_stride=8,
    removal_images=200,
)

OURS = {"digits": DIGITS, "mnist": MNIST, "cifar10-mini": MINI}
TIMES = {
    "digits": "1 min on 2 CPU cores",
    "mnist": "8 min on one busy CPU core",
    "cifar10-mini": "10 min on one CPU core",
}

REFERENCE_NAME = "the CIFAR-10 network"
REFERENCE = {
    "test_accuracy": 0.9441,
    "classifier_precision": 0.933,
    "classifier_recall": 0.773,
    "classifier_foreign_precision": 0.765,
    "parameters_kept_without_shortcuts": 0.38,
    **{
        f"decoding_accuracy_block_{block}": accuracy
        for block, accuracy in zip(range(4, 10), (0.715, 0.790, 0.863, 0.906, 0.925, 0.939), strict=True)
    },
}
CIFAR100_NUMBERS = {
    "test_accuracy": 0.7828,
    "parameters_kept_without_shortcuts": 0.27,
    **{
        f"decoding_accuracy_block_{block}": accuracy
        for block, accuracy in zip(range(4, 10), (0.218, 0.245, 0.33, 0.479, 0.590, 0.681), strict=True)
    },
}


def _ablations() -> dict[str, Experiment[CodedRun]]:
    """Exponent, μ and drop probability (paper, Sec. 4.5; CIFAR-100's μ of Fig. 5)."""
    found = {
        f"coded/cifar10-power{power}": Experiment(
            replace(CIFAR10, power=float(power)), f"exponent {power}: Sec. 4.5", paper={"test_accuracy": accuracy}
        )
        for power, accuracy in ((1, 0.871), (2, 0.931))
    }
    found |= {
        f"coded/cifar10-drop{drop}": Experiment(
            replace(CIFAR10, drop=drop), f"p = {drop}: Fig. 6", paper={"test_accuracy": accuracy}
        )
        for drop, accuracy in ((0.0, 0.9433), (0.2, 0.9357))
    }
    return found | {
        f"coded/cifar100-mu{mu}": Experiment(
            replace(CIFAR100, mu=float(mu)), f"μ = {mu}: Fig. 5", paper={"test_accuracy": accuracy}
        )
        for mu, accuracy in ((0, 0.768), (2, 0.774), (4, 0.782), (10, 0.779), (14, 0.770), (18, 0.761))
    }


RUNS: dict[str, Experiment[CodedRun]] = {
    **{
        f"coded/{name}": Experiment(config, "ours", time=TIMES[name], headline=name != "digits")
        for name, config in OURS.items()
    },
    **{
        f"coded/{name}-baseline": Experiment(
            replace(config, **PLAIN), "ours: all paths on", time=TIMES[name], headline=False
        )
        for name, config in OURS.items()
    },
    "coded/cifar10": Experiment(CIFAR10, "Table 2, Fig. 2 and 4", paper=REFERENCE),
    "coded/cifar10-baseline": Experiment(replace(CIFAR10, **PLAIN), "Table 2", paper={"test_accuracy": 0.9366}),
    "coded/cifar100": Experiment(CIFAR100, "Table 2, Fig. 4", paper=CIFAR100_NUMBERS),
    "coded/cifar100-baseline": Experiment(replace(CIFAR100, **PLAIN), "Table 2", paper={"test_accuracy": 0.7686}),
    "coded/imagenet": Experiment(
        IMAGENET, "Table 2", paper={"test_accuracy": 0.7812, "parameters_kept_without_shortcuts": 0.35}
    ),
    "coded/imagenet-mu4": Experiment(replace(IMAGENET, mu=4.0), "μ = 4: Fig. 4", paper={"test_accuracy": 0.776}),
    "coded/imagenet-baseline": Experiment(
        replace(IMAGENET, **{**PLAIN, "codes": ("",) * 4}), "Table 2", paper={"test_accuracy": 0.7805}
    ),
    **_ablations(),
}


def smoke(config: CodedRun) -> CodedRun:
    """The same run in seconds: see `small`, with one block a stage and few channels."""
    stages = len(config.depths)
    return replace(
        small(config),
        dtype="float32",
        depths=(1,) * stages,
        features=tuple(8 * (i + 1) for i in range(stages)),
        widths=(2,) * stages,
        mean=config.mean,
        ghost=min(config.ghost, 8),
        classifier_images=48,
        classifiers=2,
        foreign="",
    )


def build(config: CodedRun) -> CodedResNeXt:
    """The network of a run, on images of [0, 1].

    Raises:
        ConfigError: fields that do not fit one another.
    """
    lengths = {len(getattr(config, name)) for name in ("depths", "features", "widths", "codes")}
    if len(lengths) != 1:
        raise ConfigError(
            f"depths, features, widths, codes: got {len(config.depths)}, {len(config.features)}, {len(config.widths)}, "
            f"{len(config.codes)} entries, expected one of each for every stage"
        )
    if len(config.stem) != 2:
        raise ConfigError(f"stem: got {shown(config.stem)}, expected a kernel side and a stride")
    if config.ghost and config.batch_size // config.accumulate % config.ghost:
        raise ConfigError(f"ghost: got {config.ghost}, expected a divisor of {config.batch_size // config.accumulate}")
    if not any(config.codes) and (config.mu or config.drop):
        raise ConfigError(f"mu, drop: got {config.mu}, {config.drop} without codes, expected 0, 0")
    if config.classifiers > config.classes:
        raise ConfigError(f"classifiers: got {config.classifiers}, expected at most classes={config.classes}")
    for name in filter(None, config.codes):
        try:
            length = load_code(name).length
        except ValueError as error:
            raise ConfigError(f"codes: {str(error).removeprefix('name: ')}") from error
        if length != config.paths:
            raise ConfigError(f"paths: got {config.paths}, expected {length} as in the code {name}")
    try:
        stages = tuple(
            Stage(depth, features, width, config.paths, 1 if i == 0 else 2, load_code(code) if code else None)
            for i, (depth, features, width, code) in enumerate(
                zip(config.depths, config.features, config.widths, config.codes, strict=True)
            )
        )
        return CodedResNeXt(
            stages=stages,
            classes=config.classes,
            stem=(config.stem[0], config.stem[1]),
            drop=config.drop,
            ghost=config.ghost or None,
            mean=config.mean or None,
            std=config.std or None,
            dtype=jnp.bfloat16 if config.dtype == "bfloat16" else None,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error


def identity(config: CodedRun) -> dict[str, Any]:
    """The words behind the names of the codes: energies of a network trained with others mean nothing."""
    return {"words": {name: list(load_code(name).words) for name in config.codes if name}}


@dataclass(frozen=True)
class CodedLoss(ClassificationLoss):
    """CE(logits, y) + μ Σ_l L_l, the coding losses of all coded blocks (arXiv 2202.05343, Eq. 6)."""

    mu: float
    power: float

    def __call__(
        self, params: Any, batch_stats: Any, batch: Mapping[str, Any], key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], tuple[Any, dict[str, Array]]]:
        """The loss of a batch, with Σ_l L_l among its metrics."""
        assert isinstance(self.model, CodedResNeXt)
        (logits, energies), updates = self.model.apply(
            {"params": params, "batch_stats": batch_stats},
            batch["image"],
            train=True,
            energies=True,
            mutable=["batch_stats"],
            rngs={"dropout": key},
        )
        codes = zip(energies, self.model.codes, strict=True)
        coding = sum(
            (coding_loss(e, jnp.asarray(c.table, e.dtype)[batch["label"]], self.power) for e, c in codes),
            jnp.float32(0),
        )
        loss = self.per_logits_loss(logits, batch["label"]) + self.mu * coding
        accuracy = (logits.argmax(-1) == batch["label"]).mean(dtype=jnp.float32)
        return loss, (updates["batch_stats"], {"loss": loss, "accuracy": accuracy, "coding": coding})


@dataclass(frozen=True)
class SmoothedCrossEntropy:
    """Cross-entropy with labels (1 − s) y + s / K."""

    smoothing: float

    def __call__(self, logits: Float[Array, "batch classes"], labels: Array) -> Float[Array, ""]:
        """The mean over the batch, float32."""
        targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), self.smoothing)
        return optax.softmax_cross_entropy(logits.astype(jnp.float32), targets).mean()


def loss_of(config: CodedRun, model: nn.Module) -> LossFn:
    """Cross-entropy and μ times the coding losses."""
    return CodedLoss(model, SmoothedCrossEntropy(config.smoothing), config.mu, config.power)


def subject(config: CodedRun, model: nn.Module, variables: Any) -> Explainable:
    """A trained network as it is examined: affine in the image once the energies are held."""
    assert isinstance(model, CodedResNeXt)
    outs = tuple(f"block_{i}/out" for i in range(1, len(model.blocks) + 1))
    layers = tuple(outs[int(i)] for i in np.linspace(0, len(outs) - 1, min(3, len(outs))))
    return softmax_explainable(
        model, variables, occlusions=config.occlusion, stride=config.occlusion_stride, layers=layers, pooled=outs[-1]
    )


def measure(
    config: CodedRun,
    variables: Any,
    run_dir: Path,
    images: Float[np.ndarray, "n h w c"],
    labels: Int[np.ndarray, " n"],
    split: Split,
    log: Callable[[str], None],
) -> dict[str, Any]:
    """What only coded networks are measured for: see `jaxinterp.coded.measures.measured`."""
    model = build(replace(config, dtype="float32"))
    if not model.codes:
        return {}
    with jax.default_matmul_precision("highest"):
        return measured(config, model, variables, run_dir, images, labels, split, log)


def reading(
    config: CodedRun,
    subject: Explainable,
    image: Float[np.ndarray, "h w c"],
    top: Int[np.ndarray, " t"],
    names: Sequence[str],
) -> Reading | None:
    """What the paths of every block contribute to the `top` classes' logits; None of the baseline."""
    model = build(replace(config, dtype="float32"))
    return coded_page.reading(model, subject.variables, image, top, names) if model.codes else None


def sections(report: Report, split: Split) -> list[Section]:
    """What the report of a coded run shows besides: paths beside the code, decoding, classifiers, removals."""
    model = build(replace(report.config, dtype="float32"))
    return coded_page.sections(report, model) if model.codes else []
