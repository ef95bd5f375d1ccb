"""What a compiler says of a program: seconds, bytes on a device, operations, collectives; and a bound on its time."""

import contextlib
import math
import os
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxinterp.app.devices import GIB, Machine
from jaxinterp.explain.products import Kind, product_flops

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
FREE = frozenset({"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id",
                  "opt-barrier"})  # fmt: skip
"""Instructions that move nothing."""
SLICES = frozenset({"slice", "dynamic-slice", "gather"})
"""Instructions that read no more of their first operand than they return."""
SIZES = {"pred": 1, "s4": 0.5, "u4": 0.5, "token": 0, "opaque": 0}
CALLS = ("condition", "body", "to_apply", "calls", "branch_computations", "true_computation", "false_computation")
COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
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
        beside: bytes of a device that others of the same process take while it runs.
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
    beside: int = 0
    collectives: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    products: Mapping[str, int] = field(default_factory=dict)

    @property
    def compiles(self) -> bool:
        """Whether there is a program; one that is too large has none on a TPU."""
        return not self.error

    @property
    def bytes(self) -> int:
        """Bytes of a device's memory that it needs, with those that are taken beside it."""
        own = self.arguments + self.outputs - self.aliased + self.temporaries + self.code
        return (self.needed or own) + self.beside

    @property
    def fits(self) -> bool:
        """Whether a device has them."""
        device = self.machine.device
        return self.compiles and (device is None or self.bytes <= device.usable)

    @property
    def bound(self) -> float | None:
        """Seconds by the roofline: the longest of products, memory and interconnect at their peaks, without caches.

        Products are those of the traced program: of one that the compiler removes, because nothing depends on it, the
        time is counted all the same.
        """
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
            compiled = _compile(lowered)
    except RuntimeError as error:  # of XLA
        text = " ".join(str(error).split())
        used = re.search(r"(?:Used |temporaries \()([\d.]+)([KMGT])i?B?(?: of|\))", text)
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


def _compile(lowered: Any) -> Any:
    """Compile; products for which XLA finds no tiles where no GPU is there to try them out are left to cuBLAS."""
    try:
        return lowered.compile()
    except RuntimeError as error:
        if "output tile sizes" not in str(error):
            raise
        return lowered.compile(compiler_options={"xla_gpu_enable_triton_gemm": False})


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


class Instruction(NamedTuple):
    """A line of a compiled program: shapes of the result, operation, names of the operands, and what follows them."""

    shape: str
    operation: str
    operands: list[str]
    rest: str


def computations(text: str) -> tuple[str, dict[str, dict[str, Instruction]]]:
    """Return the name of a program's main part, and its parts by name: their instructions, by name."""
    main, name, parts = "", "", dict[str, dict[str, Instruction]]()
    for line in text.splitlines():
        if head := COMPUTATION.match(line):
            name = head[2]
            main, parts[name] = name if head[1] else main, {}
        elif name and (found := INSTRUCTION.match(line)):
            parts[name][found[1]] = Instruction(found[2], found[3], _operands(found[4]), found[4])
    return main, parts


def collectives(text: str) -> dict[str, tuple[int, int]]:
    r"""Count a compiled program's collectives, and the bytes of a device's arrays in them.

    Of a gathered array the whole is counted, of a scattered one what goes in; one in a loop as often as the compiler
    knows that it runs.

    Example:
        >>> hlo = "HloModule m\n\nENTRY %main {\n  %a = f32[8]{0} all-reduce(%p), replica_groups={}\n}\n"
        >>> collectives(hlo)
        {'all-reduce': (1, 32)}
    """
    counts, sizes = Counter[str](), Counter[str]()
    main, parts = computations(text)
    times = _turns(parts, main)
    for name, part in parts.items():
        for shape, operation, operands, _ in part.values():
            kind = operation.removesuffix("-start")
            if kind not in COLLECTIVES:
                continue
            given = size_of(" ".join(part[one].shape for one in operands if one in part))
            # The start of an asynchronous one returns its operands, its results, and perhaps scalars.
            started = operation != kind and kind != "all-reduce"
            result = size_of(_elements(shape)[1] if started else shape)
            counts[kind] += times.get(name, 1)
            sizes[kind] += times.get(name, 1) * (
                given if kind in ("all-reduce", "reduce-scatter") and given else result
            )
    return {kind: (counts[kind], sizes[kind]) for kind in COLLECTIVES if counts[kind]}


def _turns(parts: Mapping[str, Mapping[str, Instruction]], main: str) -> Counter[str]:
    """Return how often the computations within a program's main part run, as far as its compiler knows."""
    times = Counter[str]()

    def visit(name: str, turns: int) -> None:
        times[name] += turns
        for one in parts.get(name, {}).values():
            inner = _trips(one.rest) if one.operation == "while" else 1
            for called in _called(one.rest, *CALLS):
                visit(called, turns * inner)

    visit(main, 1)
    return times


def _trips(rest: str) -> int:
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', rest)
    return int(known[1]) if known else 1


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
    in the fast memory of a TPU's core, S(1) in its text, costs nothing. Of an operand that is only sliced or gathered
    from, what is taken is counted, and of one that is updated in place, the update. The body of a loop counts as often
    as the compiler knows that it runs, else once; of branches the least. A data set, of which a step reads a batch, is
    not counted. Caches may hold some of it.
    """
    main, parts = computations(text)
    return _Traffic(parts).of(main)


class _Traffic:
    """The bytes that computations move."""

    def __init__(self, parts: Mapping[str, Mapping[str, Instruction]]) -> None:
        self.parts = parts

    def of(self, name: str) -> int:
        """Return the bytes of a computation."""
        part = self.parts[name]
        return sum(self.moved(part, one) for one in part.values())

    def moved(self, part: Mapping[str, Instruction], one: Instruction) -> int:
        """Return the bytes that an instruction of a part reads and writes."""
        shape, operation, operands, rest = one
        sizes = [_stored(part[name]) if name in part else 0 for name in operands]
        if operation in FREE or operation.endswith("-done"):
            return 0
        if operation == "while":
            return sum(map(self.of, _called(rest, "condition", "body"))) * _trips(rest)
        if operation == "conditional":
            return min(map(self.of, _called(rest, "branch_computations", "true_computation", "false_computation")))
        if operation == "call":
            return sum(map(self.of, _called(rest, "to_apply")))
        if operation.endswith("-start"):  # whose result has the operands too
            return 2 * _kept(_elements(shape)[1]) if "slice" in operation else _kept(shape)
        if operation == "fusion":
            inside = self.parts[_called(rest, "calls")[0]]
            read = sum(self.read(inside, number, size) for number, size in enumerate(sizes))
            return read + min(_kept(shape), _written(inside, list(inside)[-1]))  # the root stands last
        if operation in SLICES:
            return _kept(shape) + min(size_of(shape), sizes[0]) + sum(sizes[1:])
        if operation == "dynamic-update-slice":
            return 2 * sizes[1]
        return _kept(shape) + sum(dict(zip(operands, sizes, strict=True)).values())

    def read(self, part: Mapping[str, Instruction], number: int, size: int) -> int:
        """Return the bytes, at most `size`, that a fusion reads of an operand."""
        names = (k for k, one in part.items() if one.operation == "parameter" and one.rest.startswith(f"{number})"))
        return min(size, sum(self.used(part, name, size) for name in names))

    def used(self, part: Mapping[str, Instruction], name: str, size: int) -> int:
        """Return the bytes that the instructions of a fusion need of one of them."""
        total = 0
        for user, (shape, operation, operands, rest) in part.items():
            places = [place for place, operand in enumerate(operands) if operand == name]
            if not places:
                continue
            if operation == "bitcast":
                total += self.used(part, user, size)
            elif operation == "fusion":
                total += sum(self.read(self.parts[_called(rest, "calls")[0]], place, size) for place in places)
            elif operation in SLICES and places == [0]:
                total += size_of(shape)
            elif operation != "dynamic-update-slice" or places != [0]:
                total += size
        return total


def _written(part: Mapping[str, Instruction], name: str) -> int:
    """Return the bytes that a fusion writes for one of its instructions: of an update in place the update."""
    one = part[name]
    if one.operation in ("tuple", "bitcast"):
        return sum(_written(part, operand) for operand in one.operands)
    return size_of(part[one.operands[1]].shape if one.operation == "dynamic-update-slice" else one.shape)


def _called(rest: str, *names: str) -> list[str]:
    """Return the computations that an instruction calls under these names."""
    found = re.findall(rf"\b(?:{'|'.join(names)})=(\{{[^}}]*\}}|%[\w.\-]+)", rest)
    return re.findall(r"%([\w.\-]+)", " ".join(found))


def _stored(one: Instruction) -> int:
    """Return the bytes of an instruction's result that are read from memory; none of a data set."""
    return 0 if one.operation == "parameter" and "['data']" in one.rest else _kept(one.shape)


def _kept(shape: str) -> int:
    """Return the bytes of arrays in a device's memory."""
    return size_of(" ".join(one for one in re.split(r",\s*(?=[a-z(])", shape) if "S(1)" not in one))


def _elements(shape: str) -> list[str]:
    """Return the elements of a tuple's shape.

    Example:
        >>> _elements("((f32[2,3]{1,0}, s8[]), f32[4], u32[])")
        ['(f32[2,3]{1,0}, s8[])', 'f32[4]', 'u32[]']
    """
    found, depth = [""], 0
    for letter in shape[1:-1]:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and not depth:
            found.append("")
        else:
            found[-1] += letter
    return [one.strip() for one in found]


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
