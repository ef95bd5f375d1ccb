"""Coded ResNeXt: the authors' numbers to 1e-13, the literal form, parameter counts, masks, and slices for one class."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from jaxinterp.app.registry import family_of, runs
from jaxinterp.coded import block as coded_block
from jaxinterp.coded.block import CodedBlock, grouped_conv, path_energies
from jaxinterp.coded.codes import Code, load_code
from jaxinterp.coded.network import CodedResNeXt, Stage, coding_loss
from jaxinterp.coded.surgery import binary_classifier, costs, keep_only
from jaxinterp.coded.torch_weights import block_from_torch, to_torch
from jaxinterp.errors import ConfigError
from jaxinterp.nn.platform import target

GOLDEN = np.load(Path(__file__).parents[1] / "golden/coded_resnext_blocks.npz")
STAGES = (
    Stage(1, 16, 3, 10),
    Stage(2, 24, 4, 10, 2, load_code("cifar10-5-of-10")),
    Stage(1, 32, 5, 10, 2, load_code("cifar10-3-of-10")),
)


NORMS = {"norm_reduce": "bn_reduce", "norm_inner": "bn_internal", "norm_expand": "bn_expand"}
NORMS["norm_skip"] = "skip_connection.bn_skip"
NET = CodedResNeXt(stages=STAGES)
close = partial(np.testing.assert_allclose, rtol=1e-13, atol=1e-13)


class Golden(nn.Module):
    """The chain of blocks of the golden file: no stem, global average pooling, a linear head."""

    def setup(self):
        self.chain = [
            CodedBlock(s.features, s.width, s.paths, s.paths, step, s.code is not None, param_dtype=jnp.float64)
            for s, step in NET.blocks
        ]

    def __call__(self, x, head, train=False, keep=None):
        outputs, energies = [], []
        for i, block in enumerate(self.chain):
            kept = None if keep is None or i == 0 else keep[i - 1]
            x, energy = block(x, train, keep=kept)
            outputs.append(x)
            energies += [] if energy is None else [energy]
        return x.mean((1, 2)) @ head.T, energies, outputs


@pytest.fixture
def golden():
    with jax.enable_x64(True):
        params, stats = {}, {}
        for i in range(4):
            params[f"chain_{i}"], stats[f"chain_{i}"] = block_from_torch(under(f"block{i}/"), 10)
        x = jnp.asarray(GOLDEN["x_nchw"].transpose(0, 2, 3, 1))
        yield {"params": params, "batch_stats": stats}, x, jnp.asarray(GOLDEN["head/weight_oi"])


def under(prefix):
    """The arrays of the golden file whose names begin with `prefix`."""
    return {k.removeprefix(prefix): GOLDEN[k] for k in GOLDEN if k.startswith(prefix)}


def codes_loss(energies, labels):
    pairs = zip(energies, NET.codes, strict=True)
    return sum(coding_loss(e, jnp.asarray(c.table, e.dtype)[labels]) for e, c in pairs)


def test_the_authors_numbers_in_evaluation(golden):
    variables, x, head = golden
    apply = jax.jit(Golden().apply)
    logits, energies, outputs = apply(variables, x, head)
    close(logits, GOLDEN["eval/logits"])
    for i, out in enumerate(outputs):
        close(out.transpose(0, 3, 1, 2), GOLDEN[f"eval/block{i}_out_nchw"])
    close(codes_loss(energies, GOLDEN["labels"]), GOLDEN["eval/coding_loss"])
    for k in range(10):
        alone = apply(variables, x, head, keep=keep_only(NET, k))[0]
        close(alone[:, k], GOLDEN[f"binary/logit_class{k}"])


def test_the_authors_numbers_in_training(golden):
    variables, x, head = golden
    labels = GOLDEN["labels"]

    @jax.jit
    def loss(params):
        (logits, energies, _), updates = Golden().apply(
            {**variables, "params": params}, x, head, True, mutable="batch_stats"
        )
        cross = -jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.asarray(labels)[:, None], 1).mean()
        coding = codes_loss(energies, labels)
        return cross + 6 * coding, (logits, coding, updates["batch_stats"])

    (total, (logits, coding, stats)), grads = jax.value_and_grad(loss, has_aux=True)(variables["params"])
    close(logits, GOLDEN["train/logits"])
    close(coding, GOLDEN["train/coding_loss"])
    close(total, GOLDEN["train/total_loss_mu6"])
    for i in range(4):
        want, _ = block_from_torch(under(f"train/grad/block{i}/"), 10)
        jax.tree.map(close, grads[f"chain_{i}"], want)
        for ours, theirs in NORMS.items():
            key = f"train/after/block{i}/{theirs}.running_"
            for moment in ("mean", "var") if f"{key}mean" in GOLDEN else ():
                close(stats[f"chain_{i}"][ours][moment], GOLDEN[key + moment])


def literal(u, expand, mask):
    """Every t_n, its energy, and the sum of what is left: (B, H, W, N, C) in memory."""
    t = jnp.einsum("bhwnd,ndc->bhwnc", u, expand)
    energies = (t**2).mean((1, 2, 4))
    rho = jnp.sqrt(energies.mean(1))
    return energies, (t * (mask / rho[:, None])[:, None, None, :, None]).sum(3)


def test_the_gram_form_is_the_literal_form_and_so_are_its_gradients():
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(0), 5)
        u = jax.random.normal(keys[0], (3, 4, 5, 6, 2), jnp.float64)
        expand = jax.random.normal(keys[1], (6, 2, 7), jnp.float64)
        mask = jax.random.bernoulli(keys[2], 0.7, (3, 6)).astype(jnp.float64)
        weights = jax.random.normal(keys[3], (3, 6), jnp.float64), jax.random.normal(keys[4], (3, 4, 5, 7), jnp.float64)

        def fast(u, expand):
            energies = path_energies(u, expand)
            scale = mask * lax.rsqrt(energies.mean(1, keepdims=True))
            v = (u * scale[:, None, None, :, None]).reshape(3, 4, 5, -1)
            return energies, v @ expand.reshape(12, 7)

        def total(function, *arguments):
            return sum((a * b).sum() for a, b in zip(function(*arguments), weights, strict=True))

        slow = partial(literal, mask=mask)
        for a, b in zip(jax.jit(fast)(u, expand), jax.jit(slow)(u, expand), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)
        for argument in (0, 1):
            ours, theirs = (jax.jit(jax.grad(partial(total, f), argument))(u, expand) for f in (fast, slow))
            np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-10)
        narrow = path_energies(u.astype(jnp.bfloat16), expand.astype(jnp.bfloat16))
        assert narrow.dtype == jnp.float32


@pytest.mark.parametrize(("strides", "size"), [(1, (6, 7)), (2, (6, 7)), (2, (1, 4))])
@pytest.mark.parametrize("limit", [1 << 29, 0])  # as one dense convolution, and as one for each group
def test_grouped_convolution_is_xlas(monkeypatch, strides, size, limit):
    monkeypatch.setattr(coded_block, "MAX_DENSE_MULTIPLY_ADDS", limit)
    x = jax.random.normal(jax.random.key(0), (2, *size, 12))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 4, 12))
    theirs = partial(
        lax.conv_general_dilated,
        window_strides=(strides, strides),
        padding=((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=3,
    )
    roughly = partial(jax.tree.map, partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4))

    def found(f):
        return jax.jit(jax.value_and_grad(lambda *a: (f(*a) ** 2).sum(), (0, 1)))(x, kernel), f(x, kernel)

    ours = partial(grouped_conv, strides=strides)
    roughly(found(ours), found(theirs))
    with target("gpu"):
        jax.tree.map(np.testing.assert_array_equal, found(ours), found(theirs))
    with target("tpu"):
        roughly(found(ours), found(theirs))


@pytest.mark.parametrize(
    ("name", "parameters", "kept", "without_shortcuts", "multiply_adds", "adds_kept"),
    [
        ("cifar10", 4_638_926, 2_149_034, 0.372, 741e6, 0.619),
        ("cifar100", 4_749_136, 1_777_744, 0.271, 751e6, 0.552),
        ("imagenet", 25_027_904, 10_416_448, 0.343, 2.16e9, 0.696),
    ],
)
def test_costs_of_the_published_networks(name, parameters, kept, without_shortcuts, multiply_adds, adds_kept):
    for suffix in ("", "-baseline"):
        run = runs()[f"coded/{name}{suffix}"].run
        model, shape = family_of(run).build(run), run.data.image_shape
        init = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *shape), jnp.float32))
        assert sum(leaf.size for leaf in jax.tree.leaves(init["params"])) == parameters
        if not suffix:
            net, coded = model, init
    small = {}

    def cut(variables):
        small["net"], sliced = binary_classifier(net, variables, 3)
        return sliced

    assert sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(cut, coded)["params"])) == kept
    parts = [
        np.sum([(p.parameters, p.parameters - p.shortcut, p.multiply_adds) for p in costs(each, shape)], 0)
        for each in (small["net"], net)
    ]
    assert [part[0] for part in parts] == [kept, parameters]
    assert parts[1][2] == pytest.approx(multiply_adds, rel=3e-3)
    np.testing.assert_allclose((parts[0] / parts[1])[1:], [without_shortcuts, adds_kept], atol=1e-3)


def test_without_a_pooling_blocks_see_four_times_the_pixels() -> None:
    pooled, strided = (TINY.clone(stem=(3, 2), pool=pool) for pool in (True, False))
    before, after = (costs(net, (16, 16, 1)) for net in (pooled, strided))
    assert before[0] == after[0]
    assert [b.multiply_adds * 4 for b in before[1:-1]] == [a.multiply_adds for a in after[1:-1]]
    assert [b.parameters for b in before] == [a.parameters for a in after]
    images = jnp.zeros((1, 16, 16, 1))
    shapes = [jax.eval_shape(net.init_with_output, jax.random.key(0), images) for net in (pooled, strided)]
    assert jax.tree.map(jnp.shape, shapes[0]) == jax.tree.map(jnp.shape, shapes[1])
    with pytest.raises(ConfigError, match=r"^network: got pool=False"):
        to_torch(strided, shapes[1][1])


CODE = Code(("1100", "0110", "0011"))
TINY = CodedResNeXt(
    stages=(Stage(1, 8, 2, 2), Stage(2, 12, 2, 4, 2, CODE)), classes=3, drop=0.5, mean=(0.1,), std=(0.5,)
)
APPLY = jax.jit(TINY.apply, static_argnames=("energies", "first", "last"))


@pytest.fixture(scope="module")
def tiny():
    x, rng = jax.random.uniform(jax.random.key(0), (4, 8, 8, 1)), np.random.default_rng(0)
    variables = jax.jit(TINY.init)(jax.random.key(1), x)
    return jax.tree.map(lambda leaf: leaf + jnp.asarray(0.3 * rng.random(leaf.shape), leaf.dtype), variables), x


def test_a_class_alone_is_the_masked_network(tiny):
    variables, x = tiny
    for k in (0, 2):
        small, sliced = binary_classifier(TINY, variables, k)
        whole = APPLY(variables, x, keep=keep_only(TINY, k))
        logit = jax.jit(small.apply)(sliced, x)
        assert logit.shape == (4, 1)
        np.testing.assert_allclose(logit[:, 0], whole[:, k], rtol=1e-5, atol=1e-5)
        assert not np.allclose(whole[:, k], APPLY(variables, x)[:, k], rtol=1e-3)


def test_blocks_in_pieces_are_the_network(tiny):
    variables, x = tiny
    whole, energies = APPLY(variables, x, energies=True)
    middle, first = APPLY(variables, x, energies=True, last=2)
    logits, second = APPLY(variables, middle, energies=True, first=2)
    np.testing.assert_allclose(logits, whole, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(first[0], energies[0], rtol=1e-6)
    np.testing.assert_allclose(second[0], energies[1], rtol=1e-6)


def test_one_mask_serves_all_blocks_of_a_code():
    net = TINY.clone(stages=(*TINY.stages, Stage(1, 12, 2, 3, 1, Code(("100", "010", "001")))))
    x = jax.random.uniform(jax.random.key(0), (64, 8, 8, 1))
    variables = jax.jit(net.init)(jax.random.key(1), x)

    def outputs(model):
        """Return what the paths of every block hand on in training, (batch, positions, paths, d)."""
        apply = partial(model.apply, rngs={"dropout": jax.random.key(5)}, mutable=["batch_stats", "intermediates"])
        _, state = apply(variables, x, train=True, capture_intermediates=lambda module, _: module.name == "paths")
        state = state["intermediates"]
        blocks = zip(range(1, 5), net.blocks, strict=True)
        return [state[f"block_{i}"]["paths"]["__call__"][0].reshape(64, -1, s.paths, 2) for i, (s, _) in blocks]

    dropping, full = (jax.jit(outputs, static_argnums=0)(model) for model in (net, net.clone(drop=0.0)))
    none, one, same, other = (np.asarray(out == 0).all((1, 3)) for out in dropping)
    assert not none.any()
    assert (one == same).all()
    assert (one[:, :3] != other).any()
    assert one.mean() == pytest.approx(0.5, abs=0.1)
    np.testing.assert_allclose(dropping[1], np.where(one[:, None, :, None], 0, 2 * full[1]), rtol=1e-5)


def test_coding_loss_at_uniform_energies():
    for weight, length, fourth in ((5, 10, 0.0625), (3, 10, 0.0777), (8, 20, 0.0672), (8, 32, 0.0820)):
        r, uniform = weight / length, jnp.full((1, length), 3.0)
        word = jnp.asarray([[1.0] * weight + [0.0] * (length - weight)])
        for power in (1, 2, 4):
            want = r * (1 - r) ** power + (1 - r) * r**power
            assert float(coding_loss(uniform, word, power)) == pytest.approx(want, rel=1e-5)
        assert float(coding_loss(uniform, word)) == pytest.approx(fourth, abs=5e-5)


def test_gradients_without_any_energy_are_finite_and_the_sum_is_zero():
    """Energy of exactly zero, from black inputs or from zero weights: ρ is not 0/0, in value or gradient."""
    block = CodedBlock(8, 2, 4, 4)
    x = jnp.zeros((2, 3, 3, 8)).at[1].set(1)
    variables = jax.jit(block.init)(jax.random.key(0), x)
    lit = {**variables["params"], "norm_expand": {"scale": jnp.ones(8), "bias": jnp.zeros(8)}}
    word = jnp.tile(jnp.array([[1.0, 1.0, 0.0, 0.0]]), (2, 1))

    def loss(params, x):
        y, energies = block.apply({**variables, "params": params}, x)
        return y.sum() + coding_loss(energies, word), (y, energies)

    with jax.debug_nans(True):
        for expand in (lit["expand_kernel"], jnp.zeros_like(lit["expand_kernel"])):
            params = {**lit, "expand_kernel": expand}
            (_, (y, energies)), grads = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, x)
            assert (energies[0] == 0).all()
            assert (y[0] == 0).all()
            assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(grads))
    assert float(coding_loss(jnp.zeros((2, 4)), word)) == 0.5  # no shares: a / N


@pytest.mark.parametrize("factor", [1e-9, 1e9])
def test_energies_of_any_size_are_normalized_alike(factor):
    """No constant is added to the mean energy: W → c W changes no output, be its energy 1e-18 of what it was."""
    block = CodedBlock(8, 2, 4, 4)
    x = jax.random.uniform(jax.random.key(1), (2, 3, 3, 8))
    variables = jax.jit(block.init)(jax.random.key(0), x)
    lit = {**variables["params"], "norm_expand": {"scale": jnp.ones(8), "bias": jnp.zeros(8)}}
    scaled = {**lit, "expand_kernel": lit["expand_kernel"] * factor}
    (y, energies), (other, smaller) = (block.apply({**variables, "params": p}, x) for p in (lit, scaled))
    np.testing.assert_allclose(smaller, energies * factor**2, rtol=1e-5)
    np.testing.assert_allclose(other, y, rtol=1e-5, atol=1e-5)
    assert float(jnp.abs(y - x).max()) > 0.1
