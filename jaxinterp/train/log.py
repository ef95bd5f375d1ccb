"""The logs of a run: run.json, metrics.jsonl and TensorBoard events."""

import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax

from jaxinterp.errors import ConfigError
from jaxinterp.files import write_text
from jaxinterp.provenance import commit, machine, versions


def count_epochs(run_dir: Path) -> int:
    """Return the number of epochs in metrics.jsonl."""
    path = run_dir / "metrics.jsonl"
    return path.read_text(errors="replace").count("\n") if path.exists() else 0


def _resumed_info(path: Path) -> dict[str, Any]:
    """Read run.json of a resumed run, without its summary."""
    try:
        info = json.loads(path.read_text())
        return {name: value for name, value in info.items() if name != "summary"} | {"resumed": list(info["resumed"])}
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise ConfigError(f"{path} is damaged ({error}); remove it to go on without it") from error


class RunLog:
    """Writes the logs of a run; every process but the first writes nothing."""

    def __init__(self, run_dir: Path, history: Sequence[Mapping[str, Any]], *, seed: int, step: int) -> None:
        """Open the logs at a step, given the epochs before it: drop what was logged later, write what is missing."""
        self._metrics, self._info, self._board = run_dir / "metrics.jsonl", run_dir / "run.json", None
        if jax.process_index() != 0:
            return
        from tensorboardX import SummaryWriter

        earlier = _resumed_info(self._info) if step and self._info.exists() else None
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
        info = {"started": now, "seed": seed, **here, "resumed": []} if earlier is None else earlier
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

    def __exit__(self, *error: object) -> None:
        if self._board is not None:
            self._board.close()
