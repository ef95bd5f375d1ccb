"""Memory and time of exact decompositions: networks, classes and image sizes against one budget.

    python -m benchmarks.explanation_memory                # S-CoDA, ResNet-20 and a ResNet-50, 10 to 1,000 classes
    python -m benchmarks.explanation_memory --only resnet20                    # a minute or two; S-CoDA ten
    python -m benchmarks.explanation_memory --only resnet50 --pixels 224       # some of the rows

Every row runs in a process of its own: one call that compiles, one that is measured. `peak` is the growth of the
resident set during the second, beyond what the process held before and beyond the results (contributions and weights);
`ratio` is that over the budget, `max_bytes`. Where all classes would take long, the first ones are explained, as many
as stand in the row: a tile takes what it takes however many follow.

`times` of the rows of 100 classes are the seconds of all, half and a quarter of their targets, t = a + b · targets with
the forward pass in a, so that its share, large where targets are few, cancels in differences: `linear_in_targets` is b
of the upper half over b of the lower quarter, the one farthest from 1 of a network's sizes; `linear_in_pixels` the
largest b per pixel over the smallest. `raw_time_per_target_and_pixel` is the same of plain quotients, forward pass
included. `curvature_overhead` is the time of a decomposition over the time of one without its checks.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import linen as nn

from benchmarks.measuring import alternate, peak, record, timed
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
    classes: tuple[int, ...] = (10, 100, 1000)
    pixels: tuple[int, ...] = (32, 64, 128, 224)
    probe: str = ""  # internal: one row as JSON


REPEATS = 5  # of a time, of which the least counts: other work only adds
# Targets explained at each size, so that a row takes seconds or a minute on two cores.
TARGETS = {
    "resnet20": {32: 1000, 64: 256, 128: 64, 224: 32},
    "coda": {32: 128, 64: 32, 128: 16, 224: 8},
    "resnet50": {32: 64, 64: 32, 128: 16, 224: 16},
}


def rows(options: Options) -> list[Row]:
    """All measurements that are asked for: classes × sizes of one image, and a batch."""
    found = []
    for name in options.only:
        for pixels, most in TARGETS[name].items():
            found += [Row(name, classes, pixels, 1, min(classes, most)) for classes in (10, 100, 1000)]
        found += [Row(name, 10, 32, 64, 10)]
    return [row for row in found if row.classes in options.classes and row.pixels in options.pixels]


def measure(row: Row, max_bytes: int) -> dict[str, Any]:
    """Measure one row in this process."""
    build = {"coda": lambda k: s_coda(1.0, classes=k), "resnet20": lambda k: CifarResNet(20, classes=k)}
    module = build.get(row.network, ResNet50)(row.classes)
    x = jnp.asarray(np.random.default_rng(0).random((row.images, row.pixels, row.pixels, 3), np.float32))
    net = explainable(module, jax.jit(module.init)(jax.random.key(0), x[:1]))

    def run(count: int = row.targets) -> list[jax.Array]:
        targets = np.tile(np.arange(count), (row.images, 1))
        return jax.tree.leaves(jax.block_until_ready(decompose(net, x, targets, max_bytes=max_bytes)))

    first, seconds = timed(run), timed(run)
    grown, results = peak(run)
    beyond = grown - sum(leaf.nbytes for leaf in results)
    del results
    times = {}
    for count in (row.targets, row.targets // 2, row.targets // 4) if row.classes == 100 else ():
        run(count)
        times[str(count)] = min(timed(lambda count=count: run(count)) for _ in range(REPEATS))
    found = {"first_call": first, "seconds": seconds, "peak": beyond, "ratio": beyond / max_bytes, "times": times}
    return {**asdict(row), **found}


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


def linear(table: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return how far time is linear in targets and pixels, for each network: 1 where it is."""
    found: dict[str, float] = {}
    for name in dict.fromkeys(row["network"] for row in table):
        own = [row for row in table if row["network"] == name and row["images"] == 1]
        rates = [row["seconds"] / row["targets"] / row["pixels"] ** 2 for row in own if row["targets"] >= 8]
        bends, slopes = [], []
        for row in own:
            if row["times"]:
                (most, whole), (some, half), (few, quarter) = ((int(n), t) for n, t in row["times"].items())
                bends.append((whole - half) / (most - some) / ((half - quarter) / (some - few)))
                slopes.append((whole - quarter) / (most - few) / row["pixels"] ** 2)
        if rates:
            found[f"raw_time_per_target_and_pixel_{name}"] = max(rates) / min(rates)
        if slopes:
            found[f"linear_in_targets_{name}"] = max(bends, key=lambda bend: abs(bend - 1))
            found[f"linear_in_pixels_{name}"] = max(slopes) / min(slopes)
    return found


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
    ratios |= linear(table)
    record("explanation_memory", {}, ratios, name="explanation-memory", setting=asdict(options), table=table)


if __name__ == "__main__":
    main(tyro.cli(Options))
