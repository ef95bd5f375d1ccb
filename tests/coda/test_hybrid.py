import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxinterp.coda.hybrid import Hybrid
from jaxinterp.coda.network import CoDANet, encode
from jaxinterp.explain.decompose import decompose
from jaxinterp.explain.explainable import explainable
from jaxinterp.nn.baselines import CifarResNet, ResNetTrunk, VGGTrunk

LEVELS = ("trunk", "coda/layer_0", "coda/layer_1")


def hybrid(encode_input=True, param_dtype=jnp.float32, trunk=None):
    trunk = trunk or ResNetTrunk(depth=8, blocks=2, width=4, param_dtype=param_dtype)
    coda = CoDANet((6, 5), (3, 4), (3, 1), (1, 1), temperature=4.0, param_dtype=param_dtype)
    return Hybrid(trunk, coda, encode_input)


def started(model, dtype=jnp.float32, channels=3):
    """Images and variables, with statistics and shifts away from 0 and 1."""
    images = jax.random.uniform(jax.random.key(1), (2, 8, 8, channels), dtype)
    variables = jax.jit(model.init)(jax.random.key(2), images)
    noise = jax.random.uniform(jax.random.key(3), (64,), dtype)
    return images, jax.tree.map(lambda a: a + 0.3 * noise[: a.size] if a.ndim == 1 else a, variables)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-4), (jnp.float64, 1e-10)])
def test_is_decomposed_exactly_down_to_the_trunk(dtype, tolerance):
    with jax.enable_x64(dtype == jnp.float64), jax.default_matmul_precision("highest"):
        model = hybrid(param_dtype=dtype)
        images, variables = started(model, dtype)
        logits = model.apply(variables, images)
        net = explainable(model, variables)
        assert (net.layer, *net.levels) == LEVELS[:2]
        for level in ("input", *LEVELS):
            parts = decompose(net, images, layer=level)
            scale = jnp.abs(logits - model.coda.logit_bias).max()
            np.testing.assert_allclose(parts.logits, logits, rtol=0, atol=10 * tolerance * scale)
            assert jnp.abs(parts.residual).max() <= tolerance * scale
            unexplained = jnp.abs(parts.bias - model.coda.logit_bias).max()
            if level in LEVELS:
                assert unexplained <= tolerance * scale
            else:
                assert unexplained > 1e-3 * scale


@pytest.mark.slow
def test_contributions_at_the_trunk_are_those_of_the_coda_net_alone():
    model = hybrid()
    images, variables = started(model)
    trunk = {kind: variables[kind]["trunk"] for kind in ("params", "batch_stats")}
    features = model.trunk.apply(trunk, encode(images))
    coda = {"params": variables["params"]["coda"]}
    dense = jax.jacobian(lambda a: model.coda.apply(coda, a, frozen=True, encoded=True).sum(0))(features)
    parts = decompose(explainable(model, variables), images)  # at the trunk, by default
    np.testing.assert_allclose(parts.weights, jnp.moveaxis(dense, 0, 1), atol=1e-6)
    np.testing.assert_allclose(parts.contributions, parts.weights * features[:, None], atol=1e-6)


@pytest.mark.slow
def test_images_encoded_outside_give_the_same_logits():
    model = hybrid()
    images, variables = started(model)
    logits = model.apply(variables, images)
    np.testing.assert_array_equal(model.apply(variables, encode(images), encoded=True), logits)
    np.testing.assert_allclose(jax.jit(model.apply)(variables, images), logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(model.apply(variables, images, train=True, frozen=True), logits, rtol=1e-5)


@pytest.mark.slow
def test_a_trained_resnets_trunk_fits():
    resnet, model = CifarResNet(depth=8, width=4), hybrid(encode_input=False)
    images, variables = started(model)
    _, donor = started(resnet)
    kept = variables["params"]["trunk"].keys()
    for kind in ("params", "batch_stats"):
        assert kept <= donor[kind]["trunk"].keys()
        variables[kind]["trunk"] = {name: donor[kind]["trunk"][name] for name in kept}
    names = [{}, {}]
    for into, net, weights in zip(names, (resnet, model), (donor, variables), strict=True):

        def keep(run, args, kwargs, context, into=into):
            into["/".join(context.module.path)] = out = run(*args, **kwargs)
            return out

        with nn.intercept_methods(keep):
            net.apply(weights, images)
    np.testing.assert_allclose(names[1]["trunk"], names[0]["trunk/block_1"], rtol=1e-6)


@pytest.mark.slow
def test_gradients_reach_the_trunk_and_are_finite():
    model = hybrid()
    images, variables = started(model)

    def loss(params):
        logits, _ = model.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
        return (logits**2).mean()

    gradient = jax.jit(jax.grad(loss))(variables["params"])
    for leaf in jax.tree.leaves(gradient):
        assert jnp.isfinite(leaf).all()
        assert jnp.any(leaf != 0)


@pytest.mark.parametrize("encode_input", [True, False])
def test_reads_what_its_trunk_reads(encode_input):
    """So that pixel deletion sets all six channels of an encoding to zero, which is no color."""
    shapes = jax.eval_shape(hybrid(encode_input).init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    variables = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), shapes)
    net, images = explainable(hybrid(encode_input), variables), jnp.full((2, 8, 8, 3), 0.3)
    assert net.layers(images)["input"] == (2, 8, 8, 6 if encode_input else 3)
    np.testing.assert_allclose(net.encode(images), encode(images) if encode_input else images)


def test_structure_is_frozen():
    shapes = jax.eval_shape(hybrid().init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    assert set(shapes["params"]) == {"trunk", "coda"}
    assert set(shapes["params"]["trunk"]) == {"stem", "block_0", "block_1"}
    assert set(shapes["params"]["coda"]) == {"layer_0", "layer_1"}
    assert shapes["params"]["trunk"]["stem"]["conv"]["kernel"].shape == (3, 3, 6, 4)
    assert set(shapes["batch_stats"]) == {"trunk"}


def test_takes_another_trunk():
    model = hybrid(trunk=VGGTrunk(depth=11, width=2), encode_input=False)
    images = jnp.full((1, 32, 32, 3), 0.5)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    variables = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    names = explainable(model, variables).layers(images)
    assert names["trunk"] == (1, 1, 1, 16)
    assert names["coda/layer_1"] == (1, 1, 1, 5)
