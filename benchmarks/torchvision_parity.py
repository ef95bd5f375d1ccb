"""Weights of PyTorch networks read here: logits beside torchvision's, and the memory of decomposing a ResNet-50.

    python -m benchmarks.torchvision_parity                                              # needs torch and torchvision
    python -m benchmarks.torchvision_parity --golden tests/golden/torch_networks.npz     # logits for tests without it

Weights are drawn from a seeded NumPy generator, so that no weights need be stored: He's normal for filters and
matrices, scales and variances in [0.5, 1.5], biases and means of deviation 0.1. `error` is the largest difference of
logits over their largest size, in float32 from weights of each floating type, widened by PyTorch too; `round_trip` is
that of PyTorch's logits after `to_torch(from_torch(...))`. `peak` is the growth of the resident set during the second
decomposition of one 224×224 image for 5 classes, beyond the weights, which the process held before.
"""

import ctypes
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from jaxtyping import Float

from jaxinterp import decompose, from_torch
from jaxinterp.nn.torch_weights import IMAGENET, to_torch
from jaxinterp.nn.torch_weights import from_torch as converted

NAMES = ("resnet18", "resnet34", "resnet50", "resnet101", "resnext50_32x4d", "alexnet", "vgg11", "vgg13", "vgg16")
NAMES += ("vgg19", "vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn")
SIZES = {"alexnet": (224, 161)}  # of the images; 224 pixels divide into the pooled map, others do not
SMALL = ("resnet", "bottleneck", "grouped", "vgg", "vgg_bn", "alexnet")  # of the golden file


@dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    names: tuple[str, ...] = NAMES
    classes: int = 10
    types: tuple[str, ...] = ("float32", "float64", "float16", "bfloat16")
    golden: Path | None = None  # write the logits of small networks there, and nothing else
    memory: bool = True
    probe: bool = False  # internal: measure the memory in this process


def drawn(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    """Draw a state dict from its names and shapes."""
    rng, found = np.random.default_rng(seed), {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            continue
        if len(shape) > 1:
            values = rng.standard_normal(shape, np.float32) * np.float32((2 / np.prod(shape[1:])) ** 0.5)
        elif name.endswith("running_var") or (name.endswith("weight") and len(shape) == 1):
            values = 0.5 + rng.random(shape, np.float32)
        else:
            values = np.float32(0.1) * rng.standard_normal(shape, np.float32)
        found[name] = values
    return found


def images(size: int, count: int = 2) -> Float[np.ndarray, "n h w 3"]:
    """Random images in [0, 1)."""
    return np.random.default_rng(1).random((count, size, size, 3), np.float32)


def torch_logits(net: Any, x: Float[np.ndarray, "n h w c"]) -> Float[np.ndarray, "n classes"]:
    """Logits of a PyTorch network in evaluation mode."""
    import torch

    with torch.no_grad():
        logits: np.ndarray = net.eval()(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy()
    return logits


def filled(net: Any) -> dict[str, np.ndarray]:
    """Fill a PyTorch network with drawn weights; return them."""
    import torch

    state_dict = drawn({name: tuple(tensor.shape) for name, tensor in net.state_dict().items()})
    net.load_state_dict({name: torch.from_numpy(array) for name, array in state_dict.items()}, strict=False)
    return state_dict


def parity(name: str, options: Options) -> dict[str, float]:
    """Compare one network of torchvision."""
    import torch
    import torchvision.models

    make = getattr(torchvision.models, name)
    net = make(num_classes=options.classes)
    state_dict = filled(net)
    row: dict[str, float] = {}
    module, _ = converted(state_dict)
    apply = jax.jit(module.apply)
    for size in SIZES.get(name, (224,)):
        x = images(size)
        for kind in options.types:
            tensors = {key: torch.from_numpy(array).to(getattr(torch, kind)) for key, array in state_dict.items()}
            net.load_state_dict({key: tensor.float() for key, tensor in tensors.items()}, strict=False)
            _, variables = converted(tensors)
            expected, found = torch_logits(net, x), np.asarray(apply(variables, x))
            row[f"error {kind} {size}"] = float(np.abs(found - expected).max() / np.abs(expected).max())
        back = make(num_classes=options.classes)
        back.load_state_dict(to_torch(module, variables, tensors=True))
        row[f"round_trip {size}"] = float(np.abs(torch_logits(back, x) - expected).max() / np.abs(expected).max())
    return row


def small(name: str) -> Any:
    """Make a small network of torchvision's classes."""
    from torch import nn
    from torchvision.models import AlexNet, ResNet
    from torchvision.models.resnet import BasicBlock, Bottleneck
    from torchvision.models.vgg import VGG, cfgs, make_layers

    if name == "resnet":
        return ResNet(BasicBlock, [1, 2, 1, 1], num_classes=4)
    if name in ("bottleneck", "grouped"):
        fields = {"groups": 8, "width_per_group": 4} if name == "grouped" else {}
        return ResNet(Bottleneck, [1, 1, 2, 1], num_classes=4, **fields)
    net = AlexNet(num_classes=4) if name == "alexnet" else VGG(make_layers(cfgs["A"], name == "vgg_bn"), num_classes=4)
    inputs, first = (256 * 36, 1) if name == "alexnet" else (512 * 49, 0)
    net.classifier[first] = nn.Linear(inputs, 6)
    net.classifier[first + 3], net.classifier[6] = nn.Linear(6, 6), nn.Linear(6, 4)
    return net


def write_golden(path: Path) -> None:
    """Write names, shapes and logits of small networks."""
    arrays: dict[str, np.ndarray] = {}
    for name in SMALL:
        net = small(name)
        shapes = {key: list(array.shape) for key, array in filled(net).items()}
        arrays[f"{name}/shapes"] = np.array(json.dumps(shapes))
        arrays[f"{name}/logits"] = torch_logits(net, images(80))
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]


def probe() -> dict[str, float]:
    """Measure the second decomposition of an image by a ResNet-50, for 5 classes at 224 pixels, in this process."""
    from benchmarks.measuring import resident, timed
    from jaxinterp.nn.baselines import ResNet

    module = ResNet.of(50)
    shapes = jax.eval_shape(module.init, jax.random.key(0), images(64, 1))
    like = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    state_dict = drawn({name: array.shape for name, array in to_torch(module, like).items()})
    net, x = from_torch(state_dict, **IMAGENET), images(224, 1)
    del state_dict, like
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(net.variables))
    targets = np.arange(5)[None]
    found = {}

    def run() -> None:
        parts = jax.block_until_ready(decompose(net, x, targets))
        found["residual"] = float(parts.relative_residual.max())

    first = timed(run)
    ctypes.CDLL(None).malloc_trim(0)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    seconds = timed(run)
    peak = resident("VmHWM") - before
    return {
        "weights": weights,
        "first_call": first,
        "seconds": seconds,
        "peak": peak,
        "peak_gib": peak / 2**30,
        **found,
    }


def main(options: Options) -> None:
    """Compare every network, measure the memory, and write the table."""
    if options.probe:
        print(json.dumps(probe()))
        return
    if options.golden is not None:
        write_golden(options.golden)
        return
    table = {}
    for name in options.names:
        table[name] = parity(name, options)
        print(name, table[name], flush=True)
    ratios = {"error_of_logits": max(value for row in table.values() for value in row.values())}
    memory: dict[str, float] = {}
    if options.memory:
        command = [sys.executable, "-m", "benchmarks.torchvision_parity", "--probe"]
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
        memory = json.loads(found)
        ratios["resnet50_decomposed_peak"] = memory["peak_gib"]
        print(found, flush=True)
    from benchmarks.measuring import record

    record("torchvision_parity", {}, ratios, name="torchvision-parity", table=table, memory=memory)


if __name__ == "__main__":
    main(tyro.cli(Options))
