import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinterp.explain.decompose import decompose
from jaxinterp.explain.explainable import explainable
from jaxinterp.nn.baselines import (
    VGG,
    VGG_STAGES,
    AlexNet,
    BasicBlock,
    CifarResNet,
    ConvNorm,
    ResNetTrunk,
    option_a,
)
from jaxinterp.nn.losses import ClassificationLoss, softmax_cross_entropy

TINY = {
    "resnet": (CifarResNet(depth=8, classes=5, width=4), (2, 8, 8, 3)),
    "standardized": (CifarResNet(8, 5, width=4, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)), (2, 8, 8, 3)),
    "vgg": (VGG(depth=11, classes=5, width=4), (2, 32, 32, 3)),
}
ALEXNET = AlexNet.cifar(5, widths=(4, 6, 8, 6, 4), hidden=8)


def trained(model, shape, key, dtype=jnp.float32):
    """Images, and variables whose statistics, shifts and biases are nobody's default."""
    images = jax.random.uniform(key, shape, dtype)
    variables = jax.jit(model.init)(key, images)
    noise = jax.random.uniform(jax.random.fold_in(key, 1), (512,), dtype)
    return images, jax.tree.map(lambda a: a + 0.3 * noise[: a.size] if a.ndim == 1 else a, variables)


def parameters(model, size):
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, size, size, 3)))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))


@pytest.mark.parametrize(("depth", "published"), [(20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018)])
def test_resnet_has_the_published_number_of_parameters(depth, published):
    n, stages = (depth - 2) // 6, (16, 32, 64)
    norms = 2 * (16 + sum(2 * n * w for w in stages))
    firsts = 9 * sum(c * w for c, w in zip((16, 16, 32), stages, strict=True))
    closed_form = 9 * 3 * 16 + firsts + 9 * sum((2 * n - 1) * w * w for w in stages) + norms + 65 * 10
    assert parameters(CifarResNet(depth=depth), 32) == closed_form == published


@pytest.mark.parametrize("depth", VGG_STAGES)
def test_vgg_has_as_many_weight_layers_and_parameters_as_the_paper(depth):
    widths = [64 * 2 ** min(s, 3) for s, count in enumerate(VGG_STAGES[depth]) for _ in range(count)]
    assert len(widths) == depth - 3
    closed_form = sum(9 * c * w + 2 * w for c, w in zip([3, *widths], widths, strict=False)) + 513 * 10
    assert parameters(VGG(depth=depth), 32) == closed_form


def test_parameter_structure_is_frozen():
    model = CifarResNet(depth=8, width=4)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    leaves = jax.tree.leaves_with_path(shapes)
    paths = {jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves}
    units = ["trunk/stem", *(f"trunk/block_{i}/conv_{j}" for i in range(3) for j in range(2))]
    assert paths == {
        *(f"params/{u}/{leaf}" for u in units for leaf in ("conv/kernel", "norm/scale", "norm/bias")),
        *(f"batch_stats/{u}/norm/{leaf}" for u in units for leaf in ("mean", "var")),
        "params/classifier/kernel",
        "params/classifier/bias",
    }
    vgg = jax.eval_shape(VGG(depth=11, width=4).init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    assert set(vgg["params"]) == {"trunk", "classifier"}
    assert set(vgg["params"]["trunk"]) == {f"conv_{i}" for i in range(8)}


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_logits_and_gradients_are_finite_and_jit_agrees_with_eager(name):
    model, shape = TINY[name]
    images, variables = trained(model, shape, jax.random.key(3))

    def loss(params):
        logits, updated = model.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
        return (logits**2).mean(), updated

    gradient, updated = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    for leaf in jax.tree.leaves(gradient):
        assert jnp.isfinite(leaf).all()
        assert jnp.any(leaf != 0)
    assert not jnp.allclose(jax.tree.leaves(updated["batch_stats"])[0], jax.tree.leaves(variables["batch_stats"])[0])
    eager = model.apply(variables, images)
    assert eager.shape == (2, 5)
    np.testing.assert_allclose(jax.jit(model.apply)(variables, images), eager, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name != "standardized")) for name in TINY]
)
def test_frozen_forces_evaluation_statistics_and_changes_no_value(name):
    model, shape = TINY[name]
    images, variables = trained(model, shape, jax.random.key(4))
    logits = model.apply(variables, images)
    np.testing.assert_array_equal(model.apply(variables, images, frozen=True), logits)
    np.testing.assert_array_equal(model.apply(variables, images, train=True, frozen=True), logits)
    in_batch, _ = model.apply(variables, images, train=True, mutable=["batch_stats"])
    assert jnp.abs(in_batch - logits).max() > 1e-3


@pytest.mark.parametrize(
    "name", ["standardized", *(pytest.param(name, marks=pytest.mark.slow) for name in ("vgg", "resnet"))]
)
def test_is_affine_at_its_input(name):
    """f(x + εu) = f(x) + ε W(x) u for an ε that switches no gate, and the decomposition is complete, in float64."""
    model, shape = TINY[name]
    with jax.enable_x64(True):
        model = model.clone(param_dtype=jnp.float64)
        x, variables = trained(model, shape, jax.random.key(5), jnp.float64)
        u = jax.random.normal(jax.random.key(6), shape, jnp.float64)
        net = explainable(model, variables)
        parts = decompose(net, x)
        slope = (parts.weights * u[:, None]).sum((2, 3, 4))
        difference = (net.frozen(x + 1e-7 * u) - parts.logits) / 1e-7
        np.testing.assert_allclose(difference, slope, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_less(jnp.abs(parts.residual), 1e-10 * (1 + jnp.abs(parts.logits)))


@pytest.mark.parametrize("name", ["resnet", pytest.param("vgg", marks=pytest.mark.slow)])
@pytest.mark.parametrize("at", [None, "first", "trunk"])
def test_decomposition_is_complete_in_float32(name, at):
    model, shape = TINY[name]
    images, variables = trained(model, shape, jax.random.key(11))
    at = {"resnet": "trunk/block_0", "vgg": "trunk/conv_0"}[name] if at == "first" else at
    parts = decompose(explainable(model, variables), images, layer=at)
    np.testing.assert_allclose(parts.logits, model.apply(variables, images), rtol=1e-4, atol=1e-5)
    assert jnp.abs(parts.residual).max() <= 1e-4 * jnp.abs(parts.logits).max()
    if at == "trunk":
        np.testing.assert_allclose(
            parts.bias, jnp.broadcast_to(variables["params"]["classifier"]["bias"], (2, 5)), atol=1e-5
        )
    else:
        assert jnp.abs(parts.bias - variables["params"]["classifier"]["bias"][None]).max() > 1e-2


@pytest.mark.slow
def test_first_blocks_are_the_networks_own():
    model = CifarResNet(depth=14, width=4)
    images, variables = trained(model, (1, 8, 8, 3), jax.random.key(7))
    inside = {}

    def keep(call, args, kwargs, context):
        inside[context.module.name] = call(*args, **kwargs)
        return inside[context.module.name]

    with jax.default_matmul_precision("highest"):
        with nn.intercept_methods(keep):
            model.apply(variables, images)
        trunk = {kind: variables[kind]["trunk"] for kind in variables}
        for blocks in (1, 3, 6):
            features = ResNetTrunk(depth=14, blocks=blocks, width=4).apply(trunk, images)
            np.testing.assert_allclose(features, inside[f"block_{blocks - 1}"], rtol=1e-6)
        np.testing.assert_allclose(ResNetTrunk(14, 0, 4).apply(trunk, images), inside["stem"], rtol=1e-6)


def test_bfloat16_keeps_statistics_and_logits_wide():
    model, shape = TINY["resnet"]
    images, variables = trained(model, shape, jax.random.key(8))
    half = CifarResNet(depth=8, classes=5, width=4, dtype=jnp.bfloat16)
    logits, updated = half.apply(variables, images, train=True, mutable=["batch_stats"])
    assert logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(updated)} == {jnp.dtype(jnp.float32)}
    exact, _ = model.apply(variables, images, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(logits, exact, atol=0.1 * float(jnp.abs(exact).max()))


def test_pmap_shares_batch_statistics():
    model, local = ConvNorm(4, axis_name="batch"), ConvNorm(4)
    images = jax.random.uniform(jax.random.key(9), (4, 8, 8, 3))
    variables = local.init(jax.random.key(9), images)
    whole, expected = local.apply(variables, images, train=True, mutable=["batch_stats"])
    parts, updated = jax.pmap(
        lambda x: model.apply(variables, x, train=True, mutable=["batch_stats"]), axis_name="batch"
    )(images.reshape(2, 2, 8, 8, 3))
    np.testing.assert_allclose(parts.reshape(whole.shape), whole, atol=1e-5)
    for mine, theirs in zip(jax.tree.leaves(updated), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(mine[0], theirs, atol=1e-6)


@pytest.mark.parametrize(
    ("field", "model", "size"),
    [
        ("depth", CifarResNet(depth=18), 8),
        ("blocks", ResNetTrunk(depth=8, blocks=4), 8),
        ("depth", VGG(depth=12), 32),
        ("x", VGG(depth=11), 16),
        ("mean", CifarResNet(depth=8, mean=(0.5,)), 8),
        ("widths", AlexNet(widths=(1, 2, 3)), 224),
        ("dropout", AlexNet(dropout=1.0), 224),
        ("x", AlexNet(), 8),
    ],
)
def test_bad_configuration_is_one_line(field, model, size):
    with pytest.raises(ValueError, match=rf"\A{field}: got "):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, size, size, 3)))


@pytest.mark.parametrize(("channels", "features", "strides"), [(4, 4, 1), (4, 8, 2)])
@pytest.mark.parametrize("train", [False, True])
def test_block_agrees_with_torch(channels, features, strides, train):
    torch = pytest.importorskip("torch")
    from torch.nn import functional

    block = BasicBlock(features, strides)
    x, variables = trained(block, (2, 6, 6, channels), jax.random.key(10))

    def tensor(array):
        return torch.from_numpy(np.array(array))

    y = shortcut = tensor(x).permute(0, 3, 1, 2)
    for i in range(2):
        kernel = tensor(variables["params"][f"conv_{i}"]["conv"]["kernel"]).permute(3, 2, 0, 1)
        norm, stats = (variables[kind][f"conv_{i}"]["norm"] for kind in ("params", "batch_stats"))
        y = functional.conv2d(y, kernel, stride=strides if i == 0 else 1, padding=1)
        y = functional.batch_norm(
            y, *map(tensor, (stats["mean"], stats["var"], norm["scale"], norm["bias"])), train, 0.1, 1e-5
        )
        y = functional.relu(y) if i == 0 else y
    if strides == 2:
        side = (features - channels) // 2
        shortcut = functional.pad(shortcut[:, :, ::2, ::2], (0, 0, 0, 0, side, side))
    expected = functional.relu(y + shortcut).permute(0, 2, 3, 1).numpy()

    out = block.apply(variables, x, train=train, mutable=["batch_stats"])[0]
    np.testing.assert_allclose(out, expected, atol=2e-5)
    assert option_a(x, features, strides).shape == expected.shape


def test_alexnet_has_torchvisions_parameters_and_a_small_one_for_cifar():
    shapes = jax.eval_shape(AlexNet().init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))["params"]
    assert set(shapes) == {*(f"conv_{i}" for i in range(5)), "dense_0", "dense_1", "classifier"}
    assert shapes["dense_0"]["kernel"].shape == (9216, 4096)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 61_100_840
    assert parameters(AlexNet.cifar(), 32) == 2_764_106
    assert AlexNet.cifar(3, 0.125, side=1) == AlexNet(3, (8, 24, 48, 32, 32), 5, 1, 2, 128, 1)
    with pytest.raises(ValueError, match="scale"):
        AlexNet.cifar(scale=0)


@pytest.mark.parametrize("at", [None, pytest.param("conv_4", marks=pytest.mark.slow)])
def test_alexnet_is_decomposed_as_it_is(at):
    images, variables = trained(ALEXNET, (2, 32, 32, 3), jax.random.key(12))
    parts = decompose(explainable(ALEXNET, variables), images, layer=at)
    assert jnp.abs(parts.residual).max() <= 1e-5 * jnp.abs(parts.logits).max()


def test_alexnet_names_its_convolutions_before_the_relu_and_drops_units_in_training_only():
    images, variables = trained(ALEXNET, (2, 32, 32, 3), jax.random.key(13))

    @jax.jit
    def run(variables, images, key):
        state = ALEXNET.apply(variables, images, capture_intermediates=True)[1]["intermediates"]
        before = [state[f"conv_{i}"]["__call__"][0].min() for i in range(5)]
        rngs = {"dropout": key}
        none = ALEXNET.clone(dropout=0).apply(variables, images, train=True, rngs=rngs)
        frozen = ALEXNET.apply(variables, images, train=True, frozen=True)
        half = ALEXNET.clone(dtype=jnp.bfloat16).apply(variables, images)
        return before, ALEXNET.apply(variables, images), none, frozen, half

    before, logits, none, frozen, half = run(variables, images, jax.random.key(0))
    assert max(map(float, before)) < 0
    np.testing.assert_array_equal(none, logits)
    np.testing.assert_array_equal(frozen, logits)
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, logits, atol=0.1 * float(jnp.abs(logits).max()))

    loss, batch = ClassificationLoss(ALEXNET, softmax_cross_entropy), {"image": images, "label": jnp.array([0, 3])}
    gradient = jax.jit(jax.value_and_grad(lambda p, key: loss(p, {}, batch, key)[0]))
    (one, slope), (two, _) = (gradient(variables["params"], jax.random.key(i)) for i in range(2))
    assert all(jnp.isfinite(leaf).all() and jnp.any(leaf != 0) for leaf in jax.tree.leaves(slope))
    assert abs(float(one - two)) > 1e-3


def test_alexnets_last_map_is_averaged():
    images, variables = trained(ALEXNET, (2, 32, 32, 3), jax.random.key(14))
    kernel = variables["params"]["dense_0"]["kernel"].reshape(9, 4, 8).sum(0)

    def logits(side, kernel):
        params = variables["params"] | {"dense_0": variables["params"]["dense_0"] | {"kernel": kernel}}
        return jax.jit(ALEXNET.clone(side=side).apply)({"params": params}, images)

    everywhere = jnp.broadcast_to(kernel / 9, (9, 4, 8)).reshape(36, 8)
    np.testing.assert_allclose(logits(1, kernel), logits(3, everywhere), rtol=1e-4, atol=1e-5)
