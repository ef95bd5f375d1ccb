"""Decomposition: complete, equal to a dense Jacobian, the same for any chunking, compiled once, refused when wrong."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxinterp.coda.network import CoDANet, encode
from jaxinterp.explain.decompose import decompose, select_targets
from jaxinterp.explain.tracing import activation_names, footprint

MODEL = CoDANet((4, 5, 3), (3, 2, 2), (3, 3, 1), (1, 2, 1), temperature=2.0)
IMAGES = jax.random.uniform(jax.random.key(0), (5, 6, 6, 1))
VARIABLES = jax.jit(MODEL.init)(jax.random.key(1), IMAGES)


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
        variables, e = jax.tree.map(lambda a: jnp.asarray(np.asarray(a, np.float64)), (VARIABLES, encode(IMAGES)))
        layers = [None, "layer_0", "layer_1", "layer_2"]
        for parts in decompose(frozen, e, layer=layers, variables=variables, check=False):
            size = np.abs(parts.logits).max()
            assert parts.weights.dtype == jnp.float64
            assert np.abs(parts.residual).max() <= 1e-10 * size
            # The bias is known: the sum of contributions is the logit less b_0 at every level.
            evidence = np.asarray(parts.contributions).reshape(5, 3, -1).sum(-1)
            want = np.asarray(parts.logits) - MODEL.logit_bias
            np.testing.assert_allclose(evidence, want, rtol=0, atol=1e-10 * size)


def test_a_list_of_levels_is_explained_in_one_program():
    e, levels, targets = encode(IMAGES), ["layer_1", None], [2, 0, 1, 1, 2]
    together = decompose(frozen, e, targets, layer=levels, variables=VARIABLES, max_bytes=20_000)
    for parts, at in zip(together, levels, strict=True):
        alone = decompose(frozen, e, layer=at, variables=VARIABLES)
        chosen = jax.tree.map(lambda a: np.asarray(a)[np.arange(5), targets][:, None], alone)
        chex.assert_trees_all_close(parts, chosen, rtol=1e-4, atol=1e-6)


def test_equals_the_dense_jacobian_of_the_frozen_function():
    e = encode(IMAGES)
    parts = decompose(frozen, e, variables=VARIABLES)
    jacobian = jax.jit(jax.vmap(jax.jacobian(lambda x: frozen(VARIABLES, x[None])[0])))(e)
    np.testing.assert_allclose(parts.weights, jacobian, rtol=1e-4, atol=1e-7)


def test_a_relu_network_is_decomposed_as_it_is():
    net, x = ReluNet(), jax.random.normal(jax.random.key(3), (2, 4, 4, 2))
    variables = jax.jit(net.init)(jax.random.key(4), x)
    *parts, head = decompose(net.apply, x, variables=variables, layer=[None, "Conv_0", "inner", "head"])
    for part in parts:
        assert np.abs(part.residual).max() <= 1e-4 * np.abs(part.logits).max()
    np.testing.assert_allclose(head.weights, np.broadcast_to(np.eye(3), (2, 3, 3)))


@pytest.mark.slow
def test_chunks_targets_closures_and_jit_agree():
    e = encode(IMAGES)
    whole = decompose(frozen, e, variables=VARIABLES)
    chex.assert_trees_all_close(
        decompose(frozen, e, variables=VARIABLES, max_bytes=20_000), whole, rtol=1e-5, atol=1e-6
    )
    chex.assert_trees_all_close(decompose(lambda x: frozen(VARIABLES, x), e), whole, rtol=1e-4, atol=1e-6)
    chex.assert_trees_all_close(
        jax.jit(lambda v, x: decompose(frozen, x, variables=v))(VARIABLES, e), whole, rtol=1e-4, atol=1e-6
    )
    one = decompose(frozen, e, jnp.array([0, 2, 1, 1, 0]), variables=VARIABLES)
    assert one.weights.shape == (5, 1, 6, 6, 2)
    np.testing.assert_allclose(one.weights[1, 0], whole.weights[1, 2], rtol=1e-4, atol=1e-7)


def test_a_second_call_traces_nothing():
    traces, at = [], "layer_1"

    def counted(variables, x):
        traces.append(x.shape)
        return frozen(variables, x)

    e = encode(IMAGES)
    decompose(counted, e, layer=at, variables=VARIABLES)
    before = len(traces)
    other = jax.tree.map(lambda a: 2 * a, VARIABLES)
    again = decompose(counted, 1 - e, layer=at, variables=other)
    assert len(traces) == before
    chex.assert_trees_all_equal(again, decompose(frozen, 1 - e, layer=at, variables=other))  # its values are its own
    decompose(counted, e[:3], layer=at, variables=VARIABLES)
    assert len(traces) > before


def test_what_decides_a_shape_is_not_taken_for_another():
    def cut(variables, count, x):
        return MODEL.apply(variables, x[:, :, :, :count], encoded=True, frozen=True)

    e = encode(IMAGES)
    named = {"layer_0": (5, 6, 6, 4), "layer_1": (5, 3, 3, 5), "layer_2": (5, 3, 3, 3)}
    for call in (jax.tree_util.Partial(cut, VARIABLES, 2), jax.tree_util.Partial(frozen, VARIABLES)):
        found = activation_names(call, e)
        assert found == named
        found.clear()
        assert activation_names(call, e) == named

    def wide(variables, x):
        return jnp.zeros(x.shape, float) + variables.astype(float)

    sizes = []
    for on in (False, True):
        with jax.enable_x64(on):
            sizes.append(footprint(jax.tree_util.Partial(wide, np.float32(1.0)), np.ones((2, 3), np.float32)))
    assert sizes[1].largest == 2 * sizes[0].largest


def test_names_of_activations():
    names = activation_names(lambda e: frozen(VARIABLES, e), encode(IMAGES))
    assert names == {"layer_0": (5, 6, 6, 4), "layer_1": (5, 3, 3, 5), "layer_2": (5, 3, 3, 3)}


@pytest.mark.parametrize(
    ("message", "model", "change"),
    [
        ("variables", MODEL.apply, {"variables": None}),
        ("model: got the model CoDANet", MODEL, {}),
        ("layer", None, {"layer": "layer_9"}),
        ("layer", None, {"layer": [None, "layer_9"]}),
        ("layer", None, {"layer": []}),
        ("layer", None, {"layer": [None, None]}),
        ("targets", None, {"targets": 7}),
        ("targets", None, {"targets": [0, 1]}),
        ("targets", None, {"targets": np.zeros((5, 0), int)}),
        ("x", None, {"x": jnp.ones((2, 3), jnp.int32)}),
        ("x", None, {"x": encode(IMAGES)[:0]}),
        ("x", None, {"x": encode(IMAGES).at[3, 0, 0, 0].set(jnp.nan)}),
        ("max_bytes", None, {"max_bytes": 0}),
        ("model: got second derivative nan", lambda v, x: jnp.sqrt(x - x), {"x": jnp.ones((2, 3))}),
        ("model: got output", lambda v, x: x.sum(-1), {"x": jnp.ones((2, 3))}),
        (".* not affine at x", lambda v, x: MODEL.apply(v, x, encoded=True), {}),
    ],
)
def test_bad_input_is_one_line(message, model, change):
    arguments = {"x": encode(IMAGES), "variables": VARIABLES, **change}
    with pytest.raises(ValueError, match=rf"\A{message}.*\Z"):
        decompose(frozen if model is None else model, **arguments)


def test_select_targets():
    assert select_targets(1, 3, 4).tolist() == [[1], [1], [1]]
    assert select_targets(np.array([[0, 3], [1, 1]]), 2, 4).tolist() == [[0, 3], [1, 1]]
    with pytest.raises(ValueError, match="expected integers"):
        select_targets(np.array([0.5]), 1, 4)
