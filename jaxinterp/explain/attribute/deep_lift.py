"""DeepLIFT: the change of a logit from a baseline, shared by multipliers instead of slopes."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxinterp.checks import require, require_finite
from jaxinterp.explain.attribute.backward import checked, chosen, placed
from jaxinterp.explain.attribute.lrp import unspread
from jaxinterp.explain.attribute.relevance import in_parts, passed_back
from jaxinterp.explain.attribution import Attribution
from jaxinterp.explain.batches import MAX_BYTES, Targets
from jaxinterp.explain.meshes import on_automatic_axes
from jaxinterp.explain.program import INPUT, Model, value_at
from jaxinterp.explain.rules import Local, Rules

SMALL = 1e-6
"""Differences below which a multiplier is the derivative."""


class Rescale(Rules):
    """DeepLIFT's rescale rule. What goes back is the multiplier m with Σ m Δ = Δf at every layer, Δ = x − x'.

    Source: Shrikumar, Greenside, Kundaje, arXiv 1704.02685, Sec. 3.5.2 (rescale) and 3.4 (chain rule).
    """

    paired = True

    def on_unit(self, local: Local) -> Sequence[Array]:
        """Multiply by (g(a) − g(a')) / (a − a'), or by g'(a) where a is a'."""
        (a,), ((start,),), (out,) = local.args, local.refs, local.ref_outs
        return [self._rescaled(local, a - start, unspread(local.back * (local.out - out), a))]

    def on_largest(self, local: Local) -> Sequence[Array]:
        """Give a rise of the maximum to where it is at x, a fall to where it was at x'."""
        (starts,), (out,) = local.refs, local.ref_outs
        highest = jnp.maximum(local.out, out)
        rises = jax.vjp(local.run, *local.args)[1](local.back * (highest - out))
        falls = jax.vjp(local.run, *starts)[1](local.back * (local.out - highest))
        if "min" in local.name:
            rises = jax.vjp(local.run, *starts)[1](local.back * (highest - out))
            falls = jax.vjp(local.run, *local.args)[1](local.back * (local.out - highest))
        slopes = jax.vjp(local.run, *local.args)[1](local.back)
        parts = zip(local.args, starts, rises, falls, slopes, strict=True)
        return [_ratio(a - start, rise + fall, slope) for a, start, rise, fall, slope in parts]

    def on_product(self, local: Local) -> Sequence[Array]:
        """Halve Δ(ab) = Δa (b + b')/2 + Δb (a + a')/2: exact, as Shapley's values of two players."""
        (starts,) = local.refs
        middle = [(a + start) / 2 for a, start in zip(local.args, starts, strict=True)]
        return jax.vjp(local.run, *middle)[1](local.back)

    def on_quotient(self, local: Local) -> Sequence[Array]:
        """Halve Δ(a/b) = Δa (1/b + 1/b')/2 + Δ(1/b) (a + a')/2."""
        (a, b), ((a0, b0),) = local.args, local.refs
        upper, lower = local.back * (1 / b + 1 / b0) / 2, -local.back * (a + a0) / (2 * b * b0)
        return [unspread(upper, a), unspread(lower, b)]

    def _rescaled(self, local: Local, delta: Array, change: Array) -> Array:
        return _ratio(delta, change, jax.vjp(local.run, *local.args)[1](local.back)[0])


def _ratio(delta: Array, change: Array, slope: Array) -> Array:
    """Return change / delta, or the slope where the difference is small."""
    small = jnp.abs(delta) < SMALL
    return jnp.where(small, slope, change / jnp.where(small, 1, delta))


RESCALE = Rescale()


@on_automatic_axes
def deep_lift(
    net: Any,
    x: Any,
    targets: Targets = None,
    *,
    baseline: Any = 0.0,
    layer: str | None = None,
    max_bytes: int = MAX_BYTES,
) -> Attribution:
    """Compute DeepLIFT by the rescale rule against a baseline x'.

        contributions_k = m_k ⊙ (x − x')          Σ contributions_k = f_k(x) − f_k(x')

    The multiplier of an activation is (g(a) − g(a')) / (a − a'); of a maximum it goes to where the maximum rose or
    fell; two streams multiplied, or divided, each get half of the other's change. The residual measures the rest.

    Args:
        net: a network, see `explainable`.
        x: a batch, (batch, ...), floating.
        targets: None for all classes, an int, (batch,) or (batch, T) classes.
        baseline: x', a number or an array that broadcasts to `x`.
        layer: name of a layer, whose output takes the place of `x`; x' is then its output at the baseline.
        max_bytes: bytes that one pass may take by estimate; examples and targets run in parts.

    Returns:
        An `Attribution` on the shape of `x` or of the layer's output, with bias f_k(x') and residual
        f_k(x) − f_k(x') − Σ contributions_k.

    Raises:
        ConfigError: an operation has no rule; the line names it and its module.

    Example:
        >>> parts = deep_lift(lambda x: jax.nn.relu(x.sum(1, keepdims=True) - 1), jnp.array([[3.0, 1.0]]))
        >>> parts.contributions.tolist()  # relu rises by 3 as its argument does by 4
        [[[2.25, 0.75]]]

    Source: Shrikumar, Greenside, Kundaje, arXiv 1704.02685, Sec. 3.
    """
    call = checked(net, x, targets, layer, max_bytes)
    base = placed(call, "baseline", baseline)
    return in_parts(call, partial(_compare, layer, "deep_lift"), (base,), max_bytes)


@on_automatic_axes
def deep_lift_shap(
    net: Any,
    x: Any,
    targets: Targets = None,
    *,
    baselines: Any,
    layer: str | None = None,
    max_bytes: int = MAX_BYTES,
) -> Attribution:
    """Compute DeepLIFT averaged over baselines, an approximation of Shapley values.

        contributions_k = mean over x' of m_k(x, x') ⊙ (x − x')

    Arguments and result are those of `deep_lift`, with `baselines` (n, ...), each of the shape of one example, and bias
    the mean of f_k over them.

    Example:
        >>> parts = deep_lift_shap(lambda x: x**2, jnp.array([[2.0]]), baselines=jnp.array([[0.0], [1.0]]))
        >>> parts.contributions.tolist(), parts.bias.tolist()
        ([[[3.5]]], [[0.5]])

    Source: Lundberg, Lee, arXiv 1705.07874, Sec. 4.2 (Deep SHAP).
    """
    call = checked(net, x, targets, layer, max_bytes)
    starts = jnp.asarray(baselines, call.x.dtype)
    fits = starts.ndim == call.x.ndim and len(starts) and starts.shape[1:] == call.x.shape[1:]
    require(fits, "baselines", f"shape {starts.shape}", f"(n, {', '.join(map(str, call.x.shape[1:]))})")
    require_finite("baselines", starts)

    def run(model: Model, x: Array, rows: Array) -> Attribution:
        mean = None
        for start in starts:
            part = _compare(layer, "deep_lift_shap", model, x, rows, jnp.broadcast_to(start, x.shape))
            mean = part if mean is None else _sum(mean, part)
        return _divided(mean, len(starts))

    return in_parts(call, run, (), max_bytes)


@partial(jax.jit, static_argnums=(0, 1))
def _compare(layer: str | None, method: str, model: Model, x: Array, rows: Array, base: Array) -> Attribution:
    """Run the network at x and x' side by side, and the multipliers back."""
    z, start = value_at(model, layer, x), value_at(model, layer, base)
    multipliers, logits, (others,) = passed_back(layer, RESCALE, model, z, x, rows, (start,))
    parts, bias = multipliers * (z - start)[:, None], chosen(others, rows)
    residual = logits - bias - parts.reshape(*rows.shape, -1).sum(-1).astype(logits.dtype)
    return Attribution(parts, logits, rows, bias, residual, method=method, layer=layer or INPUT)


@jax.jit
def _sum(mean: Attribution, part: Attribution) -> Attribution:
    return jax.tree.map(lambda a, b: a if jnp.issubdtype(a.dtype, jnp.integer) else a + b, mean, part)


@partial(jax.jit, static_argnums=1)
def _divided(total: Attribution, count: int) -> Attribution:
    return jax.tree.map(lambda a: a if jnp.issubdtype(a.dtype, jnp.integer) else a / count, total)
