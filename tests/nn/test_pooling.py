"""Maximum pooling: hand-computed derivatives of ties, and Flax's where there are none or the first entry has all."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from flax import linen as nn

from jaxinterp import decompose, explainable
from jaxinterp.nn.baselines import VGG, AlexNet
from jaxinterp.nn.pooling import max_pool

SHAPES = {
    "halves": {"window": (2, 2)},
    "overlapping": {"window": (3, 3), "strides": (2, 2)},
    "padded": {"window": (3, 3), "strides": (2, 2), "padding": ((1, 1), (0, 1))},
    "same": {"window": (3, 2), "strides": (1, 2), "padding": "SAME"},
}
FIELD = np.array([[0, 1, 0], [1, 0, 1], [0, 1, 1]], np.float32)


def maps(rounded, size=(7, 8)):
    x = jax.random.normal(jax.random.key(15), (2, *size, 3)) - 5.0
    return jnp.round(x) if rounded else x


def slope(pool, x):
    """The gradient of the sum of all maxima, each with its own weight."""
    value, pullback = jax.vjp(pool, x)
    return pullback(jnp.cos(jnp.arange(value.size, dtype=x.dtype)).reshape(value.shape))[0]


@pytest.mark.parametrize(
    ("field", "ties", "want"),
    [
        (np.zeros((2, 2)), "shared", np.full((2, 2), 1 / 4)),
        (np.zeros((2, 2)), "first", [[1, 0], [0, 0]]),
        (np.array([[0, 2], [2, 1]]), "shared", [[0, 1 / 2], [1 / 2, 0]]),
        (np.array([[0, 2], [2, 1]]), "first", [[0, 1], [0, 0]]),
        # Two by two along three rows, then along three columns: a third has as much as the first two together.
        (np.zeros((3, 3)), "shared", np.outer([1, 1, 2], [1, 1, 2]) / 16),
        (np.zeros((3, 3)), "first", np.eye(1, 9).reshape(3, 3)),
        (FIELD, "first", np.eye(1, 9, 1).reshape(3, 3)),
        (FIELD[::-1], "first", np.eye(1, 9, 1).reshape(3, 3)),
        (FIELD[:, ::-1], "first", np.eye(1, 9, 1).reshape(3, 3)),
        (1 - FIELD, "first", np.eye(1, 9).reshape(3, 3)),
    ],
)
def test_ties_by_hand(field, ties, want):
    x, window = jnp.asarray(field, jnp.float32), field.shape
    found = jax.grad(lambda x: max_pool(x[None, :, :, None], window, ties=ties).sum())(x)
    np.testing.assert_array_equal(found, want)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("ties", ["shared", "first"])
def test_values_are_flaxs_and_so_are_derivatives_but_those_of_shared_ties(name, rounded, ties):
    x, shape = maps(rounded), SHAPES[name]
    window, strides = shape["window"], shape.get("strides", shape["window"])
    flax = lambda x: nn.max_pool(x, window, strides, shape.get("padding", "VALID"))  # noqa: E731
    ours = lambda x: max_pool(x, **shape, ties=ties)  # noqa: E731
    np.testing.assert_array_equal(ours(x), flax(x))
    found, other = slope(ours, x), slope(flax, x)
    if rounded and ties == "shared":
        assert jnp.abs(found - other).max() > 0.1
        np.testing.assert_allclose(found.sum(), other.sum(), rtol=1e-4)
    else:
        np.testing.assert_allclose(found, other, atol=1e-6)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("ties", ["shared", "first"])
def test_both_ways_of_differentiation_give_one_map_whose_value_is_the_maximum(name, rounded, ties):
    x = maps(rounded)
    direction = jax.random.normal(jax.random.key(16), x.shape)

    @jax.jit
    def both_ways(x, direction):
        pool = lambda x: max_pool(x, **SHAPES[name], ties=ties)  # noqa: E731
        value, forwards = jax.jvp(pool, (x,), (direction,))
        weights = jnp.cos(jnp.arange(value.size, dtype=x.dtype)).reshape(value.shape)
        (backwards,) = jax.vjp(pool, x)[1](weights)
        each = jax.vmap(lambda x, d: jax.jvp(pool, (x[None],), (d[None],))[1][0])(x, direction)
        return value, weights, forwards, backwards, each

    value, weights, forwards, backwards, each = map(np.asarray, both_ways(x, direction))
    np.testing.assert_allclose((backwards * np.asarray(direction)).sum(), (weights * forwards).sum(), rtol=1e-4)
    np.testing.assert_allclose((backwards * np.asarray(x)).sum(), (weights * value).sum(), rtol=1e-4)
    np.testing.assert_array_equal(each, forwards)


@pytest.mark.parametrize("ties", ["shared", "first"])
def test_not_a_number_stays_one(ties):
    for place in range(4):
        x = jnp.zeros(4).at[place].set(jnp.nan).reshape(1, 2, 2, 1)
        assert jnp.isnan(max_pool(x, ties=ties)).all()


def test_the_first_maximum_is_alexnets_on_flat_images_where_it_is_flaxs():
    model = AlexNet.cifar(3, widths=(2, 3, 2, 3, 2), hidden=4, ties="first")
    x = jnp.full((2, 32, 32, 3), 0.5)
    params = jax.jit(model.init)(jax.random.key(0), x)["params"]

    def with_flaxs_pooling(x):
        for i, side in enumerate((5, 5, 3, 3, 3)):
            own = params[f"conv_{i}"]
            x = nn.relu(nn.Conv(len(own["bias"]), (side, side), padding=side // 2).apply({"params": own}, x))
            x = nn.max_pool(x, (3, 3), (2, 2)) if i in (0, 1, 4) else x
        x = x.reshape(2, -1)
        for name in ("dense_0", "dense_1"):
            x = nn.relu(x @ params[name]["kernel"] + params[name]["bias"][None])
        return x @ params["classifier"]["kernel"] + params["classifier"]["bias"][None]

    def gradient(apply):
        return jax.jit(jax.grad(lambda x: apply(x)[:, 0].sum()))(x)

    want = gradient(with_flaxs_pooling)
    found = gradient(lambda x: model.apply({"params": params}, x))
    shared = gradient(lambda x: model.clone(ties="shared").apply({"params": params}, x))
    np.testing.assert_allclose(found, want, atol=1e-5 * float(jnp.abs(want).max()))
    assert jnp.linalg.norm(shared - want) > 0.5 * jnp.linalg.norm(want)
    parts = decompose(explainable(model, {"params": params}), x)
    assert jnp.abs(parts.residual).max() <= 1e-5 * jnp.abs(parts.logits).max()
    np.testing.assert_allclose(parts.weights[:, 0], want, atol=1e-5 * float(jnp.abs(want).max()))


@pytest.mark.slow
def test_vggs_value_does_not_depend_on_the_rule():
    model, x = VGG(11, classes=3, width=2, ties="first"), jnp.full((1, 32, 32, 3), 0.5)
    variables = jax.jit(model.init)(jax.random.key(0), x)
    first, shared = (decompose(explainable(model.clone(ties=ties), variables), x) for ties in ("first", "shared"))
    np.testing.assert_allclose(first.logits, shared.logits, rtol=1e-6)
    assert jnp.abs(first.weights - shared.weights).max() > 0.1 * jnp.abs(shared.weights).max()


@pytest.mark.parametrize(
    ("field", "given"),
    [
        ("ties", {"ties": "last"}),
        ("window", {"window": (0, 2)}),
        ("window", {"window": (8, 2)}),
        ("strides", {"strides": (1,)}),
        ("padding", {"padding": "FULL"}),
        ("padding", {"padding": ((2, 0), (0, 0))}),
        ("padding", {"padding": ((0, 0),)}),
    ],
)
def test_bad_input_is_one_line(field, given, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=rf"\A{field}: got .*\Z"):
        max_pool(maps(False), **given)
