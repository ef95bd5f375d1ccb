"""Maps of features: those of group CNNs and of brute-force least squares are found."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinterp.errors import ConfigError
from jaxinterp.glassbox.gcnn import GroupConv
from jaxinterp.symmetry.groups import dihedral, flips, rotations, transform, transform_regular
from jaxinterp.symmetry.maps import EquivariantMap, apply_map, fit_map, refine_map, row_ratios, with_identity_rows

Z = jnp.ones((9, 3, 3, 2))


def test_the_permutation_of_a_group_cnns_maps_is_found():
    group, images = rotations(4), jax.random.normal(jax.random.key(0), (40, 6, 6, 1))
    conv = GroupConv(group, 2, 3)
    variables = conv.init(jax.random.key(1), images)
    z, z_turned = (conv.apply(variables, transform(group, g, images)) for g in (0, 1))
    fitted = fit_map(z, z_turned, group, 1, support=1, ridge=1e-6)
    np.testing.assert_allclose(apply_map(fitted, z), transform_regular(group, 1, z), atol=1e-3)
    permutation = transform_regular(group, 1, jnp.eye(8).reshape(8, 1, 1, 4, 2)).reshape(8, 8)
    np.testing.assert_allclose(fitted.filters[0, 0], permutation, atol=1e-3)


@pytest.mark.parametrize("max_bytes", [1, 1 << 29])
def test_the_solution_is_that_of_brute_force_least_squares(max_bytes):
    rng, group, g, ridge = np.random.default_rng(0), dihedral(4), 5, 0.02
    z, target = (rng.standard_normal((9, 3, 3, 2)).astype(np.float32) + 0.5 for _ in range(2))
    moved = np.pad(np.asarray(transform(group, g, jnp.asarray(z)), np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    patches = [moved[n, y : y + 3, x : x + 3].ravel() for n in range(9) for y in range(3) for x in range(3)]
    centered = np.stack(patches) - np.mean(patches, 0)
    wanted = target.reshape(-1, 2).astype(np.float64)
    penalty = ridge * (centered**2).sum() / 18
    rows = np.concatenate([centered, penalty**0.5 * np.eye(18)])
    solution = np.linalg.lstsq(rows, np.concatenate([wanted - wanted.mean(0), np.zeros((18, 2))]))[0]
    bias = wanted.mean(0) - np.mean(patches, 0) @ solution

    found = fit_map(jnp.asarray(z), jnp.asarray(target), group, g, 3, ridge, max_bytes=max_bytes)
    np.testing.assert_allclose(found.filters.reshape(18, 2), solution, atol=1e-5)
    np.testing.assert_allclose(found.bias, bias, atol=1e-5)
    expected = (np.stack(patches) @ solution + bias).reshape(9, 3, 3, 2)
    np.testing.assert_allclose(apply_map(found, jnp.asarray(z)), expected, atol=1e-5)
    wide = fit_map(jnp.asarray(z[:, :1, :1]), jnp.asarray(target[:, :1, :1]), group, g, 7, ridge)
    assert wide.filters.shape == (1, 1, 2, 2)


def test_constant_channels_have_a_map_and_count_as_invariant():
    z = jnp.full((4, 2, 2, 2), 3.0)
    found = fit_map(z, z, flips(), 1, support=1)
    np.testing.assert_array_equal(found.filters, 0)
    np.testing.assert_array_equal(apply_map(found, z), z)
    np.testing.assert_array_equal(row_ratios(found), 0)
    np.testing.assert_array_equal(apply_map(with_identity_rows(found, 2), z), z)


def test_rows_are_replaced_in_the_order_of_their_ratios():
    filters = np.zeros((3, 3, 3, 3), np.float32)
    filters[1, 1] = [[2, 0, 1], [0, 0, 0], [0, 1, 2]]
    filters[0, 2, 0, 2] = 2
    given = EquivariantMap(jnp.asarray(filters), jnp.arange(3.0), flips(), 1)
    np.testing.assert_allclose(row_ratios(given), [0, 1, 5**0.5 / 3], rtol=1e-6)
    replaced = with_identity_rows(given, 2)
    np.testing.assert_array_equal(replaced.filters[1, 1], [[1, 0, 0], [0, 0, 0], [0, 1, 1]])
    assert float(jnp.abs(replaced.filters).sum()) == 3
    np.testing.assert_array_equal(replaced.bias, [0, 1, 0])
    np.testing.assert_array_equal(with_identity_rows(given, 0).filters, given.filters)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("phi_gx", {"phi_gx": Z[:8]}),
        ("phi_x", {"phi_x": Z[:, 0], "phi_gx": Z[:, 0]}),
        ("phi_x", {"phi_x": Z[:1], "phi_gx": Z[:1]}),
        ("x", {"phi_x": Z[:, :2], "phi_gx": Z[:, :2], "group": rotations(4)}),
        ("phi_x, phi_gx", {"phi_x": Z * jnp.nan}),
        ("support", {"support": 4}),
        ("ridge", {"ridge": -1.0}),
    ],
)
def test_maps_that_cannot_be_fitted_raise(name, arguments):
    with pytest.raises(ConfigError, match=f"^{name}: "):
        fit_map(**{"phi_x": Z, "phi_gx": Z, "group": flips(), "g": 1} | arguments)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("steps", {"steps": 0}),
        ("rate", {"rate": -1.0}),
        ("batch", {"batch": 0}),
        ("labels", {"labels": jnp.zeros(8, int)}),
        (r"given\[0\]", {"given": (Z[:3],)}),
        ("z", {"z": Z[0]}),
    ],
)
def test_maps_that_cannot_be_refined_or_applied_raise(name, arguments):
    given = EquivariantMap(jnp.ones((1, 1, 2, 2)), jnp.ones(2), flips(), 1)
    fields = {"z": Z, "labels": jnp.zeros(9, int), "steps": 1, "rate": 1e-3, "key": jax.random.key(0)}
    with pytest.raises(ConfigError, match=f"^{name}: "):
        refine_map(given, lambda z: z[:, 0, 0], **fields | arguments)
    with pytest.raises(ConfigError, match=r"^z: "):
        apply_map(given, Z[..., :1])
    with pytest.raises(ConfigError, match=r"^count: "):
        with_identity_rows(given, 3)
