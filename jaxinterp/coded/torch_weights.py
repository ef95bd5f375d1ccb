"""Weights of the authors' Coded ResNeXts in PyTorch, whole, from and to `CodedResNeXt`, and of single blocks.

Their network is a list of modules, `net_list.<place>`: the stem's convolution (0) and BatchNorm (1), then after a ReLU,
and a pooling on ImageNet, the blocks, then pooling and the classifier, a matrix without bias. A block holds its code as
the buffer `Mask_perClass`, (classes, paths), all true in an ordinary block.

Source: parameter names and layouts of the authors' release (github.com/avranasa/Coded-ResNeXt).
"""

import re
from collections.abc import Mapping
from itertools import groupby
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Bool

from jaxinterp.checks import require
from jaxinterp.coded.codes import Code
from jaxinterp.coded.network import CodedResNeXt, Stage
from jaxinterp.nn.torch_weights.state_dict import (
    COUNTER,
    as_array,
    plain,
    require_names,
    require_none,
    require_once,
    shape_of,
)
from jaxinterp.nn.weights import Arrays, variable_shapes

KIND = "a coded ResNeXt"
MASK = "Mask_perClass"
NORMS = {"norm_reduce": "bn_reduce", "norm_inner": "bn_internal", "norm_expand": "bn_expand"}
SKIP = {"norm_skip": "skip_connection.bn_skip"}
CONVOLUTIONS = ("conv_reduce", "conv_internal", "conv_expand")
NORM = ("weight", "bias", "running_mean", "running_var")
CONV_SKIP = "skip_connection.conv_skip"


def is_coded(state_dict: Mapping[str, Any]) -> bool:
    """Whether the names are those of a whole coded ResNeXt."""
    return any(re.fullmatch(r"net_list\.\d+\.conv_internal\.weight", plain(name)) for name in state_dict)


def from_torch(state_dict: Mapping[str, Any], **fields: Any) -> tuple[CodedResNeXt, dict[str, Any]]:
    """Convert the authors' whole network; PyTorch is not needed.

    Shapes tell widths, paths and classes, the buffers the codes. As in all of the authors' networks, stages but the
    first begin with a step of 2 pixels, and a stem of 7×7 pixels has a step of 2 and a pooling.

    Args:
        state_dict: names, with or without the prefixes `module.` and `model.`, to arrays or tensors.
        **fields: further attributes of the network, such as `mean` and `std` of its images.

    Returns:
        The network, and its variables, of float32 (float64 is kept under `jax.enable_x64`).

    Raises:
        ConfigError: names are unknown, missing or given twice, or arrays do not fit one another.
    """
    require_once(state_dict)
    named = {plain(name): value for name, value in state_dict.items() if not name.endswith(COUNTER)}
    masks = {name: _mask(name, named.pop(name)) for name in list(named) if name.endswith(f".{MASK}")}
    arrays = {name: as_array(name, value) for name, value in named.items()}
    blocks = sorted({int(name.split(".")[1]) for name in arrays if re.match(r"net_list\.\d+\.conv_internal", name)})
    last = max((int(match[1]) for name in arrays if (match := re.match(r"net_list\.(\d+)\.weight$", name))), default=0)
    stem, head = "net_list.0.weight", f"net_list.{last}.weight"
    require_names(KIND, arrays, _names(arrays, blocks, (stem, head)))
    features, _, side, _ = shape_of(arrays, stem, 4)
    require(features == 64 and side in (3, 7), stem, f"shape {arrays[stem].shape}", "(64, C, 3, 3) or (64, C, 7, 7)")
    params: dict[str, Any] = {
        "stem": {"kernel": arrays[stem].transpose(2, 3, 1, 0)},
        "classifier": {"kernel": arrays[head].T},
    }
    stats: dict[str, Any] = {}
    weight, bias, mean, var = (arrays[f"net_list.1.{part}"] for part in NORM)
    params["norm_stem"], stats["norm_stem"] = {"scale": weight, "bias": bias}, {"mean": mean, "var": var}
    rows = []
    for number, place in enumerate(blocks, 1):
        own = {n.removeprefix(f"net_list.{place}."): a for n, a in arrays.items() if n.startswith(f"net_list.{place}.")}
        code = f"net_list.{place}.{MASK}"
        require(code in masks, "state_dict", f"missing {code}", "the code of every block")
        rows.append(_row(f"net_list.{place}", own, masks[code]))
        params[f"block_{number}"], stats[f"block_{number}"] = block_from_torch(own, rows[-1][2])
    stages = [Stage(len(list(run)), *row[:3], 2 if i else 1, row[3]) for i, (row, run) in enumerate(groupby(rows))]
    made: dict[str, Any] = {
        "stages": tuple(stages),
        "classes": shape_of(arrays, head, 2)[0],
        "stem": (side, 1 if side == 3 else 2),
    }
    network = CodedResNeXt(**made | fields)
    variables = jax.tree.map(jnp.asarray, {"params": params, "batch_stats": stats})
    _require_shapes(network, variables, arrays[stem].shape[1])
    return network, variables


def to_torch(network: CodedResNeXt, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Convert a whole network to the authors' names and layouts, the inverse of `from_torch`.

    Returns:
        Names to arrays, with the codes as buffers and BatchNorm's counters, which are 0.
    """
    pooled = network.pool or network.stem[1] == 1
    require(pooled, "network", f"pool=False with a stride of {network.stem[1]}", "a pooling, as the authors' have")
    params, stats = (jax.tree.map(np.asarray, dict(variables[kind])) for kind in ("params", "batch_stats"))
    state_dict: dict[str, np.ndarray] = {"net_list.0.weight": params["stem"]["kernel"].transpose(3, 2, 0, 1)}

    def norm(theirs: str, own: Mapping[str, np.ndarray], running: Mapping[str, np.ndarray]) -> None:
        parts = {"weight": own["scale"], "bias": own["bias"], "running_mean": running["mean"]}
        parts |= {"running_var": running["var"], COUNTER: np.zeros((), np.int64)}
        state_dict.update({f"{theirs}.{part}": array for part, array in parts.items()})

    norm("net_list.1", params["norm_stem"], stats["norm_stem"])
    first = 3 if network.stem[1] == 1 else 4
    for i, (stage, _) in enumerate(network.blocks):
        prefix, own, running = f"net_list.{first + i}", params[f"block_{i + 1}"], stats[f"block_{i + 1}"]
        ones = np.ones((network.classes, stage.paths), np.uint8)
        state_dict[f"{prefix}.{MASK}"] = (ones if stage.code is None else stage.code.table).astype(bool)
        expand = own["expand_kernel"].swapaxes(1, 2)
        per_path = expand.reshape(-1, stage.width) if stage.code else expand.swapaxes(0, 1).reshape(stage.features, -1)
        kernels = own["reduce"]["kernel"].T[..., None, None], own["inner_kernel"].transpose(3, 2, 0, 1)
        for name, kernel in zip(CONVOLUTIONS, (*kernels, per_path[..., None, None]), strict=True):
            state_dict[f"{prefix}.{name}.weight"] = kernel
        for ours, theirs in (NORMS | (SKIP if "skip" in own else {})).items():
            norm(f"{prefix}.{theirs}", own[ours], running[ours])
        if "skip" in own:
            state_dict[f"{prefix}.{CONV_SKIP}.weight"] = own["skip"]["kernel"].T[..., None, None]
    last = first + len(network.blocks) + (2 if network.stem[1] == 1 else 1)  # pooling, and flattening on CIFAR
    state_dict[f"net_list.{last}.weight"] = params["classifier"]["kernel"].T
    return {name: np.array(array, order="C") for name, array in state_dict.items()}


def block_from_torch(state_dict: Mapping[str, Any], paths: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Convert the authors' parameters of one block; PyTorch is not needed.

    Args:
        state_dict: `conv_reduce.weight` (N·d, C_in, 1, 1), `conv_internal.weight` (N·d, d, 3, 3), `conv_expand.weight`
            (N·C, d, 1, 1) of a coded block or (C, N·d, 1, 1) of an ordinary one, the BatchNorms `bn_reduce`,
            `bn_internal`, `bn_expand`, and where there is a projection `skip_connection.conv_skip` and `.bn_skip`.
        paths: N.

    Returns:
        The `params` and `batch_stats` of a `CodedBlock`.
    """
    kept = {name: value for name, value in state_dict.items() if not name.endswith((COUNTER, MASK))}
    arrays = {name: as_array(name, value) for name, value in kept.items()}
    names = [f"{conv}.weight" for conv in CONVOLUTIONS] + [
        f"{n}.{p}" for n in NORMS.values() for p in ("weight", "bias")
    ]
    require_none("a coded block", {"missing": [name for name in names if name not in arrays]})
    reduce, inner, expand = (arrays[f"{conv}.weight"] for conv in CONVOLUTIONS)
    features = len(arrays["bn_expand.weight"])
    fits = inner.ndim == 4 and inner.shape[1] * paths == len(inner)
    require(fits, "conv_internal.weight", f"shape {inner.shape}", f"({paths}·d, d, 3, 3)")
    coded = len(expand) != features
    fits = expand.ndim == 4 and (len(expand) == paths * features if coded else expand.shape[1] % paths == 0)
    require(fits, "conv_expand.weight", f"shape {expand.shape}", f"one that fits {paths} paths")
    per_path = expand.reshape(paths, features, -1) if coded else expand.reshape(features, paths, -1).swapaxes(0, 1)
    params: dict[str, Any] = {
        "reduce": {"kernel": reduce[:, :, 0, 0].T},
        "inner_kernel": inner.transpose(2, 3, 1, 0),
        "expand_kernel": per_path.swapaxes(1, 2),
    }
    projected = f"{CONV_SKIP}.weight" in arrays
    if projected:
        params["skip"] = {"kernel": arrays[f"{CONV_SKIP}.weight"][:, :, 0, 0].T}
    stats: dict[str, Any] = {}
    for ours, theirs in (NORMS | (SKIP if projected else {})).items():
        params[ours] = {"scale": arrays[f"{theirs}.weight"], "bias": arrays[f"{theirs}.bias"]}
        if f"{theirs}.running_mean" in arrays:  # of gradients there are none
            stats[ours] = {"mean": arrays[f"{theirs}.running_mean"], "var": arrays[f"{theirs}.running_var"]}
    params, stats = jax.tree.map(jnp.asarray, (params, stats))
    return params, stats


def _mask(name: str, value: Any) -> Bool[np.ndarray, "classes paths"]:
    """Return a buffer of the code as an array."""
    mask = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
    fits = mask.ndim == 2 and mask.dtype == bool and mask.size and mask.any()
    require(fits, name, f"{mask.dtype}{mask.shape}", "bool (classes, paths), not all of them false")
    return mask


def _names(arrays: Arrays, blocks: list[int], matrices: tuple[str, ...]) -> list[str]:
    """Return the names that a network with blocks at these places has."""

    def norm(name: str) -> list[str]:
        return [f"{name}.{part}" for part in NORM]

    found = [*matrices, *norm("net_list.1")]
    for place in blocks:
        prefix = f"net_list.{place}"
        norms = [*NORMS.values()]
        if any(name.startswith(f"{prefix}.skip_connection.") for name in arrays):
            norms += SKIP.values()
            found.append(f"{prefix}.{CONV_SKIP}.weight")
        found += [f"{prefix}.{conv}.weight" for conv in CONVOLUTIONS]
        found += [name for one in norms for name in norm(f"{prefix}.{one}")]
    return found


def _row(prefix: str, arrays: Arrays, mask: Bool[np.ndarray, "classes paths"]) -> tuple[int, int, int, Code | None]:
    """Return a block's output channels, width of a path, paths, and code."""
    _, width, _, _ = shape_of({f"{prefix}.{n}": a for n, a in arrays.items()}, f"{prefix}.conv_internal.weight", 4)
    code = None if mask.all() else Code.of(mask.astype(int))
    return len(arrays["bn_expand.weight"]), width, mask.shape[1], code


def _require_shapes(network: CodedResNeXt, variables: Mapping[str, Any], channels: int) -> None:
    """Raise ConfigError unless variables have the shapes of a network's; the line names the first."""
    built = traverse_util.flatten_dict(dict(variable_shapes(network, (64, 64, channels))), sep="/")
    found = traverse_util.flatten_dict(dict(variables), sep="/")
    for name in sorted({*built, *found}):
        got = f"shape {found[name].shape}" if name in found else "nothing"
        fits = name in built and name in found and built[name].shape == found[name].shape
        require(fits, name, got, str(built[name].shape) if name in built else "no such array")
