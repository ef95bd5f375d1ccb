"""Deep gated networks: one network opens the paths, another one carries the value along them.

Lakshminarayanan & Singh, NeurIPS 2020 (arXiv 2006.10529, "NPF") and arXiv 2110.03403 ("DLGN"). With gates G_l(x),

    z_0 = x,   q_l = Θ_lᵀ z_{l−1},   z_l = q_l ⊙ G_l(x),   ŷ = Θ_dᵀ z_{d−1}          (NPF, Sec. 2)

so ŷ is the sum over paths p of their feature φ_x(p) = x(p) ∏_l G_l(x)(p) times their value v(p) = ∏_l Θ_l(p).

- ReLU network: G_l = 1{q_l > 0}, gates and values share their weights.
- DGN: the gates come from a second ReLU network.
- DLGN: from a second, linear network (identity in place of rectifiers), so each gate is a half-space of x.
- DLGN-SF ("shallow features"): each gate has its own linear map of x.

Gates are data: `Network.apply(variables, x, gates)` is linear in x for any gates, so fixed, scrambled, padded or
foreign gates need no extra code. The optimizer decides which of the networks are trained.
"""

from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray, Shaped

from jaxinterp.checks import require, require_finite, require_one_of
from jaxinterp.explain.explainable import Explainable, explainable
from jaxinterp.gated import architecture as arch
from jaxinterp.gated.architecture import Architecture, ValueInput, gate_count
from jaxinterp.nn import batchnorm
from jaxinterp.nn.layers import Layer

Gates = tuple[Shaped[Array, "..."], ...]
Gating = Literal["relu", "linear", "shallow"]
Weights = Literal["normal", "rademacher", "glorot"]


def weight_initializer(distribution: Weights = "normal", variance: float | None = None) -> nn.initializers.Initializer:
    """Return an initializer of zero-mean weights.

    Args:
        distribution: "normal"; "rademacher", ±σ as NPF's Theorem 5.1 assumes; or "glorot", uniform of variance
            2 / (fan-in + fan-out), the default of NPF's framework.
        variance: σ² > 0 of every layer, He's 2 / fan-in if None (always with glorot); 2 / width in NPF's theory.
    """
    require_one_of("distribution", distribution, get_args(Weights))
    if distribution == "glorot":
        require(variance is None, "variance", variance, "None with glorot")
        return nn.initializers.glorot_uniform()
    require(variance is None or 0 < variance < np.inf, "variance", variance, "a positive finite number")

    def init(key: PRNGKeyArray, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> Array:
        scale = float(np.sqrt(variance if variance is not None else 2 / np.prod(shape[:-1])))
        draw = jax.random.normal if distribution == "normal" else jax.random.rademacher
        return jnp.asarray(scale, dtype) * draw(key, tuple(shape), dtype)

    return init


def open_gates(preactivations: Gates, *, hard: bool = True, sharpness: float = 10.0, scale: float = 1.0) -> Gates:
    """Compute gates from pre-activations: 1{q > 0}, or scale · sigmoid(sharpness · q).

    Args:
        preactivations: q_l, (N, ...) each.
        hard: 0 or 1; a pre-activation of 0 is closed.
        sharpness: β of soft gates; 10 in DLGN, 4 in NPF's code.
        scale: the 1 + ε of NPF's code, 1.1 there.

    Example:
        >>> open_gates((jnp.array([-1.0, 0.0, 2.0]),))[0].tolist()
        [0.0, 0.0, 1.0]
    """
    if hard:
        return tuple((q > 0).astype(q.dtype) for q in preactivations)
    return tuple(scale * jax.nn.sigmoid(sharpness * q) for q in preactivations)


class Mask(nn.Module):
    """Compute z = q ⊙ G; a module so that the gated activation has a name at which it can be decomposed."""

    def __call__(self, q: Float[Array, "n ..."], gate: Shaped[Array, "..."]) -> Float[Array, "n ..."]:
        """Return z."""
        require(gate.shape == q.shape, f"gates: {self.name}", f"shape {gate.shape}", f"shape {q.shape}")
        return q * gate.astype(q.dtype)


class _Part(Layer):
    """A network along an architecture; its fields are those of `GatedNetwork`."""

    layers: Architecture
    weights: Weights = "normal"
    variance: float | None = None

    def linear(self, layer: arch.Dense | arch.Conv, x: Array, name: str) -> Array:
        """Apply a dense or convolutional layer."""
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        init = weight_initializer(self.weights, self.variance)
        options: dict[str, Any] = {"use_bias": layer.bias, "kernel_init": init, "name": name, **types}
        if isinstance(layer, arch.Dense):
            return nn.Dense(layer.features, **options)(x)
        if layer.padding == "circular":
            x = jnp.pad(x, ((0, 0), *layer.pads, (0, 0)), mode="wrap")
        padding = layer.pads if layer.padding == "zero" else "VALID"
        return nn.Conv(layer.features, layer.kernel_size, layer.strides, padding=padding, **options)(x)

    def norm(self, x: Array, train: bool, name: str) -> Array:
        """Normalize each channel of vectors or images."""
        images = x if x.ndim == 4 else x[:, None, None]
        return batchnorm.BatchNorm(**self.shared, name=name)(images, train).reshape(x.shape)

    def traverse(self, x: Array, train: bool, gate: Callable[[int, Array], Array], head: bool = True) -> Array:
        """Run `x` through all layers, or up to the last gate without `head`; `gate` is (l, q_l) ↦ z_l."""
        linears, norms, gates, last = count(), count(), 0, gate_count(self.layers)

        def run(layers: Architecture, x: Array) -> Array:
            nonlocal gates
            for layer in layers:
                if gates == last and not head:
                    break
                if isinstance(layer, arch.Dense | arch.Conv):
                    x = self.linear(layer, x, f"linear_{next(linears)}")
                elif isinstance(layer, arch.BatchNorm):
                    x = self.norm(x, train, f"norm_{next(norms)}")
                elif isinstance(layer, arch.Gate):
                    x = gate(gates, x)
                    gates += 1
                elif isinstance(layer, arch.Residual):
                    body = run(layer.body, x)
                    x = body if gates == last and not head else body + run(layer.shortcut, x)
                else:
                    x = _pool(layer, x)
            return x

        return run(self.layers, self.widen(x))


def _pool(layer: arch.AvgPool | arch.GlobalAvgPool | arch.Flatten, x: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
    if isinstance(layer, arch.Flatten):
        return x.reshape(len(x), -1)
    if isinstance(layer, arch.GlobalAvgPool):
        return x.mean((1, 2))
    (wy, wx), (n, height, width, channels) = layer.window, x.shape
    rows, columns = height // wy, width // wx
    return x[:, : rows * wy, : columns * wx].reshape(n, rows, wy, columns, wx, channels).mean((2, 4))


class Network(_Part):
    """A value network, masked by gates given as data; without gates the ReLU network of the same weights.

    Its layers are named `linear_i`, `norm_i` and `gate_l`, in order; its fields are those of `GatedNetwork`.

    Source: NPF, Sec. 2 and 4 (GaLU units).
    """

    @nn.compact
    def __call__(
        self, x: Float[Array, "n ..."], gates: Gates | None = None, train: bool = False, frozen: bool = False
    ) -> Float[Array, "n classes"]:
        """Carry the value of `x` along the open paths to the logits.

        Args:
            x: (N, features) or (N, H, W, C).
            gates: one for each `Gate` of the architecture, (N, ...) as the activation there, finite; None rectifies.
            train: normalize with the batch's statistics.
            frozen: hold gates and statistics constant, which makes the network affine in `x`.
        """
        expected = gate_count(self.layers)
        require(gates is None or len(gates) == expected, "gates", len(gates or ()), f"{expected}, one for each Gate")
        with jax.ensure_compile_time_eval():
            for i, given in enumerate(gates or ()):
                require_finite(f"gates: gate {i}", given)

        def masked(i: int, q: Array) -> Array:
            gate = lax.stop_gradient((q > 0).astype(q.dtype)) if gates is None else gates[i]
            return Mask(name=f"gate_{i}")(q, lax.stop_gradient(gate) if frozen else gate)

        return self.traverse(x, train and not frozen, masked)

    def __explainable__(self, variables: Any) -> Explainable:
        """Return the network as it is explained: its contributions leave nothing out where no layer has a bias."""
        return explainable(self, variables, keywords={}, bias=0.0 if arch.is_biasless(self.layers) else None)


class GatingNetwork(_Part):
    """The pre-activations q_l of a gating network, which has no head.

    With "relu" and "linear" its parameters have the names and shapes of those of `Network`, so they can be copied from
    one (dependent or pre-trained gates).

    Attributes:
        gating: "relu" (DGN), "linear" (DLGN) or "shallow" (DLGN-SF: each gate has its own linear map of x, 3×3 for
            images, with x pooled as the values are).

    Source: DLGN, Sec. 3 and Fig. 1.
    """

    gating: Gating = "linear"

    @nn.compact
    def __call__(self, x: Float[Array, "n ..."], train: bool = False) -> Gates:
        """Compute the pre-activations of all gates at `x`, (N, ...) each."""
        require_one_of("gating", self.gating, get_args(Gating))
        if self.gating == "shallow":
            return self._shallow(x, train)
        preactivations: list[Array] = []

        def read(i: int, q: Array) -> Array:
            preactivations.append(q)
            return nn.relu(q) if self.gating == "relu" else q

        self.traverse(x, train, read, head=False)
        return tuple(preactivations)

    def _shallow(self, x: Array, train: bool) -> Gates:
        q: list[Array] = []

        def run(layers: Architecture, x: Array, width: int, normed: bool) -> tuple[Array, int, bool]:
            for layer in layers:
                if isinstance(layer, arch.Dense | arch.Conv):
                    width, normed = layer.features, False
                    if isinstance(layer, arch.Conv) and layer.strides != (1, 1):
                        x = _pool(arch.AvgPool(layer.strides), x)
                elif isinstance(layer, arch.BatchNorm):
                    normed = True
                elif isinstance(layer, arch.Gate):
                    feature = arch.Conv(width, bias=not normed) if x.ndim == 4 else arch.Dense(width, not normed)
                    y = self.linear(feature, x, f"linear_{len(q)}")
                    q.append(self.norm(y, train, f"norm_{len(q)}") if normed else y)
                elif isinstance(layer, arch.Residual):
                    x, width, normed = run(layer.body, x, width, normed)
                else:
                    x = _pool(layer, x)
            return x, width, normed

        run(self.layers, self.widen(x), x.shape[-1], False)
        return tuple(q)


def tile_and_roll(gates: Gates, key: PRNGKeyArray, times: int = 5) -> Gates:
    """Scramble gates of equal shape (N, H, W, C): concatenate in reverse order, roll H, W and channels, split again.

    All images are rolled alike, along each axis by the sum of `times` uniform offsets.

    Source: drafts of DLGN (tile-and-roll experiment).
    """
    shapes = [gate.shape for gate in gates]
    require(len(set(shapes)) == 1 and len(shapes[0]) == 4, "gates", f"shapes {shapes}", "equal (N, H, W, C)")
    tiled = jnp.concatenate(gates[::-1], axis=-1)
    for axis, axis_key in zip((1, 2, 3), jax.random.split(key, 3), strict=True):
        offset = jax.random.randint(axis_key, (times,), 0, tiled.shape[axis]).sum()
        tiled = jnp.roll(tiled, offset, axis)
    return tuple(jnp.split(tiled, len(gates), axis=-1))


class GatedNetwork(Layer):
    """A gating network and the value network that it masks: DGN, DLGN and DLGN-SF in all their regimes.

    With its gates held constant it is affine in the value input. With `value_input` "ones" the value depends on the
    image only through the gates: with hard gates its input gradient is zero, and `jaxinterp.gated.paths` reads it.

    Attributes:
        layers: the architecture of both networks.
        gating: "relu" (DGN), "linear" (DLGN) or "shallow" (DLGN-SF).
        hard: gates 1{q > 0}, which pass no gradient; soft ones are trained.
        sharpness: β of soft gates.
        scale: the 1 + ε of soft gates in NPF's code.
        value_input: "x", or "ones", an all-ones tensor of the image's shape.
        order: a permutation: the l-th gate is that of number order[l], all of equal shape (DLGN, Sec. 4); or None.
        roll: seed of `tile_and_roll`, or None.
        weights: distribution of the initial weights.
        variance: their variance; He's 2 / fan-in if None.

    Source: NPF, Sec. 4; DLGN, Sec. 3.
    """

    layers: Architecture
    gating: Gating = "linear"
    hard: bool = False
    sharpness: float = 10.0
    scale: float = 1.0
    value_input: ValueInput = "x"
    order: tuple[int, ...] | None = None
    roll: int | None = None
    weights: Weights = "normal"
    variance: float | None = None

    def setup(self) -> None:
        """Create `gating_network` and `value_network`."""
        require_one_of("value_input", self.value_input, get_args(ValueInput))
        options: dict[str, Any] = {"layers": self.layers, "weights": self.weights, "variance": self.variance}
        self.gating_network = GatingNetwork(gating=self.gating, **options, **self.shared)
        self.value_network = Network(**options, **self.shared)

    def gates(self, x: Float[Array, "n ..."], train: bool = False) -> Gates:
        """Compute the gates of the value network at `x`; hard ones and their statistics are not trained."""
        q = self.gating_network(x, train and not self.hard)
        opened = open_gates(q, hard=self.hard, sharpness=self.sharpness, scale=self.scale)
        if self.order is not None:
            permutation = sorted(self.order) == list(range(len(opened)))
            require(permutation, "order", self.order, f"a permutation of 0 to {len(opened) - 1}")
            opened = tuple(opened[i] for i in self.order)
        return opened if self.roll is None else tile_and_roll(opened, jax.random.key(self.roll))

    def __explainable__(self, variables: Any) -> Explainable:
        """Return the network as it is explained: as `Network`, if the value is that of x."""
        linear = self.value_input == "x" and arch.is_biasless(self.layers)
        return explainable(self, variables, keywords={}, bias=0.0 if linear else None)

    def __call__(
        self, x: Float[Array, "n ..."], train: bool = False, frozen: bool = False
    ) -> Float[Array, "n classes"]:
        """Classify; arguments and logits as of `Network`, the gates being those at `x`."""
        gates = self.gates(lax.stop_gradient(x) if frozen else x, train and not frozen)
        value = x if self.value_input == "x" else jnp.ones_like(x)
        return self.value_network(value, gates, train, frozen)
