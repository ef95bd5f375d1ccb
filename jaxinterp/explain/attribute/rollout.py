"""Attention rollout: how far each token's information is mixed into the one that is read, through all layers."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from jaxinterp.checks import require, require_channels_last, require_number, require_one_of
from jaxinterp.explain.attribute.backward import Call, checked, chosen
from jaxinterp.explain.attribution import Attribution
from jaxinterp.explain.batches import MAX_BYTES, TARGETS, Targets, in_batches, over_targets
from jaxinterp.explain.freeze import softmaxes_of
from jaxinterp.explain.meshes import on_automatic_axes
from jaxinterp.explain.program import INPUT, Model, layer_of
from jaxinterp.explain.tracing import bind_again
from jaxinterp.explain.units import WRAPPERS, closed_of, opened, scan_carries

Heads = Literal["mean", "max", "min"]
Upsample = Literal["nearest", "linear"]


@on_automatic_axes
def attention_rollout(
    net: Any,
    x: Any,
    targets: Targets = None,
    *,
    grid: Sequence[int] | None = None,
    heads: Heads = "mean",
    discard: float = 0.0,
    upsample: Upsample = "nearest",
    max_bytes: int = MAX_BYTES,
) -> Attribution:
    """Compute attention rollout of a vision transformer: the product of its attention matrices, each with its skip.

        Ã_l = ½ A_l + ½ I, rows summing to 1          map = the class token's row of Ã_L ⋯ Ã_1

    The matrices are the softmaxes of the network's own program; it is the same map for every class.

    Args:
        net: a network, see `explainable`, with self-attention, (batch, heads, tokens, tokens).
        x: images, (batch, H, W, C), floating.
        targets: None for all classes, an int, (batch,) or (batch, T) classes.
        grid: (H', W') in tokens, row by row; square by default. One token more is a class token in front; without
            one, rows are averaged, as where tokens are pooled.
        heads: how the heads of a layer are joined to A_l.
        discard: share of each A_l's smallest entries that are set to 0, in [0, 1).
        upsample: interpolation from H'×W' to H×W, "nearest" or "linear" (bilinear).
        max_bytes: bytes that one pass may take by estimate; larger batches run in equal parts.

    Returns:
        An `Attribution` (batch, T, H, W, 1), never negative, without a residual.

    Raises:
        ConfigError: the network has no attention of this form, or its tokens are none of the grid.

    Example:
        >>> def net(x):
        ...     tokens = x.reshape(len(x), 1, 4, 1)
        ...     return (jax.nn.softmax(tokens @ tokens.swapaxes(2, 3)) @ tokens).mean((1, 2))
        >>> attention_rollout(net, jnp.zeros((1, 2, 2, 1)), 0).contributions.ravel().tolist()
        [0.25, 0.25, 0.25, 0.25]

    Source: Abnar & Zuidema, arXiv 2005.00928, Eq. 1.
    """
    require_one_of("heads", heads, get_args(Heads))
    require_number("discard", discard, "a share in [0, 1)", lambda v: 0 <= v < 1)
    call, grid = _prepared(net, x, targets, grid, upsample, max_bytes)
    how = (heads, float(discard), grid, upsample)
    return _explained(call, partial(_rollout, how), call.memory[0], "attention_rollout", max_bytes, alike=True)


@on_automatic_axes
def gradient_rollout(
    net: Any,
    x: Any,
    targets: Targets = None,
    *,
    grid: Sequence[int] | None = None,
    upsample: Upsample = "nearest",
    max_bytes: int = MAX_BYTES,
) -> Attribution:
    """Compute rollout of attention weighted by its gradients, of each class.

        Ā_l = I + mean over heads of ReLU(∇A_l ⊙ A_l)          map = the class token's row of Ā_L ⋯ Ā_1

    Args:
        net: a network, see `explainable`, with self-attention, (batch, heads, tokens, tokens).
        x: images, (batch, H, W, C), floating.
        targets: None for all classes, an int, (batch,) or (batch, T) classes.
        grid: (H', W') in tokens, as in `attention_rollout`.
        upsample: interpolation from H'×W' to H×W, "nearest" or "linear" (bilinear).
        max_bytes: bytes that one pass may take by estimate; larger batches run in equal parts.

    Returns:
        An `Attribution` (batch, T, H, W, 1), never negative, without a residual.

    Raises:
        ConfigError: as `attention_rollout`.

    Example:
        >>> def net(x):
        ...     tokens = x.reshape(len(x), 1, 4, 1)
        ...     return (jax.nn.softmax(tokens @ tokens.swapaxes(2, 3)) @ tokens).mean((1, 2))
        >>> gradient_rollout(net, jnp.zeros((1, 2, 2, 1)), 0).contributions.ravel().tolist()
        [0.25, 0.25, 0.25, 0.25]

    Source: Chefer, Gur, Wolf, arXiv 2103.15679, Eq. 5 and 6 (self-attention).
    """
    call, grid = _prepared(net, x, targets, grid, upsample, max_bytes)
    total, most = call.memory
    size = 2 * total + most * min(call.rows.shape[1], TARGETS)
    return _explained(
        call, partial(_gradient_rollout, (grid, upsample)), size, "gradient_rollout", max_bytes, alike=False
    )


def _prepared(
    net: Any, x: Any, targets: Targets, grid: Sequence[int] | None, upsample: str, max_bytes: int
) -> tuple[Call, tuple[int, int]]:
    """Check what both rollouts take."""
    require_one_of("upsample", upsample, get_args(Upsample))
    call = checked(net, x, targets, None, max_bytes)
    require(call.x.ndim == 4, "x", f"shape {call.x.shape}", "(batch, height, width, channels)")
    require_channels_last("x", call.x.shape)
    found = attentions(call.net.program("logits", call.x))
    wanted = "one with self-attention: softmaxes over the last axis of (batch, heads, tokens, tokens)"
    require(found, "network", "one without attention", wanted)
    counts = {shape[-1] for shape in found}
    require(
        len(counts) == 1, "network", f"attention over {sorted(counts)} tokens", "one number of tokens in all layers"
    )
    (tokens,) = counts
    if grid is None:
        side = math.isqrt(tokens)
        require(tokens - side * side in (0, 1), "grid", f"none, with {tokens} tokens", "(height, width) in tokens")
        return call, (side, side)
    sides: tuple[Any, ...] = tuple(grid) if isinstance(grid, list | tuple | np.ndarray) else (grid,)
    whole = len(sides) == 2 and all(isinstance(side, int | np.integer) and side > 0 for side in sides)
    require(whole, "grid", sides, "(height, width) in tokens")
    fits = tokens - sides[0] * sides[1] in (0, 1)
    require(fits, "grid", sides, f"(height, width) of {tokens} tokens, with or without a class token")
    return call, (int(sides[0]), int(sides[1]))


def _explained(
    call: Call,
    run: Callable[[Model, Array, Array], tuple[Array, Array]],
    size: int,
    method: str,
    max_bytes: int,
    alike: bool,
) -> Attribution:
    """Explain part by part; targets, unless their maps are alike, by a backward pass each."""

    def explain(x: Array, rows: Array) -> Attribution:
        def of_targets(rows: Array) -> Attribution:
            maps, logits = run(call.net.program("logits", x), x, rows)
            return Attribution(maps, logits, rows, method=method, layer=INPUT)

        return of_targets(rows) if alike else over_targets(of_targets, rows)

    with jax.default_matmul_precision("highest"):
        return in_batches(explain, (call.x, call.rows), call.batch, size, max_bytes)


@partial(jax.jit, static_argnums=0)
def _rollout(how: tuple[Any, ...], model: Model, x: Array, rows: Array) -> tuple[Array, Array]:
    """Multiply the attention matrices, each half itself and half its skip connection."""
    heads, discard, grid, upsample = how
    logits, matrices = attended(model, x)
    whole = None
    for matrix in matrices:
        joined = getattr(_by_head(matrix, len(x)), heads)(1)
        flat = joined.reshape(len(joined), -1)
        dropped = int(discard * flat.shape[1])
        lowest = jnp.sort(flat, axis=1)[:, dropped, None, None]
        joined = jnp.where(joined >= lowest, joined, 0)
        mixed = (joined + jnp.eye(joined.shape[-1], dtype=joined.dtype)[None]) / 2
        mixed = mixed / mixed.sum(-1, keepdims=True)
        whole = mixed if whole is None else mixed @ whole
    maps = _mapped(whole, grid, x.shape[1:3], upsample)
    return jnp.tile(maps[:, None], (1, rows.shape[1], 1, 1, 1)), chosen(logits, rows)


@partial(jax.jit, static_argnums=0)
def _gradient_rollout(how: tuple[Any, ...], model: Model, x: Array, rows: Array) -> tuple[Array, Array]:
    """Multiply the identity plus the mean positive part of gradient times attention, layer by layer."""
    grid, upsample = how
    shapes = jax.eval_shape(attended, model, x)[1]
    zeros = [jnp.zeros(shape.shape, shape.dtype) for shape in shapes]
    logits, pullback, matrices = jax.vjp(lambda *steps: attended(model, x, steps), *zeros, has_aux=True)
    maps = []
    for row in rows.T:
        slopes = pullback(jax.nn.one_hot(row, logits.shape[1], dtype=logits.dtype))
        whole = None
        for slope, matrix in zip(slopes, matrices, strict=True):
            weighted = jax.nn.relu(_by_head(slope * matrix, len(x))).mean(1)
            mixed = weighted + jnp.eye(weighted.shape[-1], dtype=weighted.dtype)[None]
            whole = mixed if whole is None else mixed @ whole
        maps.append(_mapped(whole, grid, x.shape[1:3], upsample))
    return jnp.stack(maps, 1), chosen(logits, rows)


def _by_head(matrix: Array, batch: int) -> Float[Array, "batch heads tokens tokens"]:
    """Return matrices with one axis of heads, where they have none or are grouped."""
    return matrix.reshape(batch, -1, *matrix.shape[-2:])


def _mapped(
    whole: Any, grid: tuple[int, int], size: tuple[int, ...], upsample: str
) -> Float[Array, "batch height width 1"]:
    """Return what goes from each token into the class token in front, or into all where there is none, as a map."""
    places = grid[0] * grid[1]
    row = whole[:, 0, 1:] if whole.shape[-1] > places else whole.mean(1)
    return jax.image.resize(row.reshape(len(row), *grid), (len(row), *size), upsample)[..., None]


def attentions(model: Model) -> list[tuple[int, ...]]:
    """Return the shapes of the self-attention matrices of a network, layer by layer."""
    x: Any = model.program.jaxpr.invars[len(jax.tree.leaves(model.variables))].aval
    return list(_shapes(model.program.jaxpr, x.shape[0]))


def _shapes(jaxpr: Any, batch: int) -> Iterator[tuple[int, ...]]:
    matrices = _matrices(jaxpr, batch)
    for eqn in jaxpr.eqns:
        if eqn.outvars[0] in matrices:
            yield eqn.outvars[0].aval.shape
        for inner in _within(eqn):
            turns = eqn.params["length"] if eqn.primitive.name == "scan" else 1
            yield from list(_shapes(inner, batch)) * turns


def _matrices(jaxpr: Any, batch: int) -> set[Any]:
    """Return the softmaxes of shape (batch, *heads, tokens, tokens) of a program."""
    found = (softmax.weights for softmax in softmaxes_of(jaxpr))
    return {v for v in found if _is_attention(v.aval.shape, batch)}


def _is_attention(shape: tuple[int, ...], batch: int) -> bool:
    """Whether the first axis, but for axes of one, is the batch's, and the last two are the same tokens'."""
    first = next((size for size in shape[:-2] if size != 1), 1)
    return len(shape) > 2 and shape[-1] == shape[-2] and batch in (1, first)


def _within(eqn: Any) -> list[Any]:
    """Return the program within an operation that is looked into."""
    if eqn.primitive.name == "scan":
        return [opened(eqn.params["jaxpr"])]
    inner = closed_of(eqn) if eqn.primitive.name in WRAPPERS else None
    return [] if inner is None else [opened(inner)]


def attended(model: Model, x: Array, steps: Sequence[Array] | None = None) -> tuple[Array, list[Array]]:
    """Return the logits, and the attention matrices, with something added to each of these where steps are given."""
    jaxpr, leaves = model.program.jaxpr, jax.tree.leaves(model.variables)
    given = None if steps is None else list(steps)
    outs, seen = _run(jaxpr, [*model.constants, *leaves, x], len(x), given)
    return outs[0], seen


def _run(jaxpr: Any, args: Sequence[Any], batch: int, steps: list[Array] | None) -> tuple[list[Any], list[Array]]:
    """Run a program; steps are taken from the front of the list, one for each matrix."""
    known: dict[Any, Any] = dict(zip([*jaxpr.constvars, *jaxpr.invars], args, strict=True))
    matrices, seen = _matrices(jaxpr, batch), []
    for eqn in jaxpr.eqns:
        values = [atom.val if hasattr(atom, "val") else known[atom] for atom in eqn.invars]
        inner = _within(eqn)
        if layer_of(eqn) is not None:
            outs = values
        elif eqn.primitive.name != "custom_vmap_call" and not any(any(True for _ in _shapes(p, batch)) for p in inner):
            outs = bind_again(eqn, *values)
        elif eqn.primitive.name == "scan":
            outs, found = _scan(eqn, inner[0], values, batch, steps)
            seen += found
        else:
            outs, found = _run(inner[0], [*getattr(closed_of(eqn), "consts", ()), *values], batch, steps)
            seen += found
        if eqn.outvars[0] in matrices:
            outs = outs if steps is None else [outs[0] + steps.pop(0)]
            seen.append(outs[0])
        known.update(zip(eqn.outvars, outs, strict=True))
    return [atom.val if hasattr(atom, "val") else known[atom] for atom in jaxpr.outvars], seen


def _scan(
    eqn: Any, body: Any, values: Sequence[Any], batch: int, steps: list[Array] | None
) -> tuple[list[Any], list[Array]]:
    """Run a scan whose turns also take the steps of their matrices and return the matrices, in the order of turns."""
    first, count = scan_carries(eqn)
    fixed = [*getattr(eqn.params["jaxpr"], "consts", ()), *values[:first]]
    length, reverse = eqn.params["length"], eqn.params["reverse"]
    each = len(list(_shapes(body, batch)))
    turns = None
    if steps is not None:
        mine, steps[:] = steps[: each * length], steps[each * length :]
        order = slice(None, None, -1) if reverse else slice(None)
        turns = [jnp.stack(mine[i::each][order]) for i in range(each)]

    def turn(carry: Sequence[Array], over: Any) -> tuple[list[Array], Any]:
        rest, here = over
        outs, seen = _run(body, [*fixed, *carry, *rest], batch, None if here is None else list(here))
        return list(outs[:count]), (list(outs[count:]), seen)

    over = (values[first + count :], turns)
    carry, (stacked, found) = lax.scan(turn, values[first : first + count], over, length=length, reverse=reverse)
    places = range(length - 1, -1, -1) if reverse else range(length)
    return [*carry, *stacked], [matrix[i] for i in places for matrix in found]
