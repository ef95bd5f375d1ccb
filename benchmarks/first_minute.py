"""The demo from outside: seconds to its first picture and to its end, with an empty and with a filled cache.

    python -m benchmarks.first_minute

`first_picture_seconds` and `demo_seconds` are those of `jaxinterp demo` in an empty folder, with no compiled program in
the cache; `second_demo_seconds` of the same command in another empty folder, with the cache that the first one filled.
The time starts with the command, so that the start of Python and all imports are in it. `again_seconds`, in the
setting, is the second command in the first folder, whose networks are trained.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.measuring import record


def measure(run_dir: Path, cache: Path) -> tuple[float, float]:
    """Run the demo; return the seconds to its first picture, and to its end."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("JAX_", "XLA_"))}
    command = [str(Path(sys.executable).with_name("jaxinterp")), "demo", "--run-dir", str(run_dir)]
    log, first, start = cache.with_suffix(".txt"), 0.0, time.perf_counter()
    with log.open("w") as file:
        process = subprocess.Popen(
            command, env={**environment, "XDG_CACHE_HOME": str(cache)}, stdout=file, stderr=subprocess.STDOUT
        )
        while process.poll() is None:
            if not first and any(run_dir.glob("*.png")):
                first = time.perf_counter() - start
            time.sleep(0.05)
    if process.returncode:
        raise SystemExit(log.read_text())
    print(log.read_text(), flush=True)
    return first, time.perf_counter() - start


def main() -> None:
    """Measure, and write the table."""
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "cache"
        first, whole = measure(Path(folder) / "cold", cache)
        warm, second = measure(Path(folder) / "warm", cache)
        _, end = measure(Path(folder) / "cold", cache)
    ratios = {"first_picture_seconds": first, "demo_seconds": whole, "second_demo_seconds": second}
    times = {"first_picture_warm_seconds": warm, "again_seconds": end}
    record("first_minute", {}, ratios, name="first-minute", setting=times)


if __name__ == "__main__":
    main()
