"""Losses of logits, and of a classifier in a training step."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int32, PRNGKeyArray

Batch = Mapping[str, Any]
Targets = Int32[Array, " batch"] | Float[Array, "batch classes"]
LogitsLoss = Callable[[Float[Array, "batch classes"], Targets], Float[Array, ""]]
LossFn = Callable[[Any, Any, Batch, PRNGKeyArray], tuple[Float[Array, ""], tuple[Any, dict[str, Array]]]]


def sigmoid_bce(logits: Float[Array, "batch classes"], labels: Targets) -> Float[Array, ""]:
    """Return the binary cross-entropy of every class, averaged over batch and classes.

        loss = mean_{i,k} [ -y_ik log s(l_ik) - (w_i - y_ik) log(1 - s(l_ik)) ],   s the sigmoid

    with y one-hot and w = 1 for labels; or y soft targets, and w_i = Σ_k y_ik the weight of example i.

    Source: Böhle, Fritz, Schiele, "Convolutional Dynamic Alignment Networks", CVPR 2021, eq. 11.

    >>> round(float(sigmoid_bce(jnp.zeros((2, 4)), jnp.array([0, 3]))), 4)
    0.6931
    """
    logits = logits.astype(jnp.float32)
    if labels.ndim == 1:
        return optax.sigmoid_binary_cross_entropy(logits, jax.nn.one_hot(labels, logits.shape[-1])).mean()
    weights = labels.sum(-1, keepdims=True)
    return -(labels * jax.nn.log_sigmoid(logits) + (weights - labels) * jax.nn.log_sigmoid(-logits)).mean()


def softmax_cross_entropy(logits: Float[Array, "batch classes"], labels: Targets) -> Float[Array, ""]:
    """Return the softmax cross-entropy averaged over the batch.

        loss = mean_i Σ_k [ -y_ik log softmax(l_i)_k ],   y one-hot, or soft targets whose sum is an example's weight

    >>> round(float(softmax_cross_entropy(jnp.zeros((2, 4)), jnp.array([0, 3]))), 4)
    1.3863
    """
    logits = logits.astype(jnp.float32)
    if labels.ndim == 1:
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    return optax.softmax_cross_entropy(logits, labels).mean()


@dataclass(frozen=True)
class ClassificationLoss:
    """The loss of a classifier: images and labels in, loss, batch statistics, loss and accuracy out.

    Attributes:
        model: applied with `train=True`, `mutable=["batch_stats"]` and a `dropout` key.
        per_logits_loss: `sigmoid_bce`, `softmax_cross_entropy`, or any mean over a batch of (logits, labels); to train
            with soft targets it must take them in place of labels.
    """

    model: nn.Module
    per_logits_loss: LogitsLoss

    def __call__(
        self, params: Any, batch_stats: Any, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], tuple[Any, dict[str, Array]]]:
        """Return the loss of a batch, with the new batch statistics and the metrics."""
        variables = {"params": params, "batch_stats": batch_stats}
        logits, updates = self.model.apply(
            variables, batch["image"], train=True, mutable=["batch_stats"], rngs={"dropout": key}
        )
        metrics = self.of_logits(logits, batch["label"], batch.get("target"))
        return metrics["loss"], (updates.get("batch_stats", batch_stats), metrics)

    def of_logits(
        self,
        logits: Float[Array, "batch classes"],
        labels: Int32[Array, " batch"],
        targets: Float[Array, "batch classes"] | None = None,
    ) -> dict[str, Float[Array, ""]]:
        """Return the metrics that logits alone give: loss, of the targets where there are any, and accuracy."""
        accuracy = (logits.argmax(-1) == labels).mean(dtype=jnp.float32)
        return {"loss": self.per_logits_loss(logits, labels if targets is None else targets), "accuracy": accuracy}
