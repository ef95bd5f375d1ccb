"""Layer-wise relevance propagation: each layer shares a logit among its inputs by what they contributed."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args, get_origin, get_type_hints

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxinterp.checks import require, require_at_least, require_one_of
from jaxinterp.explain.attribute.backward import checked, placed
from jaxinterp.explain.attribute.relevance import in_parts, passed_back
from jaxinterp.explain.attribution import Attribution
from jaxinterp.explain.batches import MAX_BYTES, Targets
from jaxinterp.explain.meshes import on_automatic_axes
from jaxinterp.explain.program import INPUT, Model, value_at
from jaxinterp.explain.rules import Local, Rules, gradient

STABILIZER = 1e-6
"""Added to denominators, away from zero."""


def positive(x: Array) -> Array:
    """Return x⁺ = max(x, 0)."""
    return jnp.maximum(x, 0)


def negative(x: Array) -> Array:
    """Return x⁻ = min(x, 0)."""
    return jnp.minimum(x, 0)


def over(relevance: Array, z: Array, epsilon: float = STABILIZER) -> Array:
    """Return R / (z + ε sign z), with sign 0 = 1; with ε = 0 it is 0 at z = 0.

    In float16, where R / ε overflows, it is divided in float32 and kept within ±√65504, so that sums of it, times an
    input of 0, are 0.
    """
    if z.dtype == jnp.float16:
        most = float(jnp.finfo(z.dtype).max) ** (0.5 if epsilon else 1.0)
        ratio = over(relevance.astype(jnp.float32), z.astype(jnp.float32), epsilon)
        return jnp.clip(ratio, -most, most).astype(z.dtype)
    if not epsilon:
        return jnp.where(z == 0, 0, relevance / jnp.where(z == 0, 1, z))
    return relevance / (z + jnp.where(z < 0, -epsilon, epsilon).astype(z.dtype))


def share(local: Local, parts: Sequence[tuple[Array, Array]], bias: Array | None, relevance: Array) -> Array:
    """Share relevance among the inputs of an affine layer, R_i = Σ_p x_pi Σ_j w_pij R_j / (Σ_p Σ_i x_pi w_pij + b_j).

    Args:
        local: the layer.
        parts: pairs of an input and a kernel, (x_p, w_p).
        bias: b, or None.
        relevance: R_j.
    """
    assert local.affine is not None
    linear = local.affine.linear
    outs, backs = zip(*(jax.vjp(partial(_flipped, linear, w), x) for x, w in parts), strict=True)
    z = sum(outs[1:], outs[0])
    ratio = over(relevance, z if bias is None else z + bias)
    shares = [x * back(ratio)[0] for (x, _), back in zip(parts, backs, strict=True)]
    return sum(shares[1:], shares[0])


def _flipped(linear: Any, kernel: Array, x: Array) -> Array:
    return linear(x, kernel)  # type: ignore[no-any-return]


def _bias(local: Local, change: Any, used: bool = True) -> Array | None:
    assert local.affine is not None
    return None if local.affine.bias is None or not used else change(local.affine.bias)


@dataclass(frozen=True)
class Epsilon:
    """LRP-ε, R_i = x_i Σ_j w_ij R_j / (z_j + ε sign z_j), z_j = Σ_i x_i w_ij + b_j; LRP-0 with ε = 0.

    Source: Bach et al., PLOS ONE 2015, Eq. 58; Montavon et al. 2019, Sec. 10.2.1 and 10.2.2.
    """

    epsilon: float = STABILIZER

    def __post_init__(self) -> None:
        """Check the range of ε."""
        require_at_least("epsilon", self.epsilon, 0)

    def __call__(self, local: Local) -> Array:
        """Return the relevance of the layer's input."""
        return local.args[0] * jax.vjp(local.run, *local.args)[1](over(local.back, local.out, self.epsilon))[0]


@dataclass(frozen=True)
class Gamma:
    """LRP-γ: positive parts count (1 + γ) times, of z_j > 0; negative ones of z_j < 0.

        z_j > 0:  w⁺ = w + γ max(w, 0) for x ≥ 0,  w + γ min(w, 0) for x < 0;   b + γ max(b, 0)

    Source: Montavon et al. 2019, Sec. 10.2.3; Andéol et al., arXiv 2106.12239 (inputs of both signs).
    """

    gamma: float = 0.25

    def __post_init__(self) -> None:
        """Check the range of γ."""
        require_at_least("gamma", self.gamma, 0)

    def __call__(self, local: Local) -> Array:
        """Return the relevance of the layer's input."""
        assert local.affine is not None
        (x,), w, r, gamma = local.args, local.affine.kernel, local.back, self.gamma
        up, down = w + gamma * positive(w), w + gamma * negative(w)
        raised = _bias(local, lambda b: b + gamma * positive(b))
        lowered = _bias(local, lambda b: b + gamma * negative(b))
        for_positive = share(local, [(positive(x), up), (negative(x), down)], raised, jnp.where(local.out > 0, r, 0))
        for_negative = share(local, [(positive(x), down), (negative(x), up)], lowered, jnp.where(local.out < 0, r, 0))
        return for_positive + for_negative


@dataclass(frozen=True)
class AlphaBeta:
    """LRP-αβ, R_i = Σ_j (α (x_i w_ij)⁺ / z_j⁺ − β (x_i w_ij)⁻ / z_j⁻) R_j with z_j^± = Σ_i (x_i w_ij)^± + b_j^±.

    With α = 1 and β = 0 the z⁺ rule. Relevance is conserved where z_j⁺ and z_j⁻ both differ from 0. A neuron without
    negative contributions has nothing that takes β R_j back, so that α R_j goes on, twice of it with α = 2, β = 1; one
    without positive contributions passes on −β R_j. The residual tells.

    Attributes:
        alpha: α.
        beta: β = α − 1.
        bias: whether biases take their share.

    Source: Bach et al., PLOS ONE 2015, Eq. 60; Montavon et al., arXiv 1512.02479, Eq. 9 (z⁺).
    """

    alpha: float = 1.0
    beta: float = 0.0
    bias: bool = True

    def __post_init__(self) -> None:
        """Check that relevance is conserved."""
        fits = self.beta >= 0 and abs(self.alpha - self.beta - 1) < 1e-9
        require(fits, "alpha, beta", (self.alpha, self.beta), "alpha = 1 + beta, beta at least 0")

    def __call__(self, local: Local) -> Array:
        """Return the relevance of the layer's input."""
        assert local.affine is not None
        (x,), w, r = local.args, local.affine.kernel, local.back
        rising, falling = _bias(local, positive, self.bias), _bias(local, negative, self.bias)
        plus = share(local, [(positive(x), positive(w)), (negative(x), negative(w))], rising, r)
        if not self.beta:
            return plus
        minus = share(local, [(positive(x), negative(w)), (negative(x), positive(w))], falling, r)
        return self.alpha * plus - self.beta * minus


@dataclass(frozen=True)
class WSquare:
    """The w² rule, R_i = Σ_j w_ij² / (Σ_i w_ij² + b_j²) R_j, whatever the input.

    Source: Montavon et al., arXiv 1512.02479, Eq. 7.
    """

    def __call__(self, local: Local) -> Array:
        """Return the relevance of the layer's input."""
        assert local.affine is not None
        return share(
            local, [(jnp.ones_like(local.args[0]), local.affine.kernel**2)], _bias(local, jnp.square), local.back
        )


@dataclass(frozen=True)
class Flat:
    """The flat rule: every input of a layer's output takes the same share, without the bias.

    Source: Lapuschkin et al., Nature Communications 10, 1096 (2019), Methods.
    """

    def __call__(self, local: Local) -> Array:
        """Return the relevance of the layer's input."""
        assert local.affine is not None
        kernel = jnp.ones_like(local.affine.kernel)
        return share(local, [(jnp.ones_like(local.args[0]), kernel)], None, local.back)


@dataclass(frozen=True)
class ZBox:
    """The z^B rule of inputs between l and h, of the first layer.

        R_i = Σ_j (x_i w_ij − l_i w_ij⁺ − h_i w_ij⁻) / Σ_i (x_i w_ij − l_i w_ij⁺ − h_i w_ij⁻) R_j

    Source: Montavon et al., arXiv 1512.02479, Eq. 11.
    """

    def __call__(self, local: Local) -> Array:
        """Return the relevance of the layer's input."""
        assert local.affine is not None
        require(len(local.refs) == 2, "low, high", None, "the bounds of the input, of a network whose first layer is "
                "outside of loops")  # fmt: skip
        (x,), ((low,), (high,)), w = local.args, local.refs, local.affine.kernel
        parts = [(x, w), (-low, positive(w)), (-high, negative(w))]
        return share(local, parts, None, local.back)


Rule = Epsilon | Gamma | AlphaBeta | WSquare | Flat | ZBox


@dataclass(frozen=True)
class Composite(Rules):
    """Which rule is whose. Affine layers have the constants behind them merged, such as a BatchNorm's.

    Attributes:
        dense: the rule of dense layers.
        conv: of convolutions.
        first: of the affine layers that come first; None for no other than the rest.
        activation: "pass" relevance on, or by the "gradient".
        scale: of constants added and multiplied that belong to no layer: "pass", or "epsilon": the constants added
            take their share.
        add: of the sum of two streams: "proportional" to them, or by the "gradient", to both in full.
        pool: of sums and means: "proportional", or by the "gradient".
        product: of two streams multiplied: "half" to each, or all to one, the other "held", see `units`.
        softmax: "held": attention weights are constants; "taylor": R_i = x_i (R_i − s_i Σ_j R_j).
        center: of x minus its mean, in norms: the "identity", or "proportional" to both. The norm's factor is held.
        epsilon: the stabilizer of all that is proportional.
    """

    dense: Rule = Epsilon()
    conv: Rule = Epsilon()
    first: Rule | None = None
    activation: Literal["pass", "gradient"] = "pass"
    scale: Literal["pass", "epsilon"] = "pass"
    add: Literal["proportional", "gradient"] = "proportional"
    pool: Literal["proportional", "gradient"] = "proportional"
    product: Literal["half", "held"] = "half"
    softmax: Literal["held", "taylor"] = "held"
    center: Literal["identity", "proportional"] = "identity"
    epsilon: float = STABILIZER

    holds = True

    def __post_init__(self) -> None:
        """Check every field."""
        require_at_least("epsilon", self.epsilon, 0)
        for name in ("dense", "conv", "first"):
            rule = getattr(self, name)
            got = rule.__name__ if isinstance(rule, type) else rule
            fits = isinstance(rule, Rule) or (name == "first" and rule is None)
            require(fits, name, got, "a rule, such as Epsilon()")
        for name, hint in get_type_hints(Composite).items():
            if get_origin(hint) is Literal:
                require_one_of(name, getattr(self, name), get_args(hint))

    @property
    def whole_softmax(self) -> bool:  # type: ignore[override]
        """Whether relevance flows through the exponentials of a softmax."""
        return self.softmax == "taylor"

    def on_affine(self, local: Local) -> Sequence[Array]:
        """Share by the layer's rule."""
        assert local.affine is not None
        usual = self.conv if local.affine.convolution else self.dense
        return [(self.first if self.first is not None and local.affine.first else usual)(local)]

    def on_unit(self, local: Local) -> Sequence[Array]:
        """Pass relevance on."""
        return gradient(self, local) if self.activation == "gradient" else [unspread(local.back, local.args[0])]

    def on_scale(self, local: Local) -> Sequence[Array]:
        """Pass relevance on, or leave to the constants added what is theirs."""
        return [unspread(local.back, local.args[0])] if self.scale == "pass" else self.proportional(local)

    def on_add(self, local: Local) -> Sequence[Array]:
        """Share among streams in proportion to them."""
        return self.proportional(local) if self.add == "proportional" else gradient(self, local)

    def on_center(self, local: Local) -> Sequence[Array]:
        """Give the mean nothing."""
        if self.center == "proportional":
            return self.proportional(local)
        return [local.back, jnp.zeros_like(local.args[1])]

    def on_linear(self, local: Local) -> Sequence[Array]:
        """Share among summands in proportion to them."""
        by_kernel = local.name in ("conv_general_dilated", "dot_general")
        return self.proportional(local) if by_kernel or self.pool == "proportional" else gradient(self, local)

    def on_product(self, local: Local) -> Sequence[Array]:
        """Give each of two factors a half of every term: AttnLRP, Achtibat et al., arXiv 2402.05602, Eq. 13 to 15."""
        whole = self.proportional(local)
        return [r / 2 for r in whole] if self.product == "half" else [whole[0], jnp.zeros_like(whole[1])]

    def on_quotient(self, local: Local) -> Sequence[Array]:
        """Take the denominator for a coefficient."""
        numerator, denominator = local.args
        return [unspread(local.back, numerator), jnp.zeros_like(denominator)]

    def on_softmax(self, local: Local) -> Sequence[Array]:
        """Expand about the input, R_i = x_i (R_i − s_i Σ_j R_j): AttnLRP, arXiv 2402.05602, Proposition 3.1."""
        (x,) = local.args
        relevance = over(local.back, local.out, 0.0)  # by the derivative of R_i / s_i: s_i (R_i / s_i − Σ_j R_j)
        (slope,) = jax.vjp(local.run, x)[1](relevance)
        return [jnp.where(slope == 0, 0, x * slope)]  # also of logits −∞

    def proportional(self, local: Local) -> Sequence[Array]:
        """Return x_i ∂z/∂xᵀ R/z."""
        ratio = over(local.back, local.out, self.epsilon)
        return [x * slope for x, slope in zip(local.args, jax.vjp(local.run, *local.args)[1](ratio), strict=True)]


def unspread(back: Array, x: Array) -> Array:
    """Sum over what an argument was broadcast to."""
    axes = tuple(i for i, (a, b) in enumerate(zip(back.shape, x.shape, strict=True)) if a != b) if x.ndim else None
    return back if back.shape == x.shape else back.sum(axes, keepdims=x.ndim > 0)


COMPOSITES = {
    "epsilon": Composite(),
    "epsilon_plus": Composite(conv=AlphaBeta(1.0, 0.0)),
    "epsilon_gamma_box": Composite(conv=Gamma(0.25), first=ZBox()),
    "epsilon_plus_flat": Composite(conv=AlphaBeta(1.0, 0.0), first=Flat()),
    "epsilon_alpha2_beta1": Composite(conv=AlphaBeta(2.0, 1.0)),
    "attention": Composite(conv=Gamma(0.25), scale="epsilon", softmax="taylor"),
}
"""Composites by name: ε at dense layers, another rule at convolutions; "attention" is AttnLRP.

"epsilon_alpha2_beta1" conserves relevance where neurons have contributions of both signs alone, see `AlphaBeta`.
"""


@on_automatic_axes
def lrp(
    net: Any,
    x: Any,
    targets: Targets = None,
    *,
    composite: Any = "epsilon_plus",
    low: Any = None,
    high: Any = None,
    layer: str | None = None,
    max_bytes: int = MAX_BYTES,
) -> Attribution:
    """Compute layer-wise relevance propagation, from each target's logit to the input.

    Each layer shares the relevance of its outputs among its inputs, R_i = Σ_j (share of i in z_j) R_j, so that the sum
    stays the logit but for what biases take: the residual. The rules act on the traced program, so that functional and
    reused activations, skip connections, and BatchNorm merged into the layer before it, need no modules.

    Args:
        net: a network, see `explainable`.
        x: a batch, (batch, ...), floating.
        targets: None for all classes, an int, (batch,) or (batch, T) classes.
        composite: rules, one of `COMPOSITES` by name, or a `Composite`.
        low: the smallest possible input, a number or an array that broadcasts to `x`, of the z^B rule; so is `high`.
        high: the largest.
        layer: name of a layer, down to whose output relevance is propagated.
        max_bytes: bytes that one pass may take by estimate; examples and targets run in parts.

    Returns:
        An `Attribution` on the shape of `x` or of the layer's output, with bias 0 and, as residual, f_k − Σ R: what
        biases, stabilizers and dead units took.

    Raises:
        ConfigError: an operation has no rule; the line names it and its module. Or a z^B rule has no bounds, or bounds
            have no z^B rule.

    Example:
        >>> w = jnp.array([[1.0], [3.0]])
        >>> parts = lrp(lambda x: jax.nn.relu(x @ w), jnp.array([[1.0, 2.0]]), composite="epsilon")
        >>> [f"{r:.2f}" for r in parts.contributions.ravel()], abs(parts.residual.item()) < 1e-5
        (['1.00', '6.00'], True)

    Source: Bach et al., PLOS ONE 10(7) (2015); composites: Kohlbrenner et al., arXiv 1910.09840; Achtibat et al.,
    arXiv 2402.05602.
    """
    if isinstance(composite, str):
        require_one_of("composite", composite, COMPOSITES)
        composite = COMPOSITES[composite]
    require(isinstance(composite, Composite), "composite", type(composite).__name__, "a Composite, or its name")
    boxed = any(isinstance(rule, ZBox) for rule in (composite.first, composite.conv, composite.dense))
    given = sum(bound is not None for bound in (low, high))
    wanted = "both bounds of the input" if boxed else "no bounds, as no layer of the composite has the z^B rule"
    require(given == 2 * boxed, "low, high", (low, high), wanted)
    call = checked(net, x, targets, layer, max_bytes)
    run, bounds = partial(_propagate, layer, composite), []
    if boxed:
        bounds = [placed(call, name, v, layer) for name, v in (("low", low), ("high", high))]
    return in_parts(call, run, bounds, max_bytes)


@partial(jax.jit, static_argnums=(0, 1))
def _propagate(
    layer: str | None, composite: Composite, model: Model, x: Array, rows: Array, *bounds: Array
) -> Attribution:
    z = value_at(model, layer, x)
    relevance, logits, _ = passed_back(layer, composite, model, z, x, rows, bounds, from_logits=True)
    residual = logits - relevance.reshape(*rows.shape, -1).sum(-1).astype(logits.dtype)
    return Attribution(relevance, logits, rows, jnp.zeros_like(logits), residual, method="lrp", layer=layer or INPUT)
