"""Taylor units against their formulas, blocks against slices, and refusals of unfit arguments."""

import math
from dataclasses import replace
from itertools import combinations_with_replacement

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from jaxinterp.taylor.units import Level, TaylorLevel, TaylorUnit, blocks

U = np.random.default_rng(1).normal(size=(2, 3))


def weights_and_values(unit, u):
    """A unit's weights in float64, each off its initial value, and its values on u."""
    variables = jax.tree.map(lambda leaf: leaf + 0.1, jax.jit(unit.init)(jax.random.key(0), u))
    values = jax.jit(unit.apply)(variables, u)
    return {k: np.asarray(v, np.float64) for k, v in variables["params"].items()}, np.asarray(values)


def test_the_dense_unit_is_the_polynomial_of_all_monomials():
    w, values = weights_and_values(TaylorUnit(2, 3, "dense"), jnp.asarray(U, jnp.float32))
    expected = w["bias"] + U @ w["linear"]
    for m in (2, 3):
        products = np.stack([U[:, list(index)].prod(1) for index in combinations_with_replacement(range(3), m)], 1)
        expected = expected + products @ w[f"order_{m}"]
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-6)
    assert sum(v.size for v in w.values()) == 2 * math.comb(3 + 3, 3)


def test_the_cp_unit_sums_products_of_factors():
    w, values = weights_and_values(TaylorUnit(2, 3, "cp", 4), jnp.asarray(U, jnp.float32))
    expected = w["bias"] + U @ w["linear"]
    for m in (2, 3):
        product = np.prod([U @ w[f"factor_{m}_{j}"] for j in range(1, m + 1)], axis=0)
        expected = expected + product @ w[f"out_{m}"]
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-6)


def test_the_ccp_unit_is_its_recursion():
    w, values = weights_and_values(TaylorUnit(2, 3, "ccp", 4), jnp.asarray(U, jnp.float32))
    h = U @ w["factor_1"]
    for m in (2, 3):
        h = h + (U @ w[f"factor_{m}"]) * h
    np.testing.assert_allclose(values, w["bias"] + h @ w["out"], rtol=1e-5, atol=1e-6)
    assert sum(v.size for v in w.values()) == 3 * 3 * 4 + 4 * 2 + 2  # n d R + R C + C


def test_the_tucker_unit_contracts_its_cores():
    w, values = weights_and_values(TaylorUnit(2, 3, "tucker", 2), jnp.asarray(U, jnp.float32))
    u = U @ w["factors"]
    core_2, core_3 = w["core_2"].reshape(2, 2, 2), w["core_3"].reshape(2, 2, 2, 2)
    total = u @ w["core_1"] + np.einsum("na,nb,abo->no", u, u, core_2)
    total = total + np.einsum("na,nb,nc,abco->no", u, u, u, core_3)
    np.testing.assert_allclose(values, w["bias"] + total @ w["out"], rtol=1e-5, atol=1e-6)


def test_blocks_are_windows():
    z = np.arange(72.0, dtype=np.float32).reshape(1, 6, 6, 2)
    padded = np.pad(z, ((0, 0), (1, 1), (1, 1), (0, 0)))
    for side, stride, source in ((2, 2, z), (3, 1, padded), (4, 2, padded), (5, 3, padded)):
        result = np.asarray(blocks(jnp.asarray(z), side, stride))
        assert result.shape == (1, 6 // stride, 6 // stride, side * side * 2)
        for y, x in ((0, 0), (1, min(2, 6 // stride - 1))):
            expected = source[0, y * stride : y * stride + side, x * stride : x * stride + side]
            np.testing.assert_array_equal(result[0, y, x], expected.ravel())


@pytest.mark.parametrize(("side", "form"), [(2, "dense"), (4, "cp")])
def test_a_level_is_its_unit_on_every_block_shared_or_not(side, form):
    z = jax.random.normal(jax.random.key(0), (2, 4, 4, 1))
    level = Level(3, 2, side, 2, form=form)
    shared = TaylorLevel(level=level)
    variables = jax.jit(shared.init)(jax.random.key(1), z)
    unit = TaylorUnit(3, 2, form, 2)
    expected = unit.apply({"params": variables["params"]["unit"]}, blocks(z, side, 2))
    np.testing.assert_allclose(shared.apply(variables, z), expected, rtol=1e-4, atol=1e-5)
    separate = TaylorLevel(level=replace(level, shared=False))
    spread = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (2, 2, *leaf.shape)), variables["params"])
    np.testing.assert_allclose(separate.apply({"params": spread}, z), expected, rtol=1e-4, atol=1e-5)
    shapes = jax.tree.map(lambda leaf: leaf.shape, jax.eval_shape(separate.init, jax.random.key(0), z)["params"])
    assert shapes == jax.tree.map(lambda leaf: leaf.shape, spread)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: TaylorUnit(2, 2, "ring").init(jax.random.key(0), jnp.ones((1, 3))), "form"),
        (lambda: TaylorUnit(0).init(jax.random.key(0), jnp.ones((1, 3))), "features"),
        (lambda: TaylorUnit(2, 0).init(jax.random.key(0), jnp.ones((1, 3))), "order"),
        (lambda: TaylorUnit(2, rank=0).init(jax.random.key(0), jnp.ones((1, 3))), "rank"),
        (lambda: Level(2, side=3, stride=2), "side, stride"),
        (lambda: Level(2, side=2, stride=4), "side, stride"),
        (lambda: TaylorLevel(level=Level(2)).init(jax.random.key(0), jnp.ones((1, 5, 4, 1))), "stride"),
        (lambda: TaylorLevel(level=Level(2, side=10)).init(jax.random.key(0), jnp.ones((1, 4, 4, 1))), "side"),
    ],
)
def test_unfit_units_raise(call, name, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=f"^{name}: got"):
        call()
