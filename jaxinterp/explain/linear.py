"""Exact decomposition of an output into the contributions of an input or of any activation.

A network whose coefficients are frozen at x is affine there (the freeze contract), so

    f(x) = W(x) x + b(x)          W(x)ᵀe_k: one vjp, all k by vmap        W(x) x: one jvp with tangent x
    contributions_k = x ⊙ W(x)ᵀe_k        b = f − W(x) x        residual_k = f_k − Σ contributions_k − b_k

The two sides of the residual come from different passes, forward and backward; it is float noise, and it is
returned with every explanation.
"""

import difflib
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from functools import lru_cache, partial, wraps
from typing import Any, NamedTuple, TypeVar, overload

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

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


def require_labels(name: str, labels: Any, count: int, classes: int | None = None) -> None:
    """Refuse labels that are not `count` integers, at least one, in [0, classes).

    Raises:
        ValueError: they are not.
    """
    found = np.asarray(labels)
    if found.shape != (count,) or not count or not np.issubdtype(found.dtype, np.integer):
        raise ValueError(
            f"{name}: got {found.dtype}{found.shape}, expected {max(count, 1)} integers, one for each image"
        )
    if found.min() < 0 or (classes is not None and found.max() >= classes):
        wanted = "from 0 on" if classes is None else f"in [0, {classes})"
        raise ValueError(f"{name}: got {found.min()}..{found.max()}, expected classes {wanted}")


def require_batch(x: Array) -> None:
    """Refuse an input `x` that is not a batch of floating arrays.

    Raises:
        ValueError: `x` is not floating, or has no batch axis or no example.
    """
    if x.ndim < 2 or len(x) == 0 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x: got {x.dtype}{x.shape}, expected a floating array (batch, ...) of at least one example")


def require_variables(apply: Callable[..., Array], variables: Any, name: str) -> None:
    """Refuse a Flax model in place of its `apply`, and that without the model's variables.

    Raises:
        ValueError: one of these came.
    """
    if isinstance(apply, nn.Module) and apply.scope is None:
        raise ValueError(f"{name}: got the model {type(apply).__name__}, expected its function: model.apply")
    if variables is None and getattr(apply, "__func__", None) is nn.Module.apply:
        raise ValueError(f"variables: got none with {name}=model.apply, expected the model's variables")


def require_finite(name: str, values: Array | np.ndarray) -> None:
    """Refuse NaN and infinite values of an argument; values that are being traced are not known and pass.

    Raises:
        ValueError: a value is not finite.
    """
    if isinstance(values, jax.core.Tracer):
        return
    if isinstance(values, np.ndarray) and values.size and np.isfinite([values.min(), values.max()]).all():
        return  # without a copy on the device, or a mask of the array's size
    wrong = values.size - int(jnp.isfinite(values).sum())
    if wrong:
        raise ValueError(f"{name}: got {wrong} of {values.size} values NaN or infinite, expected finite values")


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
    at: str | None = ...,
    *,
    variables: Any = ...,
    given: Sequence[Array] = ...,
    memory: int = ...,
    check: bool = ...,
) -> Decomposition: ...


@overload
def decompose(
    apply_frozen: Callable[..., Array],
    x: Array,
    targets: Targets = ...,
    *,
    at: list[str | None],
    variables: Any = ...,
    given: Sequence[Array] = ...,
    memory: int = ...,
    check: bool = ...,
) -> list[Decomposition]: ...


def decompose(
    apply_frozen: Callable[..., Float[Array, "batch classes"]],
    x: Array,
    targets: Targets = None,
    at: str | list[str | None] | None = None,
    *,
    variables: Any = None,
    given: Sequence[Array] = (),
    memory: int = 2 << 30,
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
        at: path of a Flax submodule, such as "layer_3" or "trunk/block_2"; its output takes the place of `x`. A list
            of paths, None in it being `x`, is explained in one program with one backward pass.
        variables: the model's variables, any pytree.
        given: arrays that belong to the examples, (batch, ...) each, such as gates of one's own; `apply_frozen` gets
            them after `x`.
        memory: bytes that one pass may take by estimate, ≥ 1; larger batches run in equal chunks.
        check: refuse values of `x` and `given` that are not finite, and a function that has curvature at the first
            example (one that forgot to freeze).

    Returns:
        A `Decomposition`, on the shape of `x` or of the activation; a list of them where `at` is a list.

    Raises:
        ValueError: a Flax model's `apply` without variables, unknown, repeated or empty `at`, unfit `targets`, `x` not
            a batch of finite floating arrays, `given` of another batch, `memory` < 1, or a function that is not affine
            at `x`.

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
    if at is not None:
        apply_frozen = unjitted(apply_frozen)
    apply = jax.tree_util.Partial(apply_frozen, variables) if compiled else jax.tree_util.Partial(apply_frozen)
    with jax.default_matmul_precision("highest"):
        for i, array in enumerate(given):
            if array.shape[:1] != x.shape[:1]:
                raise ValueError(f"given: array {i} has shape {array.shape}, expected ({len(x)}, ...)")
        size = footprint(apply, x, *given)
        if len(size.output) != 2 or size.output[0] != x.shape[0]:
            raise ValueError(f"apply_frozen: got output {size.output}, expected ({x.shape[0]}, classes)")
        levels = tuple(at) if isinstance(at, list) else (at,)
        require_levels(apply, x, levels, given)
        rows = select_targets(targets, size.output[0], size.output[1])
        if check:
            for name, array in (("x", x), *((f"given: array {i}", array) for i, array in enumerate(given))):
                require_finite(name, array)
            _require_affine(apply, x, compiled, given)
        one_pass = _pass_compiled if compiled else _pass
        bytes_each = size.bytes_each(rows.shape[1])
        parts = in_chunks(partial(one_pass, apply, levels), (x, rows, *given), bytes_each, memory)
        return parts if isinstance(at, list) else parts[0]


def unjitted(function: Callable[..., Array]) -> Callable[..., Array]:
    """The function itself, of a jitted one: modules are addressed while tracing, which a cache would skip."""
    return inspect.unwrap(function, stop=lambda f: not hasattr(f, "lower")) if hasattr(function, "lower") else function


def in_chunks(function: Callable[..., Any], arrays: tuple[Array, ...], bytes_each: int, memory: int) -> Any:
    """Apply a per-example function to equal chunks along the first axis, each within a memory budget.

    Args:
        function: (chunk of each array) ↦ pytree of arrays with the examples first.
        arrays: arrays with a common first axis, (batch, ...).
        bytes_each: estimate of the bytes that one example takes.
        memory: budget in bytes, ≥ 1.

    Returns:
        The pytree for the whole batch.

    Raises:
        ValueError: `memory` < 1.
    """
    if memory < 1:
        raise ValueError(f"memory: got {memory}, expected at least 1 byte")
    batch = arrays[0].shape[0]
    count = min(batch, max(1, math.ceil(batch * bytes_each / memory)))
    if count == 1:
        return function(*arrays)
    size = math.ceil(batch / count)
    # The last chunk reaches back, so that every chunk has one shape and one compiled program serves all.
    starts = [min(i * size, batch - size) for i in range(math.ceil(batch / size))]
    parts = [function(*(a[s : s + size] for a in arrays)) for s in starts]
    overlap = starts[-2] + size - starts[-1] if len(starts) > 1 else 0
    parts[-1] = jax.tree.map(lambda a: a[overlap:], parts[-1])
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


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


Traced = TypeVar("Traced")


def once_per_shape(trace: Callable[..., Traced]) -> Callable[..., Traced]:
    """Keep what a function finds by tracing (apply, *arrays): shapes and types decide it, values do not.

    Only a function with arrays bound by `jax.tree_util.Partial` is kept, and held: one that closes over them would be
    another one in every call. A jitted one has its own cache, and other arguments than arrays may decide a shape.
    """

    @lru_cache(maxsize=32)
    def kept(structure: Any, leaves: tuple[jax.ShapeDtypeStruct, ...], wide: bool) -> Traced:
        found: list[Traced] = []
        jax.eval_shape(lambda *values: found.append(trace(*jax.tree.unflatten(structure, values))), *leaves)
        return found[0]

    def abstract(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, weak_type=getattr(leaf, "weak_type", False))

    @wraps(trace)
    def found(apply: Callable[..., Any], *arrays: Any) -> Traced:
        leaves, structure = jax.tree.flatten((apply, *arrays))
        if (
            not isinstance(apply, jax.tree_util.Partial)
            or not apply.args
            or apply.keywords
            or hasattr(apply.func, "lower")
            or not all(hasattr(leaf, "dtype") for leaf in leaves)
        ):
            return trace(apply, *arrays)
        return copy(kept(structure, tuple(map(abstract, leaves)), bool(jax.config.read("jax_enable_x64"))))

    return found


class Footprint(NamedTuple):
    """What tracing tells of a function.

    Attributes:
        output: shape of its output, (batch, ...).
        forward: bytes of every value of one example's forward pass.
        largest: bytes of the largest of them, which each cotangent takes once more.
    """

    output: tuple[int, ...]
    forward: int
    largest: int

    def bytes_each(self, targets: int) -> int:
        """Upper estimate of the bytes that one example takes with that many cotangents at once."""
        return self.forward + targets * self.largest


@once_per_shape
def footprint(apply: Callable[..., Array], x: Array | jax.ShapeDtypeStruct, *given: Array) -> Footprint:
    """The output's shape and the memory of an example, from traced programs; nothing is computed.

    Args:
        apply: (x, *given) ↦ output, (batch, ...).
        x: input, (batch, ...).
        *given: as in `decompose`.
    """

    def sizes(count: int) -> list[int]:
        few = (jax.ShapeDtypeStruct((count, *array.shape[1:]), array.dtype) for array in (x, *given))
        return list(_sizes(jax.make_jaxpr(lambda *v: apply(*v))(*few).jaxpr))

    one, two = sizes(1), sizes(2)
    shape = jax.eval_shape(apply, x, *given).shape
    return Footprint(shape, sum(two) - sum(one), max(two, default=0) - max(one, default=0))


def _sizes(jaxpr: Any) -> Iterator[int]:
    """Bytes of every intermediate value, those of inner programs included."""
    for equation in jaxpr.eqns:
        yield from (math.prod(v.aval.shape) * v.aval.dtype.itemsize for v in equation.outvars)
        for parameter in equation.params.values():
            for inner in parameter if isinstance(parameter, tuple | list) else (parameter,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from _sizes(inner)


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


def split_at(
    apply: Callable[[Array], Array], x: Array, levels: Sequence[str | None]
) -> tuple[list[Array], Callable[..., tuple[Array, list[Array]]]]:
    """The logits as a function of what is added to the input or to the outputs of named Flax submodules.

    Args:
        apply: x ↦ logits, calling a Flax model, not jitted.
        x: input, (batch, ...).
        levels: paths of the submodules; None is the input.

    Returns:
        Zeros of every level's shape, and (what is added to each level) ↦ (logits, every level's activation).

    Raises:
        ValueError: a submodule cannot be reached because its call was traced before.
    """

    def added(*deltas: Array) -> tuple[Array, list[Array]]:
        seen: dict[str | None, Array] = {None: x}

        def add(run: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
            out, path = run(*args, **kwargs), "/".join(context.module.path)
            if context.method_name != "__call__" or path not in levels:
                return out
            seen[path] = out
            return out + deltas[levels.index(path)] if deltas else out

        with nn.intercept_methods(add):
            logits = apply(x + deltas[levels.index(None)] if deltas and None in levels else x)
        unseen = [level for level in levels if level not in seen]
        if unseen:
            raise ValueError(
                f"at: {unseen[0]!r} was traced before and cannot be addressed; pass a function that is not jitted"
            )
        return logits, [seen[level] for level in levels]

    shapes = jax.eval_shape(lambda: added()[1])
    return [jnp.zeros(shape.shape, shape.dtype) for shape in shapes], added


@once_per_shape
def activation_names(apply: Callable[..., Array], x: Array, *given: Array) -> dict[str, tuple[int, ...]]:
    """Paths and output shapes of all Flax submodules whose output is one array with the batch first.

    Args:
        apply: (x, *given) ↦ logits, calling a Flax model.
        x: input, (batch, ...).
        *given: as in `decompose`.

    Returns:
        {path: shape} in the order of the calls; a path is what `decompose(..., at=path)` takes.
    """
    names: dict[str, tuple[int, ...]] = {}
    repeated: set[str] = set()

    def note(run: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        out = run(*args, **kwargs)
        path = "/".join(context.module.path)
        if context.method_name == "__call__" and path and isinstance(out, jax.Array):
            repeated.update({path} & names.keys())
            names[path] = out.shape
        return out

    with nn.intercept_methods(note):
        jax.eval_shape(lambda *v: apply(*v), x, *given)  # a new function: a cached trace would not be intercepted
    return {name: shape for name, shape in names.items() if name not in repeated and shape[:1] == x.shape[:1]}


def require_levels(
    apply: Callable[..., Array], x: Array, levels: Sequence[str | None], given: Sequence[Array] = ()
) -> None:
    """Refuse, with near matches, an empty list, one that repeats a level, and a path that is no `activation_names`."""
    if not levels or len(set(levels)) < len(levels):
        got = f"{list(levels)!r}, a level twice" if levels else "an empty list"
        raise ValueError(f"at: got {got}, expected different paths of Flax submodules, or None for the input")
    if all(level is None for level in levels):
        return
    names = activation_names(apply, x, *given)
    for level in levels:
        if level is not None and level not in names:
            near = difflib.get_close_matches(level, names, n=3) or list(names)[:8]
            such = ", ".join(near) or "none"
            raise ValueError(f"at: got {level!r}, expected a Flax submodule called once, such as {such}")
