"""A coded network as one file: its description and its variables, readable without the run that made it."""

import json
import zlib
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jaxinterp.checks import require
from jaxinterp.coded.codes import Code
from jaxinterp.coded.network import CodedResNeXt, Stage
from jaxinterp.errors import CheckpointError
from jaxinterp.files import write_arrays

DESCRIPTION = "description"
FIELDS = ("classes", "stem", "mean", "std")  # of the network, described beside its stages
DAMAGE = (OSError, EOFError, ArithmeticError, LookupError, ValueError, TypeError, MemoryError, BadZipFile, zlib.error)


def export_network(path: str | Path, model: CodedResNeXt, variables: Any) -> None:
    """Write a network, whole or cut down to one class, to one .npz file.

    Args:
        path: the file, .npz; its folder is created.
        model: the network.
        variables: its variables, finite, of float16, float32 or float64.
    """
    fields = {"stages": [asdict(stage) for stage in model.stages], **{name: getattr(model, name) for name in FIELDS}}
    leaves = traverse_util.flatten_dict(dict(variables), sep="/")
    arrays = {name: np.asarray(leaf) for name, leaf in leaves.items()}
    fault = _fault(model, arrays)
    require(not fault, "variables", fault, "those of the model")
    write_arrays(Path(path), {DESCRIPTION: np.array(json.dumps(fields)), **arrays})


def load_network(path: str | Path) -> tuple[CodedResNeXt, Any]:
    """Load the network and the variables that `export_network` wrote; the network computes in its input's type.

    Raises:
        CheckpointError: the file is missing, damaged (each array has a checksum), or its arrays are not the network's.
    """
    try:
        with Path(path).open("rb") as file, np.load(file) as content:
            arrays = dict(content)
        fields = json.loads(str(arrays.pop(DESCRIPTION)))
        stages = tuple(
            Stage(**{**stage, "code": stage["code"] and Code(**_with_tuples(stage["code"]))})
            for stage in fields["stages"]
        )
        network = CodedResNeXt(stages=stages, **_with_tuples({name: fields[name] for name in FIELDS}))
        fault = _fault(network, arrays)
    except DAMAGE as error:
        raise CheckpointError(f"{path}: expected a coded network's file, got {error!r}") from None
    if fault:
        raise CheckpointError(f"{path}: {fault}")
    leaves = {name: jnp.asarray(array) for name, array in arrays.items()}
    return network, traverse_util.unflatten_dict(leaves, sep="/")


def _fault(network: CodedResNeXt, arrays: dict[str, np.ndarray]) -> str:
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
    fits = all(name in arrays and arrays[name].shape == shape for name, shape in sizes.items())
    expected = _shapes(network, stem.shape[2]) if fits else sizes
    for name in sorted({*expected, *arrays} if fits else sizes):
        if name not in arrays or arrays[name].shape != expected.get(name):
            return f"{name} is missing, foreign or of another shape than the network's"
        if arrays[name].dtype not in (np.float16, np.float32, np.float64):
            return f"{name} is {arrays[name].dtype}, expected float16, float32 or float64"
        if not np.isfinite(arrays[name]).all():
            return f"{name} holds NaN or infinite values"
    return ""


@cache
def _shapes(network: CodedResNeXt, channels: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a network's variables; the classifiers of all classes are one network, traced once."""
    side = 32 * network.stem[1]
    image = jax.ShapeDtypeStruct((1, side, side, channels), jnp.float32)
    variables = traverse_util.flatten_dict(dict(jax.eval_shape(network.init, jax.random.key(0), image)), sep="/")
    return {name: leaf.shape for name, leaf in variables.items()}


def _with_tuples(fields: dict[str, Any]) -> dict[str, Any]:
    """Return fields read from JSON, which knows no tuples, with tuples in place of lists."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
