"""A network as a program: layers inside of jit, remat and scan, and one program for the same operations."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxinterp.explain.attribute import integrated_gradients
from jaxinterp.explain.decompose import decompose
from jaxinterp.explain.explainable import explainable
from jaxinterp.explain.program import trace

X = jax.random.normal(jax.random.key(0), (3, 4))


class Block(nn.Module):
    """A residual step, as `nn.scan` wants it: (x, None) ↦ (x, None)."""

    @nn.compact
    def __call__(self, x, _=None):
        return x + nn.relu(nn.Dense(4, name="inner")(x)), None


class Stack(nn.Module):
    """Two blocks, each perhaps wrapped, and a head."""

    block: type = Block

    @nn.compact
    def __call__(self, x):
        for i in range(2):
            x, _ = self.block(name=f"block_{i}")(x, None)
        return nn.Dense(2, name="head")(x)


PLAIN = Stack().init(jax.random.key(1), X)
LAYERS = ["block_0/inner", "block_1/inner", "head"]


def test_a_trace_that_flax_keeps_is_not_taken_for_another():
    """`nn.jit` traces modules of the same kind once, whatever their names."""
    jitted = nn.jit(Block)

    class Other(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2, name="head")(jitted(name="other")(x, None)[0])

    with jax.default_matmul_precision("highest"):
        Stack(jitted).apply(PLAIN, X)
    assert list(explainable(Stack(jitted), PLAIN).layers(X)) == ["input", *LAYERS]
    variables = {"params": {"other": PLAIN["params"]["block_1"], "head": PLAIN["params"]["head"]}}
    net = explainable(Other(), variables)
    assert list(net.layers(X)) == ["input", "other/inner", "head"]
    want = X @ PLAIN["params"]["block_1"]["inner"]["kernel"]
    np.testing.assert_allclose(net.activation(X, "other/inner"), want, rtol=1e-5, atol=1e-6)


def both(block):
    return nn.jit(nn.remat(block))


@pytest.mark.parametrize("wrap", [nn.jit, nn.remat, both])
def test_layers_inside_of_jit_and_remat(wrap):
    plain, wrapped = explainable(Stack(), PLAIN), explainable(Stack(wrap(Block)), PLAIN)
    assert list(wrapped.layers(X)) == list(plain.layers(X)) == ["input", *LAYERS]
    np.testing.assert_allclose(wrapped.logits(X), plain.logits(X), rtol=1e-6)
    for layer in LAYERS:
        np.testing.assert_allclose(wrapped.activation(X, layer), plain.activation(X, layer), rtol=1e-5, atol=1e-6)
    want, found = (decompose(net, X, layer=["input", "block_1/inner"]) for net in (plain, wrapped))
    for ours, theirs in zip(found, want, strict=True):
        np.testing.assert_allclose(ours.weights, theirs.weights, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(ours.bias, theirs.bias, rtol=1e-4, atol=1e-6)


def scanned(length, reverse=False, block=Block):
    each = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}, "length": length}
    return nn.scan(block, **each, reverse=reverse)


class Scanned(nn.Module):
    """As `Stack`, its blocks in one scan."""

    reverse: bool = False

    @nn.compact
    def __call__(self, x):
        x, _ = scanned(2, self.reverse)(name="blocks")(x, None)
        return nn.Dense(2, name="head")(x)


@pytest.mark.parametrize("reverse", [False, True])
def test_layers_inside_of_a_scan_have_an_index(reverse):
    order = (1, 0) if reverse else (0, 1)
    params = PLAIN["params"]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), params["block_0"], params["block_1"])
    plain = explainable(
        Stack(), {"params": {"block_0": params[f"block_{order[0]}"], "block_1": params[f"block_{order[1]}"]} | {
            "head": params["head"]}},
    )  # fmt: skip
    net = explainable(Scanned(reverse), {"params": {"blocks": stacked, "head": params["head"]}})
    assert list(net.layers(X)) == ["input", *(f"blocks/inner[{i}]" for i in order), "head"]
    np.testing.assert_allclose(net.logits(X), plain.logits(X), rtol=1e-5)
    levels = ["input", "blocks/inner[0]", "blocks/inner[1]"]
    found = decompose(net, X, layer=levels)
    want = decompose(plain, X, layer=["input", *(f"block_{order.index(i)}/inner" for i in range(2))])
    for i, (ours, theirs) in enumerate(zip(found, want, strict=True)):
        np.testing.assert_allclose(ours.contributions, theirs.contributions, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(ours.bias, theirs.bias, rtol=1e-4, atol=1e-6)
        if i:
            np.testing.assert_allclose(net.activation(X, levels[i]), plain.activation(X, theirs.layer), atol=1e-6)


def test_a_scan_in_a_scan_has_two_indices():
    class Outer(nn.Module):
        @nn.compact
        def __call__(self, x, _=None):
            return scanned(3)(name="within")(x, None)

    class Nested(nn.Module):
        @nn.compact
        def __call__(self, x):
            return scanned(2, block=Outer)(name="around")(x, None)[0]

    variables = Nested().init(jax.random.key(2), X)
    net, inner = explainable(Nested(), variables), variables["params"]["around"]["within"]["inner"]
    turns = [(i, k) for i in range(2) for k in range(3)]
    assert list(net.layers(X))[1:] == [f"around/within/inner[{i}][{k}]" for i, k in turns]
    x = X
    for i, k in turns:
        step = x @ inner["kernel"][i, k] + inner["bias"][i, k][None]
        if (i, k) in ((0, 2), (1, 1)):
            found = net.activation(X, f"around/within/inner[{i}][{k}]")
            np.testing.assert_allclose(found, step, rtol=1e-4, atol=1e-5)
        x = x + nn.relu(step)
    np.testing.assert_allclose(net.logits(X), x, rtol=1e-4, atol=1e-5)


def test_a_layer_that_is_called_twice_is_none():
    class Shared(nn.Module):
        @nn.compact
        def __call__(self, x):
            dense = nn.Dense(4, name="shared")
            return dense(nn.relu(dense(x)))

    net = explainable(Shared(), Shared().init(jax.random.key(0), X))
    assert list(net.layers(X)) == ["input"]


# One program for the same operations.


def program(net):
    return explainable(net).program("logits", X).program


def test_the_same_operations_are_one_program(compilations):
    def made(w):
        return lambda x: jnp.tanh(x @ w) * 1.25

    one, two = made(X.T[:, :2]), made(X.T[:, 1:])
    assert one is not two
    assert program(one) is program(two)
    decompose(explainable(one), X, check=False)
    with compilations() as programs:
        parts = decompose(explainable(two), X, check=False)
    assert programs == []  # constants are arguments
    np.testing.assert_allclose(parts.logits, two(X), rtol=1e-5)


def test_a_network_made_twice_is_one_program():
    nets = [explainable(Stack(), jax.tree.map(lambda p, k=k: p + k, PLAIN)) for k in (0, 1)]
    assert program(nets[0]) is program(nets[1])
    again = [explainable(lambda v, x: Stack().apply(v, x), PLAIN) for _ in range(2)]
    assert program(again[0]) is program(again[1])
    assert program(explainable(nn.Dense(2), nn.Dense(2).init(jax.random.key(0), X))) is not program(nets[0])


def test_a_derivative_of_its_own_makes_another_program():
    def stepping(slope):
        @jax.custom_jvp
        def step(x):
            return jnp.sign(x)

        step.defjvp(lambda primals, tangents: (step(*primals), slope * tangents[0]))
        return step

    def pulling(slope):
        @jax.custom_vjp
        def step(x):
            return jnp.sign(x)

        step.defvjp(lambda x: (step(x), None), lambda _, g: (slope * g,))
        return step

    for make in (stepping, pulling):
        assert program(make(2.0)) is not program(make(3.0))
    found = decompose(explainable(stepping(3.0)), X, 0, check=False)
    np.testing.assert_allclose(found.weights[:, 0, 0], jnp.full(3, 3.0))


def test_scalars_and_shapes_that_are_closed_over_make_another_program():
    assert program(lambda x: 2.0 * x) is not program(lambda x: 3.0 * x)
    assert program(lambda x: x[:, :2]) is not program(lambda x: x[:, 1:3])
    assert program(lambda x: (x > 0.0).astype(x.dtype)) is not program(lambda x: (x > 1.0).astype(x.dtype))
    assert program(lambda x: jnp.clip(x, 0)) is not program(lambda x: jnp.clip(x, 1))
    for scale in (2.0, 3.0):
        wide = jnp.float32(scale)
        np.testing.assert_allclose(explainable(lambda x, wide=wide: wide * x).logits(X), scale * X, rtol=1e-6)


def test_names_and_places_of_layers_make_another_program():
    def same(x):
        return x

    def twice(x):
        return 2 * x

    nets = [
        {"a": twice, "b": twice, "c": same},
        {"b": twice, "a": twice, "c": same},
        {"a": same, "b": twice, "c": twice},
    ]
    one, other, late = (explainable(net) for net in nets)
    plain = explainable(lambda x: 2 * (2 * x))
    assert [list(net.layers(X))[1:] for net in (one, other, plain)] == [["a", "b", "c"], ["b", "a", "c"], []]
    np.testing.assert_allclose(one.activation(X, "a"), 2 * X)
    np.testing.assert_allclose(late.activation(X, "a"), X)
    np.testing.assert_allclose(late.activation(X, "b"), 2 * X)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, partial], ids=["plain", "jit", "partial"])
def test_a_closure_whose_variables_changed_gives_new_values(wrap):
    held = {"w": jnp.ones((4, 2))}
    function = wrap(lambda x: x @ held["w"])
    net = explainable(function)
    np.testing.assert_allclose(net.logits(X), X @ jnp.ones((4, 2)), rtol=1e-5)
    held["w"] = jnp.arange(8.0).reshape(4, 2)
    np.testing.assert_allclose(net.logits(X), X @ held["w"], rtol=1e-5)
    np.testing.assert_allclose(decompose(function, X).weights[0], held["w"].T, rtol=1e-5)
    held["w"] = jnp.ones((4, 3))
    assert net.logits(X).shape == (3, 3)


def test_constants_and_variables_are_arguments():
    w = jax.random.normal(jax.random.key(3), (4, 2))
    model = trace(lambda v, x: jnp.sin(x @ w) @ v, jnp.eye(2), X)
    assert [constant.shape for constant in model.constants] == [(4, 2)]
    np.testing.assert_allclose(model(X), jnp.sin(X @ w), rtol=1e-5)
    leaves = jax.tree.leaves(model)
    assert len(leaves) == 2
    doubled = jax.tree.map(lambda leaf: 2 * leaf, model)
    np.testing.assert_allclose(doubled(X), 2 * jnp.sin(X @ (2 * w)), rtol=1e-5)
    total, most = model.program.memory
    assert 0 < most <= total


def test_a_network_that_runs_forward_only_can_be_read():
    def halved(x):
        return jax.lax.while_loop(lambda v: jnp.abs(v).max() > 1, lambda v: v / 2, x)

    net = explainable(halved)
    np.testing.assert_allclose(net.logits(4 * X), halved(4 * X), rtol=1e-6)


def test_arrays_that_an_inner_function_closes_over_are_not_another_networks():
    def jitted(w):
        inner = jax.jit(lambda x: x @ w)
        return lambda x: inner(x) * 1.0

    def mapped(w):
        inner = jax.jit(lambda row: row @ w)
        return lambda x: jax.vmap(inner)(x)

    def ruled(w):
        @jax.custom_jvp
        def inner(x):
            return x @ w

        inner.defjvp(lambda points, tangents: (inner(*points), tangents[0] @ w))
        return lambda x: inner(x)

    w = jnp.arange(X.shape[1] * 2, dtype=X.dtype).reshape(-1, 2)
    for make in (jitted, mapped, ruled):
        for scale in (1.0, 2.0):
            np.testing.assert_allclose(explainable(make(scale * w)).logits(X), scale * X @ w, rtol=1e-5)


def test_a_closure_is_traced_once_in_a_call():
    traces = []

    def counted(x):
        traces.append(len(x))
        return jnp.tanh(x)

    integrated_gradients(counted, X, max_bytes=100)
    assert len(traces) == len(set(traces))
