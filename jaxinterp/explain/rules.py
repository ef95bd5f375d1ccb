"""A function with other local rules than the gradient's, as one transformation of its jaxpr.

The function is traced, and run operation by operation; where a rule differs from the derivative, the operation becomes
a `jax.custom_vjp` function: forward the same value, backward the rule. What `jax.vjp` of the result carries back is
then relevance, or a multiplier, and all of JAX works on it: `jit`, `vmap` over targets, `lax.scan`, `jax.checkpoint`.

    affine     dot_general or convolution with a constant kernel, with the constants added and multiplied behind it
    unit       an elementwise function of one value, such as GELU (see `units`)
    scale      constants added and multiplied elsewhere
    add        sum or difference of two streams
    center     x minus its mean
    linear     sums, pooling by means, a kernel that depends on the input but is held
    largest    maxima: max-pooling
    product    two streams multiplied, elementwise or as matrices; quotient: one divided by another
    softmax    exp(x) / Σ exp(x)
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from jaxinterp.checks import require
from jaxinterp.errors import ConfigError
from jaxinterp.explain.merging import RESHAPING, SAME, SCALING, Affine, Layer, Plan, reached
from jaxinterp.explain.program import as_written
from jaxinterp.explain.tracing import bind_again
from jaxinterp.explain.units import (
    AFFINE,
    ELEMENTWISE,
    PIECEWISE,
    WRAPPERS,
    Step,
    closed_of,
    free_inputs,
    opened,
    program_of,
    read,
    scan_carries,
)

# fmt: off
INLINED = frozenset({"closed_call", "core_call", "custom_vmap_call", "jit", "pjit"})
"""Wrappers that are opened before anything is read."""
MOVING = SAME | RESHAPING | {
    "concatenate", "dynamic_slice", "dynamic_update_slice", "gather", "pad", "rev", "scatter", "select_n", "slice",
    "sort", "split", "stack", "tile", "top_k", "transpose", "unstack",
}
"""Operations that move entries, whose transpose moves them back."""
SUMMING = frozenset({"cumsum", "reduce_sum", "reduce_window_sum", "scatter-add"})
THRESHOLDS = frozenset({"clamp", "ge", "gt", "le", "lt", "max", "min", "select_n"})
LARGEST = frozenset({"cummax", "cummin", "max", "min", "reduce_max", "reduce_min", "reduce_window_max",
                     "reduce_window_min"})
# fmt: on


class Value(NamedTuple):
    """A value that depends on the input.

    Attributes:
        primal: the value.
        refs: the value at each reference.
        active: whether relevance flows into it.
        deep: whether an affine layer lies between the input and it.
    """

    primal: Array
    refs: tuple[Array, ...] = ()
    active: bool = True
    deep: bool = False


class Local(NamedTuple):
    """What the rule of one operation is given.

    Attributes:
        run: the operation as a function of `args`.
        args: its arguments that depend on the input, and into which relevance flows.
        refs: the same at each reference.
        out: its value.
        ref_outs: its value at each reference.
        back: what comes back to its value, of the same shape.
        affine: of an affine layer, its parts.
        name: the primitive; of an activation "relu" where it is piecewise affine, else "unit".
    """

    run: Callable[..., Array]
    args: Sequence[Array]
    refs: Sequence[Sequence[Array]]
    out: Array
    ref_outs: Sequence[Array]
    back: Array
    affine: Affine | None
    name: str


def gradient(rules: Any, local: Local) -> Sequence[Array]:
    """Go back by the derivative."""
    return jax.vjp(local.run, *local.args)[1](local.back)


class Rules:
    """Local rules: here, the derivative of everything. A subclass changes some.

    A rule takes the `Local` values of an operation and returns what goes back to each of its `args`.

    Attributes:
        first: whether (not None) affine layers that come first have a rule of their own, also in loops.
        holds: whether coefficients (see `units`), and what `stop_gradient` returns, let nothing through.
        paired: whether every operation is run at the references too; else up to the first affine layer.
        whole_softmax: whether a softmax is one operation; else its exponentials are coefficients.
    """

    first: Any = None
    holds = False
    paired = False
    whole_softmax = False
    on_affine = on_unit = on_scale = on_add = on_center = on_linear = on_largest = gradient
    on_product = on_quotient = on_softmax = gradient


def rules(
    function: Callable[..., Any], composite: Rules, references: Sequence[Sequence[Array]] = ()
) -> Callable[..., Any]:
    """Give a function other local rules: the same values, with `jax.vjp` going back by the rules.

    Args:
        function: arrays ↦ pytree of arrays; it may be jitted, vmapped and hold `remat`, `scan`, `cond`, `custom_jvp`,
            `custom_vjp`.
        composite: the rule of each kind of operation, such as `COMPOSITES["epsilon_plus"]`.
        references: further arguments of the function, of which rules may make use: the baseline of DeepLIFT, the lowest
            and the highest input of LRP's z^B.

    Returns:
        A function of the same arguments, all floating, with the same outputs.

    Raises:
        ConfigError: an operation has no rule; the line names it and its module. Or nothing passes, as the output is a
            coefficient that is held.

    Example:
        >>> from jaxinterp.rules import COMPOSITES
        >>> w = jnp.array([[1.0], [3.0]])
        >>> out, back = jax.vjp(rules(lambda x: jax.nn.relu(x @ w), COMPOSITES["epsilon"]), jnp.array([[1.0, 2.0]]))
        >>> [f"{r:.2f}" for r in back(out)[0].ravel()]
        ['1.00', '6.00']
    """

    def ruled(*primals: Array) -> Any:
        return with_references(function, composite, primals, references)[0]

    return ruled


def with_references(
    function: Callable[..., Any], composite: Rules, primals: Sequence[Array], references: Sequence[Sequence[Array]]
) -> tuple[Any, list[Any]]:
    """Return the output of a function under `rules`, and those at the references."""
    with as_written():
        closed, shape = jax.make_jaxpr(function, return_shape=True)(*primals)
    values = [
        Value(primal, tuple(map(lax.stop_gradient, refs))) for primal, *refs in zip(primals, *references, strict=True)
    ]
    outs = _opened_run(closed, values, composite)
    if composite.holds and not any(map(_is_active, outs)):
        got = "an output that depends on the input by held coefficients only, such as a softmax"
        raise ConfigError(f"network: got {got}, expected logits")
    structure = jax.tree.structure(shape)
    count = len(references) if composite.paired else 0
    at = [[_at(out, k) for out in outs] for k in (None, *range(count))]
    whole = [jax.tree.unflatten(structure, found) for found in at]
    return whole[0], whole[1:]


def _at(value: Any, k: int | None) -> Any:
    """Return the value itself (None), or at a reference."""
    return value if not isinstance(value, Value) else value.primal if k is None else value.refs[k]


def _opened_run(closed: Any, values: Sequence[Any], rules: Rules, spread: Sequence[int] = ()) -> list[Any]:
    """Run a program after opening its wrappers."""
    jaxpr, consts = opened(closed), getattr(closed, "consts", ())
    inline = jax.make_jaxpr(partial(_inline, jaxpr, consts))(*(jax.typeof(_at(v, None)) for v in values))
    return _run(inline.jaxpr, [*inline.consts, *values], rules, spread)


def _inline(jaxpr: Any, consts: Sequence[Any], *args: Any) -> list[Any]:
    known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))
    for eqn in jaxpr.eqns:
        values = [_read(known, atom) for atom in eqn.invars]
        inner = closed_of(eqn) if eqn.primitive.name in INLINED else None
        if inner is None:
            outs = bind_again(eqn, *values)
        else:
            with jax.named_scope(str(eqn.source_info.name_stack)):
                outs = _inline(opened(inner), getattr(inner, "consts", ()), *values)
        known.update(zip(eqn.outvars, outs, strict=True))
    return [_read(known, atom) for atom in jaxpr.outvars]


def _read(known: dict[Any, Any], atom: Any) -> Any:
    return np.asarray(atom.val, atom.aval.dtype) if hasattr(atom, "val") else known[atom]


def _run(jaxpr: Any, args: Sequence[Any], rules: Rules, spread: Sequence[int]) -> list[Any]:
    """Run an opened program on values and constants."""
    inputs = [*jaxpr.constvars, *jaxpr.invars]
    known: dict[Any, Any] = dict(zip(inputs, args, strict=True))
    active = [_is_active(known[v]) for v in jaxpr.invars]
    outs = [jaxpr.outvars[i] for i in spread if not hasattr(jaxpr.outvars[i], "val")]
    steps, _ = read(jaxpr, active, piecewise=True, through=not rules.holds, spread=outs)
    plan = Plan(jaxpr, {v for v in inputs if isinstance(known[v], Value)}, rules.holds and rules.whole_softmax)
    for i, step in enumerate(steps):
        if i in plan.skipped:
            continue
        eqn = step.eqn
        if i in plan.layers:
            outs = [_layer(plan.layers[i], [_read(known, atom) for atom in plan.layers[i].atoms], rules)]
            known.update(zip(eqn.outvars, outs, strict=True))
            continue
        values = [_read(known, atom) for atom in eqn.invars]
        if not any(isinstance(v, Value) for v in values):
            outs = bind_again(eqn, *values)
        elif i in plan.softmaxes:
            region, base, free = plan.softmaxes[i]
            outs = [_apply("softmax", partial(_region, region, [base, *free]), [known[base], *map(known.get, free)],
                           rules, "softmax")]  # fmt: skip
        elif not any(map(_is_active, values)):
            outs = _held(partial(bind_again, eqn), values)
        elif rules.paired and i in plan.chosen:
            region, name, cases = plan.chosen[i]
            run = partial(_region, region, cases)
            outs = [_apply("largest", run, [_read(known, v) for v in cases], rules, name)]
        elif step.kind == "unit" and not any(_is_active(known.get(v)) for v in free_inputs(step)):
            atoms = [step.base, *free_inputs(step)]
            run = partial(_region, step.region, atoms)
            name = (
                "relu" if _is_piecewise(step.region, step.base) and eqn.outvars[0] not in plan.coefficients else "unit"
            )
            outs = [_apply("unit", run, [known[v] for v in atoms], rules, name)]
        else:
            outs = _operation(step, values, i in plan.centered, rules)
        known.update(zip(eqn.outvars, outs, strict=True))
    return [_read(known, atom) for atom in jaxpr.outvars]


def _is_active(value: Any) -> bool:
    return isinstance(value, Value) and value.active


def _region(region: Sequence[Any], atoms: Sequence[Any], *values: Any) -> Array:
    """Run the operations of a unit."""
    known = dict(zip(atoms, values, strict=True))
    for eqn in region:
        known.update(zip(eqn.outvars, bind_again(eqn, *(_read(known, v) for v in eqn.invars)), strict=True))
    return known[region[-1].outvars[0]]  # type: ignore[no-any-return]


def _is_piecewise(region: Sequence[Any], base: Any) -> bool:
    """Whether a unit is piecewise affine and has a threshold, as ReLU."""
    names = {eqn.primitive.name for eqn in _innermost(region)}
    return not names.isdisjoint(THRESHOLDS) and _stays_piecewise(region, {base})


def _innermost(eqns: Sequence[Any]) -> Iterator[Any]:
    for eqn in eqns:
        inner = program_of(eqn)
        yield from (eqn,) if inner is None else _innermost(inner.eqns)


def _stays_piecewise(eqns: Sequence[Any], sloped: set[Any]) -> bool:
    """Whether operations are piecewise affine in some values; those with a slope are added to these, masks are not."""
    for eqn in eqns:
        name, inner = eqn.primitive.name, program_of(eqn)
        on = [not hasattr(v, "val") and v in sloped for v in eqn.invars]
        outs = [any(on)] * len(eqn.outvars)
        if inner is not None:
            within = {v for v, moving in zip(inner.invars, on, strict=True) if moving}
            if not _stays_piecewise(inner.eqns, within):
                return False
            outs = [not hasattr(v, "val") and v in within for v in inner.outvars]
        elif name in ("div", "mul"):
            if all(on) or (name == "div" and on[1]):
                return False
        elif name not in PIECEWISE | AFFINE | {"broadcast_in_dim"}:
            return False
        floating = [jnp.issubdtype(v.aval.dtype, jnp.inexact) for v in eqn.outvars]
        sloped.update(v for v, moving, real in zip(eqn.outvars, outs, floating, strict=True) if moving and real)
    return True


def _each(run: Callable[..., Any], values: Sequence[Any]) -> list[Any]:
    """Run an operation on the values themselves and, as far as all have them, at the references."""
    moving = [v for v in values if isinstance(v, Value)]
    count = min(len(v.refs) for v in moving)
    return [run(*(_at(v, k) for v in values)) for k in (None, *range(count))]


def _layer(layer: Layer, values: Sequence[Any], rules: Rules) -> Value:
    """Run an affine layer; of a held input its value is held."""
    if not _is_active(values[0]):
        return _held(lambda *args: [layer.run(*args)], values)[0]
    return _apply("affine", layer.run, values, rules, layer.eqns[0].primitive.name, layer)


def _held(run: Callable[..., list[Array]], values: Sequence[Any]) -> list[Value]:
    """Run operations whose values are held."""
    found = _each(run, values)
    return [Value(lax.stop_gradient(own), tuple(refs), active=False) for own, *refs in zip(*found, strict=True)]


def _operation(step: Step, values: Sequence[Any], centered: bool, rules: Rules) -> list[Any]:
    """Run one operation with relevance flowing into some of its arguments, by the rule of its kind."""
    eqn, kind, name = step.eqn, step.kind, step.eqn.primitive.name
    active = [_is_active(v) for v in values]
    count, run = sum(active), lambda *args: bind_again(eqn, *args)[0]
    inexact = any(jnp.issubdtype(v.aval.dtype, jnp.inexact) for v in eqn.outvars)
    apply = partial(_apply, run=run, values=values, rules=rules, name=name)
    if not inexact:
        return _held(partial(bind_again, eqn), values)
    if name == "stop_gradient":
        return [values[0]] if rules.paired else _held(partial(bind_again, eqn), values)
    if name in WRAPPERS or name in ("scan", "cond"):
        return _enter(step, values, rules)
    if rules.holds and (kind == "held" or (name == "div" and active == [False, True])):
        return _held(partial(bind_again, eqn), values)
    if name in ("dot_general", "conv_general_dilated") and count == 2:
        return [apply("product")]
    if name in ("dot_general", "conv_general_dilated", *SUMMING):
        return [apply("linear")]
    if name in LARGEST:
        return [apply("largest")]
    if name in MOVING and (
        not rules.paired or all(isinstance(v, Value) == a for v, a in zip(values, active, strict=True))
    ):
        return _moved(eqn, values)
    if name in ELEMENTWISE and count == 1:
        scaled = name in SCALING and not (name == "div" and active[1])
        return [apply("scale" if scaled else "unit")]
    if name in ("add", "add_any", "sub"):
        return [apply("center" if centered else "add")]
    if name in ("mul", "div"):
        return [apply("product" if name == "mul" else "quotient")]
    raise _no_rule(eqn, "whose indices or choices depend on the input, " if name in MOVING else "")


def _no_rule(eqn: Any, why: str = "") -> ConfigError:
    where = str(eqn.source_info.name_stack) or "the function itself"
    return ConfigError(f"network: got {eqn.primitive.name} in {where}, {why}expected operations that have a rule")


def _moved(eqn: Any, values: Sequence[Any]) -> list[Any]:
    found = _each(partial(bind_again, eqn), values)
    deep = any(v.deep for v in values if isinstance(v, Value))
    return [
        Value(own, tuple(refs), jnp.issubdtype(own.dtype, jnp.inexact), deep) for own, *refs in zip(*found, strict=True)
    ]


def _apply(
    kind: str,
    run: Callable[..., Array],
    values: Sequence[Any],
    rules: Rules,
    name: str,
    layer: Layer | None = None,
) -> Value:
    """Run an operation as a function with its rule for a derivative."""
    active = [_is_active(v) for v in values]
    deep = any(v.deep for v in values if isinstance(v, Value))
    count = min(len(v.refs) for v in values if isinstance(v, Value)) if kind != "affine" or rules.paired else 0
    refs = tuple(lax.stop_gradient(run(*(_at(v, k) for v in values))) for k in range(count))
    rule = getattr(rules, f"on_{kind}")
    if getattr(rule, "__func__", None) is gradient:
        return Value(run(*(_at(v, None) for v in values)), refs, deep=deep or kind == "affine")
    moving = [v for v, on in zip(values, active, strict=True) if on]
    still = [lax.stop_gradient(_at(v, None)) for v, on in zip(values, active, strict=True) if not on]

    def filled(args: Sequence[Any], still: Sequence[Any]) -> Array:
        given, others = iter(args), iter(still)
        return run(*(next(given) if on else next(others) for on in active))

    @jax.custom_vjp
    def call(args: list[Array], still: list[Any], refs: Any) -> Array:
        return filled(args, still)

    def forward(args: list[Array], still: list[Any], refs: Any) -> Any:
        out = filled(args, still)
        return out, (args, still, refs, out)

    def backward(saved: Any, back: Array) -> Any:
        args, still, (ref_args, ref_outs), out = saved
        affine = None if layer is None else layer.affine(still, first=not deep)
        local = Local(lambda *args: filled(args, still), args, ref_args, out, ref_outs, back, affine, name)
        came = rule(local)
        return [b.astype(a.dtype) for a, b in zip(args, came, strict=True)], None, None

    call.defvjp(forward, backward)
    ref_args = [list(column) for column in zip(*(v.refs for v in moving), strict=False)]
    out = call([v.primal for v in moving], still, (ref_args, list(refs)))
    return Value(out, refs, deep=deep or kind == "affine")


# Programs within


def _enter(step: Step, values: Sequence[Any], rules: Rules) -> list[Any]:
    """Run the program within an operation by the rules."""
    eqn, name = step.eqn, step.eqn.primitive.name
    if step.kind == "same" and not rules.holds and not rules.paired:
        return _moved(eqn, values)  # with a derivative of its own, if it has one
    if name == "scan":
        return _scan(eqn, values, rules)
    if name == "cond":
        return _cond(eqn, values, rules)
    inner = closed_of(eqn)
    if inner is None:
        raise _no_rule(eqn)
    spread = [i for i, v in enumerate(opened(inner).outvars) if not hasattr(v, "val") and v in step.spread]
    with jax.named_scope(str(eqn.source_info.name_stack)):
        if name not in ("checkpoint", "remat", "remat2"):
            return _opened_run(inner, values, rules, spread)
        arrays, unpack = _packed(values)
        made: list[Any] = []

        def body(arrays: Any) -> Any:
            outs, unpacked = _packed(_opened_run(inner, unpack(arrays), rules, spread))
            made[:] = [unpacked]
            return outs

        policy, prevent = eqn.params["policy"], eqn.params["prevent_cse"]
        outs = jax.checkpoint(body, policy=policy, prevent_cse=prevent)(arrays)  # type: ignore[arg-type]
        return made[0](outs)  # type: ignore[no-any-return]


def _packed(values: Sequence[Any]) -> tuple[list[list[Any]], Callable[[Any], list[Any]]]:
    """Return values as lists of arrays, and the function that makes values of such lists."""
    kinds = [(v.active, v.deep) if isinstance(v, Value) else None for v in values]

    def unpack(arrays: Any) -> list[Any]:
        return [
            rest[0] if kind is None else Value(rest[0], tuple(rest[1:]), *kind)
            for kind, rest in zip(kinds, arrays, strict=True)
        ]

    return [[v.primal, *v.refs] if isinstance(v, Value) else [v] for v in values], unpack


def _as_value(value: Any, count: int, deep: bool) -> Any:
    """Return a floating value with that many references, so that all turns and branches return alike."""
    if not jnp.issubdtype(_at(value, None).dtype, jnp.inexact):
        return _at(value, None)
    if not isinstance(value, Value):
        return Value(value, (value,) * count, deep=deep)
    return value._replace(refs=value.refs[:count], active=True, deep=deep)


def _is_deep(value: Any) -> bool:
    return isinstance(value, Value) and value.deep


def _as_deep(values: Sequence[Any], deep: Sequence[bool]) -> list[Any]:
    """Mark values as behind an affine layer, or not."""
    return [v._replace(deep=on) if isinstance(v, Value) else v for v, on in zip(values, deep, strict=True)]


def _scan(eqn: Any, values: Sequence[Any], rules: Rules) -> list[Any]:
    """Run a scan, each turn by the rules; the first by itself where its layers come first, and have another rule."""
    body, (at, carries), params = eqn.params["jaxpr"], scan_carries(eqn), eqn.params
    fixed, carry, over = values[:at], values[at : at + carries], values[at + carries :]
    how = {key: params[key] for key in ("length", "reverse", "unroll")}
    with jax.named_scope(str(eqn.source_info.name_stack)):
        deep = _deep_carries(body, fixed, carry, over, rules, how)
        shallow = [isinstance(v, Value) and v.active and on and not v.deep for v, on in zip(carry, deep, strict=True)]
        if rules.first is None or not any(shallow) or not params["length"]:
            return _turns(body, fixed, carry, over, rules, deep, how)
        place = params["length"] - 1 if params["reverse"] else 0
        columns, unpack = _packed(over)
        own = _opened_run(body, [*fixed, *carry, *unpack(jax.tree.map(lambda a: a[place], columns))], rules)
        own, stacked = own[:carries], own[carries:]
        rest = [jax.tree.map(lambda a: a[:-1] if params["reverse"] else a[1:], column) for column in columns]
        how["length"] -= 1
        deep = _deep_carries(body, fixed, own, unpack(rest), rules, how)
        lost = any(_is_active(v) and on and not v.deep for v, on in zip(own, deep, strict=True))
        wanted = "a network whose first layer is outside of loops, or in their first turn"
        require(not lost or not how["length"], "composite", "a rule of the first layer", wanted)
        outs = _turns(body, fixed, own, unpack(rest), rules, deep, how)
        joined = [_joined(a, b, params["reverse"]) for a, b in zip(stacked, outs[carries:], strict=True)]
    return [*outs[:carries], *joined]


def _joined(one: Any, rest: Any, last: bool) -> Any:
    """Return what a turn returns and what the turns after it, or before it, return as one stack."""

    def join(k: int | None) -> Array:
        pair = [jnp.asarray(_at(one, k))[None], _at(rest, k)]
        return jnp.concatenate(pair[::-1] if last else pair)

    if not isinstance(rest, Value):
        return join(None)
    one = one if isinstance(one, Value) else Value(one, (one,) * len(rest.refs))
    refs = tuple(join(k) for k in range(len(rest.refs)))
    return Value(join(None), refs, rest.active, one.deep or rest.deep)


def _deep_carries(
    body: Any, fixed: Sequence[Any], carry: Sequence[Any], over: Sequence[Any], rules: Rules, how: dict[str, Any]
) -> list[bool]:
    """Return which carries of a scan are behind an affine layer after some turn."""
    deep = [rules.first is None or _is_deep(v) for v in carry]

    def run(deep: Sequence[bool], found: list[bool]) -> list[Array]:
        return [_at(v, None) for v in _turns(body, fixed, carry, over, rules, deep, how, found)]

    while not all(deep):
        found: list[bool] = []
        jax.eval_shape(partial(run, deep, found))
        grown = [a or b for a, b in zip(deep, found, strict=True)]
        if grown == deep:
            break
        deep = grown
    return deep


def _turns(
    body: Any,
    fixed: Sequence[Any],
    carry: Sequence[Any],
    over: Sequence[Any],
    rules: Rules,
    deep: Sequence[bool],
    how: dict[str, Any],
    found: list[bool] | None = None,
) -> list[Any]:
    """Run the turns of a scan by the rules.

    Args:
        body: the program of a turn.
        fixed: values that are the same in all turns.
        carry: values that go from turn to turn.
        over: values that are cut into turns.
        rules: the rules.
        deep: which carries are taken to be behind an affine layer.
        how: length, direction and unrolling.
        found: filled with which carries are behind one after a turn.
    """
    count, carries = 1 if rules.paired else 0, len(carry)
    fixed, carry, over = (
        [v._replace(refs=v.refs[:count]) if isinstance(v, Value) else v for v in part] for part in (fixed, carry, over)
    )
    grown = [isinstance(v, Value) for v in carry]
    while True:
        flags = [isinstance(v, Value) for v in fixed], grown, [isinstance(v, Value) for v in over]
        outs = _dependent(opened(body), [on for part in flags for on in part])[:carries]
        if all(a or not b for a, b in zip(grown, outs, strict=True)):
            break
        grown = [a or b for a, b in zip(grown, outs, strict=True)]

    def as_carry(values: Sequence[Any]) -> list[Any]:
        both = zip(values, grown, deep, strict=True)
        return [_as_value(v, count, behind) if on else _at(v, None) for v, on, behind in both]

    start, unpack_carry = _packed(as_carry(carry))
    columns, unpack_over = _packed(over)
    made: list[Any] = []

    def turn(carry: Any, over: Any) -> Any:
        outs = _opened_run(body, [*fixed, *unpack_carry(carry), *unpack_over(over)], rules)
        stacked, unpack = _packed(outs[carries:])
        made[:] = [unpack, [_is_deep(v) for v in outs[:carries]]]
        return _packed(as_carry(outs[:carries]))[0], stacked

    end, stacked = lax.scan(turn, start, columns, **how)
    if found is not None:
        found[:] = made[1]
    return [*unpack_carry(end), *made[0](stacked)]


def _cond(eqn: Any, values: Sequence[Any], rules: Rules) -> list[Any]:
    """Run a conditional, each branch by the rules; references go the way of the input."""
    index, *rest = values
    count = 1 if rules.paired else 0
    rest = [v._replace(refs=v.refs[:count]) if isinstance(v, Value) else v for v in rest]
    arrays, unpack = _packed(rest)
    made: list[Any] = []
    deep: list[list[bool]] = []

    def branch(closed: Any, arrays: Any) -> Any:
        outs = _opened_run(closed, unpack(arrays), rules)
        deep.append([_is_deep(v) for v in outs])
        outs, unpacked = _packed([_as_value(v, count, deep=True) for v in outs])
        made[:] = [unpacked]
        return outs

    with jax.named_scope(str(eqn.source_info.name_stack)):
        outs = lax.switch(_at(index, None), [partial(branch, closed) for closed in eqn.params["branches"]], arrays)
    return _as_deep(made[0](outs), [any(column) for column in zip(*deep, strict=True)])


def _dependent(jaxpr: Any, flags: Sequence[bool]) -> list[bool]:
    """Return which outputs of a program depend on some of its inputs, and are floating."""
    moving = reached(jaxpr, {v for v, on in zip(jaxpr.invars, flags, strict=True) if on})
    return [not hasattr(v, "val") and v in moving and jnp.issubdtype(v.aval.dtype, jnp.inexact) for v in jaxpr.outvars]
