"""Compiled programs are kept where the user's caches are, unless told otherwise."""

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import jax, io, sys
from rich.console import Console
from jaxinterp.app.cache import keep_programs
for _ in range(2):
    keep_programs(Console(width=1000))
print(jax.config.jax_compilation_cache_dir)
jax.jit(lambda x: (x @ x).sum())(jax.numpy.ones((40, 40)))
"""


def said(home: Path, **environment: str) -> list[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("JAX_")}
    settings = {"XDG_CACHE_HOME": str(home), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", **environment}
    ran = subprocess.run([sys.executable, "-c", PROGRAM], env={**kept, **settings}, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()


def test_the_folder_is_said_once_and_filled(tmp_path: Path) -> None:
    folder = tmp_path / "jaxinterp" / "compiled"
    first = said(tmp_path)
    assert first[0].startswith(f"compiled programs are kept in {folder}")
    assert first[1:] == [str(folder)]
    assert any(path.stat().st_size > 100 for path in folder.iterdir())
    assert said(tmp_path) == [str(folder)]


def test_a_folder_of_the_user_stays_and_none_is_forced(tmp_path: Path) -> None:
    own = tmp_path / "own"
    assert said(tmp_path, JAX_COMPILATION_CACHE_DIR=str(own)) == [str(own)]
    assert not (tmp_path / "jaxinterp").exists()
    (tmp_path / "file").write_text("")
    assert said(tmp_path / "file") == ["None"]
