"""Reading traced functions: layers, memory, a cut at a layer, chunks that fit, and an interpreter of jaxprs."""

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

from jaxinterp.checks import require, require_at_least, require_one_of


def unjitted(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function under `jax.jit`: a cached trace would hide its modules, and bake in what it closes over."""
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
        ConfigError: `max_bytes` < 1.
    """
    require_at_least("max_bytes", max_bytes, 1)
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
    """Cache the result of tracing (apply, *arrays) by shapes and types.

    Only functions with arrays bound by `jax.tree_util.Partial` are cached: a closure would be a new one in every call,
    a jitted function has its own cache, and arguments other than arrays may decide a shape.
    """

    @lru_cache(maxsize=32)
    def cached(structure: Any, leaves: tuple[jax.ShapeDtypeStruct, ...], wide: bool) -> Traced:
        results: list[Traced] = []
        jax.eval_shape(lambda *values: results.append(trace(*jax.tree.unflatten(structure, values))), *leaves)
        return results[0]

    def abstract(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, weak_type=getattr(leaf, "weak_type", False))

    @wraps(trace)
    def traced(apply: Callable[..., Any], *arrays: Any) -> Traced:
        leaves, structure = jax.tree.flatten((apply, *arrays))
        if (
            not isinstance(apply, jax.tree_util.Partial)
            or not apply.args
            or apply.keywords
            or hasattr(apply.func, "lower")
            or not all(hasattr(leaf, "dtype") for leaf in leaves)
        ):
            return trace(apply, *arrays)
        return copy(cached(structure, tuple(map(abstract, leaves)), bool(jax.config.read("jax_enable_x64"))))

    return traced


class Footprint(NamedTuple):
    """Output shape and memory of a function.

    Attributes:
        output: shape of its output, (batch, ...).
        forward: bytes of every value of one example's forward pass.
        largest: bytes of the largest of them, which each cotangent takes once more.
    """

    output: tuple[int, ...]
    forward: int
    largest: int

    def bytes_each(self, targets: int) -> int:
        """Return an upper estimate of the bytes of one example with that many cotangents at once."""
        return self.forward + targets * self.largest


@once_per_shape
def footprint(apply: Callable[..., Array], x: Array | jax.ShapeDtypeStruct, *given: Array) -> Footprint:
    """Measure the output's shape and an example's memory from traced programs; nothing is computed.

    Args:
        apply: (x, *given) ↦ output, (batch, ...).
        x: input, (batch, ...).
        *given: as in `decompose`.
    """

    def sizes(count: int) -> list[int]:
        inputs = (jax.ShapeDtypeStruct((count, *array.shape[1:]), array.dtype) for array in (x, *given))
        return list(_sizes(jax.make_jaxpr(lambda *v: apply(*v))(*inputs).jaxpr))

    one, two = sizes(1), sizes(2)
    shape = jax.eval_shape(apply, x, *given).shape
    return Footprint(shape, sum(two) - sum(one), max(two, default=0) - max(one, default=0))


def _sizes(jaxpr: Any) -> Iterator[int]:
    """Yield the bytes of every intermediate value, also of inner programs."""
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
    """Rewrite the logits as a function of what is added to the input or to the outputs of named Flax submodules.

    Args:
        apply: x ↦ logits, calling a Flax model, not jitted.
        x: input, (batch, ...).
        levels: paths of the submodules; None is the input.

    Returns:
        Zeros of every level's shape, and (what is added to each level) ↦ (logits, every level's activation).

    Raises:
        ConfigError: a submodule cannot be reached because its call was traced before.
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
        require(not unseen, "layer", f"{unseen} inside a function traced before", "a function that is not jitted")
        return logits, [seen[level] for level in levels]

    shapes = jax.eval_shape(lambda: added()[1])
    return [jnp.zeros(shape.shape, shape.dtype) for shape in shapes], added


@once_per_shape
def activation_names(apply: Callable[..., Array], x: Array, *given: Array) -> dict[str, tuple[int, ...]]:
    """List paths and output shapes of all Flax submodules whose output is one array with the batch first.

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
    """Raise for an empty list, a repeated layer, and a path that is not one of `activation_names`."""
    different = levels and len(set(levels)) == len(levels)
    require(different, "layer", f"the layers {list(levels)}", "different paths of Flax submodules, None for the input")
    paths = [level for level in levels if level is not None]
    names = activation_names(apply, x, *given) if paths else {}
    for path in paths:
        require_one_of("layer", path, names)


class Operation(NamedTuple):
    """One equation of a traced program.

    Attributes:
        name: the primitive's name.
        params: its parameters.
        run: (*arrays) ↦ list of its outputs.
        dtype: type of its first output.
        module: path of the module that applies it, as in the traced name stack.
    """

    name: str
    params: dict[str, Any]
    run: Callable[..., list[Array]]
    dtype: Any
    module: str


Rule = Callable[[Operation, list[Any]], list[Any]]

WRAPPERS = frozenset({
    "checkpoint", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr", "jit",
    "pjit", "remat", "remat2",
})  # fmt: skip
"""Operations that only wrap a program."""


def interpret(function: Callable[..., Any], example: Array, value: Any, rule: Rule) -> Any:
    """Trace a function of one array, and run the program on another kind of value.

    Args:
        function: array ↦ pytree of arrays.
        example: the array with which it is traced.
        value: the argument in its place, of any type.
        rule: (operation, its arguments, arrays or other values) ↦ its outputs. Wrapped programs are opened first.

    Returns:
        The function's pytree of outputs, of arrays or other values.
    """
    closed, shape = jax.make_jaxpr(function, return_shape=True)(example)
    return jax.tree.unflatten(jax.tree.structure(shape), _interpret(closed.jaxpr, closed.consts, [value], rule, ""))


def _interpret(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any], rule: Rule, module: str) -> list[Any]:
    known: dict[Any, Any] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))

    def read(atom: Any) -> Any:
        return atom.val if hasattr(atom, "val") else known[atom]

    last = {atom: i for i, eqn in enumerate(jaxpr.eqns) for atom in eqn.invars if not hasattr(atom, "val")}
    last |= dict.fromkeys((atom for atom in jaxpr.outvars if not hasattr(atom, "val")), len(jaxpr.eqns))
    for i, eqn in enumerate(jaxpr.eqns):
        path = "/".join(filter(None, (module, str(eqn.source_info.name_stack))))
        values = [read(atom) for atom in eqn.invars]
        wrapped = _wrapped(eqn)
        outs = _interpret(*wrapped, values, rule, path) if wrapped else rule(_operation(eqn, path), values)
        known.update(zip(eqn.outvars, outs, strict=True))
        for atom in {a for a in eqn.invars if not hasattr(a, "val") and last[a] == i}:
            del known[atom]  # hold only what is still read
    return [read(atom) for atom in jaxpr.outvars]


def _operation(eqn: Any, path: str) -> Operation:
    def run(*arrays: Array) -> list[Array]:
        outs = eqn.primitive.bind(*arrays, **eqn.params)
        return list(outs) if eqn.primitive.multiple_results else [outs]

    return Operation(eqn.primitive.name, eqn.params, run, eqn.outvars[0].aval.dtype, path)


def _wrapped(eqn: Any) -> tuple[Any, Sequence[Any]] | None:
    """Return the program that an operation only wraps, such as a jitted function, with its constants."""
    if eqn.primitive.name in WRAPPERS:
        for value in eqn.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns") and len(inner.invars) == len(eqn.invars):
                return inner, getattr(value, "consts", ())
    return None
