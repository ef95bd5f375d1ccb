from functools import partial

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jax.scipy.stats import norm

from jaxinterp.explain.decompose import decompose
from jaxinterp.explain.explainable import explainable
from jaxinterp.explain.freeze import Freezing, curved_operations, freeze, held_operations
from jaxinterp.explain.program import mark, trace

rng = np.random.default_rng(0)
X = rng.normal(size=(2, 3, 4))
W, V = rng.normal(size=(2, 4, 4))


@pytest.fixture(autouse=True)
def wide():
    with jax.enable_x64(True):
        yield


def frozen(function, choices=None, x=X):
    """Return the frozen function, after checks that its value is the function's and its derivatives are affine."""
    x = jnp.asarray(x)
    model = trace(lambda variables, x: function(x), None, x, keep=False)
    affine = freeze(model, choices or Freezing())
    np.testing.assert_allclose(affine(x), function(x), rtol=1e-12, atol=1e-12)
    step = jnp.asarray(rng.normal(size=x.shape))
    slope, bent = jax.jvp(lambda x: jax.jvp(affine, (x,), (step,))[1], (x,), (step,))
    assert float(jnp.abs(bent).max()) == 0
    out, pullback = jax.vjp(affine, x)
    across = jnp.asarray(rng.normal(size=out.shape))
    np.testing.assert_allclose((pullback(across)[0] * step).sum(), (across * slope).sum(), rtol=1e-10)
    return affine


def moved(function, step=X, choices=None):
    """Return W(x) v."""
    return jax.jvp(frozen(function, choices), (jnp.asarray(X),), (jnp.asarray(step),))[1]


@pytest.mark.parametrize(
    ("function", "factor"),
    [
        (partial(jax.nn.gelu, approximate=False), norm.cdf),
        (lambda x: x * 0.5 * (1 + jax.lax.erf(x / jnp.sqrt(2.0))), norm.cdf),
        (jax.nn.silu, jax.nn.sigmoid),
        (jax.nn.hard_swish, lambda x: jnp.clip(x + 3, 0, 6) / 6),
        (jax.nn.softplus, lambda x: (jnp.logaddexp(x, 0) - jnp.log(2)) / x),
        (lambda x: jnp.log(1 + jnp.exp(x)), lambda x: (jnp.logaddexp(x, 0) - jnp.log(2)) / x),
        (lambda x: x * jnp.tanh(jax.nn.softplus(x)), lambda x: jnp.tanh(jnp.logaddexp(x, 0))),
        (jnp.tanh, lambda x: jnp.tanh(x) / x),
        (lambda x: x**3, lambda x: x**2),
        (jax.nn.sigmoid, lambda x: (jax.nn.sigmoid(x) - 0.5) / x),
    ],
)
def test_an_activation_is_a_held_factor_of_its_input(function, factor):
    v = rng.normal(size=X.shape)
    np.testing.assert_allclose(moved(function, v), factor(X) * v, rtol=1e-9, atol=1e-12)
    slope = jax.jvp(function, (jnp.asarray(X),), (jnp.asarray(v),))[1]
    np.testing.assert_allclose(moved(function, v, Freezing(activation="tangent")), slope, rtol=1e-12)
    assert not moved(function, v, Freezing(activation="hold")).any()


def test_near_zero_the_factor_is_the_derivative():
    at = jnp.array([[0.0, 1e-300, 1e-12, -1e-9, 1e-7]])
    model = trace(lambda variables, x: jax.nn.softplus(x), None, at, keep=False)
    factor = jax.jvp(freeze(model, Freezing()), (at,), (jnp.ones_like(at),))[1]
    np.testing.assert_allclose(factor, 0.5 + at / 8, rtol=1e-12)
    root = trace(lambda variables, x: jnp.sqrt(x), None, at[:, :2], keep=False)  # no finite factor at 0
    assert np.isfinite(jax.jvp(freeze(root, Freezing()), (at[:, :2],), (at[:, :2],))[1]).all()


def test_norms_hold_their_size():
    def layer_norm(x):
        return (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, keepdims=True) + 1e-6) * 2 + 0.5

    np.testing.assert_allclose(moved(layer_norm), layer_norm(jnp.asarray(X)) - 0.5, rtol=1e-10)
    v = rng.normal(size=X.shape)
    size = np.sqrt(np.square(X).sum(-1, keepdims=True))
    np.testing.assert_allclose(moved(lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True), v), v / size)


def attention(x):
    weights = jax.nn.softmax((x @ W) @ jnp.swapaxes(x @ V, 1, 2))
    return weights @ (x @ W)


def test_attention_holds_its_weights():
    v = rng.normal(size=X.shape)
    weights = jax.nn.softmax((X @ W) @ np.swapaxes(X @ V, 1, 2))
    np.testing.assert_allclose(moved(attention, v), weights @ (v @ W), rtol=1e-10)
    model = trace(lambda variables, x: attention(x), None, jnp.asarray(X), keep=False)
    assert [held[1:] for held in held_operations(model, Freezing())] == [("softmax", 1)]
    each = Freezing(coefficient="tangent", product="tangent", activation="tangent")
    slope = jax.jvp(attention, (jnp.asarray(X),), (jnp.asarray(v),))[1]
    np.testing.assert_allclose(moved(attention, v, each), slope, rtol=1e-9, atol=1e-12)


def test_choices_of_a_product():
    def swiglu(x):
        return jax.nn.silu(x @ W) * (x @ V)

    v = rng.normal(size=X.shape)
    p, q = X @ W, X @ V
    gate, factor = p * jax.nn.sigmoid(p), jax.nn.sigmoid(p)
    second = factor * (v @ W) * q
    for choice, want in {
        "gate": gate * (v @ V),
        "first": gate * (v @ V),
        "second": second,
        "share": (gate * (v @ V) + second) / 2,
        "tangent": gate * (v @ V) + second,
    }.items():
        np.testing.assert_allclose(moved(swiglu, v, Freezing(product=choice)), want, rtol=1e-9, err_msg=choice)


def test_programs_within_are_rewritten_and_layers_stay_layers():
    def turn(carry, w):
        return mark("turn", jax.nn.gelu(carry @ w, approximate=False)), carry

    def scanned(x):
        return jax.lax.scan(turn, x, jnp.stack([W, V]))[0]

    first = norm.cdf(X @ W) * (X @ W)
    v = rng.normal(size=X.shape)
    want = norm.cdf(first @ V) * ((norm.cdf(X @ W) * (v @ W)) @ V)
    np.testing.assert_allclose(moved(scanned, v), want, rtol=1e-9)
    np.testing.assert_allclose(moved(jax.checkpoint(scanned), v), want, rtol=1e-9)
    model = trace(lambda variables, x: scanned(x), None, jnp.asarray(X), keep=False)
    assert freeze(model, Freezing()).program.layers == model.program.layers
    assert [held.times for held in held_operations(model, Freezing())] == [2]
    np.testing.assert_allclose(moved(jax.vmap(lambda x: jnp.tanh(x) @ W), v), np.tanh(X) / X * v @ W, rtol=1e-9)
    for sign in (1, -1):
        branch = partial(jax.lax.cond, sign > 0, jnp.tanh, jnp.negative)
        np.testing.assert_allclose(moved(branch, v), np.tanh(X) / X * v if sign > 0 else -v, rtol=1e-9)


def test_a_piecewise_affine_program_is_the_same_object():
    def net(variables, x):
        return jax.nn.relu(x @ W).max(1)

    model = trace(net, None, jnp.asarray(X))
    assert freeze(model, Freezing()) is model
    wrapped = explainable(net, {})
    x = jnp.asarray(X)
    assert wrapped.program("frozen", x).program is wrapped.program("logits", x).program
    assert wrapped.held_operations(x) == ()


def test_it_is_rewritten_once_for_each_choice():
    net = explainable(lambda w, x: jnp.tanh(x @ w).mean(1), jnp.asarray(W))
    x = jnp.asarray(X)
    assert net.program("frozen", x).program is net.program("frozen", x).program
    other = explainable(net, freeze=Freezing("tangent"))
    assert other.program("frozen", x).program is not net.program("frozen", x).program
    parts = decompose(other, x)
    slopes = jax.jacrev(lambda x: net.logits(x[None])[0])(x[0])
    np.testing.assert_allclose(parts.weights[0], slopes, rtol=1e-9)


def test_a_frozen_version_of_its_own_is_trusted():
    net = explainable(lambda w, x: jnp.tanh(x @ w).mean(1), jnp.asarray(W), frozen=lambda w, x: jnp.tanh(x @ w).mean(1))
    assert net.rewriting is None
    with pytest.raises(ValueError, match=r"\Anetwork: got curvature"):
        decompose(net, jnp.asarray(X))


def test_what_cannot_be_frozen_is_named():
    def net(x):
        with jax.named_scope("pool"):
            return jnp.cumprod(x, axis=1)[:, -1]

    with pytest.raises(ValueError, match=r"\Anetwork: got curvature .* cumprod in pool"):
        decompose(net, jnp.asarray(X))
    model = trace(lambda variables, x: jnp.cumprod(jnp.tanh(x), axis=1), None, jnp.asarray(X), keep=False)
    assert curved_operations(model) == ["cumprod"]


@pytest.mark.parametrize("field", ["activation", "coefficient", "product"])
def test_bad_input_is_one_line(field, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=rf"\A{field}: got none of these.*\Z"):
        Freezing(**{field: "none of these"})
    with pytest.raises(ValueError, match=r"\Afreeze: got str.*\Z"):
        explainable(jnp.tanh, freeze="secant")
    with pytest.raises(ValueError, match=r"\Afreeze: got True.*\Z"):
        explainable(jnp.tanh, frozen=jnp.tanh, freeze=True)
