"""Power series through any polynomial: the rules by which `tracing.interpret` runs a function on truncated series.

Every intermediate value is a truncated power series in t: affine operations act on each coefficient, products of two
series are Cauchy products, (p ⊙ q)_m = Σ_i p_i ⊙ q_{m−i}. Truncation does not touch the lower orders.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxinterp.checks import require_at_least
from jaxinterp.explain.tracing import Operation, interpret

# fmt: off
LINEAR = frozenset({
    "add", "add_any", "broadcast_in_dim", "concatenate", "convert_element_type", "copy", "cumsum", "dynamic_slice",
    "dynamic_update_slice", "gather", "neg", "optimization_barrier", "pad", "reduce_sum", "reduce_window_sum",
    "reshape", "rev", "scatter", "scatter-add", "slice", "split", "squeeze", "sub", "transpose",
})
"""Operations that are linear in all of their arguments together, except indices."""
VALUES = {
    "dynamic_slice": {0}, "dynamic_update_slice": {0, 1}, "gather": {0}, "scatter": {0, 2}, "scatter-add": {0, 2},
}
"""Positions of the arguments that are not indices, where some are."""
BILINEAR = frozenset({"conv_general_dilated", "dot_general", "mul"})
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
    joint = VALUES.get(name, set(range(len(args))))
    if name in LINEAR and joint.issuperset(moving) and _is_linear(operation):
        return _linear(run, args, joint)
    if name == "select_n" and 0 not in moving:
        return _linear(run, args, joint - {0})
    if (name in BILINEAR and len(moving) == 1) or (name == "div" and moving == [0]):
        return _linear(run, args, set(moving))
    if name in BILINEAR:
        return [_Series(_cauchy(lambda p, q: run(p, q)[0], args[0].terms, args[1].terms, max_order))]
    exponent = operation.params.get("y", 2)
    if name in ("square", "integer_pow") and exponent >= 1:
        base = power = args[0].terms
        for _ in range(exponent - 1):
            power = _cauchy(jnp.multiply, power, base, max_order)
        return [_Series(power)]
    if name == "stop_gradient":
        return args
    raise NotPolynomialError(
        f"model: {operation.module or 'the function itself'} applies {name}, expected sums, products and "
        "rearrangements only (a polynomial, without loops)"
    )


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
