"""Every published configuration, compiled for TPUs and GPUs on a machine without one.

    python -m benchmarks.accelerators                   # all rows that are missing, saved one by one
    python -m benchmarks.accelerators --run coda/       # those of runs whose names begin so, anew
    python -m benchmarks.accelerators --table           # rewrite the table in docs/accelerators.md

It needs libtpu and the CUDA wheels: pip install 'jax[tpu,cuda13]'. One program is compiled at a time,
each in a process of its own that may take `--limit` seconds; `--shared` records that the machine did other work
meanwhile. `cpu_seconds` are those of all threads of the compiler: it takes no longer on an idle machine.
"""

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from benchmarks.measuring import RESULTS, provenance
from jaxinterp.files import write_text

FILE = RESULTS / "accelerators.json"
PAGE = Path(__file__).parents[1] / "docs" / "accelerators.md"
BEGIN, END = "<!-- accelerators: begin (python -m benchmarks.accelerators --table) -->", "<!-- accelerators: end -->"
THREE = ("h200:1", "h200:8", "tpu-v5e:2x2")
NPK = "gated/c4gap-npk n=60000"
IMAGES = 60_000  # of the path kernel
L_CODA_ON_8 = "coda/imagenet100-l train.grad_accum_steps=8"  # 16 parts do not divide its batch of 64 on 8 devices
RUNS = (
    "taylor/mnist",
    "glassbox/rotated-mnist-p4",
    "gated/cifar10-vgg16-dlgn-x",
    "gated/cifar10-vgg16-dgn-x",
    "taylor/cifar10",
    "coded/cifar10",
    "coda/cifar10-s",
    "gated/cifar10-resnet110-dgn-x",
    "gated/cifar10-resnet110-dlgn-x",
    "coded/cifar100",
    "coded/imagenet",
    "coda/imagenet100-l",
)
SCALE = ("tpu-v5e:2x4", "tpu-v5e:8x8")  # ImageNet on 8 and on 64 chips
STAGES = ("train", "evaluate", "explain")


@dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    run: str = ""
    """Compile the runs whose names begin so anew; those that are missing if empty."""
    device: str = ""
    """Only for devices whose names begin so."""
    limit: int = 1800
    """Seconds of one compilation."""
    shared: bool = False
    """The machine does other work meanwhile."""
    table: bool = False
    """Rewrite the table in docs/accelerators.md, and compile nothing."""
    one: tuple[str, ...] = ()
    """Compile one program, (run, stage, device), in this process, and print its row."""


def programs() -> Iterator[tuple[str, str, str]]:
    """Yield run, stage and device of every row, quick ones first."""
    for run in RUNS:
        for device in THREE:
            named = L_CODA_ON_8 if run == "coda/imagenet100-l" and device == "h200:8" else run
            yield from ((named, stage, device) for stage in STAGES)
    yield from ((NPK, "kernel", device) for device in THREE)
    for device in SCALE:
        yield from (("coded/imagenet", stage, device) for stage in STAGES[:2])


def compiled(run: str, stage: str, device: str) -> dict[str, Any]:
    """Compile one program, and return its row."""
    from jaxinterp.app.plan import plan
    from jaxinterp.app.training import run_of
    from jaxinterp.recipe.overrides import override

    if stage == "kernel":
        part = kernel(device)
    else:
        name, *assignments = run.split()
        whole = override(run_of(name), assignments)
        stages: Any = (stage,)
        part = plan(whole, device, name=run, stages=stages, largest=False).to_dict()["stages"][0]
    return {"run": run, "device": device, **part}


def kernel(device: str) -> dict[str, Any]:
    """Compile a tile of the path kernel of four convolutions and global average pooling, of 32 x 32 images."""
    import jax
    import jax.numpy as jnp

    from jaxinterp.app.compiled import examine, tree_bytes
    from jaxinterp.app.devices import machine_named
    from jaxinterp.app.plan import Part
    from jaxinterp.gated.architecture import c4gap, gate_shapes
    from jaxinterp.gated.kernels.path import PathKernel
    from jaxinterp.gated.npk_regression import tile_size

    machine, layers, shape = machine_named(device), c4gap(128), (32, 32, 3)
    gates = gate_shapes(layers, shape)
    size = tile_size(gates)
    place = jax.NamedSharding(machine.mesh(1), jax.P())
    x = jax.ShapeDtypeStruct((size, *shape), jnp.float32, sharding=place)
    held = tuple(jax.ShapeDtypeStruct((size, *gate), jnp.bool_, sharding=place) for gate in gates)
    with machine.tracing():
        program, _ = examine(jax.jit(PathKernel(layers, normalize="width")), (x, held, x, held), machine, 1)
    count = math.ceil(IMAGES / size)
    tiles = count * (count + 1) / 2 / machine.count  # half of a symmetric matrix, shared by the devices
    part: Any = "kernel"
    return Part(part, size, tiles, program, 0, data=2 * tree_bytes((x, held))).to_dict()


def rows() -> list[dict[str, Any]]:
    """Return the rows that are saved."""
    return json.loads(FILE.read_text(encoding="utf-8"))["rows"] if FILE.exists() else []


def key(row: dict[str, Any]) -> tuple[str, str, str]:
    """Return what a row is about."""
    return row["run"], row["stage"], row["device"]


def save(found: list[dict[str, Any]]) -> None:
    """Save rows in the order of `programs`."""
    order = {program: i for i, program in enumerate(programs())}
    kept = sorted((row for row in found if key(row) in order), key=lambda row: order[key(row)])
    write_text(FILE, json.dumps({"rows": kept}, indent=1) + "\n")


def in_a_process(program: tuple[str, str, str], options: Options) -> dict[str, Any]:
    """Compile a program in a process of its own, and return its row; one of failure if it took too long."""
    run, stage, device = program
    command = [sys.executable, "-m", "benchmarks.accelerators", "--one", *program]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1"}
    start = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=options.limit, env=environment)
        lines = done.stdout.strip().splitlines()
        if done.returncode == 0:
            return json.loads(lines[-1])
        fault = (done.stderr.strip().splitlines() or ["nothing"])[-1]
    except subprocess.TimeoutExpired:
        fault = f"not compiled within {options.limit} s"
    nothing = {"compiles": False, "fits": False, "bytes_per_device": None, "flops": None}
    seconds = round(time.perf_counter() - start, 1)
    row = {"run": run, "stage": stage, "device": device, **nothing, "compile_seconds": seconds, "error": fault[:300]}
    return {**row, "roofline_epoch_seconds": None}


def markdown(found: Sequence[dict[str, Any]]) -> str:
    """Lay out rows as a table: one line for each run and device."""
    from jaxinterp.app.compiled import gib
    from jaxinterp.app.plan import seconds

    header = "| run | device | stage | fits | a device needs | of it temporaries | generated code | collectives "
    header += "| FLOPs of one execution | at least, all images once | compiled in |"
    lines = [header, "|---" * (header.count("|") - 1) + "|"]
    for row in found:
        fits = "yes" if row["fits"] else "no" if row["compiles"] or row["bytes_per_device"] else "does not compile"
        parts, known = row.get("bytes", {}), row["compiles"]
        needed = gib(row["bytes_per_device"]) if row["bytes_per_device"] else "–"
        sent = sum(one["bytes"] for one in row.get("collectives", {}).values())
        cells = [
            f"`{row['run']}`",
            row["device"],
            row["stage"],
            fits,
            needed,
            gib(parts["temporaries"]) if known else "–",
            gib(parts["code"]) if known and parts["code"] else "–",
            (gib(sent) if sent else "none") if known else "–",
            f"{row['flops']:.2e}" if row["flops"] else "–",
            seconds(row["roofline_epoch_seconds"]),
            f"{row['compile_seconds']:.0f} s{'*' if row.get('shared') else ''}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def page(text: str, found: Sequence[dict[str, Any]]) -> str:
    """Return a page with its table rewritten."""
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n\n{markdown(found)}\n\n{END}{tail}"


def main(options: Options) -> None:
    """Compile what is missing, and save each row as it ends."""
    if options.one:
        import jax

        jax.config.update("jax_enable_compilation_cache", False)
        print(json.dumps(compiled(*options.one)))
        return
    if options.table:
        write_text(PAGE, page(PAGE.read_text(encoding="utf-8"), rows()))
        return
    chosen = [one for one in programs() if one[2].startswith(options.device)]
    if options.run:
        chosen = [one for one in chosen if one[0].startswith(options.run)]
    else:
        known = {key(row) for row in rows()}
        chosen = [one for one in chosen if one not in known]
    made = provenance("accelerators")
    where = {name: made[name] for name in ("machine", "commit", "versions")}
    for program in chosen:
        row = {**in_a_process(program, options), **({"shared": True} if options.shared else {}), **where}
        save([*(one for one in rows() if key(one) != program), row])
        print(f"{' '.join(program)}: {row['compile_seconds']} s, {row['error'] or 'compiles'}", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options))
