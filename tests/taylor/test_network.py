"""TaylorNet: units against their formulas, blocks, counts, the polynomial's degree, and bad input in one line."""

import math
import warnings
from itertools import combinations_with_replacement

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from jaxinterp.taylor.network import (
    Level,
    PolynomialResNet,
    TaylorLevel,
    TaylorNet,
    TaylorUnit,
    blocks,
    describe,
    hierarchical,
    overlapping,
    path_affine,
    with_expansion_point,
)


def made(unit, z):
    """A unit's weights in float64 and its values, every weight off its initial value."""
    variables = jax.jit(unit.init)(jax.random.key(0), z)
    variables = jax.tree.map(lambda leaf: leaf + 0.1, variables)
    return {k: np.asarray(v, np.float64) for k, v in variables["params"].items()}, np.asarray(unit.apply(variables, z))


U = np.asarray(jax.random.normal(jax.random.key(1), (2, 3)), np.float64)


def test_the_dense_unit_is_the_polynomial_of_all_monomials():
    w, found = made(TaylorUnit(2, 3, "dense"), jnp.asarray(U, jnp.float32))
    want = w["bias"] + U @ w["linear"]
    for m in (2, 3):
        products = np.stack([U[:, list(index)].prod(1) for index in combinations_with_replacement(range(3), m)], 1)
        want = want + products @ w[f"order_{m}"]
    np.testing.assert_allclose(found, want, rtol=1e-5)
    assert sum(v.size for v in w.values()) == 2 * math.comb(3 + 3, 3)


def test_the_cp_unit_sums_products_of_factors():
    w, found = made(TaylorUnit(2, 3, "cp", 4), jnp.asarray(U, jnp.float32))
    want = w["bias"] + U @ w["linear"]
    for m in (2, 3):
        product = np.prod([U @ w[f"factor_{m}_{j}"] for j in range(1, m + 1)], axis=0)
        want = want + product @ w[f"out_{m}"]
    np.testing.assert_allclose(found, want, rtol=1e-5)


def test_the_ccp_unit_is_its_recursion():
    w, found = made(TaylorUnit(2, 3, "ccp", 4), jnp.asarray(U, jnp.float32))
    h = U @ w["factor_1"]
    for m in (2, 3):
        h = h + (U @ w[f"factor_{m}"]) * h
    np.testing.assert_allclose(found, w["bias"] + h @ w["out"], rtol=1e-5)
    assert sum(v.size for v in w.values()) == 3 * 3 * 4 + 4 * 2 + 2  # n d R + R C + C


def test_the_tucker_unit_contracts_its_cores():
    w, found = made(TaylorUnit(2, 3, "tucker", 2), jnp.asarray(U, jnp.float32))
    u = U @ w["factors"]
    core_2, core_3 = w["core_2"].reshape(2, 2, 2), w["core_3"].reshape(2, 2, 2, 2)
    total = u @ w["core_1"] + np.einsum("na,nb,abo->no", u, u, core_2)
    total = total + np.einsum("na,nb,nc,abco->no", u, u, u, core_3)
    np.testing.assert_allclose(found, w["bias"] + total @ w["out"], rtol=1e-5)


def test_blocks_are_windows():
    z = jax.random.normal(jax.random.key(0), (1, 6, 6, 2))
    padded = np.pad(np.asarray(z), ((0, 0), (1, 1), (1, 1), (0, 0)))
    for side, stride, source in ((2, 2, np.asarray(z)), (3, 1, padded), (4, 2, padded), (5, 3, padded)):
        found = blocks(z, side, stride)
        assert found.shape == (1, 6 // stride, 6 // stride, side * side * 2)
        for y, x in ((0, 0), (1, min(2, 6 // stride - 1))):
            want = source[0, y * stride : y * stride + side, x * stride : x * stride + side]
            np.testing.assert_array_equal(found[0, y, x], want.ravel())


@pytest.mark.parametrize("side", [2, 4])
def test_a_level_is_its_unit_on_every_block_shared_or_not(side):
    z = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
    level = Level(5, 4, side, 2)
    shared = TaylorLevel(level=level)
    variables = jax.jit(shared.init)(jax.random.key(1), z)
    unit = TaylorUnit(5, 2, "cp", 4)
    want = unit.apply({"params": variables["params"]["unit"]}, blocks(z, side, 2))
    np.testing.assert_allclose(shared.apply(variables, z), want, rtol=1e-4, atol=1e-5)
    own = TaylorLevel(level=Level(5, 4, side, 2, shared=False))
    spread = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (2, 2, *leaf.shape)), variables["params"])
    np.testing.assert_allclose(own.apply({"params": spread}, z), want, rtol=1e-4, atol=1e-5)
    shapes = jax.tree.map(lambda leaf: leaf.shape, jax.eval_shape(own.init, jax.random.key(0), z)["params"])
    assert shapes == jax.tree.map(lambda leaf: leaf.shape, spread)


def test_counts_are_those_of_the_formulas():
    rows = {row.name: row for row in describe(TaylorNet(levels=hierarchical(), size=32), (28, 28, 1))}
    assert rows["whole network"].parameters == 40_482
    assert rows["level 1"].parameters == 16 * (1 + 32) + 2 * 32 * 16 + 16 * 16
    assert rows["level 0"].coefficients == 8 * math.comb(4 + 2, 2)
    assert rows["whole network"].coefficients == 10 * math.comb(784 + 16, 16)
    assert describe(TaylorNet(levels=overlapping(), size=32), (28, 28, 1))[-1].parameters == 110_514
    own = describe(TaylorNet(levels=hierarchical((8,), shared=False)), (4, 4, 1))[0]
    assert (own.parameters, own.coefficients) == (4 * 168, 4 * 8 * math.comb(4 + 2, 2))
    direct = TaylorNet(levels=(), head_order=2, head_form="ccp", head_rank=64)
    assert describe(direct, (32, 32, 1))[-1].parameters == 131_722  # the anchor, on images of 32 x 32


def test_pooling_and_placing_are_the_mean_of_blocks_in_the_middle_of_zeros():
    net = TaylorNet(levels=(), classes=2, pool=2, size=4)
    x = jax.random.uniform(jax.random.key(0), (1, 4, 4, 1))
    variables = jax.jit(net.init)(jax.random.key(1), x)
    z = np.zeros((4, 4, 1))
    z[1:3, 1:3] = np.asarray(x[0]).reshape(2, 2, 2, 2, 1).mean((1, 3))
    want = z.ravel() @ np.asarray(variables["params"]["head"]["linear"])
    np.testing.assert_allclose(net.apply(variables, x)[0], want, rtol=1e-5, atol=1e-6)


def test_differences_beyond_the_degree_vanish():
    with jax.enable_x64(True):
        net = TaylorNet(levels=hierarchical((3, 3)), classes=2, param_dtype=jnp.float64)
        x = jax.random.uniform(jax.random.key(0), (1, 4, 4, 1), jnp.float64)
        variables = jax.jit(net.init)(jax.random.key(1), x)
        line = np.concatenate([np.asarray(net.apply(variables, t * x)) for t in np.linspace(0, 1, 8)])
        differences = [np.abs(np.diff(line, n, axis=0)).max() for n in (4, 5)]
        assert net.degree == 4
        assert differences[1] < 1e-12 < differences[0]


def test_the_residual_network_is_a_polynomial_in_evaluation_and_starts_linear():
    net = PolynomialResNet(depths=(1, 1), widths=(3, 4), classes=2)
    x = jax.random.uniform(jax.random.key(0), (2, 4, 4, 1))
    variables = jax.jit(net.init)(jax.random.key(1), x)
    apply = jax.jit(net.apply)
    f0, f1, f2 = (apply(variables, t * x) for t in (0.0, 0.5, 1.0))
    np.testing.assert_allclose(f1, (f0 + f2) / 2, rtol=1e-4, atol=1e-5)  # alpha = 0: no product yet
    moved = jax.tree.map(lambda leaf: leaf + 0.2, variables["params"])
    line = np.concatenate([apply({**variables, "params": moved}, t * x[:1]) for t in np.linspace(0, 1, 6)])
    assert net.degree == 4
    sizes = [float(np.abs(np.diff(line, n, axis=0)).max()) for n in (2, 5)]
    assert sizes[1] < 1e-3 * sizes[0]


def test_quadrature_along_the_path_is_exact_for_every_degree():
    coefficients = jnp.arange(1.0, 7.0)
    for degree in (1, 2, 5, 6):

        def polynomial(x, degree=degree):
            return (coefficients[None, :degree] * x ** (1 + jnp.arange(degree, dtype=x.dtype)[None])).sum(
                1, keepdims=True
            )

        x, x0 = jnp.array([[1.1]]), jnp.array([0.3])
        np.testing.assert_allclose(path_affine(polynomial, x, x0, degree), polynomial(x), rtol=1e-5)


def test_images_outside_of_the_training_range_are_warned_of():
    net = TaylorNet(levels=hierarchical((2,)), classes=2)
    x = jnp.zeros((1, 2, 2, 1))
    variables = net.init(jax.random.key(0), x)
    with pytest.warns(UserWarning, match=r"x: got values in \[0, 1.5\], trained on \[0, 1\]: a polynomial of degree 2"):
        net.apply(variables, x.at[0, 0, 0, 0].set(1.5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jax.jit(net.apply)(variables, 2 + x)  # not known while it is compiled


def started(**fields):
    return TaylorNet(levels=(), **fields).init(jax.random.key(0), jnp.ones((1, 4, 4, 1)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: TaylorUnit(2, 2, "ring").init(jax.random.key(0), jnp.ones((1, 3))), "form: got 'ring', expected"),
        (lambda: TaylorUnit(2, 0).init(jax.random.key(0), jnp.ones((1, 3))), "order: got 0, expected at least 1"),
        (lambda: Level(2, side=3, stride=2), "side, stride: got 3, 2, expected 1 <= stride <= side"),
        (lambda: describe(TaylorNet(levels=hierarchical((2,))), (5, 5, 1)), "stride: got 2 on a map of 5x5, expected"),
        (lambda: describe(TaylorNet(levels=(4,)), (4, 4, 1)), "levels: got 4, expected entries such as Level"),
        (lambda: describe(TaylorNet(levels=(), size=2), (5, 5, 1)), "size: got 2, expected at least 5"),
        (lambda: describe(TaylorNet(levels=(), pool=2), (5, 5, 1)), "pool: got 2 on 5x5 images, expected a divisor"),
        (lambda: started(scale=0.0), "scale: got 0.0, expected a"),
        (lambda: started(bounds=(1.0, 0.0)), r"bounds: got \(1.0, "),
    ],
)  # fmt: skip
def test_bad_input_is_refused_in_one_line(call, message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=message):
        call()


def test_images_of_another_size_than_the_expansion_point_are_refused():
    net = TaylorNet(levels=(), classes=2)
    variables = net.init(jax.random.key(0), jnp.zeros((1, 3, 3, 1)))
    with pytest.raises(ValueError, match=r"x: got images of shape \(4, 4, 1\), expected \(3, 3, 1\)"):
        net.apply(variables, jnp.zeros((1, 4, 4, 1)))
    wide = TaylorNet(levels=(Level(2, side=10, stride=2),), classes=2)
    with pytest.raises(ValueError, match="side: got 10 on a map of 4x4, expected at most 8"):
        wide.init(jax.random.key(0), jnp.zeros((1, 4, 4, 1)))
    with pytest.raises(ValueError, match="depths, widths: got 2 and 1 entries"):
        PolynomialResNet(depths=(1, 1), widths=(2,)).init(jax.random.key(0), jnp.zeros((1, 3, 3, 1)))


def test_an_unfit_expansion_point_is_refused(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    net = TaylorNet(levels=(), classes=2)
    variables = net.init(jax.random.key(0), jnp.zeros((1, 3, 3, 1)))
    with pytest.raises(ValueError, match=r"point: got shape \(3, 3\), expected \(3, 3, 1\)"):
        with_expansion_point(variables, np.zeros((3, 3)))
    with pytest.raises(ValueError, match="point: got NaN or infinite values"):
        with_expansion_point(variables, np.full((3, 3, 1), np.nan))
