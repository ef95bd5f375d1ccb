"""One table, model × property: what every network here promises, whatever its family."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, NamedTuple

os.environ["KERAS_BACKEND"] = "jax"

import equinox
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from jaxinterp import Attribution, Explainable, decompose, explainable
from jaxinterp.coda.hybrid import Hybrid
from jaxinterp.coda.network import CoDANet
from jaxinterp.coded.codes import Code
from jaxinterp.coded.network import CodedResNeXt, Stage
from jaxinterp.explain.program import INPUT
from jaxinterp.gated.architecture import c4gap
from jaxinterp.gated.network import GatedNetwork
from jaxinterp.glassbox.gcnn import GroupCNN
from jaxinterp.glassbox.network import GlassBox
from jaxinterp.nn.baselines import VGG, CifarResNet, ResNetTrunk
from jaxinterp.nn.platform import target
from jaxinterp.symmetry.groups import dihedral, rotations
from jaxinterp.taylor import PolynomialResNet, TaylorNet, overlapping
from jaxinterp.testing import check_explainable


class Row(NamedTuple):
    """A network, and what is known of its explanation."""

    build: Callable[..., Any]
    shape: tuple[int, int, int]
    level: str | None  # an inner layer; none of a network that is frozen along a path from its input
    bias: float | str | None  # the bias in closed form where there is one: a number, or "by class"


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


class NNXNet(nnx.Module):
    """As a user writes it: a list of layers, statistics, dropout."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.conv = nnx.Conv(3, 4, (3, 3), padding=((1, 1), (1, 1)), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.layers = nnx.List([nnx.Conv(4, 4, (3, 3), padding=((1, 1), (1, 1)), rngs=rngs)])
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.norm(self.conv(x)))
        for layer in self.layers:
            x = x + nnx.relu(layer(x))
        return self.head(self.dropout(x.mean((1, 2))))


def nnx_net() -> Explainable:
    model = NNXNet(nnx.Rngs(0))
    model.eval()
    model.norm.mean.set_value(jnp.full(4, 0.3))
    return explainable(model, levels=("layers/0",))


class EquinoxNet(equinox.Module):
    """As a user writes it: one example, channels first."""

    conv: equinox.nn.Conv2d
    mlp: equinox.nn.MLP

    def __init__(self, key: jax.Array) -> None:
        first, second = jax.random.split(key)
        self.conv = equinox.nn.Conv2d(6, 4, 3, key=first)  # the first axis of the rows' images is the channels'
        self.mlp = equinox.nn.MLP(4, 3, 8, 2, key=second)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.mlp(jax.nn.relu(self.conv(x)).mean((1, 2)))


def equinox_net() -> Explainable:
    return explainable(EquinoxNet(jax.random.key(0)), levels=("mlp/layers/0",))


def keras_net() -> Explainable:
    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential([
        layers.Input((6, 6, 3)),
        layers.Conv2D(4, 3, activation="relu", name="conv"),
        layers.BatchNormalization(moving_mean_initializer="ones"),
        layers.Dropout(0.5),
        layers.GlobalAveragePooling2D(),
        layers.Dense(3),
    ])  # fmt: skip
    return explainable(model, levels=("conv",))


ROWS = {
    "coda": Row(partial(CoDANet, **CODA), (6, 6, 3), "layer_1", BIAS),
    "coda-l2": Row(partial(CoDANet, **HEAD, rescale="l2"), (6, 5, 1), "layer_0", BIAS),
    "coda-one-row": Row(partial(CoDANet, **HEAD), (1, 9, 1), "layer_0", BIAS),
    "resnet": Row(partial(CifarResNet, 8, classes=3, width=2), (4, 4, 3), "trunk/block_1", None),
    "vgg": Row(partial(VGG, 11, classes=3, width=2), (32, 32, 3), "trunk/conv_3", None),
    "dgn": Row(partial(GatedNetwork, SHALLOW, "relu"), (6, 6, 3), "value_network/gate_1", 0.0),
    "dlgn-sf": Row(partial(GatedNetwork, SHALLOW, "shallow"), (6, 5, 1), "value_network/gate_0", 0.0),
    "coded": Row(partial(CodedResNeXt, stages=CODED, classes=3), (8, 8, 3), "block_2/paths", None),
    "taylor": Row(partial(TaylorNet, levels=TAYLOR, classes=3), (4, 4, 1), None, None),
    "taylor-residual": Row(partial(PolynomialResNet, **RESIDUAL), (4, 4, 1), None, None),
    "glassbox": Row(partial(GlassBox, rotations(4), **ORBIT), (6, 6, 1), "representation/orbit", "by class"),
    "gcnn": Row(partial(GroupCNN, dihedral(4), **P4M), (8, 8, 3), "block_0", None),
    "hybrid": Row(hybrid, (4, 4, 3), "trunk", BIAS),
    "nnx": Row(nnx_net, (6, 6, 3), "layers/0", None),
    "equinox": Row(equinox_net, (6, 6, 3), "mlp/layers/0", None),
    "keras": Row(keras_net, (6, 6, 3), "conv", None),
}
FAMILIES = ("coda", "dgn", "coded", "taylor", "glassbox", "gcnn")
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
LINEN = [name for name in ROWS if name not in ("nnx", "equinox", "keras")]


def key(seed: int) -> jax.Array:
    """A key whose draws compile fast; initializing takes most of the time otherwise."""
    return jax.random.key(seed, impl="unsafe_rbg")


class Net(NamedTuple):
    """A network at an ordinary point: variables off their initial values, and images."""

    model: nn.Module | None
    net: Explainable
    images: jax.Array
    init: Callable[..., Any]


@cache
def built(name: str) -> Net:
    row = ROWS[name]
    model = row.build()
    rng = np.random.default_rng(0)  # NumPy's, here and below: operations outside of a program compile one by one
    images = jnp.asarray(rng.uniform(size=(2, *row.shape)), jnp.float32)
    if isinstance(model, Explainable):
        return Net(None, model, images, row.build)
    init = jax.jit(model.init)

    def moved(leaf: jax.Array) -> jax.Array:  # zeros too, behind which a branch would go unseen
        value, draw = np.asarray(leaf), rng.uniform(size=leaf.shape)
        return jnp.asarray(value * (1 + 0.1 * draw) if value.any() else 0.3 * draw, leaf.dtype)

    net = explainable(model, jax.tree.map(moved, init(key(1), images)))
    return Net(model, net, images, init)


@pytest.fixture(autouse=True)
def promotion(name):
    """Networks of other frameworks mix ranks and types, as their users do."""
    if name in LINEN:
        yield
        return
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


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


@dataclass(frozen=True)
class Beside:
    """A function of a network's variables, beside which stand the sizes of errors."""

    function: Callable[..., jax.Array]

    def __call__(self, variables: Any, *arrays: jax.Array) -> jax.Array:
        return self.function(variables[0], *arrays)


@dataclass(frozen=True)
class Planted:
    """A network with errors of three kinds, of the sizes that stand beside its variables; two when it is frozen."""

    network: Callable[..., jax.Array]
    frozen: bool

    def __call__(self, variables: Any, x: jax.Array) -> jax.Array:
        own, (loose, batch, bias) = variables
        logits = self.network(own, x + batch * x.mean(0, keepdims=True))
        if not self.frozen:
            return logits
        size = (x * x).mean(tuple(range(1, x.ndim)))
        return logits * (1 + loose * (size - jax.lax.stop_gradient(size)))[:, None] + bias


ERRORS = {  # what is planted, and what of the refusal says that it was seen
    "a coefficient that is not held": r"network: got curvature",
    "a statistic of the batch": r"network: got logits that change",
    "a wrong bias": r"frozen: got discrepancy",
}


@cache
def explained(name: str, error: str = "") -> list[Attribution]:
    """The decomposition at the input and, where there is one, at the inner level; perhaps with an error planted."""
    row, net = ROWS[name], built(name).net
    sizes = [jnp.float32(kind == error) for kind in ERRORS]
    planted = replace(
        net,
        variables=(net.variables, sizes),
        network=Planted(net.network, frozen=False),
        held=Planted(net.held, frozen=True),
        encoding=None if net.encoding is None else Beside(net.encoding),
        bias=Beside(net.bias) if callable(net.bias) else net.bias,
        levels=(INPUT, row.level or INPUT) if net.layer == INPUT else (),
    )
    return decompose(planted, built(name).images, layer=list(dict.fromkeys([INPUT, row.level or INPUT])))


each_model = pytest.mark.parametrize("name", ROWS)
each_of_ours = pytest.mark.parametrize("name", LINEN)


@each_model
def test_freezing_does_not_change_the_value(name):
    net, logits = built(name), explained(name)[0].logits
    assert float(explained(name)[0].discrepancy.max()) <= 1e-5
    own = net.net.logits(net.images) if net.model is None else free(name)(net.net.variables, net.images)[0]
    np.testing.assert_allclose(logits, own, rtol=1e-5, atol=1e-5)


@each_model
def test_contributions_and_bias_sum_to_the_logits(name):
    row = ROWS[name]
    for part in explained(name):
        size = float(np.abs(part.logits).max())
        assert np.abs(part.residual).max() <= 1e-4 * size
        assert float(part.curvature.max()) <= 1e-4
        if row.bias is not None and part.layer == built(name).net.layer:  # the residual is taken against it
            assert len(np.unique(part.bias)) == (3 if row.bias == "by class" else 1)
            assert row.bias == "by class" or part.bias[0, 0] == np.float32(row.bias)


@each_model
@pytest.mark.parametrize("error", ERRORS)
def test_a_planted_error_is_noticed(name, error):
    with pytest.raises(ValueError, match=rf"\A{ERRORS[error]}"):
        explained(name, error)


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.bias is not None])
def test_a_wrong_bias_in_closed_form_is_refused(name):
    net, images = built(name).net, built(name).images
    moved = net.bias_at(net.layer) + 0.1
    wrong = replace(net, bias=lambda variables: moved)
    with pytest.raises(ValueError, match=r"\Aresidual: got"):
        decompose(wrong, images)
    assert float(decompose(wrong, images, check=False).relative_residual.max()) > 1e-3


class Block(nn.Module):
    """A block of a vision transformer."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(2)(y, y)
        return x + nn.Dense(8, name="out")(nn.gelu(nn.Dense(12)(nn.LayerNorm()(x))))


class VisionTransformer(nn.Module):
    """Patches, a class token, two blocks."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(8, (2, 2), (2, 2))(x).reshape(len(x), -1, 8)
        token = self.param("token", nn.initializers.normal(1.0), (1, 1, 8))
        x = jnp.concatenate([jnp.tile(token, (len(x), 1, 1)), x], axis=1)
        x = x + self.param("places", nn.initializers.normal(0.5), (1, x.shape[1], 8))
        for i in range(2):
            x = Block(name=f"block_{i}")(x)
        return nn.Dense(3)(nn.LayerNorm()(x)[:, 0])


class SmoothNNXNet(nnx.Module):
    """As a user writes it, without a ReLU."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)
        self.norm = nnx.LayerNorm(4, rngs=rngs)
        self.head = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(nnx.gelu(self.norm(self.conv(x))).mean((1, 2)))


def vit() -> Explainable:
    module = VisionTransformer()
    return explainable(module, jax.jit(module.init)(key(0), jnp.ones((2, 4, 4, 3))), levels=("block_0",))


UNFROZEN = {
    "vit": (vit, "5 norm, 2 softmax, 2 gelu"),
    "nnx-smooth": (lambda: explainable(SmoothNNXNet(nnx.Rngs(0)), levels=("norm",)), "1 norm, 1 gelu"),
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name == "vit")) for name in UNFROZEN])
def test_a_network_without_a_frozen_version_keeps_the_contracts(name):
    build, held = UNFROZEN[name]
    net, images = build(), jax.random.normal(jax.random.key(1), (2, 4, 4, 3))
    check_explainable(net, images)
    parts = decompose(net, images)
    assert parts.held == held
    assert f"held: {held}" in repr(parts)
    assert float(parts.curvature.max()) == 0
    with pytest.raises(ValueError, match=r"\Anetwork: got curvature"):
        decompose(explainable(net, freeze=False), images)


@each_of_ours
def test_the_same_in_float64(name):
    with jax.enable_x64(True):
        wide = partial(
            jax.tree.map, lambda a: jnp.asarray(np.asarray(a, np.float64 if a.dtype == np.float32 else None))
        )
        net = explainable(ROWS[name].build(param_dtype=jnp.float64), wide(built(name).net.variables))
        part = decompose(net, wide(built(name).images), layer=INPUT, check=False)
        assert part.weights.dtype == jnp.float64
        size = float(np.abs(part.logits).max())
        assert np.abs(part.residual).max() <= 1e-10 * size
        np.testing.assert_allclose(part.logits, explained(name)[0].logits, atol=1e-4 * size)


@each_model
def test_weights_are_the_dense_jacobian_of_one_example_and_the_bias_is_the_value_at_zero_of_its_affine_map(name):
    net, part = built(name).net, explained(name)[0]
    first = np.asarray(net.encode(built(name).images))[0]
    logits, weights, bias = (np.asarray(leaf)[0] for leaf in (part.logits, part.weights, part.bias))
    function = EquinoxNet(jax.random.key(0)) if name == "equinox" else lambda e: net.held(net.variables, e[None])[0]
    one = np.asarray(jax.jit(jax.jacfwd(function))(first))
    np.testing.assert_allclose(weights, one, rtol=1e-3, atol=1e-4 * np.abs(one).max())
    np.testing.assert_allclose(bias, logits - (one * first).reshape(len(one), -1).sum(1), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["coda", "coda-l2", "coda-one-row", "coded", "taylor", "hybrid"])
def test_freezing_holds_coefficients_that_depend_on_the_input(name):
    net, held = built(name), np.asarray(explained(name)[0].weights).sum(1)
    if held.shape[-1] == 2 * net.images.shape[-1]:  # as [x, 1 − x]
        held = np.subtract(*np.split(held, 2, axis=-1))
    _, _, moving = free(name)(net.net.variables, net.images)
    assert np.abs(held - moving).max() > 1e-2 * np.abs(held).max()


@each_of_ours
def test_same_key_same_bits(name):
    net = built(name)
    one, two, other = (jax.tree.leaves(net.init(key(seed), net.images)) for seed in (0, 0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@each_of_ours
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_gradients_are_finite_on_black_and_white(name, value):
    net = built(name)
    for leaf in jax.tree.leaves(free(name)(net.net.variables, np.full(net.images.shape, value, np.float32))):
        assert np.isfinite(leaf).all()


@each_of_ours
def test_half_precision_images_are_read_in_the_parameters_precision(name):
    net = built(name)
    logits = jax.eval_shape(net.model.apply, net.net.variables, net.images.astype(jnp.float16))
    assert logits.dtype == jnp.float32


def exported(function: Callable[..., Any], *arguments: Any) -> Callable[..., Any]:
    """A function as it comes back from a file for every platform, none of which but the CPU is here."""
    return jax.export.deserialize(
        jax.export.export(jax.jit(function), platforms=PLATFORMS)(*arguments).serialize()
    ).call


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_are_exported_for_every_platform(name):
    net = built(name)
    arguments = net.net.variables, net.images
    again = exported(net.model.apply, *arguments)(*arguments)
    np.testing.assert_allclose(again, free(name)(*arguments)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_decompositions_are_exported_for_every_platform(name):
    net, images = built(name).net, built(name).images

    def parts(images: jax.Array) -> tuple[jax.Array, ...]:
        part = decompose(net, images, layer=INPUT, check=False)
        return part.logits, part.contributions, part.bias

    want = explained(name)[0]
    for found, known in zip(exported(parts, images)(images), (want.logits, want.contributions, want.bias), strict=True):
        np.testing.assert_allclose(found, known, rtol=1e-4, atol=1e-5)
    with target("accelerator"):
        assert jax.export.export(jax.jit(parts), platforms=PLATFORMS[1:])(images).platforms == PLATFORMS[1:]


@pytest.mark.parametrize("name", ["coda", "coda-l2", "coded"])
def test_the_side_of_accelerators_computes_the_same(name):
    net, images = built(name).net, built(name).images
    want = free(name)(net.variables, images), explained(name)[0].contributions
    with target("accelerator"):
        found = free(name)(net.variables, images), decompose(net, images, layer=INPUT).contributions
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), found, want)


@each_model
@pytest.mark.slow
def test_the_public_test_passes(name):
    assert all(contract.kept for contract in check_explainable(built(name).net, built(name).images))
