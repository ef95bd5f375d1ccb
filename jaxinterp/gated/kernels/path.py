"""Kernels of given gates: neural path kernel (NPK), and NTK and NNGP of infinitely wide value networks.

Lakshminarayanan & Singh, NeurIPS 2020 (arXiv 2006.10529, "NPF") and arXiv 2110.03403 ("DLGN"). Let φ_x(p) be the
feature of a path p, the input at its start times the gates along it. Then

    NPK(x, x') = <φ_x, φ_x'> = Σ_i x_i x'_i · (number of paths from i that are open for both)

    fully connected:                NPK = <x, x'> ∏_l <G_l, G'_l>                              (NPF, Lemma; DLGN, Thm)
    value weights of variance σ²,   E[NTK] = d σ^{2(d−1)} NPK at every width, NTK → E[NTK]     (NPF, Thm 5.1)
    independent of the gates:       NNGP = σ^{2d} NPK

For any architecture, with biases, poolings, residual blocks and a variance s² per layer, a recursion over the layers
gives the same. For each pair of examples and of positions it carries the covariance Q of an activation over draws of
the weights, and the tangent kernel T of the layers so far:

    input          Q = Σ_c x_c x'_c                               T = 0
    dense, conv    T ← C(Q) + s² C(T)    Q ← s² C(Q)              C sums over the window's common offsets
    bias           Q ← Q + s_b²          T ← T + 1
    gate           Q ← Q <G, G'>         T ← T <G, G'>            inner product over channels
    pooling        Q, T ← average over windows at either position
    residual       Q ← Q + Q_body        T ← T + T_body           the body's fresh weights have mean zero

NPK is Q with all variances one, no biases, and sums in place of averages.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from jaxinterp.checks import require, require_finite, require_one_of
from jaxinterp.explain.meshes import on_automatic_axes, replicate
from jaxinterp.gated import architecture as arch
from jaxinterp.gated.architecture import Architecture, Gates, ValueInput, fan_ins, gate_shapes, iter_layers
from jaxinterp.gated.kernels.pairwise import Part, rectangular, symmetric
from jaxinterp.nn.platform import by_platform

Kernel = Literal["npk", "ntk", "nngp"]
Normalize = Literal["none", "width", "unit_diag"]


class Norm(NamedTuple):
    """Evaluation BatchNorm of a value network as an affine map of each channel, x ↦ scale · x + shift."""

    scale: Float[Array, " channels"]
    shift: Float[Array, " channels"]


@dataclass(frozen=True)
class PathKernel:
    """A kernel of given gates for one architecture, a function of (x, gates, x', gates').

    Attributes:
        layers: the architecture of the value network.
        get: "npk", or "ntk" and "nngp" of the infinitely wide value network.
        normalize: of the NPK: "none", path counts; "width", averages in place of all sums over units, offsets and
            pooled positions, so hard gates give at most <x, x'>; "unit_diag", K(x, x') / √(K(x, x) K(x', x')).
        value_input: "x", or "ones" for a value network on the all-ones input.
        weight_variances: s² of NTK and NNGP, one for all layers or one each; He's 2 / fan-in if None.
        bias_variance: s_b² of the layers that have a bias.
        norms: the value network's `BatchNorm` layers in order; identities if empty.
        exact: raise for gates other than 0 and 1.

    Example:
        >>> from jaxinterp.gated.architecture import fc
        >>> gates = (jnp.array([[1, 1, 0], [0, 1, 0]]), jnp.array([[1, 0, 1], [1, 1, 1]]))
        >>> PathKernel(fc(3, 2, classes=1))(jnp.eye(2) + 1.0, gates).tolist()
        [[20.0, 8.0], [8.0, 15.0]]

    Source: the module's docstring.
    """

    layers: Architecture
    get: Kernel = "npk"
    normalize: Normalize = "none"
    value_input: ValueInput = "x"
    weight_variances: float | tuple[float, ...] | None = None
    bias_variance: float = 0.0
    norms: tuple[Norm, ...] = ()
    exact: bool = False

    def __post_init__(self) -> None:
        for name, options in (("get", Kernel), ("normalize", Normalize), ("value_input", ValueInput)):
            require_one_of(name, getattr(self, name), get_args(options))
        every = list(iter_layers(self.layers))
        norms = sum(isinstance(layer, arch.BatchNorm) for layer in every)
        require(len(self.norms) in (0, norms), "norms", len(self.norms), f"{norms}, one for each BatchNorm")
        weights, s = sum(isinstance(layer, arch.Dense | arch.Conv) for layer in every), self.weight_variances
        fits = not isinstance(s, tuple) or len(s) == weights
        require(fits, "weight_variances", s, f"{weights}, one for each Dense and Conv")

    @on_automatic_axes
    def __call__(
        self,
        x: Float[Array | np.ndarray, "n ..."],
        gates: Gates,
        x2: Float[Array | np.ndarray, "m ..."] | None = None,
        gates2: Gates | None = None,
        *,
        mesh: Mesh | None = None,
    ) -> Float[Array, "n m"]:
        """Compute the kernel of every pair, in the inputs' type.

        Args:
            x: inputs, floating (N, features) or (N, H, W, C), finite as the gates.
            gates: one for each `Gate`, (N, ...) as the activation there; overlaps <G, G'> of booleans and integers
                are counted exactly, their products have the inputs' type.
            x2: other inputs, (M, ...); `x` if None, which computes half of the pairs only.
            gates2: their gates.
            mesh: devices that share the work, of this process or of several, each of which makes the same call; the
                result is spread over all axes by its rows if their number is a multiple of the devices', otherwise it
                is on every device. Bit by bit it is the one of a single device of the kind.

        Raises:
            ConfigError: a mesh without a device of this process; path counts or products beyond the type, which another
                `normalize` keeps small.
        """
        require((x2 is None) == (gates2 is None), "x2, gates2", "one of them", "both or neither")
        x, other = jnp.asarray(x), None
        self._check(x, gates)
        if x2 is not None and gates2 is not None:
            x2 = jnp.asarray(x2)
            self._check(x2, gates2)
            require(x2.shape[1:] == x.shape[1:], "x2", f"shape {x2.shape}", f"(m, *{x.shape[1:]})")
            other = x2, tuple(gates2)
        static, arguments = replace(self, norms=()), (self.norms, (x, tuple(gates)), other)  # hashable
        if mesh is None:
            return _compute(static, None, *arguments)
        arguments, mesh = replicate(arguments, mesh)
        return _compute(static, mesh, *arguments)

    def _check(self, x: Float[Array | np.ndarray, "n ..."], gates: Gates) -> None:
        """Check what `__call__` promises; traced values are not known and pass."""
        require(jnp.issubdtype(x.dtype, jnp.floating), "x", x.dtype, "floating values")
        shapes, named = (
            gate_shapes(self.layers, x.shape[1:]),
            {f"gates: gate {i}": gate for i, gate in enumerate(gates)},
        )
        require(len(gates) == len(shapes), "gates", len(gates), f"{len(shapes)}, one for each Gate")
        for (name, gate), shape in zip(named.items(), shapes, strict=True):
            require(gate.shape == (len(x), *shape), name, f"shape {gate.shape}", f"{(len(x), *shape)}")
        products = 0.0  # log10 of the largest factor of a path's share
        with jax.ensure_compile_time_eval():
            for name, array in {"x": x, **named}.items():
                if isinstance(array, jax.core.Tracer) or array.size == 0 or array.dtype == bool:
                    continue
                if jnp.issubdtype(array.dtype, jnp.floating):
                    require_finite(name, array)
                if self.exact and name != "x":
                    require(((array == 0) | (array == 1)).all(), name, "other values", "0 and 1, as exact=True needs")
                if name != "x" or self.value_input == "x":
                    products += 2 * math.log10(max(float(jnp.abs(array).max()), 1.0))
        limit, paths = math.log10(float(jnp.finfo(x.dtype).max)), 0.0
        if self.get == "npk" and self.normalize == "none":  # by inputs, pairs of positions, gates' widths, windows
            windows = [math.prod(one.kernel_size) for one in iter_layers(self.layers) if isinstance(one, arch.Conv)]
            factors = [x.shape[-1], math.prod(x.shape[1:-1]) ** 2, *(shape[-1] for shape in shapes), *windows]
            paths = sum(math.log10(float(factor)) for factor in factors)
        require(paths <= limit, "normalize", f"none with up to 10^{paths:.0f} paths", "width or unit_diag")
        largest = f"products up to 10^{paths + products:.0f}"
        require(paths + products <= limit, "x, gates", largest, f"values whose products fit {x.dtype}")


class _State(NamedTuple):
    """Q and T of all pairs: (n, m), (n, H, W, m, H', W'), or (n, m, H, W) if positions stay equal."""

    q: Array
    t: Array | None
    channels: int
    summed: bool  # over channels; otherwise the covariance of a single one of `channels` i.i.d. units
    norm: Norm | None = None  # applied with the next gate


def _apart(a: Array) -> Array:
    """Keep XLA from fusing what makes an array into the loops that read it, which is slow on CPU."""
    return by_platform(lax.optimization_barrier, lambda a: a, a)


class _Recursion:
    """The recursion of the module's docstring over one block of pairs."""

    def __init__(self, kernel: PathKernel, norms: Sequence[Norm], shape: tuple[int, ...]) -> None:
        self.kernel, self.counts = kernel, kernel.get == "npk" and kernel.normalize == "none"
        # Without pooling, pairs of different positions never contribute.
        pooled = any(isinstance(layer, arch.AvgPool | arch.GlobalAvgPool) for layer in iter_layers(kernel.layers))
        self.axes = 4 if pooled else 2
        s = 1.0 if kernel.get == "npk" else kernel.weight_variances
        fans = fan_ins(kernel.layers, shape)
        self.variances = iter(s if isinstance(s, tuple) else [2 / fan if s is None else s for fan in fans])
        self.norms = iter(norms)

    def share(self, count: int, typical: float = 1.0) -> float:
        """Return the factor of a sum of `count` terms: 1, or 1 / count in a normalized NPK."""
        if self.counts or self.kernel.get != "npk":
            return 1.0
        return (typical if self.kernel.normalize == "unit_diag" else 1.0) / count

    def __call__(self, x: Array, gates: Sequence["_Gate"], x2: Array, gates2: Sequence["_Gate"]) -> Array:
        if self.kernel.value_input == "ones":
            x, x2 = jnp.ones_like(x), jnp.ones_like(x2)
        q = self.overlap(x, x2)
        state = _State(q, jnp.zeros_like(q) if self.kernel.get == "ntk" else None, x.shape[-1], True)
        state = self.run(self.kernel.layers, state, iter(zip(gates, gates2, strict=True)))
        return state.q if state.t is None else state.t

    def overlap(self, g: Array, g2: Array) -> Array:
        """Compute inner products over channels, exact for integers."""
        wide = jnp.int32 if g.dtype == jnp.int8 else None
        dot = partial(jnp.einsum, precision=lax.Precision.HIGHEST, preferred_element_type=wide)
        if g.ndim == 2:
            return dot("nc,mc->nm", g, g2)
        return dot("nhwc,mhwc->nmhw" if self.axes == 2 else "nhwc,muvc->nhwmuv", g, g2)

    def run(self, layers: Architecture, state: _State, gates: Any) -> _State:
        """Carry Q and T through layers, taking the gates of both sides in turn."""
        for layer in layers:
            follows = state.norm is None or isinstance(layer, arch.Gate)
            require(follows, "layers", f"{type(layer).__name__} after BatchNorm", "a Gate")
            if isinstance(layer, arch.Dense | arch.Conv):
                state = self.linear(layer, self.over_channels(state))
            elif isinstance(layer, arch.BatchNorm):
                state = state._replace(norm=next(self.norms, None))
            elif isinstance(layer, arch.Gate):
                state = self.gate(state, *next(gates))
            elif isinstance(layer, arch.Residual):
                state = self.residual(layer, state, gates)
            elif isinstance(layer, arch.Flatten):
                state = self.flatten(self.over_channels(state))
            else:
                state = self.pool(layer, state)
        return state

    def each(self, function: Any, state: _State) -> _State:
        """Apply one linear map to Q and to T."""
        return state._replace(q=function(state.q), t=None if state.t is None else function(state.t))

    def over_channels(self, state: _State) -> _State:
        """Sum the covariance over channels."""
        if state.summed:
            return state
        factor = state.channels * self.share(state.channels)
        return self.each(lambda a: a * jnp.asarray(factor, a.dtype), state)._replace(summed=True)

    def linear(self, layer: arch.Dense | arch.Conv, state: _State) -> _State:
        s = next(self.variances)
        if isinstance(layer, arch.Conv):
            state = self.each(partial(self.window, layer), state)
        q, t = s * state.q, None if state.t is None else state.q + s * state.t
        if layer.bias and self.kernel.get != "npk":
            q, t = q + self.kernel.bias_variance, None if t is None else t + 1.0
        return _State(q, t, layer.features, False)

    def window(self, layer: arch.Conv, a: Array) -> Array:
        """Sum over the common offsets of both windows, first along y, then along x."""
        mode = "wrap" if layer.padding == "circular" else "constant"
        for axis, (kernel, stride, pads) in enumerate(zip(layer.kernel_size, layer.strides, layer.pads, strict=True)):
            axes = [2 + axis] if self.axes == 2 else [1 + axis, 4 + axis]
            a = _apart(jnp.pad(a, [pads if i in axes else (0, 0) for i in range(a.ndim)], mode=mode))
            size = (a.shape[axes[0]] - kernel) // stride + 1
            cuts = [slice(offset, offset + stride * (size - 1) + 1, stride) for offset in range(kernel)]
            terms = [a[tuple(cut if i in axes else slice(None) for i in range(a.ndim))] for cut in cuts]
            a = _apart(sum(terms[1:], terms[0]))
        return a * jnp.asarray(self.share(math.prod(layer.kernel_size)), a.dtype)

    def gate(self, state: _State, left: "_Gate", right: "_Gate") -> _State:
        require(not state.summed, "layers", "a Gate on a masked activation", "a Dense or Conv before it")
        g, g2 = left.after(state.q), right.after(state.q)
        share, kind = self.share(state.channels, 2.0), state.q.dtype
        if state.norm is None:
            o = self.overlap(g, g2).astype(kind) * share
            return self.each(lambda a: a * o, state)._replace(summed=True)
        squares = [jnp.square(part).astype(kind).reshape(*(1,) * (g.ndim - 1), -1) for part in state.norm]
        o, offset = (self.overlap(g.astype(kind) * square, g2.astype(kind)) * share for square in squares)
        t = None if state.t is None else state.t * o
        return state._replace(q=state.q * o + offset, t=t, summed=True, norm=None)

    def residual(self, layer: arch.Residual, state: _State, gates: Any) -> _State:
        body, around = self.run(layer.body, state, gates), self.run(layer.shortcut, state, gates)
        if body.summed != around.summed:
            body, around = self.over_channels(body), self.over_channels(around)
        t = None if body.t is None or around.t is None else body.t + around.t
        return body._replace(q=body.q + around.q, t=t)

    def flatten(self, state: _State) -> _State:
        if state.q.ndim == 2:
            return state
        positions = math.prod(state.q.shape[-2:])
        equal = "nmhw->nm" if self.axes == 2 else "nhwmhw->nm"
        share = jnp.asarray(self.share(positions), state.q.dtype)
        return self.each(lambda a: jnp.einsum(equal, a) * share, state)._replace(channels=state.channels * positions)

    def pool(self, layer: arch.AvgPool | arch.GlobalAvgPool, state: _State) -> _State:
        """Average over windows at either position; sum if paths are counted."""
        reduce = jnp.sum if self.counts else jnp.mean
        if isinstance(layer, arch.GlobalAvgPool):
            return self.each(lambda a: reduce(a, axis=(1, 2, 4, 5)), state)

        def windows(a: Array) -> Array:
            (wy, wx), (n, height, width, m) = layer.window, a.shape[:4]
            rows, columns = height // wy, width // wx
            a = a[:, : rows * wy, : columns * wx, :, : rows * wy, : columns * wx]
            return reduce(a.reshape(n, rows, wy, columns, wx, m, rows, wy, columns, wx), axis=(2, 4, 7, 9))

        return self.each(windows, state)


@partial(jax.jit, static_argnums=(0, 1))
def _compute(kernel: PathKernel, mesh: Mesh | None, norms: Any, side: Any, other: Any) -> Array:
    """Compute the kernel of (inputs, gates) with others, or with themselves if these are None."""
    counted = side[0].dtype, jnp.int8  # which the matrix units of accelerators multiply exactly, and faster
    return by_platform(*(partial(_evaluate, kernel, mesh, kind) for kind in counted), norms, side, other)


class _Gate(NamedTuple):
    """A gate at the examples of a tile's rows or columns, read when Q has been computed up to it.

    So converted gates are in memory for one layer at a time.
    """

    array: Array
    part: Part
    kind: Any

    def after(self, q: Array) -> Array:
        never = q.ravel()[0] > jnp.inf  # which a compiler does not know; a barrier is dropped before it schedules
        start = self.part.start + never.astype(jnp.int32)
        return _apart(jnp.asarray(self.part._replace(start=start).cut(self.array), self.kind))


def _evaluate(kernel: PathKernel, mesh: Mesh | None, counted: Any, norms: Any, side: Any, other: Any) -> Array:
    """Compute the kernel; booleans and int8 that a gate has on both sides are multiplied as `counted`."""
    x, gates = side
    recursion = partial(_Recursion, kernel, norms, x.shape[1:])
    columns = zip(gates, gates if other is None else other[1], strict=True)
    kinds = [counted if all(gate.dtype in (bool, jnp.int8) for gate in column) else x.dtype for column in columns]

    def read(part: Part) -> tuple[Array, list[_Gate]]:
        x, gates = part.examples
        return part.cut(x), [_Gate(gate, part, kind) for gate, kind in zip(gates, kinds, strict=True)]

    def pairs(left: Part, right: Part) -> Array:
        return recursion()(*read(left), *read(right))

    def self_kernel(side: Any) -> Array:
        def one(i: Array) -> Array:
            return pairs(Part(side, i, 1), Part(side, i, 1))[0, 0]

        return lax.map(one, jnp.arange(len(side[0]), dtype=jnp.int32))

    positions = 1 if x.ndim == 2 else math.prod(x.shape[1:3]) ** (recursion().axes // 2)
    options = positions * x.dtype.itemsize, mesh
    k = symmetric(pairs, side, *options) if other is None else rectangular(pairs, side, other, *options)
    if kernel.normalize != "unit_diag":
        return k
    diagonals = [jnp.diagonal(k)] * 2 if other is None else [self_kernel(side), self_kernel(other)]
    root, root2 = (lax.rsqrt(jnp.where(d > 0, d, 1)) for d in diagonals)
    return k * root[:, None] * root2[None]
