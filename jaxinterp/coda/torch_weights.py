"""Weights of the authors' CoDA nets in PyTorch, from and to `CoDANet`.

The published networks are an `nn.Sequential` whose layer i owns three arrays (pooling, temperature, logit bias none):

    i.weight_mod.weighting_f.0.weight   (r, C, k, k)        the projection B
    i.weight_mod.weighting_f.1.weight   (D·J, r, 1, 1)      the generators A_j, at channel d·J + j
    i.weight_mod.weighting_f.1.bias     (D·J,)              the b_j, in the same order

with patch entry d = (c, k_y, k_x) in row-major order and D = C·k². Here the patch is ordered (k_y, k_x, c): B
is (D, r), A is (r, J, D) and b is (J, D).
"""

import re
from collections.abc import Mapping
from os import PathLike
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxinterp.checks import require
from jaxinterp.nn.torch_weights.state_dict import named_arrays, plain, read_state_dict

PROJECTION = "weight_mod.weighting_f.0.weight"
GENERATOR = "weight_mod.weighting_f.1.weight"
BIAS = "weight_mod.weighting_f.1.bias"
_NAME = re.compile(rf"(\d+)\.({'|'.join(map(re.escape, (PROJECTION, GENERATOR, BIAS)))})")

Params = dict[str, dict[str, Array]]


def from_torch(state_dict: Mapping[str, Any]) -> Params:
    """Convert the authors' parameters of a CoDA net; PyTorch is not needed.

    Args:
        state_dict: the authors' names, with or without the prefixes `module.` and `model.` that wrappers leave, to
            arrays or tensors in their layouts (module docstring), of any floating type.

    Returns:
        {"layer_0": {"B": (D, r), "A": (r, J, D), "b": (J, D)}, …}, the `params` of a `CoDANet` with the same layers,
        float32 (float64 is kept under `jax.enable_x64`).

    Raises:
        ConfigError: names are unknown, missing, given twice, or of a wrong shape; the line says which.

    Example:
        >>> shapes = {"0.weight": (5, 6, 3, 3), "1.weight": (54 * 4, 5, 1, 1), "1.bias": (54 * 4,)}
        >>> state_dict = {f"module.0.weight_mod.weighting_f.{n}": np.zeros(s, "f") for n, s in shapes.items()}
        >>> params = from_torch(state_dict)
        >>> {name: array.shape for name, array in params["layer_0"].items()}
        {'B': (54, 5), 'A': (5, 4, 54), 'b': (4, 54)}

    Source: parameter names and layouts of the authors' release (github.com/moboehle/CoDA-Nets, `modules/DAUs.py`).
    """
    count = len({match[1] for match in map(_NAME.fullmatch, map(plain, state_dict)) if match})
    parts = (PROJECTION, GENERATOR, BIAS)
    arrays = named_arrays("a CoDA net", state_dict, [f"{i}.{part}" for i in range(max(count, 1)) for part in parts])
    params, channels = {}, None
    for i in range(count):
        params[f"layer_{i}"], channels = _layer(i, [arrays[f"{i}.{part}"] for part in parts], channels)
    return params


def _layer(i: int, arrays: list[np.ndarray], channels: int | None) -> tuple[dict[str, Array], int]:
    """Return layer i's parameters and its number of units, after a layer with `channels` units."""
    B, A, b = arrays

    square = B.ndim == 4 and B.shape[2] == B.shape[3] and channels in (None, B.shape[1])
    require(square, f"{i}.{PROJECTION}", f"shape {B.shape}", f"(r, {channels or 'C'}, k, k)")
    rank, in_channels, kernel, _ = B.shape
    d = in_channels * kernel**2
    whole = b.ndim == 1 and b.size > 0 and b.size % d == 0
    require(whole, f"{i}.{BIAS}", f"shape {b.shape}", f"(D·J,) with D = {d}")
    require(A.shape == (b.size, rank, 1, 1), f"{i}.{GENERATOR}", f"shape {A.shape}", f"({b.size}, {rank}, 1, 1)")
    units, patch = b.size // d, (in_channels, kernel, kernel)
    return {
        "B": jnp.asarray(B.transpose(2, 3, 1, 0).reshape(d, rank)),
        "A": jnp.asarray(A.reshape(*patch, units, rank).transpose(4, 3, 1, 2, 0).reshape(rank, units, d)),
        "b": jnp.asarray(b.reshape(*patch, units).transpose(3, 1, 2, 0).reshape(units, d)),
    }, units


def to_torch(params: Mapping[str, Mapping[str, Array]], in_channels: int = 6) -> dict[str, np.ndarray]:
    """Convert the parameters of a `CoDANet` to the authors' names and layouts, the inverse of `from_torch`.

    Args:
        params: {"layer_0": {"B": (D, r), "A": (r, J, D), "b": (J, D)}, …}.
        in_channels: channels C of the first layer's input, 6 for encoded color images.

    Returns:
        The authors' names to arrays in their layouts (module docstring), kernels square.
    """
    state_dict: dict[str, np.ndarray] = {}
    for i in range(len(params)):
        require(f"layer_{i}" in params, "params", ", ".join(params), f"layer_0 to layer_{len(params) - 1}")
        B, A, b = (np.asarray(params[f"layer_{i}"][part]) for part in ("B", "A", "b"))
        (d, rank), units = B.shape, b.shape[0]
        kernel = round((d / in_channels) ** 0.5)
        require(in_channels * kernel**2 == d, f"layer_{i}.B", f"{d} rows", f"C·k² for C = {in_channels} input channels")
        patch = (kernel, kernel, in_channels)
        state_dict[f"{i}.{PROJECTION}"] = B.reshape(*patch, rank).transpose(3, 2, 0, 1)
        generators = A.reshape(rank, units, *patch).transpose(4, 2, 3, 1, 0)
        state_dict[f"{i}.{GENERATOR}"] = generators.reshape(-1, rank, 1, 1)
        state_dict[f"{i}.{BIAS}"] = b.reshape(units, *patch).transpose(3, 1, 2, 0).reshape(-1)
        in_channels = units
    return state_dict


def load_torch(path: str | PathLike[str]) -> Params:
    """Read a checkpoint of the authors and convert it; see `nn.torch_weights.read_state_dict` for files and errors.

    Returns:
        As `from_torch`.
    """
    return from_torch(read_state_dict(path))
