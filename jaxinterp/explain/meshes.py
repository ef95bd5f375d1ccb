"""Arrays on meshes: replicated over one, and computed on explicit axes as on automatic ones."""

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, auto_axes

from jaxinterp.checks import require

P = ParamSpec("P")
R = TypeVar("R")


def on_automatic_axes(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function of arrays run on meshes whose axes are explicit; on all others it runs as it is.

    Explicit axes (`jax.make_mesh`'s default) make a sharding part of an array's type, which indexing, padding and
    tiling of a batch would each have to name. Known arrays are moved to a mesh of the same devices with automatic
    axes, and arrays of the result that are spread over it back. Under the caller's own `jit` the axes are automatic
    within, and the result is on every device.
    """

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        leaves = jax.tree.leaves((args, kwargs))
        mesh = next(filter(None, map(_explicit, leaves)), None)
        if mesh is None:
            return function(*args, **kwargs)
        if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
            with jax.sharding.use_abstract_mesh(getattr(mesh, "abstract_mesh", mesh)):
                return _within(function, args, kwargs)
        automatic = _automatic(mesh)

        def move(leaf: Any, source: Mesh, target: Mesh) -> Any:
            if not isinstance(leaf, jax.Array) or isinstance(leaf, jax.core.Tracer):
                return leaf
            spread = isinstance(leaf.sharding, NamedSharding) and leaf.sharding.mesh == source
            spec = leaf.sharding.spec if spread else PartitionSpec()  # type: ignore[attr-defined]
            return jax.device_put(leaf, NamedSharding(target, spec))

        args, kwargs = jax.tree.map(lambda leaf: move(leaf, mesh, automatic), (args, kwargs))
        with jax.set_mesh(automatic):
            result = function(*args, **kwargs)
        return jax.tree.map(lambda leaf: move(leaf, automatic, mesh), result)  # type: ignore[no-any-return]

    return run


def replicate(tree: Any, mesh: Mesh) -> tuple[Any, Mesh]:
    """Put arrays on every device of a mesh, over all of its processes, each of which has the same ones.

    Returns:
        The arrays, and a mesh of the same devices with automatic axes.

    Raises:
        ConfigError: `mesh` is no mesh of devices, or has none of this process.
    """
    require(isinstance(mesh, Mesh), "mesh", type(mesh).__name__, "a jax.sharding.Mesh of devices")
    local = bool(mesh.local_devices)
    require(local, "mesh", f"no device of process {jax.process_index()}", "at least one, as every process takes part")
    automatic = _automatic(mesh)
    sharding = NamedSharding(automatic, PartitionSpec())

    def put(leaf: Any) -> jax.Array:
        if isinstance(leaf, jax.core.Tracer) or jax.process_count() == 1:
            return jax.device_put(leaf, sharding)
        return jax.make_array_from_process_local_data(sharding, np.asarray(leaf))

    return jax.tree.map(put, tree), automatic


def on_host(array: jax.Array) -> np.ndarray:
    """Return an array that may be spread over processes, each of which calls this, in the memory of each."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def _automatic(mesh: Mesh) -> Mesh:
    """Return a mesh of the same devices, on whose axes the compiler places values."""
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))


def _within(function: Callable[..., R], args: Any, kwargs: Any) -> R:
    """Run a function of traced arrays with automatic axes."""
    leaves, structure = jax.tree.flatten((args, kwargs))
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array)]

    def run(*arrays: Any) -> R:
        filled = dict(zip(places, arrays, strict=True))
        args, kwargs = jax.tree.unflatten(structure, [filled.get(i, leaf) for i, leaf in enumerate(leaves)])
        return function(*args, **kwargs)

    return auto_axes(run, out_sharding=PartitionSpec())(*(leaves[i] for i in places))  # type: ignore[no-any-return]


def _explicit(leaf: Any) -> Any:
    """Return the mesh of an array, abstract of a traced one, if one of its axes is explicit."""
    if not isinstance(leaf, jax.Array):
        return None
    sharding: Any = jax.typeof(leaf).sharding if isinstance(leaf, jax.core.Tracer) else leaf.sharding
    explicit = isinstance(sharding, NamedSharding) and AxisType.Explicit in sharding.mesh.axis_types
    return sharding.mesh if explicit else None
