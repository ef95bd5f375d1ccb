"""TaylorNet and PolynomialResNet: counts, the polynomial's degree, path quadrature, and refusals of bad input."""

import math
import warnings

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from jaxinterp.taylor import (
    Level,
    PolynomialResNet,
    TaylorNet,
    describe,
    hierarchical,
    overlapping,
    path_affine,
    with_expansion_point,
)

KEY = jax.random.key(0)


def test_counts_are_those_of_the_formulas():
    rows = {row.name: row for row in describe(TaylorNet(levels=hierarchical(), size=32), (28, 28, 1))}
    assert rows["whole network"].parameters == 40_482
    assert rows["level 1"].parameters == 16 * (1 + 32) + 2 * 32 * 16 + 16 * 16
    assert rows["level 0"].coefficients == 8 * math.comb(4 + 2, 2)
    assert rows["whole network"].coefficients == 10 * math.comb(784 + 16, 16)
    assert describe(TaylorNet(levels=overlapping(), size=32), (28, 28, 1))[-1].parameters == 110_514
    separate = describe(TaylorNet(levels=hierarchical((8,), shared=False)), (4, 4, 1))[0]
    assert (separate.parameters, separate.coefficients) == (4 * 168, 4 * 8 * math.comb(4 + 2, 2))
    direct = TaylorNet(levels=(), head_order=2, head_form="ccp", head_rank=64)
    assert describe(direct, (32, 32, 1))[-1].parameters == 131_722  # the anchor, on images of 32 x 32


def test_pooling_and_placing_are_the_mean_of_blocks_in_the_middle_of_zeros():
    net = TaylorNet(levels=(), classes=2, pool=2, size=4)
    x = jax.random.uniform(KEY, (1, 4, 4, 1))
    variables = jax.jit(net.init)(jax.random.key(1), x)
    z = np.zeros((4, 4, 1))
    z[1:3, 1:3] = np.asarray(x[0]).reshape(2, 2, 2, 2, 1).mean((1, 3))
    expected = z.ravel() @ np.asarray(variables["params"]["head"]["linear"])
    np.testing.assert_allclose(net.apply(variables, x)[0], expected, rtol=1e-5, atol=1e-6)


def differences(net, variables, x, points):
    """Largest finite differences of order degree and degree + 1 on the line t ↦ f(t x)."""
    line = jnp.linspace(0, 1, points, dtype=x.dtype)[:, None, None, None] * x
    values = np.asarray(jax.jit(net.apply)(variables, line), np.float64)
    return [np.abs(np.diff(values, n, axis=0)).max() for n in (net.degree, net.degree + 1)]


def test_differences_beyond_the_degree_vanish():
    with jax.enable_x64(True):
        net = TaylorNet(levels=hierarchical((2, 2)), classes=2, param_dtype=jnp.float64)
        x = jax.random.uniform(KEY, (1, 4, 4, 1), jnp.float64)
        variables = jax.jit(net.init)(KEY, x)
        at_degree, beyond = differences(net, variables, x, 8)
        assert net.degree == 4
        assert beyond < 1e-12 < at_degree


def test_the_residual_network_is_a_polynomial_in_evaluation_and_starts_linear():
    net = PolynomialResNet(depths=(0, 1), widths=(2, 3), classes=2)
    x = jax.random.uniform(KEY, (1, 4, 4, 1))
    variables = jax.jit(net.init)(KEY, x)
    assert net.degree == 2
    assert differences(net, variables, x, 6)[0] < 1e-5  # alpha = 0: no product yet
    moved = {**variables, "params": jax.tree.map(lambda leaf: leaf + 0.2, variables["params"])}
    at_degree, beyond = differences(net, moved, x, 6)
    assert beyond < 1e-3 * at_degree


def test_quadrature_along_the_path_is_exact_for_every_degree():
    coefficients = jnp.arange(1.0, 7.0)
    for degree in (1, 2, 5):

        def polynomial(x, degree=degree):
            return (coefficients[None, :degree] * x ** (1 + jnp.arange(degree, dtype=x.dtype)[None])).sum(
                1, keepdims=True
            )

        x, x0 = jnp.array([[1.1]]), jnp.array([0.3])
        np.testing.assert_allclose(path_affine(polynomial, x, x0, degree), polynomial(x), rtol=1e-5)


def test_images_outside_of_the_training_range_raise_a_warning():
    net = TaylorNet(levels=hierarchical((2,)), classes=2)
    x = jnp.zeros((1, 2, 2, 1))
    variables = jax.jit(net.init)(KEY, x)
    with pytest.warns(UserWarning, match=r"x: got values in \[0, 1.5\], trained on \[0, 1\]: a polynomial of degree 2"):
        net.apply(variables, x.at[0, 0, 0, 0].set(1.5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jax.jit(net.apply)(variables, 2 + x)  # values are unknown while it is compiled


def init(net, side=4):
    return net.init(KEY, jnp.ones((1, side, side, 1)))


def another_point(point):
    return with_expansion_point(init(TaylorNet(levels=(), classes=2), 3), point)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: init(TaylorNet(levels=(4,))), "levels"),
        (lambda: init(TaylorNet(levels=(), size=2)), "size"),
        (lambda: init(TaylorNet(levels=(), pool=2), 5), "pool"),
        (lambda: init(TaylorNet(levels=(), scale=0.0)), "scale"),
        (lambda: init(TaylorNet(levels=(), bounds=(1.0, 0.0))), "bounds"),
        (lambda: init(TaylorNet(levels=(Level(2, side=10),))), "side"),
        (lambda: init(PolynomialResNet(depths=(1, 1), widths=(2,))), "depths, widths"),
        (lambda: TaylorNet(levels=()).apply(init(TaylorNet(levels=()), 3), jnp.ones((1, 4, 4, 1))), "x"),
        (lambda: another_point(np.zeros((3, 3))), "point"),
        (lambda: another_point(np.full((3, 3, 1), np.nan)), "point"),
    ],
)
def test_bad_input_raises_in_one_line(call, name, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=f"^{name}: got") as error:
        call()
    assert "\n" not in str(error.value)
