"""What tracing tells of a function: its layers, its size, a cut at a layer, and chunks that fit."""

import difflib
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from functools import lru_cache, wraps
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array


def unjitted(function: Callable[..., Array]) -> Callable[..., Array]:
    """The function itself, of a jitted one: modules are addressed while tracing, which a cache would skip."""
    return inspect.unwrap(function, stop=lambda f: not hasattr(f, "lower")) if hasattr(function, "lower") else function


def in_chunks(function: Callable[..., Any], arrays: tuple[Array, ...], bytes_each: int, max_bytes: int) -> Any:
    """Apply a per-example function to equal chunks along the first axis, each within a memory budget.

    Args:
        function: (chunk of each array) ↦ pytree of arrays with the examples first.
        arrays: arrays with a common first axis, (batch, ...).
        bytes_each: estimate of the bytes that one example takes.
        max_bytes: budget in bytes, ≥ 1.

    Returns:
        The pytree for the whole batch.

    Raises:
        ValueError: `max_bytes` < 1.
    """
    if max_bytes < 1:
        raise ValueError(f"max_bytes: got {max_bytes}, expected at least 1 byte")
    batch = arrays[0].shape[0]
    count = min(batch, max(1, math.ceil(batch * bytes_each / max_bytes)))
    if count == 1:
        return function(*arrays)
    size = math.ceil(batch / count)
    # The last chunk reaches back, so that every chunk has one shape and one compiled program serves all.
    starts = [min(i * size, batch - size) for i in range(math.ceil(batch / size))]
    parts = [function(*(a[s : s + size] for a in arrays)) for s in starts]
    overlap = starts[-2] + size - starts[-1] if len(starts) > 1 else 0
    parts[-1] = jax.tree.map(lambda a: a[overlap:], parts[-1])
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


Traced = TypeVar("Traced")


def once_per_shape(trace: Callable[..., Traced]) -> Callable[..., Traced]:
    """Keep what a function finds by tracing (apply, *arrays): shapes and types decide it, values do not.

    Only a function with arrays bound by `jax.tree_util.Partial` is kept, and held: one that closes over them would be
    another one in every call. A jitted one has its own cache, and other arguments than arrays may decide a shape.
    """

    @lru_cache(maxsize=32)
    def kept(structure: Any, leaves: tuple[jax.ShapeDtypeStruct, ...], wide: bool) -> Traced:
        found: list[Traced] = []
        jax.eval_shape(lambda *values: found.append(trace(*jax.tree.unflatten(structure, values))), *leaves)
        return found[0]

    def abstract(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, weak_type=getattr(leaf, "weak_type", False))

    @wraps(trace)
    def found(apply: Callable[..., Any], *arrays: Any) -> Traced:
        leaves, structure = jax.tree.flatten((apply, *arrays))
        if (
            not isinstance(apply, jax.tree_util.Partial)
            or not apply.args
            or apply.keywords
            or hasattr(apply.func, "lower")
            or not all(hasattr(leaf, "dtype") for leaf in leaves)
        ):
            return trace(apply, *arrays)
        return copy(kept(structure, tuple(map(abstract, leaves)), bool(jax.config.read("jax_enable_x64"))))

    return found


class Footprint(NamedTuple):
    """What tracing tells of a function.

    Attributes:
        output: shape of its output, (batch, ...).
        forward: bytes of every value of one example's forward pass.
        largest: bytes of the largest of them, which each cotangent takes once more.
    """

    output: tuple[int, ...]
    forward: int
    largest: int

    def bytes_each(self, targets: int) -> int:
        """Upper estimate of the bytes that one example takes with that many cotangents at once."""
        return self.forward + targets * self.largest


@once_per_shape
def footprint(apply: Callable[..., Array], x: Array | jax.ShapeDtypeStruct, *given: Array) -> Footprint:
    """The output's shape and the memory of an example, from traced programs; nothing is computed.

    Args:
        apply: (x, *given) ↦ output, (batch, ...).
        x: input, (batch, ...).
        *given: as in `decompose`.
    """

    def sizes(count: int) -> list[int]:
        few = (jax.ShapeDtypeStruct((count, *array.shape[1:]), array.dtype) for array in (x, *given))
        return list(_sizes(jax.make_jaxpr(lambda *v: apply(*v))(*few).jaxpr))

    one, two = sizes(1), sizes(2)
    shape = jax.eval_shape(apply, x, *given).shape
    return Footprint(shape, sum(two) - sum(one), max(two, default=0) - max(one, default=0))


def _sizes(jaxpr: Any) -> Iterator[int]:
    """Bytes of every intermediate value, those of inner programs included."""
    for equation in jaxpr.eqns:
        yield from (math.prod(v.aval.shape) * v.aval.dtype.itemsize for v in equation.outvars)
        for parameter in equation.params.values():
            for inner in parameter if isinstance(parameter, tuple | list) else (parameter,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from _sizes(inner)


def split_at(
    apply: Callable[[Array], Array], x: Array, levels: Sequence[str | None]
) -> tuple[list[Array], Callable[..., tuple[Array, list[Array]]]]:
    """The logits as a function of what is added to the input or to the outputs of named Flax submodules.

    Args:
        apply: x ↦ logits, calling a Flax model, not jitted.
        x: input, (batch, ...).
        levels: paths of the submodules; None is the input.

    Returns:
        Zeros of every level's shape, and (what is added to each level) ↦ (logits, every level's activation).

    Raises:
        ValueError: a submodule cannot be reached because its call was traced before.
    """

    def added(*deltas: Array) -> tuple[Array, list[Array]]:
        seen: dict[str | None, Array] = {None: x}

        def add(run: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
            out, path = run(*args, **kwargs), "/".join(context.module.path)
            if context.method_name != "__call__" or path not in levels:
                return out
            seen[path] = out
            return out + deltas[levels.index(path)] if deltas else out

        with nn.intercept_methods(add):
            logits = apply(x + deltas[levels.index(None)] if deltas and None in levels else x)
        unseen = [level for level in levels if level not in seen]
        if unseen:
            raise ValueError(
                f"layer: {unseen[0]!r} was traced before and cannot be addressed; pass a function that is not jitted"
            )
        return logits, [seen[level] for level in levels]

    shapes = jax.eval_shape(lambda: added()[1])
    return [jnp.zeros(shape.shape, shape.dtype) for shape in shapes], added


@once_per_shape
def activation_names(apply: Callable[..., Array], x: Array, *given: Array) -> dict[str, tuple[int, ...]]:
    """Paths and output shapes of all Flax submodules whose output is one array with the batch first.

    Args:
        apply: (x, *given) ↦ logits, calling a Flax model.
        x: input, (batch, ...).
        *given: as in `decompose`.

    Returns:
        {path: shape} in the order of the calls; a path is what `decompose(..., layer=path)` takes.
    """
    names: dict[str, tuple[int, ...]] = {}
    repeated: set[str] = set()

    def note(run: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        out = run(*args, **kwargs)
        path = "/".join(context.module.path)
        if context.method_name == "__call__" and path and isinstance(out, jax.Array):
            repeated.update({path} & names.keys())
            names[path] = out.shape
        return out

    with nn.intercept_methods(note):
        jax.eval_shape(lambda *v: apply(*v), x, *given)  # a new function: a cached trace would not be intercepted
    return {name: shape for name, shape in names.items() if name not in repeated and shape[:1] == x.shape[:1]}


def require_levels(
    apply: Callable[..., Array], x: Array, levels: Sequence[str | None], given: Sequence[Array] = ()
) -> None:
    """Refuse, with near matches, an empty list, one that repeats a level, and a path that is no `activation_names`."""
    if not levels or len(set(levels)) < len(levels):
        got = f"{list(levels)!r}, a level twice" if levels else "an empty list"
        raise ValueError(f"layer: got {got}, expected different paths of Flax submodules, or None for the input")
    if all(level is None for level in levels):
        return
    names = activation_names(apply, x, *given)
    for level in levels:
        if level is not None and level not in names:
            near = difflib.get_close_matches(level, names, n=3) or list(names)[:8]
            such = ", ".join(near) or "none"
            raise ValueError(f"layer: got {level!r}, expected a Flax submodule called once, such as {such}")
