"""Checkpoints by orbax, with a checksum of every leaf: what comes back is what was written, or an error of one line."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxinterp.errors import CheckpointError
from jaxinterp.provenance import crc32
from jaxinterp.train.state import TrainState
from jaxinterp.train.verify import (
    check_config,
    checksum,
    complete_steps,
    flatten_with_paths,
    leaf_specs,
    read_newest,
)

Which = Literal["last", "best"]


def _items(state: Any) -> dict[str, Any]:
    """The two trees of a checkpoint: what a model needs, and what else training needs."""
    training = {name: getattr(state, name) for name in ("step", "opt_state", "sums", "bad_step")}
    return {"variables": {"params": state.params, "batch_stats": state.batch_stats}, "training": training}


class Checkpoints:
    """The checkpoints of a run folder: the last few in `checkpoints/last`, the best one in `checkpoints/best`.

    Saving is asynchronous (the state may be donated at once) and atomic (a folder has its name when it is complete).
    Beside the trees each checkpoint has a `meta` with the shape, dtype and CRC32 of every leaf, the run's
    configuration, and a CRC32 of itself. Use as a context manager: leaving waits for what is being written.
    """

    def __init__(self, run_dir: str | Path, keep: int = 2) -> None:
        """Open the checkpoints of a run; folders are made when something is saved.

        Args:
            run_dir: The run folder.
            keep: How many of the last checkpoints to keep.
        """
        self.folders: dict[Which, Path] = {
            "last": Path(run_dir).absolute() / "checkpoints" / "last",
            "best": Path(run_dir).absolute() / "checkpoints" / "best",
        }
        self._keep: dict[Which, int] = {"last": keep, "best": 1}
        self._managers: dict[Which, Any] = {}

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Wait for what is being written, then let go of it; without this a save may be lost."""
        managers, self._managers = self._managers, {}
        for manager in managers.values():
            manager.close()

    def wait(self, which: Which) -> None:
        """Wait until what is being written is complete."""
        if which in self._managers:
            self._managers[which].wait_until_finished()

    def _manager(self, which: Which) -> Any:
        import orbax.checkpoint as ocp

        if which not in self._managers:
            options = ocp.CheckpointManagerOptions(
                max_to_keep=self._keep[which], cleanup_tmp_directories=True, enable_async_checkpointing=True
            )
            self._managers[which] = ocp.CheckpointManager(self.folders[which], options=options)
        return self._managers[which]

    def steps(self, which: Which = "last") -> list[int]:
        """Steps of the complete checkpoints, newest first."""
        return complete_steps(self.folders[which])

    def save(self, state: TrainState, meta: Mapping[str, Any], *, best: bool = False) -> None:
        """Begin to save a state; returns as soon as its buffers may be donated.

        Args:
            state: The state.
            meta: JSON values to keep with it; `config` is compared when it is restored.
            best: Save as the best checkpoint instead of as the last one.
        """
        import orbax.checkpoint as ocp

        items = _items(state)
        step = int(state.step)
        sealed = {
            "config": {},
            **meta,
            "step": step,
            "leaves": leaf_specs(items),
            "crc32": {path: crc32(leaf) for path, leaf in flatten_with_paths(items)},
        }
        sealed = json.loads(json.dumps(sealed))
        sealed["seal"] = checksum(sealed)
        if not best:
            self.wait("best")  # the last checkpoint never knows of a best one that is not there
        which: Which = "best" if best else "last"
        if step in self.steps(which):
            raise ValueError(f"step {step} is already saved in {self.folders[which]}")
        trees = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
        args = ocp.args.Composite(meta=ocp.args.JsonSave(sealed), **trees)
        if not self._manager(which).save(step, args=args, force=True):
            raise CheckpointError(f"checkpoint {self.folders[which] / str(step)} was not saved")

    def restore(
        self,
        target: TrainState,
        *,
        config: Mapping[str, Any] | None = None,
        which: Which = "last",
        allow_older: bool = False,
    ) -> tuple[TrainState, dict[str, Any], list[str]] | None:
        """Read and verify the newest checkpoint.

        Args:
            target: The state wanted, of `jax.ShapeDtypeStruct` (with shardings) or arrays.
            config: Must equal what was saved, if given.
            which: The last checkpoints, or the best one.
            allow_older: If the newest one is damaged, use the newest intact one; a foreign one is refused all the same.

        Returns:
            The state, its meta, and a line for every damaged checkpoint passed over; None if there is no checkpoint.

        Raises:
            CheckpointError: Truncated, damaged, or of another model, type or configuration.
        """
        found = read_newest(self.folders[which], _items(target), config, allow_older)
        if found is None:
            return None
        trees, meta, passed = found
        return TrainState(**trees["variables"], **trees["training"]), meta, passed

    def forget_after(self, step: int) -> None:
        """Remove checkpoints newer than a step: the run goes on from there, and will write them again."""
        if jax.process_index() == 0:
            for which in self.folders:
                for newer in (newer for newer in self.steps(which) if newer > step):
                    shutil.rmtree(self.folders[which] / str(newer))


def load_variables(
    run_dir: str | Path,
    model: nn.Module,
    input_shape: tuple[int, ...],
    which: Which = "last",
    allow_older: bool = False,
    same: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The variables of a trained model, verified.

    Args:
        run_dir: The run folder.
        model: The model that was trained (another dtype of computation is fine, other parameters are not). What is no
            parameter, such as the words of a code, cannot be told from another of the same shape: pass it as `same`.
        input_shape: Shape of one image, (H, W, C).
        which: `last` epoch, or `best` on the validation part.
        allow_older: If the newest checkpoint is damaged, use the newest intact one.
        same: Some of the values, by name, that were given to `fit` as `identity`; in others the run may differ.

    Returns:
        `{"params": ..., "batch_stats": ...}`, on the default device.

    Raises:
        CheckpointError: None there, damaged, of another model, or trained with other values than `same`.
    """
    image = jnp.zeros((1, *input_shape[-3:]), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    variables = {"params": shapes["params"], "batch_stats": shapes.get("batch_stats", {})}
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), variables)
    folder = Path(run_dir).absolute() / "checkpoints" / which
    found = read_newest(folder, {"variables": target}, None, allow_older)
    if found is None:
        raise CheckpointError(f"no checkpoint in {folder}")
    if same:
        written = found[1]["config"]
        check_config(folder / str(found[1]["step"]), {name: written.get(name) for name in same}, same)
    return found[0]["variables"]
