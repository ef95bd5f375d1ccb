"""State dicts of PyTorch: read from files, their names checked, their layouts turned into Flax's and back.

Filters (O, C, k, k) are (k, k, C, O) here and matrices (O, I) are (I, O). A dense layer that reads a map of side × side
pixels has them in the order (c, y, x) there and (y, x, c) here.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

from jaxinterp.checks import require, require_finite
from jaxinterp.errors import CheckpointError, ConfigError
from jaxinterp.nn.weights import Arrays, one_line, read_weights, variable_shapes

LEAVES = {"kernel": "weight", "bias": "bias", "scale": "weight", "mean": "running_mean", "var": "running_var"}
COUNTER = "num_batches_tracked"
WRAPPERS = ("state_dict", "model_state_dict", "model", "net")  # keys of checkpoints that hold a state dict
SIDE = 224  # pixels of the images for which networks are traced; shapes of parameters do not depend on it


def _same(arrays: Arrays) -> Arrays:
    return arrays


def _no_sides(network: Any) -> dict[str, int]:
    return {}


@dataclass(frozen=True)
class Architecture:
    """How a family of networks is told by its names, built from its shapes, and named in PyTorch.

    Attributes:
        title: in words, for errors.
        kind: the class of our networks.
        recognizes: whether names, with their arrays, are of this family.
        network: (arrays, further fields) ↦ our network.
        names: network ↦ the paths of our layers, such as "block_0/conv_1/norm", to the names of theirs.
        sides: network ↦ our dense layers that read a map, to its height and width.
        pools: whether our network has the field `ties`.
        before: names and layouts of theirs ↦ those that have a counterpart here.
        after: the inverse.
    """

    title: str
    kind: Any
    recognizes: Callable[[Arrays], bool]
    network: Callable[[Arrays, dict[str, Any]], nn.Module]
    names: Callable[[Any], Mapping[str, str]]
    sides: Callable[[Any], Mapping[str, int]] = _no_sides
    pools: bool = True
    before: Callable[[Arrays], Arrays] = _same
    after: Callable[[Arrays], Arrays] = _same


def plain(name: str) -> str:
    """Return a parameter's name without the prefixes that wrappers leave.

    Example:
        >>> plain("module.model.layer1.0.conv1.weight")
        'layer1.0.conv1.weight'
    """
    return re.sub(r"^(?:module\.|model\.|_orig_mod\.)*", "", name)


def as_array(name: str, value: Any) -> np.ndarray:
    """Return an array or a tensor of any floating type as float32, or as float64 if it is that."""
    if hasattr(value, "detach"):  # NumPy has no bfloat16 of PyTorch's
        value = value.detach().cpu()
        value = value.float() if value.is_floating_point() and value.itemsize < 4 else value
        value = value.numpy()
    array = np.asarray(value)
    require(jnp.issubdtype(array.dtype, jnp.floating), name, array.dtype, "a floating type")
    require_finite(name, array := array.astype(np.float64 if array.dtype == np.float64 else np.float32))
    return array


def plain_arrays(state_dict: Mapping[str, Any]) -> Arrays:
    """Return floating arrays by plain names, each given once; BatchNorm's counters are left out."""
    require_once(state_dict)
    kept = {name: value for name, value in state_dict.items() if not name.endswith(COUNTER)}
    return {plain(name): as_array(name, value) for name, value in kept.items()}


def require_once(state_dict: Mapping[str, Any]) -> None:
    """Raise ConfigError for names that are the same without the prefixes of wrappers."""
    seen = Counter(map(plain, state_dict))
    require_none("one network", {"given twice": [name for name in state_dict if seen[plain(name)] > 1]})


def named_arrays(kind: str, state_dict: Mapping[str, Any], names: Iterable[str]) -> Arrays:
    """Return arrays by plain names, which must be those of a kind of network, once each."""
    arrays, wanted = plain_arrays(state_dict), list(names)
    require_names(kind, arrays, wanted)
    return arrays


def require_names(kind: str, arrays: Mapping[str, Any], names: Iterable[str]) -> None:
    """Raise ConfigError for names that are unknown or missing."""
    wanted = list(names)
    known = set(wanted)
    missing = [name for name in wanted if name not in arrays]
    require_none(kind, {"unknown": [name for name in arrays if name not in known], "missing": missing})


def require_none(kind: str, wrong: Mapping[str, list[str]]) -> None:
    """Raise ConfigError in one line for names that are wrong, by what is wrong with them."""
    problems = [
        f"{problem} {', '.join(some[:5])}" + (f" and {len(some) - 5} more" if len(some) > 5 else "")
        for problem, some in wrong.items()
        if some
    ]
    require(not problems, "state_dict", "; ".join(problems), f"the parameters of {kind}")


def shape_of(arrays: Arrays, name: str, axes: int) -> tuple[int, ...]:
    """Return the shape of an array that must be there, with this many axes."""
    require(name in arrays, "state_dict", f"missing {name}", "it")
    shape = arrays[name].shape
    require(len(shape) == axes and all(shape), name, f"shape {shape}", f"{axes} axes, none of them empty")
    return shape


def converted(of: Architecture, network: nn.Module, arrays: Arrays) -> dict[str, Any]:
    """Return our network's variables, of arrays by their names; raise ConfigError for what does not fit."""
    paths, sides = _paths(of, network), of.sides(network)
    arrays = of.before(arrays)
    channels = next((a.shape[1] for a in arrays.values() if a.ndim == 4), 3)
    shapes = _shapes(network, channels)
    theirs = {path: name for path, name in paths.items() if path in shapes}
    require_names(of.title, arrays, theirs.values())
    found = {}
    for path, name in theirs.items():
        expected = _turned_shape(shapes[path])
        require(arrays[name].shape == expected, name, f"shape {arrays[name].shape}", str(expected))
        found[path] = jnp.asarray(_to_ours(arrays[name], sides.get(_module(path), 1)))
    variables: dict[str, Any] = traverse_util.unflatten_dict(found, sep="/")
    return variables


def written(of: Architecture, network: nn.Module, variables: Mapping[str, Any]) -> Arrays:
    """Return our variables under their names, in their layouts."""
    paths, sides = _paths(of, network), of.sides(network)
    leaves = traverse_util.flatten_dict(dict(variables), sep="/")
    foreign = [path for path in leaves if path not in paths]
    require(not foreign, "variables", ", ".join(foreign[:5]), f"those of a {type(network).__name__}")
    state_dict = {}
    for path, name in paths.items():
        if path in leaves:
            state_dict[name] = _to_theirs(as_array(path, leaves[path]), sides.get(_module(path), 1))
    for name in [name for name in state_dict if name.endswith(".running_mean")]:
        state_dict[name.replace("running_mean", COUNTER)] = np.zeros((), np.int64)
    return of.after(state_dict)


def _paths(of: Architecture, network: nn.Module) -> dict[str, str]:
    """Return every path that a variable of our layers may have, to its name there."""
    return {
        f"{'batch_stats' if leaf in ('mean', 'var') else 'params'}/{path}/{leaf}": f"{name}.{part}"
        for path, name in of.names(network).items()
        for leaf, part in LEAVES.items()
    }


def _module(path: str) -> str:
    return path.partition("/")[2].rpartition("/")[0]


def _shapes(network: nn.Module, channels: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of our variables by their paths."""
    built = traverse_util.flatten_dict(dict(variable_shapes(network, (SIDE, SIDE, channels))), sep="/")
    return {path: leaf.shape for path, leaf in built.items()}


def _turned_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape[::-1]


def _to_theirs(array: np.ndarray, side: int) -> np.ndarray:
    """Return an array of ours in their layout; of a dense layer on a map, `side` is the map's."""
    if array.ndim == 4:
        array = array.transpose(3, 2, 0, 1)
    elif array.ndim == 2:
        array = array.reshape(side, side, -1, array.shape[1]).transpose(3, 2, 0, 1).reshape(array.shape[1], -1)
    return np.array(array, order="C")


def _to_ours(array: np.ndarray, side: int) -> np.ndarray:
    """Return an array of theirs in our layout."""
    if array.ndim == 4:
        return array.transpose(2, 3, 1, 0)
    if array.ndim == 2:
        return array.reshape(len(array), -1, side, side).transpose(2, 3, 1, 0).reshape(-1, len(array))
    return array


def read_state_dict(path: str | PathLike[str]) -> dict[str, Any]:
    """Read the state dict of a file: of tensors that `torch.save` wrote, or safetensors, for which no torch is needed.

    Only tensors are read, nothing in the file is executed.

    Args:
        path: a .safetensors file, or one written by `torch.save`, holding a state dict or a dict with one under
            "state_dict", "model_state_dict", "model" or "net".

    Returns:
        Names to arrays or tensors.

    Raises:
        ConfigError: PyTorch is needed and is not installed.
        CheckpointError: the file is not there or cannot be read as tensors.
    """
    if Path(path).suffix == ".safetensors":
        return dict(read_weights(Path(path), "a state dict").arrays)
    try:
        import torch
    except ImportError:
        wanted = "torch to read it (pip install torch), or safetensors"
        raise ConfigError(f"{path}: got a PyTorch checkpoint, expected {wanted}") from None
    if not Path(path).is_file():
        raise CheckpointError(f"{path}: got no such file, expected a checkpoint")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of a damaged or foreign file: RuntimeError, EOFError, UnpicklingError, …
        raise CheckpointError(f"{path}: got {one_line(error)}, expected a PyTorch checkpoint of tensors") from None
    held = content if isinstance(content, dict) else {}
    state_dict = next((held[key] for key in WRAPPERS if isinstance(held.get(key), dict)), held)
    if not state_dict or not all(isinstance(value, torch.Tensor) for value in state_dict.values()):
        wrappers = ", ".join(map(repr, WRAPPERS))
        got = f"a {type(content).__name__} of other things"
        raise CheckpointError(f"{path}: got {got}, expected a dict of tensors, or one under {wrappers}")
    return dict(state_dict)
