"""Reading gated networks: filters against the composed maps, paths against their enumeration."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinterp.errors import ConfigError
from jaxinterp.gated.architecture import AvgPool, BatchNorm, Conv, Dense, Gate, GlobalAvgPool, fc
from jaxinterp.gated.network import GatedNetwork, GatingNetwork
from jaxinterp.gated.paths import Filters, class_overlap, effective_filters, margins, strongest_paths

KEYS = jax.random.split(jax.random.key(0), 4)
KERNELS = (np.ones((2, 3)), np.ones((3, 1)))


def test_filters_of_a_fully_connected_gate_are_the_product_of_the_maps_below():
    network = GatingNetwork(fc(5, 3, bias=True))
    x = jax.random.normal(KEYS[0], (4, 3))
    variables = network.init(KEYS[1], x)
    variables = jax.tree.map(lambda leaf: leaf + 0.1, variables)  # biases are zero at first
    p = variables["params"]
    filters = effective_filters(lambda x: network.apply(variables, x)[1], (3,))
    np.testing.assert_allclose(
        filters.weights, (p["linear_0"]["kernel"] @ p["linear_1"]["kernel"]).T, rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(filters.bias, p["linear_0"]["bias"] @ p["linear_1"]["kernel"] + p["linear_1"]["bias"])
    q = network.apply(variables, x)[1]
    found = margins(filters, x)
    np.testing.assert_array_equal(found > 0, q > 0)
    # The nearest point of the hyperplane is that far away, and on it.
    unit = filters.weights[2] / jnp.linalg.norm(filters.weights[2])
    moved = x - found[:, 2:3] * unit[None]
    np.testing.assert_allclose(network.apply(variables, moved)[1][:, 2], 0, atol=1e-5)


@pytest.mark.slow
def test_filters_fold_convolution_pooling_and_batch_normalization():
    layers = (Conv(3), BatchNorm(), Gate(), AvgPool(), Conv(4), BatchNorm(), Gate(), GlobalAvgPool(), Dense(2))
    network = GatingNetwork(layers)
    x = jax.random.normal(KEYS[0], (2, 6, 6, 2))
    variables = network.init(KEYS[1], x)
    variables["batch_stats"] = jax.tree.map(
        lambda leaf: leaf + jax.random.uniform(KEYS[2], leaf.shape), variables["batch_stats"]
    )
    filters = effective_filters(lambda x: network.apply(variables, x)[1], (6, 6, 2))
    assert filters.weights.shape == (3 * 3 * 4, 6, 6, 2)
    q = network.apply(variables, x)[1].reshape(2, -1)
    want = jnp.einsum("nhwc,uhwc->nu", x, filters.weights) + filters.bias[None]
    np.testing.assert_allclose(q, want, rtol=1e-4, atol=1e-5)
    some = effective_filters(lambda x: network.apply(variables, x)[1], (6, 6, 2), np.array([7, 20]))
    np.testing.assert_allclose(some.weights, filters.weights[np.array([7, 20])], rtol=1e-5, atol=1e-7)


def test_gates_of_a_relu_network_are_not_half_spaces():
    network = GatingNetwork(fc(5, 2), gating="relu")
    variables = network.init(KEYS[1], jnp.ones((1, 3)))
    effective_filters(lambda x: network.apply(variables, x)[0], (3,))  # the first layer's are
    with pytest.raises(ConfigError, match="preactivation"):
        effective_filters(lambda x: network.apply(variables, x)[1], (3,))


@pytest.mark.parametrize("k", [1, 5, 60, 100])
def test_strongest_paths_are_those_of_the_enumeration(k):
    net = GatedNetwork(fc(4, 2, classes=2), sharpness=3.0)
    x = jax.random.normal(KEYS[0], (1, 3))
    variables = net.init(KEYS[1], x)
    gates = [np.asarray(g[0]) for g in net.apply(variables, x, method="gates")]
    kernels = [variables["params"]["value_network"][f"linear_{i}"]["kernel"] for i in range(3)]
    every = {
        (i, a, b): float(x[0, i] * kernels[0][i, a] * gates[0][a] * kernels[1][a, b] * gates[1][b] * kernels[2][b, 1])
        for i, a, b in itertools.product(range(3), range(4), range(4))
    }
    found = strongest_paths(kernels, gates, x[0], 1, k)
    order = sorted(every, key=lambda path: -abs(every[path]))[:k]
    assert [tuple(path) for path in found.units] == order
    np.testing.assert_allclose(found.contributions, [every[path] for path in order], rtol=1e-5)
    if k >= 48:
        np.testing.assert_allclose(found.contributions.sum(), net.apply(variables, x)[0, 1], rtol=1e-5)


def test_closed_gates_leave_no_path():
    found = strongest_paths(KERNELS, (np.array([0.0, 1.0, 0.0]),), np.array([1.0, -2.0]), 0)
    assert found.units.tolist() == [[1, 1], [0, 1]]
    assert found.contributions.tolist() == [-2.0, 1.0]


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("gates", lambda: strongest_paths(KERNELS, (), np.ones(2), 0)),
        ("gates", lambda: strongest_paths(KERNELS, (np.ones(2),), np.ones(2), 0)),
        ("kernels", lambda: strongest_paths(KERNELS, (np.ones(3),), np.ones(3), 0)),
        ("k", lambda: strongest_paths(KERNELS, (np.ones(3),), np.ones(2), 0, 0)),
        ("output", lambda: strongest_paths(KERNELS, (np.ones(3),), np.ones(2), 1)),
        ("labels", lambda: class_overlap((np.ones((2, 3)),), np.array([0, 2]), 2)),
        ("units", lambda: effective_filters(lambda x: 2 * x, (3,), np.array([5]))),
    ],
)
def test_arguments_that_do_not_fit_raise(name, call):
    with pytest.raises(ConfigError, match=f"^{name}: "):
        call()


def test_a_gate_without_a_filter_is_infinitely_far():
    filters = Filters(jnp.array([[3.0, 4.0], [0, 0], [0, 0], [0, 0]]), jnp.array([0.0, 2, -2, 0]))
    with jax.debug_nans(True):
        distances = margins(filters, jnp.array([[1.0, 0.5]]))
    np.testing.assert_allclose(distances, [[1, np.inf, -np.inf, 0]])


def test_class_overlap_is_the_mean_over_pairs():
    rng = np.random.default_rng(0)
    gates = (rng.integers(0, 2, (6, 4)), rng.integers(0, 2, (6, 2, 2)))
    labels = np.array([0, 1, 0, 1, 1, 2])
    found = class_overlap(gates, labels, 3)
    for layer, gate in enumerate(gates):
        flat = gate.reshape(6, -1)
        for a, b in itertools.product(range(3), range(3)):
            pairs = [
                flat[i] @ flat[j] / 4
                for i, j in itertools.product(range(6), range(6))
                if i != j and labels[i] == a and labels[j] == b
            ]
            np.testing.assert_allclose(found[layer, a, b], np.mean(pairs) if pairs else np.nan)
