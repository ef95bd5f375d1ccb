"""CoDA S net against its explicit-weights formulation in PyTorch: time, memory and all-class explanations.

    python -m benchmarks.coda                       # float32 on this machine's CPU, both with the same threads
    python -m benchmarks.coda --dtype bfloat16      # where both have a GPU, it is used

Same parameters and images; the outputs are compared before anything is timed. The two alternate within one process,
medians are quoted, compilation is timed apart. Memory is the growth of the resident set (GPU: the allocator's peak)
over its size with parameters and images loaded, each in a process of its own.
"""

import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import torch.nn.functional as F  # noqa: N812
import tyro

from benchmarks.torch_coda import ExplicitCoDA
from jaxinterp import decompose
from jaxinterp.models.coda import encode, s_coda
from jaxinterp.models.convert import to_torch

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Options:
    """What is measured."""

    batch: int = 16
    rounds: int = 7
    dtype: Literal["float32", "bfloat16"] = "float32"
    compiled: bool = True  # state the ratio to torch.compile beside the eager one
    machine: str = ""  # name in the file of results; default: the processor's or GPU's
    probe: Literal["", "jax", "torch"] = ""  # internal: measure one side's memory and print it


def ours(options: Options) -> tuple[dict[str, Callable[[], Any]], dict[str, Any], np.ndarray, np.ndarray]:
    """Our three jobs, the variables, the images and the labels."""
    model = s_coda(dtype=jnp.dtype(options.dtype))
    rng = np.random.default_rng(0)
    images = rng.random((options.batch, 32, 32, 3), np.float32)
    labels = rng.integers(0, 10, options.batch)
    variables = jax.jit(model.init)(jax.random.key(0), images)
    x, one_hot = encode(jnp.asarray(images)), jax.nn.one_hot(labels, 10)

    def frozen(v: Any, e: jax.Array) -> jax.Array:
        return model.apply(v, e, frozen=True, encoded=True)

    forward = jax.jit(lambda v, e: model.apply(v, e, encoded=True))
    step = jax.jit(jax.value_and_grad(lambda v: optax.sigmoid_binary_cross_entropy(forward(v, x), one_hot).mean()))
    jobs = {
        "forward": lambda: forward(variables, x),
        "train_step": lambda: step(variables),
        "explain_all_classes": lambda: decompose(frozen, x, variables=variables),
    }
    return {k: lambda job=job: jax.block_until_ready(job()) for k, job in jobs.items()}, variables, images, labels


def theirs(
    options: Options, variables: Any, images: np.ndarray, labels: np.ndarray, channels_last: bool, compiled: bool
) -> dict[str, Callable[[], Any]]:
    """The same jobs in PyTorch; an explanation is one forward and one backward pass for every class."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    spec = s_coda()
    net = ExplicitCoDA(
        list(zip(spec.features, spec.ranks, spec.kernel_sizes, spec.strides, strict=True)),
        spec.temperature,
        spec.logit_bias,
    )
    net.load(to_torch(variables["params"]))
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    net = net.to(device=device, dtype=getattr(torch, options.dtype), memory_format=memory_format)
    x = torch.from_numpy(np.asarray(encode(images)).transpose(0, 3, 1, 2).copy())
    x = x.to(device=device, dtype=getattr(torch, options.dtype), memory_format=memory_format)
    one_hot = F.one_hot(torch.from_numpy(labels), 10).to(device, torch.float32)
    run = torch.compile(net) if compiled else net
    torch.set_num_threads(len(os.sched_getaffinity(0)))

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def forward() -> torch.Tensor:
        with torch.no_grad():
            out = run(x)
        wait()
        return out

    def train_step() -> None:
        net.zero_grad(set_to_none=True)
        F.binary_cross_entropy_with_logits(run(x).float(), one_hot).backward()
        wait()

    def explain_all_classes() -> torch.Tensor:
        net.frozen = True
        e, maps = x.detach().requires_grad_(), []
        for k in range(10):
            maps.append(torch.autograd.grad(net(e)[:, k].sum(), e)[0] * e.detach())
        net.frozen = False
        wait()
        return torch.stack(maps, 1)

    return {"forward": forward, "train_step": train_step, "explain_all_classes": explain_all_classes}


def alternate(jobs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, dict[str, Any]]:
    """Seconds of each job, taken in turn."""
    first, times = {}, {name: [] for name in jobs}
    for name, job in jobs.items():
        start = time.perf_counter()
        job()
        first[name] = time.perf_counter() - start
    for _ in range(rounds):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            times[name].append(time.perf_counter() - start)
    return {
        name: {
            "median": statistics.median(t),
            "quartiles": statistics.quantiles([*t, *t], n=4),
            "first_call": first[name],
        }
        for name, t in times.items()
    }


def resident(field: str) -> int:
    """Bytes of this process, VmRSS (now) or VmHWM (peak)."""
    return 1024 * int(re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())[1])  # type: ignore[index]


def probe(options: Options) -> int:
    """Peak bytes that a training step takes over parameters and images, on one side."""
    jobs, variables, images, labels = ours(options)
    gpu = torch.cuda.is_available() if options.probe == "torch" else jax.default_backend() == "gpu"
    if options.probe == "torch":
        jobs = theirs(options, variables, images, labels, channels_last=False, compiled=False)
    job = jobs["train_step"]
    before = resident("VmRSS")
    if gpu and options.probe == "torch":
        before = torch.cuda.memory_allocated()
        job()
        return torch.cuda.max_memory_allocated() - before
    if gpu:
        stats = jax.devices()[0].memory_stats
        before = stats()["bytes_in_use"]
        job()
        return stats()["peak_bytes_in_use"] - before
    job()  # compiles; then the high-water mark is set back, so that compilation does not count
    Path("/proc/self/clear_refs").write_text("5")
    for _ in range(3):
        job()
    return resident("VmHWM") - before


def machine_name() -> str:
    """A short name of the processor, or of the GPU where one is used."""
    if jax.default_backend() != "cpu":
        name = jax.devices()[0].device_kind
    else:
        lines = re.findall(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
        name = f"{lines[0] if lines else platform.machine()}-{len(lines)}-cores"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def main(options: Options) -> None:
    """Measure, print and write the results."""
    if options.probe:
        print(probe(options))
        return
    jobs, variables, images, labels = ours(options)
    formats = {
        f: theirs(options, variables, images, labels, channels_last=f == "channels_last", compiled=False)
        for f in ("contiguous", "channels_last")
    }
    want = formats["contiguous"]["forward"]().float().cpu().numpy()
    bias = s_coda().logit_bias
    difference = float(np.abs(np.asarray(jobs["forward"]()) - want).max() / np.abs(want - bias).max())
    tolerance = 1e-4 if options.dtype == "float32" else 5e-2
    if not difference <= tolerance:
        raise SystemExit(f"outputs differ by {difference:.1e} relative to the evidence, expected <= {tolerance:.0e}")
    maps = np.asarray(jobs["explain_all_classes"]().contributions)
    their_maps = formats["contiguous"]["explain_all_classes"]().float().cpu().numpy().transpose(0, 1, 3, 4, 2)
    map_difference = float(np.abs(maps - their_maps).max() / np.abs(their_maps).max())

    if not map_difference <= tolerance:
        raise SystemExit(f"contributions differ by {map_difference:.1e} of their largest, expected <= {tolerance:.0e}")

    best, seconds = {}, dict[str, dict[str, Any]]()
    for name in ("forward", "train_step"):
        short = alternate({f: formats[f][name] for f in formats}, 1)
        best[name] = min(short, key=lambda f: short[f]["median"])
        seconds |= alternate({f"ours/{name}": jobs[name], f"torch/{name}": formats[best[name]][name]}, options.rounds)
    name = "explain_all_classes"
    best[name] = best["forward"]
    pair = {f"ours/{name}": jobs[name], f"torch/{name}": formats[best[name]][name]}
    seconds |= alternate(pair, min(2, options.rounds))
    ratios = {
        f"{name}_vs_torch": seconds[f"torch/{name}"]["median"] / seconds[f"ours/{name}"]["median"] for name in jobs
    }
    if options.compiled:
        for name in ("forward", "train_step"):
            channels_last = best[name] == "channels_last"
            fast = theirs(options, variables, images, labels, channels_last=channels_last, compiled=True)
            pair = {f"ours/{name}/again": jobs[name], f"torch.compile/{name}": fast[name]}
            seconds |= alternate(pair, options.rounds)
            ratios[f"{name}_vs_torch_compile"] = (
                seconds[f"torch.compile/{name}"]["median"] / seconds[f"ours/{name}/again"]["median"]
            )
    call = [sys.executable, "-m", "benchmarks.coda", "--batch", str(options.batch), "--dtype", options.dtype, "--probe"]
    memory = {side: int(subprocess.check_output([*call, side], text=True).split()[-1]) for side in ("jax", "torch")}
    ratios["memory_vs_torch"] = memory["jax"] / memory["torch"]
    machine = options.machine or machine_name()
    result = {
        "benchmark": "coda",
        "command": " ".join(["python -m benchmarks.coda", *sys.argv[1:]]),
        "machine": machine,
        "device": jax.devices()[0].device_kind,
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("jax", "jaxlib", "flax", "torch", "numpy")},
        "setting": {"net": "S", "batch": options.batch, "dtype": options.dtype, "torch_memory_format": best},
        "relative_difference": {"logits": difference, "contributions": map_difference},
        "seconds": seconds,
        "peak_bytes": memory,
        "ratios": ratios,
    }
    suffix = "" if options.dtype == "float32" else f"-{options.dtype}"
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"coda-{machine}{suffix}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(
        json.dumps(
            {"ratios": ratios, "peak_bytes": memory, "relative_difference": result["relative_difference"]}, indent=2
        )
    )
    print(f"written: {path}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
