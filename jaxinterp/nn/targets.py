"""Soft targets around any loss: class weights, label smoothing, mixup and cutmix."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32, PRNGKeyArray

from jaxinterp.nn.losses import Batch, LossFn


def soft_targets(
    labels: Int32[Array, " batch"], classes: int, weights: tuple[float, ...] = (), smoothing: float = 0.0
) -> Float[Array, "batch classes"]:
    """Return the targets t of labels, w_y ((1 - s) y + s / K), y one-hot; their sum is an example's weight.

    Args:
        labels: integers in [0, classes).
        classes: K.
        weights: w of each class that occurs; all 1 if empty.
        smoothing: s, in [0, 1).

    Example:
        >>> soft_targets(jnp.array([1]), 2, weights=(1.0, 4.0), smoothing=0.5).tolist()
        [[1.0, 3.0]]
    """
    targets = (1 - smoothing) * jax.nn.one_hot(labels, classes) + smoothing / classes
    return targets * jnp.asarray(weights, jnp.float32)[labels][:, None] if weights else targets


def mix(
    key: PRNGKeyArray, images: Float[Array, "batch h w c"], mixup: float, cutmix: float
) -> tuple[Float[Array, "batch h w c"], Float[Array, " batch"]]:
    """Mix each image of a batch with the next one; the last with the first.

    mixup is λ x + (1 - λ) x', λ ~ Beta(α, α); cutmix pastes a box of x' with sides √(1 - λ) of the image's and its
    center anywhere, cut at the border, after which λ is the share of pixels left. If both are asked for, each image
    gets one of the two by the toss of a coin.

    Args:
        key: typed key.
        images: in random order, so that the next one is a random partner.
        mixup: α of mixup; none if 0.
        cutmix: α of cutmix; none if 0.

    Returns:
        The mixed images, and λ, the share of its own that an image kept.

    Source: Zhang et al., "mixup", ICLR 2018, eq. 1; Yun et al., "CutMix", ICCV 2019, eq. 1 and 2.
    """
    batch, height, width, _ = images.shape
    keys, others = jax.random.split(key, 4), jnp.roll(images, -1, axis=0)
    share = jax.random.beta(keys[0], mixup or 1.0, mixup or 1.0, (batch,), images.dtype)
    blended = share[:, None, None, None] * images + (1 - share)[:, None, None, None] * others
    if not cutmix:
        return blended, share
    side = jnp.sqrt(1 - jax.random.beta(keys[1], cutmix, cutmix, (batch,), images.dtype))
    center = jax.random.uniform(keys[2], (2, batch), images.dtype)

    def inside(length: int, middle: Array) -> Array:
        distance = jnp.abs(jnp.arange(length, dtype=images.dtype)[None] + 0.5 - length * middle[:, None])
        return distance < length * side[:, None] / 2

    box = inside(height, center[0])[:, :, None] & inside(width, center[1])[:, None, :]
    left = 1 - box.mean((1, 2), dtype=images.dtype)
    pasted = jnp.where(box[..., None], others, images)
    if not mixup:
        return pasted, left
    coin = jax.random.bernoulli(keys[3], 0.5, (batch,))
    return jnp.where(coin[:, None, None, None], blended, pasted), jnp.where(coin, share, left)


@dataclass(frozen=True)
class TargetLoss:
    """A loss of images that may be mixed, and of soft targets: `batch["target"]`, (batch, classes).

    `batch["label"]` is the label of an image's larger part; accuracy and a family's own penalties go by it.

    Attributes:
        inner: the loss, whose cross-entropy takes targets in place of labels, as `ClassificationLoss` does.
        classes: outputs of the network.
        weights: see `soft_targets`.
        smoothing: see `soft_targets`.
        mixup: see `mix`.
        cutmix: see `mix`.
    """

    inner: LossFn
    classes: int
    weights: tuple[float, ...] = ()
    smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0

    def __call__(
        self, params: Any, batch_stats: Any, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], tuple[Any, dict[str, Array]]]:
        """Return the loss of a batch."""
        images, labels = batch["image"], batch["label"]
        targets = soft_targets(labels, self.classes, self.weights, self.smoothing)
        if self.mixup or self.cutmix:
            images, share = mix(jax.random.fold_in(key, 1), images, self.mixup, self.cutmix)
            part = share.astype(targets.dtype)[:, None]
            targets = part * targets + (1 - part) * jnp.roll(targets, -1, axis=0)
            labels = jnp.where(share >= 0.5, labels, jnp.roll(labels, -1))
        return self.inner(params, batch_stats, {**batch, "image": images, "label": labels, "target": targets}, key)
