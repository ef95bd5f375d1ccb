"""CoDA Nets: golden parity with the authors' code, a dense replica, and the closed forms of the paper."""

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads

from jaxinterp.coda.network import CoDANet, DynamicAlignmentConv, alignment_penalty, l_coda, s_coda
from jaxinterp.explain.decompose import decompose
from jaxinterp.explain.explainable import explainable

GOLDEN = Path(__file__).parent.parent / "golden" / "coda_net_squash.npz"


@pytest.fixture
def golden() -> Iterator[tuple[CoDANet, dict, jax.Array, dict[str, np.ndarray]]]:
    """The authors' 4-layer net in our layout, with everything in float64."""
    with jax.enable_x64(True):
        g = dict(np.load(GOLDEN))
        model = CoDANet(
            features=tuple(g["channels"].tolist()),
            ranks=tuple(g["ranks"].tolist()),
            kernel_sizes=tuple(g["kernels"].tolist()),
            strides=tuple(g["strides"].tolist()),
            paddings=tuple(g["paddings"].tolist()),
            temperature=float(g["temperature"]),
            logit_bias=float(g["logit_bias"]),
            param_dtype=jnp.float64,
        )
        params = {
            f"layer_{i}": ours(g[f"layer{i}_B_oihw"], g[f"layer{i}_A_oi"], g[f"layer{i}_b"], features)
            for i, features in enumerate(model.features)
        }
        yield model, {"params": params}, jnp.asarray(g["image_nchw"].transpose(0, 2, 3, 1)), g


def ours(B: np.ndarray, A: np.ndarray, b: np.ndarray, features: int) -> dict[str, jax.Array]:
    """PyTorch's (r, C, k, k) and d·J + j with d = (c, ky, kx) as (D, r), (r, J, D), (J, D) with D = (ky, kx, c)."""
    r, c, k, _ = B.shape
    generator = np.concatenate([A.T, b[None]]).reshape(r + 1, c, k, k, features)
    generator = generator.transpose(0, 4, 2, 3, 1).reshape(r + 1, features, -1)
    return {
        "B": jnp.asarray(B.transpose(2, 3, 1, 0).reshape(-1, r)),
        "A": jnp.asarray(generator[:-1]),
        "b": jnp.asarray(generator[-1]),
    }


def test_golden_outputs_of_every_layer(golden):
    model, variables, images, g = golden
    run = jax.jit(lambda v, x: model.apply(v, x, capture_intermediates=True, mutable=["intermediates"]))
    logits, state = run(variables, images)
    for i in range(len(model.features)):
        out = state["intermediates"][f"layer_{i}"]["__call__"][0]
        np.testing.assert_allclose(out, g[f"layer{i}_out_nchw"].transpose(0, 2, 3, 1), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(logits, g["logits"], rtol=1e-9)
    np.testing.assert_allclose(jax.jit(partial(model.apply, frozen=True))(variables, images), g["logits"], rtol=1e-9)


def test_golden_loss_and_gradients(golden):
    model, variables, images, g = golden

    def loss(params):
        logits = model.apply({"params": params}, images)
        one_hot = jax.nn.one_hot(g["labels"], logits.shape[1], dtype=logits.dtype)
        return optax.sigmoid_binary_cross_entropy(logits, one_hot).mean()

    value, grads = jax.jit(jax.value_and_grad(loss))(variables["params"])
    np.testing.assert_allclose(value, g["bce_loss"], rtol=1e-9)
    for i, features in enumerate(model.features):
        names = (f"layer{i}_grad_B_oihw", f"layer{i}_grad_A_oi", f"layer{i}_grad_b")
        want = ours(*(g[name] for name in names), features)
        for name, grad in grads[f"layer_{i}"].items():
            np.testing.assert_allclose(grad, want[name], rtol=1e-9, atol=1e-9 * np.abs(want[name]).max())


def test_golden_linear_map(golden):
    model, variables, images, g = golden
    parts = decompose(explainable(model, variables), images)
    want = g["linear_map_nkchw"].transpose(0, 1, 3, 4, 2)
    np.testing.assert_allclose(parts.weights, want, rtol=1e-9, atol=1e-9 * np.abs(want).max())
    np.testing.assert_allclose(parts.bias, g["logit_bias"] * np.ones_like(parts.bias), rtol=1e-9)


def dense_layer(x, B, A, b, kernel, stride, padding, rescale):
    """The layer by explicit loops over positions and units, with w formed."""
    n, height, width, _c = x.shape
    x = np.pad(x, ((0, 0), (padding,) * 2, (padding,) * 2, (0, 0)))
    out_h, out_w = (height + 2 * padding - kernel) // stride + 1, (width + 2 * padding - kernel) // stride + 1
    y = np.zeros((n, out_h, out_w, A.shape[1]))
    norms = np.zeros_like(y)
    for i, r, s, j in np.ndindex(y.shape):
        patch = x[i, r * stride : r * stride + kernel, s * stride : s * stride + kernel].reshape(-1)
        v = A[:, j].T @ (B.T @ patch) + b[j]
        size = np.linalg.norm(v)
        w = v * size / (1 + size**2) if rescale == "squash" else v / size
        y[i, r, s, j], norms[i, r, s, j] = w @ patch, np.linalg.norm(w)
    return y, norms


@pytest.mark.parametrize("rescale", ["squash", "l2"])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(1, 1, 0), (3, 1, 1), (3, 2, 1), (3, 3, 0), (7, 3, 3)])
def test_layer_equals_explicit_weights(rescale, kernel, stride, padding):
    with jax.enable_x64(True):
        x = jax.random.normal(jax.random.key(0), (2, 8, 7, 3), jnp.float64)
        layer = DynamicAlignmentConv(
            4, 2, (kernel,) * 2, (stride,) * 2, padding, rescale=rescale, param_dtype=jnp.float64
        )
        variables = jax.jit(layer.init)(jax.random.key(1), x)
        want, norms = dense_layer(
            np.asarray(x), *(np.asarray(variables["params"][k]) for k in "BAb"), kernel, stride, padding, rescale
        )
        np.testing.assert_allclose(jax.jit(layer.apply)(variables, x), want, rtol=1e-10, atol=1e-12)
        frozen = jax.jit(partial(layer.apply, frozen=True))(variables, x)
        np.testing.assert_allclose(frozen, want, rtol=1e-10, atol=1e-12)
        assert norms.max() < 1 if rescale == "squash" else np.allclose(norms, 1)


@pytest.mark.parametrize(
    ("model", "size", "count"),
    [
        (s_coda(), 32, 7_782_816),
        (s_coda(rank=4), 32, 1_076_984),
        (s_coda(rank=8), 32, 2_034_960),
        (s_coda(rank=16), 32, 3_950_912),
        (s_coda(rank=144), 32, 34_606_144),
        (l_coda(), 240, 47_517_408),
    ],
)
def test_published_parameter_counts(model, size, count):
    variables = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables)) == count


@pytest.mark.slow
@pytest.mark.parametrize(("classes", "want"), [(10, 0.32508), (100, 0.1267)])
def test_initial_loss(classes, want):
    model = s_coda(classes=classes)
    x = jax.random.uniform(jax.random.key(0), (2, 32, 32, 3))
    logits = jax.jit(lambda key: model.apply(model.init(key, x), x))(jax.random.key(1))
    one_hot = jax.nn.one_hot(jnp.array([3, 7]), classes)
    loss = optax.sigmoid_binary_cross_entropy(logits, one_hot).mean()
    closed = (-math.log(0.1) - (classes - 1) * math.log(0.9)) / classes  # BCE at p = 0.1
    assert abs(float(loss) - closed) < 2e-5
    assert abs(closed - want) < 1e-3


def small(**fields) -> tuple[CoDANet, dict, jax.Array]:
    model = CoDANet((4, 5, 3), (3, 2, 2), (3, 3, 1), (1, 2, 1), temperature=2.0, **fields)
    images = jax.random.uniform(jax.random.key(0), (2, 6, 6, 1))
    return model, jax.jit(model.init)(jax.random.key(1), images), images


@pytest.mark.parametrize("rescale", [pytest.param("squash", marks=pytest.mark.slow), "l2"])
def test_zero_input_gives_the_bias_and_finite_gradients(rescale):
    model, variables, _images = small(rescale=rescale)
    empty = jnp.zeros((2, 6, 6, 2))
    zero_b = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.zeros_like(leaf) if path[-1].key == "b" else leaf, variables
    )

    @jax.jit
    def slopes(v, e):
        logits, pullback = jax.vjp(lambda v, e: model.apply(v, e, encoded=True), v, e)
        return logits, pullback(jnp.ones_like(logits))

    for v in (variables, zero_b):
        logits, grads = slopes(v, empty)
        assert np.array_equal(logits, np.full((2, 3), model.logit_bias, np.float32))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


@pytest.mark.slow
def test_penalty_is_the_mean_of_the_decomposition_and_its_gradient_is_right():
    with jax.enable_x64(True):
        model, _, images = small(param_dtype=jnp.float64)
        images = images.astype(jnp.float64)
        variables = jax.jit(model.init)(jax.random.key(1), images)
        parts = decompose(explainable(model, variables), images)
        assert np.isclose(alignment_penalty(model, variables, images), jnp.abs(parts.weights).mean(), rtol=1e-10)
        rows = jnp.array([[0], [2]])
        chosen = jnp.stack([parts.weights[0, 0], parts.weights[1, 2]])
        assert np.isclose(alignment_penalty(model, variables, images, rows, power=2), (chosen**2).mean(), rtol=1e-10)
        # Finite differences: a stop_gradient anywhere on the dynamic weights would fail here.
        check_grads(
            jax.jit(lambda v: alignment_penalty(model, v, images, power=2) * 1e4),
            (variables,),
            order=1,
            modes=["rev"],
            rtol=1e-4,
        )


def test_a_unit_that_maximizes_its_output_learns_the_patterns():
    """CVPR 2021, Fig. 3: one rank-3 unit, b = 0, maximized on noisy copies of three images, spans them."""
    patterns = np.linalg.qr(np.random.default_rng(0).normal(size=(24, 3)))[0].T.astype(np.float32)
    keys = jax.random.split(jax.random.key(0), 2)
    which = jax.random.randint(keys[0], (300,), 0, 3)
    x = jnp.asarray(patterns)[which] + 0.05 * jax.random.normal(keys[1], (300, 24))
    x = x.reshape(300, 1, 1, 24)
    unit = DynamicAlignmentConv(1, 3, (1, 1))
    params = unit.init(jax.random.key(2), x)["params"]
    params = {**params, "b": jnp.zeros_like(params["b"])}
    tx = optax.sgd(0.2, momentum=0.9)

    @jax.jit
    def step(params, state):
        grads = jax.grad(lambda p: -unit.apply({"params": {**p, "b": jnp.zeros((1, 24))}}, x).mean())(params)
        updates, state = tx.update(grads, state)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for _ in range(400):
        params, state = step(params, state)
    product = np.asarray(params["A"][:, 0].T @ params["B"].T)  # A B, (D, D)
    basis = np.linalg.svd(product)[0][:, :3]
    cosines = np.linalg.svd(basis.T @ patterns.T)[1]
    assert cosines.min() > 0.95


def test_bfloat16_stays_close_and_keeps_float32_logits():
    model, variables, images = small()
    narrow = CoDANet(
        model.features, model.ranks, model.kernel_sizes, model.strides, temperature=2.0, dtype=jnp.bfloat16
    )
    logits, wide = jax.jit(narrow.apply)(variables, images), np.asarray(jax.jit(model.apply)(variables, images))
    assert logits.dtype == jnp.float32
    assert np.abs(logits - wide).max() < 0.03 * np.abs(wide - model.logit_bias).max()


def test_parameter_structure_is_frozen():
    _, variables, _ = small()
    shapes = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables)
    }
    assert shapes["params/layer_0/B"] == (18, 3)
    assert shapes["params/layer_0/A"] == (3, 4, 18)
    assert shapes["params/layer_0/b"] == (4, 18)
    assert len(shapes) == 9


@pytest.mark.parametrize(("field", "value"), [("strides", (1, 1)), ("temperature", 0.0), ("temperature", float("inf"))])
def test_bad_configurations_are_one_line(field, value):
    good = {"features": (4, 5, 3), "ranks": (3, 2, 2), "kernel_sizes": (3, 3, 1), "strides": (1, 2, 1)}
    with pytest.raises(ValueError, match=rf"\A.*{field}.*: got .*\Z"):
        CoDANet(**{**good, field: value})
