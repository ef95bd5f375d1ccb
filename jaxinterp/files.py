"""Atomic writes: a file holds its old content or the new one, never half of it."""

import io
import os
import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxinterp.errors import ConfigError


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically: to a temporary neighbor first, which then replaces the old file in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{os.getpid()}-{threading.get_ident()}.partial")  # short, whatever the name
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an .npz file of named arrays atomically."""
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)  # type: ignore[arg-type]  # its flags come by name too
    write_bytes(path, content.getvalue())


def check_folder(path: Path) -> None:
    """Raise ConfigError, before the work, if a folder could not be made or written to; nothing is made."""
    existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not existing.is_dir():
        raise ConfigError(f"{path}: expected a folder, {existing} is a file")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f"{path}: {existing} may not be written to")
