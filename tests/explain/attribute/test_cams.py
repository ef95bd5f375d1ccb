import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from flax import linen as nn

from jaxinterp.explain.attribute import grad_cam
from jaxinterp.explain.explainable import explainable


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), strides=2, padding=1, name="trunk")(x))
        x = nn.Conv(5, (1, 1), name="last")(x)
        return nn.Dense(3, name="head")(nn.relu(x).mean((1, 2)))


@pytest.fixture
def model():
    x = jax.random.uniform(jax.random.key(0), (2, 8, 8, 3))
    return Net(), Net().init(jax.random.key(1), x), x


def test_by_hand():
    maps = jnp.stack([jnp.array([[1.0, 2.0], [0.0, 0.0]]), jnp.array([[0.0, 1.0], [3.0, 0.0]])], -1)[None]

    def head(a):  # α = (2, −1)/4 for class 0 and (0, 1)/4 for class 1
        return a.mean((1, 2)) @ jnp.array([[2.0, 0.0], [-1.0, 1.0]])

    net = explainable({"maps": lambda x: maps * x[:, :1, :1], "head": head}, pooled="maps")
    found = grad_cam(net, jnp.ones((1, 4, 4, 2))).contributions[0, ..., 0]
    expected = np.maximum([[[2, 3], [-3, 0]], [[0, 1], [3, 0]]], 0) / 4
    np.testing.assert_allclose(found, expected.repeat(2, 1).repeat(2, 2), rtol=1e-6)


def test_a_named_activation_equals_the_pair(model):
    module, variables, x = model

    def features(v, x):
        return module.apply(v, x, capture_intermediates=True)[1]["intermediates"]["last"]["__call__"][0]

    def head(v, a):
        kernel, bias = v["params"]["head"]["kernel"], v["params"]["head"]["bias"][None]
        return jax.nn.relu(a).mean((1, 2)) @ kernel + bias

    named = grad_cam(explainable(module, variables), x, layer="last").contributions
    split = grad_cam(explainable({"features": features, "head": head}, variables), x, layer="features").contributions
    np.testing.assert_allclose(named, split, rtol=1e-5, atol=1e-7)
    assert float(named.min()) == 0
    assert float(named.max()) > 0

    maps = features(variables, x)
    slope = jax.vmap(jax.jacobian(lambda a: head(variables, a[None])[0]))(maps)
    expected = np.maximum(np.einsum("bkj,bhwj->bkhw", slope.mean((2, 3)), maps), 0)
    np.testing.assert_allclose(named[..., 0], expected.repeat(2, 2).repeat(2, 3), rtol=1e-4, atol=1e-6)


def test_summed_class_maps_give_the_positive_part_of_the_class_own_map():
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
    net = explainable({"maps": lambda x: x, "head": lambda a: a.sum((1, 2)) / 10.0 - 2.0}, pooled="maps")
    found = grad_cam(net, x, [1, 2]).contributions[:, 0, ..., 0]
    own = jnp.stack([x[0, ..., 1], x[1, ..., 2]])
    np.testing.assert_allclose(found, np.maximum(own, 0) / 10, rtol=1e-5, atol=1e-7)


def test_chunks_targets_and_a_closure_change_nothing(model):
    module, variables, x = model
    rows = np.array([[2, 0], [1, 1]])
    whole = grad_cam(jax.jit(lambda x: module.apply(variables, x)), x, layer="trunk").contributions
    chunked = grad_cam(explainable(module, variables), x, rows, layer="trunk", max_bytes=1).contributions
    np.testing.assert_allclose(chunked, whole[np.arange(2)[:, None], rows], rtol=1e-4, atol=1e-7)


def test_linear_upsampling_interpolates_between_pixel_centers():
    ramp = jnp.array([[0.0, 1.0], [0.0, 1.0]])[None, :, :, None]
    net = explainable({"maps": lambda x: ramp, "head": lambda a: 4 * a.mean((1, 2))})
    found = grad_cam(net, jnp.ones((1, 4, 4, 1)), layer="maps", upsample="linear")
    np.testing.assert_allclose(found.contributions[0, 0, 0, :, 0], [0, 0.25, 0.75, 1], atol=1e-6)


def test_tokens_are_maps_on_a_grid_with_or_without_a_class_token(model):
    """A layer of tokens gives what the same layer gives as maps."""

    def maps(x):
        return x[:, ::2, :, :2] - 0.25

    def head(a):
        return (a**2).mean((1, 2))

    x = model[2]
    want = grad_cam({"maps": maps, "head": head}, x, layer="maps").contributions
    for classes in (0, 1):

        def tokens(x, classes=classes):
            flat = maps(x).reshape(2, 32, 2)
            return jnp.concatenate([9 * flat[:, :classes], flat], 1)

        net = {"tokens": tokens, "head": lambda a, classes=classes: head(a[:, classes:].reshape(2, 4, 8, 2))}
        found = grad_cam(net, x, layer="tokens", grid=(4, 8)).contributions
        np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-7)


def test_bad_input_is_one_clear_line(model, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    module, variables, x = model
    for layer in ("lost", None, "head"):
        with pytest.raises(ValueError, match=r"\Alayer: got .*\Z"):
            grad_cam(explainable(module, variables), x, layer=layer)
    with pytest.raises(ValueError, match=r"\Aupsample: got .*\Z"):
        grad_cam(explainable(module, variables), x, layer="last", upsample="cubic")
