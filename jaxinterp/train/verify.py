"""Read checkpoints back: every leaf is compared with what was written, or there is an error of one line."""

import gc
import json
import logging
import sys
import time
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from jaxinterp.errors import CheckpointError
from jaxinterp.provenance import crc32
from jaxinterp.train.result import Which, best_record


def flatten_with_paths(tree: Any) -> list[tuple[str, Any]]:
    """Return the leaves of a tree with their paths."""
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def leaf_specs(items: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return shape and dtype of every leaf, by path."""
    return {path: [list(leaf.shape), str(leaf.dtype)] for path, leaf in flatten_with_paths(items)}


def checksum(meta: Mapping[str, Any]) -> int:
    """Return the CRC32 of JSON values, whatever their order."""
    return zlib.crc32(json.dumps(meta, sort_keys=True).encode())


def complete_steps(folder: Path) -> list[int]:
    """Return the steps of the complete checkpoints, newest first; orbax renames a folder when it is complete."""
    if not folder.is_dir():
        return []
    return sorted((int(path.name) for path in folder.iterdir() if path.name.isdecimal()), reverse=True)


@contextmanager
def _quietly() -> Iterator[None]:
    """Silence the reads that a failed one leaves behind: they complain, in other threads, after the error."""
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
    if not isinstance(meta, dict) or meta.pop("seal", None) != checksum(meta) or str(meta["step"]) != path.name:
        raise CheckpointError(f"checkpoint {path} is damaged (meta: its checksum does not match)")
    return meta


def _check_leaves(path: Path, written: Mapping[str, Any], items: Mapping[str, Any]) -> None:
    """Compare names, shapes and dtypes of the leaves wanted with those written, before anything is read."""
    wanted = leaf_specs(items)
    written = {leaf: spec for leaf, spec in written.items() if any(leaf.startswith(f"['{item}']") for item in items)}
    for leaf in sorted(wanted.keys() | written.keys()):
        if wanted.get(leaf) != written.get(leaf):
            here, there = (
                "no such leaf" if spec is None else f"{spec[1]} {tuple(spec[0])}"
                for spec in (wanted.get(leaf), written.get(leaf))
            )
            raise CheckpointError(f"checkpoint {path} is of another model: {leaf} is {there} in it, expected {here}")


def check_fingerprint(path: Path, written: Mapping[str, Any], fingerprint: Mapping[str, Any]) -> None:
    """Raise for a checkpoint that was written with other values than these, and name the first."""
    for name in sorted(written.keys() | fingerprint.keys()):
        there, here = (" ".join(str(values.get(name)).split()) for values in (written, fingerprint))
        if there != here:
            split = next((i for i, (a, b) in enumerate(zip(there, here, strict=False)) if a != b), 0)
            split = max(0, min(split, min(len(there), len(here))) - 30)
            there, here = (text if len(text) <= 80 else f"...{text[split : split + 80]}..." for text in (there, here))
            raise CheckpointError(
                f"checkpoint {path} is of another configuration: {name} was {there}, now it is {here}"
            )


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
        check_fingerprint(path, meta["fingerprint"], fingerprint)
    _check_leaves(path, meta["leaves"], items)
    trees = {name: _read_item(path, name, ocp.args.StandardRestore(tree)) for name, tree in items.items()}
    if leaf_specs(trees) != leaf_specs(items):
        raise CheckpointError(f"checkpoint {path} is damaged (shapes or types of its leaves differ from its meta)")
    for leaf, value in flatten_with_paths(trees):
        if crc32(value) != meta["crc32"][leaf]:
            raise CheckpointError(f"checkpoint {path} is damaged (the checksum of {leaf} does not match)")
    return trees, meta


def read_checkpoint(
    folder: Path,
    items: Mapping[str, Any],
    fingerprint: Mapping[str, Any] | None = None,
    which: Which = "last",
    allow_older: bool = False,
) -> tuple[Any, dict[str, Any], list[str]] | None:
    """Read and verify some trees, given as trees of `jax.ShapeDtypeStruct`, of the last or the best checkpoint.

    Returns:
        The trees, the meta, and the errors of damaged checkpoints passed over, as far as `allow_older` permits; None
        if there is no checkpoint.
    """
    errors: list[str] = []
    for step in complete_steps(folder):
        try:
            return *_read(folder / str(step), items, fingerprint, which), errors
        except CheckpointError as error:
            errors.append(str(error))
            if not allow_older or "damaged" not in str(error):
                break
    if not errors:
        return None
    hint = (
        " No older one is intact."
        if allow_older
        else " `jaxinterp train --allow-older` (allow_older=True) uses the last intact one, if any."
    )
    raise CheckpointError(errors[0] + ("." + hint if "damaged" in errors[0] else ""))
