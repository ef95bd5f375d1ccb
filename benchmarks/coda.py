"""CoDA S net against its explicit-weights formulation in PyTorch: time, memory and all-class explanations.

    python -m benchmarks.coda                       # float32 on this machine's CPU, both with the same threads
    python -m benchmarks.coda --dtype bfloat16      # where JAX runs on a GPU, PyTorch must have it too

Same parameters and images; logits, loss, gradients and maps are compared before anything is timed. The two
alternate within one process and medians are quoted; `first_call` is compilation or warm-up. A train step is the loss
and its gradient. The baseline of the explanation is ten single-class passes, forward and backward; `shared_forward` is
the same with one forward pass for all. `products` is the time of the layers' largest matrix products alone, patches
with A, as often as our step has them (4 on a CPU, where the forward pass is computed again, else 3): no order of the
same products is faster. `gemm` is that of all our products, and `forward_over_gemm`, `step_over_gemm` our time over it.
PyTorch runs in its faster memory format; ratios are of medians, `minima` has them of the least times.

Memory is the growth of the resident set (GPU: the allocator's peak) during a train step, over parameters, images and
the compiled program, each side in a process of its own.
"""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import torch.nn.functional as F  # noqa: N812
import tyro

from benchmarks.measuring import alternate, compiled, growth, record, relative, timed, torch_device, wait
from benchmarks.torch_coda import ExplicitCoDA
from jaxinterp import decompose, explainable
from jaxinterp.coda.alignment import CHUNK_BYTES
from jaxinterp.coda.network import CoDANet, encode, s_coda
from jaxinterp.coda.torch_weights import to_torch

# The temperature, with no bias: at initialization 1000 leaves evidence of 1e-5, which a bias of -2.2 would round away
# and no comparison would then notice a wrong network.
SCALE = 1.0


@dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    batch: int = 16
    rounds: int = 7
    dtype: Literal["float32", "bfloat16"] = "float32"
    small: bool = False  # two layers in place of the S net, to see that everything runs
    compiled: bool = True  # state the ratio to torch.compile beside the eager one
    memory: bool = True  # measure the memory of a step too
    machine: str = ""  # in the results, and their file's name; default: GPU, processor, cores, memory
    probe: Literal["", "jax", "torch"] = ""  # internal: measure one side's memory and print it


def ours(options: Options) -> tuple[dict[str, Callable[[], Any]], dict[str, Any], np.ndarray, np.ndarray]:
    """Our three jobs, the variables, the images and the labels."""
    model = network(options)
    rng = np.random.default_rng(0)
    images = rng.random((options.batch, 32, 32, 3), np.float32)
    labels = rng.integers(0, 10, options.batch)
    variables = jax.jit(model.init)(jax.random.key(0), images)
    x, one_hot = encode(jnp.asarray(images)), jax.nn.one_hot(labels, 10)

    def loss(v: Any, e: jax.Array, y: jax.Array) -> jax.Array:
        return optax.sigmoid_binary_cross_entropy(model.apply(v, e, encoded=True), y).mean()

    net = explainable(model, variables)
    forward, step = jax.jit(lambda v, e: model.apply(v, e, encoded=True)), jax.jit(jax.value_and_grad(loss))
    jobs = {
        "forward": lambda: forward(variables, x),
        "train_step": lambda: step(variables, x, one_hot),
        "explain_all_classes": lambda: decompose(net, images),
    }
    return {k: lambda job=job: jax.block_until_ready(job()) for k, job in jobs.items()}, variables, images, labels


def network(options: Options) -> CoDANet:
    """The S net, or two layers."""
    net = s_coda(SCALE, logit_bias=0.0, dtype=jnp.dtype(options.dtype))
    small: dict[str, Any] = {"features": (4, 10), "ranks": (2, 2), "kernel_sizes": (3, 1), "strides": (2, 1)}
    return net.clone(**small) if options.small else net


def layers(options: Options) -> list[tuple[int, int, int, int]]:
    """(features, rank, kernel, stride) of the network's layers."""
    spec = network(options)
    return list(zip(spec.features, spec.ranks, spec.kernel_sizes, spec.strides, strict=True))


def products(options: Options) -> dict[str, Callable[[], Any]]:
    """The matrix products of patches with A alone, and all products; a block's rows at a time, results thrown away.

    All are those of patches with B, A and b, of h with the Gram matrices and A_jᵀ b_j, and these themselves.
    """
    cpu = jax.default_backend() == "cpu"
    large, small, units, size, channels = [], [], [], 32, 6
    for features, rank, kernel, stride in layers(options):
        size, d = size // stride, channels * kernel**2
        rows = options.batch * size**2
        most = CHUNK_BYTES // (4 * rank * features) if cpu else rows
        block = -(-rows // -(-rows // most))

        def pair(depth: int, *widths: int, rows: int = rows, block: int = block) -> tuple[Any, list[Any]]:
            left = jnp.ones((-(-rows // block), block, depth), options.dtype)
            return left, [jnp.ones((depth, width), options.dtype) for width in widths]

        large.append(pair(d, rank * features))
        small += [pair(d, rank, features), pair(rank, rank * features, features)]
        units.append(jnp.ones((features, rank + 1, d), options.dtype))
        channels = features

    def corner(product: jax.Array) -> jax.Array:  # read after the product, so that it is not narrowed to a column
        return jax.lax.optimization_barrier(product)[:, 0]

    @jax.jit
    def multiply(pairs: Any) -> Any:
        return [jax.lax.map(lambda p, sides=sides: [corner(p @ a) for a in sides], blocks) for blocks, sides in pairs]

    @jax.jit
    def square(units: Any) -> Any:
        return [jax.lax.map(lambda a: corner(a @ a.T), unit) for unit in units]

    def run(times: tuple[int, int, int]) -> None:
        for count, job, values in zip(times, (multiply, multiply, square), (large, small, units), strict=True):
            for _ in range(count):
                jax.block_until_ready(job(values))

    backward = 4 if cpu else 3  # on a CPU the forward pass is computed again
    return {
        "products/forward": partial(run, (1, 0, 0)),
        "products/train_step": partial(run, (backward, 0, 0)),
        "gemm/forward": partial(run, (1, 1, 1)),
        "gemm/train_step": partial(run, (backward, backward - 1, 2)),  # h (G h) needs no product of its own backward
    }


def theirs(
    options: Options, variables: Any, images: np.ndarray, labels: np.ndarray, channels_last: bool, faster: bool = False
) -> dict[str, Callable[[], Any]]:
    """The same jobs in PyTorch; an explanation is one forward and one backward pass for every class."""
    device = torch_device()
    net = ExplicitCoDA(layers(options), SCALE, 0.0)
    net.load(to_torch(variables["params"]))
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    net = net.to(device=device, dtype=getattr(torch, options.dtype), memory_format=memory_format)
    x = torch.from_numpy(np.asarray(encode(images)).transpose(0, 3, 1, 2).copy())
    x = x.to(device=device, dtype=getattr(torch, options.dtype), memory_format=memory_format)
    one_hot = F.one_hot(torch.from_numpy(labels), 10).to(device, torch.float32)
    run = torch.compile(net) if faster else net

    def forward() -> torch.Tensor:
        with torch.no_grad():
            out = run(x)
        wait(device)
        return out

    def train_step() -> tuple[torch.Tensor, list[torch.Tensor]]:
        net.zero_grad(set_to_none=True)
        loss = F.binary_cross_entropy_with_logits(run(x).float(), one_hot)
        loss.backward()
        wait(device)
        return loss, [part.grad for part in net.parts if part.grad is not None]

    def explain(shared: bool) -> torch.Tensor:
        net.frozen = True
        e = x.detach().requires_grad_()
        maps, logits = [], net(e) if shared else None
        for k in range(10):
            out = net(e) if logits is None else logits
            maps.append(torch.autograd.grad(out[:, k].sum(), e, retain_graph=shared and k < 9)[0] * e.detach())
        net.frozen = False
        wait(device)
        return torch.stack(maps, 1)

    return {
        "forward": forward,
        "train_step": train_step,
        "explain_all_classes": partial(explain, False),
        "shared_forward": partial(explain, True),
    }


def probe(options: Options) -> int:
    """Peak bytes that a training step takes over parameters, images and the compiled program, on one side."""
    gpu = torch_device().type == "cuda"
    jobs, variables, images, labels = ours(options)
    if options.probe == "torch":
        jobs = theirs(options, variables, images, labels, channels_last=False)
    job = jobs["train_step"]
    if gpu and options.probe == "torch":
        job()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        job()
        return torch.cuda.max_memory_allocated() - before
    return growth(job, gpu)


def main(options: Options) -> None:
    """Measure, print and write the results."""
    if options.probe:
        print(probe(options))
        return
    torch_device()
    jobs, variables, images, labels = ours(options)
    first = {f"ours/{name}": timed(job) for name, job in jobs.items()}
    formats = {
        f: theirs(options, variables, images, labels, channels_last=f == "channels_last")
        for f in ("contiguous", "channels_last")
    }
    their_maps = formats["contiguous"]["explain_all_classes"]().permute(0, 1, 3, 4, 2)
    their_loss, their_gradients = formats["contiguous"]["train_step"]()
    loss, gradients = jobs["train_step"]()
    difference = {
        "logits": relative(jobs["forward"](), formats["contiguous"]["forward"]()),
        "contributions": relative(jobs["explain_all_classes"]().contributions, their_maps),
        "loss": relative(loss, their_loss),
        "gradients": max(
            relative(a, b) for a, b in zip(to_torch(gradients["params"]).values(), their_gradients, strict=True)
        ),
    }
    tolerance = 1e-4 if options.dtype == "float32" else 5e-2
    if not max(difference.values()) <= tolerance:
        raise SystemExit(f"the two differ by {difference} of the largest entry, expected <= {tolerance:.0e}")

    floor = products(options)
    best, seconds = {}, dict[str, dict[str, Any]]()
    for name in ("forward", "train_step"):
        short = alternate({f: formats[f][name] for f in formats}, 1)
        best[name] = min(short, key=lambda f: short[f]["median"])
        three = {"ours": jobs[name], "torch": formats[best[name]][name]}
        three |= {kind: floor[f"{kind}/{name}"] for kind in ("products", "gemm")}
        seconds |= alternate({f"{side}/{name}": job for side, job in three.items()}, options.rounds)
    name = "explain_all_classes"
    best[name] = best["forward"]
    baseline = formats[best[name]]
    three = {"ours": jobs[name], "torch": baseline[name], "torch/shared_forward": baseline["shared_forward"]}
    seconds |= alternate({f"{side}/{name}": job for side, job in three.items()}, min(3, options.rounds))

    def over(one: str, other: str, of: str = "median") -> float:
        return seconds[one][of] / seconds[other][of]

    ratios = {f"{name}_vs_torch": over(f"torch/{name}", f"ours/{name}") for name in jobs}
    pairs = {"forward_over_gemm": "forward", "step_over_gemm": "train_step"}
    ratios |= {ratio: over(f"ours/{name}", f"gemm/{name}") for ratio, name in pairs.items()}
    minima = {f"{name}_vs_torch": over(f"torch/{name}", f"ours/{name}", "minimum") for name in jobs}
    minima |= {ratio: over(f"ours/{name}", f"gemm/{name}", "minimum") for ratio, name in pairs.items()}
    shared = seconds[f"torch/shared_forward/{name}"]["median"]
    ratios[f"{name}_vs_torch_shared_forward"] = shared / seconds[f"ours/{name}"]["median"]
    notes = {}
    if options.compiled:
        for name in ("forward", "train_step"):
            channels_last = best[name] == "channels_last"
            fast, fault = compiled(lambda: theirs(options, variables, images, labels, channels_last, True)[name])  # noqa: B023
            if fast is None:
                notes[f"torch.compile/{name}"] = fault
                continue
            pair = {f"ours/{name}/again": jobs[name], f"torch.compile/{name}": fast}
            seconds |= alternate(pair, options.rounds)
            ratios[f"{name}_vs_torch_compile"] = (
                seconds[f"torch.compile/{name}"]["median"] / seconds[f"ours/{name}/again"]["median"]
            )
    for name, spent in first.items():
        seconds[name]["first_call"] = spent
    memory = {}
    if options.memory:
        sizes = ["--batch", str(options.batch), "--dtype", options.dtype, *(["--small"] if options.small else [])]
        call = [sys.executable, "-m", "benchmarks.coda", *sizes, "--probe"]
        memory = {side: int(subprocess.check_output([*call, side], text=True).split()[-1]) for side in ("jax", "torch")}
        ratios["memory_vs_torch"] = memory["jax"] / memory["torch"]
    record(
        "coda",
        seconds,
        ratios,
        where=options.machine,
        suffix="" if options.dtype == "float32" else f"-{options.dtype}",
        setting={
            "net": "two layers" if options.small else "S",
            "batch": options.batch,
            "dtype": options.dtype,
            "torch_memory_format": best,
        },
        notes=notes,
        relative_difference=difference,
        minima=minima,
        peak_bytes=memory,
    )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
