"""Weights as one file of named arrays and texts, safetensors or npz: what is read is bounded before it is used.

No pickle, in or out. A network that claims more than its file holds is stopped while it is traced, at the first
parameter that is not there: nothing of a claimed size is ever built.
"""

import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile, ZipFile

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util
from flax.errors import FlaxError

from jaxinterp.checks import require, require_one_of
from jaxinterp.errors import CheckpointError, JaxInterpError
from jaxinterp.files import write_arrays, write_bytes

Arrays = dict[str, np.ndarray]

SUFFIXES = (".safetensors", ".npz")
FLOATS = ("float16", "bfloat16", "float32", "float64")
DAMAGE = (  # what reading foreign bytes, or building what they claim, may raise
    *(OSError, EOFError, ArithmeticError, LookupError, ValueError, TypeError, AttributeError, MemoryError),
    *(AssertionError, RecursionError, BadZipFile, NotImplementedError, zlib.error, FlaxError, JaxInterpError),
)
MAX_INFLATION, FREE_BYTES = 20, 64 << 20  # an npz may unpack to this many times its size, or to this many bytes


class Weights(NamedTuple):
    """What a file holds: arrays by name, and texts by name."""

    arrays: Arrays
    texts: dict[str, str]


def write_weights(path: str | Path, arrays: Mapping[str, Any], texts: Mapping[str, str]) -> None:
    """Write arrays and texts to one file, atomically.

    Args:
        path: the file, .safetensors or .npz; its folder is created.
        arrays: floating arrays by name; an npz holds no bfloat16.
        texts: by other names.
    """
    path, held = Path(path), {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    require_one_of("path", path.suffix, SUFFIXES)
    if path.suffix == ".npz":
        narrow = [name for name, array in held.items() if array.dtype.name == "bfloat16"]
        wanted = "float16, float32 or float64 in an npz"
        require(not narrow, "variables", f"{narrow[:1]} of bfloat16", wanted)
        write_arrays(path, {**{name: np.array(text) for name, text in texts.items()}, **held})
    else:
        from safetensors.numpy import save

        write_bytes(path, save(held, dict(texts)))


def read_weights(path: str | Path, kind: str = "a file of weights") -> Weights:
    """Read a file of arrays and texts.

    Args:
        path: the file, .npz, or safetensors whatever its name.
        kind: what it should be, for the error.

    Raises:
        CheckpointError: it is missing, damaged, of another format, or claims more than it holds; in one line.
    """
    path = Path(path)
    try:
        return _read_npz(path) if path.suffix == ".npz" else _read_safetensors(path)
    except DAMAGE as error:
        raise CheckpointError(f"{path}: expected {kind}, got {one_line(error)}") from None


def _read_safetensors(path: Path) -> Weights:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
            return Weights(arrays, file.metadata() or {})
    except SafetensorError as error:
        raise ValueError(error) from None


def _read_npz(path: Path) -> Weights:
    limit = max(FREE_BYTES, MAX_INFLATION * path.stat().st_size)
    with ZipFile(path) as archive:
        size = sum(info.file_size for info in archive.infolist())
        if size > limit:
            raise ValueError(f"{size} bytes when unpacked, more than {limit}")
        for info in archive.infolist():
            with archive.open(info) as member:
                version = np.lib.format.read_magic(member)
                header = (
                    np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                )
                shape, _, dtype = header(member)
                claimed = int(np.prod([int(n) for n in shape], dtype=object)) * dtype.itemsize
                if claimed != info.file_size - member.tell():
                    raise ValueError(f"{info.filename} of shape {shape}, not of the size that it has")
    with np.load(path, allow_pickle=False) as content:
        held = dict(content)
    texts = {name: str(array) for name, array in held.items() if array.dtype.kind == "U" and array.ndim == 0}
    return Weights({name: array for name, array in held.items() if name not in texts}, texts)


def one_line(error: BaseException) -> str:
    """Return kind and beginning of an error's text, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def checksum(arrays: Mapping[str, np.ndarray]) -> str:
    """Return the SHA-256 of arrays: names, types, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(json.dumps([name, array.dtype.name, array.shape]).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def variable_shapes(network: nn.Module, image_shape: Sequence[int], dtype: Any = jnp.float32) -> Any:
    """Return the shapes and types of a network's variables; nothing is computed, not even a key.

    Args:
        network: whose `init` takes a key and images.
        image_shape: (height, width, channels).
        dtype: of the images.

    Example:
        >>> variable_shapes(nn.Conv(4, (3, 3)), (8, 8, 1))["params"]["kernel"].shape
        (3, 3, 1, 4)
    """
    image = jax.ShapeDtypeStruct((1, *image_shape), dtype)
    return jax.eval_shape(network.init, jax.eval_shape(jax.random.key, 0), image)


def flat(variables: Mapping[str, Any]) -> Arrays:
    """Return a network's variables by their paths, such as "params/stem/kernel"."""
    return {name: np.asarray(leaf) for name, leaf in traverse_util.flatten_dict(dict(variables), sep="/").items()}


def fault(arrays: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Say how arrays differ from what they should be: names, shapes, floating types, finite; empty where they fit."""
    for name in sorted({*shapes, *arrays}):
        if name not in arrays or arrays[name].shape != shapes.get(name):
            return f"{name} is missing, foreign or of another shape than the network's"
        array = arrays[name]
        if array.dtype.name not in FLOATS:
            return f"{name} is {array.dtype}, expected {', '.join(FLOATS)}"
        if not np.isfinite(array).all():
            return f"{name} holds NaN or infinite values"
    return ""


def variables_of(network: nn.Module, image_shape: tuple[int, ...], arrays: Mapping[str, np.ndarray]) -> Any:
    """Return arrays as the variables of a network, float32 or wider, if they are that.

    Args:
        network: which may claim any sizes: it is traced with the arrays' shapes first, and stops where they end.
        image_shape: of one image, (H, W, C).
        arrays: by path, such as "params/stem/kernel".

    Raises:
        CheckpointError: they are not the network's, not floating, or not finite; the line names the first.
    """
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    given = {name: jax.ShapeDtypeStruct(array.shape, jnp.float32) for name, array in arrays.items()}
    try:
        jax.eval_shape(network.apply, traverse_util.unflatten_dict(given, sep="/"), image)
        built = variable_shapes(network, image_shape)
    except DAMAGE as error:
        raise CheckpointError(f"the arrays are not the network's ({one_line(error)})") from None
    shapes = {name: leaf.shape for name, leaf in traverse_util.flatten_dict(dict(built), sep="/").items()}
    if found := fault(arrays, shapes):
        raise CheckpointError(found)
    wide = {name: jnp.asarray(array, np.promote_types(array.dtype, np.float32)) for name, array in arrays.items()}
    return traverse_util.unflatten_dict(wide, sep="/")
