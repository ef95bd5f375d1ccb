"""What every post-hoc method starts with: checked arguments, and the gradients of many logits from one forward pass."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxinterp.checks import require, require_at_least, require_finite
from jaxinterp.explain.batches import Targets, padded, select_targets
from jaxinterp.explain.explainable import Explainable, require_layers, with_batch
from jaxinterp.explain.independence import require_independent
from jaxinterp.explain.program import Model

X = "x"
"""Name, in an `Attribution`, of the examples themselves, before any encoding."""


class Call(NamedTuple):
    """Checked arguments of a method, padded to a batch of a few sizes.

    Attributes:
        batch: number of examples that are no padding.
        memory: bytes of all values of a forward pass, and the most that are alive at once.
    """

    net: Explainable
    x: Array
    rows: Int[Array, "n t"]
    batch: int
    memory: tuple[int, int]


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
    return Call(net, x, rows, batch, model.program.memory)


def head(model: Model, layer: str | None, z: Array, x: Array) -> Array:
    """Return logits as a function of x (layer None), or of a layer's output, all around it being computed from x."""
    if layer is None:
        return model(z)  # type: ignore[no-any-return]
    return model(x, taps={layer: lambda value: z.astype(value.dtype)})  # type: ignore[no-any-return]


def target_gradients(
    model: Model, layer: str | None, z: Float[Array, "batch *shape"], x: Array, rows: Int[Array, "batch t"]
) -> tuple[Float[Array, "batch classes"], Float[Array, "batch t *shape"]]:
    """Return the logits, and the gradients of the targets' by z: one forward pass, then a backward pass per target.

    The backward passes are one compiled program in a Python loop. Under `vmap` the intermediate values of all targets
    are alive at once, which took twice as long on a ResNet and eight times on a CoDA Net (2 CPU cores, 9 targets).
    """
    logits, pullback = _forward(layer, model, z, x)
    cotangents = jax.nn.one_hot(rows.T, logits.shape[1], dtype=logits.dtype)
    return logits, jnp.stack([_pull(pullback, cotangent) for cotangent in cotangents], axis=1)


def chosen(logits: Array, rows: Array) -> Array:
    """Return the targets' logits."""
    return jnp.take_along_axis(logits, rows, axis=1)


@partial(jax.jit, static_argnums=0)
def _forward(layer: str | None, model: Model, z: Array, x: Array) -> tuple[Array, Callable[[Array], tuple[Array]]]:
    logits, pullback = jax.vjp(lambda z: head(model, layer, z, x), z)
    return logits, pullback


@jax.jit
def _pull(pullback: Callable[[Array], tuple[Array]], cotangent: Array) -> Array:
    return pullback(cotangent)[0]


def size_of(call: Call, targets: int) -> int:
    """Return an estimate of the bytes of a forward pass, one backward pass, and gradients of the targets."""
    total, most = call.memory
    return total + 2 * most + targets * call.x.size * call.x.dtype.itemsize
