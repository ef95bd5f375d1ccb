"""The training step, pure, and its two compilations: `jit` over a mesh of devices, and `pmap`."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Int32, PRNGKeyArray

from jaxinterp.nn.losses import Batch, LossFn
from jaxinterp.train.state import AXIS, TrainState

SampleBatch = Callable[[Any, Int32[Array, ""], PRNGKeyArray], Batch]
Mode = Literal["jit", "pmap"]


def device_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Make a mesh of all devices (of all processes), or of those given, with one axis, over which batches are split.

    Args:
        devices: Devices; default all.

    Returns:
        A mesh whose only axis, `batch`, is of type `AxisType.Auto`: the compiler places the rest.
    """
    return Mesh(np.array(devices or jax.devices()), (AXIS,), axis_types=(AxisType.Auto,))


def _finite(*trees: Any) -> Bool[Array, ""]:
    return jnp.isfinite(jnp.stack([optax.tree.norm(tree).astype(jnp.float32) for tree in trees])).all()


def train_step(
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    state: TrainState,
    batch: Batch,
    key: PRNGKeyArray,
    *,
    grad_accum_steps: int = 1,
    axis_name: str | None = None,
) -> TrainState:
    """Take one step of training: gradients of the mean loss, one update of the optimizer.

        g = mean_m grad L(params; every grad_accum_steps-th example, from the m-th)

    The micro-batches are strided, so that each lies evenly on the devices that share the batch, and are the
    same under `jit`, under `pmap` and on one device. They are unrolled, because XLA on CPU runs convolutions in a
    loop many times slower.

    Args:
        loss_fn: `(params, batch_stats, batch, key) -> (loss, (batch_stats, metrics))`, a mean over the batch.
        tx: The optimizer.
        state: The state before.
        batch: Leaves `(batch, ...)`; a multiple of `grad_accum_steps` examples.
        key: Key of this step; micro-batch m gets `fold_in(key, m)`.
        grad_accum_steps: Number of micro-batches whose gradients are averaged before the one update.
        axis_name: Under `pmap`, the mapped axis, over which gradients, statistics and metrics are averaged;
            the model's key is then folded with the device's index, so that dropout masks differ.

    Returns:
        The state after: metrics added to its sums, and `bad_step` set if the loss, the gradients' norm or the
        norm of the new parameters and statistics is the first not to be finite.
    """
    if axis_name is not None:
        key = jax.random.fold_in(key, lax.axis_index(axis_name))
    value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)
    strided = jax.tree.map(lambda leaf: leaf.reshape(-1, grad_accum_steps, *leaf.shape[1:]), batch)
    batch_stats = state.batch_stats
    mean: Any = None
    for part in range(grad_accum_steps):
        mean, strided = lax.optimization_barrier((mean, strided))  # one micro-batch after another, not all at once
        micro = jax.tree.map(lambda leaf: leaf[:, part], strided)  # noqa: B023
        (loss, (batch_stats, metrics)), grads = value_and_grad(
            state.params, batch_stats, micro, jax.random.fold_in(key, part)
        )
        parts = jax.tree.map(lambda leaf: leaf / grad_accum_steps, (loss.astype(jnp.float32), grads, metrics))
        mean = parts if mean is None else jax.tree.map(jnp.add, mean, parts)
    loss, grads, metrics = mean
    if axis_name is not None:
        loss, grads, batch_stats, metrics = lax.pmean((loss, grads, batch_stats, metrics), axis_name)

    with jax.numpy_dtype_promotion("standard"):  # optax mixes floats with its integer counts
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    step = state.step + 1
    bad = (state.bad_step < 0) & ~_finite(loss, grads, (params, batch_stats))
    return TrainState(
        step=step,
        params=params,
        batch_stats=batch_stats,
        opt_state=opt_state,
        sums={
            name: total + (jnp.float32(1) if name == "count" else metrics[name].astype(jnp.float32))
            for name, total in state.sums.items()
        },
        bad_step=jnp.where(bad, step, state.bad_step),
    )


def compile_step(
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    *,
    mode: Mode = "jit",
    mesh: Mesh | None = None,
    grad_accum_steps: int = 1,
    sample_batch: SampleBatch | None = None,
    axes: Any = 0,
) -> Any:
    """Compile the training step for many devices: `step(state, inputs, key) -> state`.

    The state is replicated over the mesh, and donated: its buffers are used again for the new state. The key is
    that of the run: the step folds in the number of the step. Both modes keep the state in the same layout.

    Args:
        loss_fn: See `train_step`. Under `pmap`, a model with BatchNorm needs `axis_name="batch"`.
        tx: The optimizer.
        mode: `jit`, which splits the batch over the mesh and lets the compiler place the rest, or `pmap`.
        mesh: The devices; default `device_mesh()`.
        grad_accum_steps: See `train_step`.
        sample_batch: `(inputs, step, key) -> batch`, traced into the step; by default the inputs are the batch.
        axes: Only for `pmap`: its `in_axes` of the inputs, whose mapped axis is as long as the mesh. Under `jit`
            the inputs lie as they were put.

    Returns:
        A jitted (or pmapped) function, with `lower` and so on.
    """
    mesh = device_mesh() if mesh is None else mesh

    def step(state: TrainState, inputs: Any, key: PRNGKeyArray) -> TrainState:
        data_key, model_key = jax.random.fold_in(key, 0), jax.random.fold_in(key, 1)
        batch = inputs if sample_batch is None else sample_batch(inputs, state.step, data_key)
        axis_name: str | None = AXIS
        if mode == "jit":
            axis_name = None
            batch = lax.with_sharding_constraint(batch, NamedSharding(mesh, P(AXIS)))
        model_key = jax.random.fold_in(model_key, state.step)
        return train_step(loss_fn, tx, state, batch, model_key, grad_accum_steps=grad_accum_steps, axis_name=axis_name)

    if mode == "pmap":
        return jax.pmap(
            step,
            axis_name=AXIS,
            in_axes=(None, axes, None),
            out_axes=None,
            devices=list(mesh.devices.flat),
            donate_argnums=0,
        )
    return jax.jit(step, out_shardings=NamedSharding(mesh, P()), donate_argnums=0)
