from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinterp.errors import ConfigError
from jaxinterp.glassbox.gcnn import GroupCNN, GroupConv, fit_stack, moved_filters
from jaxinterp.symmetry.equivariance import equivariance_error, invariance_error
from jaxinterp.symmetry.groups import dihedral, flips, rotations

X = jax.random.uniform(jax.random.key(0), (5, 10, 10, 2))
GROUPS = [rotations(1), rotations(4), dihedral(4), flips()]


@pytest.mark.parametrize("group", GROUPS, ids=lambda g: g.name)
def test_lifting_and_layers_are_equivariant(group):
    first, second = GroupConv(group, 3, 3, 1), GroupConv(group, 2, 4)
    lifting = jax.jit(first.init)(jax.random.key(1), X)
    y = first.apply(lifting, X)
    layer = jax.jit(second.init)(jax.random.key(2), y)
    assert y.shape == (5, 10, 10, len(group), 3)
    apart = equivariance_error(jax.jit(lambda x: first.apply(lifting, x)), group, X, "regular")
    assert apart.max() < 1e-6
    both = equivariance_error(jax.jit(lambda x: second.apply(layer, first.apply(lifting, x))), group, X, "regular")
    assert both.max() < 1e-5


def test_lifting_by_brute_force():
    filters = jax.random.normal(jax.random.key(3), (3, 3, 2, 1))
    y = GroupConv(rotations(4), 1).apply({"params": {"filters": filters}}, X)
    for g in range(4):
        turned = np.rot90(np.asarray(filters[..., 0]), g, axes=(0, 1))
        want = np.einsum("yxc,nyxc->n", turned, np.asarray(X[:, 4:7, 2:5]))
        np.testing.assert_allclose(y[:, 4, 2, g, 0], want, rtol=1e-5)


def test_a_trivial_group_convolves_as_usual():
    filters = jax.random.normal(jax.random.key(3), (3, 3, 2, 4))
    np.testing.assert_array_equal(moved_filters(rotations(1), filters), filters)


@pytest.mark.parametrize(
    "group",
    [GROUPS[2], *(pytest.param(g, marks=pytest.mark.slow) for g in (GROUPS[1], GROUPS[3]))],
    ids=lambda g: g.name,
)
def test_networks_are_invariant_fitted_or_random(group):
    model = GroupCNN(group, (4, 3), (3, 3), (0,), classes=3)
    random = jax.jit(model.init)(jax.random.key(4), X)
    fitted = fit_stack(model, random, X, jax.random.key(5))
    assert jax.tree.structure(random) == jax.tree.structure(fitted)
    apply = jax.jit(model.apply)
    for variables in (random, fitted):
        assert invariance_error(partial(apply, variables), group, X).max() < 1e-5
    for block, count in (("block_0", 4), ("block_1", 3)):
        patches = fitted["params"][block]["conv"]["filters"].reshape(-1, count)
        sizes = jnp.linalg.norm(patches, axis=0)
        np.testing.assert_allclose(sizes, 1.0 if block == "block_0" else sizes[0], rtol=1e-5)
        np.testing.assert_allclose(patches.sum(0), 0.0, atol=1e-5)
    plain = fit_stack(model.clone(norm=False), {"params": random["params"]}, X, jax.random.key(5))
    seen = model.clone(norm=False).apply(plain, X, capture_intermediates=True)[1]["intermediates"]["block_0"]
    np.testing.assert_allclose(jnp.square(seen["conv"]["__call__"][0]).mean(), 1.0, rtol=1e-4)
    answers = model.apply(fitted, X, capture_intermediates=True)[1]["intermediates"]["block_1"]["__call__"][0]
    np.testing.assert_allclose(jnp.square(answers).mean(), 1.0, rtol=1e-4)
    normed = (
        model.block(0)
        .clone(relu=False, pool=False)
        .apply({"params": fitted["params"]["block_0"], "batch_stats": fitted["batch_stats"]["block_0"]}, X)
    )
    np.testing.assert_allclose(normed.mean((0, 1, 2, 3)), 0.0, atol=1e-4)


def test_p4cnn_has_the_published_size_and_dropout_needs_training():
    model = GroupCNN(rotations(4), dropout=0.3)
    image = jnp.zeros((1, 28, 28, 1))
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 24_610  # "approximately 25k": Sec. 8.1
    small = GroupCNN(rotations(4), (2, 2), (3, 3), (), norm=False, dropout=0.5)
    variables = small.init(jax.random.key(0), X)
    one, two = (small.apply(variables, X, train=True, rngs={"dropout": jax.random.key(k)}) for k in (0, 1))
    assert not jnp.array_equal(one, two)
    np.testing.assert_array_equal(small.apply(variables, X, train=True, frozen=True), small.apply(variables, X))


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("group", GroupCNN(rotations(8), (2,), (3,), ())),
        ("features, sides", GroupCNN(rotations(4), (2,), (3, 3), ())),
        ("pools", GroupCNN(rotations(4), (2,), (3,), (7,))),
        ("dropout", GroupCNN(rotations(4), (2,), (3,), (), dropout=2.0)),
        ("x", GroupCNN(rotations(4), (2,), (11,), ())),
        ("pool", GroupCNN(rotations(4), (2, 2), (4, 2), (0,))),
    ],
)
def test_networks_that_cannot_be_raise(name, model):
    with pytest.raises(ConfigError, match=f"^{name}: "):
        model.init(jax.random.key(0), X)


def test_too_few_images_for_the_filters():
    model = GroupCNN(rotations(4), (9,), (3,), ())
    with pytest.raises(ConfigError, match=r"^images: "):
        fit_stack(model, model.init(jax.random.key(0), X), X, jax.random.key(0))
