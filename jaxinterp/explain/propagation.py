"""Power series through any polynomial: the rules by which `tracing.interpret` runs a function on truncated series.

Every intermediate value is a truncated power series in a real t: linear operations act on each coefficient, products of
two series are Cauchy products, (p ⊙ q)_m = Σ_i p_i ⊙ q_{m−i}. Truncation does not touch the lower orders.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from jaxinterp.checks import require_at_least
from jaxinterp.explain.tracing import Operation, interpret

# fmt: off
LINEAR = frozenset({
    "add", "add_any", "broadcast_in_dim", "complex", "concatenate", "conj", "convert_element_type", "copy", "cumsum",
    "custom_linear_solve", "device_put", "dynamic_slice", "dynamic_update_slice", "fft", "gather", "imag", "name",
    "neg", "optimization_barrier", "pad", "real", "reduce_precision", "reduce_sum", "reduce_window_sum", "reshape",
    "rev", "scatter", "scatter-add", "scatter-sub", "select_and_gather_add", "select_and_scatter_add",
    "sharding_constraint", "slice", "split", "squeeze", "stack", "stop_gradient", "sub", "tile", "transpose",
    "triangular_solve", "tridiagonal_solve", "unstack",
})
"""Operations that are linear, over the real numbers, in all of their values together."""
VALUES = {
    "custom_linear_solve": {-1}, "dynamic_slice": {0}, "dynamic_update_slice": {0, 1}, "gather": {0},
    "scatter": {0, 2}, "scatter-add": {0, 2}, "scatter-sub": {0, 2}, "select_and_gather_add": {0},
    "select_and_scatter_add": {0}, "triangular_solve": {-1}, "tridiagonal_solve": {-1},
}
"""Positions of the values, where other arguments are indices, or what the operation is not linear in."""
BILINEAR = frozenset({"conv_general_dilated", "dot_general", "mul", "ragged_dot_general"})
"""Operations that are linear in each of their first two arguments."""
# fmt: on


class NotPolynomialError(ValueError):
    """A function applies an operation that is not polynomial in its input."""


class _Series(NamedTuple):
    """Coefficients of a truncated power series, (terms, *shape); later ones are zero."""

    terms: Array


def propagate(
    function: Callable[..., Any], x0: Float[Array, "*shape"], step: Float[Array, "*shape"], max_order: int
) -> Any:
    """Return the coefficients of t ↦ function(x0 + t · step) up to an order.

    Args:
        function: a polynomial in JAX operations, of the batch as a whole.
        x0: value at t = 0.
        step: derivative with respect to t.
        max_order: largest order, ≥ 0.

    Returns:
        The function's pytree of outputs, each with a leading axis of max_order + 1 coefficients.

    Raises:
        NotPolynomialError: an operation is not polynomial; the line names it and its module.

    Example:
        >>> propagate(lambda x: (x * x).sum(), jnp.array([1.0, 2.0]), jnp.array([1.0, 1.0]), 3).tolist()
        [5.0, 6.0, 2.0, 0.0]
    """
    require_at_least("max_order", max_order, 0)
    line = _Series(jnp.stack([x0, step])[: max_order + 1])
    outs = interpret(function, x0, line, lambda operation, args: _apply(operation, args, max_order))
    return jax.tree.map(lambda out: _terms(out, max_order + 1), outs, is_leaf=lambda out: isinstance(out, _Series))


def _apply(operation: Operation, args: list[Any], max_order: int) -> list[Any]:
    """Apply one operation to arrays and series."""
    moving = [i for i, arg in enumerate(args) if isinstance(arg, _Series)]
    name, run = operation.name, operation.run
    if not moving:
        return run(*args)
    joint = {i % len(args) for i in VALUES.get(name, range(len(args)))}
    if name in LINEAR and joint.issuperset(moving) and _is_linear(operation):
        return _linear(run, args, joint)
    if name == "select_n" and 0 not in moving:
        return _linear(run, args, joint - {0})
    if (name in BILINEAR and len(moving) == 1) or (name == "div" and moving == [0]):
        return _linear(run, args, set(moving))
    if name in BILINEAR and moving == [0, 1]:
        product = _cauchy(lambda p, q: run(p, q, *args[2:])[0], args[0].terms, args[1].terms, max_order)
        return [_Series(product)]
    found = PRODUCTS[name](operation, args, max_order) if name in PRODUCTS else None
    if found is None:
        raise NotPolynomialError(
            f"model: {operation.module or 'the function itself'} applies {name}, expected sums, products, linear maps "
            "and rearrangements only (a polynomial, without loops)"
        )
    return [_Series(found)]


def _is_linear(operation: Operation) -> bool:
    """Tell whether an operation of `LINEAR` is linear with its parameters: no integers, no fill value."""
    fill = operation.params.get("fill_value")
    inexact = jnp.issubdtype(operation.dtype, jnp.inexact)
    return bool(inexact and (fill is None or fill == 0 or np.isnan(fill)))


def _linear(run: Callable[..., Any], args: list[Any], joint: set[int]) -> list[_Series]:
    """Apply an operation, linear in its `joint` arguments together, to every coefficient; constants have order 0."""
    count = max(len(arg.terms) for arg in args if isinstance(arg, _Series))
    mapped = [_terms(arg, count) if i in joint else arg for i, arg in enumerate(args)]
    over = jax.vmap(run, in_axes=[0 if i in joint else None for i in range(len(args))])
    return [_Series(out) for out in over(*mapped)]


def _cauchy(multiply: Callable[..., Array], p: Array, q: Array, max_order: int) -> Array:
    """Return the coefficients of the product of two series."""
    terms = []
    for m in range(min(len(p) + len(q) - 1, max_order + 1)):
        pairs = range(max(0, m - len(q) + 1), min(m, len(p) - 1) + 1)
        terms.append(sum((multiply(p[i], q[m - i]) for i in pairs[1:]), multiply(p[pairs[0]], q[m - pairs[0]])))
    return jnp.stack(terms)


def _terms(value: Any, count: int) -> Array:
    """Return that many coefficients of a series or a constant."""
    terms = value.terms if isinstance(value, _Series) else jnp.asarray(value)[None]
    return jnp.pad(terms, ((0, count - len(terms)), *((0, 0),) * (terms.ndim - 1)))


def _power(operation: Operation, args: list[Any], max_order: int) -> Array | None:
    """Raise the entries of a series to known whole powers."""
    exponent = {"square": 2, "integer_pow": operation.params.get("y"), "pow": args[-1]}[operation.name]
    if isinstance(exponent, _Series | jax.core.Tracer):
        return None
    base, exponents = args[0].terms, np.asarray(exponent)
    whole = np.isrealobj(exponents) and np.isfinite(exponents).all() and (np.floor(exponents) == exponents).all()
    if not whole or exponents.min(initial=0) < 0:
        return None
    exponents = np.broadcast_to(exponents, base.shape[1:])[None]
    power, powers = jnp.ones_like(base[:1]), jnp.zeros_like(base[:1])
    for k in range(int(exponents.max(initial=0)) + 1):
        power = _cauchy(jnp.multiply, power, base, max_order) if k else power
        powers = jnp.where(exponents == k, power, _terms(_Series(powers), len(power)))
    return powers


def _cumulative(operation: Operation, args: list[Any], max_order: int) -> Array:
    """Multiply along an axis, in log(length) steps: products of truncated series are associative."""
    reverse, axis = operation.params["reverse"], operation.params["axis"] + 1
    multiply = partial(_cauchy, jnp.multiply, max_order=max_order)
    return lax.associative_scan(multiply, _terms(args[0], max_order + 1), reverse, axis)


def _product(operation: Operation, args: list[Any], max_order: int) -> Array:
    """Multiply over axes."""
    return _product_over(operation.params["axes"], args[0], max_order)


def _product_over(axes: tuple[int, ...], series: Any, max_order: int) -> Array:
    terms = _terms(series, max_order + 1)
    rest = [n for axis, n in enumerate(terms.shape[1:]) if axis not in axes]
    last = jnp.moveaxis(terms, [axis + 1 for axis in axes], range(-len(axes), 0)).reshape(len(terms), *rest, -1)
    one = jnp.zeros_like(last, shape=(*last.shape[:-1], 1)).at[0].set(1)  # the product of nothing
    multiply = partial(_cauchy, jnp.multiply, max_order=max_order)
    return lax.associative_scan(multiply, jnp.concatenate([one, last], -1), axis=last.ndim - 1)[..., -1]


def _scatter_product(operation: Operation, args: list[Any], max_order: int) -> Array | None:
    """Multiply entries at indices: linear in the values alone; with the factors a product, if no entry has two."""
    values, indices, factors = args
    if isinstance(indices, _Series):
        return None
    if not isinstance(factors, _Series):
        return _linear(operation.run, args, {0})[0].terms
    p, q = values.terms if isinstance(values, _Series) else _terms(values, 1), factors.terms
    if not _hit_once(operation, p.shape[1:], indices, q.shape[1:]):
        return None

    def elsewhere(p: Array) -> Array:
        return operation.run(p, indices, jnp.zeros_like(q[0]))[0]

    there = _cauchy(lambda p, q: operation.run(p, indices, q)[0] - elsewhere(p), p, q, max_order)
    return there + _terms(_Series(jax.vmap(elsewhere)(p)), len(there))


def _hit_once(operation: Operation, shape: tuple[int, ...], indices: Any, updates: tuple[int, ...]) -> bool:
    """Tell whether no entry of an array is written twice; unknown indices might."""
    if operation.params["unique_indices"]:
        return True
    if isinstance(indices, jax.core.Tracer):
        return False
    how = {key: operation.params[key] for key in ("dimension_numbers", "mode")}
    counts = lax.scatter_add(jnp.zeros(shape, np.int32), indices, jnp.ones(updates, np.int32), **how)
    return not bool((counts > 1).any())


def _reduction(operation: Operation, args: list[Any], max_order: int) -> Array | None:
    """Reduce by a function that only adds or multiplies: so JAX writes sums from an initial value it does not know."""
    program = getattr(operation.params["jaxpr"], "jaxpr", operation.params["jaxpr"])
    steps = [eqn.primitive.name for eqn in program.eqns if eqn.invars == program.invars]
    if len(args) != 2 or len(program.eqns) != 1:
        return None
    if steps == ["add"]:
        count = max(len(arg.terms) for arg in args if isinstance(arg, _Series))
        terms = zip(*(_terms(arg, count) for arg in args), strict=True)
        return jnp.stack([operation.run(*values)[0] for values in terms])  # initial values cannot be vmapped
    if steps == ["mul"] and operation.name == "reduce":
        product = _product_over(operation.params["dimensions"], args[0], max_order)
        return _cauchy(jnp.multiply, product, _terms(args[1], max_order + 1), max_order)
    return None


def _polynomial(operation: Operation, args: list[Any], max_order: int) -> Array:
    """Evaluate Σ_k c_k x^k by Horner's rule; the arguments are x, c_0, c_1, … ."""
    x, *coefficients = (_terms(arg, max_order + 1) for arg in args)
    total = jnp.zeros_like(x)
    for coefficient in reversed(coefficients):
        total = jax.vmap(jnp.add)(_cauchy(jnp.multiply, total, x, max_order), coefficient)
    return total


PRODUCTS: dict[str, Callable[[Operation, list[Any], int], Array | None]] = {
    "cumprod": _cumulative,
    "integer_pow": _power,
    "polynomial": _polynomial,
    "pow": _power,
    "reduce": _reduction,
    "reduce_prod": _product,
    "reduce_window": _reduction,
    "scatter-mul": _scatter_product,
    "square": _power,
}
"""Operations that are polynomial for some arguments; their rules return None for others."""
