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

from jaxinterp.checks import require_batch, require_finite, require_variables
from jaxinterp.explain.tracing import footprint, in_chunks, require_levels, split_at, unjitted

Targets = None | int | Sequence[int] | Int[Array, "..."] | np.ndarray


class Decomposition(NamedTuple):
    """What `decompose` returns; T is the number of targets, `...` the shape of one input or activation.

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
    """Classes to explain, one row per example.

    Args:
        targets: None (all classes), one int (for every example), (batch,) ints (one each) or (batch, T) ints.
        batch: number of examples.
        classes: number of classes; targets lie in [0, classes).

    Returns:
        (batch, T) int32.

    Raises:
        ValueError: a shape or a class is out of range.

    Example:
        >>> select_targets(None, 2, 3).tolist(), select_targets([2, 0], 2, 3).tolist()
        ([[0, 1, 2], [0, 1, 2]], [[2], [0]])
    """
    if targets is None:
        return jnp.broadcast_to(jnp.arange(classes, dtype=jnp.int32), (batch, classes))
    if not isinstance(targets, jax.core.Tracer):
        values = np.asarray(targets)
        if not np.issubdtype(values.dtype, np.integer):
            raise ValueError(f"targets: got {values.dtype}, expected integers in [0, {classes})")
        if values.size and not (values.min() >= 0 and values.max() < classes):
            raise ValueError(f"targets: got {values.min()}..{values.max()}, expected classes in [0, {classes})")
    rows = jnp.asarray(targets, dtype=jnp.int32)
    if rows.ndim == 0:
        return jnp.broadcast_to(rows, (batch, 1))
    if rows.ndim > 2 or rows.shape[0] != batch or 0 in rows.shape[1:]:
        raise ValueError(f"targets: got shape {rows.shape}, expected (), ({batch},) or ({batch}, T), T at least 1")
    return rows[:, None] if rows.ndim == 1 else rows


@overload
def decompose(
    apply_frozen: Callable[..., Array],
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
    apply_frozen: Callable[..., Array],
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
    apply_frozen: Callable[..., Float[Array, "batch classes"]],
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
        apply_frozen: x ↦ logits (batch, classes), examples independent of one another; or (variables, x) ↦ logits
            where `variables` is given. With `variables` the computation is compiled once and reused for as long as
            the same function object is passed; a closure runs operation by operation, so that its parameters are
            not baked into a program.
        x: input, (batch, ...), floating.
        targets: None for all classes, an int, (batch,) or (batch, T) classes.
        layer: path of a Flax submodule, such as "layer_3" or "trunk/block_2"; its output takes the place of `x`. A list
            of paths, None in it being `x`, is explained in one program with one backward pass.
        variables: the model's variables, any pytree.
        given: arrays that belong to the examples, (batch, ...) each, such as gates of one's own; `apply_frozen` gets
            them after `x`.
        max_bytes: bytes that one pass may take by estimate, ≥ 1; larger batches run in equal chunks.
        check: refuse values of `x` and `given` that are not finite, and a function that has curvature at the first
            example (one that forgot to freeze).

    Returns:
        A `Decomposition`, on the shape of `x` or of the activation; a list of them where `layer` is a list.

    Raises:
        ValueError: a Flax model's `apply` without variables, unknown, repeated or empty `layer`, unfit `targets`, `x`
            not a batch of finite floating arrays, `given` of another batch, `max_bytes` < 1, or a function that is
            not affine at `x`.

    Example:
        >>> relu_net = lambda x: jax.nn.relu(x @ jnp.array([[1.0, -1.0], [2.0, 1.0]])) + 0.5
        >>> parts = decompose(relu_net, jnp.array([[1.0, 3.0]]))
        >>> parts.contributions.tolist(), parts.bias.tolist()
        ([[[1.0, 6.0], [-1.0, 3.0]]], [[0.5, 0.5]])

    Source: CVPR 2021 (CoDA Nets), Eq. 5–8; the same identity for every piecewise affine network.
    """
    x = jnp.asarray(x)
    require_batch(x)
    require_variables(apply_frozen, variables, "apply_frozen")
    compiled = variables is not None
    if layer is not None:
        apply_frozen = unjitted(apply_frozen)
    apply = jax.tree_util.Partial(apply_frozen, variables) if compiled else jax.tree_util.Partial(apply_frozen)
    with jax.default_matmul_precision("highest"):
        for i, array in enumerate(given):
            if array.shape[:1] != x.shape[:1]:
                raise ValueError(f"given: array {i} has shape {array.shape}, expected ({len(x)}, ...)")
        size = footprint(apply, x, *given)
        if len(size.output) != 2 or size.output[0] != x.shape[0]:
            raise ValueError(f"apply_frozen: got output {size.output}, expected ({x.shape[0]}, classes)")
        levels = tuple(layer) if isinstance(layer, list) else (layer,)
        require_levels(apply, x, levels, given)
        rows = select_targets(targets, size.output[0], size.output[1])
        if check:
            for name, array in (("x", x), *((f"given: array {i}", array) for i, array in enumerate(given))):
                require_finite(name, array)
            _require_affine(apply, x, compiled, given)
        one_pass = _pass_compiled if compiled else _pass
        bytes_each = size.bytes_each(rows.shape[1])
        parts = in_chunks(partial(one_pass, apply, levels), (x, rows, *given), bytes_each, max_bytes)
        return parts if isinstance(layer, list) else parts[0]


def _pass(
    apply: Callable[..., Array], levels: tuple[str | None, ...], x: Array, rows: Array, *given: Array
) -> list[Decomposition]:
    """Decompose one chunk: one forward pass, a jvp for each level, one vjp mapped over one-hot cotangents."""
    zeros, function = split_at(lambda x: apply(x, *given), x, levels)
    logits, pullback, values = jax.vjp(function, *zeros, has_aux=True)
    cotangents = jax.nn.one_hot(rows.T, logits.shape[1], dtype=logits.dtype)
    chosen = jnp.take_along_axis(logits, rows, axis=1)
    parts = []
    for i, (value, mapped) in enumerate(zip(values, jax.vmap(pullback)(cotangents), strict=True)):
        weights = jnp.moveaxis(mapped, 0, 1)
        contributions = weights * value[:, None]
        tangents = [*zeros[:i], value, *zeros[i + 1 :]]
        linear = jax.jvp(lambda *deltas: function(*deltas)[0], zeros, tangents)[1]
        bias = jnp.take_along_axis(logits - linear, rows, axis=1)
        explained = contributions.reshape(*rows.shape, -1).sum(-1).astype(chosen.dtype)
        parts.append(Decomposition(chosen, weights, contributions, bias, chosen - explained - bias))
    return parts


_pass_compiled = jax.jit(_pass, static_argnums=1)


def _slopes(apply: Callable[..., Array], x: Array, direction: Array, *given: Array) -> tuple[Array, Array]:
    """First and second derivative of t ↦ f(x + t v) at t = 0."""

    def slope(t: Array) -> Array:
        return jax.jvp(lambda x: apply(x, *given), (x + direction * t,), (direction,))[1]

    zero, one = jnp.zeros((), x.dtype), jnp.ones((), x.dtype)
    return jax.jvp(slope, (zero,), (one,))


_slopes_compiled = jax.jit(_slopes)


def _require_affine(apply: Callable[..., Array], x: Array, compiled: bool, given: Sequence[Array]) -> None:
    """Refuse a function with curvature along a fixed random direction; frozen properly, it is exactly zero there."""
    if isinstance(x, jax.core.Tracer):
        return
    direction = jax.random.normal(jax.random.key(0), (1, *x.shape[1:]), x.dtype)
    first, second = (_slopes_compiled if compiled else _slopes)(
        apply, x[:1], direction, *(array[:1] for array in given)
    )
    curvature, size = float(jnp.abs(second).max()), float(jnp.abs(first).max())
    if not curvature <= 1e-3 * size:  # true for NaN too
        raise ValueError(
            f"apply_frozen: second derivative in a random direction is {curvature:.2e} (slope {size:.2e}), expected "
            "0: the function is not affine at x; freeze its input-dependent coefficients"
        )
