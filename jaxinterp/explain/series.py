"""A polynomial network read order by order, and every smooth one up to an order.

About a point x0, with d = x − x0 and g(t) = f(x0 + t d), the contribution of order m is the m-th coefficient of g,

    f(x0 + t d) = Σ_m t^m f_m(x),      f(x) = Σ_m f_m(x),      f_m(x0 + c d) = c^m f_m(x0 + d)

All f_m come out of one pass in which every intermediate value is a truncated power series in t: affine operations act
on each coefficient, products of two series are Cauchy products, (p ⊙ q)_m = Σ_i p_i ⊙ q_{m−i}. The pass runs over the
program that JAX traces, so it reads any model and any function made of sums, products and rearrangements (loops are
not followed), and truncation does not touch the lower orders.

Each f_m is homogeneous, so Euler's identity splits it over the entries of the input without remainder,

    f_m = Σ_i d_i ∂_i f_m / m,      ∂_i f_m = the coefficient of order m − 1 of ∂_i f along the same line

and the sum over orders is the integrated gradient from x0.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import jet
from jaxtyping import Array, Float, Int

from jaxinterp.checks import require_batch, require_finite, require_labels, require_variables
from jaxinterp.explain.decompose import Targets, select_targets
from jaxinterp.explain.tracing import Footprint, footprint, in_chunks, require_levels, split_at, unjitted
from jaxinterp.taylor.network import Expansion

# fmt: off
LINEAR = frozenset({
    "add", "add_any", "broadcast_in_dim", "concatenate", "convert_element_type", "copy", "cumsum", "dynamic_slice",
    "dynamic_update_slice", "gather", "neg", "optimization_barrier", "pad", "reduce_sum", "reduce_window_sum",
    "reshape", "rev", "scatter", "scatter-add", "slice", "split", "squeeze", "sub", "transpose",
})
"""Operations that are linear in all of their arguments together, those of indices aside."""
VALUES = {
    "dynamic_slice": {0}, "dynamic_update_slice": {0, 1}, "gather": {0}, "scatter": {0, 2}, "scatter-add": {0, 2},
}
"""Positions of the arguments that are not indices, where some are."""
WRAPPERS = frozenset({
    "checkpoint", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr", "jit",
    "pjit", "remat", "remat2",
})
"""Operations that only wrap a program."""
BILINEAR = frozenset({"conv_general_dilated", "dot_general", "mul"})
# fmt: on


class NotPolynomialError(ValueError):
    """An operation of a function is no polynomial of its input."""


class _Series(NamedTuple):
    """Coefficients of a truncated power series, (terms, *shape); those beyond are zero."""

    terms: Array


def propagate(
    function: Callable[..., Any], x0: Float[Array, "*shape"], step: Float[Array, "*shape"], max_order: int
) -> Any:
    """Coefficients of t ↦ function(x0 + t · step) up to an order.

    Args:
        function: a polynomial in JAX operations; of a batch as a whole, for examples are not taken apart.
        x0: where t = 0.
        step: derivative with respect to t.
        max_order: largest order, ≥ 0.

    Returns:
        The function's pytree of outputs, each with a leading axis of max_order + 1 coefficients.

    Raises:
        NotPolynomialError: the function applies an operation that is no polynomial; the line names it and the module.
        ValueError: `max_order` is negative.

    Example:
        >>> propagate(lambda x: (x * x).sum(), jnp.array([1.0, 2.0]), jnp.array([1.0, 1.0]), 3).tolist()
        [5.0, 6.0, 2.0, 0.0]
    """
    if max_order < 0:
        raise ValueError(f"max_order: got {max_order}, expected at least 0")
    closed, shape = jax.make_jaxpr(function, return_shape=True)(x0)
    outs = _run(closed.jaxpr, closed.consts, [_Series(jnp.stack([x0, step])[: max_order + 1])], max_order)
    full = [_padded(_as_series(out).terms, max_order + 1) for out in outs]
    return jax.tree.unflatten(jax.tree.structure(shape), full)


def _run(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any], most: int, within: str = "") -> list[Any]:
    """The outputs of a traced program, within a module of that path, whose arguments are arrays or series."""
    known: dict[Any, Any] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))

    def read(atom: Any) -> Any:
        return atom.val if hasattr(atom, "val") else known[atom]

    last = {atom: i for i, eqn in enumerate(jaxpr.eqns) for atom in eqn.invars if not hasattr(atom, "val")}
    last |= dict.fromkeys((atom for atom in jaxpr.outvars if not hasattr(atom, "val")), len(jaxpr.eqns))
    for i, eqn in enumerate(jaxpr.eqns):
        where = "/".join(filter(None, (within, str(eqn.source_info.name_stack))))
        outs = _apply(eqn, [read(atom) for atom in eqn.invars], most, where)
        known.update(zip(eqn.outvars, outs, strict=True))
        for atom in {a for a in eqn.invars if not hasattr(a, "val") and last[a] == i}:
            del known[atom]  # a pass of 17 coefficients holds only what is still read
    return [read(atom) for atom in jaxpr.outvars]


def _apply(eqn: Any, args: list[Any], most: int, where: str) -> list[Any]:
    """One operation on arrays and series."""
    inner = _inner(eqn)
    if inner is not None:
        return _run(inner.jaxpr, inner.consts, args, most, where)
    moving = [i for i, arg in enumerate(args) if isinstance(arg, _Series)]
    name, run = eqn.primitive.name, partial(eqn.primitive.bind, **eqn.params)
    if not moving:
        outs = run(*args)
        return list(outs) if eqn.primitive.multiple_results else [outs]
    joint = VALUES.get(name, set(range(len(args))))
    if name in LINEAR and joint.issuperset(moving) and _is_linear(eqn):
        return _linear(run, args, joint)
    if name == "select_n" and 0 not in moving:
        return _linear(run, args, joint - {0})
    if (name in BILINEAR and len(moving) == 1) or (name == "div" and moving == [0]):
        return _linear(run, args, set(moving))
    if name in BILINEAR:
        return [_Series(_cauchy(run, args[0].terms, args[1].terms, most))]
    if name in ("square", "integer_pow") and eqn.params.get("y", 2) >= 1:
        base = power = args[0].terms
        for _ in range(eqn.params.get("y", 2) - 1):
            power = _cauchy(jnp.multiply, power, base, most)
        return [_Series(power)]
    if name == "stop_gradient":
        return args
    raise NotPolynomialError(
        f"apply: {where or 'the function itself'} applies {name}, expected sums, products and rearrangements only "
        "(a polynomial, without loops)"
    )


def _is_linear(eqn: Any) -> bool:
    """Whether an operation of `LINEAR` is linear with its parameters: types that count, places that are not there."""
    kept = jnp.issubdtype(eqn.outvars[0].aval.dtype, jnp.inexact)
    fill = eqn.params.get("fill_value")
    return bool(kept and (fill is None or fill == 0 or np.isnan(fill)))


def _inner(eqn: Any) -> Any:
    """The program that an operation only wraps, such as a jitted function, as a closed one."""
    if eqn.primitive.name not in WRAPPERS:
        return None
    for value in eqn.params.values():
        if hasattr(value, "eqns") and hasattr(value, "invars") and len(value.invars) == len(eqn.invars):
            return jax.extend.core.ClosedJaxpr(value, ())
        if hasattr(value, "jaxpr") and len(value.jaxpr.invars) == len(eqn.invars):
            return value
    return None


def _linear(run: Callable[..., Any], args: list[Any], joint: set[int]) -> list[_Series]:
    """An operation, linear in its `joint` arguments together, on every coefficient; constants have order 0."""
    count = max(len(arg.terms) for arg in args if isinstance(arg, _Series))
    mapped = [_padded(_as_series(arg).terms, count) if i in joint else arg for i, arg in enumerate(args)]
    outs = jax.vmap(run, in_axes=[0 if i in joint else None for i in range(len(args))])(*mapped)
    return [_Series(out) for out in jax.tree.leaves(outs)]


def _cauchy(run: Callable[..., Array], p: Array, q: Array, most: int) -> Array:
    """Coefficients of the product of two series."""
    count = min(len(p) + len(q) - 1, most + 1)
    terms = []
    for m in range(count):
        pairs = range(max(0, m - len(q) + 1), min(m, len(p) - 1) + 1)
        terms.append(sum((run(p[i], q[m - i]) for i in pairs[1:]), run(p[pairs[0]], q[m - pairs[0]])))
    return jnp.stack(terms)


def _as_series(value: Any) -> _Series:
    return value if isinstance(value, _Series) else _Series(jnp.asarray(value)[None])


def _padded(terms: Array, count: int) -> Array:
    """Coefficients with zeros after them."""
    return jnp.pad(terms, ((0, count - len(terms)), *((0, 0),) * (terms.ndim - 1)))


class _Call(NamedTuple):
    """What a call was found to be: x ↦ logits, inputs, points and classes, and what a pass takes."""

    apply: jax.tree_util.Partial
    x: Array
    x0: Array
    classes: int
    size: Footprint


def _checked(
    apply: Callable[..., Array], x: Any, x0: Any, max_order: int, least: int, variables: Any, layer: str | None = None
) -> _Call:
    """The parts of a call, found to fit one another; with `variables`, traced once for each shape."""
    x = jnp.asarray(x)
    require_batch(x)
    x0 = jnp.asarray(x0, x.dtype)
    if x0.shape not in (x.shape, x.shape[1:]):
        raise ValueError(f"x0: got shape {x0.shape}, expected {x.shape[1:]}, that of one example, or {x.shape}")
    if max_order < least:
        raise ValueError(f"max_order: got {max_order}, expected at least {least}")
    require_finite("x", x)
    require_finite("x0", x0)
    require_variables(apply, variables, "apply")
    model = getattr(apply, "__self__", None)
    if isinstance(model, Expansion):
        model.warn_outside(x)
    given = () if variables is None else (variables,)
    bound = jax.tree_util.Partial(apply if layer is None else unjitted(apply), *given)
    size = footprint(bound, x)
    if len(size.output) != 2 or size.output[0] != len(x):
        raise ValueError(f"apply: got output {size.output}, expected ({len(x)}, classes)")
    if layer is not None:
        require_levels(bound, x, [layer])
    return _Call(bound, x, jnp.broadcast_to(x0, x.shape), size.output[1], size)


def orders(
    apply: Callable[..., Float[Array, "batch classes"]],
    x: Float[Array | np.ndarray, "batch ..."],
    x0: Float[Array | np.ndarray, "..."],
    max_order: int,
    *,
    variables: Any = None,
    layer: str | None = None,
    max_bytes: int = 2 << 30,
) -> Float[Array, "orders batch classes"]:
    """Contributions f_0, …, f_M of all orders to every logit, exact up to rounding.

    Args:
        apply: x ↦ logits (batch, classes), a polynomial, examples independent of one another; or (variables, x) ↦
            logits where `variables` is given: then it is compiled once, for as long as the same function is passed.
        x: inputs, (batch, ...).
        x0: expansion point, of one example's shape or of the batch's.
        max_order: M ≥ 0; the degree of the polynomial for all of it.
        variables: the model's variables.
        layer: path of a Flax submodule: then orders in its output, about its output at x0, the reading at that level;
            what goes around the submodule is held at x0.
        max_bytes: bytes that one pass may take by estimate; larger batches run in equal chunks.

    Returns:
        (M + 1, batch, classes). The sum over orders is f(x), where M is the degree or more and nothing goes around
        the submodule.

    Raises:
        NotPolynomialError: an operation that is no polynomial; the line names it and its module.
        ValueError: x0 of another shape, values that are not finite, a negative order, an unknown `layer`.

    Example:
        >>> square = lambda x: (x**2).sum(-1, keepdims=True)
        >>> orders(square, jnp.array([[3.0]]), jnp.array([1.0]), 2).ravel().tolist()
        [1.0, 4.0, 4.0]
    """
    with jax.default_matmul_precision("highest"):
        call = _checked(apply, x, x0, max_order, 0, variables, layer)
        run = partial(_orders if variables is None else _orders_compiled, call.apply, layer, max_order)
        size = (max_order + 2) * call.size.bytes_each(1)
        return jnp.moveaxis(in_chunks(run, (call.x, call.x0), size, max_bytes), 1, 0)


def _orders(apply: Callable[..., Array], layer: str | None, max_order: int, x: Array, x0: Array) -> Array:
    """The orders of a chunk, examples first."""
    function, start, step = _line(apply, layer, x, x0)
    return jnp.moveaxis(propagate(function, start, step, max_order), 0, 1)


_orders_compiled = jax.jit(_orders, static_argnums=(1, 2))


def _line(
    apply: Callable[..., Array], layer: str | None, x: Array, x0: Array
) -> tuple[Callable[..., Array], Array, Array]:
    """The function, the point and the step of an expansion in the input, or in a submodule's output."""
    if layer is None:
        return apply, x0, x - x0
    zeros, added = split_at(apply, x0, [layer])
    (here,), (there,) = added(*zeros)[1], split_at(apply, x, [layer])[1](*zeros)[1]
    return lambda y: added(y)[0], zeros[0], there - here


class OrderContributions(NamedTuple):
    """What `contributions` returns; T is the number of targets, M the largest order, `...` the input's shape.

    Attributes:
        orders: f_m, (batch, T, M + 1).
        contributions: of every entry of the input to every order from 1 to M, (batch, T, M, ...).
        remainder: f − Σ_{m ≤ M} f_m, what is beyond M (or goes around the submodule), (batch, T).
        residual: f_m − Σ contributions_m for every order from 1 to M, (batch, T, M); zero up to rounding.
    """

    orders: Float[Array, "batch t m1"]
    contributions: Float[Array, "batch t m *shape"]
    remainder: Float[Array, "batch t"]
    residual: Float[Array, "batch t m"]


def contributions(
    apply: Callable[..., Float[Array, "batch classes"]],
    x: Float[Array | np.ndarray, "batch ..."],
    x0: Float[Array | np.ndarray, "..."],
    max_order: int,
    targets: Targets = None,
    *,
    variables: Any = None,
    layer: str | None = None,
    max_bytes: int = 2 << 30,
) -> OrderContributions:
    """Contributions of every entry of the input (or of a submodule's output) to every order of every logit.

        c_{m,i} = d_i ∂_i f_m / m,      Σ_i c_{m,i} = f_m,      Σ_m c_{m,i} = integrated gradient of entry i from x0

    Args:
        apply: as in `orders`.
        x: inputs, (batch, ...).
        x0: expansion point.
        max_order: M ≥ 1.
        targets: None for all classes, an int, (batch,) or (batch, T) classes.
        variables: the model's variables.
        layer: path of a Flax submodule.
        max_bytes: bytes that one pass may take by estimate.

    Raises:
        NotPolynomialError, ValueError: as `orders`.

    Example:
        >>> product = lambda x: x[:, :1] * x[:, 1:] + x[:, :1]
        >>> parts = contributions(product, jnp.array([[2.0, 3.0]]), jnp.zeros(2), 2)
        >>> parts.contributions[0, 0].tolist()
        [[2.0, 0.0], [3.0, 3.0]]

    Source: Euler's theorem on homogeneous functions; integrated gradients, Sundararajan et al., ICML 2017.
    """
    with jax.default_matmul_precision("highest"):
        call = _checked(apply, x, x0, max_order, 1, variables, layer)
        rows = select_targets(targets, len(call.x), call.classes)
        run = partial(_contributions if variables is None else _contributions_compiled, call.apply, layer, max_order)
        size = 3 * (max_order + 2) * call.size.bytes_each(rows.shape[1])
        return in_chunks(run, (call.x, call.x0, rows), size, max_bytes)


def _with_gradients(function: Callable[..., Array], rows: Array) -> Callable[[Array], tuple[Array, Array]]:
    """The targets' logits, (batch, T), and their gradients, (batch, T, ...), as a function of the input."""

    def values(x: Array) -> tuple[Array, Array]:
        logits, pullback = jax.vjp(function, x)
        cotangents = jax.nn.one_hot(rows.T, logits.shape[1], dtype=logits.dtype)
        return jnp.take_along_axis(logits, rows, axis=1), jnp.moveaxis(jax.vmap(pullback)(cotangents)[0], 0, 1)

    return values


def _contributions(
    apply: Callable[..., Array], layer: str | None, max_order: int, x: Array, x0: Array, rows: Array
) -> OrderContributions:
    function, start, step = _line(apply, layer, x, x0)

    values, gradients = propagate(_with_gradients(function, rows), start, step, max_order)
    order = jnp.arange(1, max_order + 1, dtype=x.dtype).reshape(-1, *(1,) * (gradients.ndim - 1))
    parts = jnp.moveaxis(step[None, :, None] * gradients[:-1] / order, 0, 2)
    found = jnp.moveaxis(values, 0, 2)
    whole = jnp.take_along_axis(apply(x), rows, axis=1)
    residual = found[:, :, 1:] - parts.reshape(*parts.shape[:3], -1).sum(-1)
    return OrderContributions(found, parts, whole - found.sum(-1), residual)


_contributions_compiled = jax.jit(_contributions, static_argnums=(1, 2))


def pairs(
    apply: Callable[..., Float[Array, "batch classes"]],
    x: Float[Array | np.ndarray, "batch height width channels"],
    x0: Float[Array | np.ndarray, "..."],
    pixels: Int[np.ndarray, "p 2"] | Sequence[tuple[int, int]] | None = None,
    targets: Targets = None,
    *,
    variables: Any = None,
    max_bytes: int = 2 << 30,
) -> Float[Array, "batch t p height width"]:
    """What pairs of pixels contribute to order 2: ½ d_i H_ij d_j, H the Hessian at x0.

    Args:
        apply: as in `orders`; any twice differentiable function.
        x: images, (batch, H, W, C).
        x0: expansion point.
        pixels: (y, x) of the pixels whose pairs are asked for; all where None.
        targets: None for all classes, an int, (batch,) or (batch, T) classes.
        variables: the model's variables.
        max_bytes: bytes that one pass may take by estimate.

    Returns:
        (batch, T, P, H, W), summed over channels. The sum over the last two axes is the pixel's contribution of order
        2, the sum over all pixels as well is f_2; a pixel's square stands at its own place.

    Raises:
        ValueError: as `orders`, or a pixel outside of the image.
    """
    with jax.default_matmul_precision("highest"):
        call = _checked(apply, x, x0, 2, 0, variables)
        if call.x.ndim != 4:
            raise ValueError(f"x: got shape {x.shape}, expected images (batch, H, W, C)")
        height, width = call.x.shape[1:3]
        every = [(y, c) for y in range(height) for c in range(width)]
        chosen = np.asarray(every if pixels is None else pixels)
        if (
            len(chosen) == 0
            or chosen.shape[1:] != (2,)
            or not np.issubdtype(chosen.dtype, np.integer)
            or chosen.min() < 0
            or (chosen >= (height, width)).any()
        ):
            raise ValueError(
                f"pixels: got {chosen.tolist()[:3]} of shape {chosen.shape}, expected rows (y, x) within "
                f"{height}x{width}"
            )
        rows = select_targets(targets, len(call.x), call.classes)
        run = partial(_pairs if variables is None else _pairs_compiled, call.apply, jnp.asarray(chosen, jnp.int32))
        maps = rows.shape[1] * len(chosen) * height * width * call.x.dtype.itemsize
        return in_chunks(run, (call.x, call.x0, rows), 4 * call.size.bytes_each(rows.shape[1]) + maps, max_bytes)


def _pairs(apply: Callable[..., Array], pixels: Array, x: Array, x0: Array, rows: Array) -> Array:
    step = x - x0

    with_gradients = _with_gradients(apply, rows)

    def one(pixel: Array) -> Array:
        mask = jnp.zeros(x.shape[1:3], x.dtype).at[pixel[0], pixel[1]].set(1)
        row = jax.jvp(lambda x: with_gradients(x)[1], (x0,), (step * mask[None, :, :, None],))[1]
        return (row * step[:, None]).sum(-1) / 2

    return jnp.moveaxis(jax.lax.map(one, pixels), 0, 2)


_pairs_compiled = jax.jit(_pairs)


def smooth_orders(
    apply: Callable[..., Float[Array, "batch classes"]],
    x: Float[Array | np.ndarray, "batch ..."],
    x0: Float[Array | np.ndarray, "..."],
    max_order: int,
    *,
    variables: Any = None,
) -> tuple[Float[Array, "orders batch classes"], Float[Array, "batch classes"]]:
    """The same orders of any smooth function, by `jax.experimental.jet`, and what they leave of it.

    A tanh network has infinitely many orders, and its series need not converge at x.

    Args:
        apply: as in `orders`, of operations that jet knows, such as tanh, sigmoid and the tanh-approximated GELU. Of
            what is built with kinks (ReLU; softplus, by an absolute value, at 0) it takes the piece at x0.
        x: inputs, (batch, ...).
        x0: expansion point.
        max_order: M ≥ 1.
        variables: the model's variables.

    Returns:
        f_0, …, f_M, (M + 1, batch, classes), and the remainder f − Σ f_m, (batch, classes).

    Raises:
        ValueError: as `orders`.
        NotImplementedError: an operation that jet does not know.

    Example:
        >>> found, remainder = smooth_orders(jnp.exp, jnp.array([[1.0]]), jnp.zeros(1), 3)
        >>> [round(float(value), 4) for value in (*found.ravel(), remainder[0, 0])]
        [1.0, 1.0, 0.5, 0.1667, 0.0516]
    """
    with jax.default_matmul_precision("highest"):
        call = _checked(apply, x, x0, max_order, 1, variables)
        return (_smooth if variables is None else _smooth_compiled)(call.apply, max_order, call.x, call.x0)


def _smooth(apply: Callable[..., Array], max_order: int, x: Array, x0: Array) -> tuple[Array, Array]:
    zeros = [jnp.zeros_like(x)] * (max_order - 1)
    closed = jax.make_jaxpr(apply)(x0)

    def inlined(x: Array) -> Array:
        """The traced program without the wrappers that jet does not see through."""
        (out,) = _run(closed.jaxpr, closed.consts, [x], 0)
        return out

    try:
        first, others = jet.jet(inlined, (x0,), ([x - x0, *zeros],))
    except (KeyError, NotImplementedError) as error:
        raise NotImplementedError(f"apply: jet does not know {' '.join(str(error).split())}") from error
    factorials = np.cumprod(np.arange(1.0, max_order + 1))
    found = jnp.stack([first, *(term / jnp.asarray(n, x.dtype) for term, n in zip(others, factorials, strict=True))])
    return found, apply(x) - found.sum(0)


_smooth_compiled = jax.jit(_smooth, static_argnums=1)


def energy(found: Float[Array | np.ndarray, "orders n classes"]) -> Float[np.ndarray, " orders"]:
    """Root mean square of every order over images and classes, the mean over classes taken off.

    A constant added to all logits decides nothing.
    """
    each = np.asarray(found, np.float64)
    return np.sqrt(((each - each.mean(-1, keepdims=True)) ** 2).mean((1, 2)))


def truncated_accuracy(
    found: Float[Array | np.ndarray, "orders n classes"], labels: Int[np.ndarray, " n"]
) -> Float[np.ndarray, " orders"]:
    """Accuracy of f_0 + … + f_m for every m.

    Raises:
        ValueError: not one label in [0, classes) for each image, or values that are not finite.

    Example:
        >>> found = np.array([[[0.0, 1.0]], [[3.0, 0.0]]])
        >>> truncated_accuracy(found, np.array([0])).tolist()
        [0.0, 1.0]
    """
    _, images, classes = found.shape
    require_labels("labels", labels, images, classes)
    require_finite("found", found)
    partial_sums = np.cumsum(np.asarray(found, np.float64), axis=0)
    return (partial_sums.argmax(-1) == np.asarray(labels)).mean(1)


def order_penalty(found: Float[Array, "orders n classes"], growth: float) -> Float[Array, ""]:
    """Σ_m c^m ⟨f_m²⟩ over m ≥ 1, the mean over images and classes: it moves weight to low orders where c > 1.

    Args:
        found: what `propagate` or `orders` returns.
        growth: c > 0.

    Raises:
        ValueError: `growth` is not positive.
    """
    if not growth > 0:
        raise ValueError(f"growth: got {growth}, expected a positive number")
    weights = growth ** jnp.arange(1, len(found), dtype=found.dtype)
    return (weights * (found[1:] ** 2).mean((1, 2))).sum()
