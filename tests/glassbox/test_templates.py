import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jaxinterp.glassbox.unfold import unfolded

from jaxinterp.glassbox.templates import template_shares
from jaxinterp.nn.baselines import VGG, AlexNet, CifarResNet
from jaxinterp.nn.patches import patches

X = jax.random.uniform(jax.random.key(0), (2, 32, 32, 3))
NETS = {
    "vgg": VGG(11, classes=3, width=2),
    "resnet": CifarResNet(8, classes=3, width=4),
    "alexnet": AlexNet.cifar(3, widths=(4, 6, 8, 6, 4), hidden=8),
}


@pytest.mark.parametrize(
    "name", ["resnet", *(pytest.param(name, marks=pytest.mark.slow) for name in ("vgg", "alexnet"))]
)
def test_networks_are_patches_times_templates(name):
    net = NETS[name]
    variables = jax.jit(net.init)(jax.random.key(1), X)
    want = jax.jit(net.apply)(variables, X)
    np.testing.assert_allclose(jax.jit(unfolded(net.apply))(variables, X), want, rtol=1e-5, atol=1e-5)
    text = str(jax.make_jaxpr(unfolded(net.apply))(variables, X))
    assert "conv_general_dilated" not in text


@pytest.mark.parametrize(
    "fields",
    [
        {"kernel_size": (3, 2), "strides": (2, 1), "padding": "SAME"},
        {"kernel_size": (2, 2), "strides": 2, "padding": "VALID", "use_bias": False},
        {"kernel_size": (3, 3), "kernel_dilation": 2, "padding": 1},
        {"kernel_size": (3, 3), "feature_group_count": 2, "padding": ((1, 0), (0, 2))},
    ],
    ids=["same", "valid", "dilated", "grouped"],
)
def test_every_kind_of_convolution(fields):
    conv = nn.Conv(4, **fields)
    x = jax.random.normal(jax.random.key(2), (2, 7, 6, 2))
    variables = conv.init(jax.random.key(3), x)
    np.testing.assert_allclose(unfolded(conv.apply)(variables, x), conv.apply(variables, x), rtol=1e-5, atol=1e-5)


def test_patches_by_brute_force():
    x = jax.random.normal(jax.random.key(2), (1, 5, 6, 2))
    found = patches(x, (3, 2), (2, 1), ((1, 0), (0, 0)))
    padded = np.pad(np.asarray(x), ((0, 0), (1, 0), (0, 0), (0, 0)))
    assert found.shape == (1, 2, 5, 12)
    np.testing.assert_array_equal(found[0, 1, 3], padded[0, 2:5, 3:5].ravel())


def test_shares_of_templates_sum_to_the_logit():
    net = NETS["resnet"]
    variables = jax.jit(net.init)(jax.random.key(1), X)
    found = template_shares(net.apply, X, "trunk/stem/conv", [1, 2], variables=variables)
    logits = net.apply(variables, X)[jnp.arange(2), jnp.array([1, 2])][:, None]
    np.testing.assert_allclose(found.contributions.sum(-1) + found.bias, logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.shares.sum(-1), 1.0, rtol=1e-5)
    kernel = variables["params"]["trunk"]["stem"]["conv"]["kernel"]
    silent = jax.tree.map(lambda a: a, variables)
    silent["params"]["trunk"]["stem"]["conv"]["kernel"] = kernel.at[..., 2].set(0)
    found = template_shares(net.apply, X, "trunk/stem/conv", variables=silent)
    np.testing.assert_array_equal(found.shares[..., 2], 0)  # a template that answers nothing has no share


def test_bad_input():
    with pytest.raises(ValueError, match=r"x: got 2x2 with padding, expected at least \[3, 1\]"):
        patches(jnp.ones((1, 2, 2, 1)), (3, 1))
    conv = nn.Conv(2, (3,))
    x = jnp.ones((1, 5, 1))
    with pytest.raises(ValueError, match=r"convolves \(1, 5, 1\), expected images"):
        unfolded(conv.apply)(conv.init(jax.random.key(0), x), x)
    x = jnp.ones((1, 5, 5, 1))
    for conv, says in (
        (nn.Conv(2, (3, 3), mask=jnp.zeros((3, 3, 1, 2))), "has a mask or padding='SAME', expected zeros around"),
        (nn.Conv(2, (3, 3), padding="CIRCULAR"), "has a mask or padding='CIRCULAR', expected zeros around"),
        (nn.ConvTranspose(2, (3, 3)), "is a transposed convolution, expected nn.Conv"),
    ):
        with pytest.raises(ValueError, match=says):
            unfolded(conv.apply)(conv.init(jax.random.key(0), x), x)
