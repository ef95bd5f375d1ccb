"""Checkpoints by orbax, with a checksum of every leaf: what comes back is what was written, or an error of one line."""

import gc
import json
import logging
import re
import shutil
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from jaxinterp.errors import CheckpointError
from jaxinterp.files import sealed, unsealed, write_json
from jaxinterp.nn.weights import variable_shapes
from jaxinterp.provenance import crc32
from jaxinterp.train.result import Which, best_record
from jaxinterp.train.step import TrainState

NEWEST = "newest.json"  # file, within a run's folder, of the step of its newest checkpoint
TEMPORARY = ".orbax-checkpoint-tmp"  # end of the name of a folder that is being written


def _items(state: Any) -> dict[str, Any]:
    """Split a state into what a model needs and what else training needs."""
    training = {name: getattr(state, name) for name in ("step", "opt_state", "sums", "bad_step")}
    return {"variables": state.variables, "training": training}


class Checkpoints:
    """The checkpoints of a run, `<run_dir>/checkpoints/<step>`: the last few, and the best one.

    Saving is asynchronous (the state may be donated at once) and atomic (a folder has its name when it is complete).
    Beside the trees each checkpoint has a `meta` with the shape, dtype and CRC32 of every leaf, the run's fingerprint
    and history, and a CRC32 of itself. What was written is read back before an older one is deleted. The newest step
    stands in `<run_dir>/newest.json`, so that its absence is noticed. Use as a context manager: leaving waits for
    what is being written.
    """

    def __init__(self, run_dir: str | Path, keep: int = 2) -> None:
        """Open the checkpoints of a run, of which the last `keep` stay; folders are made when something is saved."""
        self.folder = Path(run_dir).absolute() / "checkpoints"
        self._keep = keep
        self._writer: Any = None
        self._unread: tuple[int, dict[str, Any], Mapping[str, Any] | None] | None = None
        self._stack = ExitStack()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: Any, error: object, trace: object) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            writer, self._writer = self._writer, None
            with self._stack:
                if writer is not None:
                    with suppress(Exception):  # was raised by `wait`, or another error is on its way
                        writer.close()

    def wait(self) -> None:
        """Wait until what is being written is complete, read it back, and delete what need not be kept.

        Raises:
            CheckpointError: It could not be written, or reads back as something else; older ones are kept.
        """
        if self._unread is None:
            return
        (step, items, best), self._unread = self._unread, None
        with self._writing(step):
            self._writer.wait_until_finished()
        _read(self.folder / str(step), items, None, "last")
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("jaxinterp.train.saved")
        if jax.process_index() == 0:
            write_json(self.folder.with_name(NEWEST), {"step": step})
            steps = self.steps()
            kept = {*steps[: self._keep], *([] if best is None else [best["step"]])}
            for older in set(steps) - kept:
                _delete(self.folder / str(older))

    def steps(self) -> list[int]:
        """Return the steps of the complete checkpoints, newest first."""
        return _complete_steps(self.folder)

    def save(self, state: TrainState, meta: Mapping[str, Any]) -> None:
        """Begin to save a state; return as soon as its buffers may be donated.

        Of the JSON values `meta`, `fingerprint` is compared when it is restored, and `history` tells the best epoch.

        Raises:
            CheckpointError: The disk is full, or the folder may not be written to.
        """
        import orbax.checkpoint as ocp

        self.wait()
        items, step = _items(state), int(state.step)
        sums = {path: crc32(leaf) for path, leaf in _flatten_with_paths(items)}
        specs = {"leaves": _leaf_specs(items), "crc32": sums}
        content = sealed({"fingerprint": {}, "history": [], **meta, "step": step, **specs})
        trees = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
        with self._writing(step):
            if self._writer is None:
                self._folder = self._stack.enter_context(_plain(self.folder))
                self._stack.enter_context(_silently("absl"))  # what orbax logs is raised as well
                self._stack.enter_context(_without_loops())
                if jax.process_index() == 0:
                    self.folder.mkdir(parents=True, exist_ok=True)
                    for left in (*self.folder.glob(f"*{TEMPORARY}*"), *self.folder.glob("*.deleted")):
                        shutil.rmtree(left)
                self._writer = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())
            self._writer.save(
                self._folder / str(step), args=ocp.args.Composite(meta=ocp.args.JsonSave(content), **trees)
            )
        on_host = {name: jax.tree.map(_on_host, tree) for name, tree in items.items()}
        self._unread = step, on_host, best_record(content["history"])

    @contextmanager
    def _writing(self, step: int) -> Iterator[None]:
        """Let what orbax and its storage raise be one line."""
        try:
            yield
        except Exception as error:
            self._unread = None
            reason = re.search(r"No space left on device|Permission denied|Read-only file system", f"{error}")
            text = reason[0] if reason else f"{type(error).__name__}: {error}".strip().splitlines()[0][:140]
            time.sleep(0.2)  # until other threads have failed as well
            for left in self.folder.glob(f"{step}{TEMPORARY}*"):
                shutil.rmtree(left, ignore_errors=True)
            raise CheckpointError(f"checkpoint {self.folder / str(step)} could not be written ({text})") from error

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
            allow_older: If the newest one is damaged or missing, use the newest intact one; a foreign one raises all
                the same.

        Returns:
            The state, its meta, and a line for every checkpoint passed over; None if there is no checkpoint.

        Raises:
            CheckpointError: It is damaged, or of another model, type or configuration.
        """
        results = _read_checkpoint(self.folder, _items(target), fingerprint, which, allow_older)
        if results is None:
            return None
        trees, meta, errors = results
        return TrainState(**trees["variables"], **trees["training"]), meta, errors

    def set_aside_after(self, step: int) -> list[Path]:
        """Rename checkpoints newer than a step, as the run goes on from there and will write them again."""
        aside = list[Path]()
        if jax.process_index() == 0:
            for newer in (newer for newer in self.steps() if newer > step):
                names = (self.folder / f"{newer}.damaged-{number}" for number in count(1))
                aside.append(next(path for path in names if not path.exists()))
                (self.folder / str(newer)).rename(aside[-1])
        return aside


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
        allow_older: If the newest checkpoint is damaged or missing, use the newest intact one.
        fingerprint: Values, by name, that must be those given to `fit`, such as the words of a code, which no
            parameter's shape tells from others.

    Returns:
        `{"params": ..., "batch_stats": ...}`, on the default device.

    Raises:
        CheckpointError: None there, damaged, of another model, or trained with another `fingerprint`.
    """
    shapes = variable_shapes(model, input_shape[-3:])
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


def _on_host(leaf: Any) -> Any:
    """Return what tells orbax to read a leaf as a NumPy array, without memory of its own; keys stay on their device."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
    return np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)


@contextmanager
def _plain(folder: Path) -> Iterator[Path]:
    """Yield a path of plain characters, a link if need be: orbax takes `[`, `*` and others for a pattern."""
    if re.fullmatch(r"[\w./ +=,@~-]*", str(folder)):
        yield folder
        return
    with TemporaryDirectory(prefix="jaxinterp-") as temporary:
        link = Path(temporary) / "folder"
        link.symlink_to(folder, target_is_directory=True)
        yield link


def _delete(folder: Path) -> None:
    """Delete a checkpoint so that half of one never has its name."""
    left = folder.with_name(f"{folder.name}.deleted")
    folder.rename(left)
    shutil.rmtree(left, ignore_errors=True)


def _complete_steps(folder: Path) -> list[int]:
    """Return the steps of the complete checkpoints, newest first; orbax renames a folder when it is complete."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted((int(name) for name in names if name.isdecimal()), reverse=True)


def _newest(folder: Path) -> int:
    """Return the step of the newest checkpoint that was completed, whether it is still there or not; 0 if none was."""
    path = folder.with_name(NEWEST)
    try:
        return int(unsealed(json.loads(path.read_text(encoding="utf-8")))["step"])
    except FileNotFoundError:
        return 0
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); remove it to go on without it") from error


@contextmanager
def _silently(name: str) -> Iterator[None]:
    """Disable a logger."""
    log = logging.getLogger(name)
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


@contextmanager
def _without_loops() -> Iterator[None]:
    """Print nothing of a write in another thread that ends after the one that failed, and with it its event loop."""
    hook = sys.excepthook
    sys.excepthook = lambda kind, error, trace: None if "loop is closed" in str(error) else hook(kind, error, trace)
    try:
        yield
        gc.collect()
    finally:
        sys.excepthook = hook


@contextmanager
def _quietly() -> Iterator[None]:
    """Silence the reads that a failed one leaves behind: in other threads, after the error (orbax 0.12 still does)."""
    hook = sys.unraisablehook
    sys.unraisablehook = lambda fault: hook(fault) if fault.exc_type is KeyboardInterrupt else None
    try:
        with _silently("asyncio"), warnings.catch_warnings(action="ignore", category=RuntimeWarning):
            yield
    finally:
        sys.unraisablehook = hook


def _read_item(path: Path, name: str, args: Any) -> Any:
    import orbax.checkpoint as ocp

    with _quietly():
        try:
            with _plain(path) as plain, ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
                return reader.restore(plain, args=ocp.args.Composite(**{name: args}))[name]
        except Exception as error:  # whatever damage makes orbax and its storage raise
            reason = f"{type(error).__name__}: {str(error).strip()}".splitlines()[0][:140]
        time.sleep(0.05)  # until they end
        gc.collect()
    raise CheckpointError(f"checkpoint {path} is damaged ({name}: {reason})")


def _read_meta(path: Path) -> dict[str, Any]:
    import orbax.checkpoint as ocp

    meta = _read_item(path, "meta", ocp.args.JsonRestore())
    try:
        values = unsealed(meta)
        if "seal" in meta and str(values["step"]) == path.name:
            return values
    except (ValueError, KeyError):
        pass
    raise CheckpointError(f"checkpoint {path} is damaged (meta: its checksum does not match)")


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
    errors, steps = list[str](), _complete_steps(folder)
    if (newest := _newest(folder)) > max(steps, default=0):
        errors.append(f"checkpoint {folder / str(newest)}, the newest one, is missing")
    for step in steps if allow_older or not errors else ():
        try:
            return *_read(folder / str(step), items, fingerprint, which), errors
        except CheckpointError as error:
            errors.append(str(error))
            if not allow_older or "damaged" not in str(error):
                break
    if not errors or (allow_older and not steps):
        return None
    hint = "`jaxinterp train --allow-older` (allow_older=True) uses the last intact one, if any."
    hint = ". " + ("No older one is intact." if allow_older else hint)
    raise CheckpointError(errors[0] + (hint if re.search("damaged|missing$", errors[0]) else ""))
