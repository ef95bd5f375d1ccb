"""A problem that a few steps solve: where in the image is the bright quadrant?"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinterp.data.datasets import Dataset


class Tiny(nn.Module):
    """Convolution, BatchNorm (optional) and a linear read-out."""

    norm: bool = True
    axis_name: str | None = None
    features: int = 4
    dtype: type = jnp.float32

    @nn.compact
    def __call__(self, x, train=False):
        convolution = nn.Conv(self.features, (3, 3), strides=2, padding=1, use_bias=not self.norm, dtype=self.dtype)
        x = convolution(x.astype(self.dtype))
        if self.norm:
            norm = nn.BatchNorm(use_running_average=not train, axis_name=self.axis_name)
            x = norm(x.astype(jnp.float32)).astype(self.dtype)
        return nn.Dense(4, dtype=self.dtype)(nn.relu(x).reshape(len(x), -1))


def make_quadrants(size, seed=0, split="train"):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(size) % 4).astype(np.int32)
    images = rng.integers(0, 160, (size, 4, 4, 1))
    for image, label in zip(images, labels, strict=True):
        row, column = 2 * (label // 2), 2 * (label % 2)
        image[row : row + 2, column : column + 2] += 90
    return Dataset("quadrants", split, images.astype(np.uint8), labels, ("a", "b", "c", "d"), 255, {})


@pytest.fixture(scope="session")
def tiny():
    return Tiny


@pytest.fixture(scope="session")
def quadrants():
    return make_quadrants
