"""Gated networks: path enumeration, regimes that are settings, the freeze contract."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinterp.errors import ConfigError
from jaxinterp.explain.decompose import decompose
from jaxinterp.explain.explainable import explainable
from jaxinterp.gated.architecture import (
    AvgPool,
    BatchNorm,
    Conv,
    Dense,
    Flatten,
    Gate,
    Residual,
    c4gap,
    fan_ins,
    fc,
    gate_shapes,
    iter_layers,
    output_shape,
    resnet,
    vconv,
    vgg16,
)
from jaxinterp.gated.network import (
    GatedNetwork,
    GatingNetwork,
    Network,
    open_gates,
    tile_and_roll,
    weight_initializer,
)

KEYS = jax.random.split(jax.random.key(0), 4)
SMALL = {
    "fc": (fc(6, 3, classes=3, bias=True), (4,)),
    "c4gap": (c4gap(4, classes=3, depth=2), (5, 6, 2)),
    "vconv": (
        (Conv(3, bias=True), Gate(), Conv(4), Gate(), Flatten(), Dense(5, True), Gate(), Dense(3, True)),
        (4, 4, 2),
    ),
    "vgg": ((*vgg16(3, width=2)[:7], AvgPool((2, 2)), Flatten(), Dense(3)), (8, 8, 2)),
    "resnet": (resnet(8, 3, width=2), (8, 8, 2)),
}


def built(name, **fields):
    layers, shape = SMALL[name]
    x = jax.random.uniform(KEYS[0], (3, *shape))
    net = GatedNetwork(layers, **fields)
    return net, jax.jit(net.init)(KEYS[1], x), x


def test_a_path_is_an_input_its_gates_and_its_weights():
    with jax.enable_x64(True):
        layers = (Dense(3), Gate(), Dense(2), Gate(), Dense(2))
        x = jax.random.normal(KEYS[0], (4, 2), jnp.float64)
        net = GatedNetwork(layers, gating="linear", hard=True, param_dtype=jnp.float64)
        variables = net.init(KEYS[1], x)
        gates = net.apply(variables, x, method="gates")
        theta = [variables["params"]["value_network"][f"linear_{i}"]["kernel"] for i in range(3)]
        total = np.zeros((4, 2))
        for i, j, k in itertools.product(range(2), range(3), range(2)):
            feature = x[:, i] * gates[0][:, j] * gates[1][:, k]
            total += np.outer(feature, theta[0][i, j] * theta[1][j, k] * theta[2][k])
        np.testing.assert_allclose(net.apply(variables, x), total, rtol=1e-12, atol=1e-12)
        # A gate of a DLGN is a half-space: its pre-activation is the product of the maps below it.
        gating = variables["params"]["gating_network"]
        q = x @ gating["linear_0"]["kernel"] @ gating["linear_1"]["kernel"]
        np.testing.assert_array_equal(gates[1], q > 0)


@pytest.mark.slow
def test_a_network_that_is_its_own_gating_network_is_the_relu_network():
    layers, shape = SMALL["resnet"]
    x = jax.random.normal(KEYS[0], (3, *shape))
    twin = Network(layers)
    variables = jax.jit(twin.init)(KEYS[1], x)
    features = GatingNetwork(layers, gating="relu")
    own = jax.jit(features.init)(KEYS[1], x)
    copied = {
        kind: {name: variables[kind][name] for name in own[kind]} for kind in own
    }  # dependent gates (FR-DI): the same names and shapes
    assert jax.tree.map(jnp.shape, copied) == jax.tree.map(jnp.shape, own)
    gates = open_gates(features.apply(copied, x))
    np.testing.assert_allclose(twin.apply(variables, x, gates), twin.apply(variables, x), rtol=1e-6)
    rectified = jax.nn.relu(jnp.array([-1.0, 0.0, 2.0]))
    out = Network((Gate(),)).apply({}, jnp.array([[-1.0, 0.0, 2.0]]))
    np.testing.assert_array_equal(out[0], rectified)


@pytest.mark.parametrize(
    ("name", "gating"),
    [("fc", "relu"), ("c4gap", "shallow"), pytest.param("vconv", "linear", marks=pytest.mark.slow)]
    + [
        pytest.param(name, gating, marks=pytest.mark.slow)
        for name in ("vgg", "resnet")
        for gating in ("relu", "linear", "shallow")
    ],
)
def test_frozen_is_affine_and_decomposes_at_every_gate(name, gating):
    net, variables, x = built(name, gating=gating)
    logits = net.apply(variables, x)
    last = len(gate_shapes(*SMALL[name])) - 1
    for level in (None, f"value_network/gate_{last}"):
        parts = decompose(explainable(net, variables), x, layer=level)
        np.testing.assert_allclose(parts.logits, logits, rtol=1e-5, atol=1e-6)
        total = parts.contributions.reshape(*logits.shape, -1).sum(-1)
        scale = jnp.abs(logits).max()
        assert jnp.abs(logits - parts.bias - total).max() < 1e-4 * scale


def test_without_biases_contributions_are_conserved_at_every_layer():
    net, variables, x = built("c4gap", gating="relu", hard=True)
    logits = net.apply(variables, x)
    for level in (None, "value_network/gate_0", "value_network/linear_1", "value_network/gate_1"):
        parts = decompose(explainable(net, variables), x, layer=level)
        np.testing.assert_allclose(parts.contributions.sum((2, 3, 4)), logits, rtol=1e-4, atol=1e-5)


def test_constant_value_input_with_hard_gates_has_no_input_weight():
    net, variables, x = built("c4gap", value_input="ones", hard=True)
    parts = decompose(explainable(net, variables), x)
    assert not jnp.any(parts.weights)
    np.testing.assert_array_equal(parts.bias, parts.logits)
    assert jnp.abs(parts.logits).max() > 0
    assert not jnp.any(jax.grad(lambda x: net.apply(variables, x).sum())(x))


def test_soft_gates_approach_hard_ones_and_carry_gradients():
    net, variables, x = built("fc", gating="linear", sharpness=1e4)
    hard = GatedNetwork(SMALL["fc"][0], gating="linear", hard=True)
    np.testing.assert_allclose(net.apply(variables, x), hard.apply(variables, x), rtol=1e-3, atol=1e-3)
    for model, trained in ((GatedNetwork(SMALL["fc"][0]), True), (hard, False)):
        grads = jax.grad(lambda v, model=model: model.apply(v, x).sum())(variables)["params"]["gating_network"]
        assert any(bool(jnp.any(leaf)) for leaf in jax.tree.leaves(grads)) is trained
    q = jnp.array([-0.5, 0.0, 0.5])
    soft = open_gates((q,), hard=False, sharpness=4.0, scale=1.1)[0]
    np.testing.assert_allclose(soft, 1.1 / (1 + np.exp(-4 * q)), rtol=1e-6)


def test_permutation_and_scrambling():
    layers = c4gap(2, classes=3, depth=3)
    x = jax.random.uniform(KEYS[0], (2, 4, 4, 2))
    plain = GatedNetwork(layers, hard=True)
    variables = plain.init(KEYS[1], x)
    gates = plain.apply(variables, x, method="gates")
    moved = GatedNetwork(layers, hard=True, order=(2, 0, 1))
    value = Network(layers)
    want = value.apply({"params": variables["params"]["value_network"]}, x, (gates[2], gates[0], gates[1]))
    np.testing.assert_array_equal(moved.apply(variables, x), want)
    rolled = GatedNetwork(layers, hard=True, roll=5).apply(variables, x, method="gates")
    both = [np.sort(np.concatenate(g, -1).reshape(2, -1), 1) for g in (gates, rolled)]
    np.testing.assert_array_equal(*both)
    assert any(bool((a != b).any()) for a, b in zip(gates, rolled, strict=True))
    np.testing.assert_array_equal(np.stack(rolled), np.stack(tile_and_roll(gates, jax.random.key(5))))
    with pytest.raises(ValueError, match="order"):
        GatedNetwork(layers, order=(0, 0, 1)).apply(variables, x)
    with pytest.raises(ValueError, match="gates"):
        tile_and_roll((gates[0], gates[1][..., :1]), jax.random.key(0))


def test_published_architectures():
    assert gate_shapes(fc(128, 5), (784,)) == ((128,),) * 5
    assert fan_ins(vconv(), (32, 32, 3)) == (27, 576, 576, 1152, 32 * 32 * 128, 256, 256)
    assert fan_ins(vconv(pooled=True), (32, 32, 3))[4] == 128
    assert len(gate_shapes(vconv(pooled=True), (32, 32, 3))) == 6
    vgg = gate_shapes(vgg16(), (32, 32, 3))
    assert [shape[0] for shape in vgg] == [32] * 2 + [16] * 2 + [8] * 3 + [4] * 3 + [2] * 3
    assert [shape[2] for shape in vgg] == [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6
    deep = resnet(110)
    assert sum(isinstance(layer, Residual) for layer in deep) == 54
    assert len(gate_shapes(deep, (32, 32, 3))) == 109
    assert gate_shapes(deep, (32, 32, 3))[-1] == (8, 8, 64)
    assert sum(isinstance(layer, Conv) and layer.kernel_size == (1, 1) for layer in iter_layers(deep)) == 2


def test_shallow_gates_see_the_image_at_the_resolution_of_the_values():
    layers, shape = vgg16(10, width=2), (32, 32, 3)
    x = jnp.zeros((1, *shape))
    q = jax.eval_shape(lambda: GatingNetwork(layers, gating="shallow").init_with_output(KEYS[0], x)[0])
    assert [leaf.shape[1:] for leaf in q] == list(gate_shapes(layers, shape))


def test_initial_weights():
    signs = weight_initializer("rademacher", 0.25)(KEYS[0], (50, 40))
    assert set(np.unique(signs)) == {-0.5, 0.5}
    normal = weight_initializer()(KEYS[0], (3, 3, 8, 64))
    np.testing.assert_allclose(normal.std(), np.sqrt(2 / 72), rtol=0.03)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("features", lambda: Dense(0)),
        ("kernel_size", lambda: Conv(3, (0, 3))),
        ("strides", lambda: Conv(3, strides=(1, -1))),
        ("window", lambda: AvgPool((0, 2))),
        ("depth", lambda: resnet(9)),
        ("variance", lambda: weight_initializer("normal", -1.0)),
        ("Dense", lambda: output_shape(Dense(3), (4, 4, 2))),
        ("Conv", lambda: output_shape(Conv(3), (4,))),
        ("Conv", lambda: output_shape(Conv(3, (5, 5), padding="none"), (4, 4, 2))),
        ("AvgPool", lambda: output_shape(AvgPool((8, 8)), (4, 4, 2))),
        ("Residual", lambda: output_shape(Residual((Dense(3),)), (4,))),
    ],
)
def test_impossible_layers_raise(name, make):
    with pytest.raises(ConfigError, match=name):
        make()


def test_gates_that_do_not_fit_raise():
    layers, x = fc(4, 2), jnp.ones((3, 2))
    net = Network(layers)
    variables = net.init(KEYS[0], x)
    fitting = jnp.ones((3, 4))
    for gates in (
        (fitting,),
        (fitting, jnp.ones((3, 5))),
        (jnp.ones((2, 4)), fitting),
        (fitting, jnp.full((3, 4), jnp.nan)),
    ):
        with pytest.raises(ConfigError, match="gates: "):
            net.apply(variables, x, gates)


def test_a_network_is_decomposed_with_gates_of_ones_own():
    layers, x = fc(4, 2, classes=3), jax.random.normal(KEYS[0], (5, 6))
    gates = tuple(jax.random.bernoulli(key, 0.5, (5, 4)).astype(jnp.float32) for key in KEYS[1:3])
    net = Network(layers)
    variables = net.init(KEYS[0], x)

    def masked(variables, x, *gates):
        return net.apply(variables, x, gates, frozen=True)

    masked = explainable(masked, variables)
    parts = decompose(masked, x, given=gates)
    w = [variables["params"][f"linear_{i}"]["kernel"] for i in range(3)]
    want = jnp.einsum("ia,na,ab,nb,bk->nki", w[0], gates[0], w[1], gates[1], w[2])
    np.testing.assert_allclose(parts.weights, want, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(parts.contributions.sum(-1) + parts.bias, parts.logits, rtol=1e-4, atol=1e-5)
    small = decompose(masked, x, given=gates, max_bytes=1)  # image by image
    np.testing.assert_allclose(small.contributions, parts.contributions, rtol=1e-4, atol=1e-6)
    inner = decompose(masked, x, given=gates, layer="gate_1")
    np.testing.assert_allclose(inner.weights, jnp.broadcast_to(w[2].T, (5, 3, 4)), rtol=1e-5)
    with pytest.raises(ValueError, match=r"^given: "):
        decompose(masked, x, given=(gates[0], gates[1][1:]))


def test_gates_that_are_not_trained_are_read_in_evaluation():
    layers = (Dense(4), BatchNorm(), Gate(), Dense(2))
    x = jax.random.normal(KEYS[0], (6, 3))
    for hard in (True, False):
        model = GatedNetwork(layers, "relu", hard=hard)
        variables = model.init(KEYS[1], x)
        _, updates = model.apply(variables, x, train=True, mutable=["batch_stats"])
        before, after = (tree["batch_stats"]["gating_network"]["norm_0"]["mean"] for tree in (variables, updates))
        assert bool((before == after).all()) is hard
