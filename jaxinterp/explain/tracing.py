"""Reading traced functions: an interpreter of jaxprs, and one operation of them run again."""

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
from jaxtyping import Array


def unjitted(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function under `jax.jit`: a cached trace would hide its modules, and bake in what it closes over."""
    return inspect.unwrap(function, stop=lambda f: not hasattr(f, "lower")) if hasattr(function, "lower") else function


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
            run = partial(bind_again, eqn)
            outs = rule(Operation(eqn.primitive.name, eqn.params, run, eqn.outvars[0].aval.dtype, path), values)
        known.update(zip(eqn.outvars, outs, strict=True))
        for atom in {a for a in eqn.invars if not hasattr(a, "val") and last[a] == i}:
            del known[atom]  # hold only what is still read
    return [read(atom) for atom in jaxpr.outvars]


def bind_again(eqn: Any, *values: Any) -> list[Any]:
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
