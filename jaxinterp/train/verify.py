"""Reading a checkpoint back: every leaf is compared with what was written, or there is an error of one line."""

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


def flatten_with_paths(tree: Any) -> list[tuple[str, Any]]:
    """The leaves of a tree with their paths."""
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def leaf_specs(items: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Shape and dtype of every leaf, by path."""
    return {path: [list(leaf.shape), str(leaf.dtype)] for path, leaf in flatten_with_paths(items)}


def checksum(meta: Mapping[str, Any]) -> int:
    """Checksum of JSON values, whatever their order."""
    return zlib.crc32(json.dumps(meta, sort_keys=True).encode())


def complete_steps(folder: Path) -> list[int]:
    """Steps of the complete checkpoints of a folder, newest first; orbax renames a folder when it is complete."""
    if not folder.is_dir():
        return []
    return sorted((int(path.name) for path in folder.iterdir() if path.name.isdecimal()), reverse=True)


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:120]}" if text else type(error).__name__


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep to the one line of the error: the reads that a failed one leaves behind would complain when they end."""
    hook, log = sys.unraisablehook, logging.getLogger("asyncio")
    was, sys.unraisablehook, log.disabled = log.disabled, lambda _: None, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            yield
    finally:
        sys.unraisablehook, log.disabled = hook, was


def _read_item(path: Path, name: str, args: Any) -> Any:
    import orbax.checkpoint as ocp

    with _quietly():
        try:
            with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
                return reader.restore(path, args=ocp.args.Composite(**{name: args}))[name]
        except Exception as error:  # whatever damage makes orbax and its storage raise
            reason = _first_line(error)
        time.sleep(0.05)  # time for them to end
        gc.collect()
    raise CheckpointError(f"checkpoint {path} is damaged ({name}: {reason})")


def _read_meta(path: Path) -> dict[str, Any]:
    import orbax.checkpoint as ocp

    meta = _read_item(path, "meta", ocp.args.JsonRestore())
    if not isinstance(meta, dict) or meta.pop("seal", None) != checksum(meta) or str(meta["step"]) != path.name:
        raise CheckpointError(f"checkpoint {path} is damaged (meta: its checksum does not match)")
    return meta


def _check_table(path: Path, written: Mapping[str, Any], items: Mapping[str, Any]) -> None:
    """Compare names, shapes and dtypes of the leaves wanted with those written, before anything is read."""
    wanted = leaf_specs(items)
    written = {leaf: entry for leaf, entry in written.items() if any(leaf.startswith(f"['{item}']") for item in items)}
    for leaf in sorted(wanted.keys() | written.keys()):
        if wanted.get(leaf) != written.get(leaf):
            here, there = (
                "no such leaf" if entry is None else f"{entry[1]} {tuple(entry[0])}"
                for entry in (wanted.get(leaf), written.get(leaf))
            )
            raise CheckpointError(f"checkpoint {path} is of another model: {leaf} is {there} in it, expected {here}")


def check_config(path: Path, written: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Refuse a checkpoint that was written with other values than these, and name the first."""
    for name in sorted(written.keys() | config.keys()):
        there, here = (" ".join(str(values.get(name)).split()) for values in (written, config))
        if there != here:
            split = next((i for i, (a, b) in enumerate(zip(there, here, strict=False)) if a != b), 0)
            split = max(0, min(split, min(len(there), len(here))) - 30)
            there, here = (text if len(text) <= 80 else f"...{text[split : split + 80]}..." for text in (there, here))
            raise CheckpointError(
                f"checkpoint {path} is of another configuration: {name} was {there}, now it is {here}"
            )


def _read(path: Path, items: Mapping[str, Any], config: Mapping[str, Any] | None) -> tuple[Any, dict[str, Any]]:
    """Read and verify some of a checkpoint's trees, given as trees of `jax.ShapeDtypeStruct`."""
    import orbax.checkpoint as ocp

    meta = _read_meta(path)
    if config is not None:
        check_config(path, meta["config"], config)
    _check_table(path, meta["leaves"], items)
    trees = {name: _read_item(path, name, ocp.args.StandardRestore(tree)) for name, tree in items.items()}
    if leaf_specs(trees) != leaf_specs(items):
        raise CheckpointError(
            f"checkpoint {path} is damaged (its leaves have other shapes or types than its meta says)"
        )
    for leaf, value in flatten_with_paths(trees):
        if crc32(value) != meta["crc32"][leaf]:
            raise CheckpointError(f"checkpoint {path} is damaged (the checksum of {leaf} does not match)")
    return trees, meta


def read_newest(
    folder: Path, items: Mapping[str, Any], config: Mapping[str, Any] | None, allow_older: bool
) -> tuple[Any, dict[str, Any], list[str]] | None:
    """The newest checkpoint; or, if allowed, the newest intact one, with the errors of those passed over."""
    passed: list[str] = []
    for step in complete_steps(folder):
        try:
            return *_read(folder / str(step), items, config), passed
        except CheckpointError as error:
            passed.append(str(error))
            if not allow_older or "damaged" not in str(error):
                break
    if not passed:
        return None
    hint = (
        " No older one is intact."
        if allow_older
        else " `jaxinterp train --allow-older` (allow_older=True) uses the last intact one, if any."
    )
    raise CheckpointError(passed[0] + ("." + hint if "damaged" in passed[0] else ""))
