"""A coded network as one file: its description and its variables, readable without the run that made it."""

import json
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import traverse_util

from jaxinterp.checks import require
from jaxinterp.coded.codes import Code
from jaxinterp.coded.network import CodedResNeXt, Stage
from jaxinterp.errors import CheckpointError
from jaxinterp.nn.weights import DAMAGE, Arrays, fault, flat, read_weights, variable_shapes, write_weights

DESCRIPTION = "description"
FIELDS = ("classes", "stem", "pool", "mean", "std")  # of the network, described beside its stages


def export_network(path: str | Path, model: CodedResNeXt, variables: Any) -> None:
    """Write a network, whole or cut down to one class, to one file.

    Args:
        path: the file, .npz or .safetensors; its folder is created.
        model: the network.
        variables: its variables, finite and floating.
    """
    fields = {"stages": [asdict(stage) for stage in model.stages], **{name: getattr(model, name) for name in FIELDS}}
    arrays = flat(variables)
    found = _fault(model, arrays)
    require(not found, "variables", found, "those of the model")
    write_weights(path, arrays, {DESCRIPTION: json.dumps(fields)})


def load_network(path: str | Path) -> tuple[CodedResNeXt, Any]:
    """Load the network and the variables that `export_network` wrote; the network computes in its input's type.

    Raises:
        CheckpointError: the file is missing, damaged (each array has a checksum), or its arrays are not the network's.
    """
    arrays, texts = read_weights(path, "a coded network's file")
    try:
        fields = {"pool": True, **json.loads(texts[DESCRIPTION])}  # which older files do not name
        stages = tuple(
            Stage(**{**stage, "code": stage["code"] and Code(**_with_tuples(stage["code"]))})
            for stage in fields["stages"]
        )
        network = CodedResNeXt(stages=stages, **_with_tuples({name: fields[name] for name in FIELDS}))
        found = _fault(network, arrays)
    except DAMAGE as error:
        raise CheckpointError(f"{path}: expected a coded network's file, got {error!r}") from None
    if found:
        raise CheckpointError(f"{path}: {found}")
    leaves = {name: jnp.asarray(array) for name, array in arrays.items()}
    return network, traverse_util.unflatten_dict(leaves, sep="/")


def _fault(network: CodedResNeXt, arrays: Arrays) -> str:
    """Say how arrays differ from a network's variables; empty where they fit."""
    stem = arrays.get("params/stem/kernel")
    if stem is None or stem.ndim != 4:
        return "params/stem/kernel is missing, or not of four axes"
    blocks = sum(stage.blocks for stage in network.stages)
    if blocks > len(arrays):
        return f"{blocks} blocks do not fit {len(arrays)} arrays"
    sizes = {  # which a description may claim in vain: compared before a network of such sizes is traced
        "params/stem/kernel": (network.stem[0], network.stem[0], stem.shape[2], 64),
        "params/classifier/kernel": (network.stages[-1].features, network.classes),
    }
    for i, (stage, _) in enumerate(network.blocks, 1):
        sizes[f"params/block_{i}/expand_kernel"] = stage.present, stage.width, stage.features
    for name, shape in sizes.items():
        if name not in arrays or arrays[name].shape != shape:
            return f"{name} is missing, foreign or of another shape than the network's"
    return fault(arrays, _shapes(network, stem.shape[2]))


@cache
def _shapes(network: CodedResNeXt, channels: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a network's variables; the classifiers of all classes are one network, traced once."""
    side = 32 * network.stem[1]
    variables = traverse_util.flatten_dict(dict(variable_shapes(network, (side, side, channels))), sep="/")
    return {name: leaf.shape for name, leaf in variables.items()}


def _with_tuples(fields: dict[str, Any]) -> dict[str, Any]:
    """Return fields read from JSON, which knows no tuples, with tuples in place of lists."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
