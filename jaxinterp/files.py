"""Atomic writes: a file holds its old content or the new one, never half of it."""

import io
import json
import os
import threading
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON object with the CRC32 of what it holds as its last key, `seal`.

    Example:
        >>> sealed({"step": 4})
        {'step': 4, 'seal': 1206936952}
        >>> unsealed(sealed({"step": 4}))
        {'step': 4}
    """
    values = json.loads(json.dumps(content))
    return {**values, "seal": _crc32(values)}


def unsealed(content: Any) -> dict[str, Any]:
    """Return a JSON object without its seal; one that never had a seal passes.

    Raises:
        ValueError: It is no object, or has changed since it was sealed.
    """
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")
    values = {key: value for key, value in content.items() if key != "seal"}
    if content.get("seal", _crc32(values)) != _crc32(values):
        raise ValueError("its checksum does not match: it was edited or damaged")
    return values


def _crc32(values: Mapping[str, Any]) -> int:
    """Return the CRC32 of JSON values, whatever their order."""
    return zlib.crc32(json.dumps(values, sort_keys=True).encode())


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object atomically, sealed."""
    write_text(path, json.dumps(sealed(content), indent=2) + "\n")


def printable(name: object) -> str:
    r"""Return a path or a name as text that can be printed and encoded: bytes that are not UTF-8 as escapes.

    Example:
        >>> printable("caf\udce9.png")
        'caf\\xe9.png'
    """
    return str(name).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an .npz file of named arrays atomically."""
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)  # type: ignore[arg-type]  # its flags come by name too
    write_bytes(path, content.getvalue())


def check_folder(path: Path) -> None:
    """Raise ConfigError, before the work, if a folder could not be made or written to; nothing is made."""
    existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not existing.is_dir():
        raise ConfigError(f"{path}: got the file {existing}, expected a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f"{path}: got {existing}, which may not be written to, expected a folder that may")
