"""Memory and time of exact decompositions: networks, classes and image sizes against one budget.

    python -m benchmarks.explanation_memory                # S-CoDA, ResNet-20 and a ResNet-50, 10 to 1,000 classes
    python -m benchmarks.explanation_memory --only resnet20

Every row runs in a process of its own: one call that compiles, one that is measured. `peak` is the growth of the
resident set during the second, beyond what the process held before and beyond the results (contributions and weights);
`ratio` is that over the budget, `max_bytes`. Where all classes would take long, the first ones are explained, as many
as stand in the row: a tile takes what it takes however many follow. `time_per_target` is the largest time per target of
a network's rows at 32 pixels over the smallest, `time_per_target_and_pixel` that of all its rows of one image: 1 where
the time is linear. `curvature_overhead` is the time of a decomposition over the time of one without its checks.
"""

import ctypes
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import linen as nn

from benchmarks.measuring import alternate, record, resident, timed
from jaxinterp import decompose, explainable
from jaxinterp.coda.network import s_coda
from jaxinterp.explain.decompose import _pass
from jaxinterp.nn.baselines import CifarResNet

Network = Literal["coda", "resnet20", "resnet50"]


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolutions around a shortcut."""

    width: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the block's output."""

        def conv(x: jax.Array, features: int, side: int, stride: int = 1) -> jax.Array:
            pad = ((side // 2,) * 2,) * 2
            x = nn.Conv(features, (side, side), (stride, stride), padding=pad, use_bias=False)(x)
            return nn.BatchNorm(use_running_average=True)(x)

        out = nn.relu(conv(nn.relu(conv(x, self.width, 1)), self.width, 3, self.stride))
        out = conv(out, 4 * self.width, 1)
        same = x.shape == out.shape
        return nn.relu(out + (x if same else conv(x, 4 * self.width, 1, self.stride)))


class ResNet50(nn.Module):
    """He et al. 2016, Table 1, 50 layers."""

    classes: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return logits."""
        x = nn.Conv(64, (7, 7), (2, 2), padding=((3, 3), (3, 3)), use_bias=False)(x)
        x = nn.max_pool(nn.relu(nn.BatchNorm(use_running_average=True)(x)), (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        for stage, blocks in enumerate((3, 4, 6, 3)):
            for i in range(blocks):
                x = Bottleneck(64 * 2**stage, 2 if stage and not i else 1)(x)
        return nn.Dense(self.classes)(x.mean((1, 2)))


@dataclass(frozen=True)
class Row:
    """One measurement."""

    network: Network
    classes: int
    pixels: int
    images: int
    targets: int


@dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    max_bytes: int = 512 << 20
    only: tuple[Network, ...] = ("coda", "resnet20", "resnet50")
    probe: str = ""  # internal: one row as JSON


# Targets explained at each size, so that a row takes seconds or a minute on two cores.
TARGETS = {
    "resnet20": {32: 1000, 64: 256, 128: 64, 224: 32},
    "coda": {32: 128, 64: 32, 128: 16, 224: 8},
    "resnet50": {32: 64, 64: 32, 128: 16, 224: 16},
}


def rows(options: Options) -> list[Row]:
    """All measurements: classes × sizes of one image, a batch, and twice the targets."""
    found = []
    for name in options.only:
        for pixels, most in TARGETS[name].items():
            found += [Row(name, classes, pixels, 1, min(classes, most)) for classes in (10, 100, 1000)]
        found += [Row(name, 10, 32, 64, 10), Row(name, 1000, 32, 1, TARGETS[name][32] // 2)]
    return found


def measure(row: Row, max_bytes: int) -> dict[str, Any]:
    """Measure one row in this process."""
    build = {"coda": lambda k: s_coda(1.0, classes=k), "resnet20": lambda k: CifarResNet(20, classes=k)}
    module = build.get(row.network, ResNet50)(row.classes)
    x = jnp.asarray(np.random.default_rng(0).random((row.images, row.pixels, row.pixels, 3), np.float32))
    net = explainable(module, jax.jit(module.init)(jax.random.key(0), x[:1]))
    targets = np.tile(np.arange(row.targets), (row.images, 1))

    def run() -> list[jax.Array]:
        return jax.tree.leaves(jax.block_until_ready(decompose(net, x, targets, max_bytes=max_bytes)))

    first, seconds = timed(run), timed(run)
    ctypes.CDLL(None).malloc_trim(0)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    results = run()
    peak = resident("VmHWM") - before - sum(leaf.nbytes for leaf in results)
    return {**asdict(row), "first_call": first, "seconds": seconds, "peak": peak, "ratio": peak / max_bytes}


def overhead() -> float:
    """Time of the decomposition of 16 images by a ResNet-20 over the time without its checks, compiled both."""
    x = jnp.asarray(np.random.default_rng(0).random((16, 32, 32, 3), np.float32))
    module = CifarResNet(20)
    net = explainable(module, jax.jit(module.init)(jax.random.key(0), x[:1]))
    frozen, rows = net.program("frozen", x), jnp.tile(jnp.arange(10, dtype=jnp.int32)[None], (16, 1))
    models, biases = (frozen, None), (None,)

    def job(checked: bool) -> Callable[[], Any]:
        return lambda: jax.block_until_ready(_pass(("input",), checked, models, rows, x, biases=biases))

    with jax.default_matmul_precision("highest"):
        found = alternate({"checked": job(True), "bare": job(False)}, 15)
    return found["checked"]["median"] / found["bare"]["median"]


def linear(table: Sequence[dict[str, Any]], field: str) -> dict[str, float]:
    """Return, for each network, the largest time per target, or per target and pixel, over the smallest."""
    rates: dict[str, list[float]] = {}
    for row in table:
        if row["images"] == 1 and row["targets"] >= 8 and (field == "pixels" or row["pixels"] == 32):
            rates.setdefault(row["network"], []).append(row["seconds"] / row["targets"] / row["pixels"] ** 2)
    return {name: max(values) / min(values) for name, values in rates.items()}


def main(options: Options) -> None:
    """Measure every row in a process of its own, and write the table."""
    if options.probe:
        print(json.dumps(measure(Row(**json.loads(options.probe)), options.max_bytes)))
        return
    table = []
    for row in rows(options):
        command = [sys.executable, "-m", "benchmarks.explanation_memory", "--probe", json.dumps(asdict(row))]
        command += ["--max-bytes", str(options.max_bytes)]
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
        table.append(json.loads(found))
        print(found, flush=True)
    ratios = {"largest_peak_over_budget": max(row["ratio"] for row in table), "curvature_overhead": overhead()}
    ratios |= {f"time_per_target_{name}": value for name, value in linear(table, "targets").items()}
    ratios |= {f"time_per_target_and_pixel_{name}": value for name, value in linear(table, "pixels").items()}
    record("explanation_memory", {}, ratios, name="explanation-memory", setting=asdict(options), table=table)


if __name__ == "__main__":
    main(tyro.cli(Options))
