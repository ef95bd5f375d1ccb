"""The logs of a run: run.json, metrics.jsonl and TensorBoard events."""

import contextlib
import errno
import json
import os
import socket
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax

from jaxinterp.errors import ConfigError
from jaxinterp.files import sealed, unsealed, write_json, write_text
from jaxinterp.provenance import commit, machine, versions


def count_epochs(run_dir: Path) -> int:
    """Return the number of epochs in metrics.jsonl."""
    path = run_dir / "metrics.jsonl"
    if not path.exists():
        return 0
    with path.open("rb") as file:
        return sum(line.endswith(b"\n") for line in file)


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(sealed(record)) + "\n"


def _resumed_info(path: Path) -> dict[str, Any]:
    """Read run.json of a resumed run, without its summary."""
    try:
        info = unsealed(json.loads(path.read_text(encoding="utf-8")))
        return {name: value for name, value in info.items() if name != "summary"} | {"resumed": list(info["resumed"])}
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise ConfigError(f"{path} is damaged ({error}); remove it to go on without it") from error


class _Board:
    """TensorBoard events, written by the caller's own thread, so that a full disk is its error."""

    def __init__(self, folder: Path, purge_step: int | None) -> None:
        """Open a new file; what earlier ones hold from `purge_step` on is hidden."""
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.record_writer import RecordWriter
        from tensorboardX.summary import scalar

        folder.mkdir(parents=True, exist_ok=True)
        self._event, self._scalar = Event, scalar
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"
        self._writer = RecordWriter(str(folder / name))
        try:
            self._write(file_version="brain.Event:2")
            if purge_step is not None:
                self._write(step=purge_step, session_log=SessionLog(status=SessionLog.START))
            self._writer.flush()
        except OSError:
            self.close()
            raise

    def _write(self, **fields: Any) -> None:
        self._writer.write(self._event(wall_time=time.time(), **fields).SerializeToString())

    def add(self, record: Mapping[str, Any]) -> None:
        """Write the numbers of an epoch."""
        for name, value in record.items():
            if name not in ("step", "epoch"):
                self._write(step=record["step"], summary=self._scalar(name, value))
        self._writer.flush()

    def close(self) -> None:
        """Close the file; a full disk was an error before."""
        with contextlib.suppress(OSError):
            self._writer.close()


class RunLog:
    """Writes the logs of a run; every process but the first writes nothing."""

    def __init__(
        self, run_dir: Path, history: Sequence[Mapping[str, Any]], *, seed: int, step: int, epochs: int
    ) -> None:
        """Open the logs at a step, given the epochs before it: drop what was logged later, write what is missing."""
        self._metrics, self._info = run_dir / "metrics.jsonl", run_dir / "run.json"
        self._board: _Board | None = None
        if jax.process_index() != 0:
            return
        earlier = _resumed_info(self._info) if step and self._info.exists() else None
        run_dir.mkdir(parents=True, exist_ok=True)
        write_text(self._metrics, "".join(map(_line, history)))
        self._board = _Board(run_dir / "tensorboard", step + 1 if step else None)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        devices = jax.devices()
        here: dict[str, Any] = {
            "device": {"kind": devices[0].device_kind, "platform": devices[0].platform, "count": len(devices)},
            "machine": machine(),
            "processes": jax.process_count(),
            "commit": commit(),
            "versions": versions(),
        }
        info = {"started": now, "seed": seed, "epochs": epochs, **here, "resumed": []} if earlier is None else earlier
        here["epochs"] = epochs
        if step:
            changed = {name: value for name, value in here.items() if info.get(name) != value}
            info["resumed"].append({"step": step, "at": now, **changed})
        write_json(self._info, info)

    def epoch(self, record: Mapping[str, Any]) -> None:
        """Log an epoch: one line of metrics.jsonl, on disk when this returns, and scalars for TensorBoard."""
        if self._board is None:
            return
        with self._metrics.open("ab", buffering=0) as file:
            size = file.tell()
            try:
                if file.write(line := _line(record).encode()) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._metrics))
                os.fsync(file.fileno())
            except OSError:
                file.truncate(size)  # no half of a line
                raise
        self._board.add(record)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Add the summary of the finished run to run.json."""
        if self._board is not None:
            info = unsealed(json.loads(self._info.read_text(encoding="utf-8"))) | {"summary": summary}
            write_json(self._info, info)

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *error: object) -> None:
        if self._board is not None:
            self._board.close()
