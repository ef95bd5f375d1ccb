"""SmoothGrad, its square and VarGrad: the mean, mean square and variance of any method under noise on the input."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from jaxinterp.checks import random_key, require, require_number, require_one_of, require_whole
from jaxinterp.explain.attribute.backward import Call, checked, chosen, in_cache, shape_at, size_of
from jaxinterp.explain.attribute.gradient import gradient
from jaxinterp.explain.attribution import Attribution
from jaxinterp.explain.batches import MAX_BYTES, Targets, in_batches
from jaxinterp.explain.meshes import on_automatic_axes
from jaxinterp.explain.program import called

Kind = Literal["smoothgrad", "smoothgrad_sq", "vargrad"]
VALUES = "baseline", "x0", "low", "high"
"""Options that may have a value for each example, beside `mask`."""


@on_automatic_axes
def noise_tunnel(
    net: Any,
    x: Any,
    targets: Targets = None,
    *,
    method: Callable[..., Attribution] = gradient,
    kind: Kind = "smoothgrad",
    samples: int = 25,
    noise: float = 0.15,
    relative: bool = False,
    key: Key[Array, ""] | None = None,
    max_bytes: int = MAX_BYTES,
    **options: Any,
) -> Attribution:
    """Run any method on noisy copies of the input, and return the mean, mean square or variance of what it finds.

        smoothgrad = E[c_k(x + ε)]     smoothgrad_sq = E[c_k(x + ε)²]     vargrad = Var[c_k(x + ε)]     ε ~ N(0, σ²)

    c_k are the contributions that the method finds, means are over the samples, and the variance divides by their
    number. All examples share the noise, so that a result does not depend on the other examples.

    Args:
        net: a network, see `explainable`.
        x: a batch, (batch, ...), floating.
        targets: None for all classes, an int, (batch,) or (batch, T) classes.
        method: (net, x, targets, *, max_bytes, **options) ↦ `Attribution`.
        kind: "smoothgrad", "smoothgrad_sq" or "vargrad".
        samples: number of noisy copies, ≥ 1.
        noise: σ, ≥ 0, in the unit of `x`.
        relative: whether σ is in units of each example's range, max x − min x, as in the paper (0.1 to 0.2).
        key: of the noise; `jax.random.key(0)` by default.
        max_bytes: bytes that one pass may take by estimate.
        **options: further arguments of the method, such as `layer`; `baseline` or `mask` may be one for each example.

    Returns:
        An `Attribution` on the shape of the method's contributions, with the logits of `x` itself, without a residual.

    Example:
        >>> found = noise_tunnel(lambda x: x @ jnp.array([[2.0], [-1.0]]), jnp.ones((1, 2)), kind="smoothgrad_sq")
        >>> found.contributions.tolist()
        [[[4.0, 1.0]]]

    Source: Smilkov et al., arXiv 1706.03825, Sec. 3 (SmoothGrad); Hooker et al., arXiv 1806.10758, Sec. 4 (SmoothGrad
    squared); Adebayo et al., arXiv 1810.03307 (VarGrad).
    """
    require_one_of("kind", kind, get_args(Kind))
    require(callable(method), "method", method, "(net, x, targets, **options) ↦ Attribution")
    require_whole("samples", samples, 1)
    require_number("noise", noise, "at least 0", lambda v: v >= 0)
    key = random_key(key)
    run: Any = method
    while isinstance(run, partial) and not run.args:
        run, options = run.func, {**run.keywords, **options}
    call = checked(net, x, targets, options.get("layer"), max_bytes)
    wanted = "floating numbers, to which noise is added: of tokens, their embedding and the network above it"
    require(jnp.issubdtype(call.x.dtype, jnp.floating), "x", f"{call.x.dtype}{call.x.shape}", wanted)
    own = _of_examples(call, options)
    size = size_of(call, 3 * call.rows.shape[1])
    block_bytes = in_cache(call, size / len(call.x), max_bytes)
    sigma = jnp.asarray(noise, call.x.dtype)

    def explain(x: Array, rows: Array, *values: Any) -> Attribution:
        each = size * len(x) / len(call.x)
        merged: Any = None
        names: tuple[str, str] = ("", "")
        for start, count in _blocks(samples, max(1, int(block_bytes // max(1, each)))):
            noisy, many = _noisy(count, relative, key, start, sigma, x, rows)
            copies = {name: _tiled(value, count) for name, value in zip(own, values, strict=True)}
            found = run(call.net, noisy, many, **{**options, **copies, "max_bytes": max_bytes})
            merged = _merge(count, merged, found.contributions, start)
            names = found.method, found.layer
        parts = _moment(kind, samples, *merged).astype(found.contributions.dtype)
        logits = chosen(called(call.net.program("logits", x), x), rows)
        return Attribution(parts, logits, rows, method=f"{kind} of {names[0]}", layer=names[1])

    with jax.default_matmul_precision("highest"):
        return in_batches(explain, (call.x, call.rows, *own.values()), call.batch, size, block_bytes)


def _of_examples(call: Call, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that have a value for each example, padded as the batch is; known ones stay on the host."""
    found: dict[str, Any] = {}
    shape = shape_at(call, options.get("layer"))
    for name in sorted({*options} & {*VALUES, "mask"}):
        traced = isinstance(options[name], jax.core.Tracer)
        value = options[name] if traced else np.asarray(options[name])
        if name == "mask":
            each = value.ndim >= len(shape) - 1 and value.shape not in (shape[1:], shape[1:-1])
        else:
            each = value.ndim in (call.x.ndim, len(shape)) and len(value) > 1
        if each and len(value) == call.batch:
            found[name] = value[np.minimum(np.arange(len(call.x)), call.batch - 1)]
    return found


def _tiled(value: Any, count: int) -> Any:
    """Return the values of examples for every noisy copy."""
    array = jnp if isinstance(value, jax.core.Tracer) else np
    return array.tile(value, (count, *(1,) * (value.ndim - 1)))


def _blocks(samples: int, most: int) -> list[tuple[int, int]]:
    """Split samples into powers of two, so that a block of a padded batch needs no padding: (start, count) of each."""
    found, start = [], 0
    while start < samples:
        count = 1 << (min(most, samples - start).bit_length() - 1)
        found.append((start, count))
        start += count
    return found


def smooth_grad(
    net: Any,
    x: Any,
    targets: Targets = None,
    *,
    layer: str | None = None,
    samples: int = 25,
    noise: float = 0.15,
    relative: bool = False,
    key: Key[Array, ""] | None = None,
    max_bytes: int = MAX_BYTES,
) -> Attribution:
    """Compute SmoothGrad, the mean gradient under noise.

    Arguments and result are those of `noise_tunnel`, which takes any method.

    Example:
        >>> smooth_grad(lambda x: x**2, jnp.array([[3.0]]), noise=0.0).contributions.tolist()
        [[[6.0]]]

    Source: Smilkov et al., arXiv 1706.03825, Sec. 3.
    """
    options: dict[str, Any] = {"layer": layer, "samples": samples, "noise": noise, "relative": relative, "key": key}
    found = noise_tunnel(net, x, targets, kind="smoothgrad", max_bytes=max_bytes, **options)
    return replace(found, method="smooth_grad")


def smooth_grad_squared(
    net: Any,
    x: Any,
    targets: Targets = None,
    *,
    layer: str | None = None,
    samples: int = 25,
    noise: float = 0.15,
    relative: bool = False,
    key: Key[Array, ""] | None = None,
    max_bytes: int = MAX_BYTES,
) -> Attribution:
    """Compute SmoothGrad squared, the mean squared gradient under noise.

    Arguments and result are those of `noise_tunnel`, which takes any method.

    Example:
        >>> smooth_grad_squared(lambda x: x**2, jnp.array([[3.0]]), noise=0.0).contributions.tolist()
        [[[36.0]]]

    Source: Hooker, Erhan, Kindermans, Kim, arXiv 1806.10758, Sec. 4.
    """
    options: dict[str, Any] = {"layer": layer, "samples": samples, "noise": noise, "relative": relative, "key": key}
    found = noise_tunnel(net, x, targets, kind="smoothgrad_sq", max_bytes=max_bytes, **options)
    return replace(found, method="smooth_grad_squared")


def vargrad(
    net: Any,
    x: Any,
    targets: Targets = None,
    *,
    layer: str | None = None,
    samples: int = 25,
    noise: float = 0.15,
    relative: bool = False,
    key: Key[Array, ""] | None = None,
    max_bytes: int = MAX_BYTES,
) -> Attribution:
    """Compute VarGrad, the variance of the gradient under noise.

    Arguments and result are those of `noise_tunnel`, which takes any method.

    Example:
        >>> vargrad(lambda x: 2 * x, jnp.array([[3.0]])).contributions.tolist()
        [[[0.0]]]

    Source: Adebayo, Gilmer, Goodfellow, Kim, arXiv 1810.03307.
    """
    options: dict[str, Any] = {"layer": layer, "samples": samples, "noise": noise, "relative": relative, "key": key}
    found = noise_tunnel(net, x, targets, kind="vargrad", max_bytes=max_bytes, **options)
    return replace(found, method="vargrad")


@partial(jax.jit, static_argnums=(0, 1))
def _noisy(
    count: int, relative: bool, key: Key[Array, ""], start: int | Array, sigma: Array, x: Array, rows: Array
) -> tuple[Float[Array, "n_batch *shape"], Int[Array, "n_batch t"]]:
    """Return noisy copies of all examples, one batch after the other, and their targets."""
    if relative:
        axes = tuple(range(1, x.ndim))
        sigma = sigma * (x.max(axes, keepdims=True) - x.min(axes, keepdims=True))
    wide = np.promote_types(x.dtype, np.float32)
    draw = jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), x.shape[1:], wide))
    drawn = draw(start + jnp.arange(count))[:, None].astype(x.dtype)
    noisy = x[None] + jnp.broadcast_to(sigma, x.shape)[None] * drawn
    return noisy.reshape(-1, *x.shape[1:]), jnp.tile(rows, (count, 1))


@partial(jax.jit, static_argnums=0)
def _merge(
    count: int, seen: tuple[Array, Array] | None, found: Float[Array, "n_batch t *shape"], start: int | Array
) -> tuple[Array, Array]:
    """Return mean and sum of squared deviations of the samples seen and those found (Chan et al. 1983)."""
    found = found.reshape(count, -1, *found.shape[1:]).astype(np.promote_types(found.dtype, np.float32))
    mean = found.mean(0)
    spread = jnp.square(found - mean[None]).sum(0)
    if seen is None:
        return mean, spread
    share = count / (start + count)
    step = mean - seen[0]
    share, before = jnp.asarray(share, step.dtype), jnp.asarray(start, step.dtype)
    return seen[0] + share * step, seen[1] + spread + before * share * jnp.square(step)


@partial(jax.jit, static_argnums=(0, 1))
def _moment(kind: Kind, samples: int, mean: Array, spread: Array) -> Array:
    if kind == "smoothgrad":
        return mean
    return spread / samples if kind == "vargrad" else jnp.square(mean) + spread / samples
