"""Deep gated networks: one network decides which paths are open, another one carries the value along them.

Lakshminarayanan & Singh, NeurIPS 2020 (arXiv 2006.10529, "NPF") and arXiv 2110.03403 ("DLGN"). With gates G_l(x),

    z_0 = x,   q_l = Θ_lᵀ z_{l−1},   z_l = q_l ⊙ G_l(x),   ŷ = Θ_dᵀ z_{d−1}          (NPF, Sec. 2)

so ŷ is the sum over paths p of their feature φ_x(p) = x(p) ∏_l G_l(x)(p) times their value v(p) = ∏_l Θ_l(p).

- ReLU network: G_l = 1{q_l > 0}, gates and values are of the same weights.
- DGN: the gates are read off a second ReLU network.
- DLGN: off a second network that is linear, its rectifiers being the identity: each gate is a half-space of x.
- DLGN-SF ("shallow features"): each gate has one linear map of its own on x.

Gates are data: `Network.apply(variables, x, gates)` is linear in x whatever the gates are, and fixed, scrambled,
padded or foreign gates need no other code. Which of the networks are trained is the optimizer's business.
"""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray, Shaped

from jaxinterp.gated.architecture import (
    Architecture,
    AvgPool,
    BatchNorm,
    Conv,
    Dense,
    Flatten,
    Gate,
    GlobalAvgPool,
    Residual,
    gate_count,
)

Gates = tuple[Shaped[Array, "..."], ...]
EPSILON = 1e-5  # of batch normalization
Gating = Literal["relu", "linear", "shallow"]
Weights = Literal["normal", "rademacher", "glorot"]


def weights_of(distribution: Weights = "normal", variance: float | None = None) -> nn.initializers.Initializer:
    """Zero-mean weights of one variance, normal or ±σ; He's 2 / fan-in where no variance is given.

    Args:
        distribution: normal; rademacher (±σ), the assumption of NPF's Theorem 5.1; or glorot, uniform of the variance
            2 / (fan-in + fan-out), the default of the framework in which NPF was written.
        variance: σ² of every layer; NPF's theory uses 2 / width in all of them, the first included.

    Raises:
        ValueError: another distribution, a variance that is not positive, or one for glorot, which has its own.
    """
    if distribution not in get_args(Weights):
        raise ValueError(f"distribution: got {distribution!r}, expected one of {', '.join(get_args(Weights))}")
    if distribution == "glorot":
        if variance is not None:
            raise ValueError(f"variance: got {variance} with glorot, expected None")
        return nn.initializers.glorot_uniform()

    if variance is not None and not 0 < variance < np.inf:
        raise ValueError(f"variance: got {variance}, expected a positive finite number")

    def init(key: PRNGKeyArray, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> Array:
        scale = float(np.sqrt(variance if variance is not None else 2 / np.prod(shape[:-1])))
        draw = jax.random.normal if distribution == "normal" else jax.random.rademacher
        return jnp.asarray(scale, dtype) * draw(key, tuple(shape), dtype)

    return init


def open_gates(preactivations: Gates, *, hard: bool = True, sharpness: float = 10.0, scale: float = 1.0) -> Gates:
    """Gates from pre-activations: 1{q > 0}, or scale · sigmoid(sharpness · q).

    Args:
        preactivations: q_l, (N, ...) each.
        hard: 0 or 1; a pre-activation of 0 is closed.
        sharpness: β of soft gates; 10 in DLGN, 4 in NPF's code.
        scale: the (1 + ε) of NPF's code, 1.1 there.

    Returns:
        One gate for each, of the same shape and dtype.

    Example:
        >>> open_gates((jnp.array([-1.0, 0.0, 2.0]),))[0].tolist()
        [0.0, 0.0, 1.0]
    """
    if hard:
        return tuple((q > 0).astype(q.dtype) for q in preactivations)
    return tuple(scale * jax.nn.sigmoid(sharpness * q) for q in preactivations)


class Mask(nn.Module):
    """z = q ⊙ G; a module so that the gated activation has a name at which it can be decomposed."""

    def __call__(self, q: Float[Array, "n ..."], gate: Shaped[Array, "..."]) -> Float[Array, "n ..."]:
        """Mask."""
        if gate.shape != q.shape:
            raise ValueError(f"gates: {self.name} has shape {gate.shape}, expected {q.shape}")
        return q * gate.astype(q.dtype)


class _Part(nn.Module):
    """What the networks here share.

    Attributes:
        layers: the architecture.
        weights: distribution of the initial weights.
        variance: their variance; He's 2 / fan-in where None.
        dtype: type of the large products, e.g. bfloat16; None keeps the input's.
        param_dtype: type of the parameters.
        axis_name: the mapped axis over which `jax.pmap` shares batch statistics; None under `jit`.
    """

    layers: Architecture
    weights: Weights = "normal"
    variance: float | None = None
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    def linear(self, layer: Dense | Conv, x: Array, name: str) -> Array:
        """A dense or convolutional layer, in this network's types."""
        kinds: dict[str, Any] = {
            "use_bias": layer.bias,
            "kernel_init": weights_of(self.weights, self.variance),
            "dtype": self.dtype,
            "param_dtype": self.param_dtype,
            "name": name,
        }
        if isinstance(layer, Dense):
            return nn.Dense(layer.features, **kinds)(x)
        if layer.padding == "circular":
            x = jnp.pad(x, ((0, 0), *layer.pads, (0, 0)), mode="wrap")
        padding = layer.pads if layer.padding == "zero" else "VALID"
        return nn.Conv(layer.features, layer.kernel_size, layer.strides, padding=padding, **kinds)(x)

    def norm(self, x: Array, train: bool, name: str) -> Array:
        """Batch normalization, in float32 or wider."""
        wide = np.promote_types(np.float32, self.param_dtype)
        return nn.BatchNorm(
            use_running_average=not train,
            momentum=0.9,
            epsilon=EPSILON,
            param_dtype=wide,
            axis_name=self.axis_name,
            force_float32_reductions=False,
            name=name,
        )(x.astype(np.promote_types(wide, x.dtype))).astype(x.dtype)


def pool(layer: AvgPool | GlobalAvgPool | Flatten, x: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
    """The layers without parameters."""
    if isinstance(layer, Flatten):
        return x.reshape(len(x), -1)
    if isinstance(layer, GlobalAvgPool):
        return x.mean((1, 2))
    (wy, wx), (n, height, width, channels) = layer.window, x.shape
    rows, columns = height // wy, width // wx
    return x[:, : rows * wy, : columns * wx].reshape(n, rows, wy, columns, wx, channels).mean((2, 4))


class Network(_Part):
    """A value network that is masked by gates given as data; without gates it is the ReLU network of the same weights.

    Its layers are named `linear_i`, `norm_i` and `gate_l`, in order.

    Source: NPF, Sec. 2 and 4 (GaLU units).
    """

    @nn.compact
    def __call__(
        self, x: Float[Array, "n ..."], gates: Gates | None = None, train: bool = False, frozen: bool = False
    ) -> Float[Array, "n classes"]:
        """Carry the value of `x` along the open paths.

        Args:
            x: (N, features) or (N, H, W, C).
            gates: one for each `Gate` of the architecture, (N, ...) as the activation there; None rectifies.
            train: normalize with the batch's statistics.
            frozen: hold gates and statistics; a ReLU network or one with given gates is affine then.

        Returns:
            Logits, (N, classes).

        Raises:
            ValueError: gates of another count or shape than the architecture's, or, outside of `jit`, not finite.
        """
        expected = gate_count(self.layers)
        if gates is not None and len(gates) != expected:
            raise ValueError(f"gates: got {len(gates)}, expected {expected}, one for each Gate of the architecture")
        for i, gate in enumerate(gates or ()):
            finite = jnp.isfinite(gate).all()
            if not isinstance(finite, jax.core.Tracer) and not bool(finite):
                raise ValueError(f"gates: gate {i} has NaN or infinity, expected finite numbers")
        count = dict.fromkeys(("linear", "norm", "gate"), 0)

        def number(kind: str) -> int:
            count[kind] += 1
            return count[kind] - 1

        def run(layers: Architecture, x: Array) -> Array:
            for layer in layers:
                if isinstance(layer, Dense | Conv):
                    x = self.linear(layer, x, f"linear_{number('linear')}")
                elif isinstance(layer, BatchNorm):
                    x = self.norm(x, train and not frozen, f"norm_{number('norm')}")
                elif isinstance(layer, Gate):
                    i = number("gate")
                    gate = lax.stop_gradient((x > 0).astype(x.dtype)) if gates is None else gates[i]
                    x = Mask(name=f"gate_{i}")(x, lax.stop_gradient(gate) if frozen else gate)
                elif isinstance(layer, Residual):
                    body = run(layer.body, x)
                    x = body + run(layer.shortcut, x)
                else:
                    x = pool(layer, x)
            return x

        return run(self.layers, x)


class GatingNetwork(_Part):
    """The pre-activations q_l of a gating network, which has no head.

    With "relu" and "linear" its parameters are named and shaped as those of `Network`, so that they can be copied from
    one (dependent or pre-trained gates).

    Attributes:
        gating: "relu" (DGN), "linear" (DLGN) or "shallow" (DLGN-SF: every gate reads x, pooled as the values are,
            through one linear map of its own, 3×3 where there are pixels).

    Source: DLGN, Sec. 3 and Fig. 1.
    """

    gating: Gating = "linear"

    @nn.compact
    def __call__(self, x: Float[Array, "n ..."], train: bool = False) -> Gates:
        """Pre-activations of all gates at `x`, (N, ...) each."""
        if self.gating not in get_args(Gating):
            raise ValueError(f"gating: got {self.gating!r}, expected one of {', '.join(get_args(Gating))}")
        last = gate_count(self.layers)
        return self._shallow(x, train) if self.gating == "shallow" else self._deep(x, train, last)

    def _deep(self, x: Array, train: bool, last: int) -> Gates:
        q: list[Array] = []
        count = dict.fromkeys(("linear", "norm"), 0)

        def number(kind: str) -> int:
            count[kind] += 1
            return count[kind] - 1

        def run(layers: Architecture, x: Array) -> Array:
            for layer in layers:
                if len(q) == last:
                    break  # what follows the last gate is the head
                if isinstance(layer, Dense | Conv):
                    x = self.linear(layer, x, f"linear_{number('linear')}")
                elif isinstance(layer, BatchNorm):
                    x = self.norm(x, train, f"norm_{number('norm')}")
                elif isinstance(layer, Gate):
                    q.append(x)
                    x = nn.relu(x) if self.gating == "relu" else x
                elif isinstance(layer, Residual):
                    body = run(layer.body, x)
                    x = body if len(q) == last else body + run(layer.shortcut, x)
                else:
                    x = pool(layer, x)
            return x

        run(self.layers, x)
        return tuple(q)

    def _shallow(self, x: Array, train: bool) -> Gates:
        q: list[Array] = []

        def run(layers: Architecture, x: Array, width: int, normed: bool) -> tuple[Array, int, bool]:
            for layer in layers:
                if isinstance(layer, Dense | Conv):
                    width, normed = layer.features, False
                    if isinstance(layer, Conv) and layer.strides != (1, 1):
                        x = pool(AvgPool(layer.strides), x)
                elif isinstance(layer, BatchNorm):
                    normed = True
                elif isinstance(layer, Gate):
                    own = Conv(width, bias=not normed) if x.ndim == 4 else Dense(width, not normed)
                    y = self.linear(own, x, f"linear_{len(q)}")
                    q.append(self.norm(y, train, f"norm_{len(q)}") if normed else y)
                elif isinstance(layer, Residual):
                    x, width, normed = run(layer.body, x, width, normed)
                else:
                    x = pool(layer, x)
            return x, width, normed

        run(self.layers, x, x.shape[-1], False)
        return tuple(q)


def permuted(gates: Gates, order: Sequence[int]) -> Gates:
    """Mask the l-th value layer with gate `order[l]`; equal shapes are needed (DLGN, Sec. 4).

    Raises:
        ValueError: `order` is not a permutation of the gates.
    """
    if sorted(order) != list(range(len(gates))):
        raise ValueError(f"order: got {tuple(order)}, expected a permutation of 0 to {len(gates) - 1}")
    return tuple(gates[i] for i in order)


def tiled_and_rolled(gates: Gates, key: PRNGKeyArray, times: int = 5) -> Gates:
    """Scramble equal gates: side by side in reverse order, rolled in space and channels, and cut apart again.

    Args:
        gates: (N, H, W, C) each.
        key: where the offsets come from; the same key, the same scrambling of every image.
        times: how many random offsets are added up, uniform over H, W and all channels each.

    Returns:
        Gates of the same shapes.

    Source: drafts of DLGN (tile-and-roll experiment).
    """
    if len({gate.shape for gate in gates}) != 1 or gates[0].ndim != 4:
        raise ValueError(f"gates: got shapes {[gate.shape for gate in gates]}, expected equal (N, H, W, C)")
    tiled = jnp.concatenate(gates[::-1], axis=-1)
    for axis, axis_key in zip((1, 2, 3), jax.random.split(key, 3), strict=True):
        offset = jax.random.randint(axis_key, (times,), 0, tiled.shape[axis]).sum()
        tiled = jnp.roll(tiled, offset, axis)
    return tuple(jnp.split(tiled, len(gates), axis=-1))


class GatedNetwork(nn.Module):
    """A gating network and the value network that it masks: DGN, DLGN and DLGN-SF in all their regimes.

    Held constant, its gates leave it affine in the value input (the freeze contract). With `value_input` "ones" the
    value does not depend on the image but through the gates: with hard gates its input gradient is zero, and it is
    read through its paths (`jaxinterp.gated.paths`).

    Attributes:
        layers: the architecture of both.
        gating: "relu" (DGN), "linear" (DLGN) or "shallow" (DLGN-SF).
        hard: gates 1{q > 0}, through which no gradient flows; soft ones are trained.
        sharpness: β of soft gates.
        scale: the (1 + ε) of soft gates in NPF's code.
        value_input: "x", or "ones", an all-ones tensor of the image's shape.
        order: permutation of the gates, or None.
        roll: seed of `tiled_and_rolled`, or None.
        weights: distribution of the initial weights.
        variance: their variance; He's 2 / fan-in where None.
        dtype: type of the large products.
        param_dtype: type of the parameters.
        axis_name: as in `Network`.

    Source: NPF, Sec. 4; DLGN, Sec. 3.
    """

    layers: Architecture
    gating: Gating = "linear"
    hard: bool = False
    sharpness: float = 10.0
    scale: float = 1.0
    value_input: Literal["x", "ones"] = "x"
    order: tuple[int, ...] | None = None
    roll: int | None = None
    weights: Weights = "normal"
    variance: float | None = None
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    def setup(self) -> None:
        """Make the two networks, `gating_network` and `value_network`."""
        if self.value_input not in ("x", "ones"):
            raise ValueError(f"value_input: got {self.value_input!r}, expected x or ones")
        shared: dict[str, Any] = {
            name: getattr(self, name) for name in ("layers", "weights", "variance", "dtype", "param_dtype", "axis_name")
        }
        self.gating_network = GatingNetwork(gating=self.gating, **shared)
        self.value_network = Network(**shared)

    def gates(self, x: Float[Array, "n ..."], train: bool = False) -> Gates:
        """The gates at `x`, as the value network meets them; hard ones are not trained, nor are their statistics."""
        opened = open_gates(
            self.gating_network(x, train and not self.hard), hard=self.hard, sharpness=self.sharpness, scale=self.scale
        )
        if self.order is not None:
            opened = permuted(opened, self.order)
        return opened if self.roll is None else tiled_and_rolled(opened, jax.random.key(self.roll))

    def __call__(
        self, x: Float[Array, "n ..."], train: bool = False, frozen: bool = False
    ) -> Float[Array, "n classes"]:
        """Classify.

        Args:
            x: (N, features) or (N, H, W, C).
            train: normalize with the batch's statistics.
            frozen: hold gates and statistics constant: the logits are then affine in `x`.

        Returns:
            Logits, (N, classes).
        """
        gates = self.gates(lax.stop_gradient(x) if frozen else x, train and not frozen)
        value = x if self.value_input == "x" else jnp.ones_like(x)
        return self.value_network(value, gates, train, frozen)
