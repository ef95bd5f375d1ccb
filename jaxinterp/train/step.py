"""State and step of training, pure, and the step's two compilations: `jit` over a mesh of devices, and `pmap`."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import AxisType, Mesh
from jaxtyping import Array, Int32, PRNGKeyArray

from jaxinterp.nn.losses import Batch, LossFn
from jaxinterp.nn.platform import by_platform

SampleBatch = Callable[[Any, Int32[Array, ""], PRNGKeyArray], Batch]
Mode = Literal["jit", "pmap"]
AXIS = "batch"  # the one axis of the device mesh, and the mapped axis under `pmap`


@flax.struct.dataclass
class TrainState:
    """State of a training run, a pytree, so that it can be donated, sharded and saved.

    The leaves are arrays, or what JAX puts in their place (shapes, shardings), so their types are not annotated.

    Attributes:
        step: Number of steps taken, an int32 scalar.
        params: Parameters of the model.
        batch_stats: Running statistics of BatchNorm; `{}` for a model without them.
        opt_state: State of the optimizer.
        sums: Sums of the metrics over the steps of the current epoch, and `count` of these; float32 scalars.
        bad_step: The first step, from 1, whose loss, gradient or parameter norm was not finite, or -1; int32.
    """

    step: Any
    params: Any
    batch_stats: Any
    opt_state: Any
    sums: dict[str, Any]
    bad_step: Any

    def __repr__(self) -> str:
        leaves = jax.tree.leaves(self.params)
        return f"TrainState(step {self.step}, {sum(map(np.size, leaves)):,} parameters in {len(leaves)} arrays)"

    @property
    def variables(self) -> dict[str, Any]:
        """Collections that `model.apply` takes."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def init_state(
    model: nn.Module, loss_fn: LossFn, tx: optax.GradientTransformation, key: PRNGKeyArray, batch: Batch
) -> TrainState:
    """Make the state before the first step, for batches of these shapes; the loss is traced for its metrics' names."""
    image = batch["image"]
    variables: Mapping[str, Any] = model.init(key, jnp.zeros((1, *image.shape[1:]), image.dtype))
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype), dict(batch))
    trace = jax.vmap(loss_fn, in_axes=(None, None, 0, None), axis_name=AXIS)  # binds the axis of BatchNorm
    _, (_, metrics) = jax.eval_shape(trace, params, batch_stats, one, key)
    sums = {name: jnp.float32(0) for name in (*metrics, "count")}
    return TrainState(jnp.int32(0), params, batch_stats, tx.init(params), sums, jnp.int32(-1))


def device_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Make a mesh of all devices (of all processes), or of those given, with one axis: `batch`, which is split."""
    return Mesh(np.array(devices or jax.devices()), (AXIS,), axis_types=(AxisType.Auto,))


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
    same under `jit`, under `pmap` and on one device. On a CPU they are unrolled, because XLA runs convolutions in a
    loop many times slower there; elsewhere they are a loop, whose program is as large as that of one of them.

    Args:
        loss_fn: `(params, batch_stats, batch, key) -> (loss, (batch_stats, metrics))`, a mean over the batch.
        tx: The optimizer.
        state: The state before.
        batch: Leaves `(batch, ...)`; a multiple of `grad_accum_steps` examples.
        key: Key of this step; micro-batch m gets `fold_in(key, m)`.
        grad_accum_steps: Number of micro-batches whose gradients are averaged before the one update.
        axis_name: Under `pmap`, the axis over which gradients, statistics and metrics are averaged; the key is then
            folded with the device's index, so that dropout masks differ.

    Returns:
        The state after: metrics added to its sums, and `bad_step` set if this step is the first that is not finite.
    """
    if axis_name is not None:
        key = jax.random.fold_in(key, lax.axis_index(axis_name))
    strided = jax.tree.map(lambda leaf: leaf.reshape(-1, grad_accum_steps, *leaf.shape[1:]), batch)
    given = state.params, state.batch_stats, strided, key
    unrolled, looped = (partial(side, loss_fn, grad_accum_steps) for side in (_unrolled, _looped))
    whole = unrolled(*given) if grad_accum_steps == 1 else by_platform(unrolled, looped, *given)
    batch_stats, (loss, grads, metrics) = whole
    if axis_name is not None:
        loss, grads, batch_stats, metrics = lax.pmean((loss, grads, batch_stats, metrics), axis_name)

    with jax.numpy_dtype_promotion("standard"):  # optax mixes floats with its integer counts
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    step = state.step + 1
    norms = [optax.tree.norm(tree).astype(jnp.float32) for tree in (loss, grads, (params, batch_stats))]
    bad = (state.bad_step < 0) & ~jnp.isfinite(jnp.stack(norms)).all()
    new = {**metrics, "count": jnp.float32(1)}
    sums = {name: total + new[name].astype(jnp.float32) for name, total in state.sums.items()}
    return TrainState(step, params, batch_stats, opt_state, sums, jnp.where(bad, step, state.bad_step))


def _micro_batch(
    loss_fn: LossFn, count: int, params: Any, batch_stats: Any, strided: Batch, key: PRNGKeyArray, part: int | Array
) -> tuple[Any, Any]:
    """Return the batch statistics after a micro-batch, and its share of the mean loss, gradients and metrics."""
    micro = jax.tree.map(lambda leaf: leaf[:, part], strided)
    value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)
    (loss, (batch_stats, metrics)), grads = value_and_grad(params, batch_stats, micro, jax.random.fold_in(key, part))
    return batch_stats, jax.tree.map(lambda leaf: leaf / count, (loss.astype(jnp.float32), grads, metrics))


def _unrolled(
    loss_fn: LossFn, count: int, params: Any, batch_stats: Any, strided: Batch, key: PRNGKeyArray
) -> tuple[Any, Any]:
    mean: Any = None
    for part in range(count):
        mean, strided = lax.optimization_barrier((mean, strided))  # one micro-batch after another, not all at once
        batch_stats, parts = _micro_batch(loss_fn, count, params, batch_stats, strided, key, part)
        mean = parts if mean is None else jax.tree.map(jnp.add, mean, parts)
    return batch_stats, mean


def _looped(
    loss_fn: LossFn, count: int, params: Any, batch_stats: Any, strided: Batch, key: PRNGKeyArray
) -> tuple[Any, Any]:
    one = partial(_micro_batch, loss_fn, count, params)
    shapes = jax.eval_shape(one, batch_stats, strided, key, 0)[1]

    def add(part: Array, carry: tuple[Any, Any]) -> tuple[Any, Any]:
        batch_stats, parts = one(carry[0], strided, key, part)
        return batch_stats, jax.tree.map(jnp.add, carry[1], parts)

    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return lax.fori_loop(0, count, add, (batch_stats, zeros))


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
        axes: Only for `pmap`: its `in_axes` of the inputs, whose mapped axis is as long as the mesh.

    Returns:
        A jitted (or pmapped) function, with `lower` and so on.
    """
    mesh = device_mesh() if mesh is None else mesh

    def step(state: TrainState, inputs: Any, key: PRNGKeyArray) -> TrainState:
        data_key, model_key = jax.random.fold_in(key, 0), jax.random.fold_in(key, 1)
        batch = inputs if sample_batch is None else sample_batch(inputs, state.step, data_key)
        if mode == "jit":
            batch = lax.with_sharding_constraint(batch, jax.NamedSharding(mesh, jax.P(AXIS)))
        axis, model_key = None if mode == "jit" else AXIS, jax.random.fold_in(model_key, state.step)
        return train_step(loss_fn, tx, state, batch, model_key, grad_accum_steps=grad_accum_steps, axis_name=axis)

    if mode == "pmap":
        devices, in_axes = list(mesh.devices.flat), (None, axes, None)
        return jax.pmap(step, AXIS, in_axes=in_axes, out_axes=None, devices=devices, donate_argnums=0)
    return jax.jit(step, out_shardings=jax.NamedSharding(mesh, jax.P()), donate_argnums=0)
