"""The path kernel's cost and peak memory: examples, depth and width, fully connected, convolutional and pooled.

    python -m benchmarks.npk_scale                         # every row that is not in the results yet
    python -m benchmarks.npk_scale --seconds 120           # those that fit into so many seconds; call it again

Every row runs in a process of its own: one call that compiles, timed ones, and one whose peak resident memory is
measured. `peak` is that beyond what the process held, and `over_result` is it over the kernel's bytes; small results
lie in memory that the heap kept. Of the convolutional rows the kernel is tiny, so that `peak` tells and `over_result`
does not. `doublings` has the median time at twice the examples over the median at once as many, and beside it that of
minima (n² gives 4); `ratios` the largest of those medians from 4,000 fully connected and from 128 convolutional
examples on, and the largest `over_result` from 4,000 on.
"""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import jax
import tyro

from benchmarks.measuring import RESULTS, peak, record, slug, timed
from jaxinterp.gated.architecture import c4gap, fc, gate_shapes
from jaxinterp.gated.kernels.path import PathKernel
from jaxinterp.provenance import machine

Kind = Literal["fc", "conv_gap"]
INPUTS, PIXELS = 512, 8
LARGE: dict[Kind, int] = {"fc": 4000, "conv_gap": 128}


@dataclass(frozen=True)
class Row:
    """One measurement: `depth` hidden layers of `width` units or channels."""

    kind: Kind
    n: int
    depth: int
    width: int


@dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    seconds: float = float("inf")
    rounds: int = 7
    long_rounds: int = 3
    """Rounds of rows of which a call takes more than two seconds."""
    again: bool = False
    """Measure rows that are in the results, too."""
    probe: str = ""  # internal: one row as JSON


def rows() -> list[Row]:
    """Every row: n, 2 n, 4 n at the usual size, and n, 2 n at others."""
    usual = [Row("fc", n, 4, 512) for n in (2000, 4000, 8000)]
    shapes = [(2, 512), (8, 512), (32, 512), (4, 128), (4, 2048), (32, 128)]
    usual += [Row("fc", n, depth, width) for depth, width in shapes for n in (4000, 8000)]
    pooled = [(2, 128), (4, 128), (8, 128), (4, 512)]
    return usual + [Row("conv_gap", n, depth, width) for depth, width in pooled for n in (64, 128, 256)]


def measure(row: Row, options: Options) -> dict[str, Any]:
    """Measure one row in this process."""
    fully = row.kind == "fc"
    layers, shape = (
        (fc(row.width, row.depth), (INPUTS,)) if fully else (c4gap(row.width, depth=row.depth), (PIXELS, PIXELS, 3))
    )
    x = jax.random.normal(jax.random.key(0), (row.n, *shape))
    key, shapes = jax.random.key(1), gate_shapes(layers, shape)
    gates = tuple(
        jax.random.bernoulli(jax.random.fold_in(key, i), 0.5, (row.n, *gate)) for i, gate in enumerate(shapes)
    )
    kernel = PathKernel(layers, normalize="width")

    def job() -> jax.Array:
        return jax.block_until_ready(kernel(x, gates))

    first, once = timed(job), timed(job)
    times = sorted(timed(job) for _ in range(options.rounds if once < 2 else options.long_rounds))
    time.sleep(0.3)  # what the last call held has gone back by then
    grown, result = peak(job)
    found = {"first_call": first, "minimum": times[0], "median": times[len(times) // 2], "rounds": len(times)}
    return {**asdict(row), **found, "peak": grown, "over_result": grown / result.nbytes}


def doublings(table: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return by how much time grows with twice the examples."""
    found = {(row["kind"], row["depth"], row["width"], row["n"]): row for row in table}
    grown = []
    for (kind, depth, width, n), row in found.items():
        if twice := found.get((kind, depth, width, 2 * n)):
            times = {name: twice[name] / row[name] for name in ("median", "minimum")}
            grown.append({"kind": kind, "depth": depth, "width": width, "n": n, **times})
    return grown


def ratios(table: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the figures that the benchmark is for, of rows large enough for them."""
    found = {}
    for kind, least in LARGE.items():
        grown = [row["median"] for row in doublings(table) if row["kind"] == kind and row["n"] >= least]
        found |= {f"{kind}_doubling": max(grown)} if grown else {}
    peaks = [row["over_result"] for row in table if row["kind"] == "fc" and row["n"] >= LARGE["fc"]]
    return found | ({"fc_peak_over_result": max(peaks)} if peaks else {})


def main(options: Options) -> None:
    """Measure the rows that are missing, each in a process of its own, and write the table after each."""
    if options.probe:
        print(json.dumps(measure(Row(**json.loads(options.probe)), options)))
        return
    path, start = RESULTS / f"npk-scale-{slug(machine())}.json", time.monotonic()
    table = json.loads(path.read_text())["table"] if path.exists() and not options.again else []
    have = {(row["kind"], row["n"], row["depth"], row["width"]) for row in table}
    for row in rows():
        if (row.kind, row.n, row.depth, row.width) in have:
            continue
        if time.monotonic() - start > options.seconds:
            print("more rows are left: call it again")
            return
        command = [sys.executable, "-m", "benchmarks.npk_scale", "--probe", json.dumps(asdict(row))]
        command += ["--rounds", str(options.rounds), "--long-rounds", str(options.long_rounds)]
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
        table.append(json.loads(found))
        setting = {"inputs": INPUTS, "pixels": PIXELS, "rounds": options.rounds, "long_rounds": options.long_rounds}
        record(
            "npk_scale", {}, ratios(table), name="npk-scale", setting=setting, doublings=doublings(table), table=table
        )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
