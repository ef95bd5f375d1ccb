"""Networks that the benchmarks of attribution build twice, here in Flax and in torch_networks.py in PyTorch.

Weights, biases and statistics are random, none at its initial 0 or 1, so that nothing of a network stays unseen.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxinterp.explain.explainable import Explainable, explainable
from jaxinterp.nn.baselines import VGG, CifarResNet
from jaxinterp.nn.pooling import max_pool

CLASSES = 10


class CNN(nn.Module):
    """Two convolutions with ReLU and 2×2 max pooling, a hidden dense layer."""

    width: int = 8
    hidden: int = 32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n classes"]:
        """Return the logits."""
        for i in range(2):
            x = nn.relu(nn.Conv(self.width * 2**i, (3, 3), padding=1, name=f"conv_{i}")(x))
            x = max_pool(x, ties="first")
        x = nn.relu(nn.Dense(self.hidden, name="dense")(x.reshape(len(x), -1)))
        return nn.Dense(CLASSES, name="classifier")(x)


class MLP(nn.Module):
    """Two hidden dense layers with the exact GELU."""

    width: int = 32

    @nn.compact
    def __call__(self, x: Float[Array, "n d"]) -> Float[Array, "n classes"]:
        """Return the logits."""
        for i in range(2):
            x = nn.gelu(nn.Dense(self.width, name=f"dense_{i}")(x), approximate=False)
        return nn.Dense(CLASSES, name="classifier")(x)


class Block(nn.Module):
    """Transformer block: attention and a GELU layer, each behind LayerNorm and beside a skip connection."""

    width: int
    heads: int

    @nn.compact
    def __call__(self, x: Float[Array, "n t d"]) -> Float[Array, "n t d"]:
        """Apply both."""
        y = nn.LayerNorm(name="norm_0")(x)
        x = x + nn.MultiHeadDotProductAttention(self.heads, name="attention")(y)
        y = nn.Dense(2 * self.width, name="up")(nn.LayerNorm(name="norm_1")(x))
        return x + nn.Dense(self.width, name="down")(nn.gelu(y, approximate=False))


class ViT(nn.Module):
    """Vision transformer of two blocks: patches, positions, softmax attention, the mean of all tokens."""

    width: int = 16
    heads: int = 2
    patch: int = 4

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n classes"]:
        """Return the logits."""
        side = (self.patch, self.patch)
        x = nn.Conv(self.width, side, side, "VALID", name="patches")(x)
        x = x.reshape(len(x), -1, self.width)
        x = x + self.param("position", nn.initializers.normal(0.5), x.shape[1:])[None]
        for i in range(2):
            x = Block(self.width, self.heads, name=f"block_{i}")(x)
        return nn.Dense(CLASSES, name="classifier")(nn.LayerNorm(name="norm")(x).mean(1))


NETWORKS: dict[str, tuple[Callable[[DTypeLike], nn.Module], tuple[int, ...], str]] = {
    # name: module of a type, shape of an example, layer with a map of positions
    "cnn": (lambda _: CNN(), (12, 12, 3), "conv_1"),
    "resnet": (lambda dtype: CifarResNet(8, width=4, param_dtype=dtype), (12, 12, 3), "trunk"),
    "mlp": (lambda _: MLP(), (24,), "dense_0"),
    "vit": (lambda _: ViT(), (12, 12, 3), "block_0"),
    "vgg": (lambda dtype: VGG(11, width=4, ties="first", param_dtype=dtype), (32, 32, 3), "trunk/conv_7"),
    "resnet20": (lambda dtype: CifarResNet(20, param_dtype=dtype), (32, 32, 3), "trunk"),
    "vgg11": (lambda dtype: VGG(11, width=16, ties="first", param_dtype=dtype), (32, 32, 3), "trunk/conv_7"),
}


def examples(name: str, count: int, seed: int = 0) -> Float[np.ndarray, "count ..."]:
    """Return random examples in [0, 1), of values that float32 holds."""
    shape = (count, *NETWORKS[name][1])
    return np.random.default_rng(seed).random(shape, dtype=np.float32).astype(float)


def variables(name: str, seed: int = 0) -> Any:
    """Return random variables, of values that float32 holds."""
    make, shape, _ = NETWORKS[name]
    drawn = np.random.default_rng(seed)
    kinds = jax.eval_shape(make(np.float32).init, jax.random.key(0), jnp.zeros((1, *shape), np.float32))

    def draw(path: Any, leaf: Any) -> np.ndarray:
        kind, size = path[-1].key, leaf.shape
        if kind == "kernel":
            inputs = np.prod(size[:-1]) if path[-2].key not in ("query", "key", "value") else size[0]
            values = drawn.standard_normal(size) * np.sqrt(2 / inputs)
        elif kind in ("scale", "var"):
            values = drawn.uniform(0.5, 1.5, size)
        else:
            values = 0.2 * drawn.standard_normal(size)
        return values.astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, kinds)


def network(name: str, values: Any, dtype: DTypeLike = np.float32) -> Explainable:
    """Wrap the network of some variables, in this type."""
    return explainable(NETWORKS[name][0](dtype), jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), values))


def stored(name: str, arrays: Mapping[str, np.ndarray]) -> Explainable:
    """Return a network in float64 whose variables are stored by their path, such as "cnn/variables/params/..."."""
    tree: dict[str, Any] = {}
    for key in arrays:
        at, _, path = key.partition("/variables/")
        if at == name and path:
            *parents, leaf = path.split("/")
            node = tree
            for parent in parents:
                node = node.setdefault(parent, {})
            node[leaf] = arrays[key]
    return network(name, tree, np.float64)
