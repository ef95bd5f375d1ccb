"""Reading traced functions: layers, memory, a cut at a layer, chunks that fit, and an interpreter of jaxprs."""

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from functools import lru_cache, partial, wraps
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
    """Apply a per-example function to equal chunks along the first axis, each within a budget of `max_bytes` ≥ 1.

    Args:
        function: (chunk of each array) ↦ pytree of arrays with the examples first.
        arrays: arrays with a common first axis, (batch, ...).
        bytes_each: estimate of the bytes that one example takes.
        max_bytes: the budget.
    """
    require_at_least("max_bytes", max_bytes, 1)
    batch = arrays[0].shape[0]
    size = math.ceil(batch / min(batch, max(1, math.ceil(batch * bytes_each / max_bytes))))
    if size == batch:
        return function(*arrays)
    # The last chunk reaches back, so that every chunk has one shape and one compiled program serves all.
    starts = [min(start, batch - size) for start in range(0, batch, size)]
    parts = [function(*(a[s : s + size] for a in arrays)) for s in starts]
    parts[-1] = jax.tree.map(lambda a: a[starts[-2] + size - starts[-1] :], parts[-1])
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


Traced = TypeVar("Traced")


def once_per_shape(trace: Callable[..., Traced]) -> Callable[..., Traced]:
    """Cache the result of tracing (model, *arrays) by shapes and types.

    Only functions with arrays bound by `jax.tree_util.Partial` are cached: a closure would be a new one in every call,
    a jitted function has its own cache, and arguments other than arrays may decide a shape.
    """

    @lru_cache(maxsize=32)
    def cached(structure: Any, leaves: tuple[jax.ShapeDtypeStruct, ...], wide: bool) -> Traced:
        results: list[Traced] = []
        jax.eval_shape(lambda *values: results.append(trace(*jax.tree.unflatten(structure, values))), *leaves)
        return results[0]

    @wraps(trace)
    def traced(model: Callable[..., Any], *arrays: Any) -> Traced:
        leaves, structure = jax.tree.flatten((model, *arrays))
        bound = model if isinstance(model, jax.tree_util.Partial) and model.args and not model.keywords else None
        if bound is None or hasattr(bound.func, "lower") or not all(hasattr(leaf, "dtype") for leaf in leaves):
            return trace(model, *arrays)
        kinds = (jax.ShapeDtypeStruct(a.shape, a.dtype, weak_type=getattr(a, "weak_type", False)) for a in leaves)
        return copy(cached(structure, tuple(kinds), bool(jax.config.read("jax_enable_x64"))))

    return traced


class Footprint(NamedTuple):
    """Shape of a function's output (batch, ...), bytes of an example's forward pass, and of its largest value.

    Each cotangent takes the largest value once more.
    """

    output: tuple[int, ...]
    forward: int
    largest: int

    def bytes_each(self, targets: int) -> int:
        """Return an upper estimate of the bytes of one example with that many cotangents at once."""
        return self.forward + targets * self.largest


@once_per_shape
def footprint(model: Callable[..., Array], x: Array | jax.ShapeDtypeStruct, *given: Array) -> Footprint:
    """Measure the shape of the output of (x, *given) ↦ output and an example's memory; nothing is computed."""

    def sizes(count: int) -> list[int]:
        inputs = (jax.ShapeDtypeStruct((count, *array.shape[1:]), array.dtype) for array in (x, *given))
        return list(_sizes(jax.make_jaxpr(lambda *v: model(*v))(*inputs).jaxpr))

    one, two = sizes(1), sizes(2)
    shape = jax.eval_shape(model, x, *given).shape
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
    model: Callable[[Array], Array], x: Array, levels: Sequence[str | None]
) -> tuple[list[Array], Callable[..., tuple[Array, list[Array]]]]:
    """Rewrite the logits as a function of what is added to the input (level None) or to outputs of Flax submodules.

    Returns zeros of every level's shape, and (what is added to each level) ↦ (logits, every level's activation).
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
            logits = model(x + deltas[levels.index(None)] if deltas and None in levels else x)
        unseen = [level for level in levels if level not in seen]
        require(not unseen, "layer", f"{unseen} inside a function traced before", "a function that is not jitted")
        return logits, [seen[level] for level in levels]

    shapes = jax.eval_shape(lambda: added()[1])
    return [jnp.zeros(shape.shape, shape.dtype) for shape in shapes], added


@once_per_shape
def activation_names(model: Callable[..., Array], x: Array, *given: Array) -> dict[str, tuple[int, ...]]:
    """List paths and output shapes of all Flax submodules whose output is one array with the batch first.

    Args:
        model: (x, *given) ↦ logits, calling a Flax model.
        x: input, (batch, ...).
        *given: as in `decompose`.

    Returns:
        {path: shape} in the order of the calls; `decompose(..., layer=path)` takes such a path.
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
        jax.eval_shape(lambda *v: model(*v), x, *given)  # a new function: a cached trace would not be intercepted
    return {name: shape for name, shape in names.items() if name not in repeated and shape[:1] == x.shape[:1]}


def require_levels(
    model: Callable[..., Array], x: Array, levels: Sequence[str | None], given: Sequence[Array] = ()
) -> None:
    """Raise for an empty list, a repeated layer, and a path that is not one of `activation_names`."""
    different = levels and len(set(levels)) == len(levels)
    require(different, "layer", f"the layers {list(levels)}", "different paths of Flax submodules, None for the input")
    paths = [level for level in levels if level is not None]
    names = activation_names(model, x, *given) if paths else {}
    for path in paths:
        require_one_of("layer", path, names)


class Operation(NamedTuple):
    """One equation of a traced program: primitive, its first output's type, and the path of the module around it."""

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
    """Trace a function with an example, and run the program on a value of another kind in its place.

    The rule maps an operation and its arguments, arrays or other values, to its outputs; wrapped programs are opened.
    """
    closed, shape = jax.make_jaxpr(function, return_shape=True)(example)
    return jax.tree.unflatten(jax.tree.structure(shape), _interpret(closed.jaxpr, closed.consts, [value], rule, ""))


def _interpret(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any], rule: Rule, module: str) -> list[Any]:
    known: dict[Any, Any] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))

    def read(atom: Any) -> Any:
        return atom.val if hasattr(atom, "val") else known[atom]

    uses = [*(eqn.invars for eqn in jaxpr.eqns), jaxpr.outvars]
    last = {atom: i for i, atoms in enumerate(uses) for atom in atoms if not hasattr(atom, "val")}
    for i, eqn in enumerate(jaxpr.eqns):
        path = "/".join(filter(None, (module, str(eqn.source_info.name_stack))))
        values = [read(atom) for atom in eqn.invars]
        if wrapped := _wrapped(eqn):
            outs = _interpret(*wrapped, values, rule, path)
        else:
            run = partial(_run, eqn)
            outs = rule(Operation(eqn.primitive.name, eqn.params, run, eqn.outvars[0].aval.dtype, path), values)
        known.update(zip(eqn.outvars, outs, strict=True))
        for atom in {a for a in eqn.invars if not hasattr(a, "val") and last[a] == i}:
            del known[atom]  # hold only what is still read
    return [read(atom) for atom in jaxpr.outvars]


def _run(eqn: Any, *arrays: Any) -> list[Array]:
    outs = eqn.primitive.bind(*arrays, **eqn.params)
    return list(outs) if eqn.primitive.multiple_results else [outs]


def bind_again(eqn: Any, values: Sequence[Any]) -> list[Any]:
    """Run one operation of a traced program on other values, functions with a derivative of their own included."""
    with jax.named_scope(str(eqn.source_info.name_stack)):
        outs = eqn.primitive.bind(*values, **eqn.primitive.get_bind_params(eqn.params))
    return list(outs) if eqn.primitive.multiple_results else [outs]


def _wrapped(eqn: Any) -> tuple[Any, Sequence[Any]] | None:
    """Return the program that an operation only wraps, such as a jitted function, with its constants."""
    for value in eqn.params.values() if eqn.primitive.name in WRAPPERS else ():
        inner = getattr(value, "jaxpr", value)
        if hasattr(inner, "eqns") and len(inner.invars) == len(eqn.invars):
            return inner, getattr(value, "consts", ())
    return None
