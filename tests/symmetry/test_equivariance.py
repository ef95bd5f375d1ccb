"""Equivariance of functions and layers: known maps are found, none where there is none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxinterp.errors import ConfigError
from jaxinterp.explain.explainable import explainable
from jaxinterp.nn.baselines import CifarResNet
from jaxinterp.nn.losses import softmax_cross_entropy
from jaxinterp.symmetry.equivariance import (
    equivariance_error,
    interpolation_error,
    invariance_error,
    layer_equivariance,
    split_network,
    warn_inexact,
)
from jaxinterp.symmetry.groups import Group, dihedral, flips, rotations, transform
from jaxinterp.symmetry.maps import apply_map, fit_map, refine_map, row_ratios, with_identity_rows

SWAP = np.array([0, 1, 2, 4, 3, 6, 5])  # three symmetric filters, and two mirrored pairs
SIZE = 6
X = jax.random.uniform(jax.random.key(0), (2, 6, 6, 2))


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
        settings = {"train": 200, "support": support, "ridge": 1e-6, "max_bytes": 1 << 20}
        (layer,) = layer_equivariance(
            explainable(Mirrored(), variables), images, labels, ["phi"], flips(), 1, **settings
        )
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
        explainable(model, variables), images, labels, ["phi", "phi/Dense_0"], flips(), 1, train=250, ridge=1e-6
    )
    assert places.compensated > 0.9
    assert places.accuracy_compensated < 0.6
    # Without positions the map is dense, and a mixture that can be inverted is equivariant by it: 72 numbers of 36.
    assert dense.map.filters.shape == (1, 1, 72, 72)
    assert dense.compensated < 1e-2
    assert dense.accuracy_compensated > 0.9
    assert dense.moved == dense.uncompensated


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
        explainable(model, variables),
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


def test_refining_lowers_the_networks_own_loss_without_compiling_again(compilations, mirrored):
    variables, images, labels = mirrored
    phi, head = split_network(explainable(Mirrored(), variables), "phi")
    moved = transform(flips(), 1, images)
    z = phi(moved)
    poor = fit_map(z, phi(images), flips(), 1, support=1, ridge=3.0)

    def loss(map):
        return float(softmax_cross_entropy(head(apply_map(map, z), moved), labels))

    refine_map(poor, head, z, labels, 1, 1e-3, jax.random.key(0), given=(moved,))
    with compilations() as found:
        better = refine_map(poor, head, z, labels, 60, 1e-2, jax.random.key(0), given=(moved,))
    assert found == []
    assert loss(better) < 0.7 * loss(poor)
    again = refine_map(poor, head, z, labels, 60, 1e-2, jax.random.key(0), given=(moved,))
    np.testing.assert_array_equal(again.filters, better.filters)


@pytest.mark.slow
def test_the_numbers_of_a_library_model_are_those_of_the_network_cut_by_hand():
    model, level = CifarResNet(8, classes=4, width=2), "trunk/block_2"
    images = jax.random.uniform(jax.random.key(7), (90, 8, 8, 3))
    variables = jax.jit(model.init)(jax.random.key(8), images)
    labels = jax.random.randint(jax.random.key(9), (90,), 0, 4)
    (layer,) = layer_equivariance(explainable(model, variables), images, labels, [level], rotations(4), 1, train=70)
    held, truth, turned = images[70:], labels[70:], transform(rotations(4), 1, images[70:])
    phi, head = split_network(explainable(model, variables), level)
    here, there = phi(held), phi(turned)
    mapped = apply_map(layer.map, here)
    for ours, missed in ((layer.uncompensated, there - here), (layer.compensated, there - mapped)):
        np.testing.assert_allclose(ours, jnp.linalg.norm(missed.ravel()) / jnp.linalg.norm(there.ravel()), rtol=1e-4)
    for ours, z, x in (
        (layer.accuracy, here, held),
        (layer.accuracy_moved, there, turned),
        (layer.accuracy_compensated, apply_map(layer.back, there), turned),
    ):
        expected = (head(z, x).argmax(-1) == truth).mean()
        np.testing.assert_allclose(ours, expected, atol=0.051)  # one image of twenty may lie on the edge
    flat = np.asarray(there).reshape(-1, there.shape[-1])
    constant = np.linalg.norm(flat - flat.mean(0)) / np.linalg.norm(flat)
    np.testing.assert_allclose(layer.constant, constant, rtol=1e-3)
    assert layer.compensated < layer.uncompensated
    if layer.accuracy_compensated > 0.25 + 0.1 * 0.75:
        rows = round(layer.invariant * flat.shape[1])
        kept = with_identity_rows(layer.back, rows)
        found = (head(apply_map(kept, there), turned).argmax(-1) == truth).mean()
        assert found >= 0.95 * layer.accuracy_compensated - 0.051
    else:
        assert np.isnan(layer.invariant)


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


REFUSED = {
    "layers?": [{"layers": ["psi"]}, {"layers": []}, {"layers": ["phi", "phi"]}, {"layers": "psi"}],
    "support": [{"support": 2}, {"support": -1}],
    "ridge": [{"ridge": 0}, {"ridge": float("nan")}],
    "train": [{"train": 400}, {"train": 0}, {"train": 1}, {"layers": ["dense"], "train": 36}],
    "labels": [{"labels": jnp.zeros(9, int)}, {"labels": jnp.full(400, 10)}],
    "images": [{"images": jnp.full((400, SIZE, SIZE, 1), jnp.nan)}],
    "g": [{"g": 2}],
    "steps": [{"steps": -1}],
    "rate": [{"steps": 1, "rate": 0}],
    "network": [{"net": lambda x: x}],
}


@pytest.mark.parametrize(("name", "change"), [(name, change) for name, all in REFUSED.items() for change in all])
def test_what_cannot_be_measured_raises(mirrored, name, change):
    variables, images, labels = mirrored
    net = explainable(Mirrored(), variables)
    fields = {"net": net, "images": images, "labels": labels, "layers": ["phi"], "train": 200, "g": 1}
    with pytest.raises(ValueError, match=f"^{name}: [^\\n]*$"):
        layer_equivariance(group=flips(), **fields | change)


def test_a_network_is_split_only_at_its_own_layers(mirrored):
    variables, images, _ = mirrored
    with pytest.raises(ConfigError, match=r"^layer: "):
        split_network(explainable(Mirrored(), variables), "psi")[0](images)
    with pytest.raises(ConfigError, match=r"^z: "):
        split_network(explainable(Mirrored(), variables), "phi")[1](images, images)


@pytest.mark.parametrize(
    ("f", "law", "name"),
    [
        (lambda x: x.sum((1, 2)), "spatial", "f"),
        (lambda x: x, "orbit", "f"),
        (lambda x: x, "regular", "f"),
    ],
)
def test_an_output_that_a_law_cannot_move_raises(f, law, name):
    with pytest.raises(ConfigError, match=f"^{name}: "):
        equivariance_error(f, rotations(4), X, law)
