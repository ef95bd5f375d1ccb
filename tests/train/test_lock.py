import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from jaxinterp.errors import ConfigError
from jaxinterp.train import lock
from jaxinterp.train.lock import LOCK, only_trainer

GONE = 2**22 + 1  # no process has this number


def written(folder, **changes):
    holder = {"process": GONE, "host": lock.socket.gethostname(), "started": "2026-01-01T18:02:00+00:00", **changes}
    folder.mkdir(exist_ok=True)
    (folder / LOCK).write_text(json.dumps(holder))


def test_one_thread_holds_it_and_enters_again_and_nothing_is_left(tmp_path):
    folder, errors = tmp_path / "a" / "b", []

    def other():
        with pytest.raises(ConfigError) as error, only_trainer(folder):
            pass
        errors.append(str(error.value))

    with only_trainer(folder), only_trainer(folder):
        assert json.loads((folder / LOCK).read_text())["process"] == os.getpid()
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert errors[0].startswith(
        f"{folder}: got process {os.getpid()} on {lock.socket.gethostname()}, which trains in this folder"
    )
    assert not list(tmp_path.iterdir())


def test_another_process_holds_it_until_it_is_killed(tmp_path):
    module, parent = Path(lock.__file__), Path(lock.__file__).parents[2]
    program = f"""
import fcntl, json, os, socket, sys
file = os.open({str(tmp_path / LOCK)!r}, os.O_RDWR | os.O_CREAT)
fcntl.flock(file, fcntl.LOCK_EX)
os.write(file, json.dumps(dict(process=os.getpid(), host=socket.gethostname(), started="18:02")).encode())
print("held", flush=True)
sys.stdin.read()
"""
    command = [sys.executable, "-c", program]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=parent, text=True)
    assert process.stdout.readline() == "held\n", module
    with pytest.raises(
        ConfigError,
        match=f"got process {process.pid} on .*, which trains in this folder since 18:02, expected no other process",
    ):
        only_trainer(tmp_path).__enter__()
    process.kill()
    process.communicate()
    said = []
    with only_trainer(tmp_path, said.append):
        pass
    assert said == [f"process {process.pid} on {lock.socket.gethostname()} trained here since 18:02 and is gone"]
    assert not list(tmp_path.iterdir())


def test_without_locks_of_the_file_system_the_process_is_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_try_lock", lambda file: None)
    written(tmp_path / "a", process=os.getppid())
    with pytest.raises(ConfigError, match=f"process {os.getppid()} "):
        only_trainer(tmp_path / "a").__enter__()
    written(tmp_path / "b")
    with only_trainer(tmp_path / "b", lambda line: None):
        pass


def test_a_trainer_on_another_machine_is_seen_by_its_touching_the_file(tmp_path, monkeypatch):
    written(tmp_path, host="elsewhere")
    monkeypatch.setattr(lock.time, "sleep", lambda _: os.utime(tmp_path / LOCK, (0, 0)))
    with pytest.raises(ConfigError, match="on elsewhere, which trains"):
        only_trainer(tmp_path, lambda line: None).__enter__()
    monkeypatch.setattr(lock.time, "sleep", lambda _: None)
    said = []
    with only_trainer(tmp_path, said.append):
        pass
    assert "looking for 25 s" in said[0]
    assert "is gone" in said[1]
