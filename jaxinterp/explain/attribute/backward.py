"""What every post-hoc method starts with: checked arguments, and gradients of many logits traced in one program."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from jaxinterp.checks import require, require_at_least, require_finite
from jaxinterp.errors import ConfigError
from jaxinterp.explain.attribution import Attribution
from jaxinterp.explain.batches import Targets, affordable, as_array, padded, select_targets
from jaxinterp.explain.explainable import Explainable, require_layers, with_batch
from jaxinterp.explain.independence import require_independent
from jaxinterp.explain.program import INPUT, Model, called


class Call(NamedTuple):
    """Checked arguments of a method, padded to a batch of a few sizes.

    Attributes:
        batch: number of examples that are no padding.
        memory: bytes of all values of a forward pass, and the most that are alive at once.
        explained: bytes of x, or of the layer's output where that is larger.
    """

    net: Explainable
    x: Array
    rows: Int[Array, "n t"]
    batch: int
    memory: tuple[int, int]
    explained: int


def checked(net: Any, x: Any, targets: Targets, layer: str | None, max_bytes: int) -> Call:
    """Check what all methods take."""
    net, x = with_batch(net, x)
    require_at_least("max_bytes", max_bytes, 1)
    if jnp.issubdtype(x.dtype, jnp.inexact):
        require_finite("x", x)
    one = layer is None or isinstance(layer, str)
    require(one, "layer", f"a {type(layer).__name__}", "one name; decompose takes a list of them")
    batch, (x,) = len(x), net.fitted("logits", x)
    model = net.program("logits", x, examples=batch)
    if layer is None:
        require(jnp.issubdtype(x.dtype, jnp.floating), "x", f"{x.dtype}{x.shape}", "a floating array; explain a layer")
    else:
        require_layers(model, [layer])
    rows = padded(select_targets(targets, batch, model.program.output.shape[1]), len(x))
    require_independent(net, x, max_bytes=max_bytes)
    values = (x,) if layer is None else (x, model.program.values[layer])
    explained = max(value.size * value.dtype.itemsize for value in values)
    return Call(net, x, rows, batch, model.program.memory, explained)


def head(model: Model, layer: str | None, z: Array, x: Array) -> Array:
    """Return logits as a function of x (layer None), or of a layer's output, all around it being computed from x."""
    if layer is None:
        return model(z)  # type: ignore[no-any-return]
    return model(x, taps={layer: lambda value: z.astype(value.dtype)})  # type: ignore[no-any-return]


def gradients(
    model: Model, layer: str | None, x: Array, rows: Int[Array, "batch t"]
) -> tuple[Float[Array, "batch *shape"], Float[Array, "batch t"], Float[Array, "batch t *shape"]]:
    """Return x (layer None) or a layer's output, the targets' logits, and their gradients by it.

    To be traced in the one program of a method. Below the layer nothing is differentiated: something is added to its
    output, zero, by which the gradients are taken.
    """
    if layer is None:
        return x, *gradients_at(model, None, x, x, rows)
    kind = model.program.values[layer]

    def moved(step: Array) -> tuple[Array, Array]:
        seen: list[Array] = []

        def tap(value: Array) -> Array:
            seen.append(value)
            return value + step

        return model(x, taps={layer: tap}), seen[0]

    logits, pullback, z = jax.vjp(moved, jnp.zeros(kind.shape, kind.dtype), has_aux=True)
    return z, chosen(logits, rows), _pulled(pullback, logits, rows)


def gradients_at(
    model: Model, layer: str | None, z: Float[Array, "batch *shape"], x: Array, rows: Int[Array, "batch t"]
) -> tuple[Float[Array, "batch t"], Float[Array, "batch t *shape"]]:
    """Return the targets' logits and their gradients as `gradients`, at another value z of the layer's output."""
    logits, pullback = jax.vjp(lambda z: head(model, layer, z, x), z)
    return chosen(logits, rows), _pulled(pullback, logits, rows)


slopes_at: Callable[..., tuple[Array, Array]] = jax.jit(gradients_at, static_argnums=1)
"""`gradients_at`, compiled: one program for all methods that take gradients at as many points."""


def logits_at(model: Model, layer: str | None, z: Array, x: Array) -> Float[Array, "batch classes"]:
    """Return `head`, compiled: that of the input is the program that computes logits anywhere."""
    return called(model, z) if layer is None else _head(model, layer, z, x)  # type: ignore[no-any-return]


_head = jax.jit(head, static_argnums=1)


def gradients_of(
    function: Callable[[Array], Array], rows: Int[Array, "batch t"], x: Array
) -> tuple[Float[Array, "batch t"], Float[Array, "batch t *shape"]]:
    """Return the targets' logits and their gradients of a function, all targets in one vectorized backward pass."""
    logits, pullback = jax.vjp(function, x)
    cotangents = jax.nn.one_hot(rows.T, logits.shape[1], dtype=logits.dtype)
    return chosen(logits, rows), jnp.moveaxis(jax.vmap(pullback)(cotangents)[0], 0, 1)


def _pulled(pullback: Callable[[Array], tuple[Array]], logits: Array, rows: Array) -> Array:
    """Run a backward pass for each target, one after the other in the program.

    A ResNet-20 took 81 ms for 10 classes of 16 images this way, 117 ms under `vmap`, where the intermediate values of
    all targets are alive at once, and 1,300 ms in a loop of the compiled program (2 CPU cores).
    """
    cotangents = jax.nn.one_hot(rows.T, logits.shape[1], dtype=logits.dtype)
    return jnp.stack([pullback(cotangent)[0] for cotangent in cotangents], axis=1)


def along_path(
    model: Model,
    layer: str | None,
    points: Float[Array, "n batch *shape"],
    steps: Float[Array, "n batch *shape"],
    around: Shaped[Array, "n_batch *input"],
    rows: Int[Array, "batch t"],
) -> Float[Array, "batch t *shape"]:
    """Return Σ_s steps_s ⊙ ∂f_k/∂z(points_s), all points of a path in one batch.

    Args:
        model: traced for n · batch examples.
        layer: whose output z is; None for the input.
        points: values of z.
        steps: with the weights of the points.
        around: x of every point, in their order, for what goes around the layer.
        rows: targets of the examples.
    """
    flat = points.reshape(-1, *points.shape[2:])
    _, slopes = gradients_at(model, layer, flat, around, jnp.tile(rows, (len(points), 1)))
    return (slopes.reshape(len(points), *rows.shape, *points.shape[2:]) * steps[:, :, None]).sum(0)


def chosen(logits: Array, rows: Array) -> Array:
    """Return the targets' logits."""
    return jnp.take_along_axis(logits, rows, axis=1)


def completed(
    method: str,
    layer: str | None,
    logits: Float[Array, "batch t"],
    bias: Float[Array, "batch t"],
    rows: Int[Array, "batch t"],
    contributions: Float[Array, "batch t *shape"],
) -> Attribution:
    """Return contributions that should sum to the logits less the bias, with what they miss."""
    residual = logits - bias - contributions.reshape(*rows.shape, -1).sum(-1).astype(logits.dtype)
    return Attribution(contributions, logits, rows, bias, residual, method=method, layer=layer or INPUT)


def shape_at(call: Call, layer: str | None) -> tuple[int, ...]:
    """Return (batch, ...), without padding, of x (layer None) or of a layer's output."""
    shape = call.x.shape if layer is None else call.net.program("logits", call.x).program.layers[layer]
    return (call.batch, *shape[1:])


def placed(call: Call, name: str, value: Any, layer: str | None = None) -> Shaped[Array, "batch *shape"]:
    """Return a number, or an array that broadcasts to x (layer None) or a layer's output, as a padded batch.

    Raises:
        ConfigError: it consists of no numbers, does not broadcast, or is not finite.
    """
    shape = shape_at(call, layer)
    kind = call.x.dtype if layer is None else call.net.program("logits", call.x).program.values[layer].dtype
    where: Any = jnp if isinstance(value, jax.core.Tracer) else np  # known ones without a program for each size
    try:
        given = where.asarray(value)
    except ValueError as error:
        raise ConfigError(f"{name}: got rows of several lengths, expected one that broadcasts to {shape}") from error
    numbers = any(jnp.issubdtype(given.dtype, scalar) for scalar in (jnp.floating, jnp.integer, jnp.bool_))
    require(numbers, name, value if np.ndim(given) == 0 else given.dtype, "a number, or an array of numbers")
    array = given.astype(kind)
    fits = array.ndim <= len(shape) and all(b in (1, n) for b, n in zip(array.shape[::-1], shape[::-1], strict=False))
    require(fits, name, f"shape {array.shape}", f"one that broadcasts to {shape}")
    require_finite(name, array)
    return padded(as_array(where.broadcast_to(array, shape)), len(call.x))


def size_of(call: Call, targets: int) -> int:
    """Return an estimate of the bytes of a forward pass, one backward pass, and gradients of the targets."""
    total, most = call.memory
    return total + 2 * most + targets * call.explained


CACHE = 8 << 20
"""Bytes of the values alive at once in a pass on CPUs: of larger ones, caches hold too little (a fifth of the time)."""


def in_cache(call: Call, each: float, max_bytes: int) -> int:
    """Return the budget of passes over many points, smaller on CPUs: that of as many points as `CACHE` holds.

    Args:
        call: what was checked.
        each: bytes that one point takes by estimate.
        max_bytes: the budget.
    """
    known = not isinstance(call.x, jax.core.Tracer)
    if not (known and all(device.platform == "cpu" for device in call.x.devices())):
        return max_bytes
    points = max(1, CACHE * len(call.x) // max(1, call.memory[1]))
    return min(max_bytes, math.ceil(each * points))


def fitting(call: Call, targets: int, samples: int, max_bytes: int) -> tuple[int, int, int]:
    """Return how many points run at once, the bytes of all examples with them, and the budget of a pass.

    Args:
        call: what was checked.
        targets: maps of an example's size that one point takes.
        samples: points of an example, in passes of one size.
        max_bytes: the budget, in which one point of one example has to fit in any case.
    """
    each = size_of(call, targets) / len(call.x)
    max_bytes = in_cache(call, each, max_bytes)
    passes = math.ceil(samples / max(1, int(max_bytes // max(1, each))))
    count = math.ceil(samples / passes)
    return count, math.ceil(each * len(call.x) * count), max_bytes


def fitting_examples(call: Call, targets: int, samples: int, max_bytes: int) -> tuple[int, int, int]:
    """Return what `fitting` does, with as many examples at once as the budget allows before there are more points.

    Where one point of them fills it, passes have the shape of those of `gradient`, and run its program.
    """
    each = size_of(call, targets) / len(call.x)
    max_bytes = in_cache(call, each, max_bytes)
    examples = affordable(len(call.x), each * len(call.x), max_bytes)
    most = max(1, int(max_bytes // max(1, each * examples)))
    count = math.ceil(samples / math.ceil(samples / most))
    return count, math.ceil(each * len(call.x) * count), max_bytes


def repeated(x: Array, count: int) -> Array:
    """Return the batch `count` times, one after the other."""
    return jnp.tile(x, (count, *(1,) * (x.ndim - 1)))
