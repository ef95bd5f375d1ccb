"""Exact decomposition of logits into the contributions of an input or of any layer.

A network whose coefficients are frozen at x is affine there (the freeze contract), so

    f(x) = W(x) x + b(x)          W(x)ᵀe_k: one vjp, all k by vmap        W(x) x: one jvp with tangent x
    contributions_k = x ⊙ W(x)ᵀe_k        b = f − W(x) x        residual_k = f_k − Σ contributions_k − b_k

Where b is taken as f − W(x) x the residual is rounding for every function, affine or not, as its two sides are the
same map run backward and forward. So three more numbers are measured in the same pass, of every example:

    curvature     |f''| / |f'| along x and along a random direction: 0 where the function is affine
    discrepancy   |frozen − free| / |free|: 0 where freezing has not changed the value
    residual      against the bias in closed form, where the network has one: then a wrong W cannot hide in b
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, overload

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxinterp.checks import require, require_at_least, require_finite
from jaxinterp.errors import ConfigError, JaxInterpError
from jaxinterp.explain.attribution import Attribution
from jaxinterp.explain.batches import MAX_BYTES, Targets, in_tiles, padded, refuse_examples, select_targets
from jaxinterp.explain.explainable import Explainable, require_layers, with_batch
from jaxinterp.explain.freeze import curved_operations, held_operations, summary
from jaxinterp.explain.independence import require_independent
from jaxinterp.explain.meshes import on_automatic_axes
from jaxinterp.explain.program import INPUT, peak_bytes

CURVATURE = 1e-3
"""Largest curvature of a function that is taken for affine; one that is has exactly none, but for rounding in NaNs."""
DISCREPANCY = 1e-3
"""Largest relative difference of frozen and free logits that is taken for rounding."""
RESIDUAL, ROUNDING = 1e-3, 1e-5
"""Largest residual: by the largest |logit| or |bias|, or, as rounding, by the sum of |contributions|."""


@overload
def decompose(
    net: Any,
    x: Any,
    targets: Targets = ...,
    *,
    layer: str | None = ...,
    given: Sequence[Array] = ...,
    max_bytes: int = ...,
    check: bool = ...,
) -> Attribution: ...


@overload
def decompose(
    net: Any,
    x: Any,
    targets: Targets = ...,
    *,
    layer: list[str] | tuple[str, ...],
    given: Sequence[Array] = ...,
    max_bytes: int = ...,
    check: bool = ...,
) -> list[Attribution]: ...


@on_automatic_axes
def decompose(
    net: Any,
    x: Any,
    targets: Targets = None,
    *,
    layer: str | list[str] | tuple[str, ...] | None = None,
    given: Sequence[Array] = (),
    max_bytes: int = MAX_BYTES,
    check: bool = True,
) -> Attribution | list[Attribution]:
    """Decompose logits exactly into the contributions of the input, or of any layer, for all classes at once.

    f_k(x) = Σ_i x_i [W(x)]_{ki} + b_k(x), see this file's head. Works on every network that is affine around `x` once
    its input-dependent coefficients are held constant: a CoDA Net, any ReLU network as it is, of any framework. Runs
    at the highest matrix-product precision.

    Args:
        net: a network, see `explainable`: an `Explainable`, an NNX, Equinox or Keras model, or x ↦ logits.
        x: a batch, (batch, ...), of examples that are independent of one another.
        targets: None for all classes, an int, (batch,) or (batch, T) classes.
        layer: name of the layer whose output is split, of `net.layers(x)`; the network's own by default: its input
            unless it says otherwise. A list of them is explained in one program with one forward pass.
        given: further arrays of the examples, (batch, ...) each, such as gates; the network gets them after `x`.
        max_bytes: bytes that one pass may take by estimate, ≥ 1; more examples and targets run tile by tile.
        check: raise for examples at which the network is not affine or not finite, or freezing changes its logits, and
            for examples that depend on one another. The numbers are returned in any case. Values that are traced, as
            under `jax.jit`, are not known, and pass.

    Returns:
        An `Attribution`, on the shape of the layer's output; a list of them where `layer` is a list.

    Raises:
        ConfigError: the network is not affine at some examples, which are named, or an argument does not fit.

    Example:
        >>> relu_net = lambda x: jax.nn.relu(x @ jnp.array([[1.0, -1.0], [2.0, 1.0]])) + 0.5
        >>> parts = decompose(relu_net, jnp.array([[1.0, 3.0]]))
        >>> parts.contributions.tolist(), parts.bias.tolist(), parts.curvature.tolist()
        ([[[1.0, 6.0], [-1.0, 3.0]]], [[0.5, 0.5]], [0.0])

    Source: CVPR 2021 (CoDA Nets), Eq. 5–8; the same identity for every piecewise affine network.
    """
    net, x = with_batch(net, x)
    require_at_least("max_bytes", max_bytes, 1)
    levels = tuple(layer) if isinstance(layer, list | tuple) else (net.layer if layer is None else layer,)
    require(isinstance(given, list | tuple), "given", f"a {type(given).__name__}", "a sequence of arrays")
    for i, array in enumerate(given):
        got = f"array {i} of shape {array.shape}" if hasattr(array, "shape") else f"a {type(array).__name__}"
        require(np.shape(array)[:1] == x.shape[:1] and hasattr(array, "shape"), "given", got, f"({len(x)}, ...)")
    if check:
        _require_finite_inputs(net, x, given)
    batch, (x, *given) = len(x), net.fitted("frozen", x, *given)
    frozen = net.program("frozen", x, *given)
    require_layers(frozen, levels)
    _require_real(x, levels, frozen)
    classes = frozen.program.output.shape[1]
    rows = select_targets(targets, batch, classes)
    biases = tuple(net.bias_at(level) for level in levels)
    for bias in biases:
        fits = bias is None or bias.shape in ((), (classes,))
        require(fits, "bias", "" if bias is None else f"shape {bias.shape}", f"one number, or ({classes},)")

    def models(x: Array, *given: Array) -> tuple[Any, Any]:
        frozen = net.program("frozen", x, *given)
        free = net.program("logits", x, *given)
        return frozen, None if net.is_own and free.program is frozen.program else free

    if check:
        require_independent(net, x, *given, max_bytes=max_bytes)
    with jax.default_matmul_precision("highest"):
        run, lower = partial(_pass, levels, biases=biases), partial(_pass.lower, levels, biases=biases)
        try:
            parts = in_tiles(run, lower, Size(levels), models, (x, *given), padded(rows, len(x)), batch, max_bytes)
        except (TypeError, ValueError, NotImplementedError) as error:
            known = any(word in str(error) for word in ("ifferentiation", "autodiff", "JVP"))
            if isinstance(error, JaxInterpError) or not known:
                raise
            wanted = "one that can be differentiated forward and backward"
            raise ConfigError(f"network: got {' '.join(str(error).split())[:200]}, expected {wanted}") from error
    if net.rewriting is not None:
        held = summary(held_operations(net.program("logits", x, *given), net.rewriting))
        parts = [replace(part, held=held) for part in parts]
    if check and not isinstance(parts[0].logits, jax.core.Tracer):
        _require_exact(parts, biases, lambda: curved_operations(net.program("logits", x, *given)))
    return parts if isinstance(layer, list | tuple) else parts[0]


@partial(jax.jit, static_argnums=(0, 1))
def _pass(
    levels: tuple[str, ...],
    checked: bool,
    models: tuple[Any, Any],
    rows: Int[Array, "batch t"],
    *arrays: Array,
    biases: tuple[Array | None, ...],
) -> list[Attribution]:
    """Decompose one tile: one forward pass, a jvp for each level, one vjp mapped over one-hot cotangents."""
    frozen, free = models

    def moved(*steps: Array) -> tuple[Array, list[Array]]:
        """Return the logits with something added to each level's output, and these outputs."""
        outputs: dict[str, Array] = {}

        def tap(name: str, step: Array, value: Array) -> Array:
            outputs[name] = value
            return value + step

        taps = {name: partial(tap, name, step) for name, step in zip(levels, steps, strict=True)}
        logits = frozen(*arrays, taps=taps)
        return logits, [outputs[name] for name in levels]

    zeros = [jnp.zeros(v.shape, v.dtype) for v in (frozen.program.values[name] for name in levels)]
    logits, pullback, outputs = jax.vjp(moved, *zeros, has_aux=True)
    cotangents = jax.nn.one_hot(rows.T, logits.shape[1], dtype=logits.dtype)
    chosen = jnp.take_along_axis(logits, rows, axis=1)
    mapped = jax.vmap(pullback)(cotangents)
    discrepancy = _discrepancy(logits, logits if free is None else free(*arrays)) if checked else None
    parts: list[Attribution] = []
    for i, (name, value) in enumerate(zip(levels, outputs, strict=True)):
        weights = jnp.moveaxis(mapped[i], 0, 1)
        contributions = weights * value[:, None]

        def at(step: Array, i: int = i) -> Array:
            return moved(*zeros[:i], step, *zeros[i + 1 :])[0]

        # Both directions at once, so that what is made of the coefficients for one serves the other.
        directions = jnp.stack([value, _aside(value)] if checked else [value])
        (linear, *_), bent = jax.vmap(partial(_along, at, zeros[i]))(directions)
        known = biases[i]
        free_bias = logits - linear if known is None else jnp.broadcast_to(known.astype(logits.dtype), logits.shape)
        bias = jnp.take_along_axis(free_bias, rows, axis=1)
        explained = contributions.reshape(*rows.shape, -1).sum(-1).astype(chosen.dtype)
        curvature = None
        if checked:
            curvature = _curvature(linear, *bent)
        parts.append(
            Attribution(
                contributions,
                chosen,
                rows,
                bias,
                (chosen - bias) - explained,  # in this order: f − Σ would round back to a large bias
                weights,
                curvature,
                discrepancy,
                "decompose",
                name,
            )
        )
    return parts


@dataclass(frozen=True)
class Size:
    """Estimate of the bytes that `_pass` takes at these levels."""

    levels: tuple[str, ...]

    def __call__(self, models: tuple[Any, Any], rows: Array, *arrays: Array) -> int:
        """Return twice the bytes that are alive at once where the pass runs in the order of its program, and weights.

        Compilers run another order, and copy: this is where a plan starts, and `in_tiles` asks the compiler.
        """
        kinds = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (models, rows, *arrays))
        traced = _pass.trace(self.levels, True, *kinds, biases=(None,) * len(self.levels))
        weights = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(models))
        return 2 * peak_bytes(traced.jaxpr.jaxpr) + weights


def _along(function: Any, point: Array, direction: Array) -> tuple[Array, Array]:
    """Return the first and second derivative of t ↦ f(point + t v) at t = 0; of an affine f the second is free."""
    return jax.jvp(lambda step: jax.jvp(function, (step,), (direction,))[1], (point,), (direction,))


def _aside(value: Array) -> Array:
    """Return a fixed random direction of every example's size, its root mean square, without overflow."""
    drawn = np.random.default_rng(0).standard_normal(value.shape[1:])
    wide = value.reshape(len(value), -1).astype(np.promote_types(value.dtype, np.float32))
    most = jnp.abs(wide).max(1, keepdims=True)
    size = most[:, 0] * jnp.sqrt(jnp.square(wide / jnp.where(most > 0, most, 1)).mean(1))
    size = jnp.where(size > 0, size, 1).reshape(-1, *(1,) * drawn.ndim)
    return (jnp.asarray(drawn, size.dtype)[None] * size).astype(value.dtype)


def _curvature(slope: Array, *bent: Array) -> Float[Array, " batch"]:
    """Return the largest second derivative of an example's logits, each over its slope along the example."""
    most = jnp.stack([jnp.abs(b) for b in bent]).max(0)
    return jnp.where(most == 0, 0, most / jnp.abs(slope)).max(1)


def _discrepancy(frozen: Array, free: Array) -> Float[Array, " batch"]:
    size = jnp.abs(free).max(1)
    return jnp.abs(frozen - free).max(1) / jnp.where(size > 0, size, 1)


def _require_finite_inputs(net: Explainable, x: Array, given: Sequence[Array]) -> None:
    if net.notice is not None:
        net.notice(x)
    for name, array in (("x", x), *((f"given: array {i}", array) for i, array in enumerate(given))):
        if jnp.issubdtype(array.dtype, jnp.inexact):
            require_finite(name, array)


def _require_real(x: Array, levels: Sequence[str], model: Any) -> None:
    """Raise for a layer whose entries are no real numbers, such as tokens."""
    real = [name for name, value in model.program.values.items() if jnp.issubdtype(value.dtype, jnp.floating)]
    hint = f"; explain a layer behind it, such as layer={real[0]!r}" if real else ""
    for name in levels:
        kind = model.program.values[name].dtype
        got = f"{kind}{x.shape}" if name == INPUT else f"{name!r} of {kind}"
        require(name in real, "x" if name == INPUT else "layer", got, f"floating numbers{hint}")


def _require_exact(
    parts: Sequence[Attribution], biases: Sequence[Array | None], curved: Callable[[], Sequence[str]]
) -> None:
    """Raise for examples that are not explained exactly, and name them."""
    for part, bias in zip(parts, biases, strict=True):
        at = f"at {part.layer!r}"
        finite = np.isfinite(np.asarray(part.residual)).all(1)
        if not finite.all():  # the residual of infinities is NaN
            wrong = any(bool(jnp.isnan(values).any()) for values in (part.logits, part.contributions))
            value = "NaN" if wrong else "infinity"
            refuse_examples(~finite, "logits", value, f"finite logits and contributions {at}")
        if part.curvature is not None:
            curvature = np.asarray(part.curvature)
            hint, got = (
                _freeze_hint(curvature, curved) + _softmax_hint(part),
                f"curvature {_largest(curvature)}",
            )
            refuse_examples(~(curvature <= CURVATURE), "network", got, f"0 {at}: it is not affine there; {hint}")
        if part.discrepancy is not None:
            discrepancy = np.asarray(part.discrepancy)
            got = f"discrepancy {_largest(discrepancy)}"
            wanted = f"at most {DISCREPANCY}: frozen, it has other logits than the network"
            refuse_examples(~(discrepancy <= DISCREPANCY), "frozen", got, wanted)
        missed = np.asarray(part.relative_residual).max(1)
        if (missed > RESIDUAL).any():
            sums = np.abs(np.asarray(part.contributions)).reshape(*part.logits.shape, -1).sum(-1)
            rounded = np.abs(np.asarray(part.residual)) <= ROUNDING * sums
            against = "the bias in closed form: weights or bias are wrong"
            against = "a forward derivative: a rule of differentiation is wrong" if bias is None else against
            wanted = f"at most {RESIDUAL} {at} against {against}"
            refuse_examples((missed > RESIDUAL) & ~rounded.all(1), "residual", _largest(missed), wanted)


def _freeze_hint(curvature: np.ndarray, curved: Callable[[], Sequence[str]]) -> str:
    names = curved() if not (curvature <= CURVATURE).all() else []
    hint = "freeze its input-dependent coefficients"
    return f"{hint}, and write it without {', '.join(names[:3])}" if names else hint


def _softmax_hint(part: Attribution) -> str:
    logits = np.asarray(part.logits)
    sums, low = logits.sum(1), float(logits.min())
    return ", and return logits: these sum to 1" if low >= 0 and np.allclose(sums, 1, atol=1e-3) else ""


def _largest(values: np.ndarray) -> str:
    known = values[~np.isnan(values)]
    return f"{float(known.max()) if known.size else np.nan:.1e}"
