"""Maps of features: known ones are found, none where there is none; accuracies are the cut network's."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.tree_util import Partial

from jaxinterp.glassbox.gcnn import GroupConv
from jaxinterp.nn.baselines import CifarResNet
from jaxinterp.nn.losses import softmax_cross_entropy
from jaxinterp.symmetry.equivariance import (
    EquivariantMap,
    apply_map,
    fit_map,
    layer_equivariance,
    refine_map,
    row_ratios,
    with_identity_rows,
)
from jaxinterp.symmetry.groups import Group, act_regular, dihedral, flips, rotations

SWAP = np.array([0, 1, 2, 4, 3, 6, 5])  # three symmetric filters, and two mirrored pairs
SIZE = 6


class Mixed(nn.Module):
    """A map whose every entry is a random sum of all pixels: it has places, but they do not move with the image."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(SIZE * SIZE * 2)(x.reshape(len(x), -1)).reshape(-1, SIZE, SIZE, 2)


class Mirrored(nn.Module):
    """φ is a convolution, or a random mixture; then a ReLU, a dense layer and classes."""

    mixed: bool = False

    @nn.compact
    def __call__(self, x):
        z = Mixed(name="phi")(x) if self.mixed else nn.Conv(len(SWAP), (3, 3), name="phi")(x)
        z = nn.Dense(SIZE * SIZE, name="dense")(nn.relu(z).reshape(len(z), -1))
        return nn.Dense(10, name="classifier")(nn.relu(z))


@pytest.fixture(scope="module")
def mirrored():
    """A network whose φ(g x)[j] is g φ(x)[SWAP[j]] for the mirror g, images, and its own answers as labels."""
    images = jax.random.normal(jax.random.key(0), (400, SIZE, SIZE, 1))
    variables = jax.jit(Mirrored().init)(jax.random.key(1), images)
    filters = np.array(variables["params"]["phi"]["kernel"])
    filters[..., :3] += filters[:, ::-1, :, :3]
    filters[..., [4, 6]] = filters[:, ::-1][..., [3, 5]]
    dense = np.array(variables["params"]["dense"]["kernel"]).reshape(SIZE * SIZE, len(SWAP), -1)
    dense[:, :3] /= 10  # classes depend on the channels that change places
    bias = jnp.array([0.3, -0.2, 0.1, 0.2, 0.2, -0.1, -0.1])
    variables["params"]["phi"] = {"kernel": jnp.asarray(filters), "bias": bias}
    variables["params"]["dense"]["kernel"] = jnp.asarray(dense.reshape(-1, SIZE * SIZE))
    return variables, images, jax.jit(Mirrored().apply)(variables, images).argmax(-1)


def test_the_known_map_of_mirrored_filters_is_found_and_undoes_the_mirror(mirrored):
    variables, images, labels = mirrored

    # With neighbors, many maps do the same here: seven channels of nine pixels repeat themselves at the next site.
    layers = {}
    for support in (1, 3):
        settings = {"train": 200, "support": support, "ridge": 1e-6, "memory": 1 << 20}
        (layer,) = layer_equivariance(Mirrored().apply, variables, images, labels, ["phi"], flips(), 1, **settings)
        assert layer.compensated < 1e-3
        assert layer.uncompensated > 0.5
        assert 0.2 < layer.moved < layer.uncompensated
        assert layer.accuracy == 1.0
        assert layer.accuracy_moved < 0.7
        assert layer.accuracy_compensated > 0.98
        assert layer.invariant == 3 / 7
        layers[support] = layer
    known = np.zeros((1, 1, 7, 7))
    known[0, 0, SWAP, np.arange(7)] = 1
    for fitted in (layers[1].map, layers[1].back):
        np.testing.assert_allclose(fitted.filters, known, atol=1e-3)
        np.testing.assert_allclose(fitted.bias, 0, atol=1e-3)
        np.testing.assert_allclose(row_ratios(fitted), [0, 0, 0, 1, 1, 1, 1], atol=1e-3)


def test_a_mixture_of_all_pixels_has_no_map_of_small_support():
    images = jax.random.normal(jax.random.key(2), (300, SIZE, SIZE, 1))
    model = Mirrored(mixed=True)
    variables = jax.jit(model.init)(jax.random.key(3), images)
    labels = jax.jit(model.apply)(variables, images).argmax(-1)
    places, dense = layer_equivariance(
        model.apply, variables, images, labels, ["phi", "phi/Dense_0"], flips(), 1, train=250, ridge=1e-6
    )
    assert places.compensated > 0.9
    assert places.accuracy_compensated < 0.6
    # Without positions the map is dense, and a mixture that can be inverted is equivariant by it: 72 numbers of 36.
    assert dense.map.filters.shape == (1, 1, 72, 72)
    assert dense.compensated < 1e-2
    assert dense.accuracy_compensated > 0.9
    assert dense.moved == dense.uncompensated


def test_the_permutation_of_a_group_cnns_maps_is_found():
    group, images = rotations(4), jax.random.normal(jax.random.key(0), (40, 6, 6, 1))
    conv = GroupConv(group, 2, 3)
    variables = conv.init(jax.random.key(1), images)
    z, z_turned = (conv.apply(variables, transform(group, g, images)) for g in (0, 1))
    fitted = fit_map(z, z_turned, group, 1, support=1, ridge=1e-6)
    np.testing.assert_allclose(apply_map(fitted, z), act_regular(group, 1, z), atol=1e-3)
    permutation = act_regular(group, 1, jnp.eye(8).reshape(8, 1, 1, 4, 2)).reshape(8, 8)
    np.testing.assert_allclose(fitted.filters[0, 0], permutation, atol=1e-3)


def test_an_element_whose_inverse_is_not_in_the_set_is_undone_by_its_inverse():
    """1×1 filters turn with the image: the identity map of channels, and sites that turn back."""

    class Pointwise(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(10)(nn.relu(nn.Conv(2, (1, 1), name="phi")(x)).reshape(len(x), -1))

    model, images = Pointwise(), jax.random.normal(jax.random.key(4), (120, SIZE, SIZE, 2))
    variables = jax.jit(model.init)(jax.random.key(5), images)
    labels = jax.jit(model.apply)(variables, images).argmax(-1)
    turn = Group("a quarter turn", rotations(4).elements[:2])
    (found,) = layer_equivariance(
        jax.jit(model.apply),
        variables,
        images,
        labels,
        ["phi"],
        turn,
        1,
        train=80,
        support=1,
        ridge=1e-6,
        steps=2,
        rate=1e-5,
    )
    assert found.moved < 1e-6
    assert found.compensated < 1e-3
    assert found.accuracy_moved < 0.6
    assert found.accuracy_compensated == found.accuracy == found.invariant == 1.0
    z = jax.random.normal(jax.random.key(6), (2, SIZE, SIZE, 2))
    np.testing.assert_allclose(apply_map(found.map, z), transform(rotations(4), 1, z), atol=1e-2)
    np.testing.assert_allclose(apply_map(found.back, z), transform(rotations(4), 3, z), atol=1e-2)


@pytest.mark.parametrize("memory", [1, 1 << 29])
def test_the_solution_is_that_of_brute_force_least_squares(memory):
    rng, group, g, ridge = np.random.default_rng(0), dihedral(4), 5, 0.02
    z, target = (rng.standard_normal((9, 3, 3, 2)).astype(np.float32) + 0.5 for _ in range(2))
    moved = np.pad(np.asarray(transform(group, g, jnp.asarray(z)), np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    patches = [moved[n, y : y + 3, x : x + 3].ravel() for n in range(9) for y in range(3) for x in range(3)]
    centerd = np.stack(patches) - np.mean(patches, 0)
    wanted = target.reshape(-1, 2).astype(np.float64)
    penalty = ridge * (centerd**2).sum() / 18
    rows = np.concatenate([centerd, penalty**0.5 * np.eye(18)])
    solution = np.linalg.lstsq(rows, np.concatenate([wanted - wanted.mean(0), np.zeros((18, 2))]))[0]
    bias = wanted.mean(0) - np.mean(patches, 0) @ solution

    found = fit_map(jnp.asarray(z), jnp.asarray(target), group, g, 3, ridge, max_bytes=memory)
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
    with pytest.raises(ValueError, match="count: got 4, expected 0 to 3 rows"):
        with_identity_rows(given, 4)


def test_refining_lowers_the_networks_own_loss_without_compiling_again(compilations, mirrored):
    variables, images, labels = mirrored
    phi, head = split_network(Mirrored().apply, "phi")
    moved = transform(flips(), 1, images)
    z = phi(variables, moved)
    poor = fit_map(z, phi(variables, images), flips(), 1, support=1, ridge=3.0)
    rest = Partial(head, variables)

    def loss(map):
        return float(softmax_cross_entropy(rest(apply_map(map, z), moved), labels))

    refine_map(poor, rest, z, labels, 1, 1e-3, jax.random.key(0), given=(moved,))
    with compilations() as found:
        better = refine_map(poor, rest, z, labels, 60, 1e-2, jax.random.key(0), given=(moved,))
    assert found == []
    assert loss(better) < 0.7 * loss(poor)
    again = refine_map(poor, rest, z, labels, 60, 1e-2, jax.random.key(0), given=(moved,))
    np.testing.assert_array_equal(again.filters, better.filters)


@pytest.mark.slow
def test_the_numbers_of_a_library_model_are_those_of_the_network_cut_by_hand():
    model, level = CifarResNet(8, classes=4, width=2), "trunk/block_2"
    images = jax.random.uniform(jax.random.key(7), (90, 8, 8, 3))
    variables = jax.jit(model.init)(jax.random.key(8), images)
    labels = jax.random.randint(jax.random.key(9), (90,), 0, 4)
    (layer,) = layer_equivariance(model.apply, variables, images, labels, [level], rotations(4), 1, train=70)
    held, truth, turned = images[70:], labels[70:], transform(rotations(4), 1, images[70:])
    phi, head = split_network(model.apply, level)
    here, there = phi(variables, held), phi(variables, turned)
    mapped = apply_map(layer.map, here)
    for ours, missed in ((layer.uncompensated, there - here), (layer.compensated, there - mapped)):
        np.testing.assert_allclose(ours, jnp.linalg.norm(missed.ravel()) / jnp.linalg.norm(there.ravel()), rtol=1e-4)
    for ours, z, x in (
        (layer.accuracy, here, held),
        (layer.accuracy_moved, there, turned),
        (layer.accuracy_compensated, apply_map(layer.back, there), turned),
    ):
        expected = (head(variables, z, x).argmax(-1) == truth).mean()
        np.testing.assert_allclose(ours, expected, atol=0.051)  # one image of twenty may lie on the edge
    flat = np.asarray(there).reshape(-1, there.shape[-1])
    constant = np.linalg.norm(flat - flat.mean(0)) / np.linalg.norm(flat)
    np.testing.assert_allclose(layer.constant, constant, rtol=1e-3)
    assert layer.compensated < layer.uncompensated
    if layer.accuracy_compensated > 0.25 + 0.1 * 0.75:
        rows = round(layer.invariant * flat.shape[1])
        kept = with_identity_rows(layer.back, rows)
        found = (head(variables, apply_map(kept, there), turned).argmax(-1) == truth).mean()
        assert found >= 0.95 * layer.accuracy_compensated - 0.051
    else:
        assert np.isnan(layer.invariant)


def test_bad_input_is_refused_in_one_line(mirrored):
    variables, images, labels = mirrored
    z = jnp.ones((9, 3, 3, 2))

    def layers(apply=None, images=images, labels=labels, at=["phi"], g=1, **fields):  # noqa: B006
        apply, fields = apply or Mirrored().apply, {"train": 200, **fields}
        layer_equivariance(apply, variables, images, labels, at, flips(), g, **fields)

    def refine(z=z, labels=labels[:9], steps=1, rate=1e-3, **fields):
        fitted = EquivariantMap(jnp.ones((1, 1, 2, 2)), jnp.ones(2), flips(), 1)
        refine_map(fitted, lambda z: z[:, 0, 0], z, labels, steps, rate, jax.random.key(0), **fields)

    for call, message in [
        (lambda: layers(at=["psi"]), "at: got 'psi'"),
        (lambda: layers(at="psi"), "at: got 'psi', expected a list"),
        (lambda: layers(at=[]), "at: got an empty list"),
        (lambda: layers(at=["phi", "phi"]), "at: got ['phi', 'phi'], a level twice"),
        (lambda: layers(support=2), "support: got 2, expected an odd number"),
        (lambda: layers(support=-1), "support: got -1"),
        (lambda: layers(ridge=0), "ridge: got 0, expected a positive finite number"),
        (lambda: layers(ridge=float("nan")), "ridge: got nan"),
        (lambda: layers(train=400), "train: got 400 of 400 images"),
        (lambda: layers(train=0), "train: got 0 of 400 images"),
        (lambda: layers(train=1), "train: at 'phi': got 1 images, expected at least 2 for filters of 3x3x7"),
        (lambda: layers(at=["dense"], train=36), "train: at 'dense': got 36 images, expected at least 37"),
        (lambda: layers(labels=labels[:9]), "labels: got shape (9,), expected (400,)"),
        (lambda: layers(labels=labels + 9), "expected classes in [0, 10)"),
        (lambda: layers(images=images.at[3, 0, 0, 0].set(jnp.nan)), "images: got 1 of 14400 values NaN"),
        (lambda: layers(g=2), "g: got 2, expected an element of horizontal flip in [0, 2)"),
        (lambda: layers(steps=-1), "steps: got -1, expected at least 0"),
        (lambda: layers(steps=1, rate=0), "rate: got 0, expected a positive finite number"),
        (lambda: layers(apply=lambda v, x: x), "apply: got output"),
        (lambda: fit_map(z, z[:8], flips(), 1), "phi_gx: got (8, 3, 3, 2), expected (9, 3, 3, 2)"),
        (lambda: fit_map(z[:, 0], z[:, 0], flips(), 1), "phi_x: got activations (9, 3, 2), expected (N, h, w, D)"),
        (lambda: fit_map(z[:1], z[:1], flips(), 1), "phi_x: got 1 images, expected at least 3"),
        (lambda: fit_map(z[:, :2], z[:, :2], rotations(4), 1), "x: got 2x3 images, expected square ones for C4"),
        (lambda: fit_map(z * jnp.nan, z, flips(), 1), "phi_x, phi_gx: got activations NaN or infinite"),
        (lambda: fit_map(z, z, flips(), 1, support=4), "support: got 4"),
        (lambda: fit_map(z, z, flips(), 1, ridge=-1.0), "ridge: got -1.0"),
        (lambda: refine(steps=0), "steps: got 0, expected at least 1"),
        (lambda: refine(rate=-1.0), "rate: got -1.0"),
        (lambda: refine(batch=0), "batch: got 0"),
        (lambda: refine(labels=labels[:8]), "labels: got shape (8,), expected 9 along the first axis"),
        (lambda: refine(given=(z[:3],)), "given: array 0: got shape (3, 3, 3, 2), expected 9"),
        (lambda: refine(z=z[0]), "z: got activations (3, 3, 2)"),
        (lambda: apply_map(fit_map(z, z, flips(), 1), z[..., :1]), "z: got 1 channels, expected 2 as of the map"),
        (
            lambda: split_network(Mirrored().apply, "psi")[0](variables, images),
            "at: got 'psi', expected a Flax submodule",
        ),
        (
            lambda: split_network(Mirrored().apply, "phi")[1](variables, z, images),
            "z: got float32(9, 3, 3, 2), expected",
        ),
    ]:
        with pytest.raises(ValueError, match=re.escape(message)) as error:
            call()
        assert "\n" not in str(error.value)
