"""Dataset condensation by gradient matching, the known peer, and the accuracy of a network trained on a few images.

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

from jaxinterp.distill.references import ImageSet, random_references
from jaxinterp.train.evaluate import predict


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
            x = nn.GroupNorm(num_groups=self.width, epsilon=1e-5, name=f"norm_{i}")(x)
            x = nn.avg_pool(nn.relu(x), (2, 2), (2, 2))
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
        learning_rate: of the images.
        momentum: of the images.

    Returns:
        The images, clipped to [0, 1].

    Raises:
        ValueError: a class has fewer images than `count`.
    """
    seed = int(jax.random.randint(key, (), 0, 2**31 - 1))
    start = random_references(images, labels, classes, count, seed)
    most = min(int((labels == c).sum()) for c in range(classes))
    pool = np.stack([np.flatnonzero(labels == c)[:most] for c in range(classes)])
    net = DistillationNet(classes, width)
    tx = optax.sgd(learning_rate, momentum)
    mean, std = float(images.mean()), float(images.std()) or 1.0

    def step(synthetic: Array, state: Any, real: Array, key: PRNGKeyArray) -> tuple[Array, Any]:
        params = net.init(key, synthetic[0])["params"]

        def distance(synthetic: Array) -> Array:
            def of_class(total: Array, entry: tuple[Array, Array, Array]) -> tuple[Array, None]:
                ours, theirs, label = entry
                gradient = jax.grad(lambda p, x: _loss(net, p, x, jnp.full(len(x), label)))
                wanted = lax.stop_gradient(gradient(params, theirs))
                return total + gradient_distance(gradient(params, ours), wanted), None

            start = jnp.zeros((), synthetic.dtype)
            return lax.scan(of_class, start, (synthetic, real, jnp.arange(classes, dtype=jnp.int32)))[0]

        updates, state = tx.update(jax.grad(distance)(synthetic), state)
        moved: Any = optax.apply_updates(synthetic, updates)
        return moved, state

    compiled = jax.jit(step, donate_argnums=(0, 1))
    synthetic = jnp.asarray((start.images.reshape(classes, count, *images.shape[1:]) - mean) / std)
    state, drawn = tx.init(synthetic), np.random.default_rng(seed)
    for i in range(iterations):
        places = np.take_along_axis(pool, drawn.integers(0, most, (classes, min(batch, most))), 1)
        real = jnp.asarray((images[places] - mean) / std)
        synthetic, state = compiled(synthetic, state, real, jax.random.fold_in(key, i))
    found = np.clip(np.asarray(synthetic).reshape(-1, *images.shape[1:]) * std + mean, 0, 1).astype(np.float32)
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
        learning_rate: of the first half.
        shift: largest shift in pixels, around the edge.
    """
    net = DistillationNet(classes, width)
    mean, std = float(few.images.mean()), float(few.images.std()) or 1.0
    x, y = jnp.asarray((few.images - mean) / std), jnp.asarray(few.labels)
    schedule = optax.piecewise_constant_schedule(learning_rate, {steps // 2: 0.1})
    tx = optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(lambda step: jnp.float32(schedule(step)), momentum=0.9))

    def step(carry: tuple[Any, Any], key: PRNGKeyArray) -> tuple[tuple[Any, Any], None]:
        params, state = carry
        by = jax.random.randint(key, (len(x), 2), -shift, shift + 1)
        moved = jax.vmap(lambda image, by: jnp.roll(image, by, (0, 1)))(x, by)
        updates, state = tx.update(jax.grad(lambda p: _loss(net, p, moved, y))(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def trained(key: PRNGKeyArray) -> Any:
        params = net.init(key, x)["params"]
        keys = jax.random.split(jax.random.fold_in(key, 1), steps)
        return lax.scan(step, (params, tx.init(params)), keys)[0][0]

    logits = predict(net, {"params": trained(key)}, ((images - mean) / std).astype(np.float32))
    return float((logits.argmax(1) == labels).mean())
