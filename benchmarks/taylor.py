"""TaylorNet: all orders against a forward pass, low orders and the training step against PyTorch.

    python -m benchmarks.taylor                 # the network of taylor/mnist, degree 16; 64 images, steps of 128

`orders` reads all 17 orders of 64 images by series propagation, `orders_4` those up to 4, as PyTorch does by nested
`torch.func.jvp`; a step is the loss and its gradient (PyTorch in its faster memory format). Same parameters and images;
orders, losses and gradients are compared before anything is timed. All alternate in one process; medians.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import torch.nn.functional as F  # noqa: N812
import tyro

from benchmarks import torch_taylor
from benchmarks.measuring import alternate, compiled, record, relative, torch_device, wait
from jaxinterp import explainable, orders
from jaxinterp.taylor import TaylorNet, overlapping, with_expansion_point

TOLERANCE = 1e-3  # largest relative difference from PyTorch, in float32


@dataclass(frozen=True)
class Options:
    """Sizes of the measurement."""

    batch: int = 64  # images whose orders are read
    step: int = 128  # images of a training step
    rounds: int = 15
    low: int = 4  # orders that PyTorch reads too
    compiled: bool = False  # state the ratio of the step to torch.compile too


def main(options: Options) -> None:
    """Measure, check against PyTorch, print and write the results."""
    device = torch_device()
    model = TaylorNet(levels=overlapping(), size=32)
    images = jax.random.uniform(jax.random.key(0), (options.step, 28, 28, 1))
    labels = jnp.arange(options.step) % 10
    variables = with_expansion_point(jax.jit(model.init)(jax.random.key(1), images), np.full((28, 28, 1), 0.3))
    x0, subset = variables["batch_stats"]["expansion_point"], images[: options.batch]
    forward, net = jax.jit(model.apply), explainable(model, variables)

    def read(max_order: int) -> jax.Array:
        parts = orders(net, subset, x0=x0, max_order=max_order)
        return jax.block_until_ready(jnp.moveaxis(parts.contributions, 2, 0))

    def loss(params: Any, x: jax.Array) -> jax.Array:
        logits = model.apply({**variables, "params": params}, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    step = jax.jit(jax.value_and_grad(loss))
    jobs: dict[str, Callable[[], Any]] = {
        "forward": lambda: jax.block_until_ready(forward(variables, subset)),
        "orders": lambda: read(model.degree),
        "orders_low": lambda: read(options.low),
        "step": lambda: jax.block_until_ready(step(variables["params"], images)),
    }

    other = torch_taylor.Net(model, variables).to(device)
    theirs = torch.from_numpy(np.array(images).transpose(0, 3, 1, 2)).contiguous().to(device)
    target = torch.from_numpy(np.array(labels)).long().to(device)

    def torch_step(layout: torch.memory_format, faster: bool = False) -> Callable[[], Any]:
        twin = torch_taylor.Net(model, variables).to(device=device, memory_format=layout)
        answer = torch.compile(twin) if faster else twin
        inputs = theirs.to(memory_format=layout)

        def run() -> Any:
            twin.zero_grad(set_to_none=True)
            value = F.cross_entropy(answer(inputs), target)
            value.backward()
            wait(device)
            return value, twin.head.weight.grad, twin.outs[0].weight.grad  # type: ignore[union-attr]

        return run

    layouts = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
    baselines = {name: torch_step(layout) for name, layout in layouts.items()}
    timings = alternate(baselines, 3)
    layout = min(timings, key=lambda name: timings[name]["median"])

    def torch_orders() -> torch.Tensor:
        found = torch_taylor.orders(other, theirs[: options.batch], options.low)
        wait(device)
        return found

    jobs |= {"torch_orders_low": torch_orders, "torch_step": baselines[layout]}
    notes = {}
    if options.compiled:
        fast, fault = compiled(lambda: torch_step(layouts[layout], True))
        if fast is None:
            notes["torch.compile"] = fault
        else:
            jobs["torch_compile_step"] = fast

    value, head, first = baselines[layout]()
    ours, gradients = jobs["step"]()
    difference = {
        "orders": relative(jobs["orders_low"](), jobs["torch_orders_low"]()),
        "sum_of_orders": float(
            jnp.abs(jobs["orders"]().sum(0) - jobs["forward"]()).max() / jnp.abs(jobs["forward"]()).max()
        ),
        "loss": relative(ours, value),
        "head_gradient": relative(gradients["head"]["linear"].T, head),
        "first_level_gradient": relative(gradients["level_0"]["unit"]["out_2"].T, first),
    }
    mismatched = {name: size for name, size in difference.items() if not size <= TOLERANCE}
    if mismatched:
        raise SystemExit(f"they differ: {mismatched}, expected at most {TOLERANCE}")
    seconds = alternate(jobs, options.rounds)
    median = {name: times["median"] for name, times in seconds.items()}
    ratios = {
        "orders_vs_forward": median["orders"] / median["forward"],
        "low_orders_vs_torch": median["torch_orders_low"] / median["orders_low"],
        "step_vs_torch": median["torch_step"] / median["step"],
    }
    if "torch_compile_step" in median:
        ratios["step_vs_torch_compile"] = median["torch_compile_step"] / median["step"]
    setting = {**vars(options), "degree": model.degree, "torch_memory_format": layout}
    record("taylor", seconds, ratios, setting=setting, relative_difference=difference, notes=notes)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
