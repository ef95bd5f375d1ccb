import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from flax import linen as nn

from jaxinterp.explain import attribute
from jaxinterp.explain.attribute import cams, grad_cam
from jaxinterp.explain.explainable import explainable
from jaxinterp.explain.program import called


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

    net = explainable({"maps": lambda x: maps * x[:, :1, :1], "head": head}, pooled="maps")
    found = grad_cam(net, jnp.ones((1, 4, 4, 2))).contributions[0, ..., 0]
    expected = np.maximum([[[2, 3], [-3, 0]], [[0, 1], [3, 0]]], 0) / 4
    np.testing.assert_allclose(found, expected.repeat(2, 1).repeat(2, 2), rtol=1e-6)


def test_a_named_activation_equals_the_pair(model):
    module, variables, x = model

    def features(v, x):
        return module.apply(v, x, capture_intermediates=True)[1]["intermediates"]["last"]["__call__"][0]

    def head(v, a):
        kernel, bias = v["params"]["head"]["kernel"], v["params"]["head"]["bias"][None]
        return jax.nn.relu(a).mean((1, 2)) @ kernel + bias

    named = grad_cam(explainable(module, variables), x, layer="last").contributions
    split = grad_cam(explainable({"features": features, "head": head}, variables), x, layer="features").contributions
    np.testing.assert_allclose(named, split, rtol=1e-5, atol=1e-7)
    assert float(named.min()) == 0
    assert float(named.max()) > 0

    maps = features(variables, x)
    slope = jax.vmap(jax.jacobian(lambda a: head(variables, a[None])[0]))(maps)
    expected = np.maximum(np.einsum("bkj,bhwj->bkhw", slope.mean((2, 3)), maps), 0)
    np.testing.assert_allclose(named[..., 0], expected.repeat(2, 2).repeat(2, 3), rtol=1e-4, atol=1e-6)


def test_summed_class_maps_give_the_positive_part_of_the_class_own_map():
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
    net = explainable({"maps": lambda x: x, "head": lambda a: a.sum((1, 2)) / 10.0 - 2.0}, pooled="maps")
    found = grad_cam(net, x, [1, 2]).contributions[:, 0, ..., 0]
    own = jnp.stack([x[0, ..., 1], x[1, ..., 2]])
    np.testing.assert_allclose(found, np.maximum(own, 0) / 10, rtol=1e-5, atol=1e-7)


def test_chunks_targets_and_a_closure_change_nothing(model):
    module, variables, x = model
    rows = np.array([[2, 0], [1, 1]])
    whole = grad_cam(jax.jit(lambda x: module.apply(variables, x)), x, layer="trunk").contributions
    chunked = grad_cam(explainable(module, variables), x, rows, layer="trunk", max_bytes=1).contributions
    np.testing.assert_allclose(chunked, whole[np.arange(2)[:, None], rows], rtol=1e-4, atol=1e-7)


def test_linear_upsampling_interpolates_between_pixel_centers():
    ramp = jnp.array([[0.0, 1.0], [0.0, 1.0]])[None, :, :, None]
    net = explainable({"maps": lambda x: ramp, "head": lambda a: 4 * a.mean((1, 2))})
    found = grad_cam(net, jnp.ones((1, 4, 4, 1)), layer="maps", upsample="linear")
    np.testing.assert_allclose(found.contributions[0, 0, 0, :, 0], [0, 0.25, 0.75, 1], atol=1e-6)


def test_tokens_are_maps_on_a_grid_with_or_without_a_class_token(model):
    """A layer of tokens gives what the same layer gives as maps."""

    def maps(x):
        return x[:, ::2, :, :2] - 0.25

    def head(a):
        return (a**2).mean((1, 2))

    x = model[2]
    want = grad_cam({"maps": maps, "head": head}, x, layer="maps").contributions
    for classes in (0, 1):

        def tokens(x, classes=classes):
            flat = maps(x).reshape(2, 32, 2)
            return jnp.concatenate([9 * flat[:, :classes], flat], 1)

        net = {"tokens": tokens, "head": lambda a, classes=classes: head(a[:, classes:].reshape(2, 4, 8, 2))}
        found = grad_cam(net, x, layer="tokens", grid=(4, 8)).contributions
        np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-7)


def test_bad_input_is_one_clear_line(model, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    module, variables, x = model
    for layer in ("lost", None, "head"):
        with pytest.raises(ValueError, match=r"\Alayer: got .*\Z"):
            grad_cam(explainable(module, variables), x, layer=layer)
    with pytest.raises(ValueError, match=r"\Aupsample: got .*\Z"):
        grad_cam(explainable(module, variables), x, layer="last", upsample="cubic")


def curved(a):
    """Logits with slopes of both signs that differ from position to position."""
    weights = jnp.linspace(-1, 1, a[0].size * 2).reshape(*a.shape[1:], 2)
    return jnp.einsum("bhwj,hwjk->bk", a + a**2 / 2, weights) + jnp.array([[4.0, -3.0]])


@pytest.fixture
def formula():
    """Maps and slopes of a network whose layer is its input, in NumPy."""
    a = np.asarray(jax.random.normal(jax.random.key(3), (2, 3, 2, 4)), np.float64)
    weights = np.linspace(-1, 1, 3 * 2 * 4 * 2).reshape(3, 2, 4, 2)
    slopes = np.moveaxis((1 + a)[..., None] * weights[None], -1, 1)
    return a, slopes, explainable({"maps": lambda x: x, "head": curved}, pooled="maps")


def of_maps(rule, a, slopes):
    """Fill maps (batch, target, h, w), each by a rule of one example's maps and one target's slopes."""
    return np.array([[rule(one, slope) for slope in each] for one, each in zip(a, slopes, strict=True)])


def plus_plus(a, g):
    out = np.zeros(a.shape[:2])
    for j in range(a.shape[2]):
        weight = 0.0
        for place in np.ndindex(a.shape[:2]):
            slope = g[(*place, j)]
            weight += slope**2 / (2 * slope**2 + a[..., j].sum() * slope**3) * max(slope, 0)
        out += weight * a[..., j]
    return np.maximum(out, 0)


def xgrad(a, g):
    weights = [(a[..., j] * g[..., j]).sum() / a[..., j].sum() for j in range(a.shape[2])]
    return np.maximum(sum(weight * a[..., j] for j, weight in enumerate(weights)), 0)


@pytest.mark.parametrize(
    ("method", "rule"),
    [
        (attribute.grad_cam_plus_plus, plus_plus),
        (attribute.hires_cam, lambda a, g: (a * g).sum(-1)),
        (attribute.layer_cam, lambda a, g: np.maximum((a * np.maximum(g, 0)).sum(-1), 0)),
        (attribute.xgrad_cam, xgrad),
    ],
)
def test_slopes_are_combined_as_in_the_paper(method, rule, formula):
    a, slopes, net = formula
    found = method(net, jnp.asarray(a, jnp.float32)).contributions[..., 0]
    np.testing.assert_allclose(found, of_maps(rule, a, slopes), rtol=2e-4, atol=1e-5)


def test_eigen_cam_is_the_first_principal_part(formula):
    a, _, net = formula
    found = np.asarray(attribute.eigen_cam(net, jnp.asarray(a, jnp.float32), 1).contributions)[:, 0, ..., 0]
    for one, cam in zip(a, found, strict=True):
        values, vectors = np.linalg.eigh(np.einsum("hwi,hwj->ij", one, one))
        expected = one @ vectors[:, np.argmax(values)]
        np.testing.assert_allclose(cam, expected * np.sign(expected.sum()), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("max_bytes", [1, 2_000, 1 << 30])
def test_channels_are_changed_one_by_one(formula, max_bytes):
    a, _, net = formula
    x, score, ablation = jnp.asarray(a, jnp.float32), np.zeros((2, 2, 3, 2)), np.zeros((2, 2, 3, 2))
    own = np.asarray(curved(x))
    logits = np.zeros((4, 2, 2))
    for j in range(4):
        without = np.asarray(curved(x.at[..., j].set(0)))
        ablation += ((own - without) / own)[:, :, None, None] * a[:, None, ..., j]
        low, high = (bound(a[..., j], axis=(1, 2), keepdims=True) for bound in (np.min, np.max))
        logits[j] = curved(x * jnp.asarray((a[..., j] - low) / (high - low), jnp.float32)[..., None])
    weights = np.exp(logits) / np.exp(logits).sum(0)
    for j in range(4):
        score += weights[j][:, :, None, None] * a[:, None, ..., j]
    for method, expected in ((attribute.ablation_cam, ablation), (attribute.score_cam, score)):
        found = method(net, x, max_bytes=max_bytes).contributions[..., 0]
        np.testing.assert_allclose(found, np.maximum(expected, 0), rtol=1e-3, atol=1e-4)


def test_guided_grad_cam_is_the_product(formula):
    a, slopes, net = formula
    x = jnp.asarray(a, jnp.float32)
    found = attribute.guided_grad_cam(net, x, guided=attribute.gradient).contributions
    np.testing.assert_allclose(found, slopes * np.asarray(grad_cam(net, x).contributions), rtol=1e-3, atol=1e-5)
    with pytest.raises(ValueError, match=r"^guided: got"):
        attribute.guided_grad_cam({"maps": lambda x: x[:, ::2], "head": curved}, x, layer="maps", guided=at_maps)


def at_maps(net, x, targets, **options):
    return attribute.gradient(net, x, targets, layer="maps", **options)


def test_constant_maps_give_nothing():
    net = explainable({"maps": lambda x: 0 * x, "head": lambda a: a.sum((1, 2))}, pooled="maps")
    for name in ("grad_cam_plus_plus", "xgrad_cam", "eigen_cam", "score_cam", "ablation_cam"):
        assert float(jnp.abs(getattr(attribute, name)(net, jnp.ones((2, 4, 4, 3))).contributions).max()) == 0


def test_the_backward_pass_ends_at_the_layer(model):
    """The operations of Grad-CAM at the last layer are those of the forward pass, but for a few."""
    module, variables, x = model
    program = explainable(module, variables).program("logits", x)
    place, rows = cams.Place("last", None, "nearest"), jnp.zeros((2, 1), jnp.int32)
    forward = called.lower(program, x).compile().cost_analysis()["flops"]
    whole = cams._sloped.lower(cams._grad_cam, place, program, x, rows).compile().cost_analysis()["flops"]
    assert whole < 1.2 * forward
