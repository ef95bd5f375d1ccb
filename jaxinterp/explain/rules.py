"""A function with other local rules than the gradient's, as one transformation of its jaxpr.

The function is traced, and run operation by operation; where a rule differs from the derivative, the operation becomes
a `jax.custom_vjp` function: forward the same value, backward the rule. What `jax.vjp` of the result carries back is then
relevance, or a multiplier, and all of JAX works on it: `jit`, `vmap` over targets, `lax.scan`, `jax.checkpoint`.

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

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from jaxinterp.errors import ConfigError
from jaxinterp.explain.tracing import bind_again
from jaxinterp.explain.units import (
    AFFINE,
    ELEMENTWISE,
    PIECEWISE,
    WRAPPERS,
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
SCALING = frozenset({"add", "add_any", "div", "mul", "neg", "sub"})
RESHAPING = frozenset({"broadcast_in_dim", "expand_dims", "reshape", "squeeze"})
SAME = frozenset({
    "convert_element_type", "copy", "copy_p", "device_put", "name", "optimization_barrier", "reduce_precision",
    "sharding_constraint",
})
"""Operations that return their argument."""
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


class Affine(NamedTuple):
    """An affine layer, linear(x, kernel) + bias, with all constants behind it merged into kernel and bias.

    Attributes:
        linear: (x, kernel) ↦ output without the bias; linear in both.
        kernel: the merged kernel.
        bias: the merged bias, of a shape that broadcasts to the output; None without one.
        convolution: whether it is a convolution.
        first: whether no affine layer comes before it.
    """

    linear: Callable[[Array, Array], Array]
    kernel: Array
    bias: Array | None
    convolution: bool
    first: bool


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
        holds: whether coefficients (see `units`), and what `stop_gradient` returns, let nothing through.
        paired: whether every operation is run at the references too; else up to the first affine layer.
        whole_softmax: whether a softmax is one operation; else its exponentials are coefficients.
    """

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
        composite: the rule of each kind of operation, such as `attribute.lrp.EPSILON_PLUS`.
        references: further arguments of the function, of which rules may make use: the baseline of DeepLIFT, the lowest
            and the highest input of LRP's z^B.

    Returns:
        A function of the same arguments, all floating, with the same outputs.

    Raises:
        ConfigError: an operation has no rule; the line names it and its module. Or nothing passes, as the output is a
            coefficient that is held.

    Example:
        >>> from jaxinterp.explain.attribute.lrp import COMPOSITES
        >>> w = jnp.array([[1.0], [3.0]])
        >>> out, back = jax.vjp(rules(lambda x: jax.nn.relu(x @ w), COMPOSITES["epsilon"]), jnp.array([[1.0, 2.0]]))
        >>> back(out)[0].round(3)
        Array([[1., 6.]], dtype=float32)
    """

    def ruled(*primals: Array) -> Any:
        return with_references(function, composite, primals, references)[0]

    return ruled


def with_references(
    function: Callable[..., Any], composite: Rules, primals: Sequence[Array], references: Sequence[Sequence[Array]]
) -> tuple[Any, list[Any]]:
    """Return the output of a function under `rules`, and those at the references."""
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


def _opened_run(closed: Any, values: Sequence[Any], rules: Rules) -> list[Any]:
    """Run a program after opening its wrappers."""
    jaxpr, consts = opened(closed), getattr(closed, "consts", ())
    inline = jax.make_jaxpr(partial(_inline, jaxpr, consts))(*(jax.typeof(_at(v, None)) for v in values))
    return _run(inline.jaxpr, [*inline.consts, *values], rules)


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


def _run(jaxpr: Any, args: Sequence[Any], rules: Rules) -> list[Any]:
    """Run an opened program on values and constants."""
    inputs = [*jaxpr.constvars, *jaxpr.invars]
    known: dict[Any, Any] = dict(zip(inputs, args, strict=True))
    active = [_is_active(known[v]) for v in jaxpr.invars]
    steps, _ = read(jaxpr, active, piecewise=True)
    plan = Plan(jaxpr, {v for v in inputs if isinstance(known[v], Value)}, rules)
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
        elif step.kind == "unit" and not any(_is_active(known.get(v)) for v in free_inputs(step)):
            atoms = [step.base, *free_inputs(step)]
            run = partial(_region, step.region, atoms)
            name = "relu" if _is_piecewise(step.region) and eqn.outvars[0] not in plan.coefficients else "unit"
            outs = [_apply("unit", run, [known[v] for v in atoms], rules, name)]
        else:
            outs = _operation(eqn, step.kind, values, i in plan.centered, rules)
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


def _is_piecewise(region: Sequence[Any]) -> bool:
    """Whether a unit is piecewise affine and has a threshold, as ReLU."""
    names = {eqn.primitive.name for eqn in _innermost(region)}
    return names <= PIECEWISE | AFFINE | {"broadcast_in_dim", "div", "mul"} and not names.isdisjoint(THRESHOLDS)


def _innermost(eqns: Sequence[Any]) -> Iterator[Any]:
    for eqn in eqns:
        inner = program_of(eqn)
        yield from (eqn,) if inner is None else _innermost(inner.eqns)


def _each(run: Callable[..., Any], values: Sequence[Any]) -> list[Any]:
    """Run an operation on the values themselves and, as far as all have them, at the references."""
    moving = [v for v in values if isinstance(v, Value)]
    count = min(len(v.refs) for v in moving)
    return [run(*(_at(v, k) for v in values)) for k in (None, *range(count))]


def _layer(layer: "Layer", values: Sequence[Any], rules: Rules) -> Value:
    """Run an affine layer; of a held input its value is held."""
    if not _is_active(values[0]):
        return _held(lambda *args: [layer.run(*args)], values)[0]
    return _apply("affine", layer.run, values, rules, layer.eqns[0].primitive.name, layer)


def _held(run: Callable[..., list[Array]], values: Sequence[Any]) -> list[Value]:
    """Run operations whose values are held."""
    found = _each(run, values)
    return [Value(lax.stop_gradient(own), tuple(refs), active=False) for own, *refs in zip(*found, strict=True)]


def _operation(eqn: Any, kind: str, values: Sequence[Any], centered: bool, rules: Rules) -> list[Any]:
    """Run one operation with relevance flowing into some of its arguments, by the rule of its kind."""
    name, active = eqn.primitive.name, [_is_active(v) for v in values]
    count, run = sum(active), lambda *args: bind_again(eqn, *args)[0]
    inexact = any(jnp.issubdtype(v.aval.dtype, jnp.inexact) for v in eqn.outvars)
    apply = partial(_apply, run=run, values=values, rules=rules, name=name)
    if not inexact:
        return _held(partial(bind_again, eqn), values)
    if name == "stop_gradient":
        return [values[0]] if rules.paired else _held(partial(bind_again, eqn), values)
    if name in WRAPPERS or name in ("scan", "cond"):
        return _enter(eqn, kind, values, rules)
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
    raise _no_rule(eqn)


def _no_rule(eqn: Any) -> ConfigError:
    where = str(eqn.source_info.name_stack) or "the function itself"
    return ConfigError(f"network: got {eqn.primitive.name} in {where}, expected operations that have a rule")


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
    layer: "Layer | None" = None,
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


def _enter(eqn: Any, kind: str, values: Sequence[Any], rules: Rules) -> list[Any]:
    """Run the program within an operation by the rules."""
    name = eqn.primitive.name
    if kind == "same" and not rules.holds and not rules.paired:
        return _moved(eqn, values)  # with a derivative of its own, if it has one
    if name == "scan":
        return _scan(eqn, values, rules)
    if name == "cond":
        return _cond(eqn, values, rules)
    inner = closed_of(eqn)
    if inner is None:
        raise _no_rule(eqn)
    with jax.named_scope(str(eqn.source_info.name_stack)):
        if name not in ("checkpoint", "remat", "remat2"):
            return _opened_run(inner, values, rules)
        arrays, unpack = _packed(values)
        made: list[Any] = []

        def body(arrays: Any) -> Any:
            outs, unpacked = _packed(_opened_run(inner, unpack(arrays), rules))
            made[:] = [unpacked]
            return outs

        policy, prevent = eqn.params["policy"], eqn.params["prevent_cse"]
        outs = jax.checkpoint(body, policy=policy, prevent_cse=prevent)(arrays)  # type: ignore[arg-type]
        return made[0](outs)  # type: ignore[no-any-return]


def _packed(values: Sequence[Any]) -> tuple[list[list[Any]], Callable[[Any], list[Any]]]:
    """Return values as lists of arrays, and the function that makes values of such lists."""
    kinds = [v._replace(primal=jnp.zeros(()), refs=()) if isinstance(v, Value) else None for v in values]

    def unpack(arrays: Any) -> list[Any]:
        return [
            rest[0] if kind is None else kind._replace(primal=rest[0], refs=tuple(rest[1:]))
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


def _scan(eqn: Any, values: Sequence[Any], rules: Rules) -> list[Any]:
    """Run a scan, each turn by the rules."""
    body, (first, carries) = eqn.params["jaxpr"], scan_carries(eqn)
    count = 1 if rules.paired else 0
    values = [v._replace(refs=v.refs[:count]) if isinstance(v, Value) else v for v in values]
    flags = [isinstance(v, Value) for v in values]
    while True:
        outs = _dependent(opened(body), flags)[:carries]
        grown = [a or b for a, b in zip(flags[first : first + carries], outs, strict=True)]
        if grown == flags[first : first + carries]:
            break
        flags[first : first + carries] = grown
    fixed, carry, over = values[:first], values[first : first + carries], values[first + carries :]
    carry = [_as_value(v, count, deep=True) if on else v for v, on in zip(carry, grown, strict=True)]
    start, unpack_carry = _packed(carry)
    columns, unpack_over = _packed(over)
    made: list[Any] = []

    def turn(carry: Any, over: Any) -> Any:
        outs = _opened_run(body, [*fixed, *unpack_carry(carry), *unpack_over(over)], rules)
        ends = [_as_value(v, count, deep=True) if on else _at(v, None) for v, on in zip(outs, grown, strict=False)]
        stacked, unpack = _packed(outs[carries:])
        made[:] = [unpack]
        return _packed(ends)[0], stacked

    how = {key: eqn.params[key] for key in ("length", "reverse", "unroll")}
    with jax.named_scope(str(eqn.source_info.name_stack)):
        end, stacked = lax.scan(turn, start, columns, **how)
    return [*unpack_carry(end), *made[0](stacked)]


def _cond(eqn: Any, values: Sequence[Any], rules: Rules) -> list[Any]:
    """Run a conditional, each branch by the rules; references go the way of the input."""
    index, *rest = values
    count = 1 if rules.paired else 0
    rest = [v._replace(refs=v.refs[:count]) if isinstance(v, Value) else v for v in rest]
    arrays, unpack = _packed(rest)
    made: list[Any] = []

    def branch(closed: Any, arrays: Any) -> Any:
        outs = _opened_run(closed, unpack(arrays), rules)
        outs, unpacked = _packed([_as_value(v, count, deep=True) for v in outs])
        made[:] = [unpacked]
        return outs

    with jax.named_scope(str(eqn.source_info.name_stack)):
        outs = lax.switch(_at(index, None), [partial(branch, closed) for closed in eqn.params["branches"]], arrays)
    return made[0](outs)  # type: ignore[no-any-return]


def _dependent(jaxpr: Any, flags: Sequence[bool]) -> list[bool]:
    """Return which outputs of a program depend on some of its inputs, and are floating."""
    moving = _reached(jaxpr, {v for v, on in zip(jaxpr.invars, flags, strict=True) if on})
    return [not hasattr(v, "val") and v in moving and jnp.issubdtype(v.aval.dtype, jnp.inexact) for v in jaxpr.outvars]


def _reached(jaxpr: Any, moving: set[Any]) -> set[Any]:
    for eqn in jaxpr.eqns:
        if any(not hasattr(v, "val") and v in moving for v in eqn.invars):
            moving.update(eqn.outvars)
    return moving


# Affine layers, and patterns of several operations


class Layer(NamedTuple):
    """A linear operation with the constants behind it.

    Attributes:
        eqns: the linear operation, then what is merged into it.
        side: which of its arguments is the layer's input.
        path: for each of `eqns`, the axes of its output that are the layer's features, in one order.
        axes: the axes of the kernel that are its features, in the same order.
    """

    eqns: tuple[Any, ...]
    side: int
    path: tuple[tuple[int, ...], ...]
    axes: tuple[int, ...]

    @property
    def x(self) -> Any:
        """The layer's input."""
        return self.eqns[0].invars[self.side]

    @property
    def atoms(self) -> list[Any]:
        """The layer's input, its kernel, and the constants merged into it, in order."""
        outs = {eqn.outvars[0] for eqn in self.eqns}
        constants = [v for eqn in self.eqns[1:] for v in eqn.invars if hasattr(v, "val") or v not in outs]
        return [self.x, self.eqns[0].invars[1 - self.side], *constants]

    def run(self, x: Array, kernel: Array, *constants: Any) -> Array:
        """Run the operations as they are written."""
        given, outs = iter(constants), {eqn.outvars[0] for eqn in self.eqns}
        value = self._linear(self.eqns[0], x, kernel)
        for eqn in self.eqns[1:]:
            args = [value if not hasattr(v, "val") and v in outs else next(given) for v in eqn.invars]
            (value,) = bind_again(eqn, *args)
        return value

    def _linear(self, eqn: Any, x: Array, kernel: Array) -> Array:
        return bind_again(eqn, *((x, kernel) if self.side == 0 else (kernel, x)))[0]

    def linear(self, x: Array, kernel: Array) -> Array:
        """Run what is linear: the operation itself, and rearrangements."""
        value = self._linear(self.eqns[0], x, kernel)
        for eqn in self.eqns[1:]:
            value = value if eqn.primitive.name in SCALING else bind_again(eqn, value)[0]
        return value

    def affine(self, still: Sequence[Any], first: bool) -> Affine:
        """Merge the constants: (x ∗ w + b) · s + t = x ∗ (w · s) + (b · s + t)."""
        kernel, *constants = still
        given, dtype = iter(constants), kernel.dtype
        sizes = [kernel.shape[axis] for axis in self.axes]
        scale = _thin(self.path[0], sizes, self.eqns[0].outvars[0].aval.ndim, jnp.ones(sizes, dtype))
        shift, biased, before = jnp.zeros_like(scale), False, self.eqns[0].outvars[0]
        for eqn, axes in zip(self.eqns[1:], self.path[1:], strict=True):
            name, ndim = eqn.primitive.name, eqn.outvars[0].aval.ndim
            if name in ("transpose", *RESHAPING):
                scale, shift = (_thin(axes, sizes, ndim, self._front(p, before, sizes)) for p in (scale, shift))
            elif name == "neg":
                scale, shift = -scale, -shift
            elif name in SCALING:
                second = eqn.invars[0] is not before
                c = next(given).astype(dtype)
                c = c[tuple(slice(None) if i in axes else slice(1) for i in range(c.ndim))]
                c = jnp.broadcast_to(c, jnp.broadcast_shapes(c.shape, scale.shape))
                biased |= name in ("add", "add_any", "sub")
                if name in ("mul", "div"):
                    scale, shift = (p * c if name == "mul" else p / c for p in (scale, shift))
                elif name == "sub" and second:
                    scale, shift = -scale, c - shift
                else:
                    shift = shift - c if name == "sub" else shift + c
            before = eqn.outvars[0]
        flat = self._front(scale, before, sizes)
        order = [int(i) for i in np.argsort(self.axes)]
        shape = [n if axis in self.axes else 1 for axis, n in enumerate(kernel.shape)]
        kernel = kernel * jnp.transpose(flat, order).reshape(shape)
        convolution = self.eqns[0].primitive.name == "conv_general_dilated"
        return Affine(self.linear, kernel, shift if biased else None, convolution, first)

    def _front(self, thin: Array, out: Any, sizes: Sequence[int]) -> Array:
        """Return an array of the features alone, of one that has them at their axes."""
        axes = self.path[[eqn.outvars[0] for eqn in self.eqns].index(out)]
        others = [i for i in range(thin.ndim) if i not in axes]
        return jnp.transpose(thin, (*axes, *others)).reshape(sizes)


def _thin(axes: Sequence[int], sizes: Sequence[int], ndim: int, features: Array) -> Array:
    """Return features at their axes, with an axis of size 1 at all others."""
    shape = [1] * ndim
    for axis, size in zip(axes, sizes, strict=True):
        shape[axis] = size
    return jnp.transpose(features, [int(i) for i in np.argsort(axes)]).reshape(shape)


class Plan:
    """Which operations of a program are one.

    Attributes:
        layers: last operation ↦ affine layer.
        skipped: operations that are part of a layer, but for its last.
        softmaxes: last operation ↦ (operations, input, other inputs) of a softmax.
        centered: operations that subtract a mean from what it is the mean of.
        coefficients: values that a root or a logarithm is taken of.
    """

    def __init__(self, jaxpr: Any, moving: set[Any], rules: Rules) -> None:
        self.varying = _reached(jaxpr, set(moving))
        self.made = {v: eqn for eqn in jaxpr.eqns for v in eqn.outvars}
        self.place = {id(eqn): i for i, eqn in enumerate(jaxpr.eqns)}
        atoms = [v for eqn in jaxpr.eqns for v in eqn.invars] + list(jaxpr.outvars)
        self.uses = Counter(v for v in atoms if not hasattr(v, "val"))
        self.reader = {v: eqn for eqn in jaxpr.eqns for v in eqn.invars if not hasattr(v, "val")}
        self.layers: dict[int, Layer] = {}
        self.skipped: set[int] = set()
        self.softmaxes: dict[int, Any] = {}
        self.centered: set[int] = set()
        self.coefficients: set[Any] = set()
        for eqn in reversed(jaxpr.eqns):
            linear = eqn.primitive.name in AFFINE | RESHAPING and eqn.outvars[0] in self.coefficients
            if linear or eqn.primitive.name in ("log", "pow", "rsqrt", "sqrt"):
                self.coefficients.update(v for v in eqn.invars if not hasattr(v, "val"))
        for i, eqn in enumerate(jaxpr.eqns):
            name = eqn.primitive.name
            if name in ("dot_general", "conv_general_dilated") and (layer := self._layer(eqn)) is not None:
                places = [self.place[id(e)] for e in layer.eqns]
                self.layers[places[-1]] = layer
                self.skipped.update(places[:-1])
            elif name == "div" and rules.whole_softmax:
                if (found := self._softmax(eqn)) is not None:
                    self.softmaxes[i] = found
            elif name == "sub" and self._is_mean(eqn):
                self.centered.add(i)

    def _varies(self, atom: Any) -> bool:
        return not hasattr(atom, "val") and atom in self.varying

    def _layer(self, eqn: Any) -> Layer | None:
        """Return the affine layer that begins with an operation, with all that can be merged into it."""
        varying = [self._varies(v) for v in eqn.invars[:2]]
        if sum(varying) != 1:
            return None
        side = varying.index(True)
        found = _features(eqn, side)
        if found is None:
            return None
        axes, kernel_axes = found
        eqns, path, out = [eqn], [axes], eqn.outvars[0]
        while self.uses[out] == 1 and out in self.reader:
            nearest = self.reader[out]
            following = self._follow(nearest, out, axes)
            if following is None:
                break
            axes = following
            eqns.append(nearest)
            path.append(axes)
            out = nearest.outvars[0]
        return Layer(tuple(eqns), side, tuple(path), kernel_axes)

    def _follow(self, eqn: Any, out: Any, axes: tuple[int, ...]) -> tuple[int, ...] | None:
        """Return where the features are behind an operation that can be merged; None for all others."""
        name, shape = eqn.primitive.name, eqn.outvars[0].aval.shape
        if len(eqn.outvars) != 1 or not jnp.issubdtype(eqn.outvars[0].aval.dtype, jnp.inexact):
            return None
        if name in SAME or name == "neg":
            return axes if len(eqn.invars) == 1 else None
        if name == "transpose":
            return tuple(eqn.params["permutation"].index(axis) for axis in axes)
        if name in RESHAPING:
            return (
                _reshaped(out.aval.shape, shape, axes)
                if eqn.params.get("dimensions") is None or name != "reshape"
                else None
            )
        if name not in SCALING or shape != out.aval.shape or len(eqn.invars) != 2:
            return None
        other = eqn.invars[1] if eqn.invars[0] is out else eqn.invars[0]
        if self._varies(other) or (name == "div" and eqn.invars[1] is out):
            return None
        return axes if self._is_thin(other, axes) else None

    def _is_thin(self, atom: Any, axes: Sequence[int]) -> bool:
        """Whether a constant varies along the features only."""
        shape = atom.aval.shape
        if all(n == 1 or i in axes for i, n in enumerate(shape)):
            return True
        eqn = None if hasattr(atom, "val") else self.made.get(atom)
        if eqn is None or eqn.primitive.name != "broadcast_in_dim":
            return False
        source = dict(zip(eqn.params["broadcast_dimensions"], eqn.invars[0].aval.shape, strict=True))
        return all(source.get(i, 1) == 1 or i in axes for i in range(len(shape)))

    def _back(self, atom: Any, names: Any) -> Any:
        """Return what an atom is, behind operations of some names, and constants multiplied."""
        while not hasattr(atom, "val") and (eqn := self.made.get(atom)) is not None and eqn.primitive.name in names:
            moving = [v for v in eqn.invars if self._varies(v)]
            if len(moving) != 1:
                break
            atom = moving[0]
        return atom

    def _softmax(self, eqn: Any) -> Any:
        """Recognize exp(x − c) / Σ exp(x − c)."""
        top, bottom = eqn.invars
        below = self.made.get(self._back(bottom, SAME | RESHAPING)) if not hasattr(bottom, "val") else None
        exp = self.made.get(top) if not hasattr(top, "val") else None
        if exp is None or below is None or exp.primitive.name != "exp" or below.primitive.name != "reduce_sum":
            return None
        if below.invars[0] is not top:
            return None
        base = exp.invars[0]
        region, shifted = [exp], self.made.get(base)
        free: list[Any] = []
        if shifted is not None and shifted.primitive.name == "sub" and self._varies(shifted.invars[0]):
            if not hasattr(shifted.invars[1], "val") and self._is_held(shifted.invars[1]):
                region, free, base = [shifted, exp], [shifted.invars[1]], shifted.invars[0]
        chain, atom = [], bottom
        while atom is not top:
            chain.append(self.made[atom])
            atom = self._step_back(self.made[atom])
        return [*region, *chain[::-1], eqn], base, free

    def _is_held(self, atom: Any) -> bool:
        eqn = self.made.get(self._back(atom, SAME | RESHAPING))
        return eqn is not None and eqn.primitive.name == "stop_gradient"

    def _step_back(self, eqn: Any) -> Any:
        return next(v for v in eqn.invars if self._varies(v))

    def _is_mean(self, eqn: Any) -> bool:
        """Whether an operation is x − mean(x)."""
        value, mean = eqn.invars
        if not (self._varies(value) and self._varies(mean)):
            return False
        total = self.made.get(self._back(mean, SAME | RESHAPING | {"div", "mul", "transpose"}))
        if total is None or total.primitive.name != "reduce_sum":
            return False
        moved = SAME | RESHAPING | {"transpose"}
        return bool(self._back(total.invars[0], moved) is self._back(value, moved))


def _features(eqn: Any, side: int) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Return the axes of the output, and of the kernel, along which a linear operation has a kernel of its own."""
    if eqn.primitive.name == "conv_general_dilated":
        numbers = eqn.params["dimension_numbers"]
        fits = side == 0 and eqn.params["batch_group_count"] == 1
        return ((numbers.out_spec[1],), (numbers.rhs_spec[0],)) if fits else None
    contracted, batched = eqn.params["dimension_numbers"]
    free = [
        [i for i in range(v.aval.ndim) if i not in contracted[k] and i not in batched[k]]
        for k, v in enumerate(eqn.invars)
    ]
    count = len(batched[0])
    start = count + (len(free[0]) if side == 0 else 0)
    own = free[1 - side]
    return (*range(count), *range(start, start + len(own))), (*batched[1 - side], *own)


def _reshaped(before: Sequence[int], after: Sequence[int], axes: Sequence[int]) -> tuple[int, ...] | None:
    """Return where some axes are after a reshape that keeps them whole; None where it does not."""
    if math.prod(before) != math.prod(after):
        return None
    ends = {(math.prod(after[:i]), n): i for i, n in enumerate(after)}
    found = [ends.get((math.prod(before[:axis]), before[axis])) for axis in axes]
    return None if None in found or len(set(found)) != len(found) else tuple(found)  # type: ignore[arg-type]
