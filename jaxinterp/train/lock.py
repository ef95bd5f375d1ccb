"""One trainer for each run folder, on one machine or on several that share a file system."""

import contextlib
import errno
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxinterp.errors import ConfigError

LOCK = "trainer.json"
"""File, within a run's folder, that its trainer holds and that says which process it is."""
BEAT = 10.0
"""Seconds between two touches of the file, by which other machines see that the trainer lives."""
UNSUPPORTED = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
_held: dict[Path, int] = {}


@contextlib.contextmanager
def only_trainer(run_dir: str | Path, log: Callable[[str], None] = print) -> Iterator[None]:
    """Be the only trainer of a run folder while entered; of many processes of a run, the first holds the lock.

    The operating system frees the lock of a process that dies. Where it keeps locks within one machine, a trainer of
    another one is known by its touching the file. A thread that holds the lock may enter again.

    Args:
        run_dir: The folder; it is made, and removed on leaving if nothing was put into it.
        log: Called with a line if the lock of a dead process is taken over.

    Raises:
        ConfigError: Another process trains in the folder; the line gives its number, host and start.
    """
    path = Path(run_dir).absolute()
    if _held.get(path) == threading.get_ident():
        yield
        return
    with contextlib.ExitStack() as stack:
        refusal = None
        if jax.process_index() == 0:
            try:
                stack.enter_context(_locked(path, log))
            except (ConfigError, OSError) as error:
                refusal = error
        if jax.process_count() > 1 and multihost_utils.broadcast_one_to_all(np.int32(refusal is not None)):
            raise refusal or ConfigError(f"{run_dir}: process 0 cannot train in it")
        if refusal is not None:
            raise refusal
        _held[path] = threading.get_ident()
        stack.callback(_held.pop, path)
        yield


@contextlib.contextmanager
def _locked(run_dir: Path, log: Callable[[str], None]) -> Iterator[None]:
    made = [folder for folder in (run_dir, *run_dir.parents) if not folder.exists()]
    run_dir.mkdir(parents=True, exist_ok=True)
    path, ended = run_dir / LOCK, threading.Event()
    try:
        file = _acquire(path, run_dir, log)
        try:
            now = datetime.now().astimezone().isoformat(timespec="seconds")
            mine = {"process": os.getpid(), "host": socket.gethostname(), "started": now}
            os.ftruncate(file, 0)
            os.pwrite(file, json.dumps(mine).encode(), 0)
            threading.Thread(target=_touch, args=(path, ended), daemon=True).start()
            yield
        finally:
            ended.set()
            with contextlib.suppress(OSError):  # the folder may be gone
                path.unlink()
            os.close(file)
    finally:
        for folder in made:
            with contextlib.suppress(OSError):  # it is gone, or not empty
                folder.rmdir()


def _acquire(path: Path, run_dir: Path, log: Callable[[str], None]) -> int:
    """Return the locked file; raise ConfigError if its holder lives."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            holder, free = _holder(path), _try_lock(file)
            if free is False or (holder and _alive(holder, path, certain=bool(free), log=log)):
                since = f" since {holder['started']}" if holder else ""
                by = f"process {holder['process']} on {holder['host']}" if holder else "another process"
                wanted = "no other process; wait for its end, or stop it"
                raise ConfigError(f"{run_dir}: got {by}, which trains in this folder{since}, expected {wanted}")
            if not os.path.samestat(os.fstat(file), os.stat(path)):
                raise FileNotFoundError  # it ended and removed its file between the two calls
        except FileNotFoundError:
            os.close(file)
            continue
        except BaseException:
            os.close(file)
            raise
        if holder:
            log(f"process {holder['process']} on {holder['host']} trained here since {holder['started']} and is gone")
        return file


def _try_lock(file: int) -> bool | None:
    """Lock an open file: whether it was free, or None where the file system has no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in UNSUPPORTED:
            return None
        raise
    return True


def _holder(path: Path) -> dict[str, Any]:
    """Return what a lock's file says of its process; nothing of a new or a damaged one."""
    try:
        holder = json.loads(path.read_text(errors="replace"))
        return {key: str(holder[key]) for key in ("process", "host", "started")}
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return {}


def _alive(holder: dict[str, Any], path: Path, certain: bool, log: Callable[[str], None]) -> bool:
    """Tell whether the process that a file names lives, where its lock does not tell (`certain` on its own host)."""
    if holder["host"] == socket.gethostname():
        return not certain and _runs(holder["process"])
    seen, seconds = os.stat(path).st_mtime_ns, int(2.5 * BEAT)
    log(f"process {holder['process']} on {holder['host']} trained here; looking for {seconds} s whether it lives")
    for _ in range(seconds):
        time.sleep(1)
        with path.open():  # asks a file server anew
            if os.stat(path).st_mtime_ns != seen:
                return True
    return False


def _runs(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        return True
    return True


def _touch(path: Path, ended: threading.Event) -> None:
    while not ended.wait(BEAT):
        with contextlib.suppress(OSError):
            os.utime(path)
