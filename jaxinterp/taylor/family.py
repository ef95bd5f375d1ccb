"""TaylorNet: networks that are polynomials, trained, truncated and read order by order.

After Yang, Xie & Yang, "Exploring explicit coarse-grained structure in artificial neural networks" (Chin. Phys. Lett.
40, 020501, 2023, arXiv 2211.01779), of which the abstract could be read and neither the full text nor code: the design
and the recipes are ours, no number of the paper is quoted, and no run reproduces one.

    jaxinterp train RUN [key=value ...]        e.g. jaxinterp train taylor/mnist --seeds 0,1,2
    jaxinterp evaluate runs/RUN                accuracy, that of truncated series, energy of each order
    jaxinterp report runs/RUN                  report.html

`jaxinterp list` shows for each run how long it took. Images are centered on the mean training image, which is the
expansion point. A run ending in `-low-orders` has the penalty λ Σ_m c^m ⟨f_m²⟩, which moves weight to low orders.
Data distillation, the paper's other half, is `experiments/distillation.py`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxinterp.data import Dataset
from jaxinterp.data.batches import padded_batches
from jaxinterp.errors import ConfigError
from jaxinterp.explain.explainable import Explainable
from jaxinterp.explain.series import energy, order_penalty, orders, propagate, truncated_accuracy
from jaxinterp.figures.html import Section
from jaxinterp.recipe.config import Experiment, Run, Schedule, Split, at_least, shown, small
from jaxinterp.recipe.page import Reading, Report
from jaxinterp.taylor import report as taylor_page
from jaxinterp.taylor.network import Expansion, Form, Level, PolynomialResNet, TaylorNet, describe, with_expansion_point
from jaxinterp.train import ClassificationLoss, LossFn, softmax_cross_entropy


@dataclass(frozen=True)
class TaylorRun(Run):
    """A polynomial network and how it is trained; the defaults are for MNIST.

    Attributes:
        design: levels of Taylor units (none for the direct expansion), or residual blocks of order 2.
        classes: outputs of the network.
        features: outputs of the units of each level, or channels of each stage.
        ranks: of each level's units; the features where empty.
        depths: blocks of each stage of the residual design.
        side: of the blocks of all levels in pixels.
        stride: from one block to the next, in pixels.
        order: of the units.
        form: of the units: dense, cp, ccp or tucker.
        shared: one unit for all blocks of a level, or one for each block.
        size: side of the map in which the centered image lies, surrounded by zeros; the image's own where None.
        pool: side of blocks that are averaged first.
        head_order: order of the last unit.
        head_form: its form.
        head_rank: its rank; the classes where None.
        quadratic: factor of the initial deviation of what multiplies products.
        scale: by which centered images are divided.
        center: the expansion point, the mean training image or black.
        penalty: λ of λ Σ_m c^m ⟨f_m²⟩.
        growth: its c.
        penalty_images: first so many images of a batch whose orders it is taken of.
        orders: largest order that is measured; the degree where it is less.
        order_images: test images on which orders are measured.
    """

    OUTPUTS: ClassVar[str] = "classes: got"

    dataset: Literal["digits", "mnist", "fashion_mnist", "cifar10", "cifar100"] = "mnist"
    channels: int = 1
    flip: bool = False
    crop: int = 2
    design: Literal["levels", "residual"] = "levels"
    classes: int = 10
    features: tuple[int, ...] = (8, 16, 32, 48)
    ranks: tuple[int, ...] = ()
    depths: tuple[int, ...] = ()
    side: int = 4
    stride: int = 2
    order: int = 2
    form: Form = "cp"
    shared: bool = True
    size: int | None = 32
    pool: int = 1
    head_order: int = 1
    head_form: Form = "cp"
    head_rank: int | None = None
    quadratic: float = 0.5
    scale: float = 1.0
    center: Literal["mean", "black"] = "mean"
    penalty: float = 0.0
    growth: float = 2.0
    penalty_images: int = 32
    orders: int = 16
    order_images: int = 10_000
    optimizer: Literal["adam", "adamw", "sgd"] = "adamw"
    learning_rate: float = 4e-3
    weight_decay: float = 1e-4
    clip: float = 1.0
    schedule: Schedule = "onecycle"
    epochs: int = 16
    batch_size: int = 128
    grid_sizes: tuple[int, ...] = ()
    removal_images: int = 200
    occlusion_stride: int = 4

    def __post_init__(self) -> None:
        """Refuse values that no run can have; those that do not fit one another are left to `build`.

        Raises:
            ConfigError: in one line, which field, what came and what was expected.
        """
        super().__post_init__()
        at_least(self, 1, "classes", "features", "ranks", "depths", "side", "stride", "order", "size", "pool")
        at_least(self, 1, "head_order", "head_rank", "penalty_images", "orders", "order_images")
        for name, least in (("quadratic", 0), ("penalty", 0)):
            if not least <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name}: got {getattr(self, name)}, expected a finite number, at least {least}")
        for name in ("scale", "growth"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name}: got {getattr(self, name)}, expected a positive finite number")


AnyTaylorRun = TypeVar("AnyTaylorRun", bound=TaylorRun)
MNIST = TaylorRun()
SMALL = replace(MNIST, side=2, features=(8, 16, 32, 64), epochs=20)
DIGITS = replace(
    MNIST,
    dataset="digits",
    crop=1,
    features=(8, 16, 32),
    size=8,
    epochs=40,
    batch_size=32,
    learning_rate=3e-3,
    validation=0.1,
    removal_images=120,
    occlusion=(3,),
)
MINI = replace(
    MNIST,
    dataset="cifar10",
    channels=3,
    flip=True,
    crop=3,
    features=(16, 32, 64, 96),
    ranks=(32, 64, 96, 96),
    quadratic=0.25,
    scale=0.25,
    learning_rate=3e-3,
    weight_decay=1e-3,
    epochs=12,
    order_images=2000,
)
CIFAR10 = replace(
    MINI,
    design="residual",
    features=(32, 64, 128, 160),
    ranks=(),
    depths=(2, 2, 2, 2),
    crop=4,
    clip=1.0,
    epochs=100,
    orders=8,
    order_images=1000,
)
LOW_ORDERS: dict[str, Any] = {"penalty": 1e-4, "growth": 2.0}

REFERENCE_NAME = "no configuration: the paper's numbers could not be had"
REFERENCE: dict[str, float] = {}

RUNS: dict[str, Experiment[TaylorRun]] = {
    "taylor/digits": Experiment(DIGITS, "ours"),
    "taylor/mnist": Experiment(MNIST, "ours: windows 4x4, degree 16", time="5 min on 2 CPU cores"),
    "taylor/mnist-small": Experiment(
        SMALL, "ours: disjoint blocks, degree 16", time="2 min on one CPU core", headline=False
    ),
    "taylor/mnist-low-orders": Experiment(
        replace(MNIST, **LOW_ORDERS), "ours: with the order penalty", time="40 min on one busy CPU core", headline=False
    ),
    **{
        f"taylor/mnist-direct{order}": Experiment(
            replace(
                MNIST,
                features=(),
                size=None,
                head_order=order,
                head_form="ccp",
                head_rank=64,
                learning_rate=3e-3,
                epochs=6,
            ),
            f"ours: direct expansion of order {order}",
        )
        for order in (1, 2, 4)
    },
    "taylor/cifar10-mini": Experiment(MINI, "ours: windows 4x4, degree 16", time="20 min on one busy CPU core"),
    "taylor/cifar10": Experiment(CIFAR10, "ours: residual blocks, degree 256"),
}


def smoke(config: AnyTaylorRun) -> AnyTaylorRun:
    """The same run in seconds: see `small`, with few features."""
    return replace(
        small(config),
        grid_sizes=(),
        features=tuple(min(4, c) for c in config.features),
        ranks=(),
        depths=(1,) * len(config.depths),
        head_rank=None if config.head_rank is None else 4,
        orders=min(config.orders, 4),
        order_images=8,
    )


def build(config: TaylorRun) -> Expansion:
    """The network of a run, on images of [0, 1].

    Raises:
        ConfigError: fields that do not fit one another.
    """
    if config.grid_sizes:
        raise ConfigError(
            f"grid_sizes: got {shown(config.grid_sizes)}, expected none: the expansion point has the image's size"
        )
    dtype = jnp.bfloat16 if config.dtype == "bfloat16" else None
    if config.design == "residual":
        if not len(config.depths) == len(config.features) > 0:
            raise ConfigError(f"depths: got {len(config.depths)} entries, expected {len(config.features)}, as features")
        return PolynomialResNet(
            depths=config.depths, widths=config.features, classes=config.classes, scale=config.scale, dtype=dtype
        )
    if len(config.ranks) not in (0, len(config.features)):
        raise ConfigError(f"ranks: got {len(config.ranks)} entries, expected {len(config.features)}, as features")
    try:
        levels = tuple(
            Level(features, rank, config.side, config.stride, config.order, config.form, config.shared)
            for features, rank in zip(config.features, config.ranks or config.features, strict=True)
        )
        return TaylorNet(
            levels=levels,
            classes=config.classes,
            size=config.size,
            pool=config.pool,
            head_order=config.head_order,
            head_form=config.head_form,
            head_rank=config.head_rank,
            quadratic=config.quadratic,
            scale=config.scale,
            dtype=dtype,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error


def initial(config: TaylorRun, variables: Any, prior: Any | None, data: Dataset) -> Any:
    """Where training starts: random parameters, expanded about the mean training image."""
    if config.center == "black":
        return variables
    mean = data.images.mean(0, dtype=np.float64) / data.maximum
    return with_expansion_point(variables, mean)


@dataclass(frozen=True)
class PenalizedLoss(ClassificationLoss):
    """CE(logits, y) + λ Σ_{m ≥ 1} c^m ⟨f_m²⟩, f_m the orders about the expansion point."""

    penalty: float
    growth: float
    images: int

    def __call__(
        self, params: Any, batch_stats: Any, batch: Mapping[str, Any], key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], tuple[Any, dict[str, Array]]]:
        """The loss of a batch, with the penalty among its metrics."""
        assert isinstance(self.model, Expansion)
        loss, (stats, metrics) = super().__call__(params, batch_stats, batch, key)
        variables, images = {"params": params, "batch_stats": batch_stats}, batch["image"][: self.images]
        x0 = jnp.broadcast_to(batch_stats["expansion_point"][None], images.shape)
        found = propagate(partial(self.model.apply, variables), x0, images - x0, self.model.degree)
        penalty = order_penalty(found, self.growth)
        loss = loss + self.penalty * penalty
        return loss, (stats, {**metrics, "loss": loss, "penalty": penalty})


def loss_of(config: TaylorRun, model: nn.Module) -> LossFn:
    """Cross-entropy, with the order penalty where there is one.

    Raises:
        ConfigError: a penalty on a network whose training mode is no polynomial.
    """
    if not config.penalty:
        return ClassificationLoss(model, softmax_cross_entropy)
    if config.design == "residual":
        raise ConfigError(f"penalty: got {config.penalty} with design=residual, expected 0: BatchNorm trains it")
    return PenalizedLoss(model, softmax_cross_entropy, config.penalty, config.growth, config.penalty_images)


def subject(config: TaylorRun, model: nn.Module, variables: Any) -> Explainable:
    """A trained network as it is examined: affine in x − x0 once its path is held (integrated gradients, exactly)."""
    centered = subject_about(config, model, variables, lambda variables: variables["batch_stats"]["expansion_point"])
    return replace(centered, constant="its value at the expansion point")


def subject_about(config: TaylorRun, model: nn.Module, variables: Any, point: Callable[[Any], Array]) -> Explainable:
    """A network that is explained in x − x0; `point` takes x0 out of its variables."""

    def at(variables: Any, step: Array) -> Array:
        return step + point(variables)[None]

    return Explainable(
        variables=variables,
        apply=lambda variables, x: model.apply(variables, x),
        predict=lambda variables, step: model.apply(variables, at(variables, step)),
        frozen=lambda variables, step: model.apply(variables, at(variables, step), frozen=True),
        encode=lambda x: x - point(variables)[None],
        bias=None,
        layer=None,
        layers=(),
        pooled=None,
        occlusions=config.occlusion,
        stride=config.occlusion_stride,
        probability="softmax",
    )


def measure(
    config: TaylorRun,
    variables: Any,
    run_dir: Path,
    images: Float[np.ndarray, "n h w c"],
    labels: Int[np.ndarray, " n"],
    split: Split,
    log: Callable[[str], None],
) -> dict[str, Any]:
    """What only polynomials are measured for: the accuracy of truncated series and the energy of each order."""
    model = build(replace(config, dtype="float32"))
    most = min(config.orders, model.degree)
    images, labels = images[: config.order_images], labels[: config.order_images]
    x0 = variables["batch_stats"]["expansion_point"]
    apply: Any = model.apply
    found = np.concatenate(
        [
            np.asarray(orders(apply, jnp.asarray(x), x0, most, variables=variables))[:, :real]
            for _, real, (x,) in padded_batches(config.eval_batch, images)
        ],
        axis=1,
    )
    accuracy, sizes = truncated_accuracy(found, labels), energy(found)
    shown = ", ".join(f"{m}: {a:.2%}" for m, a in enumerate(accuracy))
    log(f"accuracy of orders up to m, {len(images)} images: {shown}")
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    metrics = {"parameters": float(parameters), "degree": float(model.degree)}
    metrics |= {f"accuracy_orders_le_{m}": float(accuracy[m]) for m in range(1, min(8, most) + 1)}
    counts = describe(model, config.image_shape) if isinstance(model, TaylorNet) else []
    for row in counts:
        full = f"{Decimal(row.coefficients):.2e} coefficients of degree {row.degree}"
        log(f"{row.name}: {row.parameters} parameters for {full}")
    return {
        "metrics": metrics,
        "orders": {"accuracy": accuracy.tolist(), "energy": sizes.tolist()},
        "counts": [[row.name, *map(str, list(vars(row).values())[1:])] for row in counts],
    }


def reading(
    config: TaylorRun,
    subject: Explainable,
    image: Float[np.ndarray, "h w c"],
    top: Int[np.ndarray, " t"],
    names: Sequence[str],
) -> Reading:
    """The orders that are read of every class' logit, and maps of the lowest ones for the `top` classes."""
    model = build(replace(config, dtype="float32"))
    return taylor_page.reading(model, config.orders, subject.variables, image, top, names)


def sections(report: Report, split: Split) -> list[Section]:
    """What the report of a polynomial shows besides: its orders, their maps, pairs of pixels, its coefficients."""
    return taylor_page.sections(report, build(replace(report.config, dtype="float32")))
