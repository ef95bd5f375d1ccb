"""Representations: inner products with moved templates, equivariant and invariant to the group."""

from functools import partial

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from jaxinterp.errors import ConfigError
from jaxinterp.explain.decompose import decompose
from jaxinterp.explain.explainable import explainable
from jaxinterp.glassbox.network import (
    GlassBox,
    Orbit,
    OrbitRepresentation,
    choose_templates,
    orbit_kernel,
    with_orbit,
)
from jaxinterp.symmetry.equivariance import equivariance_error, invariance_error
from jaxinterp.symmetry.groups import dihedral, rotations, scales, transform

SIDE = 6
X = jax.random.uniform(jax.random.key(9), (6, SIDE, SIDE, 1))


def test_responses_are_inner_products_with_turned_templates():
    templates = jax.random.uniform(jax.random.key(0), (3, SIDE, SIDE, 2))
    x = jax.random.uniform(jax.random.key(1), (2, SIDE, SIDE, 2))
    e = Orbit(rotations(4), 3).apply({"params": {"templates": templates}}, x)
    for g in range(4):
        for k, template in enumerate(np.asarray(templates)):
            turned = np.rot90(template, -g) - template.mean()
            want = np.einsum("nhwc,hwc->n", x, turned / np.linalg.norm(turned))
            np.testing.assert_allclose(e[:, g, k], want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("group", [rotations(4), dihedral(4)], ids=lambda g: g.name)
def test_equivariant_and_invariant_to_rounding_for_exact_groups(group):
    for dtype, bound in ((jnp.float32, 1e-5), (jnp.float64, 1e-12)):
        with jax.enable_x64(dtype == jnp.float64):
            x = jax.random.uniform(jax.random.key(3), X.shape, dtype)
            orbit = Orbit(group, 5, param_dtype=dtype)
            variables = jax.jit(orbit.init)(jax.random.key(0), x)
            assert equivariance_error(jax.jit(partial(orbit.apply, variables)), group, x, "orbit").max() < bound
            own = OrbitRepresentation(group, 5, ("mean", "max", "moments", "sorted"), param_dtype=dtype)
            variables = jax.jit(own.init)(jax.random.key(0), x)
            assert invariance_error(jax.jit(partial(own.apply, variables)), group, x).max() < bound


def test_interpolated_rotations_keep_the_law_to_a_few_percent():
    smooth = jax.scipy.signal.convolve(X, jnp.ones((1, 3, 3, 1)) / 9, mode="same")
    big = jax.image.resize(smooth, (6, 24, 24, 1), "linear")
    respond = jax.jit(partial(Orbit(rotations(8), 4).apply, {"params": {"templates": big[:4]}}))
    kernel = orbit_kernel(rotations(8), big[:4])
    assert kernel.shape == (24 * 24, 8, 4)
    np.testing.assert_allclose(jnp.linalg.norm(kernel, axis=0), 1.0, rtol=1e-4)
    np.testing.assert_allclose(kernel.reshape(24, 24, -1)[0, 0], 0.0)  # corners are cut off
    found = equivariance_error(respond, rotations(8), big, "orbit")
    assert 1e-4 < found.max() < 0.1
    assert invariance_error(respond, rotations(8), big)[1:].min() > 2 * found.max()


def test_blocks_say_where_features_lie():
    own = OrbitRepresentation(rotations(4), 3, ("sorted", "mean"), equivariant=True)
    features, variables = own.init_with_output(jax.random.key(0), X)
    assert own.blocks() == {"invariant": slice(0, 15), "equivariant": slice(15, 27)}
    assert features.shape == (6, 27)
    turned = own.apply(variables, transform(rotations(4), 1, X))
    np.testing.assert_allclose(turned[:, :15], features[:, :15], atol=1e-5)
    assert float(jnp.abs(turned[:, 15:] - features[:, 15:]).max()) > 0.1


def test_templates_are_balanced_and_drawn_from_the_images():
    images, labels = np.arange(9, dtype=np.float32).reshape(9, 1, 1, 1), np.arange(9) % 3
    chosen = choose_templates(images, labels, 7, seed=3).ravel().astype(int)
    assert labels[chosen].tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert len(set(chosen)) == 7
    with pytest.raises(ConfigError, match=r"^images: "):
        choose_templates(images, labels, 10)


def test_the_whole_network_trains_by_descent_too():
    network = GlassBox(rotations(4), 4, ("max",), components=3, classes=2)
    variables = jax.jit(network.init)(jax.random.key(0), X)

    def loss(params):
        return (network.apply({"params": params}, X, train=True) ** 2).sum()

    grads = jax.jit(jax.grad(loss))(variables["params"])
    assert float(jnp.abs(grads["representation"]["orbit"]["templates"]).max()) > 0


def test_orbits_that_are_kept_leave_logits_and_contributions_as_they_are():
    network = GlassBox(rotations(8), 4, ("sorted",), components=3, classes=2)
    variables = jax.jit(network.init)(jax.random.key(0), X)
    kept = with_orbit(network, variables)
    assert kept["params"] is variables["params"]
    ours, free = (decompose(explainable(network, held), X) for held in (kept, variables))
    np.testing.assert_allclose(ours.logits, free.logits, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(ours.contributions, free.contributions, rtol=1e-4, atol=1e-6)
    made = [str(jax.make_jaxpr(network.apply)(held, X)).count("gather") for held in (kept, variables)]
    assert made[0] < made[1]  # templates are not turned again


@pytest.mark.parametrize(
    ("name", "group", "fields"),
    [
        ("invariants: spectrum", dihedral(4), {"invariants": ("spectrum",)}),
        ("invariants", rotations(4), {"invariants": ("median",)}),
        ("invariants", rotations(4), {"invariants": "mean"}),
        ("invariants", rotations(4), {"invariants": ()}),
        ("templates", rotations(4), {"templates": 0}),
        ("group", scales(2.0, 1), {}),
    ],
)
def test_what_cannot_be_a_representation_raises(name, group, fields, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the types refuse some of them too
    with pytest.raises(ConfigError, match=f"^{name}: "):
        OrbitRepresentation(group, **fields)
