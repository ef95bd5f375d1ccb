"""What a run leaves to read: run.json, metrics.jsonl and TensorBoard events."""

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any

import jax

from jaxinterp.errors import ConfigError
from jaxinterp.files import write_text

# Asked before any library pins the thread that imported it.
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
PACKAGES = ("jaxinterp", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def machine() -> str:
    """The machine in words: accelerator if there is one, processor, cores, memory."""
    device = jax.devices()[0]
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    parts = [] if device.platform == "cpu" else [f"{jax.device_count()} x {device.device_kind}"]
    parts += [model, f"{CORES} cores"]
    if hasattr(os, "sysconf"):
        parts.append(f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB")
    return ", ".join(parts)


def commit() -> str | None:
    """The git commit of this package's checkout, with `+` if files of it have changed; None outside a checkout."""
    folder = Path(__file__).parent
    try:
        head = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10
        )
        changed = subprocess.run(
            ["git", "-C", str(folder), "status", "--porcelain", "--untracked-files=no", ":/"],
            capture_output=True, text=True, check=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return head.stdout.strip() + ("+" if changed.stdout else "")


def _began(path: Path) -> dict[str, Any]:
    """What run.json holds of a run that goes on: all but the summary, which it has when it has ended again."""
    try:
        info = json.loads(path.read_text())
        return {name: value for name, value in info.items() if name != "summary"} | {"resumed": list(info["resumed"])}
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise ConfigError(f"{path} is damaged ({error}); remove it to go on without it") from error


class RunLog:
    """Writes the logs of a run; every process but the first writes nothing."""

    def __init__(self, run_dir: Path, history: Sequence[Mapping[str, Any]], *, seed: int, step: int) -> None:
        """Open the logs at a step: what was logged after it is dropped, what is missing is written again.

        Args:
            run_dir: The run folder.
            history: The records of the epochs finished so far.
            seed: Seed of the run.
            step: Step at which the run goes on.

        Raises:
            ConfigError: run.json is damaged.
        """
        self._metrics, self._info, self._board = run_dir / "metrics.jsonl", run_dir / "run.json", None
        if jax.process_index() != 0:
            return
        from tensorboardX import SummaryWriter

        began = _began(self._info) if step and self._info.exists() else None
        run_dir.mkdir(parents=True, exist_ok=True)
        write_text(self._metrics, "".join(json.dumps(record) + "\n" for record in history))
        self._board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=step + 1 if step else None)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        devices = jax.devices()
        here: dict[str, Any] = {
            "device": {"kind": devices[0].device_kind, "platform": devices[0].platform, "count": len(devices)},
            "machine": machine(),
            "processes": jax.process_count(),
            "commit": commit(),
            "versions": versions(),
        }
        info = {"started": now, "seed": seed, **here, "resumed": []} if began is None else began
        if step:
            changed = {name: value for name, value in here.items() if info.get(name) != value}
            info["resumed"].append({"step": step, "at": now, **changed})
        write_text(self._info, json.dumps(info, indent=2) + "\n")

    def epoch(self, record: Mapping[str, Any]) -> None:
        """Log an epoch: one line of metrics.jsonl, on disk when this returns, and scalars for TensorBoard."""
        if self._board is None:
            return
        with self._metrics.open("a") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())
        for name, value in record.items():
            if name not in ("step", "epoch"):
                self._board.add_scalar(name, value, record["step"])

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Add the summary of the finished run to run.json."""
        if self._board is not None:
            info = json.loads(self._info.read_text()) | {"summary": summary}
            write_text(self._info, json.dumps(info, indent=2) + "\n")

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._board is not None:
            self._board.close()
