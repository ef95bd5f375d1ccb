"""The path kernel: brute force over paths, the papers' closed forms, and the kernels of wide value networks."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinterp.errors import ConfigError
from jaxinterp.gated.architecture import (
    AvgPool,
    BatchNorm,
    Conv,
    Dense,
    Flatten,
    Gate,
    GlobalAvgPool,
    Residual,
    c4gap,
    fc,
    gate_shapes,
    vconv,
)
from jaxinterp.gated.kernels import pairwise
from jaxinterp.gated.kernels.path import Norm, PathKernel
from jaxinterp.gated.network import Network
from jaxinterp.nn.platform import target

KEYS = jax.random.split(jax.random.key(0), 4)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def hard(layers, shape, n, key, density=0.5):
    """Random gates of n examples."""
    return tuple(
        jax.random.bernoulli(jax.random.fold_in(key, i), density, (n, *gate))
        for i, gate in enumerate(gate_shapes(layers, shape))
    )


def soft(layers, shape, n, key):
    return tuple(
        jax.random.uniform(jax.random.fold_in(key, i), (n, *gate), jnp.float64)
        for i, gate in enumerate(gate_shapes(layers, shape))
    )


def test_worked_example_of_the_paper():
    """NPF, Sec. 2: two inputs, two hidden layers of three units, three examples."""
    gates = (jnp.array([[1, 1, 0], [0, 1, 1], [0, 0, 1]]), jnp.array([[1, 0, 0], [1, 0, 0], [0, 1, 1]]))
    layers = fc(3, 2, classes=1)
    found = PathKernel(layers, value_input="ones")(jnp.ones((3, 2)), gates)
    np.testing.assert_array_equal(found / 2, [[2, 1, 0], [1, 2, 0], [0, 0, 2]])


@pytest.mark.parametrize("make", [hard, soft])
def test_fully_connected_equals_the_enumeration_of_paths(make):
    layers, widths = (Dense(4), Gate(), Dense(3), Gate(), Dense(1)), (4, 3)
    x = jax.random.normal(KEYS[0], (5, 3), jnp.float64)
    gates = make(layers, (3,), 5, KEYS[1])
    paths = list(itertools.product(range(3), *map(range, widths)))
    features = np.array(
        [
            [float(x[s, p[0]]) * np.prod([float(gates[k][s, p[k + 1]]) for k in range(2)]) for p in paths]
            for s in range(5)
        ]
    )
    kernel = PathKernel(layers)
    np.testing.assert_allclose(kernel(x, gates), features @ features.T, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(
        kernel(x, gates, x[:2], tuple(g[:2] for g in gates)), features @ features[:2].T, rtol=1e-12, atol=1e-12
    )
    # and of the output itself
    net = Network(layers, param_dtype=jnp.float64)
    variables = net.init(KEYS[2], x, tuple(g.astype(x.dtype) for g in gates))
    theta = [variables["params"][f"linear_{i}"]["kernel"] for i in range(3)]
    values = np.array([theta[0][i, j] * theta[1][j, k] * theta[2][k, 0] for i, j, k in paths])
    out = net.apply(variables, x, tuple(g.astype(x.dtype) for g in gates))
    np.testing.assert_allclose(out[:, 0], features @ values, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("make", [hard, soft])
def test_circular_convolution_is_the_sum_over_rotations(make):
    """DLGN, App. A: NPK = Σ_r Σ_i x(i) rot(x', r)(i) · overlap(i, x, rot(x', r)), by enumeration of the bundles."""
    size, width, window = 4, 2, 2
    layers = (Conv(width, (1, window), padding="circular"), Gate()) * 2 + (GlobalAvgPool(), Dense(1))
    x = jax.random.normal(KEYS[0], (3, 1, size, 1), jnp.float64)
    gates = make(layers, (1, size, 1), 3, KEYS[1])
    bundles = list(itertools.product(range(window), range(width), range(window), range(width)))
    features = np.zeros((3, len(bundles)))
    for s, (f, (c1, j1, c2, j2)) in itertools.product(range(3), enumerate(bundles)):
        for end in range(size):
            middle = (end + c2) % size
            start = (middle + c1) % size
            features[s, f] += (
                float(x[s, 0, start, 0]) * float(gates[0][s, 0, middle, j1]) * float(gates[1][s, 0, end, j2])
            )
    found = PathKernel(layers)(x, gates)
    np.testing.assert_allclose(found, features @ features.T, rtol=1e-12, atol=1e-12)
    rolled, rolled_gates = jnp.roll(x, 1, 2), tuple(jnp.roll(g, 1, 2) for g in gates)
    np.testing.assert_allclose(PathKernel(layers)(x, gates, rolled, rolled_gates), found, rtol=1e-12, atol=1e-12)


def test_zero_padding_is_not_rotation_invariant():
    layers = (Conv(2, (1, 3)), Gate()) * 2 + (GlobalAvgPool(), Dense(1))
    x = jax.random.normal(KEYS[0], (3, 1, 4, 1), jnp.float64)
    gates = hard(layers, (1, 4, 1), 3, KEYS[1], 0.8)
    rolled, rolled_gates = jnp.roll(x, 1, 2), tuple(jnp.roll(g, 1, 2) for g in gates)
    found, moved = PathKernel(layers)(x, gates), PathKernel(layers)(x, gates, rolled, rolled_gates)
    assert jnp.abs(found - moved).max() > 0.05 * jnp.abs(found).max()


def test_residual_blocks_are_a_product_and_equal_the_sum_over_subsets():
    """DLGN, Thm: Σ_J NPK_J over all subsets J of the middle blocks, as <x, x'> F_first ∏ (1 + F_j) F_last."""
    block = (Dense(4), Gate(), Dense(4), Gate())
    layers = (*block, *(Residual(block) for _ in range(3)), *block, Dense(1))
    x = jax.random.normal(KEYS[0], (4, 3), jnp.float64)
    gates = soft(layers, (3,), 4, KEYS[1])
    overlap = [np.asarray(a @ b.T) for a, b in zip(gates, gates, strict=True)]
    factors = [overlap[2 * i] * overlap[2 * i + 1] for i in range(5)]
    first = np.asarray(x @ x.T) * factors[0] * factors[4]
    subsets = sum(
        first * np.prod([factors[1 + j] for j in chosen], axis=0)
        for size in range(4)
        for chosen in itertools.combinations(range(3), size)
    )
    np.testing.assert_allclose(PathKernel(layers)(x, gates), subsets, rtol=1e-12)
    sigma = 0.3
    constants = sum(
        (len(chosen) + 2)
        * 2
        * sigma ** (2 * ((len(chosen) + 2) * 2))
        * first
        * np.prod([factors[1 + j] for j in chosen], axis=0)
        for size in range(4)
        for chosen in itertools.combinations(range(3), size)
    )  # one more linear layer, the output's, than the blocks have
    depth = sum(
        sigma ** (2 * ((len(chosen) + 2) * 2)) * first * np.prod([factors[1 + j] for j in chosen], axis=0)
        for size in range(4)
        for chosen in itertools.combinations(range(3), size)
    )
    found = PathKernel(layers, get="ntk", weight_variances=sigma**2)(x, gates)
    np.testing.assert_allclose(found, constants + depth, rtol=1e-12)


def test_ntk_and_nngp_of_a_fully_connected_net_are_multiples_of_the_npk():
    """NPF, Thm 5.1: d σ^{2(d−1)} NPK; NNGP = σ^{2d} NPK."""
    layers, sigma, depth = fc(5, 3, classes=1), 0.4, 4
    x = jax.random.normal(KEYS[0], (4, 3), jnp.float64)
    gates = hard(layers, (3,), 4, KEYS[1])
    npk = PathKernel(layers)(x, gates)
    options = {"weight_variances": sigma**2}
    np.testing.assert_allclose(
        PathKernel(layers, get="ntk", **options)(x, gates), depth * sigma ** (2 * (depth - 1)) * npk, rtol=1e-12
    )
    np.testing.assert_allclose(
        PathKernel(layers, get="nngp", **options)(x, gates), sigma ** (2 * depth) * npk, rtol=1e-12
    )
    each = (0.1, 0.2, 0.3, 0.4)
    total = sum(np.prod([s for j, s in enumerate(each) if j != i]) for i in range(4))
    found = PathKernel(layers, get="ntk", weight_variances=each)(x, gates)
    np.testing.assert_allclose(found, total * npk, rtol=1e-12)


def tangent(net, variables, x, gates, norms=()):
    def f(params):
        return net.apply({**variables, "params": params}, x, gates)[:, 0]

    jacobian = jax.tree.leaves(jax.jacrev(f)(variables["params"]))
    rows = jnp.concatenate([j.reshape(len(x), -1) for j in jacobian], 1)
    return rows @ rows.T


MIXED = (
    Conv(3, (3, 3), bias=True),
    Gate(),
    AvgPool(),
    Residual((Conv(3, (3, 3)), Gate(), Conv(3, (1, 2), padding="circular")), (Conv(3, (1, 1)),)),
    Gate(),
    Conv(2, (2, 2), (2, 1), "none"),
    GlobalAvgPool(),
    Dense(4),
    Gate(),
    Dense(1, bias=True),
)
FLAT = (Conv(3, (3, 3), (2, 2)), Gate(), Conv(2, (2, 2)), Gate(), Flatten(), Dense(3), Gate(), Dense(1))


@pytest.mark.parametrize("layers", [pytest.param(MIXED, marks=pytest.mark.slow), FLAT], ids=["pooled", "flat"])
def test_the_mean_over_value_networks_is_the_kernel(layers):
    """E[K] at a finite width, for zero and circular padding, strides, pooling, biases, residuals and soft gates."""
    x = jax.random.normal(KEYS[0], (2, 4, 4, 2), jnp.float64)
    gates = soft(layers, (4, 4, 2), 2, KEYS[1])
    net = Network(layers, weights="rademacher", param_dtype=jnp.float64)
    draws = 2000

    @jax.jit
    def draw(key):
        variables = net.init(key, x, gates)
        return tangent(net, variables, x, gates), net.apply(variables, x, gates)[:, 0]

    kernels, outputs = jax.lax.map(draw, jax.random.split(KEYS[2], draws), batch_size=500)
    for get, samples in (("ntk", kernels), ("nngp", outputs[:, :, None] * outputs[:, None])):
        found = PathKernel(layers, get=get)(x, gates)
        error = samples.std(0) / np.sqrt(draws)
        assert (jnp.abs(samples.mean(0) - found) < 4.5 * error).all()
        assert jnp.abs(samples.mean(0) - found).max() < 0.1 * jnp.abs(found).max()


def test_batch_normalization_folds_into_the_gates():
    layers = (Dense(4), BatchNorm(), Gate(), Dense(1))
    x = jax.random.normal(KEYS[0], (3, 2), jnp.float64)
    gates = soft(layers, (2,), 3, KEYS[1])
    norm = Norm(jax.random.normal(KEYS[2], (4,), jnp.float64), jax.random.normal(KEYS[3], (4,), jnp.float64))
    found = PathKernel(layers, norms=(norm,))(x, gates)
    g = gates[0]
    want = (x @ x.T) * ((g * norm.scale[None] ** 2) @ g.T) + (g * norm.shift[None] ** 2) @ g.T
    np.testing.assert_allclose(found, want, rtol=1e-12)


@pytest.mark.parametrize(
    "layers",
    [*(pytest.param(net, marks=pytest.mark.slow) for net in (fc(6, 3), c4gap(3, depth=2))), vconv(2)],
    ids=["fc", "c4gap", "vconv"],
)
def test_normalizations_and_blocks(layers, monkeypatch):
    shape = (4,) if isinstance(layers[0], Dense) else (4, 4, 2)
    x = jax.random.normal(KEYS[0], (5, *shape), jnp.float64)
    gates = hard(layers, shape, 5, KEYS[1], 0.7)
    counts = PathKernel(layers)(x, gates)
    width = PathKernel(layers, normalize="width")(x, gates)
    np.testing.assert_allclose(width * (counts[0, 0] / width[0, 0]), counts, rtol=1e-10, atol=1e-10)
    roots = jnp.sqrt(jnp.diagonal(counts))
    unit = PathKernel(layers, normalize="unit_diag")(x, gates)
    np.testing.assert_allclose(unit, counts / roots[:, None] / roots[None], rtol=1e-10, atol=1e-12)
    whole = PathKernel(layers, normalize="unit_diag")(x, gates, x, gates)
    np.testing.assert_allclose(whole, unit, rtol=1e-10, atol=1e-12)
    monkeypatch.setitem(pairwise.TILE_BYTES, "cpu", 5 * 16**2 * 8)
    jax.clear_caches()
    close = partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-12 * float(counts.max()))
    close(PathKernel(layers)(x, gates), counts)
    close(PathKernel(layers)(x, gates, x[:3], tuple(g[:3] for g in gates)), counts[:, :3])


@pytest.mark.parametrize(
    ("layers", "options"),
    [
        (fc(6, 2), {"normalize": "unit_diag"}),
        (c4gap(3, depth=1), {}),
        ((Dense(4), BatchNorm(), Gate(), Dense(1)), {"get": "ntk", "norms": (Norm(np.arange(4.0), np.ones(4)),)}),
    ],
    ids=["fc", "c4gap", "norm"],
)
def test_cpu_and_accelerator_agree(layers, options, monkeypatch):
    shape = (4, 4, 2) if isinstance(layers[0], Conv) else (3,)
    x = jax.random.normal(KEYS[0], (5, *shape), jnp.float64)
    gates = hard(layers, shape, 5, KEYS[1])
    kernel = PathKernel(layers, **options)
    monkeypatch.setitem(pairwise.TILE_BYTES, "accelerator", 3 * 4**4 * 8)

    def found(x, gates):
        return kernel(x, gates), kernel(x, gates, x[:3], tuple(gate[:3] for gate in gates))

    slopes = jax.jit(jax.grad(lambda x, gates: sum(jnp.sqrt(1 + k * k).sum() for k in found(x, gates))))
    want = found(x, gates), slopes(x, gates)
    for kind in ("cpu", "accelerator"):
        with target(kind):
            jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-10), (found(x, gates), slopes(x, gates)), want)


def test_accelerators_count_small_integers_only_as_such():
    layers, x = fc(3, 1), jnp.ones((2, 3))
    wide = np.array([[200, 3, 0], [300, 1, 2]])
    with target("accelerator"):
        found = PathKernel(layers)(x, (wide,))
        np.testing.assert_array_equal(found, 3 * wide @ wide.T)
        np.testing.assert_array_equal(PathKernel(layers)(x, (wide,), x, (wide > 1,)), 3 * wide @ (wide > 1).T)
        text = str(jax.make_jaxpr(PathKernel(layers))(x, (wide > 1,)))
    assert "preferred_element_type=int32" in text


def test_hard_gates_of_every_type_count_the_same():
    layers = fc(64, 4)
    x = jax.random.normal(KEYS[0], (6, 3), jnp.float32)
    gates = hard(layers, (3,), 6, KEYS[1])
    kernel = PathKernel(layers, exact=True)
    want = kernel(x, gates)
    for kind in (jnp.int8, jnp.int32, jnp.bfloat16, jnp.float32):
        np.testing.assert_array_equal(kernel(x, tuple(g.astype(kind) for g in gates)), want)
    exact = np.asarray(x, np.float64) @ np.asarray(x, np.float64).T
    for g in gates:
        exact = exact * (np.asarray(g, np.int64) @ np.asarray(g, np.int64).T)
    np.testing.assert_allclose(want, exact, rtol=2e-6, atol=1e-6 * np.abs(exact).max())


def test_deep_kernels_stay_within_float32():
    layers = fc(512, 40)
    x = jax.random.normal(KEYS[0], (4, 3), jnp.float32)
    gates = hard(layers, (3,), 4, KEYS[1])
    with pytest.raises(ValueError, match=r"normalize: .*10\^109 paths"):
        PathKernel(layers)(x, gates)
    unit = PathKernel(layers, normalize="unit_diag")(x, gates)
    logs = sum(np.log(np.asarray(g, np.float64) @ np.asarray(g, np.float64).T) for g in gates)
    gram = np.asarray(x, np.float64) @ np.asarray(x, np.float64).T
    diagonal = np.diagonal(logs) / 2
    roots = np.sqrt(np.diagonal(gram))
    want = gram / roots[:, None] / roots[None] * np.exp(logs - diagonal[:, None] - diagonal[None])
    np.testing.assert_allclose(unit, want, rtol=2e-5, atol=1e-12)
    assert np.isfinite(PathKernel(layers, normalize="width")(x, gates)).all()
    for get in ("ntk", "nngp"):
        deep = np.asarray(PathKernel(layers, get=get)(x, gates))
        size = np.sqrt(np.diagonal(deep))
        np.testing.assert_allclose(deep / size[:, None] / size[None], want, rtol=5e-5, atol=1e-12)


def test_permuted_gates_change_convolutions_and_nothing_else():
    for layers, shape, same in ((fc(5, 3), (3,), True), (c4gap(3, depth=3), (4, 4, 2), False)):
        x = jax.random.normal(KEYS[0], (4, *shape), jnp.float64)
        gates = hard(layers, shape, 4, KEYS[1])
        found, moved = PathKernel(layers)(x, gates), PathKernel(layers)(x, (gates[2], gates[0], gates[1]))
        assert bool(jnp.allclose(found, moved, rtol=1e-12)) is same


LAYERS, X, GATES = fc(4, 2), jnp.ones((3, 2)), (jnp.ones((3, 4)), jnp.ones((3, 4)))


@pytest.mark.parametrize(
    ("name", "options", "arguments"),
    [
        ("gates", {}, (X, GATES[:1])),
        ("gates: gate 1", {}, (X, (GATES[0], jnp.ones((3, 5))))),
        ("gates: gate 1", {}, (X, (GATES[0], jnp.ones((2, 4))))),
        ("gates: gate 1", {}, (X, (GATES[0], jnp.full((3, 4), jnp.nan)))),
        ("gates: gate 1", {"exact": True}, (X, (GATES[0], 0.5 * GATES[1]))),
        ("x", {}, (X.at[0].set(jnp.inf), GATES)),
        ("x2, gates2", {}, (X, GATES, X)),
        ("x2", {}, (X, GATES, jnp.ones((3, 5)), GATES)),
        ("x, gates", {}, (1e30 * X, (1e10 * GATES[0], GATES[1]))),
        ("x, gates", {"normalize": "unit_diag"}, (1e20 * X, GATES)),
        ("weight_variances", {"get": "ntk", "weight_variances": (1.0,)}, (X, GATES)),
        ("layers", {"layers": (Dense(2), Gate(), Gate())}, (X, (jnp.ones((3, 2)),) * 2)),
        ("norms", {"norms": (Norm(jnp.ones(4), jnp.ones(4)),)}, (X, GATES)),
    ],
)
def test_arguments_that_do_not_fit_raise_in_one_line(name, options, arguments):
    with pytest.raises(ConfigError, match=f"^{name}: ") as error:
        PathKernel(**{"layers": LAYERS, **options})(*arguments)
    assert "\n" not in str(error.value)
