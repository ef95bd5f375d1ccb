"""Dataset condensation by gradient matching, and the accuracy of a network trained on a few images.

Synthetic images S are optimized until a random network has the same gradients on them as on real images T, layer by
layer and class by class:

    min_S  Σ_c Σ_layers Σ_outputs (1 − cos(∇_θ L(S_c), ∇_θ L(T_c))),      θ drawn anew in every iteration

Source: Zhao, Mopuri & Bilen, "Dataset Condensation with Gradient Matching" (ICLR 2021, arXiv 2006.05929).
"""

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxinterp.checks import require, require_at_least
from jaxinterp.data.image_set import ImageSet, require_unit_range
from jaxinterp.taylor.distill.references import random_references
from jaxinterp.taylor.units import block_means
from jaxinterp.train.evaluate import predict


class DistillationNet(nn.Module):
    """The ConvNet of the condensation literature: 3×3 convolution, instance norm, ReLU, 2×2 average pooling.

    Attributes:
        classes: outputs.
        width: channels; 128 in the paper.
        depth: blocks; 3 in the paper.
    """

    classes: int = 10
    width: int = 128
    depth: int = 3

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool = False) -> Float[Array, "n classes"]:
        """Compute logits, (N, classes), of images (N, H, W, C)."""
        for i in range(self.depth):
            x = nn.Conv(self.width, (3, 3), padding=((1, 1), (1, 1)), name=f"conv_{i}")(x)
            x = nn.InstanceNorm(epsilon=1e-5, use_fast_variance=False, name=f"norm_{i}")(x)
            x = block_means(nn.relu(x), 2)
        return nn.Dense(self.classes, name="classifier")(x.reshape(len(x), -1))


@partial(jax.jit, static_argnums=0)
def _initial(net: DistillationNet, key: PRNGKeyArray, x: Array) -> Any:
    return net.init(key, x)["params"]


def _loss(net: DistillationNet, params: Any, images: Array, labels: Array) -> Float[Array, ""]:
    logits: Any = net.apply({"params": params}, images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def gradient_distance(gradient: Any, target: Any) -> Float[Array, ""]:
    """Sum 1 − cos of two gradients over kernels and their outputs; biases and norms left out, as the authors do."""

    def distance(a: Array, b: Array) -> Array:
        if a.ndim < 2:
            return jnp.zeros((), a.dtype)
        a, b = a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1])
        norms = jnp.sqrt((a**2).sum(0) * (b**2).sum(0) + jnp.asarray(1e-12, a.dtype))
        return (1 - (a * b).sum(0) / norms).sum()

    return sum(jax.tree.leaves(jax.tree.map(distance, gradient, target)), jnp.zeros((), jnp.float32))


def condense(
    images: Float[np.ndarray, "n h w c"],
    labels: Int[np.ndarray, " n"],
    classes: int,
    count: int,
    key: PRNGKeyArray,
    *,
    iterations: int = 1000,
    batch: int = 256,
    width: int = 128,
    depth: int = 3,
) -> ImageSet:
    """Condense a data set to `count` images of every class, starting from random real ones.

    This is the paper's algorithm with one step per network, its setting for one image per class; for more images, its
    training of the network between steps is left out. The images move by SGD with rate 0.1 and momentum 0.5.

    Args:
        images: float32 (N, H, W, C) in [0, 1].
        labels: int (N,), in [0, classes).
        classes: number of classes.
        count: synthetic images of every class.
        key: of networks and batches.
        iterations: networks, each of which moves the images once.
        batch: real images of one class in a step.
        width: channels of the network.
        depth: its blocks, each of which halves the map; deep networks' gradients on tiny images are too rough to match.

    Returns:
        The images, clipped to [0, 1].
    """
    side = min(images.shape[1:3])
    require(0 <= depth < side.bit_length(), "depth", depth, f"0 to {side.bit_length() - 1} on images of side {side}")
    require_at_least("iterations", iterations, 0)
    require_unit_range(images)
    seed = int(jax.random.randint(key, (), 0, 2**31 - 1))
    start = random_references(images, labels, classes, count, seed)
    by_class = [np.flatnonzero(labels == c) for c in range(classes)]
    net, tx = DistillationNet(classes, width, depth), optax.sgd(0.1, momentum=0.5)
    mean, std = float(images.mean()), float(images.std()) or 1.0

    @jax.jit
    def step(params: Any, synthetic: Array, state: Any, real: Array, label: Array) -> tuple[Any, Any]:
        def distance(synthetic: Array) -> Array:
            gradient = jax.grad(lambda p, x: _loss(net, p, x, jnp.broadcast_to(label, len(x))))
            return gradient_distance(gradient(params, synthetic), lax.stop_gradient(gradient(params, real)))

        updates, state = tx.update(jax.grad(distance)(synthetic), state)
        return optax.apply_updates(synthetic, updates), state

    # A Python loop over classes, because XLA runs the body of a compiled loop on one core of a CPU.
    synthetic = [jnp.asarray((start.images[start.labels == c] - mean) / std) for c in range(classes)]
    states, rng = [tx.init(x) for x in synthetic], np.random.default_rng(seed)
    class_ids = jnp.arange(classes, dtype=jnp.int32)
    for i in range(iterations):
        params = _initial(net, jax.random.fold_in(key, i), synthetic[0][:1])
        for c in range(classes):
            indices = rng.choice(by_class[c], min(batch, len(by_class[c])), replace=False)
            real = jnp.asarray((images[indices] - mean) / std)
            synthetic[c], states[c] = step(params, synthetic[c], states[c], real, class_ids[c])
    condensed = np.clip(np.concatenate(synthetic) * std + mean, 0, 1).astype(np.float32)
    provenance = {"method": f"gradient matching, {iterations} networks of width {width}", "seed": str(seed)}
    return ImageSet(condensed, start.labels, provenance=provenance)


@cache
def _optimizer(learning_rate: float, steps: int) -> optax.GradientTransformation:
    schedule = optax.piecewise_constant_schedule(learning_rate, {steps // 2: 0.1})
    return optax.chain(
        optax.add_decayed_weights(5e-4),
        optax.sgd(lambda step: jnp.float32(schedule(jnp.asarray(step, jnp.float32))), momentum=0.9),
    )


@partial(jax.jit, static_argnums=(0, 1, 2))
def _step(
    net: DistillationNet, tx: Any, shift: int, params: Any, state: Any, x: Array, y: Array, key: PRNGKeyArray
) -> tuple[Any, Any]:
    offsets = jax.random.randint(key, (len(x), 2), -shift, shift + 1)
    shifted = jax.vmap(lambda image, offset: jnp.roll(image, offset, (0, 1)))(x, offsets)
    updates, state = tx.update(jax.grad(lambda p: _loss(net, p, shifted, y))(params), state, params)
    return optax.apply_updates(params, updates), state


def train_on(
    references: ImageSet,
    images: Float[np.ndarray, "n h w c"],
    labels: Int[np.ndarray, " n"],
    classes: int,
    key: PRNGKeyArray,
    *,
    steps: int = 300,
    width: int = 128,
    depth: int = 3,
    learning_rate: float = 0.01,
    shift: int = 2,
) -> float:
    """Train a ConvNet from scratch on a few randomly shifted images, and measure its test accuracy.

    Args:
        references: training images, all of them in every step.
        images: test images, (N, H, W, C) in [0, 1].
        labels: their classes, (N,).
        classes: number of classes.
        key: of the network and the shifts.
        steps: of SGD with momentum 0.9 and weight decay 5e-4; the learning rate falls to a tenth halfway.
        width: channels of the network.
        depth: its blocks.
        learning_rate: of the first half.
        shift: largest shift in pixels; images wrap around.

    Returns:
        The accuracy, in [0, 1].
    """
    net = DistillationNet(classes, width, depth)
    mean, std = float(references.images.mean()), float(references.images.std()) or 1.0
    x, y = jnp.asarray((references.images - mean) / std), jnp.asarray(references.labels)
    params, tx = _initial(net, key, x[:1]), _optimizer(learning_rate, steps)
    state = tx.init(params)
    for step_key in jax.random.split(jax.random.fold_in(key, 1), steps):
        params, state = _step(net, tx, shift, params, state, x, y, step_key)
    logits = predict(net, {"params": params}, ((images - mean) / std).astype(np.float32))
    return float((logits.argmax(1) == labels).mean())
