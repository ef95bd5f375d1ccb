"""The network seen from outside: layers, encodings, outputs, log-odds, and arguments that do not fit."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from flax import linen as nn

from jaxinterp.coda.network import CoDANet
from jaxinterp.errors import ConfigError
from jaxinterp.explain.attribute import grad_cam, gradient, integrated_gradients, occlusion
from jaxinterp.explain.decompose import decompose
from jaxinterp.explain.explainable import explainable
from jaxinterp.explain.methods import OURS, compared

SMALL_CODA = CoDANet(features=(2, 3), ranks=(2, 2), kernel_sizes=(3, 1), strides=(2, 1))


class Net(nn.Module):
    """A convolution, a rectifier and pooled classes."""

    @nn.compact
    def __call__(self, x, frozen=False):
        return nn.Dense(3)(nn.relu(nn.Conv(2, (3, 3), strides=(2, 2), name="features")(x)).mean((1, 2)))


IMAGES = np.asarray(jax.random.uniform(jax.random.key(0), (2, 6, 6, 1)))
VARIABLES = Net().init(jax.random.key(1), IMAGES)


@pytest.fixture(scope="module")
def net():
    return explainable(Net(), VARIABLES, levels=("features",), pooled="features")


def test_maps_are_the_decomposition_at_every_layer(net):
    own, features = decompose(net, IMAGES, 1, layer=["input", "features"])
    np.testing.assert_allclose(own.logits[:, 0], Net().apply(VARIABLES, jnp.asarray(IMAGES))[:, 1], rtol=1e-5)
    np.testing.assert_allclose(own.maps(), own.contributions.sum(-1), rtol=1e-6)
    np.testing.assert_allclose(own.maps(), decompose(net, IMAGES, 1).maps(), rtol=1e-5, atol=1e-7)
    enlarged = features.maps((6, 6))
    assert enlarged.shape == (2, 1, 6, 6)
    np.testing.assert_allclose(enlarged[:, :, ::2, ::2], features.maps(), rtol=1e-6)  # a 3×3 map, enlarged


def test_methods_return_maps_of_the_images(net):
    methods = compared(net, windows=(3,))
    assert set(methods) == {OURS, "gradient", "input_x_gradient", "integrated_gradients", "occlusion_3", "grad_cam"}
    assert {method(net, IMAGES, 0).maps().shape for method in methods.values()} == {(2, 1, 6, 6)}
    assert "grad_cam" not in compared(explainable(Net(), VARIABLES))


def test_layers_and_their_values(net):
    assert net.layers(IMAGES) == {"input": (2, 6, 6, 1), "features": (2, 3, 3, 2), "Dense_0": (2, 3)}
    kept = Net().apply(VARIABLES, IMAGES, capture_intermediates=True)[1]["intermediates"]
    np.testing.assert_allclose(net.activation(IMAGES, "features"), kept["features"]["__call__"][0], rtol=1e-5)
    np.testing.assert_array_equal(net.encode(IMAGES), IMAGES)
    np.testing.assert_allclose(net.frozen(IMAGES), net.logits(IMAGES), rtol=1e-6)
    np.testing.assert_allclose(net.logits(IMAGES), jax.jit(net.apply)(net.variables, IMAGES), rtol=1e-6)


def test_an_encoding_is_what_is_explained():
    def encoding(v, x):
        return jnp.concatenate([x, 1 - x], -1)

    w = jax.random.normal(jax.random.key(2), (4, 3))
    net = explainable(lambda w, e: e @ w + 0.5, w, encoding=encoding, bias=lambda w: 0.5 * jnp.ones(3))
    x = jnp.array([[0.25, 0.75]])
    assert net.encode(x).tolist() == [[0.25, 0.75, 0.75, 0.25]]
    parts = decompose(net, x)
    np.testing.assert_allclose(parts.contributions, net.encode(x)[:, None] * w.T[None], rtol=1e-6)
    assert parts.bias.tolist() == [[0.5] * 3]
    np.testing.assert_allclose(gradient(net, x).contributions, (w[:2] - w[2:]).T[None], rtol=1e-5)


def test_a_layer_may_be_the_one_explained(net):
    later = explainable(Net(), VARIABLES, bias=7.0).at("features")
    parts = decompose(later, IMAGES)
    assert (parts.layer, parts.contributions.shape) == ("features", (2, 3, 3, 3, 2))
    np.testing.assert_allclose(parts.bias, np.broadcast_to(VARIABLES["params"]["Dense_0"]["bias"], (2, 3)), atol=1e-6)
    assert explainable(net) is not None
    assert explainable(net, layer="features").layer == "features"
    assert "Array" not in repr(net)


def test_one_of_several_outputs_is_taken_out():
    def both(w, x):
        return {"logits": x @ w, "features": x}

    w, x = jnp.eye(3), jnp.arange(6.0).reshape(2, 3)
    with pytest.raises(ValueError, match=r"\Anetwork: got a dict .*output=.*\Z"):
        gradient(explainable(both, w), x)
    net = explainable(both, w, output=lambda out: out["logits"])
    np.testing.assert_array_equal(net.logits(x), x)
    scalar = explainable(lambda x: x.sum(1), output=lambda out: out[:, None])
    assert gradient(scalar, x).contributions.shape == (2, 1, 3)


def test_log_odds_are_those_of_the_softmax(net):
    logits = np.array([[1.0, -2.0, 0.5], [30.0, 0.0, 1.0]])
    p = np.asarray(jax.nn.softmax(logits[:1]))
    np.testing.assert_allclose(net.log_odds(logits)[:1], np.log(p / (1 - p)), rtol=1e-6)
    assert np.isfinite(net.log_odds(logits)).all()
    np.testing.assert_allclose(net.probabilities(logits), jax.nn.softmax(logits), rtol=1e-5)
    each = explainable(net, probability="sigmoid")
    np.testing.assert_array_equal(each.log_odds(logits), logits)
    np.testing.assert_allclose(each.probabilities(logits), jax.nn.sigmoid(logits), rtol=1e-5)


def test_half_precision_images_are_decomposed():
    with jax.numpy_dtype_promotion("standard"):
        parts = decompose(explainable(Net(), VARIABLES), jnp.asarray(IMAGES, jnp.float16))
    assert float(jnp.abs(parts.residual).max()) < 1e-2


class Tokens(nn.Module):
    """An embedding, and a class of the mean."""

    @nn.compact
    def __call__(self, tokens):
        return nn.Dense(2)(nn.relu(nn.Embed(7, 4, name="embedding")(tokens)).mean(1))


def test_tokens_are_explained_by_their_embedding():
    tokens = jnp.array([[1, 2, 3], [4, 5, 6]])
    net = explainable(Tokens(), Tokens().init(jax.random.key(0), tokens))
    path = integrated_gradients(net, tokens, layer="embedding", steps=100)
    change = np.asarray(net.logits(tokens)) - np.asarray(net.logits(0 * tokens))
    np.testing.assert_allclose(path.contributions.sum((2, 3)), change, atol=0.02 * np.abs(change).max())
    assert gradient(net, tokens, layer="embedding").contributions.shape == (2, 2, 3, 4)
    parts = decompose(net, tokens, layer="embedding")
    kernel = net.variables["params"]["Dense_0"]["kernel"]
    want = nn.relu(net.activation(tokens, "embedding"))[:, None] * kernel.T[None, :, None] / 3
    np.testing.assert_allclose(parts.contributions, want, rtol=1e-4, atol=1e-6)


X = jnp.ones((2, 6))
TOKENS = jnp.ones((2, 3), jnp.int32)


def flat():
    """A network of images of one size, 6×6."""
    return explainable(lambda w, x: x.reshape(len(x), 36) @ w, jnp.ones((36, 2)))


def softmaxed(x):
    return jax.nn.softmax(3 * jnp.sin(X + x))


def tokens_net():
    return explainable(Tokens(), Tokens().init(jax.random.key(0), TOKENS))


@pytest.mark.parametrize(
    ("field", "mentions", "call"),
    [
        ("variables", "its variables", lambda: explainable(Net())),
        ("variables", "a mapping", lambda: explainable(Net(), IMAGES)),
        ("variables", "", lambda: explainable(Net().apply)),
        ("variables", "none with an Explainable", lambda: explainable(explainable(Net(), VARIABLES), VARIABLES)),
        ("network", "", lambda: explainable(3, VARIABLES)),
        ("network", "", lambda: explainable([])),
        ("layer", "expected features", lambda: explainable(Net(), VARIABLES).activation(IMAGES, "feature")),
        ("layer", "input, features, Dense_0", lambda: explainable(Net(), VARIABLES).activation(IMAGES, "zzz")),
        ("layer", "a mapping of names", lambda: gradient(lambda x: x, X, layer="hidden")),
        ("network", "a tuple .* output=", lambda: gradient(lambda x: (x, x), X)),
        ("network", "NoneType .* output=", lambda: gradient(lambda x: None, X)),
        ("network", r"shape \(batch\) *,", lambda: gradient(lambda x: x.sum(1), X)),
        ("network", r"shape \(\) *,", lambda: decompose(lambda x: x.sum(), X)),
        ("network", r"shape \(batch, 1, 6\)", lambda: decompose(lambda x: x[:, None], X)),
        ("x", "layer='embedding'", lambda: decompose(tokens_net(), TOKENS)),
        ("x", "layer", lambda: gradient(tokens_net(), TOKENS)),
        ("network", "sum to 1", lambda: decompose(explainable(softmaxed, freeze=False), X + 0.1)),
        ("x", r"x\[None\]", lambda: explainable(Net(), VARIABLES).logits(IMAGES[0])),
        ("x", r"x\[None\]", lambda: decompose(explainable(Net(), VARIABLES), IMAGES[0])),
        ("x", r"float32\(6, 6, 1\), .*\(1, 6, 6, 1\): x\[None\]", lambda: decompose(flat(), IMAGES[0])),
        ("x", r"float32\(6, 6, 1\), .*x\[None\]", lambda: gradient(flat(), IMAGES[0])),
        ("x", r"float32\(3, 5\), .* can read: TypeError", lambda: flat().logits(jnp.ones((3, 5)))),
        ("network", r"shape \(batch, 0\)", lambda: decompose(lambda x: x[:, :0], X)),
        ("net, x", "", lambda: decompose(X, lambda x: x)),
        ("net, x", "", lambda: gradient(X, Net())),
        ("x", "variables go into explainable", lambda: decompose(lambda v, x: x, {"w": X}, X)),
        ("baseline", "", lambda: occlusion(lambda x: x.sum((1, 2)), IMAGES, window=2, baseline=jnp.zeros(5))),
        ("x", "channels last", lambda: occlusion(lambda x: x.sum((1, 2)), jnp.ones((2, 3, 8, 8)))),
        ("x", "", lambda: occlusion(lambda x: x, X)),
        ("layer", "grid=", lambda: grad_cam(tokens_of(), IMAGES, layer="tokens")),
        ("grid", "", lambda: grad_cam(tokens_of(), IMAGES, layer="tokens", grid=(5, 6))),
        ("layer", "", lambda: grad_cam(tokens_of(), IMAGES)),
    ],
)
def test_bad_input_is_one_line(field, mentions, call, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=rf"\A{field}: got [^\n]*{mentions}[^\n]*\Z"):
        call()


def tokens_of():
    """36 tokens of four features and a class token in front, and classes of their mean."""

    def tokens(x):
        flat = x.reshape(len(x), 36, 1) * jnp.arange(1.0, 5.0).reshape(1, 1, 4)
        return jnp.concatenate([jnp.ones((len(x), 1, 4)), flat], 1)

    return explainable({"tokens": tokens, "head": lambda a: a.mean(1) - 0.1})


def test_grad_cam_of_tokens_reads_them_as_a_grid():
    found = grad_cam(tokens_of(), IMAGES, layer="tokens", grid=(6, 6)).maps()
    want = IMAGES[:, None, :, :, 0] * np.arange(1.0, 5.0, dtype=np.float32).reshape(1, 4, 1, 1) / 37
    np.testing.assert_allclose(found, want, rtol=1e-5)


def test_a_network_of_one_batch_size_is_not_padded():
    adjacency = jnp.eye(5) * 2
    parts = decompose(lambda x: (adjacency @ x)[:, :2], X5 := jnp.arange(20.0).reshape(5, 4))
    np.testing.assert_allclose(parts.logits, 2 * X5[:, :2])
    np.testing.assert_allclose(explainable(lambda x: x.reshape(5, 4)).logits(X5), X5)


def test_constants_that_couple_examples_are_tried_again():
    x = jnp.arange(16.0).reshape(4, 4)

    def mixed(by):
        return lambda x: (by @ x)[:, :2]

    decompose(mixed(jnp.eye(4)), x)
    with pytest.raises(ValueError, match=r"\Anetwork: got logits that change"):
        decompose(mixed(jnp.full((4, 4), 0.25)), x)


def test_a_rule_of_differentiation_without_a_forward_side_is_refused():
    ruled = jax.custom_vjp(lambda x: 2 * x)
    ruled.defvjp(lambda x: (2 * x, None), lambda _, cotangent: (2 * cotangent,))
    with pytest.raises(ValueError, match=r"\Anetwork: got [^\n]*forward"):
        decompose(ruled, jnp.ones((2, 3)))


@pytest.mark.parametrize(
    ("field", "fields"),
    [("probability", {"probability": "sigmoids"}), ("levels", {"levels": "conv"}), ("fields", {"layers": ("a",)})],
)
def test_fields_are_checked(field, fields):
    with pytest.raises(ValueError, match=rf"\A{field}: got"):
        explainable(lambda x: x, **fields)


def smooth(v, x):
    return jnp.tanh(x) * v["scale"]


def pooled(v, a):
    return a.mean((1, 2)) @ v["top"]


@pytest.fixture
def stack():
    variables = {"scale": jnp.float32(2), "top": jax.random.normal(jax.random.key(0), (3, 2))}
    layers = {"maps": smooth, "relu": lambda v, a: jax.nn.relu(a), "head": pooled}
    return explainable(layers, variables), jax.random.normal(jax.random.key(1), (5, 4, 4, 3))


def test_neurons_are_sums_of_maps_or_what_is_selected(stack):
    net, x = stack
    neurons = net.neurons("relu")
    np.testing.assert_allclose(neurons.logits(x), net.activation(x, "relu").sum((1, 2)), rtol=1e-5)
    np.testing.assert_allclose(net.neurons("head").logits(x), net.logits(x), rtol=1e-6)
    np.testing.assert_allclose(net.neurons("input").logits(x), x.sum((1, 2)), rtol=1e-4, atol=1e-5)
    assert list(neurons.layers(x)) == ["input", "maps"]
    corner = net.neurons("relu", select=lambda a: a[:, 0, 0])
    np.testing.assert_allclose(corner.logits(x), net.activation(x, "relu")[:, 0, 0], rtol=1e-6)


def test_every_kind_of_explanation_takes_neurons(stack):
    net, x = stack
    slope = 2 * (1 - np.tanh(x) ** 2) * (np.asarray(x) > 0)
    found = gradient(net.neurons("relu"), x, 1).contributions[:, 0]
    np.testing.assert_allclose(found, slope * np.array([0, 1, 0]), rtol=1e-4, atol=1e-6)
    parts = decompose(net.neurons("relu"), x, 2, layer="maps")
    a = np.asarray(net.activation(x, "maps"))
    np.testing.assert_allclose(parts.contributions[:, 0], np.maximum(a, 0) * np.array([0, 0, 1]), rtol=1e-5)
    np.testing.assert_allclose(parts.residual, 0, atol=1e-4)


def test_equal_neurons_are_compiled_once(stack, compilations):
    net, x = stack
    gradient(net.neurons("relu"), x)
    other = x + 1
    assert net.neurons("relu") == net.neurons("relu")
    with compilations() as programs:
        gradient(net.neurons("relu"), other)
    assert programs == []


def test_neurons_of_modules_and_closures_have_the_layers_before_them():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Dense(4, name="first")(x))
            return nn.Dense(2, name="last")(nn.jit(nn.Dense)(3, name="middle")(x))

    x = jnp.ones((2, 5))
    variables = Net().init(jax.random.key(0), x)
    for net in (explainable(Net(), variables), explainable(lambda x: Net().apply(variables, x))):
        neurons = net.neurons("middle")
        np.testing.assert_allclose(neurons.logits(x), net.activation(x, "middle"), rtol=1e-5)
        assert list(neurons.layers(x)) == ["input", "first"]
        assert gradient(neurons, x, layer="first").contributions.shape == (2, 3, 4)
        assert neurons.frozen(x).shape == (2, 3)
        with pytest.raises(ValueError, match=r"^layer: got lost"):
            net.neurons("lost").logits(x)


def test_layers_of_any_name_are_addressed():
    w = jnp.array([[1.0, -1.0], [2.0, 1.0]])
    stages = {"input": lambda x: 2 * x @ w, "blk[0]": jax.nn.relu, "head": lambda x: x @ w}
    net, x = explainable(stages), jnp.array([[1.0, 3.0], [-1.0, 2.0]])
    assert list(net.layers(x)) == ["input", "./input", "blk[0]", "head"]
    found = decompose(net, x, layer=["input", "./input", "blk[0]"])
    for part, value in zip(found, (x, 2 * x @ w, jax.nn.relu(2 * x @ w)), strict=True):
        np.testing.assert_allclose(part.contributions, part.weights * value[:, None], rtol=1e-6)
        np.testing.assert_allclose(part.contributions.sum(-1), net.logits(x), rtol=1e-6)


def test_errors_of_functions_beside_the_network_are_theirs():
    def wrong(*arguments):
        return {}["logits"]

    x = jnp.ones((2, 3))
    for field in ("output", "encoding"):
        with pytest.raises(ValueError, match=rf"\A{field}: got KeyError: 'logits', expected a function"):
            explainable(lambda x: x, **{field: wrong}).logits(x)
    averaged = explainable(lambda x: x, encoding=lambda v, x: x.mean(1))
    with pytest.raises(ValueError, match=r"\Ax: got float32\(3,\), expected a batch"):
        averaged.logits(x[0])


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("max_bytes", lambda net: decompose(net, IMAGES, max_bytes="2GB")),
        ("given", lambda net: decompose(net, IMAGES, given=[3])),
        ("given", lambda net: decompose(net, IMAGES, given=jnp.ones((2, 3)))),
        ("bias", lambda net: decompose(explainable(net, bias=lambda v: jnp.ones(2)), IMAGES)),
        ("bias", lambda net: explainable(net, bias="none")),
        ("layer", lambda net: gradient(net, IMAGES, layer=["input"])),
        ("layer", lambda net: decompose(net, IMAGES, layer=[["input"]])),
        ("steps", lambda net: integrated_gradients(net, IMAGES, steps=2.5)),
        ("network", lambda net: explainable(Net, VARIABLES)),
        ("keywords", lambda net: explainable(Net(), VARIABLES, keywords=["frozen"])),
    ],
)
def test_odd_types_are_told_in_one_line(net, name, call, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=rf"\A{name}: got .*, expected .*\Z"):
        call(net)


def test_it_is_shown_in_one_line(net):
    assert repr(net) == "Explainable(Net, 29 parameters, explained at 'input')"
    stages = {"double": lambda v, x: 2 * x, "head": lambda v, x: x @ v}
    assert repr(explainable(stages, jnp.ones((2, 3)))).startswith("Explainable(double > head, 6 parameters")
    assert repr(explainable(jnp.sin)).startswith("Explainable(sin, 0 parameters")


def test_explicit_meshes(net):
    mesh = jax.make_mesh((1,), ("examples",), devices=jax.devices()[:1])
    spread = jax.device_put(IMAGES, jax.sharding.NamedSharding(mesh, jax.P("examples")))
    want = decompose(net, IMAGES).contributions
    for explain in (decompose, jax.jit(lambda net, x: decompose(net, x))):
        found = explain(net, spread).contributions
        assert found.sharding.mesh == mesh
        np.testing.assert_allclose(np.asarray(found), want, rtol=1e-5, atol=1e-7)


def test_a_refusal_names_what_was_given_and_not_what_became_of_it() -> None:
    net = explainable(SMALL_CODA, jax.eval_shape(SMALL_CODA.init, jax.random.key(0), jnp.zeros((1, 4, 4, 1))))
    for wrong in (jnp.zeros((3, 4, 4)), jnp.zeros((2, 4, 4, 1), jnp.uint8)):
        with pytest.raises(ConfigError, match=rf"^x: got {wrong.dtype}\({wrong.shape[0]}, 4, 4") as found:
            net.program("logits", wrong)
        assert "encoding" not in str(found.value)
    module = nn.Sequential([nn.Dense(3)])
    variables = module.init(jax.random.key(0), jnp.zeros((1, 4)))
    with pytest.raises(ConfigError, match=r"^variables: got \['layers_0'\], expected the collection 'params'"):
        decompose(explainable(module, variables["params"]), jnp.zeros((2, 4)))
    normed = nn.Sequential([nn.Dense(3), nn.BatchNorm(use_running_average=True)])
    params = {"params": normed.init(jax.random.key(0), jnp.zeros((1, 4)))["params"]}
    with pytest.raises(ConfigError, match=r"^variables: got \['params'\], expected the collection 'batch_stats'"):
        decompose(explainable(normed, params), jnp.zeros((2, 4)))
    with pytest.raises(ConfigError, match=r"^x: got float32\(2, 5\)") as found:
        decompose(explainable(module, variables), jnp.zeros((2, 5)))
    assert "http" not in str(found.value)
