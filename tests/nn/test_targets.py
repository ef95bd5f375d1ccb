"""Soft targets: weights, smoothing and mixed images against their definitions, around any loss."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxinterp.nn.losses import ClassificationLoss, sigmoid_bce, softmax_cross_entropy
from jaxinterp.nn.targets import TargetLoss, mix, soft_targets

KEY = jax.random.key(0)
LOGITS = jax.random.normal(KEY, (5, 4))
LABELS = jnp.array([0, 1, 2, 3, 1], jnp.int32)


@pytest.mark.parametrize("loss", [sigmoid_bce, softmax_cross_entropy])
def test_plain_targets_are_labels_and_others_are_means_of_losses(loss):
    np.testing.assert_allclose(loss(LOGITS, soft_targets(LABELS, 4)), loss(LOGITS, LABELS), rtol=1e-6)
    each = np.array([[loss(LOGITS[i : i + 1], jnp.array([k])) for k in range(4)] for i in range(5)])
    weights = (0.5, 2.0, 0.0, 3.0)
    targets = soft_targets(LABELS, 4, weights, 0.1)
    np.testing.assert_allclose(targets.sum(-1), [0.5, 2, 0, 3, 2], rtol=1e-6)
    smoothed = 0.9 * each[np.arange(5), LABELS] + 0.1 * each.mean(1)
    expected = (np.array([0.5, 2, 0, 3, 2]) * smoothed).mean()
    np.testing.assert_allclose(loss(LOGITS, targets), expected, rtol=1e-5)
    np.testing.assert_allclose(
        soft_targets(LABELS, 4, (), 0.1), optax.smooth_labels(jax.nn.one_hot(LABELS, 4), 0.1), rtol=1e-6
    )


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.4, 0.0), (0.0, 1.0), (1.0, 1.0)])
def test_mixed_images_keep_the_share_that_is_returned(mixup, cutmix):
    batch = 64
    images = jnp.broadcast_to((jnp.arange(batch) % 2).astype(jnp.float32)[:, None, None, None], (batch, 8, 6, 3))
    mixed, share = jax.jit(mix, static_argnums=(2, 3))(KEY, images, mixup, cutmix)
    own = jnp.arange(batch) % 2
    kept = jnp.where(own == 1, mixed.mean((1, 2, 3)), 1 - mixed.mean((1, 2, 3)))
    np.testing.assert_allclose(share, kept, atol=1e-5)
    assert 0 <= share.min() < share.max() <= 1
    levels = np.array([len(np.unique(np.round(image, 5))) for image in mixed])
    if not cutmix:
        assert (levels == 1).all()  # blended everywhere alike
    elif not mixup:
        assert set(np.unique(mixed)) == {0.0, 1.0}
    else:
        assert set(np.unique(levels)) == {1, 2}


class Means(nn.Module):
    """A network of one weight: class k's logit is k times the weight times the image's mean."""

    @nn.compact
    def __call__(self, x, train=False):
        weight = self.param("weight", nn.initializers.ones, ())
        return x.mean((1, 2, 3))[:, None] * weight * jnp.arange(4.0)[None]


PARAMS = {"weight": jnp.float32(2)}


@pytest.mark.parametrize("loss", [sigmoid_bce, softmax_cross_entropy])
def test_the_loss_of_mixed_images_is_the_mixed_loss(loss):
    images = jax.random.uniform(KEY, (5, 4, 4, 1))
    inner = ClassificationLoss(Means(), loss)
    whole = TargetLoss(inner, 4, mixup=0.7)
    value, (_, metrics) = whole(PARAMS, {}, {"image": images, "label": LABELS}, KEY)
    mixed, share = mix(jax.random.fold_in(KEY, 1), images, 0.7, 0.0)
    logits = Means().apply({"params": PARAMS}, mixed)
    others = jnp.roll(LABELS, -1)
    each = [loss(logits[i : i + 1], labels[i : i + 1]) for labels in (LABELS, others) for i in range(5)]
    expected = (share * jnp.stack(each[:5]) + (1 - share) * jnp.stack(each[5:])).mean()
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    larger = jnp.where(share >= 0.5, LABELS, others)
    np.testing.assert_allclose(metrics["accuracy"], (logits.argmax(-1) == larger).mean())


def test_without_targets_the_loss_is_as_before():
    batch = {"image": jax.random.uniform(KEY, (5, 4, 4, 1)), "label": LABELS}
    inner = ClassificationLoss(Means(), softmax_cross_entropy)
    plain, _ = inner(PARAMS, {}, batch, KEY)
    np.testing.assert_allclose(TargetLoss(inner, 4)(PARAMS, {}, batch, KEY)[0], plain, rtol=1e-6)
