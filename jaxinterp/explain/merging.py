"""Operations of a program that are one: an affine layer with the constants behind it, a softmax, a mean, a maximum."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxinterp.explain.tracing import bind_again
from jaxinterp.explain.units import AFFINE

# fmt: off
SCALING = frozenset({"add", "add_any", "div", "mul", "neg", "sub"})
RESHAPING = frozenset({"broadcast_in_dim", "expand_dims", "reshape", "squeeze"})
SAME = frozenset({
    "convert_element_type", "copy", "copy_p", "device_put", "name", "optimization_barrier", "reduce_precision",
    "sharding_constraint",
})
"""Operations that return their argument."""
ORDERS = ("ge", "gt", "le", "lt")
# fmt: on


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
        chosen: selection ↦ (operations, name, two values) of a maximum or a minimum that is written as a selection.
    """

    def __init__(self, jaxpr: Any, moving: set[Any], softmaxes: bool) -> None:
        self.varying = reached(jaxpr, set(moving))
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
        self.chosen: dict[int, Any] = {}
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
            elif name == "div" and softmaxes:
                if (found := self._softmax(eqn)) is not None:
                    self.softmaxes[i] = found
            elif name == "sub" and self._is_mean(eqn):
                self.centered.add(i)
            elif name == "select_n" and (largest := self._largest(eqn)) is not None:
                self.chosen[i] = largest

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
        if shifted is not None and shifted.primitive.name == "sub" and self._is_held(shifted.invars[1]):
            region, free, base = [shifted, exp], [shifted.invars[1]], shifted.invars[0]
        chain, atom = [], bottom
        while atom is not top:
            chain.append(self.made[atom])
            atom = self._step_back(self.made[atom])
        return [*region, *chain[::-1], eqn], base, free

    def _is_held(self, atom: Any) -> bool:
        eqn = None if hasattr(atom, "val") else self.made.get(self._back(atom, SAME | RESHAPING))
        return eqn is not None and eqn.primitive.name == "stop_gradient"

    def _largest(self, eqn: Any) -> Any:
        """Recognize where(b > a, b, a), or its mirror images, perhaps with `or isnan(b)`."""
        which, *cases = eqn.invars
        made = self.made.get(which) if not hasattr(which, "val") else None
        if made is None or len(cases) != 2 or any(hasattr(v, "val") for v in cases):
            return None
        parts = [made]
        if made.primitive.name == "or":
            parts = [self.made.get(v) for v in made.invars if not hasattr(v, "val")]
        if any(hasattr(v, "val") for e in parts if e is not None for v in e.invars):
            return None
        compared = [e for e in parts if e is not None and e.primitive.name in ORDERS and set(e.invars) == set(cases)]
        rest = [e for e in parts if e is None or e not in compared]
        if len(compared) != 1 or any(e is None or e.primitive.name != "ne" or len(set(e.invars)) > 1 for e in rest):
            return None
        second_first = compared[0].invars[0] is cases[1]
        larger = (compared[0].primitive.name in ("gt", "ge")) == second_first
        eqns = [*parts, *([made] if made not in parts else []), eqn]
        return eqns, "max" if larger else "min", cases

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


def reached(jaxpr: Any, moving: set[Any]) -> set[Any]:
    """Return what depends on some values of a program, with these."""
    for eqn in jaxpr.eqns:
        if any(not hasattr(v, "val") and v in moving for v in eqn.invars):
            moving.update(eqn.outvars)
    return moving
