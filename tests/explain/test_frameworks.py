"""Networks of every framework: their own logits in inference, their layers, and one compilation."""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")

from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from jaxinterp.explain.attribute import deep_lift, lrp
from jaxinterp.explain.decompose import decompose
from jaxinterp.explain.explainable import explainable

X = jax.random.normal(jax.random.key(0), (3, 6, 6, 2))


@pytest.fixture(autouse=True)
def _promotion():
    """Let frameworks promote as they do."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def matches(make, x, own, layers, compilations, check=()):
    """Check a network's logits, the names and shapes of its layers, some values, and that twice is compiled once."""
    net = explainable(*make())
    np.testing.assert_allclose(net.logits(x), own, rtol=1e-5, atol=1e-6)
    assert net.layers(x) == {"input": x.shape, **layers}
    for layer, value in dict(check).items():
        np.testing.assert_allclose(net.activation(x, layer), value, rtol=1e-5, atol=1e-5)
    behind = next(iter(layers))
    parts = decompose(net, x, layer=["input", behind])
    for part in parts:
        assert float(part.relative_residual.max()) < 1e-5
        sums = part.contributions.reshape(*part.logits.shape, -1).sum(-1) + part.bias
        np.testing.assert_allclose(sums, own, rtol=1e-4, atol=1e-5)
    with compilations() as programs:
        again = decompose(explainable(*make()), x, layer=["input", behind])
    assert programs == []
    np.testing.assert_array_equal(again[0].contributions, parts[0].contributions)
    return net


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, train=True):
        x = nn.Conv(3, (3, 3), name="conv")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, name="norm")(x))
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Dense(4, name="head")(x.mean((1, 2)))


def test_linen_runs_in_inference(compilations):
    variables = Linen().init({"params": jax.random.key(1), "dropout": jax.random.key(2)}, X)
    stats = jax.tree.map(lambda s: s + 0.5, variables["batch_stats"])
    variables = {**variables, "batch_stats": stats}
    own, kept = Linen().apply(variables, X, train=False, capture_intermediates=True)
    kept = {name: kept["intermediates"][name]["__call__"][0] for name in ("conv", "norm", "head")}
    layers = {"conv": (3, 6, 6, 3), "norm": (3, 6, 6, 3), "Dropout_0": (3, 6, 6, 3), "head": (3, 4)}
    matches(lambda: (Linen(), variables), X, own, layers, compilations, kept)
    with pytest.raises(ValueError, match=r"\Avariables: got none"):
        explainable(Linen())


@pytest.mark.parametrize("given", [None, True, False])
def test_what_the_constructor_says_is_not_said_again(given):
    class Dropping(nn.Module):
        deterministic: bool | None = None

        @nn.compact
        def __call__(self, x, deterministic=None):
            off = nn.merge_param("deterministic", self.deterministic, deterministic)
            return nn.Dropout(0.5, deterministic=off)(nn.Dense(2)(x))

    x = jnp.ones((2, 3))
    variables = Dropping(deterministic=True).init(jax.random.key(0), x)
    own = Dropping(deterministic=True).apply(variables, x)
    np.testing.assert_allclose(explainable(Dropping(given), variables).logits(x), own, rtol=1e-6)


def test_a_submodule_of_a_submodule_has_a_path():
    class Inner(nn.Module):
        def setup(self):
            self.parts = [nn.Dense(3), nn.Dense(2)]

        def __call__(self, x):
            for part in self.parts:
                x = part(x)
            return x

    class Outer(nn.Module):
        @nn.compact
        def __call__(self, x):
            return Inner(name="inner")(nn.relu(x))

    x = jnp.ones((2, 3))
    net = explainable(Outer(), Outer().init(jax.random.key(0), x))
    assert list(net.layers(x)) == ["input", "inner/parts_0", "inner/parts_1", "inner"]


class NNX(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(2, 3, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.tail = nnx.List([nnx.Linear(3, 5, rngs=rngs), nnx.Linear(5, 4, rngs=rngs)])

    def __call__(self, x):
        x = self.drop(nnx.relu(self.norm(self.conv(x)))).mean((1, 2))
        for layer in self.tail:
            x = layer(nnx.relu(x))
        return x


def test_nnx_runs_in_inference_and_says_so_in_training(compilations):
    def make():
        model = NNX(nnx.Rngs(0))
        model.norm.mean[...] += 0.25
        model.eval()
        return (model,)

    (model,) = make()
    own = model(X)
    layers = {"conv": (3, 6, 6, 3), "norm": (3, 6, 6, 3), "drop": (3, 6, 6, 3), "tail/0": (3, 5), "tail/1": (3, 4)}
    matches(make, X, own, layers, compilations, {"conv": model.conv(X), "norm": model.norm(model.conv(X))})
    model.train()
    before = jax.tree.map(np.asarray, nnx.state(model, nnx.BatchStat))
    with pytest.warns(UserWarning, match=r"\Anetwork: (BatchNorm|Dropout), (BatchNorm|Dropout) is in training mode"):
        net = explainable(model)
    np.testing.assert_allclose(net.logits(X), own, rtol=1e-5, atol=1e-6)
    assert not model.drop.deterministic  # the model itself is left as it is
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.asarray, nnx.state(model, nnx.BatchStat)))
    assert type(model.conv) is nnx.Conv
    with pytest.raises(ValueError, match=r"\Avariables: got "):
        explainable(model, nnx.state(model))


def test_equinox_without_a_state(compilations):
    eqx = pytest.importorskip("equinox")

    class Net(eqx.Module):
        conv: eqx.nn.Conv2d
        drop: eqx.nn.Dropout
        tail: list

        def __init__(self, key):
            a, b, c = jax.random.split(key, 3)
            self.conv, self.drop = eqx.nn.Conv2d(6, 3, 3, key=a), eqx.nn.Dropout(0.5)
            self.tail = [eqx.nn.Linear(12, 5, key=b), eqx.nn.Linear(5, 4, key=c)]

        def __call__(self, x, key=None):
            x = self.drop(jax.nn.relu(self.conv(x)), key=key).reshape(-1)
            for layer in self.tail:
                x = layer(jax.nn.relu(x))
            return x

    model = Net(jax.random.key(1))
    x = jax.random.normal(jax.random.key(2), (3, 6, 4, 4))
    own = jax.vmap(eqx.nn.inference_mode(model))(x)
    layers = {"conv": (3, 3, 2, 2), "drop": (3, 3, 2, 2), "tail/0": (3, 5), "tail/1": (3, 4)}
    matches(lambda: (Net(jax.random.key(1)),), x, own, layers, compilations, {"conv": jax.vmap(model.conv)(x)})
    assert type(model.conv) is eqx.nn.Conv2d
    with pytest.raises(ValueError, match=r"\Avariables: got "):
        explainable(model, {})


def test_equinox_with_a_state(compilations):
    eqx = pytest.importorskip("equinox")

    class Net(eqx.Module):
        dense: eqx.nn.Linear
        norm: eqx.nn.BatchNorm

        def __init__(self, key):
            self.dense = eqx.nn.Linear(4, 3, key=key)
            self.norm = eqx.nn.BatchNorm(3, axis_name="batch", mode="batch")

        def __call__(self, x, state):
            x, state = self.norm(self.dense(x), state)
            return jax.nn.relu(x), state

    model, state = eqx.nn.make_with_state(Net)(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (3, 4))
    mapped = {"axis_name": "batch", "in_axes": (0, None), "out_axes": (0, None)}
    trained, state = jax.vmap(model, **mapped)(x, state)
    own = jax.vmap(eqx.nn.inference_mode(model), **mapped)(x, state)[0]
    assert float(jnp.abs(own - trained).max()) > 1e-2
    matches(
        lambda: (model, state),
        x,
        own,
        {"dense": (3, 3), "norm": (3, 3)},
        compilations,
        {"dense": jax.vmap(model.dense)(x)},
    )
    with pytest.raises(ValueError, match=r"\Avariables: got none, expected the state"):
        explainable(model)


def test_keras(compilations):
    keras = pytest.importorskip("keras")
    keras.utils.set_random_seed(0)
    inner = keras.Sequential([keras.Input((6, 6, 2)), keras.layers.Conv2D(3, 3, name="conv")], name="inner")
    tail = [
        keras.layers.BatchNormalization(name="norm"),
        keras.layers.ReLU(name="relu"),
        keras.layers.Dropout(0.5, name="drop"),
        keras.layers.GlobalAveragePooling2D(name="pool"),
        keras.layers.Dense(4, name="head"),
    ]
    model = keras.Sequential([keras.Input((6, 6, 2)), inner, *tail])
    model.get_layer("norm").moving_mean.assign(np.array([0.25, -0.5, 1.0]))
    own = model(X, training=False)
    shape = (3, 4, 4, 3)
    layers = {"inner/conv": shape, "inner": shape, "norm": shape, "relu": shape, "drop": shape, "pool": (3, 3)}
    net = matches(lambda: (model,), X, own, {**layers, "head": (3, 4)}, compilations, {"inner/conv": inner(X)})
    np.testing.assert_allclose(net.activation(X, "norm"), tail[0](inner(X), training=False), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model(X, training=False), own)  # its layers mark nothing any more

    def looked(size):
        with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
            return explainable(model).activation(X[:1].repeat(size, 0), "relu")

    with ThreadPoolExecutor(4) as pool:  # traced by several threads at once
        for found in pool.map(looked, (2, 4, 8, 16)):
            np.testing.assert_allclose(found[0], net.activation(X, "relu")[0], rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"\Anetwork: got the Keras model .*, not built"):
        explainable(keras.Sequential([keras.layers.Dense(2)]))
    with pytest.raises(ValueError, match=r"\Avariables: got "):
        explainable(model, {})


def test_rules_on_a_keras_model_are_those_of_the_same_function():
    keras = pytest.importorskip("keras")
    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential(
        [keras.Input((6, 6, 2)), layers.Conv2D(3, 3, activation="relu", bias_initializer="normal")]
    )
    model.add(layers.BatchNormalization())
    model.add(layers.MaxPooling2D(2))
    model.add(layers.Flatten())
    model.add(layers.Dense(4, bias_initializer="normal"))
    model.layers[1].moving_variance.assign(np.array([0.5, 2.0, 1.5]))
    kernel, bias, scale, shift, mean, variance, weights, offset = (jnp.asarray(v.value) for v in model.weights)

    def function(variables, x):
        z = jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        z = jax.nn.relu(z + bias[None, None, None])
        z = (z - mean[None, None, None]) * (scale / jnp.sqrt(variance + 1e-3))[None, None, None] + shift[
            None, None, None
        ]
        z = jax.lax.reduce_window(z, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        return z.reshape(len(z), -1) @ weights + offset[None]

    plain = explainable(function, {})
    for method in (lrp, deep_lift):
        mine, theirs = (method(net, X, 1).contributions for net in (explainable(model), plain))
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5 * float(jnp.abs(theirs).max()))


W = {"a": jax.random.normal(jax.random.key(3), (5, 4)), "b": jax.random.normal(jax.random.key(4), (4, 3))}
FLAT = jax.random.normal(jax.random.key(5), (3, 5))


def hidden(w, x):
    return jax.nn.relu(x @ w["a"])


def head(w, a):
    return a @ w["b"] + 0.5


OWN = head(W, hidden(W, FLAT))


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: ({"hidden": hidden, "head": head}, W), "hidden"),
        (lambda: ({"hidden": jax.jit(hidden), "head": jax.jit(head)}, W), "hidden"),
        (lambda: ([hidden, head], W), "0"),
        (lambda: ({"hidden": lambda x: hidden(W, x), "head": lambda a: head(W, a)},), "hidden"),
        (lambda: ((lambda x: hidden(W, x), lambda a: head(W, a)),), "0"),
    ],
    ids=["mapping", "jitted", "sequence", "closures", "tuple"],
)
def test_functions_one_after_the_other_are_layers(make, name, compilations):
    net = explainable(*make())
    layers = list(net.layers(FLAT))
    assert layers[:2] == ["input", name]
    np.testing.assert_allclose(net.activation(FLAT, name), hidden(W, FLAT), rtol=1e-5)
    parts = decompose(net, FLAT, layer=name)
    np.testing.assert_allclose(parts.logits, OWN, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(parts.contributions, hidden(W, FLAT)[:, None] * W["b"].T, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(parts.bias, jnp.full((3, 3), 0.5), rtol=1e-4)
    with compilations() as programs:
        decompose(explainable(*make()), FLAT, layer=name)
    assert programs == []


def test_functions_with_and_without_variables(compilations):
    def net(w, x):
        return head(w, hidden(w, x))

    found = decompose(explainable(net, W), FLAT)
    np.testing.assert_allclose(found.logits, OWN, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.contributions, decompose(lambda x: net(W, x), FLAT).contributions, rtol=1e-5)
    others = jax.tree.map(jnp.negative, W)
    with compilations() as programs:
        decompose(explainable(net, others), FLAT)
        decompose(lambda x: net(W, x), FLAT)
    assert programs == []
    scaled = explainable(lambda w, x, scale: scale * net(w, x), W, keywords={"scale": 2})
    np.testing.assert_allclose(scaled.logits(FLAT), 2 * OWN, rtol=1e-5, atol=1e-6)
    free = explainable(lambda x, scale: scale * x, keywords={"scale": 3})
    np.testing.assert_allclose(free.logits(FLAT), 3 * FLAT, rtol=1e-6)
