"""The state of a training run: everything that the next step depends on, and nothing else."""

from collections.abc import Mapping
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import PRNGKeyArray

from jaxinterp.nn.losses import Batch, LossFn

AXIS = "batch"
"""Name of the one axis of the device mesh, and of the mapped axis under `pmap`."""


@flax.struct.dataclass
class TrainState:
    """State of a training run, a pytree, so that it can be donated, sharded and saved.

    The leaves are arrays, or what JAX puts in their place (shapes, shardings), so their types are not annotated.

    Attributes:
        step: Number of steps taken, an int32 scalar.
        params: Parameters of the model.
        batch_stats: Running statistics of BatchNorm; `{}` for a model without them.
        opt_state: State of the optimizer.
        sums: Sums over the steps of the current epoch: one per metric, and `count`, the number of
            steps; float32 scalars.
        bad_step: An int32 scalar: -1, or the number (counted from 1) of the first step whose loss, gradient norm or
            parameter norm was not finite.
    """

    step: Any
    params: Any
    batch_stats: Any
    opt_state: Any
    sums: dict[str, Any]
    bad_step: Any

    @property
    def variables(self) -> dict[str, Any]:
        """Collections that `model.apply` takes."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def init_state(
    model: nn.Module, loss_fn: LossFn, tx: optax.GradientTransformation, key: PRNGKeyArray, batch: Batch
) -> TrainState:
    """Make the state before the first step.

    Args:
        model: A Flax model called as `model.apply(variables, image, train=bool)`.
        loss_fn: The loss; it is traced for the names of its metrics, not run.
        tx: The optimizer.
        key: Key of the initial parameters.
        batch: A batch, or its shapes and dtypes (`jax.ShapeDtypeStruct`).

    Returns:
        A state at step 0 with empty sums.
    """
    image = batch["image"]
    variables: Mapping[str, Any] = model.init(key, jnp.zeros((1, *image.shape[1:]), image.dtype))
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype), dict(batch))
    trace = jax.vmap(loss_fn, in_axes=(None, None, 0, None), axis_name=AXIS)  # binds the axis of BatchNorm
    _, (_, metrics) = jax.eval_shape(trace, params, batch_stats, one, key)
    return TrainState(
        step=jnp.int32(0),
        params=params,
        batch_stats=batch_stats,
        opt_state=tx.init(params),
        sums={name: jnp.float32(0) for name in (*metrics, "count")},
        bad_step=jnp.int32(-1),
    )


def start_epoch(state: TrainState) -> TrainState:
    """Return the state with the sums of the epoch set to zero."""
    return state.replace(sums=jax.tree.map(jnp.zeros_like, state.sums))  # type: ignore[attr-defined]
