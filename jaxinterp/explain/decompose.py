"""Exact decomposition of an output into the contributions of an input or of any activation.

A network whose coefficients are frozen at x is affine there (the freeze contract), so

    f(x) = W(x) x + b(x)          W(x)ᵀe_k: one vjp, all k by vmap        W(x) x: one jvp with tangent x
    contributions_k = x ⊙ W(x)ᵀe_k        b = f − W(x) x        residual_k = f_k − Σ contributions_k − b_k

The two sides of the residual come from different passes, forward and backward; it is float noise, and it is
returned with every explanation.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, overload

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxinterp.checks import require, require_batch, require_finite, require_variables
from jaxinterp.explain.tracing import Footprint, footprint, in_chunks, require_levels, split_at, unjitted

Targets = None | int | Sequence[int] | Int[Array, "..."] | np.ndarray


class Decomposition(NamedTuple):
    """Result of `decompose`; T is the number of targets, `...` the shape of one input or activation.

    Attributes:
        logits: f_k(x), (batch, T).
        weights: W(x)ᵀe_k, (batch, T, ...).
        contributions: x ⊙ W(x)ᵀe_k, (batch, T, ...).
        bias: b_k(x), the part that no input entry explains, (batch, T).
        residual: f_k − Σ contributions_k − b_k, signed, (batch, T); zero up to rounding.
    """

    logits: Float[Array, "batch t"]
    weights: Float[Array, "batch t *shape"]
    contributions: Float[Array, "batch t *shape"]
    bias: Float[Array, "batch t"]
    residual: Float[Array, "batch t"]


def select_targets(targets: Targets, batch: int, classes: int) -> Int[Array, "batch t"]:
    """Return the classes to explain, one row per example.

    Args:
        targets: None (all classes), one int (for every example), (batch,) ints (one each) or (batch, T) ints.
        batch: number of examples.
        classes: number of classes; targets lie in [0, classes).

    Returns:
        (batch, T) int32.

    Example:
        >>> select_targets(None, 2, 3).tolist(), select_targets([2, 0], 2, 3).tolist()
        ([[0, 1, 2], [0, 1, 2]], [[2], [0]])
    """
    if targets is None:
        return jnp.broadcast_to(jnp.arange(classes, dtype=jnp.int32), (batch, classes))
    if not isinstance(targets, jax.core.Tracer):
        values = np.asarray(targets)
        require(np.issubdtype(values.dtype, np.integer), "targets", values.dtype, f"integers in [0, {classes})")
        if values.size:
            low, high = values.min(), values.max()
            require(low >= 0 and high < classes, "targets", f"{low}..{high}", f"classes in [0, {classes})")
    rows = jnp.asarray(targets, dtype=jnp.int32)
    fits = rows.ndim == 0 or (rows.ndim <= 2 and rows.shape[0] == batch and 0 not in rows.shape[1:])
    require(fits, "targets", f"shape {rows.shape}", f"(), ({batch},) or ({batch}, T), T at least 1")
    return rows if rows.ndim == 2 else jnp.broadcast_to(rows[..., None], (batch, 1))


class Bound(NamedTuple):
    """A checked call: x ↦ logits with its variables, the classes to explain, and the memory of one pass."""

    model: jax.tree_util.Partial
    rows: Int[Array, "batch t"]
    size: Footprint


def bind(
    model: Callable[..., Array],
    x: Array,
    targets: Targets,
    variables: Any,
    layers: Sequence[str | None] = (None,),
    given: Sequence[Array] = (),
) -> Bound:
    """Check the arguments that all methods share, and tie the variables to the function; `layers` will be addressed."""
    require_batch(x)
    require_variables(model, variables, "model")
    if any(layer is not None for layer in layers):
        model = unjitted(model)
    bound = jax.tree_util.Partial(model, *(() if variables is None else (variables,)))
    size = footprint(bound, x, *given)
    fits = len(size.output) == 2 and size.output[0] == len(x)
    require(fits, "model", f"output {size.output}", f"({len(x)}, classes)")
    require_levels(bound, x, layers, given)
    return Bound(bound, select_targets(targets, *size.output), size)


@overload
def decompose(
    model: Callable[..., Array],
    x: Array,
    targets: Targets = ...,
    layer: str | None = ...,
    *,
    variables: Any = ...,
    given: Sequence[Array] = ...,
    max_bytes: int = ...,
    check: bool = ...,
) -> Decomposition: ...


@overload
def decompose(
    model: Callable[..., Array],
    x: Array,
    targets: Targets = ...,
    *,
    layer: list[str | None],
    variables: Any = ...,
    given: Sequence[Array] = ...,
    max_bytes: int = ...,
    check: bool = ...,
) -> list[Decomposition]: ...


def decompose(
    model: Callable[..., Float[Array, "batch classes"]],
    x: Array,
    targets: Targets = None,
    layer: str | list[str | None] | None = None,
    *,
    variables: Any = None,
    given: Sequence[Array] = (),
    max_bytes: int = 2 << 30,
    check: bool = True,
) -> Decomposition | list[Decomposition]:
    """Decompose logits exactly into contributions of the input, or of any named activation, for all classes at once.

    f_k(x) = Σ_i x_i [W(x)]_{ki} + b_k(x), see this file's head. Works on every function that is affine around `x`
    once its input-dependent coefficients are held constant: a frozen CoDA Net, any ReLU network as it is, any Flax,
    NNX, equinox or hand-written model of the user's own. Runs at the highest matrix-product precision.

    Args:
        model: x ↦ logits (batch, classes), examples independent of one another; or (variables, x) ↦ logits where
            `variables` is given. With `variables` the computation is compiled once and reused for as long as the
            same function object is passed; a closure runs operation by operation, so that its parameters are not
            baked into a program.
        x: input, (batch, ...), floating.
        targets: None for all classes, an int, (batch,) or (batch, T) classes.
        layer: path of a Flax submodule, such as "trunk/block_2"; its output takes the place of `x`. A list of paths,
            None in it being `x`, is explained in one program with one backward pass.
        variables: the model's variables, any pytree.
        given: further arrays of the examples, (batch, ...) each, such as gates; `model` gets them after `x`.
        max_bytes: bytes that one pass may take by estimate, ≥ 1; larger batches run in equal chunks.
        check: raise for values of `x` and `given` that are not finite, and for a function that has curvature at the
            first example (one that forgot to freeze).

    Returns:
        A `Decomposition`, on the shape of `x` or of the activation; a list of them where `layer` is a list.

    Raises:
        ConfigError: the function is not affine at `x`, or an argument does not fit.

    Example:
        >>> relu_net = lambda x: jax.nn.relu(x @ jnp.array([[1.0, -1.0], [2.0, 1.0]])) + 0.5
        >>> parts = decompose(relu_net, jnp.array([[1.0, 3.0]]))
        >>> parts.contributions.tolist(), parts.bias.tolist()
        ([[[1.0, 6.0], [-1.0, 3.0]]], [[0.5, 0.5]])

    Source: CVPR 2021 (CoDA Nets), Eq. 5–8; the same identity for every piecewise affine network.
    """
    x = jnp.asarray(x)
    levels = tuple(layer) if isinstance(layer, list) else (layer,)
    for i, array in enumerate(given):
        require(array.shape[:1] == x.shape[:1], "given", f"array {i} of shape {array.shape}", f"({len(x)}, ...)")
    with jax.default_matmul_precision("highest"):
        bound, rows, size = bind(model, x, targets, variables, levels, given)
        compiled = variables is not None
        if check:
            require_finite("x", x)
            for i, array in enumerate(given):
                require_finite(f"given: array {i}", array)
            _require_affine(bound, x, compiled, given)
        one_pass = partial(_pass if compiled else unjitted(_pass), bound, levels)
        parts = in_chunks(one_pass, (x, rows, *given), size.bytes_each(rows.shape[1]), max_bytes)
        return parts if isinstance(layer, list) else parts[0]


@partial(jax.jit, static_argnums=1)
def _pass(
    model: Callable[..., Array], levels: tuple[str | None, ...], x: Array, rows: Array, *given: Array
) -> list[Decomposition]:
    """Decompose one chunk: one forward pass, a jvp for each level, one vjp mapped over one-hot cotangents."""
    zeros, function = split_at(lambda x: model(x, *given), x, levels)
    logits, pullback, values = jax.vjp(function, *zeros, has_aux=True)
    cotangents = jax.nn.one_hot(rows.T, logits.shape[1], dtype=logits.dtype)
    chosen = jnp.take_along_axis(logits, rows, axis=1)
    parts = []
    for i, (value, mapped) in enumerate(zip(values, jax.vmap(pullback)(cotangents), strict=True)):
        weights = jnp.moveaxis(mapped, 0, 1)
        contributions = weights * value[:, None]
        linear = jax.jvp(lambda *deltas: function(*deltas)[0], zeros, [*zeros[:i], value, *zeros[i + 1 :]])[1]
        bias = jnp.take_along_axis(logits - linear, rows, axis=1)
        explained = contributions.reshape(*rows.shape, -1).sum(-1).astype(chosen.dtype)
        parts.append(Decomposition(chosen, weights, contributions, bias, chosen - explained - bias))
    return parts


@jax.jit
def _slopes(model: Callable[..., Array], x: Array, direction: Array, *given: Array) -> tuple[Array, Array]:
    """Return the first and second derivative of t ↦ f(x + t v) at t = 0."""

    def slope(t: Array) -> Array:
        return jax.jvp(lambda x: model(x, *given), (x + direction * t,), (direction,))[1]

    return jax.jvp(slope, (jnp.zeros((), x.dtype),), (jnp.ones((), x.dtype),))


def _require_affine(model: Callable[..., Array], x: Array, compiled: bool, given: Sequence[Array]) -> None:
    """Raise for curvature along a fixed random direction; frozen properly, a function has exactly none there."""
    if isinstance(x, jax.core.Tracer):
        return
    direction = jnp.asarray(np.random.default_rng(0).standard_normal((1, *x.shape[1:])), x.dtype)
    slopes = (_slopes if compiled else unjitted(_slopes))(model, x[:1], direction, *(array[:1] for array in given))
    size, curvature = (float(jnp.abs(slope).max()) for slope in slopes)
    require(
        curvature <= 1e-3 * size,  # False for NaN too
        "model",
        f"second derivative {curvature:.2e} (slope {size:.2e}) in a random direction",
        "0: the function is not affine at x; freeze its input-dependent coefficients, and return logits",
    )
