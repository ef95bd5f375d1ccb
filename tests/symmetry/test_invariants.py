import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinterp.errors import ConfigError
from jaxinterp.symmetry.groups import permute, rotations
from jaxinterp.symmetry.invariants import (
    INVARIANTS,
    bispectrum,
    cross_power,
    linearized,
    moments,
    sorted_orbit,
    spectrum,
)

E = jax.random.normal(jax.random.key(0), (3, 8, 4))
every = pytest.mark.parametrize("name", INVARIANTS)


@every
def test_invariant_under_the_group_and_homogeneous(name):
    invariant = jax.jit(INVARIANTS[name])
    want = invariant(E)
    for h in range(8):
        np.testing.assert_allclose(invariant(permute(rotations(8), h, E)), want, atol=2e-5)
    for scale in (3.0, 1e-12, 1e12):
        np.testing.assert_allclose(invariant(scale * E), scale * want, rtol=1e-4, atol=1e-5 * scale)
    if name != "cross_power":  # a faint template beside a strong one is read as if it were alone
        alone = E.at[..., 1].set(0)
        both = invariant(E.at[..., 1].multiply(1e-9)) - invariant(alone)
        np.testing.assert_allclose(1e9 * both, want - invariant(alone), rtol=1e-4, atol=1e-4)


@every
def test_linearized_has_the_same_value_and_is_linear(name):
    invariant = jax.jit(INVARIANTS[name])
    np.testing.assert_allclose(linearized(invariant, E), invariant(E), rtol=1e-4, atol=1e-5)

    @jax.jit
    def derivatives(e):
        first = lambda e: jax.jvp(lambda d: linearized(invariant, d), (e,), (E,))[1]  # noqa: E731
        return jax.jvp(first, (e,), (E[::-1],))

    along, second = derivatives(E)
    np.testing.assert_allclose(along, invariant(E), rtol=1e-4, atol=2e-5)
    assert float(jnp.abs(second).max()) == 0


@every
def test_derivatives_are_finite_where_everything_is_zero(name):
    grad = jax.jit(jax.grad(lambda e: INVARIANTS[name](e).sum()))(jnp.zeros((1, 4, 2)))
    assert bool(jnp.isfinite(grad).all())


def test_values_by_brute_force():
    e = np.asarray(E, np.float64)
    f = np.fft.fft(e, axis=1) / np.sqrt(8)
    np.testing.assert_allclose(spectrum(E), np.abs(f[:, :5]).reshape(3, -1), rtol=1e-5)
    rows = [(i, j) for i in range(3) for j in range(i, 3)]
    products = np.stack([f[:, i] * f[:, j] * f[:, i + j].conj() for i, j in rows], 1)
    scaled = products / np.abs(products) ** (2 / 3)
    want = np.concatenate([scaled.real, scaled.imag], 1).reshape(3, -1)
    np.testing.assert_allclose(bispectrum(E, 3), want, atol=1e-5)
    cross = f[:, :5] * np.roll(f[:, :5], -1, 2).conj()
    root = cross / np.sqrt(np.abs(cross))
    want = np.concatenate([root.real, root.imag], 1).reshape(3, -1)
    np.testing.assert_allclose(cross_power(E), want, atol=1e-5)
    cube = (e**3).mean(1)
    np.testing.assert_allclose(moments(E, (3,)), np.cbrt(cube), rtol=1e-4)


def test_the_spectrum_forgets_what_the_bispectrum_keeps():
    signal = E[:1, :, :1]
    mirrored = signal[:, ::-1]
    np.testing.assert_allclose(spectrum(mirrored), spectrum(signal), atol=1e-5)
    assert float(jnp.abs(bispectrum(mirrored) - bispectrum(signal)).max()) > 0.1


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 24, 65])
def test_orbits_are_sorted_whatever_their_length(count):
    e = jax.random.normal(jax.random.key(count), (3, count, 2)).at[0, :, 0].set(1.0)
    np.testing.assert_array_equal(sorted_orbit(e), np.sort(np.asarray(e), axis=1).reshape(3, -1))


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("frequencies", lambda: bispectrum(E, 9)),
        ("orders", lambda: moments(E, (0,))),
        ("e", lambda: cross_power(E[:, :, :1])),
    ],
)
def test_what_has_no_value_raises(name, call):
    with pytest.raises(ConfigError, match=f"^{name}: "):
        call()
