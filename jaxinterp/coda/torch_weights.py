"""Weights of PyTorch networks: the authors' CoDA nets, from and to `CoDANet`, and coded blocks; torchvision's AlexNet.

The published networks are an `nn.Sequential` whose layer i owns three arrays (pooling, temperature, logit bias none):

    i.weight_mod.weighting_f.0.weight   (r, C, k, k)        the projection B
    i.weight_mod.weighting_f.1.weight   (D·J, r, 1, 1)      the generators A_j, at channel d·J + j
    i.weight_mod.weighting_f.1.bias     (D·J,)              the b_j, in the same order

with patch entry d = (c, k_y, k_x) in row-major order and D = C·k². Here the patch is ordered (k_y, k_x, c): B
is (D, r), A is (r, J, D) and b is (J, D).
"""

import math
import re
from collections import Counter
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxinterp.checks import require
from jaxinterp.errors import CheckpointError, ConfigError

PROJECTION = "weight_mod.weighting_f.0.weight"
GENERATOR = "weight_mod.weighting_f.1.weight"
BIAS = "weight_mod.weighting_f.1.bias"
_NAME = re.compile(rf"(\d+)\.({'|'.join(map(re.escape, (PROJECTION, GENERATOR, BIAS)))})")

ALEXNET = {f"conv_{i}": f"features.{j}" for i, j in enumerate((0, 3, 6, 8, 10))}
ALEXNET |= {"dense_0": "classifier.1", "dense_1": "classifier.4", "classifier": "classifier.6"}
"""Names of the layers of `AlexNet` to torchvision's."""

Params = dict[str, dict[str, Array]]


def from_torch(state_dict: Mapping[str, Any]) -> Params:
    """Convert the authors' parameters of a CoDA net; PyTorch is not needed.

    Args:
        state_dict: the authors' names, with or without the prefixes `module.` and `model.` that wrappers leave, to
            arrays or tensors in their layouts (module docstring), of any floating type.

    Returns:
        {"layer_0": {"B": (D, r), "A": (r, J, D), "b": (J, D)}, …}, the `params` of a `CoDANet` with the same layers,
        of the same type (float64 is kept under `jax.enable_x64` only).

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
    count = len({match[1] for match in map(_NAME.fullmatch, map(_plain, state_dict)) if match})
    parts = (PROJECTION, GENERATOR, BIAS)
    arrays = _arrays("a CoDA net", state_dict, [f"{i}.{part}" for i in range(max(count, 1)) for part in parts])
    params, channels = {}, None
    for i in range(count):
        params[f"layer_{i}"], channels = _layer(i, [arrays[f"{i}.{part}"] for part in parts], channels)
    return params


def _plain(name: str) -> str:
    """Return a parameter's name without the prefixes that wrappers leave."""
    return re.sub(r"^(?:module\.|model\.)*", "", name)


def _arrays(kind: str, state_dict: Mapping[str, Any], names: list[str]) -> dict[str, np.ndarray]:
    """Return arrays by plain names, which must be those of a kind of network, once each."""
    arrays = {_plain(name): np.asarray(value) for name, value in state_dict.items()}
    seen = Counter(map(_plain, state_dict))
    wrong = {
        "unknown": [name for name in state_dict if _plain(name) not in names],
        "missing": [name for name in names if name not in arrays],
        "given twice": [name for name in state_dict if seen[_plain(name)] > 1],
    }
    problems = [
        f"{problem} {', '.join(some[:5])}" + (f" and {len(some) - 5} more" if len(some) > 5 else "")
        for problem, some in wrong.items()
        if some
    ]
    require(not problems, "state_dict", "; ".join(problems), f"the parameters of {kind}")
    return arrays


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
    """Read a checkpoint of the authors and convert it; only tensors are read, nothing in the file is executed.

    Args:
        path: a file written by `torch.save`, holding a state dict or a dict with one under "state_dict".

    Returns:
        As `from_torch`.

    Raises:
        ConfigError: PyTorch is not installed, or the names or shapes are not a CoDA net's.
        CheckpointError: the file is not there or cannot be read as tensors.
    """
    try:
        import torch
    except ImportError:
        raise ConfigError("a PyTorch checkpoint needs torch: pip install 'jaxinterp[bench]'") from None
    if not Path(path).is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of a damaged or foreign file: RuntimeError, EOFError, UnpicklingError, …
        raise CheckpointError(f"{path}: not a PyTorch checkpoint of tensors ({type(error).__name__})") from None
    state_dict = content.get("state_dict", content) if isinstance(content, dict) else None
    if state_dict is None or not all(isinstance(value, torch.Tensor) for value in state_dict.values()):
        raise CheckpointError(f"{path}: expected a dict of tensors, or one under 'state_dict'")
    return from_torch(state_dict)


def coded_block_from_torch(state_dict: Mapping[str, Any], paths: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Convert the authors' parameters of one block of a coded ResNeXt; PyTorch is not needed.

    Args:
        state_dict: `conv_reduce.weight` (N·d, C_in, 1, 1), `conv_internal.weight` (N·d, d, 3, 3), `conv_expand.weight`
            (N·C, d, 1, 1) of a coded block or (C, N·d, 1, 1) of an ordinary one, the BatchNorms `bn_reduce`,
            `bn_internal`, `bn_expand`, and where there is a projection `skip_connection.conv_skip` and `.bn_skip`.
        paths: N.

    Returns:
        The `params` and `batch_stats` of a `CodedBlock`.

    Source: parameter names and layouts of the authors' release (github.com/avranasa/Coded-ResNeXt).
    """
    norms = {"norm_reduce": "bn_reduce", "norm_inner": "bn_internal", "norm_expand": "bn_expand"}
    try:
        reduce, inner, expand = (np.asarray(state_dict[f"conv_{n}.weight"]) for n in ("reduce", "internal", "expand"))
        features = len(np.asarray(state_dict["bn_expand.weight"]))
        fits = inner.shape[1] * paths == len(inner)
        require(fits, "conv_internal.weight", f"shape {inner.shape}", f"({paths}·d, d, 3, 3)")
        coded = len(expand) != features
        fits = len(expand) == paths * features if coded else expand.shape[1] % paths == 0
        require(fits, "conv_expand.weight", f"shape {expand.shape}", f"one that fits {paths} paths")
        per_path = expand.reshape(paths, features, -1) if coded else expand.reshape(features, paths, -1).swapaxes(0, 1)
        params: dict[str, Any] = {
            "reduce": {"kernel": reduce[:, :, 0, 0].T},
            "inner_kernel": inner.transpose(2, 3, 1, 0),
            "expand_kernel": per_path.swapaxes(1, 2),
        }
        if "skip_connection.conv_skip.weight" in state_dict:
            params["skip"] = {"kernel": np.asarray(state_dict["skip_connection.conv_skip.weight"])[:, :, 0, 0].T}
            norms["norm_skip"] = "skip_connection.bn_skip"
        stats: dict[str, Any] = {}
        for ours, theirs in norms.items():
            params[ours] = {"scale": state_dict[f"{theirs}.weight"], "bias": state_dict[f"{theirs}.bias"]}
            if f"{theirs}.running_mean" in state_dict:
                running = state_dict[f"{theirs}.running_mean"], state_dict[f"{theirs}.running_var"]
                stats[ours] = {"mean": running[0], "var": running[1]}
    except KeyError as error:
        raise ConfigError(f"state_dict: {error} is missing") from None
    return jax.tree.map(jnp.asarray, (params, stats))


def alexnet_from_torch(state_dict: Mapping[str, Any]) -> Params:
    """Convert the parameters of torchvision's AlexNet, of any widths; PyTorch is not needed.

    Filters (O, C, k, k) become (k, k, C, O) and matrices (O, I) become (I, O). The first dense layer reads a map that
    is flattened as (c, y, x) there and as (y, x, c) here. Stride and padding of the first convolution are not among
    the parameters.

    Args:
        state_dict: `features.0.weight`, …, `classifier.6.bias`, with or without the prefixes `module.` and `model.`,
            to arrays or tensors of any floating type.

    Returns:
        {"conv_0": {"kernel": (k, k, C, O), "bias": (O,)}, …}, the `params` of an `AlexNet` with the same classes,
        widths, kernel, hidden units and side; with `ties="first"` its gradients are PyTorch's too where the maxima of
        a pooling are equal.

    Source: names and layouts of torchvision/models/alexnet.py.
    """
    names = [f"{theirs}.{part}" for theirs in ALEXNET.values() for part in ("weight", "bias")]
    arrays = _arrays("an AlexNet", state_dict, names)
    first = arrays[f"{ALEXNET['conv_0']}.weight"].shape
    inputs, kernel = first[1:3] if len(first) == 4 else (3, 11)
    params: Params = {}
    for ours, theirs in ALEXNET.items():
        weight, bias = (arrays[f"{theirs}.{part}"] for part in ("weight", "bias"))
        outputs = inputs if ours == "dense_1" else (weight.shape or (1,))[0]
        side = max(1, math.isqrt(weight.size // max(1, outputs * inputs))) if ours == "dense_0" else 1
        filters = ours.startswith("conv")
        shape = (outputs, inputs, kernel, kernel) if filters else (outputs, inputs * side**2)
        for part, array, expected in (("weight", weight, shape), ("bias", bias, shape[:1])):
            require(array.shape == expected, f"{theirs}.{part}", f"shape {array.shape}", f"{expected}")
        if ours == "dense_0":
            weight = weight.reshape(outputs, inputs, side, side).transpose(0, 2, 3, 1).reshape(outputs, -1)
        turned = weight.transpose(2, 3, 1, 0) if filters else weight.T
        params[ours] = {"kernel": jnp.asarray(turned), "bias": jnp.asarray(bias)}
        inputs, kernel = outputs, 5 if ours == "conv_0" else 3
    return params
