"""Freezing any network: its traced program, rewritten so that it is affine at each input, its values unchanged.

Every operation that is not affine is held, or split into a factor that is held and a value that moves, see `units`
(sg = stop_gradient, so that derivatives of all orders are those of an affine map):

    unit g(a)     sg(g(a)) + sg(w) (a − sg(a))      w = (g(a) − g(0)) / a, as in GELU(x) = x Φ(x); or g'(a); or 0
    held          sg(value)                          or, by its derivative, as a unit of several values
    product       sg(p) q                            the gate p: attention weights, gates, denominators, kernels
    enter         the program within, rewritten

What is piecewise affine stays as it is: ReLU, max pooling, absolute values, selections.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jaxinterp.checks import require, require_one_of
from jaxinterp.explain.program import Model, Program, layer_of
from jaxinterp.explain.propagation import LINEAR
from jaxinterp.explain.tracing import bind_again
from jaxinterp.explain.units import (
    MOVING,
    PIECEWISE,
    PRODUCTS,
    WRAPPERS,
    Step,
    bodies,
    closed_of,
    free_inputs,
    opened,
    operation,
    program_of,
    read,
    scan_carries,
)

Activation = Literal["secant", "tangent", "hold"]
Coefficient = Literal["hold", "tangent"]
Product = Literal["gate", "share", "first", "second", "tangent"]


@dataclass(frozen=True)
class Freezing:
    """What is held constant where a network is frozen. For each choice the map changes, the value never does.

    Attributes:
        activation: of a smooth activation g(a): the factor of a in g(a) = w a + g(0), "secant"; its derivative there,
            "tangent"; or all of it, "hold".
        coefficient: exponentials of a softmax, factors of norms: "hold", or "tangent", their derivative.
        product: of two values that depend on the input: hold the "gate" (attention weights; the one behind a
            nonlinearity, else the second), the "first" or the "second"; give half to each, "share"; or both their
            whole derivative, "tangent".

    With "tangent" three times the map is the network's own Jacobian.

    Example:
        >>> Freezing(activation="tangent")
        Freezing(activation='tangent', coefficient='hold', product='gate')
    """

    activation: Activation = "secant"
    coefficient: Coefficient = "hold"
    product: Product = "gate"

    def __post_init__(self) -> None:
        """Check the choices."""
        for name, kinds in (("activation", Activation), ("coefficient", Coefficient), ("product", Product)):
            require_one_of(name, getattr(self, name), get_args(kinds))


class Held(NamedTuple):
    """An operation that is held constant, in whole or in one factor: where, its name, and how often."""

    module: str
    operation: str
    times: int


def freeze(model: Model, choices: Freezing) -> Model:
    """Return a network's program, affine at each input with the same values; the same object if it is already.

    The program is rewritten once for each choice.

    Example:
        >>> from jaxinterp.explain.program import trace
        >>> x = jnp.array([[3.0, -2.0]])
        >>> affine = freeze(trace(lambda variables, x: x**2, None, x), Freezing())
        >>> jax.jvp(affine, (x,), (x,))[1].tolist()  # x² is a factor x, held, of x: half of the derivative
        [[9.0, 4.0]]
    """
    program, count = model.program, len(jax.tree.leaves(model.variables))
    known: dict[Any, Any] = program.rewritten
    if choices not in known:
        known[choices] = _frozen(program, count, choices)
    frozen, constants = known[choices]
    return model if frozen is program else Model(frozen, (*constants, *model.constants), model.variables)


def held_operations(model: Model, choices: Freezing) -> tuple[Held, ...]:
    """Return what `freeze` holds, module by module in the order of the program."""
    jaxpr = model.program.jaxpr
    found: Counter[tuple[str, str]] = Counter()
    active = _active(jaxpr, len(jax.tree.leaves(model.variables)))
    for module, name, times in _held(jaxpr, active, choices, "", ()):
        found[module, name] += times
    return tuple(Held(*key, times) for key, times in found.items())


def summary(held: Sequence[Held]) -> str:
    """Say in a few words what is held: "12 gelu, 12 softmax, 25 norm"."""
    found: Counter[str] = Counter()
    for _, name, times in held:
        found[name] += times
    return ", ".join(f"{times} {name}" for name, times in found.items())


def curved_operations(model: Model) -> list[str]:
    """Name the operations that `freeze` does not know how to hold, each with its module."""
    jaxpr = model.program.jaxpr
    active = _active(jaxpr, len(jax.tree.leaves(model.variables)))
    return list(dict.fromkeys(_curved(jaxpr, active, Freezing(), "", ())))


def _active(jaxpr: Any, variables: int) -> list[bool]:
    """Return which inputs of a program are its input x, which comes behind its variables."""
    return [i == variables for i in range(len(jaxpr.invars))]


def _frozen(program: Program, variables: int, choices: Freezing) -> tuple[Program, tuple[Any, ...]]:
    """Rewrite a program, and trace it again."""
    jaxpr, active = program.jaxpr, _active(program.jaxpr, variables)
    held, moves = (any(read(jaxpr, active, through=through)[1]) for through in (False, True))
    require(
        held or not moves,
        "network",
        "an output that is held constant as a whole",
        "logits: what it has before a softmax, say",
    )
    if not any(True for _ in _held(jaxpr, active, choices, "", ())):
        return program, ()

    def run(*args: Array) -> list[Array]:
        return _run(jaxpr, args, active, choices, ())

    kinds: list[Any] = [v.aval for v in (*jaxpr.constvars, *jaxpr.invars)]
    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype, weak_type=getattr(a, "weak_type", False)) for a in kinds]
    closed = jax.make_jaxpr(run)(*shapes)
    x = kinds[len(jaxpr.constvars) + variables]
    return Program(closed.jaxpr, program.output, x.shape[0]), tuple(closed.consts)


def _plan(jaxpr: Any, active: Sequence[bool], choices: Freezing, spread: Sequence[Any]) -> list[tuple[Step, bool]]:
    """Return the steps whose values are needed, in order, each with whether a derivative passes through it."""
    steps, on = read(jaxpr, active, through=choices.coefficient == "tangent", spread=spread)
    needed = {v for v in jaxpr.outvars if not hasattr(v, "val")}
    moving = {v for v, moves in zip(jaxpr.outvars, on, strict=True) if moves}
    plan: list[tuple[Step, bool]] = []
    for step in reversed(steps):
        outs, layer = set(step.eqn.outvars), layer_of(step.eqn) is not None
        if not (outs & needed or layer or step.eqn.effects):
            continue
        moves = bool(outs & moving) or layer  # a layer is explained by itself too
        plan.append((step, moves))
        whole = not (moves and step.kind == "unit")
        uses = step.eqn.invars if whole else [step.base, *free_inputs(step)]
        needed.update(v for v in uses if not hasattr(v, "val"))
        moving.update(_movable(step, choices) if moves else ())
    return plan[::-1]


def _movable(step: Step, choices: Freezing) -> list[Any]:
    """Return the arguments of a step that its output moves with."""
    if step.kind == "unit":
        return [] if choices.activation == "hold" else [step.base]
    if step.kind == "held" and choices.coefficient == "hold":
        return []
    both = step.kind != "product" or choices.product in ("share", "tangent")
    gate = None if both else _gate(step, choices)
    return [v for i, (v, on) in enumerate(zip(step.eqn.invars, step.active, strict=True)) if on and i != gate]


def _gate(step: Step, choices: Freezing) -> int:
    """Return which factor is held; of a quotient always the denominator."""
    if step.eqn.primitive.name == "div":
        return 1
    return {"first": 0, "second": 1}.get(choices.product, step.gate)


def _run(
    jaxpr: Any, args: Sequence[Any], active: Sequence[bool], choices: Freezing, spread: Sequence[Any]
) -> list[Any]:
    """Run a program, its steps rewritten as this file's head has it."""
    known: dict[Any, Any] = dict(zip([*jaxpr.constvars, *jaxpr.invars], args, strict=True))

    def value(atom: Any) -> Any:
        return atom.val if hasattr(atom, "val") else known[atom]

    for step, moves in _plan(jaxpr, active, choices, spread):
        eqn = step.eqn
        if step.kind == "held":
            outs = [_coefficient(step, value, choices.coefficient)]
        elif step.kind == "enter" or _is_mapped(eqn):
            with jax.named_scope(str(eqn.source_info.name_stack)):
                outs = _enter(step, value, choices)
        elif not moves or step.kind == "same":
            outs = bind_again(eqn, *map(value, eqn.invars))
        elif step.kind == "unit":
            outs = [_unit(step, value, choices.activation)]
        else:
            outs = [_product(step, value, choices)]
        known.update(zip(eqn.outvars, outs, strict=True))
    return [value(atom) for atom in jaxpr.outvars]


def _is_mapped(eqn: Any) -> bool:
    """Whether an operation holds the mark of an example's layer, which `vmap` has made one of a batch by now."""
    if eqn.primitive.name == "custom_vmap_call":
        return True
    values = (v for value in eqn.params.values() for v in (value if isinstance(value, tuple | list) else (value,)))
    return any(_is_mapped(inner) for v in values if hasattr(opened(v), "eqns") for inner in opened(v).eqns)


def _moving(value: Array, factor: Array, a: Array) -> Array:
    """Return a value that moves with a by a factor, both held: at a itself it is exact."""
    return lax.stop_gradient(value) + lax.stop_gradient(factor) * (a - lax.stop_gradient(a))


def _unit(step: Step, value: Callable[[Any], Any], activation: Activation) -> Array:
    """Split g(a) into a factor of a and the rest; where that has no finite factor, all of it is the rest."""
    free, a = [value(v) for v in free_inputs(step)], value(step.base)

    def g(a: Array) -> Array:
        return _region(step, a, free)

    if activation == "hold":
        return lax.stop_gradient(g(a))
    out = g(a)
    factor = derivative(g, a) if activation == "tangent" else secant(g, a, out)
    return _moving(out, jnp.where(jnp.isfinite(factor), factor, 0).astype(out.dtype), a.astype(out.dtype))


def derivative(g: Callable[[Array], Array], a: Array) -> Array:
    """Return g'(a) of an elementwise function."""
    return jax.jvp(g, (a,), (jnp.ones_like(a),))[1]


def secant(g: Callable[[Array], Array], a: Array, out: Array) -> Array:
    """Return (g(a) − g(0)) / a of an elementwise function; near 0, where that is rounding, g'(a / 2)."""
    near = jnp.abs(a) < jnp.finfo(a.dtype).eps ** (1 / 3)
    safe = jnp.where(near, 1, a).astype(a.dtype)
    return jnp.where(near, derivative(g, a / 2), (out - g(jnp.zeros_like(a))) / safe)


def _region(step: Step, a: Array, free: Sequence[Array]) -> Array:
    """Run the operations of a unit from its base."""
    known = {step.base: a, **dict(zip(free_inputs(step), free, strict=True))}
    for eqn in step.region:
        values = [atom.val if hasattr(atom, "val") else known[atom] for atom in eqn.invars]
        known.update(zip(eqn.outvars, bind_again(eqn, *values), strict=True))
    return known[step.eqn.outvars[0]]


def _coefficient(step: Step, value: Callable[[Any], Any], how: Coefficient) -> Array:
    eqn, values = step.eqn, [value(v) for v in step.eqn.invars]
    (out,) = bind_again(eqn, *map(lax.stop_gradient, values))
    if how == "tangent":
        moving = [i for i, on in enumerate(step.active) if on]

        def run(*some: Array) -> Array:
            filled = list(values)
            for i, v in zip(moving, some, strict=True):
                filled[i] = v
            return bind_again(eqn, *filled)[0]

        some = [values[i] for i in moving]
        at = [lax.stop_gradient(v) for v in some]
        steps = [v - a for v, a in zip(some, at, strict=True)]
        out = lax.stop_gradient(out) + jax.jvp(run, tuple(at), tuple(steps))[1]
    return out if how == "tangent" else lax.stop_gradient(out)


def _product(step: Step, value: Callable[[Any], Any], choices: Freezing) -> Array:
    eqn = step.eqn
    values = [value(v) for v in eqn.invars]

    def run(gate: int) -> Array:
        held = [lax.stop_gradient(v) if i == gate else v for i, v in enumerate(values)]
        out: Array = bind_again(eqn, *held)[0]
        return out

    if eqn.primitive.name == "div" and choices.product != "tangent":
        return run(1) if step.active[0] else lax.stop_gradient(run(1))
    if choices.product == "share":
        return (run(0) + run(1)) / 2
    if choices.product == "tangent":
        at = [lax.stop_gradient(v) for v in values]
        moves = tuple(v - a for v, a in zip(values[:2], at[:2], strict=True))
        out = bind_again(eqn, *at)[0]
        return out + jax.jvp(lambda p, q: bind_again(eqn, p, q, *at[2:])[0], tuple(at[:2]), moves)[1]
    return run(_gate(step, choices))


def _enter(step: Step, value: Callable[[Any], Any], choices: Freezing) -> list[Any]:
    """Run the program within an operation, rewritten."""
    eqn, values = step.eqn, [value(v) for v in step.eqn.invars]
    through = choices.coefficient == "tangent"
    if eqn.primitive.name == "cond":
        index, *operands = values
        within = bodies(eqn, step.active, False, through)[0][1]
        branches = [partial(_branch, branch, tuple(within), choices) for branch in eqn.params["branches"]]
        return list(lax.switch(index, branches, *operands))
    if eqn.primitive.name != "scan":
        inner = closed_of(eqn)
        args = [*getattr(inner, "consts", ()), *values]
        return _run(opened(inner), args, step.active, choices, step.spread)
    ((body, within),) = bodies(eqn, step.active, False, through)
    first, count = scan_carries(eqn)
    fixed = [*getattr(eqn.params["jaxpr"], "consts", ()), *values[:first]]

    def turn(carry: Sequence[Array], over: Sequence[Array]) -> tuple[list[Array], list[Array]]:
        outs = _run(body, [*fixed, *carry, *over], within, choices, ())
        return list(outs[:count]), list(outs[count:])

    how = {name: eqn.params[name] for name in ("length", "reverse", "unroll")}
    carry, stacked = lax.scan(turn, values[first : first + count], values[first + count :], **how)
    return [*carry, *stacked]


def _branch(branch: Any, within: tuple[bool, ...], choices: Freezing, *operands: Array) -> list[Any]:
    return _run(opened(branch), [*getattr(branch, "consts", ()), *operands], within, choices, ())


def _inner_programs(step: Step, choices: Freezing) -> list[tuple[Any, Sequence[bool]]]:
    eqn = step.eqn
    if eqn.primitive.name in WRAPPERS:
        inner = program_of(eqn)
        return [] if inner is None else [(inner, step.active)]
    if eqn.primitive.name in ("scan", "cond"):
        return list(bodies(eqn, step.active, False, choices.coefficient == "tangent"))
    return []


def _held(
    jaxpr: Any, active: Sequence[bool], choices: Freezing, module: str, spread: Sequence[Any], alive: bool = True
) -> Iterator[tuple[str, str, int]]:
    """Yield module, name and number of runs of every step that is rewritten; gates and what feeds them count once."""
    softmaxes = {softmax.exponentials for softmax in softmaxes_of(jaxpr)}
    for step, moves in _plan(jaxpr, active, choices, spread):
        path = _path(module, step.eqn)
        if step.kind == "enter":
            times = step.eqn.params["length"] if step.eqn.primitive.name == "scan" else 1
            for inner, within in _inner_programs(step, choices):
                for where, name, count in _held(inner, within, choices, path, step.spread, moves):
                    yield where, name, count * times
        elif step.kind in ("unit", "product") and moves and alive:
            yield path, _named(step), 1
        elif step.kind == "held":
            yield path, "softmax" if step.eqn.outvars[0] in softmaxes else _named(step), 1


def _path(module: str, eqn: Any) -> str:
    """Return the path of the module around an operation, without the transformations that it is under."""
    stack = re.sub(r"vmap\(|\)", "", str(eqn.source_info.name_stack))
    return "/".join(part for part in (*module.split("/"), *stack.split("/")) if part)


def _named(step: Step) -> str:
    """Name what is held as users know it."""
    if step.kind == "held":
        return {"rsqrt": "norm", "sqrt": "norm"}.get(step.eqn.primitive.name, operation(step))
    within = {eqn.primitive.name for eqn in step.region}
    if step.kind == "unit" and step.eqn.primitive.name in ("mul", "div") and len(step.region) > 1:
        for inner, name in (("erf", "gelu"), ("erfc", "gelu"), ("tanh", "gelu"), ("logistic", "silu")):
            if inner in within and not within & WRAPPERS:
                return name
    return "product" if step.kind == "product" else operation(step)


def _curved(jaxpr: Any, active: Sequence[bool], choices: Freezing, module: str, spread: Sequence[Any]) -> Iterator[str]:
    """Yield operations that are neither affine nor known, of values that move."""
    for step, moves in _plan(jaxpr, active, choices, spread):
        name = step.eqn.primitive.name
        path = _path(module, step.eqn)
        inner = _inner_programs(step, choices)
        for program, within in inner if any(step.active) and moves else ():
            yield from _curved(program, within, choices, path, step.spread)
        if moves and any(step.active) and step.kind == "same" and not inner and name not in STRAIGHT:
            yield f"{name} in {path}" if path else name


STRAIGHT = LINEAR | PIECEWISE | PRODUCTS | MOVING | frozenset({
    "argmax", "argmin", "cummax", "cummin", "iota", "reduce_and", "reduce_max", "reduce_min", "reduce_or",
    "reduce_window_max", "reduce_window_min", "select_and_scatter_add", "sort", "top_k",
})  # fmt: skip
"""Operations that are affine, or piecewise."""


class Softmax(NamedTuple):
    """A softmax over the last axis: the values of its exponentials, and of their quotients by their sum."""

    exponentials: Any
    weights: Any


def softmaxes_of(jaxpr: Any) -> Iterator[Softmax]:
    """Yield the softmaxes over the last axis of a program, those in programs within not included."""
    made = {out: eqn for eqn in jaxpr.eqns for out in eqn.outvars}

    def back(atom: Any, names: frozenset[str]) -> Any:
        while not hasattr(atom, "val") and atom in made and made[atom].primitive.name in names:
            atom = made[atom].invars[0]
        return atom

    for eqn in jaxpr.eqns:
        if eqn.primitive.name != "div" or any(hasattr(v, "val") for v in eqn.invars):
            continue
        top, sums = back(eqn.invars[0], CASTS), back(eqn.invars[1], CASTS | {"broadcast_in_dim", "reshape"})
        total = made.get(sums)
        if total is None or total.primitive.name != "reduce_sum" or hasattr(top, "val"):
            continue
        last = (top.aval.ndim - 1,)
        if back(total.invars[0], CASTS) is top and tuple(total.params["axes"]) == last:
            exponent = back(top, CASTS | {"select_n", "mul"})
            if exponent in made and made[exponent].primitive.name in ("exp", "exp2"):
                yield Softmax(exponent, eqn.outvars[0])


CASTS = frozenset({"convert_element_type", "copy", "optimization_barrier", "reduce_precision", "stop_gradient"})
