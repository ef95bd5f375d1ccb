"""Shared tools of the benchmarks: jobs timed in turn, memory of one job, and one record of it as JSON."""

import contextlib
import ctypes
import json
import os
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import jax
import numpy as np

from jaxinterp.provenance import commit, machine

if TYPE_CHECKING:
    import torch

Result = TypeVar("Result")

RESULTS = Path(os.environ.get("BENCHMARK_RESULTS", Path(__file__).parent / "results"))


def slug(machine: str) -> str:
    """A machine's name as a part of a file's: without its memory, in lower case, words joined by hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r", \d+ GiB$", "", machine).lower()).strip("-")


def relative(ours: Any, theirs: "torch.Tensor") -> float:
    """Largest difference over the largest entry."""
    want = theirs.detach().float().cpu().numpy()
    return float(np.abs(np.asarray(ours).astype(np.float32).reshape(want.shape) - want).max() / np.abs(want).max())


def torch_device() -> "torch.device":
    """Put PyTorch on JAX's device, both with float32 products that are not rounded to less, and all of its threads.

    Otherwise JAX multiplies float32 as TF32 on a GPU, and PyTorch does in its convolutions.
    """
    import torch

    gpu = jax.default_backend() == "gpu"
    if gpu and not torch.cuda.is_available():
        raise SystemExit("PyTorch: got no GPU, expected the one that JAX runs on")
    jax.config.update("jax_default_matmul_precision", "highest")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    return torch.device("cuda" if gpu else "cpu")


def wait(device: "torch.device") -> None:
    """Wait until PyTorch's device has done what it was told."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize()


def compiled(make: Callable[[], Callable[[], Any]]) -> tuple[Callable[[], Any] | None, str]:
    """Return a job that PyTorch compiles, once called; or None, and why it could not be compiled in a line."""
    try:
        job = make()
        job()
    except RuntimeError as error:  # no C++ compiler, no Triton, an operation that it does not know
        return None, f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"[:300]
    return job, ""


def timed(job: Callable[[], Any]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


PAUSE = 0.03
"""Seconds before a call: threads of another library, which wait by spinning, have gone to sleep by then."""


def alternate(jobs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, dict[str, Any]]:
    """Seconds of each job, taken in turn, after a pause."""
    first, times = {name: timed(job) for name, job in jobs.items()}, {name: [] for name in jobs}
    for _ in range(rounds):
        for name, job in jobs.items():
            time.sleep(PAUSE)
            times[name].append(timed(job))
    return {
        name: {
            "median": statistics.median(t),
            "minimum": min(t),
            "quartiles": statistics.quantiles([*t, *t], n=4),
            "first_call": first[name],
        }
        for name, t in times.items()
    }


def resident(field: str) -> int:
    """Bytes of this process, VmRSS (now) or VmHWM (peak)."""
    return 1024 * int(re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())[1])  # type: ignore[index]


def growth(job: Callable[[], Any], gpu: bool) -> int:
    """Peak bytes that a job takes over what its process holds after a first call."""
    if gpu:
        stats = jax.devices()[0].memory_stats
        before = stats()["bytes_in_use"]  # the peak cannot be set back, so it has what compilation took
        job()
        return stats()["peak_bytes_in_use"] - before
    job()  # compiles or warms up

    def repeated() -> None:
        for _ in range(3):
            job()

    return peak(repeated)[0]


def peak(job: Callable[[], Result]) -> tuple[int, Result]:
    """Peak resident bytes that a warm job takes over what its process holds, and the job's result."""
    ctypes.CDLL(None).malloc_trim(0)  # what was left in the heap goes back before the mark is set
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    result = job()
    return resident("VmHWM") - before, result


def _versions(*names: str) -> dict[str, str]:
    found = {}
    for name in names:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def provenance(benchmark: str, where: str = "") -> dict[str, Any]:
    """Return what every result says of itself: command, machine in words, commit, device, threads, versions."""
    return {
        "benchmark": benchmark,
        "command": " ".join([f"python -m benchmarks.{benchmark}", *sys.argv[1:]]),
        "machine": where or machine(),
        "commit": commit(),
        "device": jax.devices()[0].device_kind,
        "threads": len(os.sched_getaffinity(0)),
        "versions": _versions("jax", "jaxlib", "flax", "torch", "captum", "zennit", "quantus", "numpy"),
    }


def record(
    benchmark: str,
    seconds: Mapping[str, Mapping[str, Any]],
    ratios: Mapping[str, float],
    *,
    where: str = "",
    suffix: str = "",
    name: str = "",
    **further: Any,
) -> None:
    """Write results/<benchmark>-<machine><suffix>.json and print what matters of it.

    Args:
        benchmark: its name.
        seconds: as `alternate` returns them.
        ratios: the figures that the benchmark is for.
        where: the machine in words, where it cannot tell by itself.
        suffix: of the file's name.
        name: of the file, where it is not the benchmark's.
        **further: JSON values, such as `setting` and `relative_difference`.
    """
    result = {**provenance(benchmark, where), **further, "seconds": seconds, "ratios": ratios}
    path = RESULTS / f"{name or benchmark}-{slug(result['machine'])}{suffix}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    medians = {name: round(times["median"], 4) for name, times in seconds.items()}
    print(json.dumps({"ratios": ratios, "medians": medians, **further}, indent=2))
    print(f"written: {path}")
