from importlib import import_module

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from jaxinterp.explain.attribute import attention_rollout, gradient_rollout
from jaxinterp.explain.explainable import explainable

rng = np.random.default_rng(0)
LAYERS, HEADS, WIDTH = 2, 2, 4
W = rng.normal(size=(LAYERS, 3, HEADS, WIDTH, WIDTH)).astype(np.float32)
HEAD = rng.normal(size=(WIDTH, 3)).astype(np.float32)
TOKEN = rng.normal(size=(1, 1, WIDTH)).astype(np.float32)
X = jnp.asarray(rng.normal(size=(3, 4, 6, WIDTH)), jnp.float32)


def tokens(x, token):
    """Average 2×2 pixels, (batch, 6, WIDTH), perhaps with a class token in front."""
    x = x.reshape(len(x), 2, 2, 3, 2, WIDTH).mean((2, 4)).reshape(len(x), 6, WIDTH)
    return jnp.concatenate([jnp.broadcast_to(TOKEN, (len(x), 1, WIDTH)), x], 1) if token else x


def layer(x, w, step=None):
    """One layer of attention, to whose matrix something may be added."""
    q, k, v = (jnp.einsum("bid,hde->bhie", x, m) for m in w)
    weights = jax.nn.softmax(jnp.einsum("bhie,bhje->bhij", q, k) / 2)
    weights = weights if step is None else weights + step
    return x + jnp.einsum("bhij,bhje->bie", weights, v), weights


def network(x, token, steps=(None,) * LAYERS):
    """Return logits and attention matrices."""
    x, seen = tokens(x, token), []
    for w, step in zip(W, steps, strict=True):
        x, weights = layer(x, w, step)
        seen.append(weights)
    return (x[:, 0] if token else x.mean(1)) @ HEAD, seen


def scanned(variables, x):
    x, _ = jax.lax.scan(lambda x, w: (layer(x, w)[0], None), tokens(x, True), jnp.asarray(W))
    return x[:, 0] @ HEAD


def backward(variables, x):
    """As `scanned`, its layers stored in the other order."""
    x, _ = jax.lax.scan(lambda x, w: (layer(x, w)[0], None), tokens(x, True), jnp.asarray(W[::-1]), reverse=True)
    return x[:, 0] @ HEAD


def remat(variables, x):
    x = tokens(x, True)
    for w in W:
        x = jax.checkpoint(jax.jit(lambda x, w: layer(x, w)[0]))(x, w)
    return x[:, 0] @ HEAD


NETS = {
    "plain": lambda variables, x: network(x, True)[0],
    "pooled": lambda variables, x: network(x, False)[0],
    "scan": scanned,
    "reverse": backward,
    "remat": remat,
}


def enlarged(row):
    return np.repeat(np.repeat(row.reshape(2, 3), 2, axis=0), 2, axis=1)


def read_row(whole, token):
    return enlarged(whole[0, 1:] if token else whole.mean(0))


@pytest.mark.parametrize("name", NETS)
def test_rollouts_by_loops(name):
    token, net = name != "pooled", explainable(NETS[name], {})
    matrices = [np.asarray(a, float) for a in network(X, token)[1]]
    steps = [jnp.zeros(a.shape, jnp.float32) for a in matrices]
    found = attention_rollout(net, X, [0, 1, 2], grid=(2, 3))
    weighted = gradient_rollout(net, X, grid=(2, 3))
    assert (found.contributions.shape, weighted.contributions.shape) == ((3, 1, 4, 6, 1), (3, 3, 4, 6, 1))
    for i in range(len(X)):
        whole = np.eye(matrices[0].shape[-1])
        for matrix in matrices:
            mixed = (matrix[i].mean(0) + np.eye(len(whole))) / 2
            whole = mixed / mixed.sum(1, keepdims=True) @ whole
        np.testing.assert_allclose(found.contributions[i, 0, :, :, 0], read_row(whole, token), rtol=1e-4)
        for k in range(3):
            slopes = jax.grad(lambda steps, i=i, k=k: network(X, token, steps)[0][i, k])(steps)
            whole = np.eye(len(whole))
            for slope, matrix in zip(slopes, matrices, strict=True):
                whole = whole + np.maximum(slope[i] * matrix[i], 0).mean(0) @ whole
            want = read_row(whole, token)
            np.testing.assert_allclose(weighted.contributions[i, k, :, :, 0], want, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(weighted.logits, network(X, token)[0], rtol=1e-4, atol=1e-5)


def test_heads_are_joined_and_the_smallest_entries_left_out():
    net, matrices = explainable(NETS["plain"], {}), [np.asarray(a, float) for a in network(X, True)[1]]
    found = attention_rollout(net, X, 0, grid=(2, 3), heads="max", discard=0.5)
    whole = np.eye(7)
    for matrix in matrices:
        joined = matrix[1].max(0)
        joined = np.where(joined >= np.sort(joined.ravel())[24], joined, 0)
        mixed = (joined + np.eye(7)) / 2
        whole = mixed / mixed.sum(1, keepdims=True) @ whole
    np.testing.assert_allclose(found.contributions[1, 0, :, :, 0], read_row(whole, True), rtol=1e-4)


def test_small_batches_and_a_second_call(compilations):
    net = explainable(NETS["scan"], {})
    whole = gradient_rollout(net, X, grid=(2, 3))
    parts = gradient_rollout(net, X, grid=(2, 3), max_bytes=1)
    np.testing.assert_allclose(parts.contributions, whole.contributions, rtol=1e-4, atol=1e-6)
    other = X + 1
    with compilations() as programs:
        gradient_rollout(net, other, grid=(2, 3))
    assert programs == []


@pytest.mark.parametrize(
    ("field", "net", "change"),
    [
        ("network", lambda x: x.mean((1, 2)), {}),
        ("grid", NETS["plain"], {}),
        ("grid", NETS["plain"], {"grid": (3, 3)}),
        ("grid", NETS["plain"], {"grid": (6,)}),
        ("grid", NETS["plain"], {"grid": 2}),
        ("discard", NETS["plain"], {"discard": 1.0}),
        ("discard", NETS["plain"], {"discard": "some"}),
        ("x", NETS["plain"], {"x": X[0, 0]}),
    ],
)
def test_bad_input_is_one_line(field, net, change, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    net = explainable(net, {}) if net is NETS["plain"] else net
    with pytest.raises(ValueError, match=rf"\A{field}: got .*\Z"):
        attention_rollout(net, **{"x": X, **change})


def test_many_targets_run_in_parts_of_one_program(monkeypatch):
    rollout, widths = import_module("jaxinterp.explain.attribute.rollout"), []
    net = explainable(NETS["plain"], {})
    run = rollout._gradient_rollout
    monkeypatch.setattr(
        rollout, "_gradient_rollout", lambda how, *args: widths.append(args[2].shape[1]) or run(how, *args)
    )
    classes = np.arange(20) % 3
    found = gradient_rollout(net, X, np.tile(classes, (3, 1)), grid=(2, 3))
    assert widths == [10, 10]
    want = gradient_rollout(net, X, grid=(2, 3)).contributions[:, classes]
    np.testing.assert_allclose(found.contributions, want, rtol=1e-5)
