"""Checkpoints by orbax, with a checksum of every leaf: what comes back is what was written, or an error of one line."""

import gc
import json
import logging
import shutil
import sys
import time
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxinterp.checks import require
from jaxinterp.errors import CheckpointError
from jaxinterp.provenance import crc32
from jaxinterp.train.result import Which, best_record
from jaxinterp.train.step import TrainState


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
        """Open the checkpoints of a run, of which the last `keep` stay; folders are made when something is saved."""
        self.folder = Path(run_dir).absolute() / "checkpoints"
        require(not set(str(self.folder)) & set("*?[\\"), "run_dir", run_dir, "a path without *, ?, [ or backslash")
        self._keep = keep
        self._policy: Any = None
        self._manager: Any = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error: object) -> None:
        manager, self._manager = self._manager, None
        if manager is not None:
            manager.close()

    def wait(self) -> None:
        """Wait until what is being written is complete."""
        if self._manager is not None:
            self._manager.wait_until_finished()

    def steps(self) -> list[int]:
        """Return the steps of the complete checkpoints, newest first."""
        return _complete_steps(self.folder)

    def save(self, state: TrainState, meta: Mapping[str, Any]) -> None:
        """Begin to save a state; return as soon as its buffers may be donated.

        Of the JSON values `meta`, `fingerprint` is compared when it is restored, and `history` tells the best epoch.
        """
        import orbax.checkpoint as ocp
        from orbax.checkpoint import checkpoint_managers as managers

        items, step = _items(state), int(state.step)
        sums = {path: crc32(leaf) for path, leaf in _flatten_with_paths(items)}
        specs = {"leaves": _leaf_specs(items), "crc32": sums}
        sealed = {"fingerprint": {}, "history": [], **meta, "step": step, **specs}
        sealed = json.loads(json.dumps(sealed))
        sealed["seal"] = _checksum(sealed)
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
            CheckpointError: It is damaged, or of another model, type or configuration.
        """
        results = _read_checkpoint(self.folder, _items(target), fingerprint, which, allow_older)
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
        model: The model that was trained; another dtype of computation is fine, other parameters are not.
        input_shape: Shape of one image, (H, W, C).
        which: `last` epoch, or `best` on the validation part.
        allow_older: If the newest checkpoint is damaged, use the newest intact one.
        fingerprint: Values, by name, that must be those given to `fit`, such as the words of a code, which no
            parameter's shape tells from others.

    Returns:
        `{"params": ..., "batch_stats": ...}`, on the default device.

    Raises:
        CheckpointError: None there, damaged, of another model, or trained with another `fingerprint`.
    """
    image = jax.ShapeDtypeStruct((1, *input_shape[-3:]), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    variables = {"params": shapes["params"], "batch_stats": shapes.get("batch_stats", {})}
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    target = jax.tree.map(lambda leaf: leaf.update(sharding=sharding), variables)
    folder = Path(run_dir).absolute() / "checkpoints"
    results = _read_checkpoint(folder, {"variables": target}, None, which, allow_older)
    if results is None:
        raise CheckpointError(f"no checkpoint in {folder}")
    trees, meta, _ = results
    if fingerprint:
        written = {name: meta["fingerprint"].get(name) for name in fingerprint}
        _check_fingerprint(folder / str(meta["step"]), written, fingerprint)
    return dict(trees["variables"])


def _flatten_with_paths(tree: Any) -> list[tuple[str, Any]]:
    """Return the leaves of a tree with their paths."""
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def _leaf_specs(items: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return shape and dtype of every leaf, by path."""
    return {path: [list(leaf.shape), str(leaf.dtype)] for path, leaf in _flatten_with_paths(items)}


def _checksum(meta: Mapping[str, Any]) -> int:
    """Return the CRC32 of JSON values, whatever their order."""
    return zlib.crc32(json.dumps(meta, sort_keys=True).encode())


def _complete_steps(folder: Path) -> list[int]:
    """Return the steps of the complete checkpoints, newest first; orbax renames a folder when it is complete."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted((int(name) for name in names if name.isdecimal()), reverse=True)


@contextmanager
def _quietly() -> Iterator[None]:
    """Silence the reads that a failed one leaves behind: in other threads, after the error (orbax 0.12 still does)."""
    hook, log = sys.unraisablehook, logging.getLogger("asyncio")
    disabled, sys.unraisablehook, log.disabled = log.disabled, lambda _: None, True
    try:
        with warnings.catch_warnings(action="ignore", category=RuntimeWarning):
            yield
    finally:
        sys.unraisablehook, log.disabled = hook, disabled


def _read_item(path: Path, name: str, args: Any) -> Any:
    import orbax.checkpoint as ocp

    with _quietly():
        try:
            with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
                return reader.restore(path, args=ocp.args.Composite(**{name: args}))[name]
        except Exception as error:  # whatever damage makes orbax and its storage raise
            reason = f"{type(error).__name__}: {str(error).strip()}".splitlines()[0][:140]
        time.sleep(0.05)  # until they end
        gc.collect()
    raise CheckpointError(f"checkpoint {path} is damaged ({name}: {reason})")


def _read_meta(path: Path) -> dict[str, Any]:
    import orbax.checkpoint as ocp

    meta = _read_item(path, "meta", ocp.args.JsonRestore())
    if not isinstance(meta, dict) or meta.pop("seal", None) != _checksum(meta) or str(meta["step"]) != path.name:
        raise CheckpointError(f"checkpoint {path} is damaged (meta: its checksum does not match)")
    return meta


def _check_leaves(path: Path, written: Mapping[str, Any], items: Mapping[str, Any]) -> None:
    """Compare names, shapes and dtypes of the leaves wanted with those written, before anything is read."""
    wanted = _leaf_specs(items)
    written = {leaf: spec for leaf, spec in written.items() if any(leaf.startswith(f"['{item}']") for item in items)}
    for leaf in sorted(wanted.keys() | written.keys()):
        if wanted.get(leaf) != written.get(leaf):
            specs = (wanted.get(leaf), written.get(leaf))
            here, there = ("no such leaf" if spec is None else f"{spec[1]} {tuple(spec[0])}" for spec in specs)
            raise CheckpointError(f"checkpoint {path} is of another model: {leaf} is {there} in it, expected {here}")


def _check_fingerprint(path: Path, written: Mapping[str, Any], fingerprint: Mapping[str, Any]) -> None:
    """Raise for a checkpoint that was written with other values than these, and name the first."""
    for name in sorted(written.keys() | fingerprint.keys()):
        there, here = (" ".join(str(values.get(name)).split()) for values in (written, fingerprint))
        if there != here:
            split = next((i for i, (a, b) in enumerate(zip(there, here, strict=False)) if a != b), 0)
            split = max(0, min(split, min(len(there), len(here))) - 30)
            there, here = (text if len(text) <= 80 else f"...{text[split : split + 80]}..." for text in (there, here))
            change = f"{name} was {there}, now it is {here}"
            raise CheckpointError(f"checkpoint {path} is of another configuration: {change}")


def _best_path(folder: Path, meta: Mapping[str, Any]) -> Path:
    """Return the checkpoint of the best epoch of a history."""
    record = best_record(meta["history"])
    if record is None:
        raise CheckpointError(f"no best checkpoint in {folder}: no epoch was evaluated on validation data")
    path = folder / str(record["step"])
    if not path.is_dir():
        raise CheckpointError(f"no best checkpoint in {folder}: step {path.name} is missing")
    return path


def _read(
    path: Path, items: Mapping[str, Any], fingerprint: Mapping[str, Any] | None, which: Which
) -> tuple[Any, dict[str, Any]]:
    import orbax.checkpoint as ocp

    meta = _read_meta(path)
    if which == "best":
        path = _best_path(path.parent, meta)
        meta = _read_meta(path)
    if fingerprint is not None:
        _check_fingerprint(path, meta["fingerprint"], fingerprint)
    _check_leaves(path, meta["leaves"], items)
    trees = {name: _read_item(path, name, ocp.args.StandardRestore(tree)) for name, tree in items.items()}
    if _leaf_specs(trees) != _leaf_specs(items):
        raise CheckpointError(f"checkpoint {path} is damaged (shapes or types of its leaves differ from its meta)")
    for leaf, value in _flatten_with_paths(trees):
        if crc32(value) != meta["crc32"][leaf]:
            raise CheckpointError(f"checkpoint {path} is damaged (the checksum of {leaf} does not match)")
    return trees, meta


def _read_checkpoint(
    folder: Path,
    items: Mapping[str, Any],
    fingerprint: Mapping[str, Any] | None = None,
    which: Which = "last",
    allow_older: bool = False,
) -> tuple[Any, dict[str, Any], list[str]] | None:
    """Read and verify some trees, given as trees of `jax.ShapeDtypeStruct`; see `Checkpoints.restore`."""
    errors: list[str] = []
    for step in _complete_steps(folder):
        try:
            return *_read(folder / str(step), items, fingerprint, which), errors
        except CheckpointError as error:
            errors.append(str(error))
            if not allow_older or "damaged" not in str(error):
                break
    if not errors:
        return None
    hint = "`jaxinterp train --allow-older` (allow_older=True) uses the last intact one, if any."
    hint = ". " + ("No older one is intact." if allow_older else hint)
    raise CheckpointError(errors[0] + (hint if "damaged" in errors[0] else ""))
