"""Rules against replicas in NumPy, with explicit loops over the entries of a convolution written as a matrix."""

import equinox
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from jaxinterp.errors import ConfigError
from jaxinterp.explain.attribute import deconvolution, deep_lift, excitation_backprop, guided_backpropagation, lrp
from jaxinterp.explain.attribute.deep_lift import RESCALE
from jaxinterp.explain.attribute.lrp import (
    COMPOSITES,
    AlphaBeta,
    Composite,
    Epsilon,
    Flat,
    Gamma,
    WSquare,
    ZBox,
)
from jaxinterp.explain.attribute.rules import Guided
from jaxinterp.explain.explainable import explainable
from jaxinterp.explain.rules import rules, with_references

LOW, HIGH = -3.0, 2.5
RULES = {
    "zero": Epsilon(0.0),
    "epsilon": Epsilon(0.1),
    "gamma": Gamma(0.3),
    "z_plus": AlphaBeta(1.0, 0.0),
    "alpha_beta": AlphaBeta(2.0, 1.0),
    "w_square": WSquare(),
    "flat": Flat(),
    "box": ZBox(),
}


def convolved(x, w):
    return lax.conv_general_dilated(x, w, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def maxima(x):
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def net(v, x):
    """Convolution, BatchNorm in inference, ReLU, max-pool, dense."""
    h = convolved(x, v["conv"]) + v["bias"][None, None, None]
    h = (h - v["mean"][None, None, None]) * lax.rsqrt(v["var"])[None, None, None] * v["scale"][None, None, None]
    h = maxima(jax.nn.relu(h + v["shift"][None, None, None]))
    return h.reshape(len(h), -1) @ v["dense"] + v["out"][None]


@pytest.fixture
def given():
    """(variables, an image of 5×5×2), in float64."""
    random = np.random.default_rng(3)
    shapes = {"conv": (2, 2, 2, 3), "dense": (12, 2), "out": 2, "bias": 3, "mean": 3, "scale": 3, "shift": 3}
    v = {name: random.normal(size=shape) for name, shape in shapes.items()}
    return v | {"var": random.uniform(0.5, 2, 3)}, random.normal(size=(1, 5, 5, 2))


def as_matrix(v):
    """Return the merged convolution as matrix, mask of its connections, and bias, by loops over all of its products."""
    factor = v["scale"] / np.sqrt(v["var"])
    w, mask, b = np.zeros((50, 48)), np.zeros((50, 48), bool), np.zeros(48)
    for row, column, out in np.ndindex(4, 4, 3):
        j = (row * 4 + column) * 3 + out
        b[j] = (v["bias"][out] - v["mean"][out]) * factor[out] + v["shift"][out]
        for down, right, c in np.ndindex(2, 2, 2):
            i = ((row + down) * 5 + column + right) * 2 + c
            w[i, j], mask[i, j] = v["conv"][down, right, c, out] * factor[out], True
    return w, mask, b


def shared(rule, x, w, mask, b, relevance):
    """Share the relevance of each output among the inputs, term by term."""
    found = np.zeros(len(x))
    for j, r in enumerate(relevance):
        terms, bias, epsilon = x * w[:, j], b[j], 1e-6
        shares = []
        if isinstance(rule, Epsilon):
            shares, epsilon = [(1, terms, bias)], rule.epsilon
        elif isinstance(rule, Gamma):
            sign = np.sign(terms.sum() + bias)
            raised = [t + rule.gamma * (t if sign * t > 0 else 0) for t in terms]
            shares = [(1, np.array(raised), bias + rule.gamma * (bias if sign * bias > 0 else 0))]
        elif isinstance(rule, AlphaBeta):
            shares = [
                (rule.alpha, np.maximum(terms, 0), max(bias, 0)),
                (-rule.beta, np.minimum(terms, 0), min(bias, 0)),
            ]
        elif isinstance(rule, WSquare):
            shares = [(1, w[:, j] ** 2, bias**2)]
        elif isinstance(rule, Flat):
            shares = [(1, mask[:, j].astype(float), 0)]
        else:
            shares = [(1, terms - LOW * np.maximum(w[:, j], 0) - HIGH * np.minimum(w[:, j], 0), 0)]
        for factor, parts, own in shares:
            z = parts.sum() + own
            found += factor * r * parts / (z + (epsilon if z >= 0 else -epsilon))
    return found


def replica(rule, v, x, target):
    w, mask, b = as_matrix(v)
    hidden = np.maximum(x.ravel() @ w + b, 0)
    windows = hidden.reshape(2, 2, 2, 2, 3).transpose(0, 2, 4, 1, 3).reshape(12, 4)  # two rows, two columns each
    pooled = windows.max(1)
    logits = pooled @ v["dense"] + v["out"]
    dense = [v["dense"], np.ones((12, 2), bool), v["out"]]
    dense_rule = Epsilon(1e-6) if isinstance(rule, ZBox) else rule
    relevance = shared(dense_rule, pooled, *dense, logits * (np.arange(2) == target))
    below = np.zeros((12, 4))
    below[np.arange(12), windows.argmax(1)] = relevance
    below = below.reshape(2, 2, 3, 2, 2).transpose(0, 3, 1, 4, 2).ravel()
    return shared(rule, x.ravel(), w, mask, b, below).reshape(x.shape)


@pytest.mark.parametrize("name", RULES)
def test_every_rule_is_its_formula_on_the_merged_layers(name, given):
    v, x = given
    rule = RULES[name]
    composite = Composite(conv=rule, dense=Epsilon() if name == "box" else rule)
    bounds = {"low": LOW, "high": HIGH} if name == "box" else {}
    with jax.enable_x64(True):
        found = lrp(explainable(net, v), jnp.asarray(x), composite=composite, **bounds)
        for k in range(2):
            np.testing.assert_allclose(found.contributions[0, k], replica(rule, v, x, k)[0], rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(found.residual, found.logits - found.contributions.sum((2, 3, 4)), atol=1e-12)


def test_deep_lift_is_its_formula_and_complete(given):
    v, x = given
    base = np.full_like(x, 0.2)
    w, _, b = as_matrix(v)
    a, a0 = (value.ravel() @ w + b for value in (x, base))

    def windows(a):
        return np.maximum(a, 0).reshape(2, 2, 2, 2, 3).transpose(0, 2, 4, 1, 3).reshape(12, 4)

    with jax.enable_x64(True):
        found = deep_lift(explainable(net, v), jnp.asarray(x), baseline=0.2)
    for k in range(2):
        change = np.zeros((12, 4))  # of the activations before pooling, by the way that it takes
        for p, (own, start) in enumerate(zip(windows(a), windows(a0), strict=True)):
            rise = own.max() - start.max()
            change[p, own.argmax() if rise > 0 else start.argmax()] = rise * v["dense"][p, k]
        change = change.reshape(2, 2, 3, 2, 2).transpose(0, 3, 1, 4, 2).ravel()
        expected = sum(w[:, j] * change[j] / (a[j] - a0[j]) for j in range(48)) * (x - base).ravel()
        np.testing.assert_allclose(found.contributions[0, k].ravel(), expected, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(found.residual, 0, atol=1e-12)


def test_guided_backpropagation_is_its_formula(given):
    v, x = given
    w, _, b = as_matrix(v)
    a = x.ravel() @ w + b
    with jax.enable_x64(True):
        found = guided_backpropagation(explainable(net, v), jnp.asarray(x), 1).contributions
        back = jax.grad(lambda h: maxima(h).ravel() @ v["dense"][:, 1])(
            jnp.asarray(np.maximum(a, 0).reshape(1, 4, 4, 3))
        )
    expected = w @ ((a > 0) * np.maximum(np.asarray(back).ravel(), 0))
    np.testing.assert_allclose(found.ravel(), expected, rtol=1e-10, atol=1e-12)


def test_the_first_layer_alone_has_the_first_rule(given):
    v, x = given
    with jax.enable_x64(True):
        mixed = lrp(explainable(net, v), jnp.asarray(x), composite=Composite(first=Flat())).contributions
        whole = lrp(explainable(net, v), jnp.asarray(x), composite=Composite(conv=Flat())).contributions
        box = lrp(explainable(net, v), jnp.asarray(x), composite=Composite(first=ZBox()), low=LOW, high=HIGH)
    np.testing.assert_allclose(mixed, whole, rtol=1e-10)
    np.testing.assert_allclose(box.contributions[0, 1], replica(ZBox(), v, x, 1)[0], rtol=1e-8, atol=1e-10)


# The same function, written and wrapped in other ways

WEIGHTS = {
    name: jax.random.normal(key, (4, 4)) / 2
    for name, key in zip("abc", jax.random.split(jax.random.key(7), 3), strict=True)
}
X = jax.random.normal(jax.random.key(8), (3, 4))


def block(w, x):
    return x + jax.nn.gelu(x @ w, approximate=False)


@jax.custom_vjp
def _named(w, x):
    return block(w, x)


_named.defvjp(lambda w, x: (_named(w, x), None), lambda _, r: (None, r))


def chain(step):
    return lambda x: step(WEIGHTS["c"], step(WEIGHTS["b"], step(WEIGHTS["a"], x)))


def scanned(x):
    return lax.scan(lambda x, w: (block(w, x), None), x, jnp.stack([WEIGHTS[name] for name in "abc"]))[0]


WRAPPED = {
    "jit": jax.jit(chain(jax.jit(block))),
    "remat": chain(jax.checkpoint(block)),
    "scan": scanned,
    "vmap": jax.vmap(chain(block)),
    "custom_vjp": chain(_named),
    "cond": chain(lambda w, x: lax.cond(w.sum() > -99.0, block, lambda w, x: x, w, x)),
}


@pytest.mark.parametrize("name", WRAPPED)
@pytest.mark.parametrize("composite", ["alpha", "epsilon", "deep_lift", "first", "guided"])
def test_wrappers_change_nothing(name, composite):
    chosen = {
        "alpha": Composite(dense=AlphaBeta(2.0, 1.0)),
        "epsilon": COMPOSITES["epsilon"],
        "deep_lift": RESCALE,
        "first": Composite(first=Flat()),
        "guided": Guided(),
    }[composite]

    def back(function):
        def run(x):
            return with_references(function, chosen, (x,), [(jnp.zeros_like(x),)] if composite == "deep_lift" else [])[
                0
            ]

        out, pullback = jax.vjp(run, X)
        return out, jax.vmap(pullback)(jnp.stack([out, jnp.ones_like(out)]))[0]

    for found, plain in zip(jax.jit(lambda: back(WRAPPED[name]))(), back(chain(block)), strict=True):
        np.testing.assert_allclose(found, plain, rtol=2e-4, atol=1e-5)


def test_the_first_turn_of_a_loop_has_the_first_rule():
    def loop(x, reverse=False, steps=lax.scan):
        def turn(carry, w):
            start, h = carry
            return (start, h @ w + start), h[:, 0]

        weights = jnp.stack([WEIGHTS[name] for name in "abc"])
        (_, h), firsts = steps(turn, (x, jax.nn.relu(x)), weights, reverse=reverse)
        return h + firsts.sum(0)[:, None]

    def unrolled(turn, carry, weights, reverse):
        firsts = []
        for w in weights[::-1] if reverse else weights:
            carry, first = turn(carry, w)
            firsts.append(first)
        return carry, jnp.stack(firsts[::-1] if reverse else firsts)

    for reverse in (False, True):
        for first in (ZBox(), Flat()):
            bounds = {"low": -3, "high": 3} if isinstance(first, ZBox) else {}
            found, plain = (
                lrp(lambda x, steps=steps, r=reverse: loop(x, r, steps), X, composite=Composite(first=first), **bounds)
                for steps in (lax.scan, unrolled)
            )
            np.testing.assert_allclose(found.contributions, plain.contributions, rtol=1e-4, atol=1e-5)

    def delayed(x):
        def turn(carry, w):
            start, h, last = carry
            return (last, start @ w, h), None

        return lax.scan(turn, (x, x, x), jnp.stack([WEIGHTS["a"]] * 3))[0][0]

    with pytest.raises(ConfigError, match=r"^composite: got a rule of the first layer"):
        lrp(delayed, X, composite="epsilon_plus_flat")


def test_activations_are_read_from_operations_however_they_are_written_or_reused():
    def written(relu):
        return lambda x: relu(relu(x @ WEIGHTS["a"]) @ WEIGHTS["b"])

    once = nn.relu
    for relu in (
        once,
        lambda x: jnp.maximum(x, 0),
        lambda x: jnp.where(x > 0, x, 0),
        lambda x: x * (x > 0).astype(x.dtype),
    ):
        for method in (lrp, guided_backpropagation, deep_lift):
            np.testing.assert_allclose(
                method(written(relu), X).contributions, method(written(once), X).contributions, rtol=1e-5, atol=1e-6
            )


@pytest.mark.parametrize("act", [jax.nn.hard_swish, lambda x: jax.nn.relu(x) * jax.nn.relu(x)])
def test_products_of_thresholds_are_no_relus(act):
    x = jnp.array([[-1.0, 0.5, 4.0]])
    for method in (guided_backpropagation, deconvolution):
        found = method(lambda x: -act(x), x).contributions
        np.testing.assert_allclose(found[0], -jax.jacobian(act)(x[0]), rtol=1e-5, atol=1e-6)
    masked = guided_backpropagation(lambda x: -(x * jnp.where(x > 0, 1, 0.5)), x)
    assert not masked.contributions.any()


SELECTED = {
    "leaky_relu": (jax.nn.leaky_relu, lambda x: jnp.maximum(x, 0.01 * x)),
    "prelu": (lambda x: jnp.where(x > 0, x, 0.1 * x), lambda x: jnp.maximum(x, 0.1 * x)),
    "elu": (jax.nn.elu, lambda x: jnp.where(x > 0, x, jnp.expm1(x))),
    "celu": (jax.nn.celu, lambda x: jnp.maximum(x, 0) + jnp.expm1(jnp.minimum(x, 0))),
    "indices": (lambda x: jnp.take_along_axis(x, jnp.array([[0, -1, 1, 0]] * 3), 1), lambda x: x[:, [0, 3, 1, 0]]),
}
METHODS = [lrp, deep_lift, guided_backpropagation, deconvolution, excitation_backprop]


@pytest.mark.parametrize("name", SELECTED)
@pytest.mark.parametrize("method", METHODS)
def test_activations_and_indices_that_are_selections(name, method):
    found, plain = (
        method(lambda x, act=act: act(x @ WEIGHTS["a"]) @ WEIGHTS["b"], X, 1).contributions for act in SELECTED[name]
    )
    np.testing.assert_allclose(found, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_a_layer_of_embeddings_is_looked_up(method):
    class Words(nn.Module):
        @nn.compact
        def __call__(self, ids):
            table = self.param("table", nn.initializers.normal(1.0), (5, 4))
            return nn.Dense(2)(nn.relu(nn.Dense(4, name="hidden")(nn.Dense(4, name="embed")(table[ids]))).sum(1))

    ids = jnp.array([[0, 4, -1], [2, 2, 1]])
    net = explainable(Words(), Words().init(jax.random.key(0), ids))
    assert method(net, ids, 1, layer="embed").contributions.shape == (2, 1, 3, 4)


def halved(x):
    return x.reshape(len(x), 2, 2, 2, 2, -1).mean((2, 4)).reshape(len(x), -1)


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(4, (2, 2))(x)))
        return nn.Dense(2)(halved(x))


def test_batchnorm_merged_by_hand_is_batchnorm():
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 2))
    v = Linen().init(jax.random.key(1), x)
    stats, norm = v["batch_stats"]["BatchNorm_0"], v["params"]["BatchNorm_0"]
    stats["mean"], stats["var"] = jnp.arange(4.0), jnp.arange(1.0, 5)
    norm["scale"], norm["bias"] = jnp.array([1.0, -2.0, 0.5, 1.0]), jnp.array([0.5, 1.0, -1.0, 0.0])
    factor = norm["scale"] / jnp.sqrt(stats["var"] + 1e-5)
    kernel = v["params"]["Conv_0"]["kernel"] * factor[None, None, None]
    bias = (v["params"]["Conv_0"]["bias"] - stats["mean"]) * factor + norm["bias"]

    def merged(x):
        h = jax.nn.relu(lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
                        + bias[None, None, None])  # fmt: skip
        dense = v["params"]["Dense_0"]
        return halved(h) @ dense["kernel"] + dense["bias"][None]

    for composite in ("epsilon_plus_flat", "epsilon_gamma_box", "epsilon_alpha2_beta1"):
        bounds = {"low": -3, "high": 3} if "box" in composite else {}
        found, plain = (lrp(net, x, composite=composite, **bounds) for net in (explainable(Linen(), v), merged))
        np.testing.assert_allclose(found.contributions, plain.contributions, rtol=1e-3, atol=1e-5)


def test_frameworks_agree():
    key = jax.random.key(0)
    x = jax.random.normal(jax.random.key(1), (2, 4, 4, 2))
    kernel, dense = jax.random.normal(key, (2, 2, 2, 3)), jax.random.normal(key, (27, 2))
    bias = jnp.array([0.1, -0.2, 0.3])

    def function(x):
        h = jax.nn.relu(convolved(x, kernel) + bias[None, None, None])
        return h.reshape(len(x), -1) @ dense

    class Equinox(equinox.Module):
        conv: equinox.nn.Conv2d
        dense: equinox.nn.Linear

        def __call__(self, x):
            h = jax.nn.relu(self.conv(jnp.moveaxis(x, -1, 0)))
            return self.dense(jnp.moveaxis(h, 0, -1).ravel())

    eqx = Equinox(equinox.nn.Conv2d(2, 3, 2, key=key), equinox.nn.Linear(27, 2, use_bias=False, key=key))
    new = kernel.transpose(3, 2, 0, 1), bias[:, None, None], dense.T
    eqx = equinox.tree_at(lambda m: (m.conv.weight, m.conv.bias, m.dense.weight), eqx, new)

    class NNX(nnx.Module):
        def __init__(self):
            self.conv = nnx.Conv(2, 3, (2, 2), padding="VALID", rngs=nnx.Rngs(0))
            self.dense = nnx.Linear(27, 2, use_bias=False, rngs=nnx.Rngs(0))
            self.conv.kernel[...], self.conv.bias[...], self.dense.kernel[...] = kernel, bias, dense

        def __call__(self, x):
            return self.dense(nnx.relu(self.conv(x)).reshape(len(x), -1))

    plain = {c: lrp(function, x, composite=c).contributions for c in ("epsilon_plus_flat", "epsilon_alpha2_beta1")}
    for net in (eqx, NNX()):
        for composite, expected in plain.items():
            found = lrp(explainable(net), x, composite=composite).contributions
            np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)


# Attention, norms, products


def attention(x):
    q, k, v = (x @ WEIGHTS[name][None].astype(x.dtype) for name in "abc")
    weights = jax.nn.softmax(q @ k.transpose(0, 2, 1))
    h = x + weights @ v
    return ((h - h.mean(-1, keepdims=True)) * lax.rsqrt(h.var(-1, keepdims=True) + 1e-6))[:, 0]


TOKENS = jax.random.normal(jax.random.key(9), (2, 3, 4))


def test_attention_with_softmax_held_and_the_norm_an_identity_conserves():
    with jax.enable_x64(True):
        found = lrp(attention, TOKENS.astype(float), composite="epsilon")
    np.testing.assert_allclose(found.residual, 0, atol=1e-4)


def test_softmax_and_products_have_attention_rules():
    composite = COMPOSITES["attention"]
    s, back = jax.vjp(rules(jax.nn.softmax, composite), X)
    r = jnp.linspace(-1, 1, 12).reshape(3, 4)
    np.testing.assert_allclose(back(r)[0], X * (r - s * r.sum(1, keepdims=True)), rtol=1e-4, atol=1e-6)
    out, back = jax.vjp(rules(lambda a, b: a @ b, composite), X, WEIGHTS["a"])
    ratio = out / (2 * out)
    np.testing.assert_allclose(back(out)[0], X * (ratio @ WEIGHTS["a"].T), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(back(out)[1], WEIGHTS["a"] * (X.T @ ratio), rtol=1e-4, atol=1e-5)


COMPLETE = {
    "attention": attention,
    "log_softmax": lambda x: jax.nn.log_softmax(x.sum(1)),
    "maximum": lambda x: jnp.tanh(x).max((1, 2))[:, None],
    "minimum, quotient": lambda x: x.min(1) / (1 + jnp.exp(x[:, 0])) * x[:, 1],
}


@pytest.mark.parametrize("function", COMPLETE.values(), ids=COMPLETE)
def test_deep_lift_is_complete_through_softmax_norms_products_and_maxima(function):
    with jax.enable_x64(True):
        found = deep_lift(function, TOKENS.astype(float), baseline=0.3 * np.roll(TOKENS, 1, 1))
    np.testing.assert_allclose(found.residual, 0, atol=1e-9)


def test_what_has_no_rule_is_named_with_its_module():
    class Product(nn.Module):
        @nn.compact
        def __call__(self, x):
            return jnp.prod(nn.Dense(3)(x), axis=1, keepdims=True)

    x = jnp.ones((2, 4))
    with pytest.raises(ConfigError, match=r"^network: got reduce_prod in .*Product.*, expected"):
        lrp(explainable(Product(), Product().init(jax.random.key(0), x)), x)
    with pytest.raises(ConfigError, match=r"^network: got gather in .*, whose indices .* depend on the input"):
        deep_lift(lambda x: jnp.take_along_axis(x, x.argmax(1, keepdims=True), 1), x)
    with pytest.raises(ConfigError, match=r"^network: got while in"):
        deep_lift(lambda x: lax.fori_loop(0, x.shape[1], lambda i, h: lax.while_loop(
            lambda h: h.sum() < 0, lambda h: h + 1, h), x), x)  # fmt: skip
    with pytest.raises(ConfigError, match=r"^network: got an output .* held"):
        lrp(jax.nn.softmax, x)
