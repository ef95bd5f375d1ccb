import itertools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from jaxinterp.data.images import rotated
from jaxinterp.errors import ConfigError
from jaxinterp.symmetry.groups import (
    Element,
    Group,
    dihedral,
    flips,
    is_exact,
    orbit,
    permute,
    rotations,
    scales,
    shifts,
    transform,
    transform_regular,
)

X = jax.random.uniform(jax.random.key(0), (2, 6, 6, 2))
CLOSED = [rotations(1), rotations(4), rotations(16), dihedral(4), dihedral(3), flips(), shifts(6, 6, 2)]
EXACT = [rotations(4), dihedral(4), flips("vertical"), shifts(6, 6, 3)]


@pytest.mark.parametrize("group", CLOSED, ids=lambda g: g.name)
def test_tables_are_those_of_groups(group):
    n, table = len(group), group.table
    assert group.closed
    assert (table[0] == np.arange(n)).all()
    assert (table[:, 0] == np.arange(n)).all()
    assert (np.sort(table, axis=1) == np.arange(n)).all()  # every row and column holds every element once
    assert (np.arange(n) == np.sort(table, axis=0).T).all()
    assert (table[np.arange(n), group.inverse] == 0).all()
    some = list(itertools.islice(itertools.product(range(n), repeat=3), 0, None, 7))
    assert all(table[table[a, b], c] == table[a, table[b, c]] for a, b, c in some)


@pytest.mark.parametrize("group", EXACT, ids=lambda g: g.name)
def test_exact_actions_are_left_actions_by_permutations(group):
    assert is_exact(group, 6, 6)
    for g, h in itertools.product(range(len(group)), repeat=2):
        both = transform(group, g, transform(group, h, X))
        np.testing.assert_array_equal(both, transform(group, int(group.table[g, h]), X))
    np.testing.assert_array_equal(orbit(group, X)[:, 1], transform(group, 1, X))
    np.testing.assert_array_equal(jnp.sort(orbit(group, X)[:, -1].ravel()), jnp.sort(X.ravel()))


def test_elements_move_as_their_names_say():
    image = X[:1]
    turns, mirrors = rotations(4), dihedral(4)
    for i in range(4):
        want = jnp.rot90(image, i, axes=(1, 2))
        np.testing.assert_array_equal(transform(turns, i, image), want)
        mirrored = jnp.rot90(image[:, :, ::-1], i, axes=(1, 2))
        np.testing.assert_array_equal(transform(mirrors, 4 + i, image), mirrored)
    np.testing.assert_array_equal(transform(flips(), 1, image), image[:, :, ::-1])
    rolled = jnp.roll(image, (2, 4), axis=(1, 2))
    np.testing.assert_array_equal(transform(shifts(6, 6, 2), 5, image), rolled)


def test_interpolation_is_bilinear_and_black_outside():
    eighth = Group("eighth", (Element(1.0, 0.0, 0.0, 1.0), Element(1.0, 0.0, 0.0, 1.0, 0.25, 0.0)))
    image = jnp.array([1.0, 3.0, 2.0]).reshape(1, 3, 1, 1)
    np.testing.assert_allclose(transform(eighth, 1, image).ravel(), [0.75, 2.5, 2.25])
    shrunk = transform(scales(2.0, 1), 1, jnp.ones((1, 4, 4, 1)))[0, :, :, 0]
    np.testing.assert_allclose(shrunk[1:3, 1:3], 1.0)
    assert float(shrunk[0].max()) < 0.6


def test_scales_are_no_group():
    group = scales(2**0.5, 2)
    assert not group.closed
    assert group.table[1, 2] == 0
    assert group.table[4, 4] == -1


def test_regular_action_is_a_left_action_and_permute_that_of_responses():
    group = dihedral(4)
    z = jax.random.normal(jax.random.key(1), (1, 4, 4, 8, 2))
    template = jax.random.normal(jax.random.key(2), (6, 6, 2))

    def responses(x):
        return jnp.einsum("nghwc,hwc->ng", orbit(group, x), template, precision="highest")[:, :, None]

    for g, h in [(1, 5), (6, 3), (4, 7)]:
        both = transform_regular(group, g, transform_regular(group, h, z))
        np.testing.assert_array_equal(both, transform_regular(group, int(group.table[g, h]), z))
        np.testing.assert_allclose(responses(transform(group, h, X)), permute(group, h, responses(X)), rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("x", lambda: transform(rotations(4), 1, jnp.ones((1, 3, 4, 1)))),
        ("x", lambda: transform(shifts(4, 4), 1, jnp.ones((1, 6, 6, 1)))),
        ("x", lambda: transform(rotations(8), 1, jnp.ones((1, 4, 4, 1), jnp.uint8))),
        ("x", lambda: transform(rotations(4), 1, X[:0])),
        ("x", lambda: transform(rotations(4), 1, X[0, 0])),
        ("x", lambda: rotated(X[:, :4], jnp.zeros(2))),
        ("g", lambda: transform(rotations(4), 4, X)),
        ("g", lambda: transform(rotations(4), 1.5, X)),
        ("h", lambda: permute(rotations(4), 7, jnp.ones((1, 4, 1)))),
        ("e", lambda: permute(rotations(4), 1, jnp.ones((1, 5, 1)))),
        ("group", lambda: permute(scales(2.0, 1), 1, jnp.ones((1, 3, 1)))),
        ("z", lambda: transform_regular(rotations(4), 1, jnp.ones((1, 4, 4, 3, 2)))),
        ("axis", lambda: flips("horizontl")),
        ("step", lambda: shifts(4, 4, 0)),
        ("n", lambda: rotations(0)),
        ("n", lambda: rotations(2.5)),
        ("n", lambda: dihedral("4")),
        ("height", lambda: shifts(5, 4, 2)),
        ("ratio", lambda: scales(0.5, 1)),
        ("elements", lambda: Group("odd", rotations(4).elements[1:])),
        ("elements", lambda: Group("twice", rotations(4).elements + rotations(2).elements)),
        ("spectrum", lambda: dihedral(4).require_cyclic("spectrum")),
    ],
)
def test_what_no_group_can_do_raises(name, call, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the types refuse some of them too
    with pytest.raises(ConfigError, match=f"^{name}: "):
        call()
