"""One table, model × property: what every network here promises, whatever its family."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxinterp import decompose
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
    return Hybrid(ResNetTrunk(8, blocks=2, width=4, **fields), CoDANet(**HEAD, **fields))


ROWS = {
    "coda": Row(partial(CoDANet, **CODA), (6, 6, 3), {"encoded": True}, True, "layer_1", BIAS),
    "coda-l2": Row(partial(CoDANet, **CODA, rescale="l2"), (6, 5, 1), {"encoded": True}, True, "layer_0", BIAS),
    "coda-one-row": Row(partial(CoDANet, **CODA), (1, 9, 1), {"encoded": True}, True, "layer_1", BIAS),
    "resnet": Row(partial(CifarResNet, 8, classes=3, width=4), (8, 8, 3), {}, False, "trunk/block_1", None),
    "vgg": Row(partial(VGG, 11, classes=3, width=2), (32, 32, 3), {}, False, "trunk/conv_3", None),
    "dgn": Row(partial(GatedNetwork, SHALLOW, "relu"), (6, 6, 3), {}, False, "value_network/gate_1", 0.0),
    "dlgn-sf": Row(partial(GatedNetwork, SHALLOW, "shallow"), (6, 5, 1), {}, False, "value_network/gate_0", 0.0),
    "coded": Row(partial(CodedResNeXt, stages=CODED, classes=3), (8, 8, 3), {}, False, "block_2/paths", None),
    "taylor": Row(partial(TaylorNet, levels=TAYLOR, classes=3), (4, 4, 1), {}, False, None, None),
    "taylor-residual": Row(partial(PolynomialResNet, **RESIDUAL), (4, 4, 1), {}, False, None, None),
    "glassbox": Row(partial(GlassBox, rotations(4), **ORBIT), (6, 6, 1), {}, False, "representation/orbit", None),
    "gcnn": Row(partial(GroupCNN, dihedral(4), **P4M), (8, 8, 3), {}, False, "block_0", None),
    "hybrid": Row(hybrid, (8, 8, 3), {"encoded": True}, True, "trunk", None),
}


@cache
def made(name: str, x64: bool = False) -> tuple[nn.Module, Any, jax.Array, Callable[[Any, jax.Array], jax.Array]]:
    """Model, variables with every leaf moved off its initial value, explained input, and the frozen function."""
    row = ROWS[name]
    dtype = jnp.float64 if x64 else jnp.float32
    model = row.build(param_dtype=dtype)
    images = jax.random.uniform(jax.random.key(0), (3, *row.shape), dtype)
    variables = jax.jit(model.init)(jax.random.key(1), images)
    leaves, tree = jax.tree.flatten(variables)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    moved = []
    for key, leaf in zip(keys, leaves, strict=True):  # zeros too, behind which a branch would go unseen
        draw = jax.random.uniform(key, leaf.shape, leaf.dtype)
        moved.append(leaf * (1 + 0.1 * draw) if leaf.any() else 0.3 * draw)
    x = encode(images) if row.encoded else images
    frozen = partial(model.apply, frozen=True, **row.keywords)
    return model, jax.tree.unflatten(tree, moved), x, frozen


def each_model(slow: tuple[str, ...] = ()) -> pytest.MarkDecorator:
    """Every model; where compiling takes ten seconds, some are not for every day."""
    return pytest.mark.parametrize(
        "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in slow)) for name in ROWS]
    )


one_model = each_model(tuple(name for name in ROWS if name != "coda"))


@each_model(("coda", "coda-l2", "coda-one-row", "resnet", "vgg", "taylor-residual", "hybrid"))
def test_freezing_does_not_change_the_value(name):
    model, variables, x, frozen = made(name)
    free = jax.jit(partial(model.apply, **ROWS[name].keywords))(variables, x)
    np.testing.assert_allclose(jax.jit(frozen)(variables, x), free, rtol=1e-5, atol=1e-6)


@each_model(("coda-l2", "coda-one-row", "vgg", "taylor-residual", "hybrid"))
@pytest.mark.parametrize("inner", [False, True])
def test_contributions_and_bias_sum_to_the_logits(name, inner):
    _, variables, x, frozen = made(name)
    parts = decompose(frozen, x, variables=variables, layer=ROWS[name].level if inner else None)
    size = float(jnp.abs(parts.logits).max())
    assert float(jnp.abs(parts.residual).max()) <= 1e-4 * size
    if ROWS[name].exact_bias is not None:
        want = np.full_like(parts.bias, ROWS[name].exact_bias)
        np.testing.assert_allclose(parts.bias, want, rtol=1e-4, atol=1e-5 * size)


@one_model
def test_the_same_in_float64(name):
    with jax.enable_x64(True):
        _, variables, x, frozen = made(name, True)
        parts = decompose(frozen, x, variables=variables)
        assert parts.weights.dtype == jnp.float64
        assert float(jnp.abs(parts.residual).max()) <= 1e-10 * float(jnp.abs(parts.logits).max())


@each_model(("coda-l2", "coda-one-row", "vgg", "taylor", "taylor-residual", "hybrid"))
def test_weights_are_the_dense_jacobian_and_the_bias_is_the_value_at_zero_of_the_affine_map(name):
    _, variables, x, frozen = made(name)
    parts = decompose(frozen, x, variables=variables)
    one = jax.jit(jax.jacfwd(lambda e: frozen(variables, e[None])[0]))(x[0])  # forward mode, one input at a time
    scale = float(jnp.abs(one).max())
    np.testing.assert_allclose(parts.weights[0], one, rtol=1e-3, atol=1e-4 * scale)
    affine = np.asarray(parts.logits[0]) - (np.asarray(one) * np.asarray(x[0])).reshape(one.shape[0], -1).sum(1)
    np.testing.assert_allclose(parts.bias[0], affine, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "name", ["coda", "coded", "taylor", *(pytest.param(name, marks=pytest.mark.slow) for name in ("coda-l2", "hybrid"))]
)
def test_freezing_holds_coefficients_that_depend_on_the_input(name):
    model, variables, x, frozen = made(name)
    free = partial(model.apply, **ROWS[name].keywords)
    held, moving = (jax.jit(jax.grad(lambda x, f=f: f(variables, x)[:, 0].sum()))(x) for f in (frozen, free))
    assert float(jnp.abs(held - moving).max()) > 1e-2 * float(jnp.abs(held).max())


@each_model(("coda-l2", "coda-one-row", "vgg", "taylor", "taylor-residual", "hybrid"))
def test_examples_are_independent_and_targets_are_rows(name):
    _, variables, x, frozen = made(name)
    whole = decompose(frozen, x, variables=variables, check=False)
    single = decompose(frozen, x[1:2], 2, variables=variables, check=False)
    scale = float(jnp.abs(whole.contributions).max())
    np.testing.assert_allclose(single.contributions[0, 0], whole.contributions[1, 2], atol=1e-4 * scale)


@each_model(("coda-l2", "coda-one-row", "vgg", "taylor-residual", "hybrid"))
def test_same_key_same_bits(name):
    model, _, _, _ = made(name)
    images = jnp.zeros((1, *ROWS[name].shape))
    init = jax.jit(model.init)
    one, two, other = (init(jax.random.key(seed), images) for seed in (0, 0, 1))
    assert all(jnp.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True))
    assert any(not jnp.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


@each_model(("coda-l2", "coda-one-row", "vgg", "taylor-residual", "hybrid"))
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_gradients_are_finite_on_black_and_white(name, value):
    model, variables, _, _ = made(name)
    images = jnp.full((2, *ROWS[name].shape), value)

    def loss(params: Any, images: jax.Array) -> jax.Array:
        return model.apply({**variables, "params": params}, images).sum()

    grads = jax.jit(jax.grad(loss, (0, 1)))(variables["params"], images)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(grads))
