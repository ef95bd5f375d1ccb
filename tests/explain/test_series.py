"""Orders of polynomials: against roots of unity, derivatives and integrated gradients; bad input in one line."""

from functools import cache

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from jaxinterp import decompose
from jaxinterp.explain import series
from jaxinterp.explain.attribute import integrated_gradients
from jaxinterp.explain.explainable import explainable
from jaxinterp.explain.series import NotPolynomialError, contributions, orders, pairs, propagate
from jaxinterp.taylor import PolynomialResNet, TaylorNet, hierarchical, overlapping, with_expansion_point

NETS = {
    "hierarchical": TaylorNet(levels=hierarchical((2, 3)), classes=2, size=4, param_dtype=jnp.float64),
    "overlapping": TaylorNet(levels=overlapping((2, 3)), classes=2, size=4, param_dtype=jnp.float64),
    "dense": TaylorNet(levels=hierarchical((2,), form="dense", order=3), classes=2, size=4, param_dtype=jnp.float64),
    "own": TaylorNet(
        levels=overlapping((2,), form="ccp", order=3, shared=False), classes=2, size=4, param_dtype=jnp.float64
    ),
    "direct": TaylorNet(levels=(), classes=2, head_order=4, head_form="tucker", head_rank=3, param_dtype=jnp.float64),
    "residual": PolynomialResNet(depths=(1, 1), widths=(2, 3), classes=2, param_dtype=jnp.float64),
}


@cache
def made(name):
    """Module, network of it with variables off their initial values, images, and expansion point; in float64."""
    net, rng = NETS[name], np.random.default_rng(0)
    x, x0 = jnp.asarray(rng.uniform(size=(2, 4, 4, 1))), rng.uniform(size=(4, 4, 1))
    variables = jax.jit(net.init)(jax.random.key(1, impl="unsafe_rbg"), x)
    variables = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf) + 0.1), variables)
    variables = with_expansion_point(variables, x0)
    return net, explainable(net, variables), x, jnp.asarray(x0)


def ordered(net, x, x0, max_order, **given):
    """Orders with the order first, (orders, batch, classes)."""
    return np.moveaxis(np.asarray(orders(net, x, x0=x0, max_order=max_order, **given).contributions), 2, 0)


def roots_of_unity(apply, variables, x, x0, degree):
    """f_m = 1/(D + 1) Σ_k f(x0 + ω^k d) ω^(−mk): a polynomial's coefficients from its values on the unit circle."""
    omega = np.exp(2j * np.pi * np.arange(degree + 1) / (degree + 1))
    complex_variables = jax.tree.map(lambda leaf: leaf.astype(jnp.complex128), variables)
    start, step = np.asarray(x0)[None], np.asarray(x - x0[None])
    values = np.stack([apply(complex_variables, jnp.asarray(start + w * step)) for w in omega])
    return np.einsum("knc,mk->mnc", values, np.array([omega ** (-m) for m in range(degree + 1)])) / (degree + 1)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name in ("overlapping", "dense", "direct", "residual")))
        for name in NETS
    ],
)
def test_orders_sum_to_the_value_and_agree_with_derivatives(name):
    with jax.enable_x64(True):
        module, net, x, x0 = made(name)
        found = ordered(net, x, x0, module.degree + 2)
        size = np.abs(found).max()
        np.testing.assert_allclose(found.sum(0), jax.jit(module.apply)(net.variables, x), atol=1e-10 * size)
        assert np.abs(found[module.degree + 1 :]).max() == 0
        truncated = orders(net, x, x0=x0, max_order=2)
        np.testing.assert_allclose(np.moveaxis(truncated.contributions, 2, 0), found[:3], atol=1e-12 * size)
        np.testing.assert_allclose(truncated.residual, found[3:].sum(0), atol=1e-10 * size)
        d, start = x - x0[None], jnp.broadcast_to(x0, x.shape)
        first = jax.jacfwd(lambda t: module.apply(net.variables, start + t * d))
        slope, curvature = jax.jit(lambda t: (first(t), jax.jacfwd(first)(t)))(0.0)
        np.testing.assert_allclose(found[1], slope, atol=1e-10 * size)
        np.testing.assert_allclose(found[2], curvature / 2, atol=1e-10 * size)


@pytest.mark.parametrize("name", ["overlapping", pytest.param("dense", marks=pytest.mark.slow)])
def test_orders_are_those_on_the_unit_circle_and_homogeneous(name, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # complex images are for this test alone
    with jax.enable_x64(True):
        module, net, x, x0 = made(name)
        found = ordered(net, x, x0, module.degree)

        def on_circle(complex_variables, z):
            return jax.jit(module.apply)(complex_variables, z)

        want = roots_of_unity(on_circle, net.variables, x, x0, module.degree)
        np.testing.assert_allclose(found, want.real, atol=1e-10 * np.abs(found).max())
        half = ordered(net, x0[None] + (x - x0[None]) / 2, x0, module.degree)
        powers = 0.5 ** np.arange(module.degree + 1)
        np.testing.assert_allclose(half, found * powers[:, None, None], atol=1e-12)


@pytest.mark.parametrize(
    "name", ["hierarchical", *(pytest.param(n, marks=pytest.mark.slow) for n in ("overlapping", "own", "residual"))]
)
def test_contributions_sum_to_orders_and_are_the_integrated_gradients(name):
    with jax.enable_x64(True):
        module, net, x, x0 = made(name)
        parts = contributions(net, x, x0=x0, max_order=module.degree)
        found = orders(net, x, x0=x0, max_order=module.degree)
        size = float(jnp.abs(found.contributions).max())
        sums = parts.contributions.reshape(*parts.contributions.shape[:3], -1).sum(-1)
        np.testing.assert_allclose(sums, found.contributions[:, :, 1:], atol=1e-12 * size)
        np.testing.assert_allclose(parts.bias, found.contributions[:, :, 0], atol=1e-12 * size)
        for reading in (parts, found):
            assert float(jnp.abs(reading.residual).max()) <= 1e-10 * size
        nodes = (module.degree + 1) // 2
        baseline = integrated_gradients(net, x, baseline=jnp.broadcast_to(x0, x.shape), steps=nodes)
        np.testing.assert_allclose(parts.contributions.sum(2), baseline.contributions, atol=1e-10 * size)
        total = decompose(net, x)  # in x − x0, its path frozen
        np.testing.assert_allclose(total.contributions, parts.contributions.sum(2), atol=1e-10 * size)
        np.testing.assert_allclose(total.bias, parts.bias, atol=1e-10 * size)


@pytest.mark.slow
def test_contributions_of_chosen_targets_and_orders_in_chunks():
    with jax.enable_x64(True):
        _, net, x, x0 = made("overlapping")
        whole = contributions(net, x, x0=x0, max_order=3)
        chosen = contributions(net, x, [1, 0], x0=x0, max_order=3, max_bytes=1)
        for i, target in enumerate((1, 0)):
            np.testing.assert_allclose(chosen.contributions[i, 0], whole.contributions[i, target], atol=1e-12)
            np.testing.assert_allclose(chosen.residual[i, 0], whole.residual[i, target], atol=1e-12)


def test_orders_at_a_level_are_those_of_the_network_above_it():
    with jax.enable_x64(True):
        module, net, x, x0 = made("hierarchical")
        found = ordered(net, x, x0, 4, layer="level_0")
        np.testing.assert_allclose(found.sum(0), jax.jit(module.apply)(net.variables, x), atol=1e-12)
        assert np.abs(found[3:]).max() < 1e-14 < np.abs(found[2]).max()  # one level above it: of order 2
        parts = contributions(net, x, x0=x0, max_order=2, layer="level_0")
        assert (parts.layer, parts.contributions.shape) == ("level_0", (2, 2, 2, 2, 2, 2))
        sums = parts.contributions.reshape(2, 2, 2, -1).sum(-1)
        np.testing.assert_allclose(sums, np.moveaxis(found[1:3], 0, 2), atol=1e-12)
        np.testing.assert_allclose(parts.bias, found[0], atol=1e-12)
        assert float(jnp.abs(parts.residual).max()) < 1e-12


@pytest.mark.parametrize("name", ["hierarchical", pytest.param("overlapping", marks=pytest.mark.slow)])
def test_pairs_sum_to_order_two_and_are_the_hessian(name):
    with jax.enable_x64(True):
        module, net, x, x0 = made(name)
        found = np.asarray(pairs(net, x, 1, x0=x0).contributions)[:, 0]
        second = contributions(net, x, 1, x0=x0, max_order=2).contributions[:, 0, 1, ..., 0]
        np.testing.assert_allclose(found.sum((-1, -2)).reshape(2, 4, 4), second, atol=1e-12)
        np.testing.assert_allclose(found.reshape(2, 16, 16), found.reshape(2, 16, 16).swapaxes(1, 2), atol=1e-12)
        hessian = jax.jit(jax.hessian(lambda x: module.apply(net.variables, x[None])[0, 1]))(x0).reshape(16, 16)
        d = np.asarray(x - x0[None]).reshape(2, 16)
        want = d[:, :, None] * np.asarray(hessian)[None] * d[:, None] / 2
        np.testing.assert_allclose(found.reshape(2, 16, 16), want, atol=1e-12)
        some = pairs(net, x, 1, x0=x0, pixels=[(1, 2)])
        np.testing.assert_allclose(some.contributions[:, 0, 0], found[:, 6], atol=1e-12)


class Kinked(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.relu(nn.Dense(3, name="under")(x)))


def test_a_module_that_is_no_polynomial_is_named():
    x = jnp.ones((1, 3))
    variables = Kinked().init(jax.random.key(0), x)
    with pytest.raises(NotPolynomialError, match=r"Kinked.*applies max"):
        orders(explainable(Kinked(), variables), x, x0=jnp.zeros(3), max_order=2)


@pytest.mark.parametrize(
    ("function", "want"),
    [
        (lambda x: x**3 + 2, [10.0, 12.0, 6.0, 1.0]),
        (lambda x: (1 + x) * (2 - x) / 4, [0.0, -3 / 4, -1 / 4, 0.0]),
        (lambda x: jnp.where(jnp.array([True]), jnp.square(x), 0), [4.0, 4.0, 1.0, 0.0]),
        (lambda x: jnp.concatenate([x, jnp.ones(1)]).sum()[None] - x[::-1], [1.0, 0.0, 0.0, 0.0]),
        (lambda x: lax.dynamic_update_slice(jnp.zeros(2), x, (1,))[1:] * x, [4.0, 4.0, 1.0, 0.0]),
        (lambda x: jax.jit(jax.checkpoint(lambda y: y * y))(x), [4.0, 4.0, 1.0, 0.0]),
        (lambda x: jnp.outer(x, x)[0], [4.0, 4.0, 1.0, 0.0]),
        (lambda x: jnp.zeros(2).at[1].set(x[0]).sum()[None] * x, [4.0, 4.0, 1.0, 0.0]),
        (lambda x: lax.optimization_barrier(x) * x, [4.0, 4.0, 1.0, 0.0]),
        (lambda x: lax.cond(True, lambda: jnp.ones(1), lambda: jnp.zeros(1)) + x, [3.0, 1.0, 0.0, 0.0]),
    ],
)
def test_operations_of_polynomials(function, want):
    found = propagate(function, jnp.array([2.0]), jnp.array([1.0]), 3)
    np.testing.assert_allclose(np.asarray(found).ravel(), want, rtol=1e-6)


MATRIX = jnp.asarray(np.random.default_rng(3).normal(size=(4, 4)), jnp.float32)
PLACES = jnp.array([0, 2])
OPERATIONS = {
    "stack": lambda x: jnp.stack([x, x * x], 1),
    "unstack": lambda x: jnp.unstack(x)[1] * jnp.unstack(x)[0],
    "tile": lambda x: jnp.tile(x * x, (2, 3)),
    "prod": jnp.prod,
    "prod of an axis": lambda x: jnp.prod(x, 0),
    "prod of nothing": lambda x: jnp.prod(x[:0], 0),
    "gradient of prod": jax.grad(lambda x: jnp.prod(x[0])),
    "cumprod": lambda x: jnp.cumprod(x, 1),
    "reversed cumprod": lambda x: lax.cumprod(x, 1, reverse=True),
    "multiply at": lambda x: x.at[0].multiply(x[1]),
    "multiply at different places": lambda x: x.at[PLACES].multiply(x[:2]),
    "multiply a constant at": lambda x: MATRIX[:3].astype(x.dtype).at[1:].multiply(x[:2]),
    "multiply by a constant twice": lambda x: x.at[jnp.array([0, 0])].multiply(3.0),
    "multiply beyond": lambda x: x.at[jnp.array([7, 1])].multiply(x[:2], mode="drop"),
    "divide at": lambda x: x.at[0].divide(2.0),
    "power at": lambda x: x.at[0].power(3.0),
    "subtract at": lambda x: x.at[0].subtract(x[1]),
    "power 0": lambda x: x**0,
    "power 5": lambda x: x**5,
    "float power": lambda x: x**2.0,
    "powers": lambda x: jnp.power(x, jnp.arange(12.0, dtype=x.dtype).reshape(3, 4) % 4),
    "fft": jnp.fft.fft2,
    "filter": lambda x: jnp.fft.irfft(jnp.fft.rfft(x) ** 2),
    "real and imaginary": lambda x: jnp.real(jnp.fft.fft(x)) * jnp.imag(jnp.fft.fft(x)),
    "modulus": lambda x: jnp.conj(jnp.fft.fft(x)) * jnp.fft.fft(x),
    "complex": lambda x: lax.complex(x, jnp.ones_like(x)) ** 2,
    "solve": lambda x: jnp.linalg.solve(MATRIX.astype(x.dtype), x.T),
    "triangular": lambda x: jax.scipy.linalg.solve_triangular(MATRIX.astype(x.dtype), x.T),
    "tridiagonal": lambda x: lax.linalg.tridiagonal_solve(*MATRIX[:3].astype(x.dtype), x.T),
    "reduce": lambda x: lax.reduce(x, jnp.full((), 2, x.dtype), lax.add, (0,)),
    "reduce by products": lambda x: lax.reduce(x, x[0, 0], lax.mul, (1,)),
    "windows": lambda x: lax.reduce_window(x, jnp.full((), 2, x.dtype), lax.add, (2, 2), (1, 1), "VALID"),
    "polynomial": lambda x: lax.polynomial(x, (x[0, 0], x, 3.0)) if hasattr(lax, "polynomial") else x,
    "ragged": lambda x: lax.ragged_dot(x, jnp.stack([x.T, x.T * x.T]), jnp.array([2, 1])),
    "rounding": lambda x: lax.reduce_precision(x, 11, 52) * lax.stop_gradient(x),
    "placing": lambda x: jax.device_put(x * x),
    "slope of maxima": lambda x: jax.vjp(lambda z: nn.max_pool(z[None], (2, 2)), MATRIX[..., None].astype(x.dtype))[1](
        x[None, :, :3, None]
    )[0],
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_are_the_polynomial_through_their_values(name):
    """Coefficients, by a fit through 13 values of t, of a function whose degree in t is at most 12."""
    with jax.enable_x64(True):
        function, rng = OPERATIONS[name], np.random.default_rng(0)
        x0, step = (jnp.asarray(rng.normal(size=(3, 4))) for _ in range(2))
        found = np.asarray(propagate(function, x0, step, 12))
        t = np.cos(np.pi * (np.arange(13) + 0.5) / 13)
        values = np.stack([np.asarray(function(x0 + jnp.float64(at) * step)) for at in t])
        want = np.linalg.solve(np.vander(t, increasing=True), values.reshape(13, -1)).reshape(values.shape)
        np.testing.assert_allclose(found, want, atol=1e-10 * max(1, np.abs(want).max()))
        np.testing.assert_array_equal(propagate(function, x0, step, 2), found[:3])


@pytest.mark.parametrize(
    "function",
    [
        jnp.abs,
        jnp.exp,
        lambda x: 1 / x,
        lambda x: x**-1,
        lambda x: x**0.5,
        lambda x: x**jnp.inf,
        lambda x: x**x,
        lambda x: jnp.ones(1).at[jnp.array([0, 0])].multiply(jnp.tile(x, 2)),
        lambda x: lax.fori_loop(0, 2, lambda _, c: c * c, x),
        lambda x: lax.reduce_window(x, jnp.float32(1), lax.mul, (1,), (1,), "VALID"),
        lambda x: jnp.where(x > 0, x, 0),
        lambda x: x.astype(jnp.int32),
        lambda x: lax.reduce(x, jnp.float32(0), lambda a, b: a + b + a * b, (0,)),
        lambda x: x.at[jnp.array([5])].get(mode="fill", fill_value=1.0),
        lambda x: lax.scan(lambda c, _: (c * c, None), x, None, length=2)[0],
    ],
)
def test_operations_that_are_not_of_polynomials_are_refused(function):
    with pytest.raises(NotPolynomialError, match=r"the function itself applies .* without loops"):
        propagate(function, jnp.array([2.0]), jnp.array([1.0]), 3)


def test_negative_orders_are_refused():
    with pytest.raises(ValueError, match="max_order"):
        propagate(jnp.square, jnp.ones(1), jnp.ones(1), -1)


def test_images_outside_of_the_training_range_are_warned_of_before_they_are_compiled():
    net = TaylorNet(levels=hierarchical((2,)), classes=2)
    x = jnp.zeros((1, 2, 2, 1))
    variables = net.init(jax.random.key(0), x)
    with pytest.warns(UserWarning, match=r"x: got values in \[3, 3\], trained on \[0, 1\]: a polynomial of degree 2"):
        orders(explainable(net, variables), x + 3, x0=jnp.zeros((2, 2, 1)), max_order=2)


def test_what_goes_around_a_level_is_in_the_residual():
    class Around(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2, name="inner")(x) ** 2 + 3 * x[:, :2]

    x, x0 = jnp.array([[1.0, 2.0, 0.5]]), jnp.array([0.5, -0.5, 0.0])
    variables = Around().init(jax.random.key(0), x)
    net, jitted = explainable(Around(), variables), explainable(jax.jit(Around().apply), variables)
    parts = contributions(net, x, x0=x0, max_order=2, layer="inner")
    np.testing.assert_allclose(parts.residual[0], 3 * (x[0] - x0)[:2], rtol=1e-5)
    again = contributions(jitted, x, x0=x0, max_order=2, layer="inner")
    np.testing.assert_allclose(again.contributions, parts.contributions, rtol=1e-6)


def test_energy_accuracy_and_penalty_are_their_formulas():
    terms = np.random.default_rng(0).normal(size=(5, 4, 3))  # examples, classes, orders
    found = np.moveaxis(terms, 2, 0)
    centered = found - found.mean(-1, keepdims=True)
    np.testing.assert_allclose(series.energy(terms), np.sqrt((centered**2).mean((1, 2))))
    labels = np.array([0, 1, 2, 3, 0])
    want = [((found[: m + 1].sum(0)).argmax(1) == labels).mean() for m in range(3)]
    np.testing.assert_allclose(series.truncated_accuracy(terms, labels), want)
    penalty = 2 * (found[1] ** 2).mean() + 4 * (found[2] ** 2).mean()
    assert float(series.order_penalty(jnp.asarray(found, jnp.float32), 2.0)) == pytest.approx(penalty, rel=1e-5)
    with pytest.raises(ValueError, match="labels"):
        series.truncated_accuracy(terms, np.array([7, 8, 9, 7, 8]))
    with pytest.raises(ValueError, match="growth"):
        series.order_penalty(jnp.asarray(found, jnp.float32), -1.0)


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("x0", {"x0": jnp.zeros(2)}),
        ("max_order", {"max_order": -1}),
        ("x", {"x": jnp.full((1, 3), jnp.nan)}),
        ("x0", {"x0": jnp.full(3, jnp.inf)}),
        ("network", {"net": lambda x: x.sum()}),
        ("layer", {"layer": "level_9"}),
        ("variables", {"net": nn.Dense(2).apply}),
        ("variables", {"net": nn.Dense(2)}),
        ("targets", {"targets": 3}),
    ],
)
def test_bad_input_is_one_line(field, change, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    given = {"net": lambda x: x * x, "x": jnp.ones((1, 3)), "x0": jnp.zeros(3), "max_order": 2, **change}
    with pytest.raises(ValueError, match=rf"\A{field}: got .*\Z"):
        orders(**given)


@pytest.mark.parametrize("pixels", [[(2, 0)], np.zeros((2, 3), int)])
def test_pixels_outside_of_the_image_raise(pixels, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match="pixels"):
        pairs(lambda x: x.reshape(1, -1) ** 2, jnp.ones((1, 2, 2, 1)), x0=jnp.zeros((2, 2, 1)), pixels=pixels)
