"""Files that are there as they were, or as they are to be, and never half-written."""

import os
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Write a whole text file or none, in UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file or none: to a neighbour first, then over the old one in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
