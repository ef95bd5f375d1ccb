import itertools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from jaxinterp.symmetry.groups import (
    Element,
    Group,
    act_regular,
    dihedral,
    equivariance_error,
    flips,
    interpolation_error,
    invariance_error,
    is_exact,
    orbit,
    permute,
    product,
    rotations,
    scales,
    shifts,
    transform,
    warn_inexact,
)

X = jax.random.uniform(jax.random.key(0), (2, 6, 6, 2))
CLOSED = [rotations(1), rotations(4), rotations(16), dihedral(4), dihedral(3), flips(), shifts(6, 6, 2)]
EXACT = [rotations(4), dihedral(4), flips("vertical"), shifts(6, 6, 3), product(rotations(2), flips())]


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


def test_scales_are_no_group_and_say_so():
    group = scales(2**0.5, 2)
    assert not group.closed
    assert group.table[1, 2] == 0
    assert group.table[4, 4] == -1
    with pytest.raises(ValueError, match=r"scales 1\.41421\^-2\.\.2 has products outside of itself"):
        permute(group, 1, jnp.zeros((1, 5, 1)))


def test_regular_action_is_a_left_action_and_permute_that_of_responses():
    group = dihedral(4)
    z = jax.random.normal(jax.random.key(1), (1, 4, 4, 8, 2))
    template = jax.random.normal(jax.random.key(2), (6, 6, 2))

    def responses(x):
        return jnp.einsum("nghwc,hwc->ng", orbit(group, x), template, precision="highest")[:, :, None]

    for g, h in [(1, 5), (6, 3), (4, 7)]:
        both = act_regular(group, g, act_regular(group, h, z))
        np.testing.assert_array_equal(both, act_regular(group, int(group.table[g, h]), z))
        np.testing.assert_allclose(responses(transform(group, h, X)), permute(group, h, responses(X)), rtol=1e-5)


def test_errors_are_zero_for_the_equivariant_and_large_for_others():
    group = rotations(4)

    def symmetric(x):
        return x + sum(jnp.roll(x, shift, axis) for shift in (1, -1) for axis in (1, 2))

    assert equivariance_error(symmetric, group, X).max() < 1e-6
    lopsided = equivariance_error(lambda x: jnp.roll(x, 1, 1), group, X)
    assert lopsided[0] == 0
    assert lopsided[1:].min() > 0.1
    assert invariance_error(lambda x: x.mean((1, 2)), group, X).max() < 1e-6
    assert invariance_error(lambda x: x[:, 0, 0], group, X)[1:].min() > 0.1
    own = equivariance_error(lambda x: x[:, :3], group, X, lambda g, y: y)
    np.testing.assert_allclose(own, invariance_error(lambda x: x[:, :3], group, X))


def test_interpolation_error_and_its_warning():
    smooth = jnp.exp(-(jnp.linspace(-2.0, 2.0, 12) ** 2))
    blob = jnp.outer(smooth, smooth)[None, :, :, None]
    assert interpolation_error(rotations(4), blob) == 0
    assert 1e-4 < interpolation_error(rotations(8), blob) < 0.1
    with pytest.warns(UserWarning, match="group: C8 leaves the grid of 12x12 images; moved and"):
        warn_inexact(rotations(8), blob)
    warn_inexact(dihedral(4), blob)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: transform(rotations(4), 1, jnp.ones((1, 3, 4, 1))), "x: got 3x4 images, expected square ones for C4"),
        (
            lambda: transform(shifts(4, 4), 1, jnp.ones((1, 6, 6, 1))),
            r"x: got 6x6 images, expected \(4, 4\) for shifts",
        ),
        (lambda: transform(rotations(4), 4, X), r"g: got 4, expected an element of C4 in \[0, 4\)"),
        (
            lambda: transform(rotations(8), 1, jnp.ones((1, 4, 4, 1), jnp.uint8)),
            "x: got uint8, expected floating images for C8",
        ),
        (lambda: transform(rotations(4), 1.5, X), "g: got 1.5, expected an element of C4"),
        (lambda: transform(rotations(4), 1, X[:0]), r"x: got shape \(0, "),
        (lambda: transform(rotations(4), 1, X[0, 0]), "expected images"),
        (lambda: permute(rotations(4), 7, jnp.ones((1, 4, 1))), r"h: got 7, expected an element of C4 in \[0, 4\)"),
        (lambda: permute(rotations(4), 1, jnp.ones((1, 5, 1))), r"e: got shape \(1, 5, 1\), expected \(N, 4, ...\)"),
        (lambda: act_regular(rotations(4), 1, jnp.ones((1, 4, 4, 3, 2))), r"z: got shape \(1, 4, 4, 3, 2\)"),
        (lambda: equivariance_error(lambda x: x, rotations(4), X, "spacial"), "law: got 'spacial', expected one of"),
        (lambda: equivariance_error(lambda x: x.sum((1, 2)), rotations(4), X), "f: got an output"),
        (lambda: flips("horizontl"), "axis: got 'horizontl', expected horizontal or vertical"),
        (lambda: shifts(4, 4, 0), "step: got 0, expected an integer of at least 1"),
        (lambda: rotations(0), "n: got 0, expected an integer of at least 1"),
        (lambda: rotations(2.5), "n: got 2.5, expected an integer of at least 1"),
        (lambda: dihedral("4"), "n: got '4', expected an integer of at least 1"),
        (lambda: shifts(5, 4, 2), "height: got 5, expected a multiple of step=2"),
        (lambda: scales(0.5, 1), "ratio: got 0.5, expected a number above 1"),
        (lambda: Group("odd", rotations(4).elements[1:]), "elements: the first of odd is not the identity"),
        (lambda: product(rotations(2), rotations(4)), "elements: number 4 of C2 x C4 is number 2 again"),
        (lambda: product(shifts(4, 4), shifts(6, 6)), r"second: got a torus of \(6, 6\), expected \(4, 4\)"),
        (lambda: dihedral(4).require_cyclic("spectrum"), "spectrum: got the group D4, expected a cyclic one"),
        (
            lambda: equivariance_error(lambda x: x, rotations(4), X, "orbit"),
            r"f: got an output \(2, 6, 6, 2\), expected 4 of C4 on axis 1",
        ),
    ],
)
def test_bad_input(call, message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=message):
        call()
