"""The networks of networks.py in PyTorch, from the same variables; modules have Flax's names.

Additions of residual blocks are Zennit's `Sum` module, as its canonizer for torchvision's ResNet has them, so that its
rules see them. BatchNorm's ε is added to the variance, as Zennit's folding would leave it in place.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from zennit.layer import Sum

from benchmarks.networks import CLASSES

EPSILON = 1e-5  # of jaxinterp's BatchNorm


class CNN(nn.Module):
    """Two convolutions with ReLU and max pooling, a hidden dense layer."""

    def __init__(self, width: int = 8, hidden: int = 32):
        """Set up for images of 12×12."""
        super().__init__()
        self.conv_0 = nn.Conv2d(3, width, 3, padding=1)
        self.relu_0, self.pool_0 = nn.ReLU(), nn.MaxPool2d(2)
        self.conv_1 = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.relu_1, self.pool_1 = nn.ReLU(), nn.MaxPool2d(2)
        self.dense = nn.Linear(18 * width, hidden)
        self.relu = nn.ReLU()
        self.classifier = nn.Linear(hidden, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits; positions are flattened before channels, as in Flax."""
        x = self.pool_0(self.relu_0(self.conv_0(x)))
        x = self.pool_1(self.relu_1(self.conv_1(x)))
        return self.classifier(self.relu(self.dense(x.permute(0, 2, 3, 1).flatten(1))))


class MLP(nn.Module):
    """Two hidden dense layers with the exact GELU."""

    def __init__(self, size: int = 24, width: int = 32):
        """Set up for vectors of a size."""
        super().__init__()
        self.dense_0, self.gelu_0 = nn.Linear(size, width), nn.GELU()
        self.dense_1, self.gelu_1 = nn.Linear(width, width), nn.GELU()
        self.classifier = nn.Linear(width, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        return self.classifier(self.gelu_1(self.dense_1(self.gelu_0(self.dense_0(x)))))


class Attention(nn.Module):
    """Softmax attention of several heads."""

    def __init__(self, width: int, heads: int):
        """Set up the four linear layers."""
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.softmax = nn.Softmax(-1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Attend from every token to every other."""
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.query, self.key, self.value))
        weights = self.softmax(q @ k.transpose(2, 3) / q.shape[-1] ** 0.5)
        return self.out((weights @ v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Transformer block."""

    def __init__(self, width: int, heads: int):
        """Set up both parts."""
        super().__init__()
        self.norm_0, self.norm_1 = (nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.attention = Attention(width, heads)
        self.up, self.gelu, self.down = nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply both parts."""
        x = x + self.attention(self.norm_0(x))
        return x + self.down(self.gelu(self.up(self.norm_1(x))))


class ViT(nn.Module):
    """Vision transformer of two blocks."""

    def __init__(self, width: int = 16, heads: int = 2, patch: int = 4, tokens: int = 9):
        """Set up for images of 12×12."""
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.position = nn.Parameter(torch.zeros(tokens, width))
        self.block_0, self.block_1 = Block(width, heads), Block(width, heads)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.classifier = nn.Linear(width, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        x = self.patches(x).flatten(2).transpose(1, 2) + self.position
        return self.classifier(self.norm(self.block_1(self.block_0(x))).mean(1))


class ConvNorm(nn.Module):
    """3×3 convolution, BatchNorm, and a ReLU but where `relu` is false."""

    def __init__(self, inputs: int, features: int, strides: int = 1, relu: bool = True):
        """Set up the layers."""
        super().__init__()
        self.conv = nn.Conv2d(inputs, features, 3, strides, 1, bias=False)
        self.norm = nn.BatchNorm2d(features, eps=0)
        self.relu = nn.ReLU() if relu else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply them."""
        return self.relu(self.norm(self.conv(x)))


class BasicBlock(nn.Module):
    """Residual block with an option-A shortcut."""

    def __init__(self, inputs: int, features: int, strides: int):
        """Set up both convolutions."""
        super().__init__()
        self.conv_0 = ConvNorm(inputs, features, strides)
        self.conv_1 = ConvNorm(features, features, relu=False)
        self.sum, self.relu = Sum(), nn.ReLU()
        extra, self.strides = features - inputs, strides
        self.pad = (0, 0, 0, 0, extra // 2, extra - extra // 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply both convolutions and the shortcut."""
        shortcut = nn.functional.pad(x[:, :, :: self.strides, :: self.strides], self.pad)
        return self.relu(self.sum(torch.stack([shortcut, self.conv_1(self.conv_0(x))], -1)))


class Pooled(nn.Module):
    """A trunk, the mean over positions, a linear classifier."""

    def __init__(self, trunk: nn.Module, features: int):
        """Set up the head."""
        super().__init__()
        self.trunk, self.pool, self.classifier = trunk, nn.AdaptiveAvgPool2d(1), nn.Linear(features, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        return self.classifier(self.pool(self.trunk(x)).flatten(1))


def resnet(depth: int, width: int) -> Pooled:
    """CIFAR ResNet of depth 6n + 2."""
    trunk, inputs, blocks = nn.Sequential(), width, (depth - 2) // 6
    trunk.add_module("stem", ConvNorm(3, width))
    for i in range(3 * blocks):
        stage, position = divmod(i, blocks)
        features = width * 2**stage
        trunk.add_module(f"block_{i}", BasicBlock(inputs, features, 2 if stage and not position else 1))
        inputs = features
    return Pooled(trunk, inputs)


def vgg(width: int) -> Pooled:
    """VGG-11 with BatchNorm and one linear layer."""
    trunk, inputs, first = nn.Sequential(), 3, 0
    for stage, convolutions in enumerate((1, 1, 2, 2, 2)):
        features = width * 2 ** min(stage, 3)
        for i in range(first, first + convolutions):
            trunk.add_module(f"conv_{i}", ConvNorm(inputs, features))
            inputs = features
        trunk.add_module(f"pool_{stage}", nn.MaxPool2d(2))
        first += convolutions
    return Pooled(trunk, inputs)


MAKE = {
    "cnn": CNN,
    "resnet": lambda: resnet(8, 4),
    "mlp": MLP,
    "vit": ViT,
    "vgg": lambda: vgg(4),
    "resnet20": lambda: resnet(20, 16),
    "vgg11": lambda: vgg(16),
}


def in_torch(name: str, variables: Mapping[str, Any], dtype: torch.dtype = torch.float32) -> nn.Module:
    """Build the network of some variables of `networks.variables`, in inference."""
    net = MAKE[name]().to(dtype).eval().requires_grad_(False)

    def leaf(group: str, path: str, kind: str) -> np.ndarray:
        found: Any = variables[group]
        for part in [*path.split(".")] if path else []:
            found = found[part]
        return np.asarray(found[kind], float)

    def put(tensor: torch.Tensor, value: np.ndarray) -> None:
        tensor.copy_(torch.from_numpy(np.ascontiguousarray(value)).reshape(tensor.shape))

    for path, module in net.named_modules():
        if isinstance(module, nn.Conv2d):
            put(module.weight, leaf("params", path, "kernel").transpose(3, 2, 0, 1))
        elif isinstance(module, nn.Linear):
            put(module.weight, leaf("params", path, "kernel").reshape(module.in_features, module.out_features).T)
        elif isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
            put(module.weight, leaf("params", path, "scale"))
        if isinstance(module, nn.BatchNorm2d):
            put(module.running_mean, leaf("batch_stats", path, "mean"))
            put(module.running_var, leaf("batch_stats", path, "var") + EPSILON)
        if getattr(module, "bias", None) is not None:
            put(module.bias, leaf("params", path, "bias"))
        if isinstance(module, ViT):
            put(module.position, leaf("params", path, "position"))
    return net
