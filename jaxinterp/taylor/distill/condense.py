"""Dataset condensation by gradient matching, and the accuracy of a network trained on a few images.

Synthetic images S are optimized until a random network has the same gradients on them as on real images T, layer by
layer and class by class:

    min_S  Σ_c Σ_layers Σ_outputs (1 − cos(∇_θ L(S_c), ∇_θ L(T_c))),      θ drawn anew in every iteration

Source: Zhao, Mopuri & Bilen, "Dataset Condensation with Gradient Matching" (ICLR 2021, arXiv 2006.05929).
"""

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


class InstanceNorm(nn.Module):
    """Normalize every channel of every image: γ (x − μ) / √(σ² + 1e-5) + β."""

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        """Normalize (N, H, W, C)."""
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        centered = x - x.mean((1, 2), keepdims=True)
        variance = (centered**2).mean((1, 2), keepdims=True)
        return (
            centered * lax.rsqrt(variance + jnp.asarray(1e-5, x.dtype)) * scale[None, None, None]
            + bias[None, None, None]
        )


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
            x = InstanceNorm(name=f"norm_{i}")(x)
            x = block_means(nn.relu(x), 2)
        return nn.Dense(self.classes, name="classifier")(x.reshape(len(x), -1))


def _loss(net: DistillationNet, params: Any, images: Array, labels: Array) -> Float[Array, ""]:
    logits: Any = net.apply({"params": params}, images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def _mean_std(images: np.ndarray) -> tuple[float, float]:
    return float(images.mean()), float(images.std()) or 1.0


def gradient_distance(gradient: Any, target: Any) -> Float[Array, ""]:
    """Sum 1 − cos of two gradients over kernels and their outputs; biases and norms are left out, as in the code."""

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
    learning_rate: float = 0.1,
    momentum: float = 0.5,
) -> ImageSet:
    """Condense a data set to `count` images of every class, starting from random real ones.

    This is the paper's algorithm with one step per network, its setting for one image per class; for more, its inner
    training of the network between steps is left out.

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
        learning_rate: of the images.
        momentum: of the images.

    Returns:
        The images, clipped to [0, 1].

    Raises:
        ValueError: a class has fewer images than `count`, the network is too deep for the images, they are not in
            [0, 1], or `iterations` is negative.
    """
    rows, columns = images.shape[1:3]
    deepest = int(np.log2(min(rows, columns)))
    require(0 <= depth <= deepest, "depth", f"{depth} on {rows}x{columns} images", f"0 to {deepest}")
    require_at_least("iterations", iterations, 0)
    require_unit_range(images)
    seed = int(jax.random.randint(key, (), 0, 2**31 - 1))
    start = random_references(images, labels, classes, count, seed)
    by_class = [np.flatnonzero(labels == c) for c in range(classes)]
    net = DistillationNet(classes, width, depth)
    tx = optax.sgd(learning_rate, momentum)
    mean, std = _mean_std(images)

    @jax.jit
    def step(params: Any, synthetic: Array, state: Any, real: Array, label: Array) -> tuple[Array, Any]:
        def distance(synthetic: Array) -> Array:
            gradient = jax.grad(lambda p, x: _loss(net, p, x, jnp.broadcast_to(label, len(x))))
            return gradient_distance(gradient(params, synthetic), lax.stop_gradient(gradient(params, real)))

        updates, state = tx.update(jax.grad(distance)(synthetic), state)
        moved: Any = optax.apply_updates(synthetic, updates)
        return moved, state

    # A Python loop over classes, because XLA runs the body of a compiled loop on one core of a CPU.
    init = jax.jit(lambda key, x: net.init(key, x)["params"])
    synthetic = [jnp.asarray((start.images[start.labels == c] - mean) / std) for c in range(classes)]
    states, rng = [tx.init(x) for x in synthetic], np.random.default_rng(seed)
    class_ids = jnp.arange(classes, dtype=jnp.int32)
    for i in range(iterations):
        params = init(jax.random.fold_in(key, i), synthetic[0])
        for c in range(classes):
            indices = rng.choice(by_class[c], min(batch, len(by_class[c])), replace=False)
            real = jnp.asarray((images[indices] - mean) / std)
            synthetic[c], states[c] = step(params, synthetic[c], states[c], real, class_ids[c])
    condensed = np.clip(np.concatenate(synthetic) * std + mean, 0, 1).astype(np.float32)
    provenance = {"method": f"gradient matching, {iterations} networks of width {width}", "seed": str(seed)}
    return ImageSet(condensed, start.labels, provenance=provenance)


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
    mean, std = _mean_std(references.images)
    x, y = jnp.asarray((references.images - mean) / std), jnp.asarray(references.labels)
    schedule = optax.piecewise_constant_schedule(learning_rate, {steps // 2: 0.1})
    tx = optax.chain(
        optax.add_decayed_weights(5e-4),
        optax.sgd(lambda step: jnp.float32(schedule(jnp.asarray(step, jnp.float32))), momentum=0.9),
    )

    @jax.jit
    def step(params: Any, state: Any, key: PRNGKeyArray) -> tuple[Any, Any]:
        offsets = jax.random.randint(key, (len(x), 2), -shift, shift + 1)
        shifted = jax.vmap(lambda image, offset: jnp.roll(image, offset, (0, 1)))(x, offsets)
        updates, state = tx.update(jax.grad(lambda p: _loss(net, p, shifted, y))(params), state, params)
        return optax.apply_updates(params, updates), state

    params = jax.jit(net.init)(key, x)["params"]
    state = tx.init(params)
    for step_key in jax.random.split(jax.random.fold_in(key, 1), steps):
        params, state = step(params, state, step_key)
    logits = predict(net, {"params": params}, ((images - mean) / std).astype(np.float32))
    return float((logits.argmax(1) == labels).mean())
