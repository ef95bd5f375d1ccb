"""What a user waits for compilation: programs and seconds of each command, and how training spends its time.

    python -m benchmarks.compilation [--before CHECKOUT] [--runs coda/digits,gated/digits-dlgn]

Every command runs in a process of its own: `train` of each run, and of the first one `evaluate`, `report` and `explain`
too; first with an empty cache, then again in another run folder with the cache that the first one filled. `programs`
counts what is compiled, operations outside of any jitted function included; `seconds` are those of tracing, lowering
and compiling. Of training, seconds in steps, evaluations, logs, saves and waits for them are those of the main thread.
With --before, an older checkout is measured in the same run, and `ratios` are ours over its own.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.measuring import record

COUNTED = Path(__file__).with_name("counted.py")
HERE = Path(__file__).parents[1]
KEPT = ("programs", "from_cache", "seconds", "wall_seconds", "import_seconds", "training")


def counts(checkout: Path, cache: Path, arguments: list[str]) -> dict[str, Any]:
    """Run one command of a checkout in a process of its own; return what it compiled."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("JAX_", "XLA_"))}
    result = cache / "counts.json"
    cache.mkdir(parents=True, exist_ok=True)
    environment |= {"PYTHONPATH": str(checkout), "XDG_CACHE_HOME": str(cache)}
    command = [sys.executable, str(COUNTED), str(result), *arguments]
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    found = json.loads(result.read_text())
    print(arguments[0], {key: found[key] for key in KEPT}, flush=True)
    most = sorted(found["names"].items(), key=lambda item: -item[1][1])[:12]
    return {key: found[key] for key in KEPT} | {"most": dict(most)}


def commands(checkout: Path, folder: Path, runs: list[str], image: Path) -> dict[str, dict[str, Any]]:
    """Return the counts of every command, with an empty cache and with a filled one."""
    found: dict[str, dict[str, Any]] = {}
    for cold in (True, False):
        for run in runs:
            place = folder / f"{run.replace('/', '-')}{'' if cold else '-again'}"
            wanted = [["train", run, "--run-dir", str(place)]]
            if run == runs[0]:
                wanted += [["evaluate", str(place)], ["report", str(place)]]
                wanted += [["explain", str(place), str(image)]]
            for arguments in wanted:
                name = f"{arguments[0]} {run}"
                cache = folder / "caches" / name.replace("/", "-").replace(" ", "-")
                found.setdefault(name, {})["cold" if cold else "warm"] = counts(checkout, cache, arguments)
    return found


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path, help="an older checkout, measured in the same run")
    parser.add_argument("--runs", default="coda/digits,gated/digits-dlgn")
    options = parser.parse_args()
    runs = options.runs.split(",")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        image = folder / "digit.png"
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)).save(image)
        checkouts = {"now": HERE} | ({} if options.before is None else {"before": options.before.resolve()})
        found = {which: commands(place, folder / which, runs, image) for which, place in checkouts.items()}
    ratios = {}
    for command, now in found["now"].items() if "before" in found else ():
        before = found["before"][command]
        for state in now:
            for key in ("programs", "seconds", "wall_seconds"):
                ratios[f"{command}, {state}: {key}"] = now[state][key] / max(1e-9, before[state][key])
    record("compilation", {}, ratios, **found)


if __name__ == "__main__":
    main()
