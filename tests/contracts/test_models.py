"""One table, model × property: what every network here promises, whatever its family."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxinterp import Decomposition, decompose
from jaxinterp.coda.hybrid import Hybrid
from jaxinterp.coda.network import CoDANet, encode
from jaxinterp.coded.codes import Code
from jaxinterp.coded.network import CodedResNeXt, Stage
from jaxinterp.gated.architecture import c4gap
from jaxinterp.gated.network import GatedNetwork
from jaxinterp.glassbox.gcnn import GroupCNN
from jaxinterp.glassbox.network import GlassBox
from jaxinterp.nn.baselines import VGG, CifarResNet, ResNetTrunk
from jaxinterp.symmetry.groups import dihedral, rotations
from jaxinterp.taylor import PolynomialResNet, TaylorNet, overlapping


class Row(NamedTuple):
    """A network and how it is called on the space in which it is explained."""

    build: Callable[..., nn.Module]
    shape: tuple[int, int, int]
    keywords: dict[str, Any]
    encoded: bool
    level: str | None  # an inner activation; none of a network that is frozen along a path from its input
    exact_bias: float | None  # the bias part where it is known in closed form


CODA = {"features": (3, 4, 3), "ranks": (2, 2, 2), "kernel_sizes": (3, 3, 1), "strides": (1, 2, 1), "temperature": 2.0}
HEAD = {"features": (4, 3), "ranks": (2, 2), "kernel_sizes": (3, 1), "strides": (2, 1), "temperature": 2.0}
CODED = (Stage(1, 6, 2, 3), Stage(1, 8, 2, 4, 2, Code(("1100", "0110", "0011"))))
SHALLOW = c4gap(4, classes=3, depth=2)
TAYLOR = overlapping((2, 3))
RESIDUAL = {"depths": (1, 1), "widths": (2, 3), "classes": 3}
ORBIT = {"templates": 3, "invariants": ("sorted", "bispectrum"), "equivariant": True, "components": 4, "classes": 3}
P4M = {"features": (2, 3), "sides": (3, 3), "pools": (0,), "classes": 3}
BIAS = float(np.log(0.1 / 0.9))


def hybrid(**fields: Any) -> Hybrid:
    return Hybrid(ResNetTrunk(8, blocks=1, width=2, **fields), CoDANet(**HEAD, **fields))


ROWS = {
    "coda": Row(partial(CoDANet, **CODA), (6, 6, 3), {"encoded": True}, True, "layer_1", BIAS),
    "coda-l2": Row(partial(CoDANet, **HEAD, rescale="l2"), (6, 5, 1), {"encoded": True}, True, "layer_0", BIAS),
    "coda-one-row": Row(partial(CoDANet, **HEAD), (1, 9, 1), {"encoded": True}, True, "layer_0", BIAS),
    "resnet": Row(partial(CifarResNet, 8, classes=3, width=2), (4, 4, 3), {}, False, "trunk/block_1", None),
    "vgg": Row(partial(VGG, 11, classes=3, width=2), (32, 32, 3), {}, False, "trunk/conv_3", None),
    "dgn": Row(partial(GatedNetwork, SHALLOW, "relu"), (6, 6, 3), {}, False, "value_network/gate_1", 0.0),
    "dlgn-sf": Row(partial(GatedNetwork, SHALLOW, "shallow"), (6, 5, 1), {}, False, "value_network/gate_0", 0.0),
    "coded": Row(partial(CodedResNeXt, stages=CODED, classes=3), (8, 8, 3), {}, False, "block_2/paths", None),
    "taylor": Row(partial(TaylorNet, levels=TAYLOR, classes=3), (4, 4, 1), {}, False, None, None),
    "taylor-residual": Row(partial(PolynomialResNet, **RESIDUAL), (4, 4, 1), {}, False, None, None),
    "glassbox": Row(partial(GlassBox, rotations(4), **ORBIT), (6, 6, 1), {}, False, "representation/orbit", None),
    "gcnn": Row(partial(GroupCNN, dihedral(4), **P4M), (8, 8, 3), {}, False, "block_0", None),
    "hybrid": Row(hybrid, (4, 4, 3), {"encoded": True}, True, "trunk", None),
}


def key(seed: int) -> jax.Array:
    """A key whose draws compile fast; initializing takes most of the time otherwise."""
    return jax.random.key(seed, impl="unsafe_rbg")


class Net(NamedTuple):
    """A network at an ordinary point: model, variables off their initial values, images, and the explained input."""

    model: nn.Module
    variables: Any
    images: jax.Array
    x: jax.Array
    frozen: Callable[..., jax.Array]
    init: Callable[..., Any]


@cache
def built(name: str) -> Net:
    row = ROWS[name]
    model = row.build()
    rng = np.random.default_rng(0)  # NumPy's, here and below: operations outside of a program compile one by one
    images = jnp.asarray(rng.uniform(size=(2, *row.shape)), jnp.float32)
    init = jax.jit(model.init)

    def moved(leaf: jax.Array) -> jax.Array:  # zeros too, behind which a branch would go unseen
        value, draw = np.asarray(leaf), rng.uniform(size=leaf.shape)
        return jnp.asarray(value * (1 + 0.1 * draw) if value.any() else 0.3 * draw, leaf.dtype)

    variables = jax.tree.map(moved, init(key(1), images))
    x = encode(images) if row.encoded else images
    return Net(model, variables, images, x, partial(model.apply, frozen=True, **row.keywords), init)


@cache
def free(name: str) -> Callable[..., tuple[jax.Array, Any, jax.Array]]:
    """(variables, images) ↦ logits of the network as it is, and gradients of their sum in parameters and images."""
    model = built(name).model

    def logits(params: Any, images: jax.Array, variables: Any) -> tuple[jax.Array, jax.Array]:
        out = model.apply({**variables, "params": params}, images)
        return out.sum(), out

    slopes = jax.jit(jax.value_and_grad(logits, (0, 1), has_aux=True))

    def run(variables: Any, images: jax.Array) -> tuple[jax.Array, Any, jax.Array]:
        (_, out), (params, pixels) = slopes(variables["params"], images, variables)
        return out, params, pixels

    return run


@cache
def explained(name: str) -> list[Decomposition]:
    """The decomposition at the input and, where there is one, at the inner level, by one program."""
    net = built(name)
    levels = [None] if ROWS[name].level is None else [None, ROWS[name].level]
    return decompose(net.frozen, net.x, variables=net.variables, layer=levels)


each_model = pytest.mark.parametrize("name", ROWS)


@each_model
def test_freezing_does_not_change_the_value(name):
    net = built(name)
    logits, _, _ = free(name)(net.variables, net.images)
    np.testing.assert_allclose(explained(name)[0].logits, logits, rtol=1e-5, atol=1e-5)


@each_model
def test_contributions_and_bias_sum_to_the_logits(name):
    for parts in explained(name):
        size = float(np.abs(parts.logits).max())
        assert np.abs(parts.residual).max() <= 1e-4 * size
        if ROWS[name].exact_bias is not None:
            want = np.full_like(parts.bias, ROWS[name].exact_bias)
            np.testing.assert_allclose(parts.bias, want, rtol=1e-4, atol=1e-5 * size)


@each_model
def test_the_same_in_float64(name):
    net = built(name)
    with jax.enable_x64(True):
        model = ROWS[name].build(param_dtype=jnp.float64)
        wide = partial(
            jax.tree.map, lambda a: jnp.asarray(np.asarray(a, np.float64 if a.dtype == np.float32 else None))
        )
        frozen = partial(model.apply, frozen=True, **ROWS[name].keywords)
        parts = decompose(frozen, wide(net.x), variables=wide(net.variables), check=False)
        assert parts.weights.dtype == jnp.float64
        size = float(np.abs(parts.logits).max())
        assert np.abs(parts.residual).max() <= 1e-10 * size
        np.testing.assert_allclose(parts.logits, explained(name)[0].logits, atol=1e-4 * size)


@each_model
def test_weights_are_the_dense_jacobian_of_one_example_and_the_bias_is_the_value_at_zero_of_its_affine_map(name):
    net, parts = built(name), explained(name)[0]
    first, (logits, weights, _, bias, _) = np.asarray(net.x)[0], [np.asarray(part)[0] for part in parts]
    one = np.asarray(jax.jit(jax.jacfwd(lambda e: net.frozen(net.variables, e[None])[0]))(first))  # one input at a time
    np.testing.assert_allclose(weights, one, rtol=1e-3, atol=1e-4 * np.abs(one).max())
    np.testing.assert_allclose(bias, logits - (one * first).reshape(len(one), -1).sum(1), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["coda", "coda-l2", "coda-one-row", "coded", "taylor", "hybrid"])
def test_freezing_holds_coefficients_that_depend_on_the_input(name):
    net = built(name)
    held = np.asarray(explained(name)[0].weights).sum(1)
    if ROWS[name].encoded:  # as [x, 1 − x]
        held = np.subtract(*np.split(held, 2, axis=-1))
    _, _, moving = free(name)(net.variables, net.images)
    assert np.abs(held - moving).max() > 1e-2 * np.abs(held).max()


@each_model
def test_same_key_same_bits(name):
    net = built(name)
    one, two, other = (jax.tree.leaves(net.init(key(seed), net.images)) for seed in (0, 0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@each_model
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_gradients_are_finite_on_black_and_white(name, value):
    net = built(name)
    for leaf in jax.tree.leaves(free(name)(net.variables, np.full(net.images.shape, value, np.float32))):
        assert np.isfinite(leaf).all()


@each_model
def test_half_precision_images_are_read_in_the_parameters_precision(name):
    net = built(name)
    logits = jax.eval_shape(net.model.apply, net.variables, net.images.astype(jnp.float16))
    assert logits.dtype == jnp.float32
