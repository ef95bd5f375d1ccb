"""Files that are there as they were, or as they are to be, and never half-written."""

import io
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxinterp.errors import ConfigError


def write_text(path: Path, text: str) -> None:
    """Write a whole text file or none, in UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file or none: to a neighbor first, then over the old one in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a whole .npz file of named arrays or none."""
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)  # type: ignore[arg-type]  # its flags come by name too
    write_bytes(path, content.getvalue())


def check_folder(path: Path) -> None:
    """Refuse, before the work, a folder that could not be made or written to afterwards; nothing is made.

    Raises:
        ConfigError: the folder, or one above it, is a file or may not be written to.
    """
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not there.is_dir():
        raise ConfigError(f"{path}: expected a folder, {there} is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"{path}: {there} may not be written to")
