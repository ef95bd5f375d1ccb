"""What a compiler says of a program: seconds, bytes on a device, operations, collectives; and a bound on its time."""

import contextlib
import math
import os
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from jaxinterp.app.devices import GIB, Machine
from jaxinterp.explain.products import Kind, product_flops

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
FREE = frozenset({"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id"})
"""Instructions that move nothing."""
SIZES = {"pred": 1, "s4": 0.5, "u4": 0.5, "token": 0, "opaque": 0}
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*)$")
ARRAY = re.compile(r"\b([a-z]+[0-9]*[a-z0-9]*)\[([\d,]*)\]")


@dataclass(frozen=True)
class Program:
    """A compiled program, or one that does not compile.

    Attributes:
        machine: what it is compiled for.
        devices: how many of them run it.
        seconds: of compilation, tracing not included.
        cpu_seconds: of all threads and processes together, while it was compiled.
        flops: operations of its matrix products and convolutions on all devices together, by kind; see `products`.
        error: the compiler's, in a line; empty if it compiles.
        arguments: bytes of its arguments on a device.
        outputs: bytes of its results.
        aliased: bytes of results that are written over arguments.
        temporaries: bytes that it takes while it runs.
        code: bytes of the program itself in the device's memory; 0 where the compiler does not tell.
        needed: bytes that it would take by the compiler's own count, where it does not fit.
        traffic: bytes that it moves in the memory of a device, see `traffic`.
        collectives: operation → (how many, bytes of each device's arrays in it).
        products: type of the first factor → how many products and convolutions the compiled program has of it.
    """

    machine: Machine
    devices: int
    seconds: float
    cpu_seconds: float
    flops: Mapping[Kind, int]
    error: str = ""
    arguments: int = 0
    outputs: int = 0
    aliased: int = 0
    temporaries: int = 0
    code: int = 0
    needed: int = 0
    traffic: int = 0
    collectives: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    products: Mapping[str, int] = field(default_factory=dict)

    @property
    def compiles(self) -> bool:
        """Whether there is a program; one that is too large has none on a TPU."""
        return not self.error

    @property
    def bytes(self) -> int:
        """Bytes of a device's memory that it needs."""
        return self.needed or self.arguments + self.outputs - self.aliased + self.temporaries + self.code

    @property
    def fits(self) -> bool:
        """Whether a device has them."""
        device = self.machine.device
        return self.compiles and (device is None or self.bytes <= device.usable)

    @property
    def bound(self) -> float | None:
        """Seconds by the roofline: the longest of products, memory and interconnect at their peaks, without caches."""
        device = self.machine.device
        if device is None or not self.compiles:
            return None
        products = sum(flops / device.peak(*kind) for kind, flops in self.flops.items()) / self.devices
        return max(products, self.traffic / device.bandwidth, self._sent / device.interconnect)

    @property
    def _sent(self) -> float:
        """Bytes that a device sends: a ring sends an array twice to sum it, once to gather or to scatter it."""
        share = (self.devices - 1) / self.devices
        times = {"all-reduce": 2 * share, "collective-permute": 1.0}
        return sum((times.get(name, share) * size for name, (_, size) in self.collectives.items()), 0.0)


def examine(function: Any, arguments: tuple[Any, ...], machine: Machine, devices: int) -> tuple[Program, Any]:
    """Compile a jitted function for arguments of these shapes and shardings.

    Args:
        function: with `trace`, as `jax.jit` returns it.
        arguments: `jax.ShapeDtypeStruct`s.
        machine: whose devices the shardings name.
        devices: how many of them.

    Returns:
        What its compiler says, and the compiled program; None in its place if there is none.
    """
    traced = function.trace(*arguments)
    flops = product_flops(traced.jaxpr)
    lowered = traced.lower()
    start, start_cpu = time.perf_counter(), sum(os.times()[:4])
    try:
        with _nothing_kept():
            compiled = lowered.compile()
    except RuntimeError as error:  # of XLA
        text = " ".join(str(error).split())
        used = re.search(r"Used ([\d.]+)([KMGT])i?B? of", text)
        needed = int(float(used[1]) * 1024 ** ("KMGT".index(used[2]) + 1)) if used else 0
        took = time.perf_counter() - start, sum(os.times()[:4]) - start_cpu
        return Program(machine, devices, *took, flops, text[:300], needed=needed), None
    took = time.perf_counter() - start, sum(os.times()[:4]) - start_cpu
    memory, text = compiled.memory_analysis(), compiled.as_text()
    program = Program(
        machine,
        devices,
        *took,
        flops,
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        traffic=traffic(text),
        collectives=collectives(text),
        products=products(text),
    )
    return program, compiled


@contextlib.contextmanager
def _nothing_kept() -> Iterator[None]:
    """Compile anew, so that the time is that of compiling."""
    config: Any = jax.config
    before = config.jax_enable_compilation_cache
    config.update("jax_enable_compilation_cache", False)
    try:
        yield
    finally:
        config.update("jax_enable_compilation_cache", before)


def size_of(shapes: str) -> int:
    """Return the bytes of all arrays that a text of HLO names.

    Example:
        >>> size_of("(f32[8,512]{1,0:T(8,128)}, bf16[4], pred[])")
        16393
    """
    total = 0.0
    for kind, sides in ARRAY.findall(shapes):
        bits = re.search(r"\d+", kind)
        size = SIZES[kind] if kind in SIZES else int(bits[0]) / 8 if bits else 0
        total += size * math.prod(map(int, sides.split(",") if sides else ()))
    return int(total)


def entry(text: str) -> Iterator[tuple[str, str, str, str]]:
    """Yield the instructions of a program's main part: name, shapes of the result, operation, and what follows."""
    _, _, body = text.partition("\nENTRY ")
    for line in body.partition("\n}")[0].splitlines():
        if found := INSTRUCTION.match(line):
            yield found[1], found[2], found[3], found[4]


def collectives(text: str) -> dict[str, tuple[int, int]]:
    r"""Count a compiled program's collectives, and the bytes of a device's arrays in them.

    Of a gathered array the whole is counted, of a scattered one what goes in.

    Example:
        >>> hlo = "HloModule m\n\nENTRY %main {\n  %a = f32[8]{0} all-reduce(%p), replica_groups={}\n}\n"
        >>> collectives(hlo)
        {'all-reduce': (1, 32)}
    """
    counts, sizes = Counter[str](), Counter[str]()
    shapes = dict[str, str]()
    for line in text.splitlines():
        if not (found := INSTRUCTION.match(line)):
            continue
        name, shape, operation, rest = found.groups()
        shapes[name] = shape
        kind = operation.removesuffix("-start")
        if kind not in COLLECTIVES:
            continue
        operands = size_of(" ".join(shapes.get(one, "") for one in _operands(rest)))
        # The start of an asynchronous one has its operands among its results.
        result = size_of(shape) - (operands if operation != kind and shape.startswith("((") else 0)
        counts[kind] += 1
        sizes[kind] += operands if kind in ("all-reduce", "reduce-scatter") and operands else result
    return {kind: (counts[kind], sizes[kind]) for kind in COLLECTIVES if counts[kind]}


def products(text: str) -> dict[str, int]:
    r"""Count a compiled program's matrix products and convolutions by the type of their first factor, as HLO has it.

    Example:
        >>> products("  %a = bf16[2,2]{1,0} parameter(0)\n  %b = f32[2,2]{1,0} dot(%a, %a), lhs_contracting_dims={1}")
        {'bf16': 1}
    """
    counts, types = Counter[str](), dict[str, str]()
    for line in text.splitlines():
        if not (found := INSTRUCTION.match(line)):
            continue
        name, shape, operation, rest = found.groups()
        types[name] = shape.partition("[")[0]
        library = operation == "custom-call" and re.search(r'custom_call_target="__cu(blas|dnn)', rest)
        if (operation in ("dot", "convolution") or library) and (factors := _operands(rest)):
            counts[types.get(factors[0], "?")] += 1
    return dict(counts)


def traffic(text: str) -> int:
    """Count the bytes that a program moves between its instructions in a device's memory.

    Every instruction of its main part, most of them fusions, writes its result and reads its operands once; what lies
    in the fast memory of a TPU's core, S(1) in its text, costs nothing. A data set, of which a step reads a batch, is
    not counted. Caches may hold some of it.
    """
    sizes, total = dict[str, int](), 0
    for name, shape, operation, rest in entry(text):
        kept = " ".join(one for one in re.split(r",\s*(?=[a-z(])", shape) if "S(1)" not in one)
        sizes[name] = 0 if operation == "parameter" and "['data']" in rest else size_of(kept)
        if operation.endswith("-start"):
            total += sizes[name]  # whose result has the operands too
        elif operation not in FREE and not operation.endswith("-done"):
            total += sizes[name] + sum(sizes.get(one, 0) for one in _operands(rest))
    return total


def _operands(rest: str) -> list[str]:
    """Return the names of an instruction's operands."""
    depth, end = 1, len(rest)
    for i, letter in enumerate(rest):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            end = i
            break
    return re.findall(r"%([\w.\-]+)", rest[:end])


def tree_bytes(tree: Any) -> int:
    """Return the bytes of a pytree of arrays or of their shapes."""
    return sum(int(np.prod(leaf.shape)) * _itemsize(leaf.dtype) for leaf in jax.tree.leaves(tree))


def _itemsize(dtype: Any) -> int:
    return int(getattr(dtype, "itemsize", 8))


def gib(size: int | float) -> str:
    """Write bytes for people.

    Example:
        >>> gib(3 * 2**30), gib(5_000_000), gib(7)
        ('3.00 GiB', '4.8 MiB', '0.0 MiB')
    """
    return f"{size / GIB:.2f} GiB" if size >= GIB else f"{size / 2**20:.1f} MiB"
