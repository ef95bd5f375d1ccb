"""The path kernel over devices and processes: bit by bit as on one device, and regression solved from it."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from sklearn.base import clone

from jaxinterp.errors import ConfigError
from jaxinterp.gated import GatedNetwork, NPKRegressor, PathNetwork, fc, npk_regression
from jaxinterp.gated.architecture import c4gap, gate_shapes
from jaxinterp.gated.kernels import PathKernel, Tiles, pairwise


def mesh_of(*shape):
    """A mesh of some of the eight devices, its axes named a, b, ..."""
    return jax.make_mesh(shape, tuple("abc"[: len(shape)]), devices=jax.devices()[: np.prod(shape)])


def problem(layers, shape, n):
    """Inputs and hard gates whose sums are rounded, as anyone's are."""
    x = np.asarray(jax.random.normal(jax.random.key(0), (n, *shape)))
    keys = jax.random.split(jax.random.key(1), len(gate_shapes(layers, shape)))
    shapes = gate_shapes(layers, shape)
    return x, tuple(
        np.asarray(jax.random.bernoulli(key, 0.5, (n, *gate))) for key, gate in zip(keys, shapes, strict=True)
    )


@pytest.mark.parametrize(
    ("layers", "shape", "n", "normalize", "mesh"),
    [
        (fc(24, 2), (20,), 256, "unit_diag", (8,)),
        (fc(24, 2), (20,), 203, "width", (3, 2)),
        (c4gap(3, depth=1), (4, 4, 2), 16, "width", (4, 2)),
        (fc(24, 2), (20,), 3, "width", (8,)),  # fewer examples than devices
    ],
    ids=["spread", "rest", "convolution", "few"],
)
def test_a_mesh_gives_what_one_device_gives_bit_by_bit(layers, shape, n, normalize, mesh):
    (x, gates), mesh = problem(layers, shape, n), mesh_of(*mesh)
    kernel, some = PathKernel(layers, normalize=normalize), (x[: n // 2], tuple(gate[: n // 2] for gate in gates))
    for arguments in ((x, gates), (x, gates, *some)):
        one, found = kernel(*arguments), kernel(*arguments, mesh=mesh)
        np.testing.assert_array_equal(found, one)
        rows = {shard.data.shape[0] for shard in found.addressable_shards}
        assert rows == {n if n % mesh.size else n // mesh.size}
    if normalize == "width":
        whole = np.asarray(kernel(x, gates))
        np.testing.assert_array_equal(whole, whole.T)


def test_tiles_that_overlap_leave_a_symmetric_matrix(monkeypatch):
    x = jax.random.normal(jax.random.key(0), (45, 7))
    monkeypatch.setattr(pairwise, "SMALL_BYTES", 7**2 * 4)  # 7 tiles, of which the last begins early
    monkeypatch.setitem(pairwise.STRIP, "cpu", 3)

    def gram(left, right):
        return jnp.einsum("nc,mc->nm", left.cut(left.examples), right.cut(right.examples), precision="highest")

    for mesh in (None, jax.sharding.Mesh(jax.devices()[:5], "x")):
        k = np.asarray(jax.jit(lambda x, mesh=mesh: pairwise.symmetric(gram, x, 4, mesh))(x))
        np.testing.assert_array_equal(k, k.T)
        np.testing.assert_allclose(k, np.asarray(x) @ np.asarray(x).T, rtol=1e-5, atol=1e-5)


def test_a_mesh_must_be_one_that_this_process_is_part_of(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    x, gates = problem(fc(4, 1), (3,), 4)
    for mesh in (jax.devices(), mesh_of(8).abstract_mesh):
        with pytest.raises(ConfigError, match=r"^mesh: "):
            PathKernel(fc(4, 1))(x, gates, mesh=mesh)


def fit(folder, mesh):
    """The solution from a kernel in memory, the one from tiles, and predictions of both."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 5)).astype(np.float32), np.arange(60) % 3
    x[:, :3] += np.eye(3, dtype=np.float32)[y]
    dgn = GatedNetwork(fc(16, 2, 3), gating="relu", hard=True)
    network = PathNetwork.of(dgn, dgn.init(jax.random.key(0), jnp.asarray(x)))
    for name, value in {"MAX_TILE_SIZE": 16, "RIDGE_IMAGES": 60, "LANDMARKS": 20}.items():
        setattr(npk_regression, name, value)
    memory = clone(NPKRegressor(network, mesh=mesh)).fit(x, y)
    tiles = NPKRegressor(network, max_bytes=1, folder=folder, mesh=mesh).fit(x, y)
    found = [(one.solution_.alpha, one.decision_function(x[:7])) for one in (memory, tiles)]
    identity = json.loads((Path(folder) / "config.json").read_text())["identity"]
    kernel = Tiles(folder, (60, 60), tile_size=16, symmetric=True, identity=identity)
    return [*found[0], *found[1], kernel.read(), kernel.product(rng.normal(size=(60, 2)))]


@pytest.fixture
def small(monkeypatch):
    for name in ("MAX_TILE_SIZE", "RIDGE_IMAGES", "LANDMARKS"):
        monkeypatch.setattr(npk_regression, name, getattr(npk_regression, name))


@pytest.mark.slow
def test_regression_over_eight_devices_and_over_two_processes_is_the_one_of_one_device(tmp_path, small):
    with jax.default_device(jax.devices()[0]):
        one = fit(tmp_path / "one", None)
    for name, ours, theirs in zip("abcdef", fit(tmp_path / "eight", mesh_of(8)), one, strict=True):
        np.testing.assert_array_equal(ours, theirs, err_msg=name)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}
    command = [sys.executable, __file__, str(tmp_path), port]
    options = {"env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    processes = [subprocess.Popen([*command, str(number)], **options) for number in range(2)]
    said = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    for number in range(2):
        with np.load(tmp_path / f"{number}.npz") as found:
            for name, theirs in zip(found.files, one, strict=True):
                np.testing.assert_array_equal(found[name], theirs, err_msg=name)


if __name__ == "__main__":
    from jaxinterp.train import initialize

    where, port, number = sys.argv[1:]
    initialize(f"localhost:{port}", 2, int(number))
    found = fit(f"{where}/two", mesh_of(2))
    np.savez(f"{where}/{number}.npz", *found)
