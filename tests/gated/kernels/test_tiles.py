"""Kernels on disk: equal to those in memory, gone on with, and refused when they are something else."""

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import multihost_utils

from jaxinterp.errors import ConfigError, DataError
from jaxinterp.gated.architecture import fc, gate_shapes
from jaxinterp.gated.kernels.path import PathKernel
from jaxinterp.gated.kernels.tiles import Tiles

LAYERS = fc(12, 3)
X = jnp.round(4 * jax.random.normal(jax.random.key(0), (23, 4)))  # integers, so that every sum is exact
GATES = tuple(
    jax.random.bernoulli(jax.random.fold_in(jax.random.key(1), i), 0.5, (23, *shape))
    for i, shape in enumerate(gate_shapes(LAYERS, (4,)))
)


def block(rows, columns):
    kernel = PathKernel(LAYERS)
    return kernel(X[rows], tuple(g[rows] for g in GATES), X[columns], tuple(g[columns] for g in GATES))


@pytest.mark.parametrize("symmetric", [True, False])
def test_tiles_equal_the_whole_and_multiply_like_it(tmp_path, symmetric):
    columns = 23 if symmetric else 17
    whole = np.asarray(PathKernel(LAYERS)(X, GATES, X, GATES))[:, :columns]
    tiles = Tiles(tmp_path, (23, columns), tile_size=5, symmetric=symmetric)
    with pytest.raises(DataError, match=r"tile \(0, 1\) is not finished"):
        tiles[1, 0] if symmetric else tiles[0, 1]
    with pytest.raises(DataError, match=r"tile \(0, 0\) is not finished"):
        tiles.product(np.ones((columns, 1)))
    assert tiles.compute(block, progress=False) == (15 if symmetric else 20)
    np.testing.assert_array_equal(tiles.read(), whole)
    y = np.random.default_rng(0).normal(size=(columns, 3))
    np.testing.assert_allclose(tiles.product(y), whole.astype(np.float64) @ y, rtol=1e-10, atol=1e-8)
    assert tiles.compute(block, progress=False) == 0


@pytest.mark.parametrize("cache_bytes", [350, 1 << 20])  # a whole tile has 100 bytes
def test_cached_tiles_give_the_same_products(tmp_path, cache_bytes):
    tiles = Tiles(tmp_path, (23, 23), tile_size=5, symmetric=True, cache_bytes=cache_bytes)
    tiles.compute(block, progress=False)
    y = np.random.default_rng(0).normal(size=(23, 2))
    first = tiles.product(y)
    np.testing.assert_array_equal(tiles.product(y), first)
    np.testing.assert_allclose(first, tiles.read().astype(np.float64) @ y, rtol=1e-10, atol=1e-8)


def test_only_unfinished_are_computed_again(tmp_path):
    computed = []

    def counted(rows, columns):
        if len(computed) == 7:
            raise RuntimeError("killed")
        computed.append((rows.start, columns.start))
        return block(rows, columns)

    with pytest.raises(RuntimeError, match="killed"):
        Tiles(tmp_path, (23, 23), tile_size=5, symmetric=True).compute(counted, progress=False)
    tiles = Tiles(tmp_path, (23, 23), tile_size=5, symmetric=True)
    left = tiles.unfinished()
    assert 0 < len(left) <= 15
    finished = [(5 * i, 5 * j) for i, j in tiles.indices() if (i, j) not in left]
    again = []
    tiles.compute(
        lambda rows, columns: again.append((rows.start, columns.start)) or block(rows, columns), progress=False
    )
    assert sorted(again + finished) == sorted((5 * i, 5 * j) for i, j in tiles.indices())
    np.testing.assert_array_equal(tiles.read(), np.asarray(PathKernel(LAYERS)(X, GATES, X, GATES)))


def test_a_killed_process_keeps_its_finished_tiles(tmp_path):
    program = textwrap.dedent(
        f"""
        import os, signal, numpy as np
        from jaxinterp.gated.kernels.tiles import Tiles
        count = 0
        def block(rows, columns):
            global count
            count += 1
            if count == 9:
                os.kill(os.getpid(), signal.SIGKILL)
            return np.full((5, 5), rows.start + columns.start, np.float32)
        Tiles({str(tmp_path)!r}, (20, 20), tile_size=5).compute(block, progress=False)
        """
    )
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_NUM_CPU_DEVICES": "1"}
    killed = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    tiles = Tiles(tmp_path, (20, 20), tile_size=5)
    assert len(tiles.unfinished()) == 16 - 7  # two were under way, on one device
    assert tiles[1, 2].tolist() == [[15.0] * 5] * 5


def test_other_kernels_and_bad_tiles_are_refused(tmp_path):
    tiles = Tiles(tmp_path / "k", (6, 6), tile_size=3, identity={"run": "a"})
    Tiles(tmp_path / "k", (6, 6), tile_size=3, identity={"run": "a"})
    same = {"shape": (6, 6), "tile_size": 3, "identity": {"run": "a"}}
    for change in (
        {"shape": (6, 7)},
        {"tile_size": 2},
        {"identity": {"run": "b"}},
        {"identity": {"run": "a", "x": None}},
    ):
        with pytest.raises(ConfigError, match="folder: got another kernel"):
            Tiles(tmp_path / "k", **{**same, **change})
    for options in ({"shape": (6, 7), "symmetric": True}, {"shape": (6, 0)}):
        with pytest.raises(ConfigError, match="shape"):
            Tiles(tmp_path / "s", **options)
    assert not (tmp_path / "s").exists()
    for values in (
        jnp.full((3, 3), jnp.nan),
        np.full((3, 3), 1e60),
        jnp.zeros((2, 3)),
        jnp.zeros((3, 3), jnp.complex64),
    ):
        with pytest.raises(DataError, match=r"tile \(0, 0\): "):
            tiles.compute(lambda rows, columns, values=values: values, progress=False)
    with pytest.raises(ConfigError, match="y"):
        tiles.product(np.zeros((7, 2)))
    with pytest.raises(IndexError, match="index"):
        tiles[2, 0]
    assert len(tiles.unfinished()) == 4
    (tmp_path / "k" / "config.json").write_text('{"torn')
    with pytest.raises(ConfigError, match="not the description of a kernel"):
        Tiles(tmp_path / "k", (6, 6), tile_size=3)
    (tmp_path / "k" / "config.json").unlink()
    with pytest.raises(ConfigError, match="no config"):
        Tiles(tmp_path / "k", (6, 6), tile_size=3)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: path.unlink(), r"tile \(0, 1\) is lost"),
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), r"tile \(0, 1\) is damaged"),
        (lambda path: path.write_bytes(b"\x01" + path.read_bytes()[1:]), r"tile \(0, 1\) is damaged"),
    ],
)
def test_a_lost_or_damaged_tile_is_noticed(tmp_path, damage, says):
    tiles = Tiles(tmp_path, (6, 6), tile_size=3)
    tiles.compute(lambda rows, columns: jnp.zeros((3, 3), jnp.bfloat16), progress=False)
    damage(tmp_path / "kernel/c/0/1")
    for use in (lambda: tiles[0, 1], tiles.read, lambda: tiles.product(np.ones((6, 1)))):
        with pytest.raises(DataError, match=says) as error:
            use()
        assert "tensorstore_spec" not in str(error.value)


def test_a_damaged_list_of_finished_tiles_is_noticed(tmp_path):
    tiles = Tiles(tmp_path, (6, 6), tile_size=3)
    tiles.compute(lambda rows, columns: jnp.zeros((3, 3)), progress=False)
    (tmp_path / "finished/c/0/1").write_bytes(b"\x01")
    for use in (lambda: tiles[0, 1], tiles.read, tiles.unfinished):
        with pytest.raises(DataError, match="the list of finished tiles is damaged"):
            use()


def test_a_full_disk_is_one_line_and_keeps_what_is_finished(tmp_path, monkeypatch):
    tiles = Tiles(tmp_path, (6, 3), tile_size=3)

    class Full:
        def __init__(self, store):
            self.store = store

        def __getitem__(self, index):
            if index[0].start == 3:
                raise OSError(28, "No space left on device")
            return self.store[index]

    monkeypatch.setattr(tiles, "_kernel", Full(tiles._kernel))
    with pytest.raises(DataError, match=r"tile \(1, 0\) could not be written .*No space left on device"):
        tiles.compute(lambda rows, columns: jnp.ones((3, 3)), progress=False)
    again = Tiles(tmp_path, (6, 3), tile_size=3)
    assert again.unfinished() == [(1, 0)]
    assert again[0, 0].tolist() == [[1.0] * 3] * 3
    assert json.loads((tmp_path / "config.json").read_text())["tile"] == 3


HOST = """
import sys, time
from jaxinterp.train import initialize
initialize(f"localhost:{sys.argv[2]}", 2, int(sys.argv[3]))
import numpy as np
from jaxinterp.gated.kernels.tiles import Tiles
time.sleep(int(sys.argv[3] == sys.argv[4]))  # one looks when the other has finished some tiles, or made the folder
tiles = Tiles(sys.argv[1], (23, 23), tile_size=5, symmetric=True)
x = np.arange(23.0, dtype=np.float32)
count = tiles.compute(lambda rows, columns: x[rows, None] * x[None, columns], progress=False)
print(count, np.array_equal(tiles.read(), np.outer(x, x)))
"""


@pytest.mark.parametrize("late", ["0", pytest.param("1", marks=pytest.mark.slow)])
def test_two_hosts_share_the_tiles(tmp_path, late):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "2"}
    hosts = [
        subprocess.Popen(
            [sys.executable, "-c", HOST, str(tmp_path), port, str(number), late],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(2)
    ]
    said = [host.communicate(timeout=300)[0] for host in hosts]
    assert all(want in text.splitlines() for want, text in zip(("8 True", "7 True"), said, strict=True)), said


@pytest.mark.parametrize("other", [0, 1])
def test_a_tile_damaged_on_one_host_raises_on_all(tmp_path, monkeypatch, other):
    tiles = Tiles(tmp_path, (23, 23), tile_size=5, symmetric=True)
    tiles.compute(block, progress=False)
    asked = []

    def gathered(flag):
        asked.append(flag)
        return np.stack([flag, np.uint8(other)])

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(multihost_utils, "process_allgather", gathered)
    if not other:
        (tmp_path / "kernel" / "c" / "0" / "0").write_bytes(bytes(104))
    with pytest.raises(DataError, match=r"host 1 could not" if other else r"tile \(0, 0\)"):
        tiles.product(np.ones((23, 1)))
    assert asked == [1 - other]  # nobody is left waiting for the terms
