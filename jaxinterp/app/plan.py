"""What a run would take on a machine that is not here: its training step, evaluation and explanation, compiled for it.

Nothing is run, and no data set or weight is read: a program is compiled from shapes alone.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding
from jaxtyping import PRNGKeyArray

from jaxinterp.app.compiled import Program, examine, gib, tree_bytes
from jaxinterp.app.devices import Machine, machine_named
from jaxinterp.app.registry import family_of
from jaxinterp.checks import require
from jaxinterp.explain.batches import TARGETS
from jaxinterp.explain.decompose import decompose
from jaxinterp.nn.losses import ClassificationLoss
from jaxinterp.nn.weights import variable_shapes
from jaxinterp.recipe.config import Experiment, Run
from jaxinterp.recipe.data import Counts, augmentation, counts, targeted
from jaxinterp.recipe.family import Family, Log, TrainedRun
from jaxinterp.train.config import check_batches
from jaxinterp.train.evaluate import add_batch, laid_out
from jaxinterp.train.loader import sampling, scaling
from jaxinterp.train.step import AXIS, TrainState, compile_step, init_state

Stage = Literal["train", "evaluate", "explain"]
STAGES: tuple[Stage, ...] = ("train", "evaluate", "explain")
UNLIMITED = 1 << 62  # bytes of a tile: one image and `TARGETS` classes are one
PIXEL = 255  # largest; a constant, which no figure depends on


@dataclass(frozen=True)
class Part:
    """One stage of a run, compiled.

    Attributes:
        stage: train, a step; evaluate, a batch; or explain, one image for all classes, or for `TARGETS` of them.
        images: in one execution.
        executions: until the stage has seen its images once: an epoch's, or the test images, each device a share.
        program: what its compiler says.
        parameters: bytes of the variables on a device.
        optimizer: bytes of the optimizer's state.
        data: bytes of images and labels there, with those that wait on the device while others are worked on.
    """

    stage: Stage
    images: int
    executions: int | float
    program: Program
    parameters: int
    optimizer: int = 0
    data: int = 0

    @property
    def epoch_seconds(self) -> float | None:
        """Seconds until the stage has seen its images once, at least; None where nothing is known of the device."""
        bound = self.program.bound
        return None if bound is None else bound * self.executions

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        program = self.program
        return {
            "stage": self.stage,
            "images": self.images,
            "compiles": program.compiles,
            "fits": program.fits,
            "compile_seconds": round(program.seconds, 1),
            "cpu_seconds": round(program.cpu_seconds, 1),
            "bytes_per_device": program.bytes,
            "bytes": {
                "parameters": self.parameters,
                "optimizer": self.optimizer,
                "data": self.data,
                "temporaries": program.temporaries,
                "code": program.code,
            },
            "collectives": {name: {"count": n, "bytes": size} for name, (n, size) in program.collectives.items()},
            "flops": sum(program.flops.values()),
            "flops_by_kind": {" ".join(kind): count for kind, count in sorted(program.flops.items())},
            "compiled_products": dict(program.products),
            "traffic_per_device": int(program.traffic),
            "roofline_seconds": program.bound,
            "roofline_epoch_seconds": self.epoch_seconds,
            "error": program.error,
        }


@dataclass(frozen=True)
class Plan:
    """What a run would take on a machine.

    Attributes:
        name: of the run.
        run: its configuration.
        machine: the machine.
        parts: its stages.
        largest_batch: the most images of a training step that fit, the run's own times a power of two, compiled;
            None if that was not asked, 0 if none fits.
    """

    name: str
    run: Run[Any]
    machine: Machine
    parts: tuple[Part, ...]
    largest_batch: int | None = None

    @property
    def fits(self) -> bool:
        """Whether every stage compiles and fits."""
        return all(part.program.fits for part in self.parts)

    @property
    def outcome(self) -> str:
        """Whether it fits, in a line."""
        usable = "" if self.machine.device is None else f" of {gib(self.machine.device.usable)}"
        wrong = [part for part in self.parts if not part.program.fits]
        if not wrong:
            most = max(part.program.bytes for part in self.parts)
            return f"{self.name} on {self.machine}: fits, {gib(most)}{usable} a device"
        worst = max(wrong, key=lambda part: part.program.bytes)
        if worst.program.compiles or worst.program.needed:
            return (
                f"{self.name} on {self.machine}: does not fit: {worst.stage} needs {gib(worst.program.bytes)}{usable} "
                "a device"
            )
        return f"{self.name} on {self.machine}: {worst.stage} does not compile: {worst.program.error}"

    @property
    def run_seconds(self) -> float | None:
        """Seconds of training, at least."""
        seconds = [part.epoch_seconds for part in self.parts if part.stage == "train"]
        return None if not seconds or seconds[0] is None else seconds[0] * self.run.train.epochs

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        device = self.machine.device
        return {
            "run": self.name,
            "device": str(self.machine),
            "devices": self.machine.count,
            "usable_bytes": None if device is None else device.usable,
            "fits": self.fits,
            "largest_batch": self.largest_batch,
            "epochs": self.run.train.epochs,
            "roofline_run_seconds": self.run_seconds,
            "stages": [part.to_dict() for part in self.parts],
        }

    def to_json(self) -> str:
        """Return JSON."""
        return json.dumps(self.to_dict(), indent=2)

    def rows(self) -> list[tuple[str, ...]]:
        """Return a table: a row for each figure, a column for each stage, the first row being its header."""
        dash = "–"

        def line(title: str, cell: Callable[[Part], str], always: bool = False) -> tuple[str, ...]:
            """Return a row; `always` for what is known of a program that does not compile, too."""
            return (title, *(cell(part) if part.program.compiles or always else dash for part in self.parts))

        return [
            ("", *(part.stage for part in self.parts)),
            line("images at once", lambda part: str(part.images), always=True),
            line("fits", lambda part: "yes" if part.program.fits else "no", always=True),
            line("bytes a device", lambda part: gib(part.program.bytes) if part.program.bytes else dash, always=True),
            line("  parameters", lambda part: gib(part.parameters), always=True),
            line("  optimizer", lambda part: gib(part.optimizer) if part.optimizer else dash, always=True),
            line("  data set", lambda part: gib(part.data) if part.data else dash, always=True),
            line("  temporaries", lambda part: gib(part.program.temporaries)),
            line("  generated code", lambda part: gib(part.program.code) if part.program.code else dash),
            line("collectives", lambda part: _listed(part.program.collectives)),
            line("FLOPs", lambda part: f"{sum(part.program.flops.values()):.3g}", always=True),
            line("  by type", lambda part: _kinds(part.program.flops), always=True),
            line("memory traffic a device", lambda part: gib(part.program.traffic)),
            line("at least", lambda part: seconds(part.program.bound)),
            line("at least, all images once", lambda part: seconds(part.epoch_seconds)),
            line("compiled in", lambda part: seconds(part.program.seconds), always=True),
        ]

    def lines(self) -> list[str]:
        """Return what stands under the table."""
        found = [self.outcome]
        if self.run_seconds is not None:
            epochs = self.run.train.epochs
            found.append(f"training, {epochs} epochs: at least {seconds(self.run_seconds)}, by the peaks of the device")
        if self.machine.device is not None:
            source = self.machine.device.source
            found.append(
                "a bound and no forecast: products as traced, even those that the compiler removes, memory without "
                f"caches, or links, whichever takes longest at its published peak ({source})"
            )
        if self.largest_batch is not None:
            found.append(
                f"largest batch that fits: {self.largest_batch}" if self.largest_batch else "no batch of it fits"
            )
        return found


def _listed(found: Mapping[str, tuple[int, int]]) -> str:
    return ", ".join(f"{count} {name} {gib(size)}" for name, (count, size) in found.items()) or "none"


def _kinds(flops: Mapping[Any, int]) -> str:
    total = sum(flops.values())
    shares = sorted(((count / total, kind) for kind, count in flops.items()), reverse=True) if total else []
    return ", ".join(f"{share:.0%} {' '.join(kind)}" for share, kind in shares if share >= 0.005) or "–"


def seconds(value: float | None) -> str:
    """Write a duration for people.

    Example:
        >>> seconds(0.00012), seconds(42.0), seconds(7200.0), seconds(None)
        ('0.12 ms', '42 s', '2 h', '–')
    """
    if value is None:
        return "–"
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("min", 60.0), ("s", 1.0)):
        if value >= (2 * size if unit in ("min", "h", "d") else size):
            return f"{value / size:.3g} {unit}"
    return f"{value * 1e3:.3g} ms"


def plan(
    run: Run[Any],
    device: str | Machine = "tpu-v5e:2x2",
    *,
    name: str = "",
    data_dir: str | Path | None = None,
    stages: tuple[Stage, ...] = STAGES,
    largest: bool = True,
    log: Log = lambda line: None,
) -> Plan:
    """Compile a run for a machine, without it, and say whether it fits, and how fast it can be at best.

    Args:
        run: the run.
        device: the machine: tpu-v5e:2x2, tpu-v6e:4x4, tpu-v4:2x2x1, h200:8, h100:1, a100:1, cpu, ...
        name: of the run, for the output.
        data_dir: the data folder, looked into only for how many images of one's own there are.
        stages: which to compile; a closed form has no training step.
        largest: find the largest batch that fits too, in two or three more compilations.
        log: called with a line before each compilation.

    Returns:
        A `Plan`.

    Raises:
        ConfigError: no such machine, its compiler is not installed, or the batch does not divide by its devices.

    Example:
        >>> from jaxinterp.app.training import run_of
        >>> found = plan(run_of("gated/digits-relu"), "cpu", stages=("evaluate",), largest=False)
        >>> found.fits, found.parts[0].images, found.to_dict()["stages"][0]["flops"] > 0
        (True, 256, True)
    """
    machine = machine_named(device) if isinstance(device, str) else device
    require(run.train.mode == "jit", "train.mode", run.train.mode, "jit: pmap compiles for devices that are there")
    run = _described(run)
    planner = _Planner(family_of(run), run, machine, counts(run, None if data_dir is None else Path(data_dir)), log)
    chosen = [stage for stage in stages if stage != "train" or trains(planner.family)]
    _ = machine.devices  # which says what is missing
    with machine.tracing():
        if "train" in chosen:
            planner.check()
        compiled: dict[Stage, Callable[[], Part]]
        compiled = {"train": planner.train, "evaluate": planner.evaluate, "explain": planner.explain}
        parts = tuple(compiled[stage]() for stage in chosen)
        most = planner.largest(parts[0]) if largest and "train" in chosen and machine.device is not None else None
    return Plan(name or planner.family.name, run, machine, parts, most)


def trains(family: Family[Any]) -> bool:
    """Tell whether a family is trained step by step, and not in closed form."""
    return type(family).fit is Family.fit


def _described(run: Run[Any]) -> Run[Any]:
    """Return a run with numbers in the place of those that are computed from images: no figure depends on them."""
    data = run.data
    if data.normalize:
        ones = (1.0,) * data.channels
        run = run.replace(data={"normalize": False, "mean": ones, "std": ones})
    if data.balanced:
        run = run.replace(data={"balanced": False, "class_weights": (1.0,) * run.model.classes})
    return run


@dataclass(frozen=True)
class _Planner:
    """The stages of one run on one machine."""

    family: Family[Any]
    run: Run[Any]
    machine: Machine
    counts: Counts
    log: Log

    def check(self) -> None:
        """Require what training on the machine requires."""
        check_batches(self.run.train, self.machine.count, self.steps)

    @property
    def steps(self) -> int:
        """Training steps of an epoch."""
        return self.counts.train // self.run.train.batch_size

    def say(self, what: str) -> None:
        """Say what is being compiled."""
        self.log(f"compiling {what} for {self.machine} ...")

    def train(self) -> Part:
        """Compile the training step."""
        run, mesh = self.run, self.machine.mesh()
        size, shape, everywhere, split = run.train.batch_size, run.data.image_shape, *_shardings(mesh)
        network = self.family.network(run, run.train.dtype)
        loss = targeted(self.family.loss(run, network), run)
        optimizer, _ = self.family.optimizer(run, self.steps)
        key = _shape(jax.eval_shape(lambda: jax.random.key(0)), everywhere)
        number, image = jax.ShapeDtypeStruct((size,), jnp.int32), jax.ShapeDtypeStruct((size, *shape), jnp.float32)

        def init(key: PRNGKeyArray) -> TrainState:
            batch = {"image": image, "label": number, "index": number}
            return init_state(network, loss, optimizer, jax.random.fold_in(key, 2), batch)

        state = jax.tree.map(lambda leaf: _shape(leaf, everywhere), jax.eval_shape(init, key))
        augment, inputs = augmentation(run.augment), dict[str, Any]()
        if self.counts.streamed:
            sample = scaling(self.steps, augment, PIXEL)
            kinds = {"image": ((size, *shape), np.uint8), "label": ((size,), np.int32), "index": ((size,), np.int32)}
            inputs |= {k: jax.ShapeDtypeStruct(sides, kind, sharding=split) for k, (sides, kind) in kinds.items()}
        else:
            sample = sampling(self.steps, augment, PIXEL)
            rows = jax.NamedSharding(mesh, jax.P(None, AXIS))
            inputs["data"] = self._images(self.counts.train, everywhere)
            inputs["order"] = jax.ShapeDtypeStruct((self.steps, size), np.int32, sharding=rows)
        step = compile_step(
            loss, optimizer, mesh=mesh, grad_accum_steps=run.train.grad_accum_steps, sample_batch=sample
        )
        self.say(f"a training step of {size} images")
        program, _ = examine(step, (state, inputs, key), self.machine, mesh.size)
        waiting = self.counts.held + (self.counts.test if run.train.eval_test_each_epoch else 0)
        held = tree_bytes(self._images(waiting, everywhere))
        program = replace(program, beside=held)
        data = tree_bytes(inputs) // (mesh.size if self.counts.streamed else 1) + held
        parameters, optimizing = tree_bytes(state.variables), tree_bytes(state.opt_state)
        return Part("train", size, self.steps, program, parameters, optimizing, data)

    def evaluate(self) -> Part:
        """Compile the evaluation of a batch of test images.

        At the end of a training its data and state are still there; of a closed form only the test images are.
        """
        run, mesh, test = self.run, self.machine.mesh(), self.counts.test
        everywhere, split = _shardings(mesh)
        rows, size = laid_out(test, run.train.eval_batch, mesh.size)
        network = self.family.network(run, run.train.dtype)
        loss = self.family.loss(run, network)
        plain = loss.per_logits_loss if isinstance(loss, ClassificationLoss) else None
        variables = self._variables(network, everywhere)
        names = ("accuracy",) if plain is None else ("accuracy", "loss")
        totals = {name: jax.ShapeDtypeStruct((), np.float32, sharding=everywhere) for name in names}
        shapes = {"image": (size, *run.data.image_shape), "label": (size,), "mask": (size,)}
        kinds = {"image": np.float32, "label": np.int32, "mask": np.float32}
        batch = {k: jax.ShapeDtypeStruct(shapes[k], kinds[k], sharding=split) for k in shapes}
        add = jax.jit(partial(add_batch, network, plain, split), out_shardings=everywhere)
        self.say(f"the evaluation of {size} images")
        program, _ = examine(add, (totals, variables, batch), self.machine, mesh.size)
        there, optimizing = test, 0
        if trains(self.family):
            there += self.counts.held + (0 if self.counts.streamed else self.counts.train)
            optimizer, _ = self.family.optimizer(run, max(self.steps, 1))
            optimizing = tree_bytes(jax.eval_shape(optimizer.init, variables["params"]))
        data = tree_bytes(self._images(there, everywhere))
        program = replace(program, beside=data + optimizing)
        return Part("evaluate", size, rows, program, tree_bytes(variables), optimizing, data)

    def explain(self) -> Part:
        """Compile the decomposition of an image on one device, for all classes or a tile of them."""
        run, family = self.run, self.family
        everywhere, _ = _shardings(self.machine.mesh(1))
        network = family.network(run)
        variables = self._variables(network, everywhere)
        images = jax.ShapeDtypeStruct((1, *run.data.image_shape), jnp.float32, sharding=everywhere)
        at_once = min(run.model.classes, TARGETS)
        targets = None if at_once == run.model.classes else np.arange(at_once, dtype=np.int32)[None]
        trained = TrainedRun(Path(), "", Experiment(run, ""), run, family, network, None)

        def explained(variables: Any, images: Any) -> tuple[Any, ...]:
            net = family.explainable(replace(trained, variables=variables))
            parts = decompose(net, images, targets, check=False, max_bytes=UNLIMITED)
            return parts.logits, parts.contributions, parts.bias, parts.residual, parts.curvature, parts.discrepancy

        self.say(f"the explanation of an image, {at_once} of {run.model.classes} classes")
        program, _ = examine(jax.jit(explained), (variables, images), self.machine, 1)
        passes = self.counts.test * -(-run.model.classes // at_once) / self.machine.count
        return Part("explain", 1, passes, program, tree_bytes(variables))

    def largest(self, own: Part) -> int:
        """Find the largest batch that fits, by a line through two and a trial of what it says.

        Bytes grow linearly with the batch, nearly: a second size gives the slope.
        """
        device, size = self.machine.device, self.run.train.batch_size
        assert device is not None
        tried = {0: own.program}

        def at(power: int) -> Program:
            """Compile the run's batch times a power of two."""
            if power not in tried:
                train = {"batch_size": int(size * 2.0**power)}
                tried[power] = replace(self, run=self.run.replace(train=train)).train().program
            return tried[power]

        parts = self.machine.count * self.run.train.grad_accum_steps
        lowest = next(-k for k in range(64) if size % 2 ** (k + 1) or (size // 2 ** (k + 1)) % parts)
        highest = max(k for k in range(64) if size * 2**k <= self.counts.train)
        power = min(max(2 if own.program.fits else -1, lowest), highest)
        if power > 0 and at(power).fits:
            slope = (at(power).bytes - own.program.bytes) / (size * 2.0**power - size)
            room = device.usable - own.program.bytes
            most = size + room / slope if slope > 0 else np.inf
            power = min(highest, max(power, int(np.floor(np.log2(most / size)))))
        while not at(power).fits and power > lowest:
            power -= 1
        fitting = [k for k, program in tried.items() if program.fits]
        return int(size * 2.0 ** max(fitting)) if fitting else 0

    def _variables(self, network: Any, sharding: Sharding) -> Any:
        found = variable_shapes(network, self.run.data.image_shape)
        kept = {"params": found["params"], "batch_stats": found.get("batch_stats", {})}
        return jax.tree.map(lambda leaf: _shape(leaf, sharding), kept)

    def _images(self, count: int, sharding: Sharding) -> dict[str, Any]:
        kind = np.uint16 if self.run.data.bits > 8 else np.uint8
        kinds = {"image": ((count, *self.run.data.image_shape), kind), "label": ((count,), np.int32)}
        return {k: jax.ShapeDtypeStruct(sides, kind, sharding=sharding) for k, (sides, kind) in kinds.items()}


def _shardings(mesh: Any) -> tuple[Sharding, Sharding]:
    """Return the placement of what every device has, and of a batch."""
    return jax.NamedSharding(mesh, jax.P()), jax.NamedSharding(mesh, jax.P(AXIS))


def _shape(leaf: Any, sharding: Sharding) -> Any:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
