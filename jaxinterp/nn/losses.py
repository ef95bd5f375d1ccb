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
LogitsLoss = Callable[[Float[Array, "batch classes"], Int32[Array, " batch"]], Float[Array, ""]]
LossFn = Callable[[Any, Any, Batch, PRNGKeyArray], tuple[Float[Array, ""], tuple[Any, dict[str, Array]]]]


def sigmoid_bce(logits: Float[Array, "batch classes"], labels: Int32[Array, " batch"]) -> Float[Array, ""]:
    """Return the binary cross-entropy of every class, averaged over batch and classes.

        loss = mean_{i,k} [ -y_ik log s(l_ik) - (1 - y_ik) log(1 - s(l_ik)) ],   y one-hot, s the sigmoid

    Source: Böhle, Fritz, Schiele, "Convolutional Dynamic Alignment Networks", CVPR 2021, eq. 11.

    >>> round(float(sigmoid_bce(jnp.zeros((2, 4)), jnp.array([0, 3]))), 4)
    0.6931
    """
    targets = jax.nn.one_hot(labels, logits.shape[-1])
    return optax.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), targets).mean()


def softmax_cross_entropy(logits: Float[Array, "batch classes"], labels: Int32[Array, " batch"]) -> Float[Array, ""]:
    """Return the softmax cross-entropy averaged over the batch, `mean_i [-log softmax(l_i)[y_i]]`.

    >>> round(float(softmax_cross_entropy(jnp.zeros((2, 4)), jnp.array([0, 3]))), 4)
    1.3863
    """
    return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels).mean()


@dataclass(frozen=True)
class ClassificationLoss:
    """The loss of a classifier: images and labels in, loss, batch statistics, loss and accuracy out.

    Attributes:
        model: applied with `train=True`, `mutable=["batch_stats"]` and a `dropout` key.
        per_logits_loss: `sigmoid_bce`, `softmax_cross_entropy`, or any mean over a batch of (logits, labels).
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
        loss = self.per_logits_loss(logits, batch["label"])
        accuracy = (logits.argmax(-1) == batch["label"]).mean(dtype=jnp.float32)
        return loss, (updates.get("batch_stats", batch_stats), {"loss": loss, "accuracy": accuracy})
