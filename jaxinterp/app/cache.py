"""Compiled programs kept between commands, in the user's cache folder."""

import os
from pathlib import Path
from typing import Any

import jax
import pooch
from rich.console import Console

from jaxinterp.app.console import show

FOLDER = "JAX_COMPILATION_CACHE_DIR"
SETTINGS = {
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": 0.1,
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": -1,
    "JAX_COMPILATION_CACHE_MAX_SIZE": 2**30,
}


def keep_programs(console: Console) -> None:
    """Let JAX keep what it compiles, at most 1 GiB, here and in processes started from here.

    A folder that the user has set, by $JAX_COMPILATION_CACHE_DIR or in JAX's configuration, stays; where the user's
    cache folder cannot be written to, nothing is kept.
    """
    config: Any = jax.config
    if FOLDER in os.environ or config.jax_compilation_cache_dir:
        return
    folder = Path(pooch.os_cache("jaxinterp")) / "compiled"
    try:
        new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    if not os.access(folder, os.W_OK):
        return
    if new:
        show(console, f"compiled programs are kept in {folder}; $JAX_COMPILATION_CACHE_DIR names another folder")
    for name, value in {FOLDER: str(folder), **SETTINGS}.items():
        if name not in os.environ:
            os.environ[name] = str(value)
            config.update(name.lower(), value)
