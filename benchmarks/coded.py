"""Coded blocks against their literal form, in JAX and PyTorch, and the training step of the whole CIFAR-10 network.

    python -m benchmarks.coded                  # B = 32, C = 512, N = 10, d = 22, 16×16; the network with 32 images

The literal form makes the (B, H, W, N, C) tensor of all paths' answers, as the paper states it, and convolves in groups
by the framework's own convolution, whose backward pass is XLA's slow one on a CPU; `literal_split` is the same with our
grouped convolution, so that the two parts of the gain stand apart. Same parameters and images; losses that depend on
every output and energy, and their gradients, are compared before anything is timed. A step is the loss and its
gradient, with the batch's statistics. `slice` is the forward pass of one class' classifier, cut out of the network,
beside the whole network's. All alternate in one process; medians. Memory is the growth of the resident set
(GPU: the allocator's peak) during a block's step, each side in a process of its own.
"""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import torch.nn.functional as F  # noqa: N812
import tyro
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

from benchmarks.measuring import alternate, compiled, growth, record, relative, torch_device, wait
from benchmarks.torch_coded import Block, ResNeXt
from jaxinterp.coded.block import CodedBlock, grouped_conv
from jaxinterp.coded.network import CodedResNeXt, coded_cifar10, coding_loss
from jaxinterp.coded.surgery import binary_classifier, costs

TOLERANCE = 1e-3  # relative, of losses and gradients in float32
DEEP = {  # gradients past ReLUs: one of two million that rounds the other way at 0 moves a norm by 7e-4
    "torch/kernel_gradient": 3e-3,
    "torch/input_gradient": 3e-3,
    "network/first_block_gradient": 1e-2,
}


@dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    batch: int = 32
    rounds: int = 5
    side: int = 16  # of the block's input, in pixels
    features: int = 512
    paths: int = 10
    width: int = 22
    network: bool = True  # measure the whole network too
    memory: bool = True  # measure the memory of a block's step too
    compiled: bool = False  # state the ratios to torch.compile too
    probe: Literal["", "ours", "literal"] = ""  # internal: measure one side's memory and print it


def literal(params: Any, x: Float[Array, "n h w c"], paths: int, split: bool) -> tuple[Array, Array]:
    """A coded block in training as the paper states it: every t_n in memory; XLA's grouped convolution, or ours."""

    def norm(name: str, y: Array) -> Array:
        mean, square = y.mean((0, 1, 2)), (y**2).mean((0, 1, 2))
        factor = params[name]["scale"] * lax.rsqrt(square - mean**2 + 1e-5)
        return (y - mean) * factor + params[name]["bias"]

    u = nn.relu(norm("norm_reduce", x @ params["reduce"]["kernel"]))
    if split:
        u = grouped_conv(u, params["inner_kernel"])
    else:
        u = lax.conv_general_dilated(
            u,
            params["inner_kernel"],
            (1, 1),
            ((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=paths,
        )
    u = nn.relu(norm("norm_inner", u)).reshape(*u.shape[:3], paths, -1)
    t = jnp.einsum("bhwnd,ndc->bhwnc", u, params["expand_kernel"])
    energies = (t**2).mean((1, 2, 4))
    rho = jnp.sqrt(energies.mean(1))
    y = norm("norm_expand", (t / rho[:, None, None, None, None]).sum(3))
    return nn.relu(y + x), energies


def objective(y: Array, energies: Array, target: Array) -> Array:
    """A number that depends on every output and every energy."""
    words = jnp.zeros_like(energies).at[:, ::2].set(1)
    return (y * target).mean() + coding_loss(energies, words)


Jobs = dict[str, Callable[[], Any]]
Make = Callable[..., Callable[[], Any]]  # (channels last, whether compiled)


def blocks(options: Options) -> tuple[Jobs, Make]:
    """The three steps of a block, and how far they differ."""
    shape = (options.batch, options.side, options.side, options.features)
    x, target = (jax.random.normal(jax.random.key(seed), shape) for seed in (0, 1))
    block = CodedBlock(options.features, options.width, options.paths, options.paths)
    variables = jax.jit(block.init)(jax.random.key(2), x)
    scale = jax.random.normal(jax.random.key(3), (options.features,))  # at its initial 0 nothing of a block is seen
    params = {**variables["params"], "norm_expand": {**variables["params"]["norm_expand"], "scale": scale}}

    def ours(params: Any, x: Array) -> Array:
        (y, energies), _ = block.apply({**variables, "params": params}, x, True, mutable="batch_stats")
        return objective(y, energies, target)

    def theirs(params: Any, x: Array, split: bool) -> Array:
        return objective(*literal(params, x, options.paths, split), target)

    step = jax.jit(jax.value_and_grad(ours, (0, 1)))
    slow = jax.jit(jax.value_and_grad(theirs, (0, 1)), static_argnums=2)

    def in_torch(channels_last: bool, faster: bool = False) -> Callable[[], Any]:
        layout, device = torch.channels_last if channels_last else torch.contiguous_format, torch_device()
        net = Block(params, 1, True).train().to(device=device, memory_format=layout)
        answer = torch.compile(net) if faster else net
        images, aim = (torch.from_numpy(np.array(a).transpose(0, 3, 1, 2)).contiguous().to(device) for a in (x, target))
        images = images.to(memory_format=layout).requires_grad_()
        words = torch.zeros(options.batch, options.paths, device=device)
        words[:, ::2] = 1

        def run() -> Any:
            net.zero_grad(set_to_none=True)
            images.grad = None
            y, energies = answer(images)
            shares = words.sum(1, keepdim=True) * energies / energies.sum(1, keepdim=True)
            loss = (y * aim).mean() + ((shares - words) ** 4).mean()
            loss.backward()
            wait(device)
            return loss, net.inner.weight.grad, images.grad

        return run

    jobs = {
        "ours": lambda: jax.block_until_ready(step(params, x)),
        "literal": lambda: jax.block_until_ready(slow(params, x, False)),
        "literal_split": lambda: jax.block_until_ready(slow(params, x, True)),
    }
    return jobs, in_torch


def block_differences(jobs: Jobs, baseline: Callable[[], Any]) -> dict[str, float]:
    """Relative differences of loss and gradients; of these by norms, as a ReLU at 0 may round either way."""
    value, (gradients, to_input) = jobs["ours"]()
    loss, inner, images = baseline()
    other, (literal_gradients, _) = jobs["literal"]()
    pairs = zip(jax.tree.leaves(gradients), jax.tree.leaves(literal_gradients), strict=True)
    return {
        "torch/loss": relative(value, loss),
        "torch/kernel_gradient": distance(np.asarray(gradients["inner_kernel"]).transpose(3, 2, 0, 1), inner.cpu()),
        "torch/input_gradient": distance(np.asarray(to_input).transpose(0, 3, 1, 2), images.cpu()),
        "literal/loss": abs(float(value) / float(other) - 1),
        "literal/gradients": float(np.max([distance(a, b) for a, b in pairs])),
    }


def distance(ours: Any, theirs: Any) -> float:
    """Norm of the difference over the norm."""
    return float(np.linalg.norm(np.subtract(ours, theirs)) / np.linalg.norm(theirs))


def require_equal(differences: dict[str, float]) -> None:
    """End the benchmark where the sides differ."""
    for name, difference in differences.items():
        if not difference <= DEEP.get(name, TOLERANCE):
            raise SystemExit(f"{name}: the sides differ by {difference:.1e}, expected <= {DEEP.get(name, TOLERANCE)}")


def _awake(params: Any) -> Any:
    """Parameters whose last BatchNorm of every block is not at its initial 0, behind which nothing would be seen."""
    draws = {
        name: 0.3 * jax.random.normal(jax.random.key(i), block["norm_expand"]["scale"].shape)
        for i, (name, block) in enumerate(params.items())
        if name.startswith("block_")
    }
    return {
        name: {**block, "norm_expand": {**block["norm_expand"], "scale": draws[name]}} if name in draws else block
        for name, block in params.items()
    }


def network_steps(options: Options) -> tuple[Jobs, Make]:
    """Training steps of the CIFAR-10 network, coded and not, and of PyTorch's baseline with the same parameters."""
    images = jax.random.uniform(jax.random.key(0), (options.batch, 32, 32, 3))
    labels = jax.random.randint(jax.random.key(1), (options.batch,), 0, 10)

    def job(model: CodedResNeXt) -> tuple[Callable[[], Any], Any]:
        variables = jax.jit(model.init)(jax.random.key(2), images)

        variables = {**variables, "params": _awake(variables["params"])}

        def loss(params: Any, images: Array, key: PRNGKeyArray) -> Array:
            (logits, energies), _ = model.apply(
                {**variables, "params": params},
                images,
                True,
                energies=True,
                mutable="batch_stats",
                rngs={"dropout": key},
            )
            codes = zip(energies, model.codes, strict=True)
            coding = [coding_loss(e, jnp.asarray(c.table, e.dtype)[labels]) for e, c in codes]
            cross = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
            return cross + 6 * sum(coding, jnp.float32(0))

        step = jax.jit(jax.value_and_grad(loss))
        key = jax.random.key(3)
        return lambda: jax.block_until_ready(step(variables["params"], images, key)), variables["params"]

    coded, _ = job(coded_cifar10(drop=0.1))
    plain, params = job(coded_cifar10(coded=False))

    def in_torch(channels_last: bool, faster: bool = False) -> Callable[[], Any]:
        layout, device = torch.channels_last if channels_last else torch.contiguous_format, torch_device()
        net = ResNeXt(coded_cifar10(coded=False), params).train().to(device=device, memory_format=layout)
        answer = torch.compile(net) if faster else net
        x = torch.from_numpy(np.array(images).transpose(0, 3, 1, 2)).contiguous().to(device, memory_format=layout)
        y = torch.from_numpy(np.array(labels)).long().to(device)

        def run() -> Any:
            net.zero_grad(set_to_none=True)
            loss = F.cross_entropy(answer(x), y)
            loss.backward()
            wait(device)
            deepest = next(iter(net.blocks))
            assert isinstance(deepest, Block)
            return loss, net.head.grad, deepest.inner.weight.grad

        return run

    return {"coded": coded, "baseline": plain}, in_torch


def forwards(options: Options) -> tuple[Jobs, float]:
    """The whole CIFAR-10 network and the classifier of one class cut out of it; the multiply-adds that it keeps."""
    model, images = coded_cifar10(), jax.random.uniform(jax.random.key(0), (options.batch, 32, 32, 3))
    variables = jax.jit(model.init)(jax.random.key(2), images)
    small, sliced = binary_classifier(model, variables, 0)
    whole_run, slice_run = jax.jit(model.apply), jax.jit(small.apply)
    adds = [sum(part.multiply_adds for part in costs(net, images.shape[1:])) for net in (small, model)]
    jobs = {
        "whole": lambda: jax.block_until_ready(whole_run(variables, images)),
        "slice": lambda: jax.block_until_ready(slice_run(sliced, images)),
    }
    return jobs, adds[0] / adds[1]


def fastest(make: Make) -> tuple[str, Callable[[], Any]]:
    """PyTorch's job in its faster memory format."""
    made = {"contiguous": make(False), "channels_last": make(True)}
    times = alternate(made, 2)
    best = min(made, key=lambda name: times[name]["median"])
    return best, made[best]


def fast(options: Options, make: Make, layout: str, name: str, notes: dict[str, str]) -> Jobs:
    """PyTorch's compiled job, if it is asked for and can be had; else a note says why not."""
    if not options.compiled:
        return {}
    job, fault = compiled(lambda: make(layout == "channels_last", True))
    if job is None:
        notes[f"{name}/torch.compile"] = fault
        return {}
    return {"torch.compile": job}


def probe(options: Options) -> int:
    """Peak bytes that a block's step takes over its parameters, images and program, on one side."""
    return growth(blocks(options)[0][options.probe], jax.default_backend() == "gpu")


def main(options: Options) -> None:
    """Measure, print and write the results."""
    if options.probe:
        print(probe(options))
        return
    torch_device()
    jobs, make = blocks(options)
    layout, baseline = fastest(make)
    difference = block_differences(jobs, baseline)
    layouts, ratios, notes = {"block": layout}, dict[str, float](), dict[str, str]()
    require_equal(difference)
    sides = {**jobs, "torch": baseline, **fast(options, make, layout, "block", notes)}
    seconds = {f"block/{k}": v for k, v in alternate(sides, options.rounds).items()}
    if options.network:
        steps, make = network_steps(options)
        layouts["network"], baseline = fastest(make)
        loss, head, inner = baseline()
        value, gradients = steps["baseline"]()
        difference["network/loss"] = relative(value, loss)
        difference["network/head_gradient"] = relative(gradients["classifier"]["kernel"], head)
        first = np.asarray(gradients["block_1"]["inner_kernel"]).transpose(3, 2, 0, 1)
        difference["network/first_block_gradient"] = distance(first, inner.detach().cpu())
        require_equal(difference)
        sides = {**steps, "torch": baseline, **fast(options, make, layouts["network"], "network", notes)}
        seconds |= {f"network/{k}": v for k, v in alternate(sides, options.rounds).items()}
        cut, kept = forwards(options)
        seconds |= {f"forward/{k}": v for k, v in alternate(cut, 3 * options.rounds).items()}
    median = {name: value["median"] for name, value in seconds.items()}
    ratios["block_vs_literal_jax"] = median["block/literal"] / median["block/ours"]
    ratios["block_vs_literal_jax_same_convolution"] = median["block/literal_split"] / median["block/ours"]
    ratios["block_vs_literal_torch"] = median["block/torch"] / median["block/ours"]
    if "block/torch.compile" in median:
        ratios["block_vs_literal_torch_compile"] = median["block/torch.compile"] / median["block/ours"]
    if "network/torch.compile" in median:
        ratios["step_vs_torch_compile_baseline"] = median["network/torch.compile"] / median["network/coded"]
    if options.network:
        ratios["step_vs_baseline"] = median["network/coded"] / median["network/baseline"]
        ratios["step_vs_torch_baseline"] = median["network/torch"] / median["network/coded"]
        ratios["slice_vs_whole"] = median["forward/slice"] / median["forward/whole"]
        ratios["slice_vs_multiply_adds"] = ratios["slice_vs_whole"] / kept
    sizes = ("batch", "side", "features", "paths", "width")
    flags = [part for name in sizes for part in (f"--{name}", str(getattr(options, name)))]
    memory = {}
    if options.memory:
        call = [sys.executable, "-m", "benchmarks.coded", *flags, "--probe"]
        memory = {
            side: int(subprocess.check_output([*call, side], text=True).split()[-1]) for side in ("ours", "literal")
        }
        ratios["memory_vs_literal"] = memory["ours"] / memory["literal"]
    record(
        "coded",
        seconds,
        ratios,
        setting={**{name: getattr(options, name) for name in sizes}, "torch_memory_format": layouts},
        relative_difference=difference,
        peak_bytes=memory,
        notes=notes,
    )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
