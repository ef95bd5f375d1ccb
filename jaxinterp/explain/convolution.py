"""Convolutions of maps smaller than their kernel, as one product of matrices.

XLA's CPU convolution of a 2×2 map takes eight times as long as the product, and a VGG for CIFAR ends in four of them:
its forward pass took 4.0 ms for 16 images, 1.8 ms this way (2 cores, benchmarks/attribution.py).
"""

import math
from itertools import product
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

MOST = 25
"""Most positions of a kernel, each of which is a slice of the program."""


def is_small(eqn: Any) -> bool:
    """Tell whether a traced operation is a convolution, in one group, to fewer positions than its kernel has."""
    if eqn.primitive.name != "conv_general_dilated":
        return False
    numbers = eqn.params["dimension_numbers"]
    positions = math.prod(eqn.outvars[0].aval.shape[i] for i in numbers.out_spec[2:])
    kernel = math.prod(eqn.invars[1].aval.shape[i] for i in numbers.rhs_spec[2:])
    return positions < kernel <= MOST and eqn.params["feature_group_count"] == eqn.params["batch_group_count"] == 1


def as_product(eqn: Any, x: Array, kernel: Array) -> Array:
    """Run a small convolution: its patches, side by side, times the kernel as a matrix.

    out_p,d = Σ_k Σ_c x_(s p + r k),c kernel_k,c,d          stride s, dilation r, x padded
    """
    params = eqn.params
    numbers = params["dimension_numbers"]
    spatial = range(len(numbers.lhs_spec) - 2)
    x = jnp.transpose(x, (numbers.lhs_spec[0], *numbers.lhs_spec[2:], numbers.lhs_spec[1]))
    kernel = jnp.transpose(kernel, (*numbers.rhs_spec[2:], numbers.rhs_spec[1], numbers.rhs_spec[0]))
    widths = [(*params["padding"][i], params["lhs_dilation"][i] - 1) for i in spatial]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *widths, (0, 0, 0)])
    shape = [eqn.outvars[0].aval.shape[i] for i in numbers.out_spec[2:]]
    patches = []
    for place in product(*map(range, kernel.shape[:-2])):
        starts = [at * params["rhs_dilation"][i] for i, at in enumerate(place)]
        steps = [params["window_strides"][i] for i in spatial]
        ends = [start + (size - 1) * step + 1 for start, size, step in zip(starts, shape, steps, strict=True)]
        patches.append(lax.slice(x, (0, *starts, 0), (len(x), *ends, x.shape[-1]), (1, *steps, 1)))
    rows = jnp.concatenate(patches, -1).reshape(-1, kernel[..., 0].size)
    kind, precision = params["preferred_element_type"], params["precision"]
    flat = lax.dot(rows, kernel.reshape(-1, kernel.shape[-1]), precision=precision, preferred_element_type=kind)
    out = flat.reshape(len(x), *shape, -1)
    order = (numbers.out_spec[0], *numbers.out_spec[2:], numbers.out_spec[1])
    return jnp.transpose(out, [order.index(axis) for axis in range(out.ndim)])
