"""What a traced program does at each of its operations: affine, an activation of one value, a product of two streams.

An operation needs care where it is not affine, or not piecewise affine, in what depends on the input:

    unit       an elementwise function of one value, g(a), however many operations it is written in: GELU, softplus,
               x ↦ x · clip(x + 3, 0, 6) / 6. Its base a is the nearest value of which its operands are functions.
               The output of a named layer is always a base: what comes behind is a function of it
    held       a coefficient: the factor of a norm, the exponentials of a softmax. Functions such as exp and rsqrt are
               coefficients where their values are summed, or spread over others; else they are units
    product    two values that depend on the input, multiplied: attention weights and values, gates and streams
    enter      a program within that holds such operations, of `jit`, `remat`, `scan`, `cond`
    same       all others
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp

from jaxinterp.explain.program import layer_of

# fmt: off
AFFINE = frozenset({
    "add", "add_any", "convert_element_type", "copy", "copy_p", "name", "neg", "optimization_barrier",
    "reduce_precision", "sub",
})
"""Elementwise operations that are affine in all of their values."""
PIECEWISE = frozenset({
    "abs", "and", "ceil", "clamp", "eq", "floor", "ge", "gt", "is_finite", "le", "lt", "max", "min", "ne", "not", "or",
    "round", "select_n", "sign", "xor",
})
"""Elementwise operations that are piecewise affine."""
ACTIVATIONS = frozenset({
    "asinh", "atan", "erf", "erfc", "expm1", "integer_pow", "log1p", "logistic", "sin", "square", "tan", "tanh",
})
"""Smooth elementwise operations of one value that are finite at 0."""
COEFFICIENTS = frozenset({
    "acos", "acosh", "asin", "atan2", "atanh", "cbrt", "cos", "cosh", "digamma", "erf_inv", "exp", "exp2", "lgamma",
    "log", "nextafter", "pow", "rem", "rsqrt", "sinh", "sqrt",
})
"""Other smooth elementwise operations, which norms and softmaxes are made of too."""
SPREADING = frozenset({
    "broadcast_in_dim", "cumsum", "reduce", "reduce_max", "reduce_sum", "reduce_window", "reduce_window_sum",
})
"""Operations whose arguments, where they are of `COEFFICIENTS`, are coefficients."""
PRODUCTS = frozenset({"conv_general_dilated", "div", "dot_general", "mul", "ragged_dot_general"})
"""Operations that are linear in their first value, and, but for the quotient, in their second."""
MOVING = frozenset({"broadcast_in_dim", "concatenate", "expand_dims", "reshape", "slice", "squeeze", "transpose"})
"""Rearrangements, behind which a gate is a gate still."""
# fmt: on
ELEMENTWISE = AFFINE | PIECEWISE | ACTIVATIONS | COEFFICIENTS | {"mul", "div", "stop_gradient"}
WRAPPERS = frozenset({
    "checkpoint", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "custom_vmap_call", "jit", "pjit",
    "remat", "remat2",
})  # fmt: skip
Kind = Literal["same", "unit", "held", "product", "enter"]


class Step(NamedTuple):
    """One operation of a program, and what it is in the values that depend on the input.

    Attributes:
        eqn: the operation.
        kind: see this file's head.
        active: which of its arguments depend on the input.
        base: of a unit, the value that it is a function of.
        region: of a unit, the operations from its base to its output, in order.
        gate: of a product, which of the two arguments is the coefficient: behind a nonlinearity, else the second.
        spread: of a program to be entered, its outputs that are summed or spread around it, for `read`.
    """

    eqn: Any
    kind: Kind
    active: tuple[bool, ...]
    base: Any = None
    region: tuple[Any, ...] = ()
    gate: int = 1
    spread: tuple[Any, ...] = ()


@dataclass
class Known:
    """What is known of the values of a program so far."""

    active: set[Any] = field(default_factory=set)
    chains: dict[Any, list[Any]] = field(default_factory=dict)  # a value, then what it is an elementwise function of
    gates: set[Any] = field(default_factory=set)
    bases: dict[Any, Any] = field(default_factory=dict)  # outputs of units → their base
    made: dict[Any, Any] = field(default_factory=dict)  # value → operation
    spread: set[Any] = field(default_factory=set)  # values that are summed, or spread over others
    how: tuple[bool, bool] = False, False  # `piecewise` and `through` of `read`


def read(
    jaxpr: Any,
    active: Sequence[bool],
    piecewise: bool = False,
    through: bool = False,
    spread: Sequence[Any] = (),
) -> tuple[list[Step], list[bool]]:
    """Return the steps of a program, and which of its outputs depend on the input.

    Args:
        jaxpr: an open program.
        active: which of its inputs depend on the input of the network.
        piecewise: whether piecewise affine activations, such as ReLU, are units too.
        through: whether coefficients depend on the input still, where they are not to be constants.
        spread: its outputs that the program around it sums, or spreads over others.
    """
    known = Known({v for v, on in zip(jaxpr.invars, active, strict=True) if on})
    known.spread, known.how = _spread(jaxpr, spread), (piecewise, through)
    steps = []
    for eqn in jaxpr.eqns:
        step = _step(eqn, known)
        steps.append(step)
        _note(step, known)
    return steps, [_is_active(v, known) for v in jaxpr.outvars]


def _is_active(atom: Any, known: Known) -> bool:
    return not hasattr(atom, "val") and atom in known.active


def _spread(jaxpr: Any, outs: Sequence[Any]) -> set[Any]:
    """Return the values that are summed or spread over others, at once or behind elementwise operations."""
    found: set[Any] = set(outs)
    for eqn in reversed(jaxpr.eqns):
        name = eqn.primitive.name
        if name in ELEMENTWISE or is_elementwise(eqn):
            on = not _fits(eqn) or any(out in found for out in eqn.outvars)
        else:
            moved = name in MOVING and any(out in found for out in eqn.outvars)
            on = moved or name in SPREADING or program_of(eqn) is not None
        found.update(v for v in eqn.invars if on and not hasattr(v, "val"))
    return found


def spread_outs(eqn: Any, inner: Any, spread: set[Any]) -> list[Any]:
    """Return the outputs of a program within that are summed or spread around it."""
    pairs = zip(inner.outvars, eqn.outvars, strict=True)
    return [within for within, out in pairs if out in spread and not hasattr(within, "val")]


def _step(eqn: Any, known: Known) -> Step:
    name = eqn.primitive.name
    active = tuple(_is_active(v, known) for v in eqn.invars)
    if not any(active) or name == "stop_gradient":
        return Step(eqn, "same", active)
    if name in WRAPPERS or name in ("scan", "cond"):
        return _wrapper(eqn, active, known)
    if not _real(eqn.outvars[0]):
        return Step(eqn, "same", active)
    moving = [v for v, on in zip(eqn.invars, active, strict=True) if on]
    if name in PRODUCTS:
        return _product(eqn, active, moving, known)
    smooth = name in ACTIVATIONS or name in COEFFICIENTS
    if not (smooth or (known.how[0] and name in PIECEWISE)):
        return Step(eqn, "same", active)
    base = None
    if name not in COEFFICIENTS or eqn.outvars[0] not in known.spread:
        base = _composed(moving, known) or _common(moving, known)
    if base is None or not _fits(eqn):
        return Step(eqn, "held" if smooth else "same", active)
    return Step(eqn, "unit", active, base, region(eqn, base, known))


def _product(eqn: Any, active: tuple[bool, ...], moving: list[Any], known: Known) -> Step:
    """Read a product or a quotient: a unit where both are functions of one value, such as x · tanh(x)."""
    name = eqn.primitive.name
    under = name == "div" and active[1]
    if sum(active[:2]) < 2 and not under:
        return Step(eqn, "same", active)
    base = None
    if name in ("mul", "div") and _fits(eqn):  # 1 / a, alone, has no value at 0
        base = _common(moving, known) if sum(active[:2]) == 2 else _composed(moving, known)
    if base is not None:
        return Step(eqn, "unit", active, base, region(eqn, base, known))
    gated = [v in known.gates for v in eqn.invars[:2]]
    first = gated == [True, False] and name in ("mul", "dot_general", "ragged_dot_general")
    return Step(eqn, "product", active, gate=0 if first else 1)


def _wrapper(eqn: Any, active: tuple[bool, ...], known: Known) -> Step:
    """Read a program within: nothing to do, one unit as a whole, or to be entered."""
    if eqn.primitive.name not in WRAPPERS:
        inner_steps = (read(*inner, *known.how)[0] for inner in bodies(eqn, active, *known.how))
        within = any(step.kind != "same" for steps in inner_steps for step in steps)
        return Step(eqn, "enter" if within else "same", active)
    inner = program_of(eqn)
    if inner is None:
        return Step(eqn, "same", active)
    steps, _ = read(inner, active, *known.how, spread_outs(eqn, inner, known.spread))
    if all(step.kind == "same" for step in steps):
        return Step(eqn, "same", active)
    moving = {v for v, on in zip(eqn.invars, active, strict=True) if on}
    if is_elementwise(eqn) and len(moving) == 1 and not any(step.kind in ("held", "product") for step in steps):
        base = _composed(list(moving), known) or next(iter(moving))
        return Step(eqn, "unit", active, base, region(eqn, base, known))
    return Step(eqn, "enter", active, spread=tuple(spread_outs(eqn, inner, known.spread)))


def bodies(
    eqn: Any, active: tuple[bool, ...], piecewise: bool = False, through: bool = False
) -> list[tuple[Any, list[bool]]]:
    """Return the programs within a scan or a cond, each with which of its inputs depend on the input."""
    if eqn.primitive.name == "cond":
        return [(opened(branch), list(active[1:])) for branch in eqn.params["branches"]]
    body, within = opened(eqn.params["jaxpr"]), list(active)
    first, count = scan_carries(eqn)
    while True:  # what depends on the input after one turn does so before the next
        outs = read(body, within, piecewise, through)[1][:count]
        grown = [a or b for a, b in zip(within[first : first + count], outs, strict=True)]
        if grown == within[first : first + count]:
            return [(body, within)]
        within[first : first + count] = grown


def scan_carries(eqn: Any) -> tuple[int, int]:
    """Return where the carries of a scan begin among its arguments, and how many there are."""

    def kept(outer: Sequence[Any], within: Sequence[Any]) -> int:  # what is not cut into turns
        return sum(a.aval.ndim == b.aval.ndim for a, b in zip(outer, within, strict=True))

    body = opened(eqn.params["jaxpr"])
    carries = kept(eqn.outvars, body.outvars)
    return kept(eqn.invars, body.invars) - carries, carries


def opened(jaxpr: Any) -> Any:
    """Return a program without its constants."""
    return getattr(jaxpr, "jaxpr", jaxpr)


def closed_of(eqn: Any) -> Any:
    """Return the program inside of a wrapper, open or closed, that takes the wrapper's arguments; else None."""
    for value in eqn.params.values() if eqn.primitive.name in WRAPPERS else ():
        inner = opened(value)
        if hasattr(inner, "eqns") and len(inner.invars) == len(eqn.invars):
            return value
    return None


def program_of(eqn: Any) -> Any:
    """Return the open program inside of a wrapper; else None."""
    return opened(closed_of(eqn))


def _note(step: Step, known: Known) -> None:
    """Note what is known of an operation's outputs."""
    eqn, name = step.eqn, step.eqn.primitive.name
    dependent = any(step.active) and name != "stop_gradient"
    for out in eqn.outvars:
        known.made[out] = eqn
    if not dependent:
        return
    moving = [v for v, on in zip(eqn.invars, step.active, strict=True) if on]
    first = eqn.outvars[0]
    if step.kind == "held":
        if known.how[1]:
            known.active.add(first)
            known.gates.add(first)
        return  # else a constant from here on
    inner = program_of(eqn) if step.kind in ("enter", "same") else None
    outs = [True] * len(eqn.outvars)
    if inner is not None:
        outs = read(inner, step.active, *known.how, spread_outs(eqn, inner, known.spread))[1]
    known.active.update(out for out, on in zip(eqn.outvars, outs, strict=True) if on)
    if len(eqn.outvars) == 1 and is_elementwise(eqn) and _fits(eqn):
        known.chains[first] = [first, *_chain(moving, known)]
    if name == "convert_element_type" and not _real(eqn.invars[0]):  # a mask
        known.gates.add(first)
    if step.kind == "unit":
        known.bases[first] = step.base
        known.gates.add(first)
    elif (step.kind == "same" and name in AFFINE | MOVING | {"mul", "div"}) and any(v in known.gates for v in moving):
        known.gates.add(first)


def _real(atom: Any) -> bool:
    return bool(jnp.issubdtype(atom.aval.dtype, jnp.inexact))


def _fits(eqn: Any) -> bool:
    """Whether every array among an operation's arguments has the shape of its output: nothing is spread."""
    shape = eqn.outvars[0].aval.shape
    return all(getattr(v.aval, "shape", ()) in ((), shape) for v in eqn.invars)


def is_elementwise(eqn: Any) -> bool:
    """Whether an operation, or all in a wrapped program, act on each entry by itself."""
    if eqn.primitive.name in ELEMENTWISE:
        return layer_of(eqn) is None
    inner = program_of(eqn)
    if inner is None or len(eqn.outvars) != 1 or not _fits(eqn):
        return False
    within = (is_elementwise(e) or (e.primitive.name == "broadcast_in_dim" and not e.invars[0].aval.shape)
              for e in inner.eqns)  # fmt: skip
    return bool(inner.eqns) and all(within)


def _chain(values: Sequence[Any], known: Known) -> list[Any]:
    """Return what all of some values are elementwise functions of, the nearest first."""
    chains = [known.chains.get(v, [v]) for v in values]
    return [v for v in chains[0] if all(v in chain for chain in chains[1:])]


def _common(values: Sequence[Any], known: Known) -> Any:
    return next(iter(_chain(values, known)), None)


def _composed(values: Sequence[Any], known: Known) -> Any:
    """Return the base of the unit that a value comes from by numbers alone, as in log(1 + exp(x)); else None."""
    value = values[0] if len(set(values)) == 1 else None
    while value is not None and value not in known.bases:
        eqn = known.made.get(value)
        if eqn is None or eqn.primitive.name not in AFFINE | {"mul", "div"} or layer_of(eqn) is not None:
            return None
        inputs = [v for v in eqn.invars if _is_active(v, known)]
        others = [v for v in eqn.invars if not _is_active(v, known)]
        if len(inputs) != 1 or any(getattr(v.aval, "shape", ()) for v in others):
            return None
        value = inputs[0]
    return None if value is None else known.bases[value]


def region(eqn: Any, base: Any, known: Known) -> tuple[Any, ...]:
    """Return the operations from a base to an operation's output, in order."""
    found: dict[int, Any] = {}

    def walk(eqn: Any) -> None:
        if id(eqn) in found:
            return
        for v in eqn.invars:
            if not hasattr(v, "val") and v is not base and v in known.made and _is_active(v, known):
                walk(known.made[v])
        found[id(eqn)] = eqn

    walk(eqn)
    return tuple(found.values())


def free_inputs(step: Step) -> list[Any]:
    """Return what a unit reads beside its base: constants of the program, in the order of their use."""
    inside = {out for eqn in step.region for out in eqn.outvars}
    atoms = (v for eqn in step.region for v in eqn.invars if not hasattr(v, "val"))
    return list(dict.fromkeys(v for v in atoms if v is not step.base and v not in inside))


def operation(step: Step) -> str:
    """Name an operation: the function that was wrapped, such as "silu", or the primitive."""
    return _name(step.eqn)


def _name(eqn: Any) -> str:
    inner = program_of(eqn)
    if inner is None or eqn.params.get("name"):
        return str(eqn.params.get("name") if inner is not None else eqn.primitive.name)
    return _name(inner.eqns[0]) if len(inner.eqns) == 1 else str(eqn.primitive.name)
