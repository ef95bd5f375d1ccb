"""CoDA Nets as a family of runs: network, loss with the paper's regularizer, and how it is explained.

Böhle, Fritz, Schiele, CVPR 2021 (arXiv 2104.00032); hybrids after TPAMI 2022 (arXiv 2109.13004).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, PRNGKeyArray

from jaxinterp.checks import require
from jaxinterp.coda.hybrid import Hybrid
from jaxinterp.coda.network import CoDANet, alignment_penalty, l_coda, s_coda
from jaxinterp.nn.baselines import ResNetTrunk
from jaxinterp.nn.losses import ClassificationLoss, LossFn, sigmoid_bce
from jaxinterp.recipe.config import Count, Model, Natural, NonNegative, Run, small
from jaxinterp.recipe.family import Family
from jaxinterp.recipe.presets import SCALES, Images, Scale, fitted


@dataclass(frozen=True)
class CoDAModel(Model):
    """A CoDA Net; the defaults are the paper's S net at T = 1000.

    Attributes:
        features: units of each layer, the last being the classes.
        ranks: bottleneck of each layer's weight generator.
        kernel_sizes: patch size of each layer in pixels.
        strides: stride of each layer in pixels.
        temperature: T, a divisor of the sum over positions.
        rescale: squash or l2.
        regularizer: λ of λ⟨|W(x)|⟩, W without 1/T.
        trunk_depth: depth 6n + 2 of a CIFAR ResNet under the CoDA layers; none if 0.
        trunk_blocks: how many of its blocks.
    """

    CLASSES: ClassVar[str] = "model.features[-1]"

    features: tuple[Count, ...] = s_coda().features
    ranks: tuple[Count, ...] = s_coda().ranks
    kernel_sizes: tuple[Count, ...] = s_coda().kernel_sizes
    strides: tuple[Count, ...] = s_coda().strides
    temperature: float = s_coda().temperature
    rescale: Literal["squash", "l2"] = "squash"
    regularizer: NonNegative = 0.0
    trunk_depth: Natural = 0
    trunk_blocks: Natural = 0

    @property
    def classes(self) -> int:
        """Outputs of the network."""
        return self.features[-1]

    def check(self) -> None:
        """Require a trunk of He et al."""
        depth = self.trunk_depth
        require(not depth or (depth >= 8 and depth % 6 == 2), "trunk_depth", depth, "0 or 6n + 2: 8, 14, 20, 32, ...")
        blocks, most = self.trunk_blocks, max(0, depth - 2) // 2
        require(blocks <= most, "trunk_blocks", blocks, f"0 to {most} with trunk_depth={depth}")


@dataclass(frozen=True)
class RegularizedLoss:
    """BCE(W x / T + b_0, y) + λ⟨|W|⟩, the mean over all entries of W = T · ∂logits/∂x (CVPR 2021, Sec. 3.3)."""

    network: nn.Module
    weight: float

    def __call__(
        self, params: Any, batch_stats: Any, batch: Mapping[str, Any], key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], tuple[Any, dict[str, Array]]]:
        """Return the loss of a batch, with the penalty ⟨|W|⟩/T among its metrics."""
        loss, (stats, metrics) = ClassificationLoss(self.network, sigmoid_bce)(params, batch_stats, batch, key)
        penalty = alignment_penalty(self.network, {"params": params}, batch["image"])
        total = loss + self.weight * penalty
        return total, (stats, {**metrics, "loss": total, "penalty": penalty})


class CoDAFamily(Family[CoDAModel]):
    """CoDA Nets, and hybrids: CoDA layers on a few blocks of a ResNet."""

    title = "CoDA Net"
    Model = CoDAModel
    scales = SCALES
    streams = True

    def smoke(self, run: Run[CoDAModel]) -> Run[CoDAModel]:
        """Shrink a run to seconds: see `small`, with a low rank."""
        return small(run).replace(model={"ranks": tuple(min(rank, 2) for rank in run.model.ranks)})

    def preset(self, scale: Scale, images: Images) -> Run[CoDAModel]:
        """Return a net of five layers, of seven, or with its recipe the paper's: S up to 64 pixels, L above."""
        if scale == "paper":
            large = images.side > 64
            net, side = (l_coda, 240) if large else (s_coda, images.side)
            fields = {name: getattr(net(), name) for name in ("ranks", "kernel_sizes", "strides", "temperature")}
            model = CoDAModel(features=(*net().features[:-1], images.classes), **fields)
            recipe = {"learning_rate": 1e-3 if large else 2.5e-4, "schedule": "warmup" if large else "staircase"}
            augment: dict[str, Any] = {"rand_augment": (2, 10), "crop_padding": 0} if large else {}
            batch, parts, epochs = (64, 16, 60) if large else (16, 2, 200)
            run = fitted(model, images, side, steps=1, batch_size=batch, **recipe).replace(augment=augment)
            return run.replace(train={"epochs": epochs, "grad_accum_steps": min(parts, run.train.batch_size)})
        side = min(images.side, 64 if scale == "small" else 128)
        first = max(1, round(side / (14 if scale == "small" else 32)))  # stride of the first layer
        kernel = 3 if first <= 2 else first // 2 * 2 + 1
        widths: tuple[int, ...]
        ranks: tuple[int, ...]
        strides: tuple[int, ...]
        if scale == "medium":
            widths, ranks, strides = (16, 16, 32, 32, 64, 64), (16, 16, 32, 32, 64, 64, 64), (first, 1, 2, 1, 2, 1, 1)
        elif side <= 12:
            widths, ranks, strides = (8, 16, 16), (8, 16, 16, 16), (1, 1, 2, 1)
        else:
            widths, ranks, strides = (8, 16, 16, 32), (8, 16, 16, 16, 16), (first, 1, 2, 1, 1)
        kernels = (kernel, *(3,) * (len(widths) - 1), 1)
        model = CoDAModel(
            (*widths, images.classes), ranks, kernels, strides, temperature=200.0 if side <= 12 else 300.0
        )
        if scale == "medium":
            return fitted(model, images, side, steps=8000, learning_rate=1e-3)
        rate = 5e-3 if side <= 12 else 2e-3
        return fitted(model, images, side, steps=2000, batch_size=16, learning_rate=rate)

    def build(self, run: Run[CoDAModel], dtype: Literal["float32", "bfloat16"] = "float32") -> nn.Module:
        """Return the network of a run."""
        model = run.model
        own: dict[str, Any] = {"temperature": model.temperature, "rescale": model.rescale}
        own["dtype"] = jnp.bfloat16 if dtype == "bfloat16" else None
        coda = CoDANet(model.features, model.ranks, model.kernel_sizes, model.strides, **own)
        return Hybrid(ResNetTrunk(model.trunk_depth, model.trunk_blocks), coda) if model.trunk_depth else coda

    def loss(self, run: Run[CoDAModel], network: nn.Module) -> LossFn:
        """Return the sigmoid cross-entropy, with the regularizer where λ > 0."""
        weight = run.model.regularizer
        if not weight:
            return ClassificationLoss(network, sigmoid_bce)
        require(not run.model.trunk_depth, "regularizer", weight, "0 in a hybrid, which is not linear in the image")
        return RegularizedLoss(network, weight * run.model.temperature)
