import itertools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxinterp.nn.losses import ClassificationLoss, sigmoid_bce, softmax_cross_entropy
from jaxinterp.nn.platform import target
from jaxinterp.train import compile_step, device_mesh, init_state, train_step

TX = optax.sgd(0.1, momentum=0.9)
KEY = jax.random.key(5)
jitted_step = jax.jit(train_step, static_argnums=(0, 1), static_argnames="grad_accum_steps")
rng = np.random.default_rng(0)
BATCHES = [
    {"image": jnp.asarray(image), "label": jnp.asarray(rng.integers(0, 4, 32), jnp.int32)}
    for image in rng.random((3, 32, 4, 4, 1), np.float32)
]


def copied(tree, mesh):
    """A replicated copy, which may be donated."""
    return jax.device_put(jax.tree.map(np.array, tree), NamedSharding(mesh, P()))


def start(model, tx=TX):
    loss = ClassificationLoss(model, softmax_cross_entropy)
    return loss, init_state(model, loss, tx, jax.random.key(0), BATCHES[0])


def test_accumulated_gradients_are_those_of_the_whole_batch(tiny):
    plain = optax.sgd(1.0)
    loss, state = start(tiny(norm=False), plain)
    grads = jax.jit(jax.grad(lambda params: loss(params, {}, BATCHES[0], KEY)[0]))(state.params)
    for grad_accum_steps, side in itertools.product((1, 4), ("cpu", "gpu")):
        with target(side):
            new = jitted_step(loss, plain, state, BATCHES[0], KEY, grad_accum_steps=grad_accum_steps)
        moved = jax.tree.map(jnp.subtract, state.params, new.params)
        chex.assert_trees_all_close(moved, grads, atol=1e-6)


def test_micro_batches_are_strided_keep_their_statistics_in_turn_and_leave_no_loop_on_a_cpu(tiny):
    loss, state = start(tiny())
    stats = state.batch_stats
    for part in range(2):
        micro = {name: leaf[part::2] for name, leaf in BATCHES[0].items()}
        _, (stats, _) = jax.jit(loss.__call__)(state.params, stats, micro, KEY)
    sizes = {}
    for side in ("cpu", "gpu"):
        with target(side):
            new = jitted_step(loss, TX, state, BATCHES[0], KEY, grad_accum_steps=2)
            text = compile_step(loss, TX, grad_accum_steps=4).lower(state, BATCHES[0], KEY).as_text()
        chex.assert_trees_all_close(new.batch_stats, stats, atol=1e-6)
        sizes[side] = text.count("stablehlo.convolution")
        assert ("stablehlo.while" in text) == (side == "gpu")
    assert sizes["cpu"] == 4 * sizes["gpu"] > 0


def draw_loss(params, batch_stats, batch, key):
    return 0.0 * params["w"].sum(), (batch_stats, {"draw": jax.random.uniform(key)})


class Weights(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return self.param("w", nn.initializers.zeros, (3,)) * jnp.ones(3)


@pytest.mark.simulated
@pytest.mark.parametrize("side", ["cpu", "gpu"])
def test_keys_differ_by_step_micro_batch_and_pmapped_device(side):
    mesh = device_mesh(jax.devices()[:4])
    state = copied(init_state(Weights(), draw_loss, TX, KEY, BATCHES[0]), mesh)
    data = jax.tree.map(lambda leaf: leaf.reshape(4, -1, *leaf.shape[1:]), BATCHES[0])
    step = compile_step(draw_loss, TX, mode="pmap", mesh=mesh, grad_accum_steps=2)
    for number in range(2):
        expected, before = set(), float(state.sums["draw"])
        for device in range(4):
            for part in range(2):
                key = jax.random.fold_in(KEY, 1)
                for fold in (number, device, part):
                    key = jax.random.fold_in(key, fold)
                expected.add(float(jax.random.uniform(key)))
        with target(side):
            state = step(state, data, KEY)
        assert len(expected) == 8
        np.testing.assert_allclose(float(state.sums["draw"]) - before, np.mean(list(expected)), rtol=1e-5)


def test_the_state_is_donated_nothing_is_traced_twice_and_the_first_bad_step_is_told(tiny):
    loss, state = start(tiny())
    mesh = device_mesh(jax.devices()[:1])
    state = copied(state, mesh)
    step = compile_step(chex.assert_max_traces(loss.__call__, n=1), TX, mesh=mesh)
    good, poison = BATCHES[0], np.where(np.arange(32)[:, None, None, None] == 3, np.nan, BATCHES[1]["image"])
    seen = []
    for batch in (good, {**BATCHES[1], "image": jnp.asarray(poison, jnp.float32)}, good):
        before, state = state, step(state, batch, KEY)
        seen.append(int(state.bad_step))
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
    assert (int(state.step), seen) == (3, [-1, 2, 2])


def test_parameters_that_overflow_are_noticed_though_loss_and_gradients_are_finite():
    huge = optax.chain(optax.sgd(1.0), optax.add_decayed_weights(jnp.inf))
    state = init_state(Weights(), draw_loss, huge, KEY, BATCHES[0]).replace(params={"w": jnp.ones(3)})
    assert int(jitted_step(draw_loss, huge, state, BATCHES[0], KEY).bad_step) == 1


def test_losses_by_their_formulas():
    logits, labels = rng.normal(size=(5, 3)).astype(np.float32), np.array([0, 1, 2, 1, 0], np.int32)
    hot, p = np.eye(3)[labels], 1 / (1 + np.exp(-logits.astype(np.float64)))
    bce = -(hot * np.log(p) + (1 - hot) * np.log(1 - p)).mean()
    ce = -np.log(np.exp(logits)[np.arange(5), labels] / np.exp(logits).sum(-1)).mean()
    for loss, expected in ((sigmoid_bce, bce), (softmax_cross_entropy, ce)):
        np.testing.assert_allclose(loss(jnp.array(logits), jnp.array(labels)), expected, rtol=1e-6)
