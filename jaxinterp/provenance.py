"""Provenance of a result: versions, machine, commit, checksums."""

import os
import platform
import subprocess
import zlib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Asked before any library pins the thread that imported it.
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
PACKAGES = ("jaxinterp", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a result depends on."""
    numbers = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            numbers[name] = version(name)
        except PackageNotFoundError:
            continue
    return numbers


def machine() -> str:
    """Describe the machine in words: accelerator if there is one, processor, cores, memory."""
    device = jax.devices()[0]
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    parts = [] if device.platform == "cpu" else [f"{jax.device_count()} x {device.device_kind}"]
    parts += [model, f"{CORES} core" + "s" * (CORES != 1)]
    if hasattr(os, "sysconf"):
        parts.append(f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB")
    return ", ".join(parts)


def commit() -> str | None:
    """Return the git commit of the package's checkout, with `+` if files of it have changed; None outside one."""
    describe = ["describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"]
    command = ["git", "-C", str(Path(__file__).parent), *describe]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def crc32(leaf: Any) -> int:
    """Return the CRC32 of the bytes of an array, or of a typed key."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return zlib.crc32(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8))
