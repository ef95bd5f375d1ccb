"""A network as the program that JAX traces: every explanation runs it, so the network's own code is run once.

A trace marks the output of every named layer. A run may replace a marked value (what is explained is then a function
of that layer), look at it, and enter layers inside `jit`, `remat` and, by index, `scan`.
"""

import math
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import count
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import freeze
from jax.ad_checkpoint import checkpoint_name
from jax.extend import core
from jaxtyping import Array

from jaxinterp.errors import JaxInterpError
from jaxinterp.explain.convolution import as_product, is_small
from jaxinterp.explain.tracing import bind_again, unjitted
from jaxinterp.nn.platform import target, target_of

INPUT = "input"
"""Name of what the network reads after any encoding; every network has it as a layer. A layer "input" is "./input"."""
PROGRAMS = 256
"""Programs that are kept; the one not used for longest goes first."""
CONSTANT_BYTES = 256 << 20
"""Bytes of arrays closed over by functions that are kept with their programs."""

_MARK = "jaxinterp: "
# Operations that only wrap a program. Functions with a derivative of their own are not entered: it would be lost.
_ENTERED = frozenset({
    "checkpoint", "closed_call", "core_call", "custom_vmap_call", "jit", "pjit", "remat", "remat2", "scan",
})  # fmt: skip

Taps = Mapping[str, Callable[[Array], Array]]


def mark(name: str, value: Any) -> Any:
    """Mark the output of a layer, if it is an array, so that a traced program knows it by name."""
    return _mark(f"./{name}" if name == INPUT else name, value)


def mark_input(value: Any) -> Any:
    """Mark what the network reads."""
    return _mark(INPUT, value)


def _mark(name: str, value: Any) -> Any:
    return checkpoint_name(value, _MARK + name) if isinstance(value, jax.Array) else value


class UnreadableError(Exception):
    """A network raised an error, the cause of this one, as it was traced."""


class Program:
    """A traced network: (constants, variables, x, *given) ↦ output.

    Programs of the same operations are one object, however often the network is made, so that what is compiled for
    one serves all.

    Attributes:
        jaxpr: the program; its constants are arguments, so that they are not compiled in.
        output: structure and shapes of what it returns.
        repeated: names of layers that are called more than once.
        values: name → shape and type of the outputs of named layers that are called once and have the batch first.
        rewritten: how it is frozen → that program with further constants, see `freeze`.
    """

    def __init__(self, jaxpr: core.Jaxpr, output: Any, batch: int) -> None:
        self.jaxpr = jaxpr
        self.output = output
        marks = list(_marks(jaxpr))
        found = [_named(*place) for place, _ in marks]
        self._places = dict(zip(found, (place for place, _ in marks), strict=True))
        values = zip(found, (value for _, value in marks), strict=True)
        self.values = {name: v for name, v in values if found.count(name) == 1 and v.shape[:1] == (batch,)}
        self.repeated = {name for name in found if found.count(name) > 1}
        self.rewritten: dict[Any, tuple[Program, tuple[Any, ...]]] = {}
        self._independent: list[Any] = []

    def place(self, layer: str) -> tuple[str, tuple[int, ...]]:
        """Return the path of a layer, and its turns of the scans around it."""
        return self._places[layer]

    @property
    def layers(self) -> dict[str, tuple[int, ...]]:
        """Name → shape of the outputs of the layers."""
        return {name: value.shape for name, value in self.values.items()}

    @cached_property
    def memory(self) -> tuple[int, int]:
        """Bytes of all intermediate values, and the most that are alive at once as they are computed in order."""
        return _memory(self.jaxpr)

    def is_independent(self, variables: Any) -> bool:
        """Whether `note_independent` was called with these very variables."""
        leaves = jax.tree.leaves(variables)
        known = self._independent
        return len(known) == len(leaves) + 1 and all(ref() is leaf for ref, leaf in zip(known[1:], leaves, strict=True))

    def note_independent(self, variables: Any) -> None:
        """Note that examples do not depend on one another with these variables, which are not kept alive."""
        leaves = jax.tree.leaves(variables)
        known = all(isinstance(leaf, jax.Array) for leaf in leaves)
        self._independent = [True, *map(weakref.ref, leaves)] if known else []

    def run(self, taps: Taps, constants: Sequence[Any], variables: Any, *arrays: Array) -> Any:
        """Run the program with some layers' outputs passed through a function each."""
        leaves = jax.tree.leaves((variables, arrays))
        outs = _run(self.jaxpr, [*constants, *leaves], {self.place(name): tap for name, tap in taps.items()})
        return jax.tree.unflatten(jax.tree.structure(self.output), outs)


@partial(jax.tree_util.register_dataclass, data_fields=("constants", "variables"), meta_fields=("program",))
@dataclass(frozen=True)
class Model:
    """A program with its constants and variables, x ↦ output: a pytree, so that it can be an argument of `jit`."""

    program: Program
    constants: tuple[Any, ...]
    variables: Any

    def __call__(self, *arrays: Array, taps: Taps | None = None) -> Any:
        """Run the network, with some layers' outputs passed through a function each."""
        return self.program.run(taps or {}, self.constants, self.variables, *arrays)

    def value(self, layer: str, *arrays: Array) -> Array:
        """Return the output of a layer."""
        seen: list[Array] = []

        def look(value: Array) -> Array:
            seen.append(value)
            return value

        self(*arrays, taps={layer: look})
        return seen[0]

    def up_to(self, layer: str, *arrays: Array) -> Array:
        """Return the output of a layer, with the layers before it marked again and nothing behind it run."""
        leaves = jax.tree.leaves((self.variables, arrays))
        try:
            _run(self.program.jaxpr, [*self.constants, *leaves], _UpTo(self.program.place(layer)))
        except _ReachedError as reached:
            return reached.value
        raise AssertionError(layer)


@jax.jit
def called(model: Model, *arrays: Array) -> Any:
    """Run a network, compiled."""
    return model(*arrays)


def value_at(model: Model, layer: str | None, x: Array) -> Array:
    """Return x itself (layer None), or a layer's output."""
    return x if layer is None else model.value(layer, x)


def value_of(model: Model, layer: str | None, x: Array) -> Array:
    """Return `value_at`, compiled."""
    return x if layer is None else _value(model, layer, x)


_value: Callable[[Model, str, Array], Array] = jax.jit(value_at, static_argnums=1)

_marking: ContextVar[bool] = ContextVar("marking", default=False)
_literal: ContextVar[bool] = ContextVar("literal", default=False)
_lock = threading.Lock()
_by_function: OrderedDict[Any, tuple[Program, tuple[Any, ...]]] = OrderedDict()
_by_text: OrderedDict[Any, Program] = OrderedDict()


def trace(
    function: Callable[..., Any], variables: Any, *arrays: Array, keep: bool = True, named: bool = False
) -> Model:
    """Trace (variables, *arrays) ↦ output, and tie its constants and variables to the program.

    What reads a program reads one way of computing it: that of `target`, or of the platform that holds the arrays.

    Args:
        function: hashable; equal functions are traced once for the same shapes.
        variables: any pytree of arrays.
        *arrays: inputs with the batch first; their shapes and types count, not their values.
        keep: whether the same function stands for the same computation for ever; a closure over variables does not.
        named: whether equal functions compute the same by construction, so that programs need not be compared.

    Returns:
        *arrays ↦ output.
    """
    leaves, structure = jax.tree.flatten((variables, arrays))
    kind = target_of((variables, arrays))
    settings = bool(jax.config.read("jax_enable_x64")), jax.sharding.get_abstract_mesh(), kind
    key = (function, structure, tuple(map(jax.typeof, leaves)), settings)
    with _lock:
        found = _by_function.get(key) if keep else None
        if found is not None:
            _by_function.move_to_end(key)
    if found is None:
        with target(kind):
            found = _traced(function, variables, arrays, named)
        if keep and not any(isinstance(constant, jax.core.Tracer) for constant in found[1]):
            _remember(_by_function, key, found)
    program, constants = found
    return Model(program, constants, variables)


def _remember(cache: OrderedDict[Any, Any], key: Any, value: Any) -> None:
    with _lock:
        cache[key] = value
        while len(cache) > PROGRAMS or sum(map(_constant_bytes, cache.values())) > CONSTANT_BYTES:
            cache.popitem(last=False)


def _constant_bytes(entry: Any) -> int:
    return sum(getattr(constant, "nbytes", 0) for constant in entry[1]) if isinstance(entry, tuple) else 0


@contextmanager
def layers_marked() -> Iterator[None]:
    """Let Flax modules mark their outputs by name, once where contexts are nested."""
    if _marking.get():
        yield
        return

    def marked(run: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        scope = context.module.scope
        if scope is not None and _MARK not in scope.flags:  # `nn.jit` knows a trace by its module's flags
            scope.flags = freeze({**scope.flags, _MARK: Fresh()})
        out = run(*args, **kwargs)
        outer = context.method_name == "__call__" and context.module.path
        return mark("/".join(context.module.path), out) if outer else out

    token = _marking.set(True)
    try:
        with nn.intercept_methods(marked):
            yield
    finally:
        _marking.reset(token)


@contextmanager
def as_written() -> Iterator[None]:
    """Within, networks run by the very operations they were written in, for what reads these."""
    token = _literal.set(True)
    try:
        yield
    finally:
        _literal.reset(token)


def _traced(
    function: Callable[..., Any], variables: Any, arrays: Sequence[Array], named: bool
) -> tuple[Program, tuple[Any, ...]]:
    """Trace a function, and return the program known for the same operations if there is one, and the constants."""

    def called(variables: Any, *arrays: Array) -> Any:  # a new function, which no earlier trace stands for
        with layers_marked():
            return unjitted(function)(variables, *arrays)

    with jax.default_matmul_precision("highest"):
        try:
            closed, output = jax.make_jaxpr(called, return_shape=True)(variables, *arrays)
        except JaxInterpError:
            raise
        except Exception as error:
            raise UnreadableError from error
    constants = tuple(closed.consts)
    program = Program(closed.jaxpr, output, len(arrays[0]))
    if not named and (text := _text(program, constants, variables, arrays)) is not None:
        with _lock:
            known = _by_text.get(text)
        if known is not None:
            return known, constants
        _remember(_by_text, text, program)
    return program, constants


def _text(program: Program, constants: Sequence[Any], variables: Any, arrays: Sequence[Array]) -> Any:
    """Return a text that tells a program and its derivatives from any other; None where none does.

    None is a program that cannot be differentiated, and one with arrays of its own in an inner program, such as those
    that a jitted function closes over: a text has their shapes alone.
    """
    if _closes_over(program.jaxpr):
        return None
    leaves, structure = jax.tree.flatten((constants, variables, arrays))
    moving = [i for i, leaf in enumerate(leaves) if _floats(jax.typeof(leaf))]

    def derived(values: Sequence[Array], *leaves: Array) -> Any:
        def run(values: Sequence[Array]) -> list[Array]:
            filled = list(leaves)
            for i, value in zip(moving, values, strict=True):
                filled[i] = value
            constants, variables, arrays = jax.tree.unflatten(structure, filled)
            outs = _run(program.jaxpr, [*constants, *jax.tree.leaves((variables, arrays))], _Named())
            return [out for out in outs if _floats(out)]

        def backward(values: Sequence[Array]) -> Any:
            outs, pullback = jax.vjp(run, values)
            return outs, pullback([jnp.ones_like(out) for out in outs])

        return jax.jvp(backward, (values,), (values,))  # of second order too: a rule of one's own may have its own rule

    try:
        jaxpr = jax.make_jaxpr(derived)([leaves[i] for i in moving], *leaves)
    except (TypeError, ValueError, NotImplementedError):  # such as a while loop, which runs forward only
        return None
    if jaxpr.consts:  # of a derivative of its own
        return None
    return str(jaxpr), structure, str(jax.tree.structure(program.output))


def _closes_over(jaxpr: Any) -> bool:
    """Whether a program within a program has constants of its own."""
    for eqn in jaxpr.eqns:
        for value in eqn.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                if getattr(inner, "consts", ()) or (hasattr(_open(inner), "eqns") and _closes_over(_open(inner))):
                    return True
    return False


class _Named(dict[Any, Any]):
    """Taps that mark every value again, so that names and places of layers are part of a text."""

    def get(self, key: Any, default: Any = None) -> Any:
        return partial(_mark, key[0])


class _ReachedError(Exception):
    """The value of the layer at which a run is to end."""

    def __init__(self, value: Array) -> None:
        self.value = value


class _UpTo(_Named):
    """Taps that mark every value again, and end the run at one layer."""

    def __init__(self, place: tuple[str, tuple[int, ...]]) -> None:
        super().__init__({place: self._end})

    def get(self, key: Any, default: Any = None) -> Any:
        return self[key] if key in self else super().get(key)

    def _end(self, value: Array) -> Array:
        raise _ReachedError(value)


class Fresh:
    """Something with a new hash each time: `nn.jit` then takes no module's trace, in which it is named, for another."""

    _count = count()

    def __hash__(self) -> int:
        return next(self._count)


def _floats(value: Any) -> bool:
    return bool(jnp.issubdtype(value.dtype, jnp.inexact))


def _inner(eqn: Any) -> Any:
    """Return the program inside of an operation that can be entered, open or closed; else None."""
    for value in eqn.params.values() if eqn.primitive.name in _ENTERED else ():
        inner = getattr(value, "jaxpr", value)
        if hasattr(inner, "eqns") and len(inner.invars) == len(eqn.invars):
            return value
    return None


def _open(jaxpr: Any) -> Any:
    return getattr(jaxpr, "jaxpr", jaxpr)


def _named(path: str, turns: tuple[int, ...]) -> str:
    """Return the name of a layer from its path and its turns of the scans around it: "layers/inner[2]"."""
    return path + "".join(f"[{turn}]" for turn in turns)


def _marks(jaxpr: Any) -> Iterator[tuple[tuple[str, tuple[int, ...]], jax.ShapeDtypeStruct]]:
    """Yield path and turns, shape and type of every marked value that can be reached, in the order of the calls."""
    for eqn in jaxpr.eqns:
        if (path := layer_of(eqn)) is not None:
            yield (path, ()), jax.ShapeDtypeStruct(eqn.outvars[0].aval.shape, eqn.outvars[0].aval.dtype)
        inner = _inner(eqn)
        within = [] if inner is None else list(_marks(_open(inner)))
        turns = [(i,) for i in range(eqn.params["length"])] if eqn.primitive.name == "scan" else [()]
        for turn in reversed(turns) if eqn.params.get("reverse") else turns:
            yield from (((path, (*turn, *deeper)), value) for (path, deeper), value in within)


def first_reads(model: Model) -> list[int | None]:
    """Return, of each leaf of the variables, the number of the first operation that joins it with other values.

    Casts and other shapes of one leaf alone do not count, so that variables that are all cast first keep their order.
    Operations inside of `jit`, `remat` and `scan` count as well; None is a leaf that none is seen to read.
    """
    jaxpr, first = model.program.jaxpr, len(model.constants)
    size = len(jax.tree.leaves(model.variables))
    leaves = [*jaxpr.constvars, *jaxpr.invars][first : first + size]
    reads: dict[int, int] = {}
    for number, leaf in _reads(jaxpr, dict(zip(leaves, range(size), strict=True)), count()):
        reads.setdefault(leaf, number)
    return [reads.get(leaf) for leaf in range(size)]


def _reads(jaxpr: Any, leaves: dict[Any, int], numbers: Iterator[int]) -> Iterator[tuple[int, int]]:
    """Yield the number of every operation that reads leaves, and each leaf."""
    for eqn in jaxpr.eqns:
        number, inner = next(numbers), _inner(eqn)
        atoms = [None if hasattr(atom, "val") else atom for atom in eqn.invars]
        found = {leaves.get(atom, -1) for atom in atoms if atom is not None}
        if len(found) == 1 and -1 not in found:
            leaves |= dict.fromkeys(eqn.outvars, *found)
        elif inner is not None:
            pairs = zip(_open(inner).invars, atoms, strict=True)
            yield from _reads(_open(inner), {var: leaves[atom] for var, atom in pairs if atom in leaves}, numbers)
        else:
            yield from ((number, leaf) for leaf in sorted(found - {-1}))


def layer_of(eqn: Any) -> str | None:
    """Return the name of the layer whose output an operation marks."""
    name = eqn.params["name"] if eqn.primitive.name == "name" else ""
    return name.removeprefix(_MARK) if name.startswith(_MARK) else None


def _run(jaxpr: Any, args: Sequence[Any], taps: Mapping[Any, Callable[[Array], Array]]) -> list[Any]:
    """Run a program; operations that hold a tapped layer are entered, all others run as they are."""
    known: dict[Any, Any] = dict(zip([*jaxpr.constvars, *jaxpr.invars], args, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if hasattr(atom, "val") else known[atom]

    for eqn in jaxpr.eqns:
        values = [read(atom) for atom in eqn.invars]
        inner = _inner(eqn)
        if (name := layer_of(eqn)) is not None:
            outs = [taps.get((name, ()), _same)(*values)]
        elif is_small(eqn) and not _literal.get():
            outs = [as_product(eqn, *values)]
        elif inner is None or not (eqn.primitive.name == "custom_vmap_call" or _holds(inner, taps)):
            outs = bind_again(eqn, *values)
        elif eqn.primitive.name == "scan":
            outs = _unrolled(eqn, inner, values, taps)
        else:
            outs = _run(_open(inner), [*getattr(inner, "consts", ()), *values], taps)
        known.update(zip(eqn.outvars, outs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _same(value: Array) -> Array:
    return value


def _holds(inner: Any, taps: Mapping[Any, Any]) -> bool:
    """Whether a program holds a tapped layer, or a mark of an example that `vmap` has made one of a batch."""
    paths = {path for path, _ in taps}
    for eqn in _open(inner).eqns:
        if eqn.primitive.name == "custom_vmap_call" or layer_of(eqn) in paths:
            return True
        deeper = _inner(eqn)
        if deeper is not None and _holds(deeper, taps):
            return True
    return False


def _unrolled(eqn: Any, inner: Any, values: Sequence[Any], taps: Mapping[Any, Any]) -> list[Any]:
    """Run a scan turn by turn, each with the layers that are tapped in it."""

    def kept(outer: Sequence[Any], within: Sequence[Any]) -> int:  # what is not cut into turns: constants and carries
        return sum(a.aval.ndim == b.aval.ndim for a, b in zip(outer, within, strict=True))

    body, carries = _open(inner), kept(eqn.outvars, _open(inner).outvars)
    fixed = kept(eqn.invars, body.invars) - carries
    consts, carry, over = values[:fixed], list(values[fixed : fixed + carries]), values[fixed + carries :]
    turns, stacked = range(eqn.params["length"]), []
    for i in reversed(turns) if eqn.params["reverse"] else turns:
        here = {(path, places[1:]): tap for (path, places), tap in taps.items() if places[:1] == (i,)}
        outs = _run(body, [*getattr(inner, "consts", ()), *consts, *carry, *(array[i] for array in over)], here)
        carry = outs[:carries]
        stacked.append(outs[carries:])
    ordered = stacked[::-1] if eqn.params["reverse"] else stacked
    return [*carry, *(jnp.stack(column) for column in zip(*ordered, strict=True))]


def peak_bytes(jaxpr: Any) -> int:
    """Return the most bytes of intermediate values that are alive at once where a program runs in order."""
    return _memory(jaxpr)[1]


def _bytes(atom: Any) -> int:
    size = math.prod(atom.aval.shape) if hasattr(atom.aval, "shape") else 0
    return size * getattr(getattr(atom.aval, "dtype", None), "itemsize", 0)


def _memory(jaxpr: Any) -> tuple[int, int]:
    """Return the bytes of all intermediate values of a program, and the most that are alive at once."""
    uses = [*(eqn.invars for eqn in jaxpr.eqns), jaxpr.outvars]
    last = {atom: i for i, atoms in enumerate(uses) for atom in atoms if not hasattr(atom, "val")}
    alive: dict[Any, int] = {}
    total = most = 0
    for i, eqn in enumerate(jaxpr.eqns):
        within, above = 0, 0
        for inner in core.jaxprs_in_params(eqn.params):
            inner_total, inner_most = _memory(_open(inner))
            within, above = max(within, inner_most), above + inner_total
        out = {v: _bytes(v) for v in eqn.outvars if v in last}
        total += max(above, sum(out.values()))
        most = max(most, sum(alive.values()) + max(within, sum(out.values())))
        alive |= out
        for atom in {a for a in eqn.invars if not hasattr(a, "val") and last[a] == i}:
            alive.pop(atom, None)
    return total, most
