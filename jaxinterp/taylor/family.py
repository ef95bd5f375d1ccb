"""TaylorNets as a family of runs: network, order penalty, expansion point, and the accuracy of truncated series."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxinterp.checks import require
from jaxinterp.data import Dataset
from jaxinterp.data.batches import padded_batches
from jaxinterp.explain.series import energy, order_penalty, orders, propagate, truncated_accuracy
from jaxinterp.figures.explorer import Panel
from jaxinterp.figures.html import Section
from jaxinterp.nn.losses import ClassificationLoss, LossFn, softmax_cross_entropy
from jaxinterp.recipe.config import AnyRun, Count, Model, NonNegative, Positive, Run, small
from jaxinterp.recipe.family import Family, Log, Reading, Report, TrainedRun
from jaxinterp.recipe.presets import SCALES, Images, Scale, fitted
from jaxinterp.taylor import report as taylor_report
from jaxinterp.taylor.network import (
    Expansion,
    PolynomialResNet,
    TaylorNet,
    describe,
    expansion_point,
    with_expansion_point,
)
from jaxinterp.taylor.units import Form, hierarchical


@dataclass(frozen=True)
class TaylorModel(Model):
    """A polynomial network and what is measured of it; the defaults are for MNIST.

    Attributes:
        design: levels of Taylor units (none for the direct expansion), or residual blocks of order 2.
        classes: outputs of the network.
        features: outputs of the units of each level, or channels of each stage.
        ranks: of each level's units; the features if empty.
        depths: blocks of each stage of the residual design.
        side: of the blocks of all levels in pixels.
        stride: from one block to the next, in pixels.
        order: of the units.
        form: of the units: dense, cp, ccp or tucker.
        shared: one unit for all blocks of a level, or one for each block.
        size: side of the map in which the centered image lies, surrounded by zeros; the image's own if None.
        pool: side of blocks that are averaged first.
        head_order: order of the last unit.
        head_form: its form.
        head_rank: its rank; the classes if None.
        quadratic: factor of the initial deviation of the factors of products.
        scale: divisor of centered images.
        center: the expansion point, the mean training image or black.
        penalty: λ of λ Σ_m c^m ⟨f_m²⟩.
        growth: its c.
        penalty_images: first images of a batch whose orders it is taken of.
        orders: largest order that is measured; the degree if that is less.
        order_images: test images on which orders are measured.
    """

    design: Literal["levels", "residual"] = "levels"
    classes: Count = 10
    features: tuple[Count, ...] = (8, 16, 32, 48)
    ranks: tuple[Count, ...] = ()
    depths: tuple[Count, ...] = ()
    side: Count = 4
    stride: Count = 2
    order: Count = 2
    form: Form = "cp"
    shared: bool = True
    size: Count | None = 32
    pool: Count = 1
    head_order: Count = 1
    head_form: Form = "cp"
    head_rank: Count | None = None
    quadratic: NonNegative = 0.5
    scale: Positive = 1.0
    center: Literal["mean", "black"] = "mean"
    penalty: NonNegative = 0.0
    growth: Positive = 2.0
    penalty_images: Count = 32
    orders: Count = 16
    order_images: Count = 10_000

    def check(self) -> None:
        """Require one entry per stage, and a penalty only of a polynomial."""
        stages, wanted = len(self.features), f"{len(self.features)} entries, as features"
        if self.design == "residual":
            require(len(self.depths) == stages > 0, "depths", f"{len(self.depths)} entries", wanted)
            require(not self.penalty, "penalty", self.penalty, "0 with design=residual, which BatchNorm trains")
        else:
            require(len(self.ranks) in (0, stages), "ranks", f"{len(self.ranks)} entries", wanted)


def shrunk(run: AnyRun) -> AnyRun:
    """Shrink a run with a polynomial network to seconds."""
    model = run.model
    return small(run).replace(
        model={
            "features": tuple(min(4, c) for c in model.features),
            "ranks": (),
            "depths": (1,) * len(model.depths),
            "head_rank": None if model.head_rank is None else 4,
            "orders": min(model.orders, 4),
            "order_images": 8,
        },
        evaluate={"grid_sizes": ()},
    )


def expansion(run: AnyRun, dtype: Literal["float32", "bfloat16"]) -> Expansion:
    """Return the polynomial network of a run, on images in [0, 1]."""
    model, sizes, name = run.model, run.evaluate.grid_sizes, run.data.name
    require(name != "imagenet2012", "data.name", name, "a data set that fits in memory")
    require(not sizes, "evaluate.grid_sizes", sizes, "none: the expansion point has the image's size")

    def fields(*names: str) -> dict[str, Any]:
        return {name: getattr(model, name) for name in names}

    shared = {**fields("classes", "scale"), "dtype": jnp.bfloat16 if dtype == "bfloat16" else None}
    if model.design == "residual":
        return PolynomialResNet(depths=model.depths, widths=model.features, **shared)
    levels = hierarchical(model.features, model.ranks or None, **fields("side", "stride", "order", "form", "shared"))
    head = fields("head_order", "head_form", "head_rank")
    return TaylorNet(levels=levels, **fields("size", "pool", "quadratic"), **head, **shared)


def centered(model: TaylorModel, variables: Any, data: Dataset) -> Any:
    """Return random variables expanded about the mean training image, or about black."""
    if model.center == "black":
        return variables
    return with_expansion_point(variables, data.images.mean(0, dtype=np.float64) / data.maximum)


@dataclass(frozen=True)
class PenalizedLoss(ClassificationLoss):
    """CE(logits, y) + λ Σ_{m ≥ 1} c^m ⟨f_m²⟩, f_m the orders about the expansion point."""

    penalty: float
    growth: float
    images: int

    def __call__(
        self, params: Any, batch_stats: Any, batch: Mapping[str, Any], key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], tuple[Any, dict[str, Array]]]:
        """Return the loss of a batch, with the penalty among its metrics."""
        assert isinstance(self.model, Expansion)
        loss, (stats, metrics) = super().__call__(params, batch_stats, batch, key)
        variables, images = {"params": params, "batch_stats": batch_stats}, batch["image"][: self.images]
        x0 = jnp.broadcast_to(batch_stats["expansion_point"][None], images.shape)
        terms = propagate(partial(self.model.apply, variables), x0, images - x0, self.model.degree)
        penalty = order_penalty(terms, self.growth)
        loss = loss + self.penalty * penalty
        return loss, (stats, {**metrics, "loss": loss, "penalty": penalty})


class TaylorFamily(Family[TaylorModel]):
    """TaylorNets: networks that are polynomials."""

    title = "TaylorNet"
    Model = TaylorModel
    scales = SCALES

    def smoke(self, run: Run[TaylorModel]) -> Run[TaylorModel]:
        """Shrink a run to seconds: see `small`, with few features."""
        return shrunk(run)

    def preset(self, scale: Scale, images: Images) -> Run[TaylorModel]:
        """Return windows on windows, above 32 pixels of means of four; the largest, ours, is residual blocks."""
        recipe: dict[str, Any] = {"optimizer": "adamw", "weight_decay": 1e-3, "clip": 1.0, "schedule": "onecycle"}
        color, measured = images.channels == 3, dict[str, Any](orders=8, order_images=1000)
        if scale == "paper":
            model = TaylorModel(
                "residual", images.classes, (32, 64, 128, 160), depths=(2, 2, 2, 2), scale=0.25, **measured
            )
            run = fitted(model, images, min(images.side, 64), steps=1, batch_size=128, learning_rate=3e-3, **recipe)
            return run.replace(train={"epochs": 100}, evaluate={"grid_sizes": ()})
        side = images.side if images.side <= 32 else 64
        size = next(s for s in (8, 16, 32) if s >= min(side, 32))
        widths = (8, 16, 32, 48) if scale == "small" else (16, 32, 64, 96)
        model = TaylorModel(
            "levels",
            images.classes,
            widths[: size.bit_length() - 1],
            size=size,
            pool=max(1, side // 32),
            quadratic=0.25 if color else 0.5,
            scale=0.25 if color else 1.0,
            order_images=1000,
        )
        run = fitted(
            model, images, side, steps=2000 if scale == "small" else 8000, batch_size=32, learning_rate=3e-3, **recipe
        )
        return run.replace(evaluate={"grid_sizes": ()})

    def build(self, run: Run[TaylorModel], dtype: Literal["float32", "bfloat16"] = "float32") -> Expansion:
        """Return the network of a run."""
        return expansion(run, dtype)

    def loss(self, run: Run[TaylorModel], network: nn.Module) -> LossFn:
        """Return the cross-entropy, with the order penalty if there is one."""
        model = run.model
        if not model.penalty:
            return ClassificationLoss(network, softmax_cross_entropy)
        return PenalizedLoss(network, softmax_cross_entropy, model.penalty, model.growth, model.penalty_images)

    def init_from(self, run: Run[TaylorModel], network: nn.Module, variables: Any, pretrained: Any, data: Any) -> Any:
        """Return random parameters, expanded about the mean training image."""
        return centered(run.model, variables, data)

    def measure(self, trained: TrainedRun[TaylorModel], log: Log) -> dict[str, Any]:
        """Measure the accuracy of truncated series and the energy of each order."""
        network, model, net = trained.network, trained.run.model, trained.explainable
        max_order = min(model.orders, network.degree)
        images, labels = (part[: model.order_images] for part in trained.test_data)
        expand = partial(orders, net, x0=expansion_point(trained.variables), max_order=max_order)
        batches = padded_batches(trained.run.train.eval_batch, images)
        terms = np.concatenate([np.asarray(expand(x).contributions)[:real] for _, real, (x,) in batches])
        accuracy, sizes = truncated_accuracy(terms, labels), energy(terms)
        listed = ", ".join(f"{m}: {a:.2%}" for m, a in enumerate(accuracy))
        log(f"accuracy of orders up to m, {len(images)} images: {listed}")
        metrics = {"parameters": float(trained.parameters), "degree": float(network.degree)}
        metrics |= {f"accuracy_orders_le_{m}": float(accuracy[m]) for m in range(1, min(8, max_order) + 1)}
        counts = describe(network, trained.run.data.image_shape) if isinstance(network, TaylorNet) else []
        for row in counts:
            full = f"{Decimal(row.coefficients):.2e} coefficients of degree {row.degree}"
            log(f"{row.name}: {row.parameters} parameters for {full}")
        return {
            "metrics": metrics,
            "orders": {"accuracy": accuracy.tolist(), "energy": sizes.tolist()},
            "counts": [list(map(str, vars(row).values())) for row in counts],
        }

    def explain_image(
        self, trained: TrainedRun[TaylorModel], image: Float[np.ndarray, "h w c"], top: Int[np.ndarray, " t"]
    ) -> Reading:
        """Return the orders of every class's logit, and maps of the lowest ones for the `top` classes."""
        return taylor_report.reading(trained, image, top)

    def explore(
        self,
        trained: TrainedRun[TaylorModel],
        images: Float[np.ndarray, "n h w c"],
        targets: Int[np.ndarray, " n"],
        rows: Int[np.ndarray, " n"] | None = None,
        results: Mapping[str, Any] | None = None,
    ) -> Sequence[Panel]:
        """Return the orders of every logit, maps of the lowest, and pairs of pixels."""
        return [taylor_report.explored_panel(trained, images, targets)]

    def report(self, report: Report) -> Sequence[Section]:
        """Return the sections: orders, their maps, pairs of pixels, coefficients."""
        return taylor_report.sections(report)
