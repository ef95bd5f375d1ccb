"""Reading a gated network: what each gate looks at, which sub-networks are open, which paths carry the output.

Lakshminarayanan & Singh, NeurIPS 2020 (arXiv 2006.10529, "NPF") and arXiv 2110.03403 ("DLGN"). The gates of a DLGN
are half-spaces of its input: its pre-activations are affine, q(x) = V x + c, whatever the depth, and V is read off by
differentiating once at zero, with convolution, pooling and evaluation BatchNorm folded in.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Shaped

from jaxinterp.gated.architecture import Gates


class Filters(NamedTuple):
    """Effective primal filters of one layer's gates, q(x) = <weights, x> + bias.

    Attributes:
        weights: (units, *input shape).
        bias: (units,).
    """

    weights: Float[Array, "units ..."]
    bias: Float[Array, " units"]


def effective_filters(
    preactivation: Callable[[Float[Array, "n ..."]], Float[Array, "n ..."]],
    shape: Sequence[int],
    units: Int[np.ndarray, " units"] | None = None,
    *,
    dtype: Any = jnp.float32,
) -> Filters:
    """What one layer's gates look at in the input: value and gradient of an affine pre-activation.

    Args:
        preactivation: x ↦ q of one layer, (1, ...) ↦ (1, ...), affine, such as
            `lambda x: gating_network.apply(variables, x)[layer]` of a DLGN.
        shape: shape of an example.
        units: which units, flat indices into q; all where None.
        dtype: type of the computation.

    Returns:
        The filters, in the order of `units`.

    Raises:
        ValueError: the pre-activation is not affine (that of a DGN's gating network is not), or no such units.

    Source: DLGN, Sec. 3 (primal linearity).
    """

    def flat(x: Array) -> Array:
        return preactivation(x[None]).reshape(-1)

    with jax.default_matmul_precision("highest"):
        zero = jnp.zeros(tuple(shape), dtype)
        bias, pullback = jax.vjp(flat, zero)
        if units is not None and not (np.min(units, initial=0) >= 0 and np.max(units, initial=0) < len(bias)):
            raise ValueError(f"units: got {np.min(units)}..{np.max(units)}, expected indices in [0, {len(bias)})")
        chosen = jnp.arange(len(bias)) if units is None else jnp.asarray(units)
        weights = lax.map(lambda i: pullback(jnp.zeros_like(bias).at[i].set(1))[0], chosen, batch_size=256)
        filters = Filters(weights, bias[chosen])
        probe = jax.random.normal(jax.random.key(0), zero.shape, dtype)
        found, want = flat(probe)[chosen], jnp.tensordot(weights, probe, probe.ndim) + filters.bias
    scale = float(jnp.abs(want).max()) + float(jnp.abs(found).max())
    if not float(jnp.abs(found - want).max()) <= 1e3 * float(jnp.finfo(dtype).eps) * scale:
        raise ValueError("preactivation: expected an affine function of x, such as those of a linear gating network")
    return filters


def margins(filters: Filters, x: Float[Array, "n ..."]) -> Float[Array, "n units"]:
    """Signed Euclidean distance of inputs to each gate's hyperplane, (<V, x> + c) / ||V||; positive where it is open.

    A gate without a filter (V = 0) is at the distance sign(c) ∞.
    """
    flat = filters.weights.reshape(len(filters.weights), -1)
    with jax.default_matmul_precision("highest"):
        q = x.reshape(len(x), -1) @ flat.T + filters.bias[None]
    return q / jnp.linalg.norm(flat, axis=1)[None]


def class_overlap(
    gates: Gates, labels: Int[np.ndarray, " n"], classes: int
) -> Float[np.ndarray, "layers classes classes"]:
    """How much the open sub-networks of two classes have in common: the mean over pairs of <G_l, G'_l> / units.

    Args:
        gates: one for each layer, (N, ...).
        labels: (N,).
        classes: number of classes.

    Returns:
        For every layer and pair of classes the mean over pairs of different examples; NaN where there is no such pair.

    Raises:
        ValueError: labels out of [0, classes).
    """
    if not (np.min(labels, initial=0) >= 0 and np.max(labels, initial=0) < classes):
        raise ValueError(f"labels: got {np.min(labels)}..{np.max(labels)}, expected classes in [0, {classes})")
    membership = np.eye(classes)[np.asarray(labels)]
    counts = membership.sum(0)
    pairs = np.outer(counts, counts) - np.diag(counts)
    overlaps = []
    for gate in gates:
        units = int(np.prod(gate.shape[1:]))
        sums, same = np.zeros((classes, units)), np.zeros(classes)
        for start in range(0, len(gate), 256):  # few examples at a time: gates of convolutions are large
            rows = slice(start, start + 256)
            flat = np.asarray(gate[rows], np.float64).reshape(-1, units)
            sums += membership[rows].T @ flat
            same += membership[rows].T @ (flat**2).sum(1)
        shared = (sums @ sums.T - np.diag(same)) / units
        overlaps.append(np.divide(shared, pairs, out=np.full_like(shared, np.nan), where=pairs > 0))
    return np.stack(overlaps)


class Paths(NamedTuple):
    """The strongest paths of one example to one output.

    Attributes:
        units: unit of each layer that a path runs through, from the input, (found, layers).
        contributions: what each path adds to the output, signed, in falling size, (found,).
    """

    units: Int[np.ndarray, "found layers"]
    contributions: Float[np.ndarray, " found"]


def strongest_paths(
    kernels: Sequence[Float[Array | np.ndarray, "_ _"]],
    gates: Sequence[Shaped[Array | np.ndarray, " _"]],
    x: Float[Array | np.ndarray, " features"],
    output: int,
    k: int = 10,
) -> Paths:
    """The k paths that add most to an output of a fully connected gated network without biases.

    A path's contribution is x(p) ∏_l G_l(p) ∏_l Θ_l(p), one summand of the output; paths are never enumerated: the k
    strongest to a unit run through the k strongest to a unit below it (Viterbi, with k survivors).

    Args:
        kernels: Θ_l of every layer, (fan-in, fan-out), from the input.
        gates: G_l of the example for all layers but the last, (width,).
        x: the value input of the example, (features,).
        output: unit of the last layer.
        k: how many; fewer where there are fewer paths.

    Returns:
        The paths, strongest first; those of contribution zero are left out.

    Raises:
        ValueError: shapes that do not follow one another, no such output, or k < 1.

    Source: NPF, Sec. 2 (neural path feature and value).
    """
    if k < 1:
        raise ValueError(f"k: got {k}, expected at least 1")
    if len(gates) != len(kernels) - 1:
        raise ValueError(f"gates: got {len(gates)}, expected {len(kernels) - 1}, one for each layer but the last")
    layers = [np.asarray(kernel, np.float64) for kernel in kernels]
    widths = [len(np.asarray(x)), *(layer.shape[1] for layer in layers)]
    for i, layer in enumerate(layers):
        if len(layer) != widths[i]:
            raise ValueError(f"kernels: kernel {i} has shape {layer.shape}, expected ({widths[i]}, ...)")
    for i, gate in enumerate(gates):
        if np.shape(gate) != (widths[i + 1],):
            raise ValueError(f"gates: gate {i} has shape {np.shape(gate)}, expected ({widths[i + 1]},)")
    if not 0 <= output < widths[-1]:
        raise ValueError(f"output: got {output}, expected 0 to {widths[-1] - 1}")
    scales = [np.asarray(gate, np.float64) for gate in gates]
    layers[-1], scales = layers[-1][:, [output]], [*scales, np.ones(1)]
    values = np.asarray(x, np.float64)[:, None]  # of the survivors at each unit, (width, survivors)
    units = np.arange(len(values))[:, None, None]  # their units so far, (width, survivors, layers)
    for layer, scale in zip(layers, scales, strict=True):
        width, survivors = values.shape
        candidates = (values[:, :, None] * (layer * scale)[:, None]).reshape(width * survivors, -1).T
        keep = min(k, candidates.shape[1])
        best = np.argsort(-np.abs(candidates), axis=1, kind="stable")[:, :keep]
        values = np.take_along_axis(candidates, best, axis=1)
        below = units.reshape(width * survivors, -1)[best]
        here = np.broadcast_to(np.arange(len(values))[:, None, None], (*best.shape, 1))
        units = np.concatenate([below, here], axis=-1)
    real = values[0] != 0
    return Paths(units[0, real, :-1], values[0, real])
