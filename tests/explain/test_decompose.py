"""Decomposition: complete, equal to a dense Jacobian, the same for any chunking, compiled once, refused when wrong."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxinterp.coda.network import CoDANet, encode
from jaxinterp.explain.decompose import CURVATURE, decompose
from jaxinterp.explain.explainable import explainable

MODEL = CoDANet((4, 5, 3), (3, 2, 2), (3, 3, 1), (1, 2, 1), temperature=2.0)
IMAGES = jax.random.uniform(jax.random.key(0), (5, 6, 6, 1))
VARIABLES = jax.jit(MODEL.init)(jax.random.key(1), IMAGES)
NET = explainable(MODEL, VARIABLES)


def frozen(variables, e):
    return MODEL.apply(variables, e, frozen=True, encoded=True)


class ReluNet(nn.Module):
    """A user's own network: convolution, batch statistics, a skip, max pooling."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(4, (3, 3), padding=((1, 1), (1, 1)))(x)
        x = nn.BatchNorm(use_running_average=not train)(x)
        x = nn.relu(x)
        x = x + nn.relu(nn.Conv(4, (3, 3), padding=((1, 1), (1, 1)), name="inner")(x))
        x = nn.max_pool(x, (2, 2), (2, 2))
        return nn.Dense(3, name="head")(x.reshape(x.shape[0], -1))


def test_complete_at_every_layer():
    with jax.enable_x64(True):
        variables, x = jax.tree.map(lambda a: jnp.asarray(np.asarray(a, np.float64)), (VARIABLES, IMAGES))
        net = explainable(MODEL, variables)
        for parts in decompose(net, x, layer=["input", "layer_0", "layer_1", "layer_2"]):
            size = np.abs(parts.logits).max()
            assert parts.weights.dtype == jnp.float64
            assert np.abs(parts.residual).max() <= 1e-10 * size
            # The bias is known: the sum of contributions is the logit less b_0 at every level.
            evidence = np.asarray(parts.contributions).reshape(5, 3, -1).sum(-1)
            want = np.asarray(parts.logits) - MODEL.logit_bias
            np.testing.assert_allclose(evidence, want, rtol=0, atol=1e-10 * size)
            assert np.asarray(parts.curvature).max() == 0
            assert np.asarray(parts.discrepancy).max() < 1e-12


def test_a_list_of_levels_is_explained_in_one_program():
    levels, targets = ["layer_1", "input"], [2, 0, 1, 1, 2]
    together = decompose(NET, IMAGES, targets, layer=levels, max_bytes=20_000)
    for parts, at in zip(together, levels, strict=True):
        alone = decompose(NET, IMAGES, layer=at)
        assert parts.layer == alone.layer == at
        for name in ("contributions", "logits", "targets", "bias", "residual", "weights"):
            want = np.asarray(getattr(alone, name))[np.arange(5), targets][:, None]
            np.testing.assert_allclose(getattr(parts, name), want, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(parts.discrepancy, alone.discrepancy, atol=1e-6)


def test_equals_the_dense_jacobian_of_the_frozen_function():
    e = encode(IMAGES)
    parts = decompose(NET, IMAGES)
    jacobian = jax.jit(jax.vmap(jax.jacobian(lambda x: frozen(VARIABLES, x[None])[0])))(e)
    np.testing.assert_allclose(parts.weights, jacobian, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(parts.contributions, e[:, None] * jacobian, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(parts.logits, jax.jit(MODEL.apply)(VARIABLES, IMAGES), rtol=1e-5)


def test_a_relu_network_is_decomposed_as_it_is():
    module, x = ReluNet(), jax.random.normal(jax.random.key(3), (2, 4, 4, 2))
    net = explainable(module, jax.jit(module.init)(jax.random.key(4), x))
    *parts, head = decompose(net, x, layer=["input", "Conv_0", "inner", "head"])
    for part in parts:
        assert float(part.relative_residual.max()) <= 1e-5
        assert float(part.curvature.max()) == 0
    np.testing.assert_allclose(head.weights, np.broadcast_to(np.eye(3), (2, 3, 3)))
    np.testing.assert_allclose(head.bias, np.zeros((2, 3)), atol=1e-6)


@pytest.mark.slow
def test_chunks_targets_closures_and_jit_agree():
    e = encode(IMAGES)
    net = explainable(frozen, VARIABLES)
    whole = decompose(net, e)
    for other in (
        decompose(net, e, max_bytes=20_000),
        decompose(lambda x: frozen(VARIABLES, x), e),
        jax.jit(lambda v, x: decompose(explainable(frozen, v), x))(VARIABLES, e),
    ):
        chex.assert_trees_all_close(other, whole, rtol=1e-4, atol=1e-6)
    one = decompose(net, e, jnp.array([0, 2, 1, 1, 0]))
    assert one.weights.shape == (5, 1, 6, 6, 2)
    np.testing.assert_allclose(one.weights[1, 0], whole.weights[1, 2], rtol=1e-4, atol=1e-7)


def test_a_second_call_traces_nothing():
    traces, at = [], "layer_1"

    def counted(variables, x):
        traces.append(x.shape)
        return frozen(variables, x)

    e = encode(IMAGES)
    decompose(explainable(counted, VARIABLES), e, layer=at)
    before = len(traces)
    other = jax.tree.map(lambda a: 2 * a, VARIABLES)
    again = decompose(explainable(counted, other), 1 - e, layer=at)
    assert len(traces) == before
    want = decompose(explainable(frozen, other), 1 - e, layer=at)
    chex.assert_trees_all_equal(again, want)  # its values are its own
    decompose(explainable(counted, VARIABLES), e[:2], layer=at)
    assert len(traces) > before


# What is silently wrong elsewhere.

W = jax.random.normal(jax.random.key(5), (3, 2))
X = jax.random.normal(jax.random.key(6), (3, 3))


def refused(field, net, x=X, **given):
    """Return the line of a refusal, which is about one argument."""
    with pytest.raises(ValueError, match=rf"\A{field}: got .*\Z") as caught:
        decompose(net, x, **given)
    return str(caught.value)


def test_a_curved_network_is_refused_and_its_curvature_is_a_number():
    def cubed(x):
        return jax.nn.gelu(x @ W) ** 3

    net = explainable(cubed, freeze=False)
    assert "curvature" in refused("network", net)
    parts = decompose(net, X, check=False)
    assert float(parts.curvature.min()) > 100 * CURVATURE
    # Along x the identity holds for every function: the residual says nothing here.
    assert float(parts.relative_residual.max()) < 1e-5


def test_the_curved_example_is_named():
    def half(x):
        return jnp.where(x > 0, 2 * x, x**3)

    half = explainable(half, freeze=False)
    assert "at 1 of 2 examples (1)" in refused("network", half, jnp.array([[1.0], [-1.0]]))
    assert decompose(half, jnp.array([[1.0], [2.0]])).curvature.tolist() == [0.0, 0.0]


@pytest.mark.parametrize(("scale", "curved"), [([4.0, -5.0, 6.0, 7.0], []), ([4.0, 1.0, -5.0, -2.0], [1, 3])])
def test_a_hard_swish_is_affine_but_between_its_kinks(scale, curved):
    x = jnp.array(scale)[:, None]
    net = explainable(lambda x: jax.nn.hard_swish(x), freeze=False)
    assert np.flatnonzero(decompose(net, x, check=False).curvature > CURVATURE).tolist() == curved
    if curved:
        assert "2 of 4 examples (1, 3)" in refused("network", net, x)
    else:
        np.testing.assert_allclose(decompose(net, x).contributions[:, 0, 0], np.maximum(x[:, 0], 0), rtol=1e-6)


def test_examples_that_depend_on_one_another_are_noticed():
    class Normed(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            return nn.Dense(2)(nn.BatchNorm(use_running_average=not train)(x))

    variables = Normed().init(jax.random.key(0), X)
    decompose(explainable(Normed(), variables), X)

    def left_in_training(variables, x):
        return Normed().apply(variables, x, train=True, mutable=["batch_stats"])[0]

    refused("network", explainable(left_in_training, variables))
    assert "other examples" in refused("network", lambda x: (x - x.mean(0, keepdims=True)) @ W)
    assert len(decompose(lambda x: (x - x.mean(0, keepdims=True)) @ W, X, check=False)) == 3


def test_a_frozen_function_that_changes_the_value_is_refused():
    def free(w, x):
        return jnp.tanh(x @ w)

    def held(w, x):
        return (x @ w) * 0.5

    net = explainable(free, W, frozen=held)
    assert "discrepancy" in refused("frozen", net)
    parts = decompose(net, X, check=False)
    want = np.abs(held(W, X) - free(W, X)).max(1) / np.abs(free(W, X)).max(1)
    np.testing.assert_allclose(parts.discrepancy, want, rtol=1e-5)
    assert float(parts.curvature.max()) == 0


def test_wrong_weights_are_seen_where_the_bias_is_known():
    def free(w, x):
        return x @ w + 0.7

    def planted(w, x):  # the value is right and affine, the slope is twice the network's
        return 2 * (x @ w) - jax.lax.stop_gradient(x @ w) + 0.7

    right, wrong = (explainable(free, W, frozen=held, bias=0.7) for held in (free, planted))
    assert float(decompose(right, X).relative_residual.max()) < 1e-6
    parts = decompose(wrong, X, check=False)
    np.testing.assert_allclose(parts.residual, -(X @ W), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(parts.bias, jnp.full((3, 2), 0.7))
    assert float(parts.curvature.max()) == float(parts.discrepancy.max()) == 0
    hidden = decompose(explainable(free, W, frozen=planted), X)  # the bias is what is left
    assert float(hidden.relative_residual.max()) < 1e-6


def test_behind_a_curved_layer_a_network_is_affine():
    stages = {"features": lambda w, x: jax.nn.gelu(x @ w), "head": lambda w, a: jax.nn.relu(a @ w.T) + 1}
    net = explainable(stages, W, freeze=False)
    refused("network", net)
    parts = decompose(net, X, layer="features")
    values = jax.nn.gelu(X @ W)
    weights = jnp.where((values @ W.T > 0)[:, :, None], W[None], 0)
    np.testing.assert_allclose(parts.contributions, weights * values[:, None], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(parts.bias, jnp.ones((3, 3)), rtol=1e-5)
    assert float(parts.curvature.max()) == 0


def test_jit_grad_and_vmap_over_the_variables():
    def relu(w, x):
        return jax.nn.relu(x @ w)

    def first(w):
        return decompose(explainable(relu, w), X, 0).contributions

    want = jnp.where((X @ W > 0)[:, :1, None], W[None, :, :1].transpose(0, 2, 1), 0) * X[:, None]
    np.testing.assert_allclose(first(W), want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(jax.jit(first)(W), want, rtol=1e-5, atol=1e-6)
    both = jax.vmap(first)(jnp.stack([W, -W]))
    np.testing.assert_allclose(both, jnp.stack([want, first(-W)]), rtol=1e-5, atol=1e-6)
    slopes = jax.grad(lambda w: first(w).sum())(W)
    on = (X @ W > 0)[:, 0]
    np.testing.assert_allclose(slopes[:, 0], jnp.where(on[:, None], X, 0).sum(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(slopes[:, 1], jnp.zeros(3))


def test_nan_names_the_example():
    x = jnp.array([[1.0], [2.0], [-1.0]])
    assert "NaN at 1 of 3 examples (2)" in refused("logits", lambda x: jnp.where(x < 0, jnp.sqrt(x), x), x)
    assert np.isnan(decompose(lambda x: jnp.where(x < 0, jnp.sqrt(x), x), x, check=False).logits).sum() == 1
    assert "infinity" in refused("logits", lambda x: 3e38 * x, x)


LOOSE = explainable(lambda v, e: MODEL.apply(v, e, encoded=True), VARIABLES, freeze=False)


@pytest.mark.parametrize(
    ("field", "net", "change"),
    [
        ("variables", MODEL, {}),
        ("variables", MODEL.apply, {}),
        ("layer", NET, {"layer": "layer_9"}),
        ("layer", NET, {"layer": ["input", "layer_9"]}),
        ("layer", NET, {"layer": []}),
        ("layer", NET, {"layer": ["input", "input"]}),
        ("targets", NET, {"targets": 7}),
        ("targets", NET, {"targets": [0, 1]}),
        ("targets", NET, {"targets": np.zeros((5, 0), int)}),
        ("x", lambda x: x * 2, {"x": jnp.ones((2, 3), jnp.int32)}),
        ("x", NET, {"x": IMAGES[:0]}),
        ("x", NET, {"x": IMAGES.at[3, 0, 0, 0].set(jnp.nan)}),
        ("given", NET, {"given": [IMAGES[:2]]}),
        ("max_bytes", NET, {"max_bytes": 0}),
        ("logits", explainable(lambda x: jnp.sqrt(x - x), freeze=False), {"x": jnp.ones((2, 3))}),
        ("network", lambda x: jax.nn.softmax(x), {"x": jnp.ones((2, 3))}),
        ("network", lambda x: x.sum(-1), {"x": jnp.ones((2, 3))}),
        ("network", LOOSE, {"x": encode(IMAGES)}),
    ],
)
def test_bad_input_is_one_line(field, net, change):
    refused(field, net, **{"x": IMAGES, **change})
