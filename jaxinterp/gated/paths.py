"""Readings of gated networks: filters of the gates, overlap of open sub-networks, strongest paths.

Lakshminarayanan & Singh, NeurIPS 2020 (arXiv 2006.10529, "NPF") and arXiv 2110.03403 ("DLGN"). The gates of a DLGN
are half-spaces of its input: at any depth its pre-activations are affine, q(x) = V x + c, and V is the derivative at
zero, with convolution, pooling and evaluation BatchNorm folded in.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Shaped

from jaxinterp.checks import require, require_at_least, require_labels
from jaxinterp.gated.architecture import Gates


class Filters(NamedTuple):
    """Input filters of one layer's gates, q(x) = <weights, x> + bias."""

    weights: Float[Array, "units *input"]
    bias: Float[Array, " units"]


def effective_filters(
    preactivation: Callable[[Float[Array, "n ..."]], Float[Array, "n ..."]],
    shape: Sequence[int],
    units: Int[np.ndarray, " units"] | None = None,
    *,
    dtype: Any = jnp.float32,
) -> Filters:
    """Compute the input filters of one layer's gates from their affine pre-activation.

    Args:
        preactivation: (1, ...) ↦ (1, ...), `lambda x: gating_network.apply(variables, x)[layer]` of a DLGN, say.
        shape: shape of an example.
        units: flat indices into q, in the order of the filters; all units if None.
        dtype: type of the computation.

    Raises:
        ConfigError: the pre-activation is not affine, as in a DGN.

    Source: DLGN, Sec. 3 (primal linearity).
    """

    def flat(x: Array) -> Array:
        return preactivation(x[None]).reshape(-1)

    with jax.default_matmul_precision("highest"):
        zero = jnp.zeros(tuple(shape), dtype)
        bias, pullback = jax.vjp(flat, zero)
        indices = np.arange(len(bias)) if units is None else np.asarray(units)
        existing = np.min(indices, initial=0) >= 0 and np.max(indices, initial=0) < len(bias)
        require(existing, "units", indices, f"indices in [0, {len(bias)})")
        chosen = jnp.asarray(indices)
        weights = lax.map(lambda i: pullback(jnp.zeros_like(bias).at[i].set(1))[0], chosen, batch_size=256)
        filters = Filters(weights, bias[chosen])
        probe = jax.random.normal(jax.random.key(0), zero.shape, dtype)
        values, affine = flat(probe)[chosen], jnp.tensordot(weights, probe, probe.ndim) + filters.bias
    error, scale = float(jnp.abs(values - affine).max()), float(jnp.abs(affine).max()) + float(jnp.abs(values).max())
    tolerance = 1e3 * float(jnp.finfo(dtype).eps) * scale
    require(error <= tolerance, "preactivation", f"{error:.1e} off its tangent", "an affine function, as of a DLGN")
    return filters


def margins(filters: Filters, x: Float[Array, "n ..."]) -> Float[Array, "n units"]:
    """Compute the signed Euclidean distance of inputs to each gate's hyperplane, (<V, x> + c) / ||V||.

    It is positive where the gate is open. A gate with V = 0 is at distance sign(c) ∞, or 0 if c = 0.
    """
    flat = filters.weights.reshape(len(filters.weights), -1)
    with jax.default_matmul_precision("highest"):
        q = x.reshape(len(x), -1) @ flat.T + filters.bias[None]
    norm = jnp.linalg.norm(flat, axis=1)[None]
    distance = q / jnp.where(norm > 0, norm, 1)  # no 0 / 0, which jax_debug_nans reports
    return jnp.where((norm > 0) | (q == 0), distance, jnp.copysign(jnp.inf, q))


def class_overlap(
    gates: Gates, labels: Int[np.ndarray, " n"], classes: int
) -> Float[np.ndarray, "layers classes classes"]:
    """Compute how much the open sub-networks of two classes share: the mean over pairs of <G_l, G'_l> / units.

    Args:
        gates: one for each layer, (N, ...).
        labels: (N,), in [0, classes).
        classes: number of classes.

    Returns:
        For every layer and pair of classes the mean over pairs of different examples; NaN without such a pair.
    """
    require_labels("labels", labels, len(labels), classes)
    membership = np.eye(classes)[np.asarray(labels)]
    counts = membership.sum(0)
    pairs = np.outer(counts, counts) - np.diag(counts)
    overlaps = []
    for gate in gates:
        units = int(np.prod(gate.shape[1:]))
        sums, squares = np.zeros((classes, units)), np.zeros(classes)
        for start in range(0, len(gate), 256):  # gates of convolutions are large
            rows = slice(start, start + 256)
            flat = np.asarray(gate[rows], np.float64).reshape(-1, units)
            sums += membership[rows].T @ flat
            squares += membership[rows].T @ (flat**2).sum(1)
        shared = (sums @ sums.T - np.diag(squares)) / units
        overlaps.append(np.divide(shared, pairs, out=np.full_like(shared, np.nan), where=pairs > 0))
    return np.stack(overlaps)


class Paths(NamedTuple):
    """The strongest paths from an example to one output: their units from the input on, signed contributions."""

    units: Int[np.ndarray, "paths layers"]
    contributions: Float[np.ndarray, " paths"]


def strongest_paths(
    kernels: Sequence[Float[Array | np.ndarray, "_ _"]],
    gates: Sequence[Shaped[Array | np.ndarray, " _"]],
    x: Float[Array | np.ndarray, " features"],
    output: int,
    k: int = 10,
) -> Paths:
    """Find the k paths that contribute most to an output of a fully connected gated network without biases.

    A path contributes x(p) ∏_l G_l(p) ∏_l Θ_l(p), one summand of the output. Paths are not enumerated: the k
    strongest to a unit run through the k strongest to a unit below it (Viterbi, with k survivors).

    Args:
        kernels: Θ_l of every layer, (fan-in, fan-out), from the input.
        gates: G_l of the example for all layers but the last, (width,).
        x: the value input of the example, (features,).
        output: unit of the last layer.
        k: number of paths.

    Returns:
        At most k paths, strongest first, without those of contribution zero.

    Source: NPF, Sec. 2 (neural path feature and value).
    """
    require_at_least("k", k, 1)
    require(len(gates) == len(kernels) - 1, "gates", len(gates), f"{len(kernels) - 1}, one for each layer but the last")
    layers, scales = ([np.asarray(one, np.float64) for one in arrays] for arrays in (kernels, gates))
    widths = [len(np.asarray(x)), *(layer.shape[1] for layer in layers)]
    fan_ins, sizes = [len(layer) for layer in layers], [scale.shape for scale in scales]
    require(fan_ins == widths[:-1], "kernels", f"fan-ins {fan_ins}", f"{widths[:-1]}, the widths before them")
    require(sizes == [(width,) for width in widths[1:-1]], "gates", f"shapes {sizes}", f"widths {widths[1:-1]}")
    require(0 <= output < widths[-1], "output", output, f"0 to {widths[-1] - 1}")
    layers[-1], scales = layers[-1][:, [output]], [*scales, np.ones(1)]
    values = np.asarray(x, np.float64)[:, None]  # of the survivors at each unit, (width, survivors)
    units = np.arange(len(values))[:, None, None]  # their units so far, (width, survivors, layers)
    for layer, scale in zip(layers, scales, strict=True):
        width, survivors = values.shape
        candidates = (values[:, :, None] * (layer * scale)[:, None]).reshape(width * survivors, -1).T
        best = np.argsort(-np.abs(candidates), axis=1, kind="stable")[:, :k]
        values = np.take_along_axis(candidates, best, axis=1)
        here = np.broadcast_to(np.arange(len(values))[:, None, None], (*best.shape, 1))
        units = np.concatenate([units.reshape(width * survivors, -1)[best], here], axis=-1)
    nonzero = values[0] != 0
    return Paths(units[0, nonzero, :-1], values[0, nonzero])
