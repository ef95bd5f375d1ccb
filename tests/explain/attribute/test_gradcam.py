import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxinterp.explain.attribute import grad_cam


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

    found = grad_cam((lambda x: maps * x[:, :1, :1], head), jnp.ones((1, 4, 4, 2))).contributions[0, ..., 0]
    expected = np.maximum([[[2, 3], [-3, 0]], [[0, 1], [3, 0]]], 0) / 4
    np.testing.assert_allclose(found, expected.repeat(2, 1).repeat(2, 2), rtol=1e-6)


def test_a_named_activation_equals_the_pair(model):
    net, variables, x = model

    def features(v, x):
        return net.apply(v, x, capture_intermediates=True)[1]["intermediates"]["last"]["__call__"][0]

    def head(v, a):
        kernel, bias = v["params"]["head"]["kernel"], v["params"]["head"]["bias"][None]
        return jax.nn.relu(a).mean((1, 2)) @ kernel + bias

    named = grad_cam(net.apply, x, layer="last", variables=variables).contributions
    split = grad_cam((features, head), x, variables=variables).contributions
    np.testing.assert_allclose(named, split, rtol=1e-5, atol=1e-7)
    assert float(named.min()) == 0
    assert float(named.max()) > 0

    maps = features(variables, x)
    slope = jax.vmap(jax.jacobian(lambda a: head(variables, a[None])[0]))(maps)
    expected = np.maximum(np.einsum("bkj,bhwj->bkhw", slope.mean((2, 3)), maps), 0)
    np.testing.assert_allclose(named[..., 0], expected.repeat(2, 2).repeat(2, 3), rtol=1e-4, atol=1e-6)


def test_summed_class_maps_give_the_positive_part_of_the_class_own_map():
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
    found = grad_cam((lambda x: x, lambda a: a.sum((1, 2)) / 10.0 - 2.0), x, [1, 2]).contributions[:, 0, ..., 0]
    own = jnp.stack([x[0, ..., 1], x[1, ..., 2]])
    np.testing.assert_allclose(found, np.maximum(own, 0) / 10, rtol=1e-5, atol=1e-7)


def test_chunks_targets_and_a_closure_change_nothing(model):
    net, variables, x = model
    rows = np.array([[2, 0], [1, 1]])
    whole = grad_cam(jax.jit(lambda x: net.apply(variables, x)), x, layer="trunk").contributions
    chunked = grad_cam(net.apply, x, rows, layer="trunk", variables=variables, max_bytes=1).contributions
    np.testing.assert_allclose(chunked, whole[np.arange(2)[:, None], rows], rtol=1e-4, atol=1e-7)


def test_linear_upsampling_interpolates_between_pixel_centers():
    ramp = jnp.array([[0.0, 1.0], [0.0, 1.0]])[None, :, :, None]
    found = grad_cam((lambda x: ramp, lambda a: 4 * a.mean((1, 2))), jnp.ones((1, 4, 4, 1)), upsample="linear")
    np.testing.assert_allclose(found.contributions[0, 0, 0, :, 0], [0, 0.25, 0.75, 1], atol=1e-6)


def test_bad_input_is_one_clear_line(model):
    net, variables, x = model
    for layer in ("lost", None, "head"):
        with pytest.raises(ValueError, match="layer"):
            grad_cam(net.apply, x, layer=layer, variables=variables)
