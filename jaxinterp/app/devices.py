"""Accelerators by their public figures, and how a machine of them is named.

A TPU's compiler is in libtpu, a GPU's in the CUDA wheels of JAX; both compile on a machine with CPUs alone.
"""

import contextlib
import importlib.util
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from jaxinterp.checks import require, require_one_of
from jaxinterp.errors import ConfigError
from jaxinterp.nn.platform import Target, target
from jaxinterp.train.step import device_mesh

Platform = Literal["tpu", "cuda", "cpu"]
TERA, GIGA, GIB = 1e12, 1e9, 2**30
TPU_FREE, CUDA_FREE = 0.98, 0.75
WHEELS = {"tpu": ("libtpu", "tpu"), "cuda": ("jax_cuda13_plugin", "cuda13")}  # module, extra of jax


@dataclass(frozen=True)
class Device:
    """An accelerator by the peak figures that its maker publishes, dense and per device.

    Attributes:
        title: its name, for people.
        platform: whose compiler it needs.
        memory: bytes of its high-bandwidth memory.
        free: share of them that programs can have: on a TPU all but a little, on a GPU what JAX takes unless
            $XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise.
        bandwidth: bytes/s to and from this memory.
        bfloat16: FLOP/s of products of bfloat16 and float16.
        tf32: FLOP/s of float32 products at the default precision: on a TPU one pass of bfloat16.
        float32: FLOP/s of float32 products at the highest precision: on a TPU six passes of bfloat16.
        int8: operations/s of products of int8.
        interconnect: bytes/s that a device can send to others of its machine, all links together.
        source: where the figures are published.
        cuda: of a GPU, what its compiler asks: see `target_config`.
    """

    title: str
    platform: Platform
    memory: int
    free: float
    bandwidth: float
    bfloat16: float
    tf32: float
    float32: float
    int8: float
    interconnect: float
    source: str
    cuda: "Cuda | None" = None

    @property
    def usable(self) -> int:
        """Bytes that programs can have."""
        return int(self.free * self.memory)

    def peak(self, dtype: str, precision: str) -> float:
        """Return FLOP/s of matrix products of a type at a precision.

        Example:
            >>> DEVICES["h200"].peak("float32", "highest") / TERA, DEVICES["tpu-v5e"].peak("float32", "default") / TERA
            (67.0, 197.0)
        """
        if dtype in ("int8", "uint8", "bool"):
            return self.int8
        if dtype in ("bfloat16", "float16"):
            return self.bfloat16
        if precision == "highest" or dtype != "float32":
            return self.float32
        return self.tf32 / (3 if precision == "high" and self.platform == "tpu" else 1)


@dataclass(frozen=True)
class Cuda:
    """What a GPU's compiler asks of it: compute capability, cores, GHz, bytes of memory and caches."""

    capability: tuple[int, int]
    cores: int
    fpus: int
    clock: float
    memory: int
    l2: int
    shared: int
    shared_block: int


def _tpu(title: str, memory: int, bandwidth: float, bfloat16: float, int8: float, links: float, page: str) -> Device:
    source = f"cloud.google.com/tpu/docs/{page}"
    products = bfloat16 * TERA, bfloat16 * TERA, bfloat16 * TERA / 6, int8 * TERA
    return Device(title, "tpu", memory * GIB, TPU_FREE, bandwidth * GIGA, *products, links * GIGA, source)


HOPPER = {"bfloat16": 989.5 * TERA, "tf32": 494.7 * TERA, "float32": 67 * TERA, "int8": 1979 * TERA}
H200 = Cuda((9, 0), 132, 128, 1.98, 151_397_597_184, 52_428_800, 233_472, 232_448)
H100 = Cuda((9, 0), 132, 128, 1.98, 85_028_765_696, 52_428_800, 233_472, 232_448)
A100 = Cuda((8, 0), 108, 64, 1.41, 85_097_971_712, 41_943_040, 167_936, 166_912)

DEVICES = {
    "tpu-v4": _tpu("TPU v4", 32, 1228.0, 275.0, 275.0, 300.0, "v4"),
    "tpu-v5e": _tpu("TPU v5e", 16, 819.0, 197.0, 393.0, 200.0, "v5e"),
    "tpu-v6e": _tpu("TPU v6e", 32, 1640.0, 918.0, 1836.0, 400.0, "v6e"),
    "h200": Device(
        "H200 SXM", "cuda", H200.memory, CUDA_FREE, 4.8 * TERA, **HOPPER,
        interconnect=450 * GIGA, source="nvidia.com/en-us/data-center/h200", cuda=H200,
    ),
    "h100": Device(
        "H100 SXM", "cuda", H100.memory, CUDA_FREE, 3.35 * TERA, **HOPPER,
        interconnect=450 * GIGA, source="nvidia.com/en-us/data-center/h100", cuda=H100,
    ),
    "a100": Device(
        "A100 SXM 80 GB", "cuda", A100.memory, CUDA_FREE, 2.039 * TERA, 312 * TERA, 156 * TERA, 19.5 * TERA, 624 * TERA,
        interconnect=300 * GIGA, source="nvidia.com/en-us/data-center/a100", cuda=A100,
    ),
}  # fmt: skip
"""Name → device; `cpu`, the machine at hand, has no figures."""
MOST = {"tpu-v4": 4096, "tpu-v5e": 256, "tpu-v6e": 256, "cuda": 8, "cpu": 1024}
"""Most devices of one machine, or of one slice of TPUs."""


@dataclass(frozen=True)
class Machine:
    """Devices of one kind that a program is compiled for, such as `tpu-v5e:2x2`.

    Attributes:
        name: of the device, see `DEVICES`; or cpu.
        shape: of a slice of TPUs, its chips along each axis; of others, how many devices.
    """

    name: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name}:{'x'.join(map(str, self.shape))}"

    @property
    def device(self) -> Device | None:
        """The device's figures; None for a CPU."""
        return DEVICES.get(self.name)

    @property
    def platform(self) -> Platform:
        """Whose compiler it needs."""
        return "cpu" if self.device is None else self.device.platform

    def tracing(self) -> contextlib.AbstractContextManager[None]:
        """Trace what its platform runs."""
        kinds: dict[str, Target] = {"tpu": "tpu", "cuda": "gpu"}
        return target(kinds[self.platform]) if self.platform in kinds else contextlib.nullcontext()

    @property
    def count(self) -> int:
        """Number of devices."""
        return math.prod(self.shape)

    @cached_property
    def devices(self) -> tuple[jax.Device, ...]:
        """Stand-ins for the devices, that programs are compiled for and not run on.

        Raises:
            ConfigError: the compiler is not installed, or knows no machine of this shape.
        """
        if self.platform == "cpu":
            found = jax.devices("cpu")
            wanted = f"at most {len(found)}, the CPU devices here; $JAX_NUM_CPU_DEVICES simulates more"
            require(self.count <= len(found), "--device", str(self), wanted)
            return tuple(found[: self.count])
        module, extra = WHEELS[self.platform]
        command = f"pip install 'jax[{extra}]=={jax.__version__}'"
        here = importlib.util.find_spec(module) is not None
        require(here, "--device", str(self), f"its compiler, {module}, to be installed: {command}")
        try:
            if self.platform == "tpu":
                with _compiling_only():
                    host = [*(min(2, side) for side in self.shape[:2]), 1]  # four chips, or all there are
                    return tuple(
                        topologies.get_topology_desc(self._tpu_name, "tpu", chips_per_host_bounds=host).devices
                    )
            assert self.device is not None
            assert self.device.cuda is not None
            config = target_config(self.device.title, self.device.cuda, self.device.bandwidth)
            options = {"topology": f"1x1x{self.count}", "target_config": config}
            return tuple(topologies.get_topology_desc("", "cuda", **options).devices)
        except (RuntimeError, ValueError, NotImplementedError) as error:  # whatever a plugin raises
            fault = " ".join(str(error).split())[:200]
            raise ConfigError(f"--device: got {self}, expected a machine that {module} knows ({fault})") from error

    @property
    def _tpu_name(self) -> str:
        return f"{self.name.removeprefix('tpu-')}:{'x'.join(map(str, self.shape))}"

    def mesh(self, count: int | None = None) -> Mesh:
        """Return a mesh of the devices, or of the first ones."""
        return device_mesh(self.devices[:count])


@contextlib.contextmanager
def _compiling_only() -> Iterator[None]:
    """Keep libtpu from asking for this machine's TPU, for minutes where there is none, and from locking it."""
    names = ("TPU_SKIP_MDS_QUERY", "ALLOW_MULTIPLE_LIBTPU_LOAD")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def machine_named(text: str) -> Machine:
    """Return the machine that a text names: a device, and its shape or number, one if none is given.

    Raises:
        ConfigError: no such device, or a shape that it cannot have.

    Example:
        >>> machine_named("tpu-v5e:2x2").count, machine_named("h200:8").count, str(machine_named("cpu"))
        (4, 8, 'cpu:1')
        >>> machine_named("h20:8")
        Traceback (most recent call last):
        jaxinterp.errors.ConfigError: --device: got h20:8, expected h200:8 or h100:8
    """
    name, colon, shape = text.partition(":")
    known = [*DEVICES, "cpu"]
    if name not in known:
        examples = "tpu-v5e:2x2, tpu-v6e:4x4, tpu-v4:2x2x1, h200:8, h100:1, a100:1 or cpu"
        require_one_of("--device", text, [f"{one}{colon}{shape}" for one in known], f"a device such as {examples}")
    tpu = name.startswith("tpu-")
    axes = (3 if name == "tpu-v4" else 2) if tpu else 1
    example = {"tpu-v4": "2x2x1", "tpu-v5e": "2x2", "tpu-v6e": "2x2"}.get(name, "8")
    wanted = f"{name}:{example}, {'chips along each axis' if tpu else 'how many devices'}"
    written = shape if colon else "x".join(["1"] * axes)
    require(re.fullmatch("x".join([r"[1-9]\d{0,4}"] * axes), written), "--device", text, wanted)
    machine = Machine(name, tuple(map(int, written.split("x"))))
    most = MOST.get(name, MOST["cuda"])
    require(machine.count <= most, "--device", text, f"at most {most} devices of {name}")
    return machine


def target_config(title: str, cuda: Cuda, bandwidth: float) -> str:
    """Describe a GPU to its compiler: a GpuTargetConfigProto as text."""
    fields = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "shared_memory_per_block": 49152,
        "shared_memory_per_core": cuda.shared,
        "shared_memory_per_block_optin": cuda.shared_block,
        "threads_per_core_limit": 2048,
        "core_count": cuda.cores,
        "fpus_per_core": cuda.fpus,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 65535,
        "block_dim_limit_z": 65535,
        "memory_bandwidth": int(bandwidth),
        "l2_cache_size": cuda.l2,
        "clock_rate_ghz": cuda.clock,
        "device_memory_size": cuda.memory,
        "registers_per_core_limit": 65536,
        "registers_per_block_limit": 65536,
    }
    major, minor = cuda.capability
    described = " ".join(f"{name}: {value}" for name, value in fields.items())
    return (
        f"gpu_device_info {{ {described} cuda_compute_capability {{ major: {major} minor: {minor} }} }} "
        'platform_name: "CUDA" dnn_version_info { major: 9 minor: 10 } runtime_version { major: 12 minor: 8 } '
        f'device_description_str: "NVIDIA {title}"'
    )
