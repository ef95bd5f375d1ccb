"""Dataset condensation by gradient matching, the known baseline, and the accuracy of a network trained on a few images.

Zhao, Mopuri & Bilen, "Dataset Condensation with Gradient Matching" (ICLR 2021, arXiv 2006.05929). Synthetic images are
moved until they give a random network the gradients of real ones, layer by layer and class by class:

    min_S  Σ_c Σ_layers Σ_outputs (1 − cos(∇_θ L(S_c), ∇_θ L(T_c))),      θ random anew in every iteration
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxinterp.taylor.distill.references import ImageSet, random_references
from jaxinterp.taylor.network import block_means
from jaxinterp.train.evaluate import predict


class InstanceNorm(nn.Module):
    """Every channel of every image on its own: γ (x − μ) / √(σ² + 1e-5) + β."""

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        """(N, H, W, C) ↦ (N, H, W, C)."""
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        spread = x - x.mean((1, 2), keepdims=True)
        unit = spread * lax.rsqrt((spread**2).mean((1, 2), keepdims=True) + jnp.asarray(1e-5, x.dtype))
        return unit * scale[None, None, None] + bias[None, None, None]


class DistillationNet(nn.Module):
    """The ConvNet of that literature: blocks of 3×3 convolution, instance norm, ReLU and 2×2 average pooling.

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
        """(N, H, W, C) ↦ (N, classes)."""
        for i in range(self.depth):
            x = nn.Conv(self.width, (3, 3), padding=((1, 1), (1, 1)), name=f"conv_{i}")(x)
            x = InstanceNorm(name=f"norm_{i}")(x)
            x = block_means(nn.relu(x), 2)
        return nn.Dense(self.classes, name="classifier")(x.reshape(len(x), -1))


def _loss(net: DistillationNet, params: Any, images: Array, labels: Array) -> Float[Array, ""]:
    logits: Any = net.apply({"params": params}, images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def gradient_distance(ours: Any, theirs: Any) -> Float[Array, ""]:
    """Σ over kernels and their outputs of 1 − cos of two gradients; biases and norms are left out, as in the code."""

    def one(a: Array, b: Array) -> Array:
        if a.ndim < 2:
            return jnp.zeros((), a.dtype)
        a, b = a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1])
        size = jnp.sqrt((a**2).sum(0) * (b**2).sum(0) + jnp.asarray(1e-12, a.dtype))
        return (1 - (a * b).sum(0) / size).sum()

    return sum(jax.tree.leaves(jax.tree.map(one, ours, theirs)), jnp.zeros((), jnp.float32))


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

    The paper's algorithm with one step per network, its setting for one image per class; with more, its inner training
    of the network between steps is left out.

    Args:
        images: float32 (N, H, W, C) in [0, 1].
        labels: their classes.
        classes: how many there are.
        count: synthetic images of every class.
        key: of networks and batches.
        iterations: networks, each of which moves the images once.
        batch: real images of one class in a step.
        width: channels of the network.
        depth: its blocks, each of which halves the map; gradients of many on tiny images are too rough to match.
        learning_rate: of the images.
        momentum: of the images.

    Returns:
        The images, clipped to [0, 1].

    Raises:
        ValueError: a class has fewer images than `count`, the network is too deep for them, they are not in [0, 1], or
            negative `iterations`.
    """
    most = int(np.log2(min(images.shape[1:3])))
    if not 0 <= depth <= most:
        raise ValueError(f"depth: got {depth}, expected 0 to {most} on {images.shape[1]}x{images.shape[2]} images")
    if iterations < 0:
        raise ValueError(f"iterations: got {iterations}, expected at least 0")
    if not 0 <= images.min() <= images.max() <= 1:
        raise ValueError(f"images: got values in {images.min():g}..{images.max():g}, expected [0, 1]")
    seed = int(jax.random.randint(key, (), 0, 2**31 - 1))
    start = random_references(images, labels, classes, count, seed)
    pool = [np.flatnonzero(labels == c) for c in range(classes)]
    net = DistillationNet(classes, width, depth)
    tx = optax.sgd(learning_rate, momentum)
    mean, std = float(images.mean()), float(images.std()) or 1.0

    @jax.jit
    def step(params: Any, synthetic: Array, state: Any, real: Array, label: Array) -> tuple[Array, Any]:
        def distance(synthetic: Array) -> Array:
            gradient = jax.grad(lambda p, x: _loss(net, p, x, jnp.broadcast_to(label, len(x))))
            return gradient_distance(gradient(params, synthetic), lax.stop_gradient(gradient(params, real)))

        updates, state = tx.update(jax.grad(distance)(synthetic), state)
        moved: Any = optax.apply_updates(synthetic, updates)
        return moved, state

    # Classes one by one: their images do not meet, and XLA runs what is in a loop of its own on one core of a CPU.
    init = jax.jit(lambda key, x: net.init(key, x)["params"])
    synthetic = [jnp.asarray((start.images[start.labels == c] - mean) / std) for c in range(classes)]
    states, drawn = [tx.init(one) for one in synthetic], np.random.default_rng(seed)
    names = jnp.arange(classes, dtype=jnp.int32)
    for i in range(iterations):
        params = init(jax.random.fold_in(key, i), synthetic[0])
        for c in range(classes):
            some = drawn.choice(pool[c], min(batch, len(pool[c])), replace=False)
            real = jnp.asarray((images[some] - mean) / std)
            synthetic[c], states[c] = step(params, synthetic[c], states[c], real, names[c])
    found = np.clip(np.concatenate(synthetic) * std + mean, 0, 1).astype(np.float32)
    told = {"method": f"gradient matching, {iterations} networks of width {width}", "seed": str(seed)}
    return ImageSet(found, start.labels, provenance=told)


def train_on(
    few: ImageSet,
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
    """Test accuracy of a ConvNet that is trained from scratch on a few images, with random shifts.

    Args:
        few: what it is trained on, all of it in every step.
        images: test images in [0, 1].
        labels: their classes.
        classes: how many there are.
        key: of the network and the shifts.
        steps: of SGD with momentum 0.9 and weight decay 5e-4; the rate falls to a tenth after half of them.
        width: channels of the network.
        depth: its blocks.
        learning_rate: of the first half.
        shift: largest shift in pixels, around the edge.
    """
    net = DistillationNet(classes, width, depth)
    mean, std = float(few.images.mean()), float(few.images.std()) or 1.0
    x, y = jnp.asarray((few.images - mean) / std), jnp.asarray(few.labels)
    schedule = optax.piecewise_constant_schedule(learning_rate, {steps // 2: 0.1})
    tx = optax.chain(
        optax.add_decayed_weights(5e-4),
        optax.sgd(lambda step: jnp.float32(schedule(jnp.asarray(step, jnp.float32))), momentum=0.9),
    )

    @jax.jit
    def step(params: Any, state: Any, key: PRNGKeyArray) -> tuple[Any, Any]:
        by = jax.random.randint(key, (len(x), 2), -shift, shift + 1)
        moved = jax.vmap(lambda image, by: jnp.roll(image, by, (0, 1)))(x, by)
        updates, state = tx.update(jax.grad(lambda p: _loss(net, p, moved, y))(params), state, params)
        return optax.apply_updates(params, updates), state

    params = jax.jit(net.init)(key, x)["params"]
    state = tx.init(params)
    for one in jax.random.split(jax.random.fold_in(key, 1), steps):
        params, state = step(params, state, one)
    logits = predict(net, {"params": params}, ((images - mean) / std).astype(np.float32))
    return float((logits.argmax(1) == labels).mean())
