"""The layer's algebra: its own derivative rules, chunks, and norms that cancel."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxinterp.models import alignment
from jaxinterp.models.alignment import DynamicAlignmentConv, coefficients, contract, gram, quadratic_form

KEYS = jax.random.split(jax.random.key(0), 5)


@pytest.fixture
def arrays():
    with jax.enable_x64(True):
        h = jax.random.normal(KEYS[0], (5, 3), jnp.float64)
        u = jax.random.normal(KEYS[1], (5, 3, 4), jnp.float64)
        A = jax.random.normal(KEYS[2], (3, 4, 6), jnp.float64)
        b = jax.random.normal(KEYS[3], (4, 6), jnp.float64)
        yield h, u, A, b


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


@pytest.mark.parametrize("rescale", ["squash", "l2"])
def test_chunks_change_neither_values_nor_gradients(monkeypatch, rescale):
    layer = DynamicAlignmentConv(3, 2, rescale=rescale)
    x, u = (jax.random.uniform(key, (3, 9, 7, 2)) for key in KEYS[:2])
    variables = layer.init(KEYS[2], x)
    chunked = []
    in_map = alignment.lax.map
    monkeypatch.setattr(alignment.lax, "map", lambda f, xs: chunked.append(len(xs[0])) or in_map(f, xs))

    def found(cache):
        monkeypatch.setattr(alignment, "CACHE", cache)
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
        held = partial(lambda p, b: coefficients(p, jnp.eye(r), gram(A, b), rescale), target[i][None])
        h, scale = held(b)
        exact = np.asarray(h[0], np.float64) @ np.asarray(A[:, 0], np.float64) + np.asarray(b[0], np.float64)
        norms.append(float(scale[0, 0]) * np.linalg.norm(exact))
        gradient = jax.grad(lambda b, held=held: held(b)[1].sum())(b)
        gradients.append(float(jnp.abs(gradient).max() / scale[0, 0]))
    assert max(norms) < 1.5
    assert np.isfinite(gradients).all()
    assert max(gradients) < 1e4


def test_a_patch_larger_than_the_padded_image_is_refused():
    layer = DynamicAlignmentConv(3, 2, (4, 2), padding=1)
    with pytest.raises(ValueError, match="kernel_size: got 4x2, more than the padded image's 3x5 pixels"):
        jax.eval_shape(layer.init, KEYS[0], jnp.zeros((1, 1, 3, 2)))
    assert layer.init_with_output(KEYS[0], jnp.zeros((1, 2, 3, 2)))[0].shape == (1, 1, 4, 3)
