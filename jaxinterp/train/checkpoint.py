"""Checkpoints by orbax, with a checksum of every leaf: what comes back is what was written, or an error of one line."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxinterp.checks import require
from jaxinterp.errors import CheckpointError
from jaxinterp.provenance import crc32
from jaxinterp.train.result import Which, best_record
from jaxinterp.train.state import TrainState
from jaxinterp.train.verify import (
    check_fingerprint,
    checksum,
    complete_steps,
    flatten_with_paths,
    leaf_specs,
    read_checkpoint,
)


def _items(state: Any) -> dict[str, Any]:
    """Split a state into what a model needs and what else training needs."""
    training = {name: getattr(state, name) for name in ("step", "opt_state", "sums", "bad_step")}
    return {"variables": state.variables, "training": training}


class Checkpoints:
    """The checkpoints of a run, `<run_dir>/checkpoints/<step>`: the last few, and the best one.

    Saving is asynchronous (the state may be donated at once) and atomic (a folder has its name when it is complete).
    Beside the trees each checkpoint has a `meta` with the shape, dtype and CRC32 of every leaf, the run's fingerprint
    and history, and a CRC32 of itself. Use as a context manager: leaving waits for what is being written.
    """

    def __init__(self, run_dir: str | Path, keep: int = 2) -> None:
        """Open the checkpoints of a run; folders are made when something is saved.

        Args:
            run_dir: The run folder.
            keep: How many of the last checkpoints to keep.

        Raises:
            ConfigError: The path holds a star, question mark, bracket or backslash, which orbax takes for a pattern.
        """
        self.folder = Path(run_dir).absolute() / "checkpoints"
        require(not set(str(self.folder)) & set("*?[\\"), "run_dir", run_dir, "a path without *, ?, [ or backslash")
        self._keep = keep
        self._policy: Any = None
        self._manager: Any = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Wait for what is being written, then let go of it; without this a save may be lost."""
        manager, self._manager = self._manager, None
        if manager is not None:
            manager.close()

    def wait(self) -> None:
        """Wait until what is being written is complete."""
        if self._manager is not None:
            self._manager.wait_until_finished()

    def steps(self) -> list[int]:
        """Return the steps of the complete checkpoints, newest first."""
        return complete_steps(self.folder)

    def save(self, state: TrainState, meta: Mapping[str, Any]) -> None:
        """Begin to save a state; returns as soon as its buffers may be donated.

        Args:
            state: The state.
            meta: JSON values to keep with it: `fingerprint` is compared when it is restored, and `history` tells the
                best epoch, whose checkpoint is kept.
        """
        import orbax.checkpoint as ocp
        from orbax.checkpoint import checkpoint_managers as managers

        items, step = _items(state), int(state.step)
        sealed = {
            "fingerprint": {},
            "history": [],
            **meta,
            "step": step,
            "leaves": leaf_specs(items),
            "crc32": {path: crc32(leaf) for path, leaf in flatten_with_paths(items)},
        }
        sealed = json.loads(json.dumps(sealed))
        sealed["seal"] = checksum(sealed)
        best = best_record(sealed["history"])
        # Orbax's `BestN` reads the metrics back from a file without a checksum; here the sealed history decides.
        policies = [managers.LatestN(self._keep), managers.CustomSteps([] if best is None else [best["step"]])]
        if self._manager is None:
            self._policy = managers.AnyPreservationPolicy(policies)
            options = ocp.CheckpointManagerOptions(preservation_policy=self._policy, cleanup_tmp_directories=True)
            self._manager = ocp.CheckpointManager(self.folder, options=options)
        self.wait()
        self._policy.policies = policies
        trees = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
        self._manager.save(step, args=ocp.args.Composite(meta=ocp.args.JsonSave(sealed), **trees), force=True)

    def restore(
        self,
        target: TrainState,
        *,
        fingerprint: Mapping[str, Any] | None = None,
        which: Which = "last",
        allow_older: bool = False,
    ) -> tuple[TrainState, dict[str, Any], list[str]] | None:
        """Read and verify the newest checkpoint, or that of the best epoch.

        Args:
            target: The state wanted, of `jax.ShapeDtypeStruct` (with shardings) or arrays.
            fingerprint: Must equal what was saved, if given.
            which: The last checkpoint, or the best one.
            allow_older: If the newest one is damaged, use the newest intact one; a foreign one raises all the same.

        Returns:
            The state, its meta, and a line for every damaged checkpoint passed over; None if there is no checkpoint.

        Raises:
            CheckpointError: Truncated, damaged, or of another model, type or configuration.
        """
        results = read_checkpoint(self.folder, _items(target), fingerprint, which, allow_older)
        if results is None:
            return None
        trees, meta, errors = results
        return TrainState(**trees["variables"], **trees["training"]), meta, errors

    def delete_after(self, step: int) -> None:
        """Delete checkpoints newer than a step: the run goes on from there, and will write them again."""
        if jax.process_index() == 0:
            for newer in (newer for newer in self.steps() if newer > step):
                shutil.rmtree(self.folder / str(newer))


def load_variables(
    run_dir: str | Path,
    model: nn.Module,
    input_shape: tuple[int, ...],
    which: Which = "last",
    allow_older: bool = False,
    fingerprint: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Load the variables of a trained model, verified.

    Args:
        run_dir: The run folder.
        model: The model that was trained (another dtype of computation is fine, other parameters are not). What is no
            parameter, such as the words of a code, cannot be told from another of the same shape: see `fingerprint`.
        input_shape: Shape of one image, (H, W, C).
        which: `last` epoch, or `best` on the validation part.
        allow_older: If the newest checkpoint is damaged, use the newest intact one.
        fingerprint: Some of the values, by name, that were given to `fit`; in others the run may differ.

    Returns:
        `{"params": ..., "batch_stats": ...}`, on the default device.

    Raises:
        CheckpointError: None there, damaged, of another model, or trained with another `fingerprint`.
    """
    image = jax.ShapeDtypeStruct((1, *input_shape[-3:]), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    variables = {"params": shapes["params"], "batch_stats": shapes.get("batch_stats", {})}
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), variables)
    folder = Path(run_dir).absolute() / "checkpoints"
    results = read_checkpoint(folder, {"variables": target}, None, which, allow_older)
    if results is None:
        raise CheckpointError(f"no checkpoint in {folder}")
    trees, meta, _ = results
    if fingerprint:
        written = {name: meta["fingerprint"].get(name) for name in fingerprint}
        check_fingerprint(folder / str(meta["step"]), written, fingerprint)
    return dict(trees["variables"])
