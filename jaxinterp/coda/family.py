"""Convolutional Dynamic Alignment Networks: every published configuration, and runs sized for two CPU cores.

Böhle, Fritz, Schiele, CVPR 2021 (arXiv 2104.00032); hybrids after TPAMI 2022 (arXiv 2109.13004).

    jaxinterp train RUN [key=value ...]        e.g. jaxinterp train coda/cifar10-s temperature=500
    jaxinterp evaluate runs/RUN                accuracy, localization, removal, completeness
    jaxinterp report runs/RUN                  report.html

`jaxinterp list` shows for each run where it stands in the paper, how long it took, and the paper's numbers: they are
the fields of `RUNS` below. Optimizer, schedule, batch and augmentation are those of the authors' code, with three
deviations: a small part of the training images is held out to choose the best epoch (the authors chose on the test
images; on ImageNet, which is streamed, no epoch is chosen), every run has a seed, and the regularizer, whose published
code cannot run, follows the paper's formula.
Adam's ε = 1e-8 is part of the recipe: gradients scale with 1/T, and at T = 1000 they start near ε. No configuration of
the M and XL nets was published.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, PRNGKeyArray

from jaxinterp.coda.hybrid import Hybrid
from jaxinterp.coda.network import LOGIT_BIAS, CoDANet, alignment_penalty, encode, l_coda, s_coda
from jaxinterp.errors import ConfigError
from jaxinterp.explain.explainable import Explainable
from jaxinterp.nn.baselines import ResNetTrunk
from jaxinterp.recipe.config import Experiment, Run, Schedule, at_least, small
from jaxinterp.train import LossFn, classification_loss, sigmoid_bce


@dataclass(frozen=True)
class CoDARun(Run):
    """A CoDA Net and how it is trained; the defaults are the paper's S net at T = 1000.

    Attributes:
        features: units of each layer, the last being the classes.
        ranks: bottleneck of each layer's weight generator.
        kernel_sizes: patch size of each layer in pixels.
        strides: stride of each layer in pixels.
        temperature: T, a divisor of the sum over positions.
        rescale: squash or l2.
        regularizer: λ of λ⟨|W(x)|⟩, W without 1/T.
        trunk_depth: depth 6n + 2 of a CIFAR ResNet under the CoDA layers; none where 0.
        trunk_blocks: how many of its blocks.
    """

    OUTPUTS: ClassVar[str] = "features: the last is"

    features: tuple[int, ...] = s_coda().features
    ranks: tuple[int, ...] = s_coda().ranks
    kernel_sizes: tuple[int, ...] = s_coda().kernel_sizes
    strides: tuple[int, ...] = s_coda().strides
    temperature: float = s_coda().temperature
    rescale: Literal["squash", "l2"] = "squash"
    regularizer: float = 0.0
    trunk_depth: int = 0
    trunk_blocks: int = 0
    learning_rate: float = 2.5e-4
    schedule: Schedule = "staircase"
    epochs: int = 200
    batch_size: int = 16
    accumulate: int = 2

    def __post_init__(self) -> None:
        """Refuse values that no run can have; those that do not fit one another are left to `build`.

        Raises:
            ConfigError: in one line, which field, what came and what was expected.
        """
        super().__post_init__()
        at_least(self, 1, "features", "ranks", "kernel_sizes", "strides")
        if not 0 <= self.regularizer < math.inf:
            raise ConfigError(f"regularizer: got {self.regularizer}, expected a finite number, at least 0")
        if self.trunk_depth and (self.trunk_depth < 8 or self.trunk_depth % 6 != 2):
            raise ConfigError(f"trunk_depth: got {self.trunk_depth}, expected 0 or 6n + 2: 8, 14, 20, 32, 44, ...")

    @property
    def classes(self) -> int:
        """Outputs of the network."""
        return self.features[-1]


S = CoDARun()
DIGITS = replace(
    S,
    dataset="digits",
    channels=1,
    flip=False,
    crop=1,
    features=(8, 16, 16, 10),
    ranks=(8, 16, 16, 16),
    kernel_sizes=(3, 3, 3, 1),
    strides=(1, 1, 2, 1),
    temperature=200.0,
    learning_rate=5e-3,
    schedule="cosine",
    epochs=50,
    batch_size=16,
    accumulate=1,
    validation=0.1,
    removal_images=120,
    occlusion=(3, 5),
)
MNIST = replace(
    S,
    dataset="mnist",
    channels=1,
    flip=False,
    crop=2,
    features=(8, 16, 16, 32, 10),
    ranks=(8, 16, 16, 16, 16),
    kernel_sizes=(3, 3, 3, 3, 1),
    strides=(2, 1, 2, 1, 1),
    temperature=300.0,
    learning_rate=2e-3,
    schedule="cosine",
    epochs=8,
    batch_size=64,
    accumulate=1,
    grids=20,
    removal_images=200,
    occlusion_stride=4,
)
L = replace(
    S,
    dataset="imagenet2012",
    image_size=240,
    rand_augment=(2, 10),
    crop=0,
    features=l_coda().features,
    ranks=l_coda().ranks,
    kernel_sizes=l_coda().kernel_sizes,
    strides=l_coda().strides,
    temperature=l_coda().temperature,
    learning_rate=1e-3,
    schedule="warmup",
    epochs=60,
    batch_size=64,
    accumulate=16,
    validation=0.0,
    grids=250,
    occlusion=(9, 13),
    occlusion_stride=4,
    eval_batch=8,
)
FAST = replace(S, learning_rate=1e-3, schedule="cosine", epochs=100, batch_size=64, accumulate=1)
HYBRID = replace(
    FAST,
    trunk_depth=20,
    features=(32, 64, 64, 10),
    ranks=(64, 64, 64, 64),
    kernel_sizes=(3, 3, 3, 1),
    strides=(1, 2, 1, 1),
)

# Its numbers, recomputed from the authors' result files: Table 1, Fig. 6 and the baselines in it.
REFERENCE_NAME = "the S net on CIFAR-10, T = 1000"
REFERENCE = {
    "test_accuracy": 0.932,
    "localization_3x3_median": 0.9375,
    "localization_3x3_median_occlusion_9": 0.8672,
    "localization_3x3_median_grad_cam": 0.7430,
    "localization_3x3_median_occlusion_5": 0.5674,
    "localization_3x3_median_integrated_gradients": 0.1520,
    "localization_3x3_median_input_x_gradient": 0.1399,
    "localization_3x3_median_gradient": 0.1429,
    "removal_curve_mean": 0.9642,
    "removal_curve_mean_occlusion_5": 0.9593,
    "removal_curve_mean_occlusion_9": 0.9571,
    "removal_curve_mean_grad_cam": 0.8768,
    "removal_curve_mean_gradient": 0.8613,
    "removal_curve_mean_integrated_gradients": 0.5735,
    "removal_curve_mean_input_x_gradient": 0.5616,
}

RUNS: dict[str, Experiment[CoDARun]] = {
    # T and the epochs of digits were chosen with seeds 0-2 in view of the test images; other seeds are published.
    "coda/digits": Experiment(DIGITS, "ours", time="1 min on 2 shared CPU cores"),
    "coda/mnist": Experiment(MNIST, "ours", time="15 min on 2 CPU cores"),
    "coda/cifar10-s": Experiment(
        S,
        "S-SQ, T=1000: Table 1, Fig. 6",
        paper=REFERENCE,
    ),
    "coda/cifar10-s-fast": Experiment(FAST, "ours: the S net with batch 64, Adam 1e-3, cosine"),
    **{
        f"coda/cifar10-s-t{t}": Experiment(replace(S, temperature=float(t)), f"S-SQ, T={t}: Fig. 6", paper=paper)
        for t, paper in {
            10: {"test_accuracy": 0.936, "localization_3x3_median": 0.3107, "removal_curve_mean": 0.8014},
            50: {"localization_3x3_median": 0.4454, "removal_curve_mean": 0.8561},
            100: {"localization_3x3_median": 0.6501, "removal_curve_mean": 0.8654},
            500: {"localization_3x3_median": 0.8625, "removal_curve_mean": 0.9508},
            5000: {"localization_3x3_median": 0.9354, "removal_curve_mean": 0.9683},
            10000: {},
        }.items()
    },
    "coda/cifar10-s-l2": Experiment(replace(S, rescale="l2"), "S-L2, T: Table 1", paper={"test_accuracy": 0.930}),
    **{
        f"coda/cifar10-s-rank{r}": Experiment(
            replace(S, ranks=s_coda(rank=r).ranks), f"rank ablation of the authors' code, f={r}"
        )
        for r in (4, 8, 16, 144)
    },
    **{
        f"coda/cifar10-s-lambda{value:g}": Experiment(
            replace(S, temperature=64.0, regularizer=value), f"S-SQ, T=64, λ={value:g}: Table 1 (its λ is not stated)"
        )
        for value in (0.0, 0.1, 0.25, 0.5, 1.0)
    },
    "coda/imagenet100-l": Experiment(L, "L-SQ, T=100000: Sec. 5", paper={"test_accuracy": 0.765}),
    **{
        f"coda/cifar10-hybrid{q}": Experiment(
            replace(HYBRID, trunk_blocks=q), f"ours: CoDA layers on {q} blocks of a ResNet-20"
        )
        for q in (1, 3)
    },
}


def smoke(config: CoDARun) -> CoDARun:
    """The same run in seconds: see `small`, with a low rank."""
    return replace(small(config), ranks=tuple(min(rank, 2) for rank in config.ranks))


def build(config: CoDARun) -> nn.Module:
    """The network of a run, on images of [0, 1].

    Raises:
        ConfigError: fields that do not fit one another.
    """
    most = max(0, config.trunk_depth - 2) // 2
    if not 0 <= config.trunk_blocks <= most:
        raise ConfigError(
            f"trunk_blocks: got {config.trunk_blocks}, expected 0 to {most} with trunk_depth={config.trunk_depth}"
        )
    try:
        coda = CoDANet(
            config.features,
            config.ranks,
            config.kernel_sizes,
            config.strides,
            temperature=config.temperature,
            rescale=config.rescale,
            dtype=jnp.bfloat16 if config.dtype == "bfloat16" else None,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if not config.trunk_depth:
        return coda
    return Hybrid(ResNetTrunk(config.trunk_depth, config.trunk_blocks), coda)


@dataclass(frozen=True)
class RegularizedLoss:
    """BCE(W x / T + b_0, y) + λ⟨|W|⟩, the mean over all entries of W = T · ∂logits/∂x (CVPR 2021, Sec. 3.3)."""

    model: nn.Module
    weight: float

    def __call__(
        self, params: Any, batch_stats: Any, batch: Mapping[str, Any], key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], tuple[Any, dict[str, Array]]]:
        """The loss of a batch, with the penalty ⟨|W|⟩/T among its metrics."""
        loss, (stats, metrics) = classification_loss(self.model, sigmoid_bce)(params, batch_stats, batch, key)
        penalty = alignment_penalty(self.model, {"params": params}, batch["image"])
        total = loss + self.weight * penalty
        return total, (stats, {**metrics, "loss": total, "penalty": penalty})


def loss_of(config: CoDARun, model: nn.Module) -> LossFn:
    """Sigmoid cross-entropy, with the regularizer where λ > 0."""
    if not config.regularizer:
        return classification_loss(model, sigmoid_bce)
    if config.trunk_depth:
        raise ConfigError("regularizer: W(x) is that of the image, a hybrid's is not linear down to it; use 0")
    return RegularizedLoss(model, config.regularizer * config.temperature)


def subject(config: CoDARun, model: nn.Module, variables: Any) -> Explainable:
    """A trained network as it is examined: a CoDA Net from its encoded image, a hybrid from its trunk's output."""
    prefix = "coda/" if config.trunk_depth else ""
    names = tuple(f"{prefix}layer_{i}" for i in range(len(config.features)))
    return Explainable(
        variables=variables,
        apply=lambda variables, x: model.apply(variables, x),
        predict=lambda variables, x: model.apply(variables, x, encoded=True),
        frozen=lambda variables, x: model.apply(variables, x, encoded=True, frozen=True),
        encode=encode,
        bias=LOGIT_BIAS,
        layer="trunk" if config.trunk_depth else None,
        layers=names[:-1],
        pooled=names[-1],
        occlusions=config.occlusion,
        stride=config.occlusion_stride,
    )
