"""The path kernel against plain matrix products and PyTorch; training steps of gated networks against their ReLU twin.

    python -m benchmarks.npk                # n = 8192, width 512, 4 hidden layers, 3072 inputs
    python -m benchmarks.npk --n 2048       # smaller

`products` are the matrix products alone that the fully connected kernel consists of, one after another, of the same
shapes and type. PyTorch writes the same kernel with its own products, in place. All alternate in one process; medians.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import tyro

from benchmarks.measuring import alternate, compiled, record, relative, torch_device, wait
from jaxinterp.gated.architecture import c4gap, fc, gate_shapes
from jaxinterp.gated.kernels.path import PathKernel
from jaxinterp.gated.network import GatedNetwork, Network


@dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    n: int = 8192
    width: int = 512
    hidden: int = 4
    inputs: int = 3072
    rounds: int = 3
    batch: int = 32  # of the training steps
    channels: int = 64  # of the convolutions
    conv_channels: int = 128  # of those of the conv + GAP kernel
    compiled: bool = False  # state the ratio to torch.compile too


def hard_gates(layers: Any, shape: tuple[int, ...], n: int) -> tuple[jax.Array, ...]:
    """Random gates, half of them open."""
    key = jax.random.key(1)
    return tuple(
        jax.random.bernoulli(jax.random.fold_in(key, i), 0.5, (n, *gate))
        for i, gate in enumerate(gate_shapes(layers, shape))
    )


def fully_connected(options: Options) -> tuple[dict[str, Callable[[], Any]], dict[str, float], dict[str, str]]:
    """Jobs of the fully connected kernel, how far the two sides differ, and what there was to say."""
    layers = fc(options.width, options.hidden)
    x = jax.random.normal(jax.random.key(0), (options.n, options.inputs))
    gates = hard_gates(layers, (options.inputs,), options.n)
    kernel = PathKernel(layers, normalize="width")
    factors = [x, *(gate.astype(jnp.float32) for gate in gates)]
    product = jax.jit(lambda a, b: jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST))
    device = torch_device()
    tensors = [torch.from_numpy(np.array(factor)).to(device) for factor in factors]

    def product_of(tensors: list[torch.Tensor]) -> torch.Tensor:
        k = tensors[0] @ tensors[0].T
        for gate in tensors[1:]:
            k *= (gate @ gate.T) / gate.shape[1]
        return k

    def in_torch(run: Callable[..., torch.Tensor] = product_of) -> torch.Tensor:
        k = run(tensors)
        wait(device)
        return k

    jobs = {
        "rectangular": lambda: jax.block_until_ready(kernel(x, gates, x, gates)),
        "symmetric": lambda: jax.block_until_ready(kernel(x, gates)),
        "products": lambda: [jax.block_until_ready(product(factor, factor)) for factor in factors],
        "torch": in_torch,
    }
    notes = {}
    if options.compiled:
        fast, fault = compiled(lambda: partial(in_torch, torch.compile(product_of)))
        if fast is None:
            notes["torch.compile"] = fault
        else:
            jobs["torch.compile"] = fast
    return jobs, {"kernel": relative(jobs["rectangular"](), in_torch())}, notes


def convolutional(channels: int) -> tuple[Callable[[], Any], int]:
    """The kernel of a conv + GAP net at 32×32, and how many pairs and layers it has."""
    layers, pairs = c4gap(channels), 4
    x = jax.random.normal(jax.random.key(0), (pairs, 32, 32, 3))
    gates = hard_gates(layers, (32, 32, 3), pairs)
    kernel = PathKernel(layers, normalize="width")
    return lambda: jax.block_until_ready(kernel(x, gates, x, gates)), pairs**2 * 4


def steps(options: Options) -> dict[str, Callable[[], Any]]:
    """Loss and gradient of C4GAP as ReLU network, DGN and DLGN."""
    layers = c4gap(options.channels)
    x = jax.random.uniform(jax.random.key(0), (options.batch, 32, 32, 3))
    labels = jnp.arange(options.batch) % 10
    models = {
        "relu_step": Network(layers),
        "dgn_step": GatedNetwork(layers, gating="relu"),
        "dlgn_step": GatedNetwork(layers, gating="linear"),
    }

    def job(model: Any) -> Callable[[], Any]:
        variables = jax.jit(model.init)(jax.random.key(1), x)

        def loss(v: Any, x: jax.Array) -> jax.Array:
            return optax.softmax_cross_entropy_with_integer_labels(model.apply(v, x), labels).mean()

        step = jax.jit(jax.value_and_grad(loss))
        return lambda: jax.block_until_ready(step(variables, x))

    return {name: job(model) for name, model in models.items()}


def main(options: Options) -> None:
    """Measure, print and write the results."""
    torch_device()
    jobs, difference, notes = fully_connected(options)
    if not difference["kernel"] <= 1e-5:
        raise SystemExit(f"the kernels differ by {difference['kernel']:.1e} of the largest entry, expected <= 1e-05")
    seconds = alternate(jobs, options.rounds) | alternate(steps(options), options.rounds)
    convolution, layers = convolutional(options.conv_channels)
    seconds |= alternate({"convolutional": convolution}, options.rounds)
    median = {name: times["median"] for name, times in seconds.items()}
    entries = options.n**2 * (options.inputs + options.width * options.hidden)
    ratios = {
        "fc_npk_vs_gemm": median["products"] / median["rectangular"],
        "symmetric_vs_rectangular": median["symmetric"] / median["rectangular"],
        "npk_vs_torch": median["torch"] / median["rectangular"],
        "dgn_step_vs_relu": median["dgn_step"] / median["relu_step"],
        "dlgn_step_vs_relu": median["dlgn_step"] / median["relu_step"],
    }
    if "torch.compile" in median:
        ratios["npk_vs_torch_compile"] = median["torch.compile"] / median["rectangular"]
    record(
        "npk",
        seconds,
        ratios,
        setting=vars(options),
        relative_difference=difference,
        notes=notes,
        gflops={name: 2e-9 * entries / median[name] for name in ("rectangular", "products", "torch")},
        convolutional_microseconds_per_pair_and_layer=1e6 * median["convolutional"] / layers,
    )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
