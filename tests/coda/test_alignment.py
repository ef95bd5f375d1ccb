"""The layer's algebra: its own derivative rules, chunks, and norms that cancel."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec
from jax.test_util import check_grads
from jaxtyping import config

from jaxinterp.coda import alignment
from jaxinterp.coda.alignment import DynamicAlignmentConv, coefficients, contract, gram, quadratic_form
from jaxinterp.nn.platform import target

KEYS = jax.random.split(jax.random.key(0), 5)


@pytest.fixture
def arrays():
    with jax.enable_x64(True):
        h = jax.random.normal(KEYS[0], (5, 3), jnp.float64)
        u = jax.random.normal(KEYS[1], (5, 3, 4), jnp.float64)
        A = jax.random.normal(KEYS[2], (3, 4, 6), jnp.float64)
        b = jax.random.normal(KEYS[3], (4, 6), jnp.float64)
        yield h, u, A, b


@pytest.mark.slow
def test_derivative_rules(arrays):
    h, u, A, b = arrays
    square, cross, constant = gram(A, b)
    np.testing.assert_allclose(square, np.einsum("kjd,ljd->klj", A, A), rtol=1e-12)
    np.testing.assert_allclose(cross, np.einsum("kjd,jd->kj", A, b), rtol=1e-12)
    np.testing.assert_allclose(constant[0], (np.asarray(b) ** 2).sum(1), rtol=1e-12)
    np.testing.assert_allclose(contract(h, u), np.einsum("mk,mkj->mj", h, u), rtol=1e-12)
    np.testing.assert_allclose(quadratic_form(h, square), np.einsum("mk,klj,ml->mj", h, square, h), rtol=1e-12)
    check_grads(jax.jit(contract), (h, u), order=2)
    check_grads(jax.jit(lambda h, A: quadratic_form(h, gram(A, b)[0])), (h, A), order=2)
    check_grads(jax.jit(lambda h, u: jax.vmap(contract)(jnp.stack([h, 2 * h]), jnp.stack([u, u]))), (h, u), order=1)
    scale = jax.jit(lambda p, A, b: coefficients(p, A[:, 0].T, gram(A, b), "squash")[1])
    check_grads(scale, (u[:, 0] @ A[0], A, b), order=2)


@pytest.mark.parametrize("kind", ["cpu", "accelerator"])
def test_terms_of_the_norms_and_their_gradients_are_those_of_one_product(arrays, kind):
    _, _, A, b = arrays
    weights = [jax.random.normal(KEYS[4], shape, A.dtype) for shape in ((3, 3, 4), (3, 4), (1, 4))]

    def weighted(terms):
        return sum((weight * term).sum() for weight, term in zip(weights, terms, strict=True))

    def plain(A, b):
        return jnp.einsum("kjd,ljd->klj", A, A), jnp.einsum("kjd,jd->kj", A, b), (b**2).sum(1)[None]

    with target(kind):
        value, slopes = jax.jit(jax.value_and_grad(lambda A, b: weighted(gram(A, b)), (0, 1)))(A, b)
    want, plain_slopes = jax.jit(jax.value_and_grad(lambda A, b: weighted(plain(A, b)), (0, 1)))(A, b)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-11), (value, slopes), (want, plain_slopes))


@pytest.mark.slow
@pytest.mark.parametrize("rescale", ["squash", "l2"])
def test_chunks_change_neither_values_nor_gradients(monkeypatch, rescale):
    layer = DynamicAlignmentConv(3, 2, rescale=rescale)
    x, u = (jax.random.uniform(key, (3, 9, 7, 2)) for key in KEYS[:2])
    variables = layer.init(KEYS[2], x)
    chunked = []
    in_map = alignment.lax.map
    monkeypatch.setattr(alignment.lax, "map", lambda f, xs: chunked.append(len(xs[0])) or in_map(f, xs))

    def found(cache):
        monkeypatch.setattr(alignment, "CHUNK_BYTES", cache)
        apply = {
            "free": layer.apply,
            "frozen": partial(layer.apply, frozen=True),
            "through": lambda v, x: layer.apply(v, x, through=u),
        }

        def total(f, v, x):
            return sum((y * jnp.cos(y)).sum() for y in jax.tree.leaves(f(v, x)))

        return {name: jax.jit(jax.value_and_grad(partial(total, f), (0, 1)))(variables, x) for name, f in apply.items()}

    whole = found(1 << 30)
    assert not chunked
    parts = found(1)
    assert chunked == [3] * 3  # 189 positions in three chunks of 63, at most 64
    monkeypatch.undo()
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-6), parts, whole)


def test_cpu_accelerator_and_the_devices_of_a_mesh_agree(monkeypatch):
    """With what is large on a CPU made small: chunks, and Gram matrices unit by unit."""
    monkeypatch.setattr(alignment, "CHUNK_BYTES", 1)
    layer = DynamicAlignmentConv(3, 2)
    x, u = (jax.random.uniform(key, (8, 9, 8, 2)) for key in KEYS[:2])
    variables = jax.jit(layer.init)(KEYS[2], x)

    def total(v, x, u):
        outs = layer.apply(v, x), layer.apply(v, x, frozen=True), layer.apply(v, x, through=u)
        return sum((y * jnp.cos(y)).sum() for y in jax.tree.leaves(outs))

    def each(v, x, u):
        value, (dv, dx) = jax.value_and_grad(total, (0, 1))(v, x, u)
        return jax.lax.psum(value, "data"), (dv, dx)

    rows, whole = PartitionSpec("data"), PartitionSpec()
    mesh = Mesh(np.array(jax.devices()), ("data",))
    shard = partial(jax.shard_map, mesh=mesh, in_specs=(whole, rows, rows), out_specs=(whole, (whole, rows)))
    with target("cpu"):
        want = jax.jit(jax.value_and_grad(total, (0, 1)))(variables, x, u)
    close = partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5)
    with target("accelerator"):
        jax.tree.map(close, jax.jit(jax.value_and_grad(total, (0, 1)))(variables, x, u), want)
    jax.tree.map(close, jax.jit(shard(each))(variables, x, u), want)


@pytest.mark.parametrize("rescale", ["squash", "l2"])
def test_a_vector_that_cancels_keeps_its_bound_and_finite_gradients(rescale):
    """A_j h = −b_j up to rounding: ||v||² is lost in float32, but neither ||w|| ≤ 1 nor the gradient may be."""
    r = 16
    A = jax.random.normal(KEYS[0], (r, 1, r))
    target = jax.random.normal(KEYS[1], (32, r))
    v = target @ A[:, 0] * 1.0
    size = jnp.logspace(-6, 0, 32)
    norms, gradients = [], []
    for i in range(32):
        b = -v[i][None] * (1 + size[i])
        held = partial(lambda p, b: coefficients(p, gram(A, b), rescale), target[i][None])
        h, scale = held(b)
        exact = np.asarray(h[0], np.float64) @ np.asarray(A[:, 0], np.float64) + np.asarray(b[0], np.float64)
        norms.append(float(scale[0, 0]) * np.linalg.norm(exact))
        gradient = jax.grad(lambda b, held=held: held(b)[1].sum())(b)
        gradients.append(float(jnp.abs(gradient).max() / scale[0, 0]))
    assert max(norms) < 1.5
    assert np.isfinite(gradients).all()
    assert max(gradients) < 1e4


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kernel_size", 3),
        ("kernel_size", (0, 0)),
        ("kernel_size", (3, 3, 3)),
        ("strides", (0, 1)),
        ("strides", (1.5, 1)),
        ("padding", -1),
        ("padding", (1, -1)),
        ("rescale", "l3"),
    ],
)
def test_an_impossible_layer_is_one_line(field, value, monkeypatch):
    monkeypatch.setattr(config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=rf"\A{field}: got .*\Z"):
        DynamicAlignmentConv(3, 2, **{field: value})


@pytest.mark.parametrize(
    "x", [jnp.ones((8, 8, 2)), jnp.ones((1, 8, 8, 2), jnp.int32), jnp.ones((1, 8, 2, 2))], ids=["rank", "type", "size"]
)
def test_an_input_that_does_not_fit_is_one_line(x, monkeypatch):
    monkeypatch.setattr(config, "jaxtyping_disable", True)
    layer = DynamicAlignmentConv(3, 2, (5, 3), padding=0)
    with pytest.raises(ValueError, match=r"\Ax: got "):
        layer.init(KEYS[0], x)
    fitting = jnp.ones((1, 5, 3, 2))
    assert layer.apply(layer.init(KEYS[0], fitting), fitting).shape == (1, 1, 1, 3)
