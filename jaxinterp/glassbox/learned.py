"""Learned networks beside the glass box: group-equivariant CNNs, stacks of templates, and AlexNet.

Source of p4 and z2: Cohen & Welling, "Group Equivariant Convolutional Networks", ICML 2016.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxinterp.checks import require
from jaxinterp.data.images import rotate_randomly
from jaxinterp.explain.explainable import Explainable, explainable
from jaxinterp.glassbox.gcnn import GroupCNN, fit_stack
from jaxinterp.nn.baselines import AlexNet
from jaxinterp.nn.losses import ClassificationLoss, LossFn, softmax_cross_entropy
from jaxinterp.recipe.config import Count, Model, Natural, Positive, Run, Share, small
from jaxinterp.recipe.family import Family, Log, TrainedRun
from jaxinterp.symmetry.groups import Group, dihedral, rotations
from jaxinterp.train import predict

GROUPS: dict[str, Group] = {"z2": rotations(1), "p4": rotations(4), "p4m": dihedral(4)}


@dataclass(frozen=True)
class LearnedModel(Model):
    """A network beside the glass box; the defaults are those of p4 on rotated MNIST.

    Attributes:
        network: a group CNN of translations only (z2), with quarter turns (p4), with mirrors too (p4m), or AlexNet.
        features: channels of a group CNN's blocks.
        sides: of their filters in pixels.
        pools: blocks, from 0, that end in 2×2 maxima.
        dropout: share of the values that training drops.
        filled: whether the filters of a group CNN are patches, and only a linear layer after them is trained.
        scale: factor of AlexNet's widths.
        classes: outputs.
    """

    network: Literal["z2", "p4", "p4m", "alexnet"] = "p4"
    features: tuple[Count, ...] = (12, 20, 20, 20, 20, 10)
    sides: tuple[Count, ...] = (5, 3, 3, 3, 3, 4)
    pools: tuple[Natural, ...] = (0,)
    dropout: Share = 0.0
    filled: bool = False
    scale: Positive = 1.0
    classes: Count = 10

    def check(self) -> None:
        """Require a filter side for each block of a group CNN, and a last block that gives the classes."""
        if self.network == "alexnet":
            require(not self.filled, "filled", self.filled, "False with network=alexnet")
            return
        blocks = len(self.features)
        require(len(self.sides) == blocks, "sides", f"{len(self.sides)} entries", f"{blocks}, as features")
        last = self.features[-1:]
        require(self.filled or last == (self.classes,), "features", self.features, f"{self.classes} at the end")


class LearnedFamily(Family[LearnedModel]):
    """Group CNNs and AlexNet, whose layers are learned."""

    title = "learned network"
    Model = LearnedModel

    def smoke(self, run: Run[LearnedModel]) -> Run[LearnedModel]:
        """Shrink a run to seconds: see `small`, with few channels."""
        *widths, last = run.model.features
        features = (*(min(width, 4) for width in widths), min(last, 10))
        shrunk = small(run)
        return shrunk.replace(
            data={"image_size": run.data.image_size or shrunk.data.image_size},
            model={"features": features, "scale": min(run.model.scale, 0.05)},
            train={"val_fraction": 0.0},
            evaluate={"grid_sizes": ()},
        )

    def build(self, run: Run[LearnedModel], dtype: Literal["float32", "bfloat16"] = "float32") -> nn.Module:
        """Return the network of a run."""
        model = run.model
        require(run.data.name != "imagenet2012", "data.name", run.data.name, "a data set that fits in memory")
        if model.network == "alexnet":
            return AlexNet.cifar(model.classes, model.scale, dropout=model.dropout)
        group, classes = GROUPS[model.network], model.classes if model.filled else None
        return GroupCNN(group, model.features, model.sides, model.pools, dropout=model.dropout, classes=classes)

    def loss(self, run: Run[LearnedModel], network: nn.Module) -> LossFn:
        """Return the cross-entropy."""
        return ClassificationLoss(network, softmax_cross_entropy)

    def frozen_params(self, run: Run[LearnedModel]) -> Callable[[str], bool] | None:
        """Freeze all but the linear layer after patches."""
        return (lambda path: "classifier" not in path) if run.model.filled else None

    def init_from(self, run: Run[LearnedModel], network: nn.Module, variables: Any, pretrained: Any, data: Any) -> Any:
        """Return random variables, or fill the filters with patches of training images."""
        if not run.model.filled:
            return variables
        assert isinstance(network, GroupCNN)
        images = jnp.asarray(data.floats(slice(512)))
        return fit_stack(network, variables, images, jax.random.key(run.train.seed))

    def explainable(self, trained: TrainedRun[LearnedModel]) -> Explainable:
        """Explain a trained network: affine where its gates are held."""
        layers = tuple(f"conv_{i}" for i in range(5)) if trained.run.model.network == "alexnet" else ()
        pooled = layers[-1] if layers else None
        return explainable(trained.network, trained.variables, levels=layers, pooled=pooled)

    def measure(self, trained: TrainedRun[LearnedModel], log: Log) -> dict[str, Any]:
        """Count parameters, and measure the accuracy on turned test images if those of the run are upright."""
        metrics = {"parameters": float(trained.parameters)}
        if not trained.run.data.rotated:
            images, labels = trained.test_data
            moved = rotate_randomly(images, trained.run.train.seed)
            logits = predict(trained.network.apply, trained.variables, moved, trained.run.train.eval_batch)
            metrics["rotated_accuracy"] = float((logits.argmax(1) == labels).mean())
            log(f"test accuracy {metrics['rotated_accuracy']:.2%} on the same images, turned")
        return {"metrics": metrics}
