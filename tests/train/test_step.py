import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxinterp.train import (
    ClassificationLoss,
    compile_step,
    device_mesh,
    init_state,
    sigmoid_bce,
    softmax_cross_entropy,
    train_step,
)

TX = optax.sgd(0.1, momentum=0.9)
jitted_step = jax.jit(train_step, static_argnums=(0, 1), static_argnames="grad_accum_steps")


def batches(count=4, size=32):
    rng = np.random.default_rng(0)
    image = rng.random((count, size, 4, 4, 1), np.float32)
    return [{"image": jnp.array(i), "label": jnp.array(rng.integers(0, 4, size), jnp.int32)} for i in image]


def replicate(tree, mesh):
    """A copy of its own, which may be donated."""
    return jax.device_put(jax.tree.map(np.array, tree), NamedSharding(mesh, P()))


def start(model, tx=TX):
    loss = ClassificationLoss(model, softmax_cross_entropy)
    return loss, init_state(model, loss, tx, jax.random.key(0), batches(1)[0])


def run(model, state, *, mode, devices, grad_accum_steps=1, tx=TX):
    mesh = device_mesh(jax.devices()[:devices])
    step = compile_step(
        ClassificationLoss(model, softmax_cross_entropy), tx, mode=mode, mesh=mesh, grad_accum_steps=grad_accum_steps
    )
    state, key = replicate(state, mesh), jax.device_put(jax.random.key(5), NamedSharding(mesh, P()))
    for batch in batches():
        if mode == "pmap":
            batch = jax.tree.map(lambda leaf: leaf.reshape(devices, -1, *leaf.shape[1:]), batch)
        state = step(state, jax.device_put(batch, NamedSharding(mesh, P("batch"))), key)
    return jax.device_get(state)


@pytest.mark.parametrize("grad_accum_steps", [1, 2])
def test_jit_pmap_and_one_device_agree_with_batch_norm(tiny, grad_accum_steps):
    _, state = start(tiny())
    one = run(tiny(), state, mode="jit", devices=1, grad_accum_steps=grad_accum_steps)
    jit = run(tiny(), state, mode="jit", devices=8, grad_accum_steps=grad_accum_steps)
    pmap = run(tiny(axis_name="batch"), state, mode="pmap", devices=8, grad_accum_steps=grad_accum_steps)
    assert one.step == 4
    assert one.sums["count"] == 4
    assert not np.array_equal(one.params["Conv_0"]["kernel"], state.params["Conv_0"]["kernel"])
    assert np.abs(one.batch_stats["BatchNorm_0"]["mean"]).max() > 1e-3
    chex.assert_trees_all_close(jit, one, atol=2e-6)
    chex.assert_trees_all_close(pmap, one, atol=2e-6)


def test_grad_accum_stepsd_gradients_are_those_of_the_whole_batch(tiny):
    loss, state = start(tiny(norm=False))
    batch, key = batches(1)[0], jax.random.key(1)
    grads = jax.jit(jax.grad(lambda params: loss(params, {}, batch, key)[0]))(state.params)
    plain = optax.sgd(1.0)
    state = state.replace(opt_state=plain.init(state.params))
    for grad_accum_steps in (1, 4):
        new = jitted_step(loss, plain, state, batch, key, grad_accum_steps=grad_accum_steps)
        moved = jax.tree.map(jnp.subtract, state.params, new.params)
        chex.assert_trees_all_close(moved, grads, atol=1e-6)


def test_micro_batches_are_strided_and_keep_their_statistics_in_turn(tiny):
    loss, state = start(tiny())
    batch, key = batches(1)[0], jax.random.key(1)
    stats = state.batch_stats
    for part in range(2):
        micro = {name: leaf[part::2] for name, leaf in batch.items()}
        _, (stats, _) = jax.jit(loss.__call__)(state.params, stats, micro, key)
    new = jitted_step(loss, TX, state, batch, key, grad_accum_steps=2)
    chex.assert_trees_all_close(new.batch_stats, stats, atol=1e-6)


def draw_loss(params, batch_stats, batch, key):
    return 0.0 * params["w"].sum(), (batch_stats, {"draw": jax.random.uniform(key)})


class Weights(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return self.param("w", nn.initializers.zeros, (3,)) * jnp.ones(3)


def test_keys_differ_by_step_micro_batch_and_pmapped_device():
    mesh, key = device_mesh(), jax.random.key(5)
    state = init_state(Weights(), draw_loss, TX, key, batches(1)[0])
    data = jax.tree.map(lambda leaf: leaf.reshape(8, -1, *leaf.shape[1:]), batches(1)[0])
    step = compile_step(draw_loss, TX, mode="pmap", mesh=mesh, grad_accum_steps=2)
    for number in range(2):
        expected = []
        for device in range(8):
            for part in range(2):
                one = jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(key, 1), number), device)
                expected.append(float(jax.random.uniform(jax.random.fold_in(one, part))))
        before = float(state.sums["draw"])
        state = step(replicate(state, mesh) if number == 0 else state, data, key)
        assert len(set(expected)) == 16
        np.testing.assert_allclose(float(state.sums["draw"]) - before, np.mean(expected), rtol=1e-5)


def test_the_state_is_donated_and_nothing_is_traced_twice(tiny):
    mesh = device_mesh()
    loss, state = start(tiny())
    counted = chex.assert_max_traces(loss.__call__, n=1)
    step = compile_step(counted, TX, mesh=mesh)
    key, first = jax.random.key(0), replicate(state, mesh)
    second = step(first, batches(1)[0], key)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(first))
    for batch in batches():
        second = step(second, batch, key)
    assert second.step == 5


def test_bad_step_is_the_first_whose_loss_or_norm_is_not_finite(tiny):
    loss, state = start(tiny())
    good, bad = batches(2)
    poisoned = {**bad, "image": np.where(np.arange(32)[:, None, None, None] == 3, np.nan, bad["image"])}
    step = compile_step(loss, TX)
    seen = []
    for batch in (good, poisoned, good):
        state = step(state, batch, jax.random.key(0))
        seen.append(int(state.bad_step))
    assert seen == [-1, 2, 2]


def test_parameters_that_overflow_are_noticed_though_loss_and_gradients_are_finite():
    state = init_state(Weights(), draw_loss, optax.sgd(1.0), jax.random.key(0), batches(1)[0])
    huge = optax.chain(optax.sgd(1.0), optax.add_decayed_weights(jnp.inf))
    state = state.replace(opt_state=huge.init(state.params), params={"w": jnp.ones(3)})
    assert int(train_step(draw_loss, huge, state, batches(1)[0], jax.random.key(0)).bad_step) == 1


def test_accumulation_leaves_no_loop_around_convolutions(tiny):
    loss, state = start(tiny())
    text = compile_step(loss, TX, grad_accum_steps=4).lower(state, batches(1)[0], jax.random.key(0)).as_text()
    assert text.count("stablehlo.convolution") >= 4 * 2
    assert "stablehlo.while" not in text


def test_losses_by_their_formulas():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(5, 3)).astype(np.float32), np.array([0, 1, 2, 1, 0], np.int32)
    hot, p = np.eye(3)[labels], 1 / (1 + np.exp(-logits.astype(np.float64)))
    bce = -(hot * np.log(p) + (1 - hot) * np.log(1 - p)).mean()
    ce = -np.log(np.exp(logits)[np.arange(5), labels] / np.exp(logits).sum(-1)).mean()
    np.testing.assert_allclose(sigmoid_bce(jnp.array(logits), jnp.array(labels)), bce, rtol=1e-6)
    np.testing.assert_allclose(softmax_cross_entropy(jnp.array(logits), jnp.array(labels)), ce, rtol=1e-6)
