"""The parts of accelerator.py: each measures one thing on JAX's default device, and returns it as JSON values."""

import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from benchmarks.accelerator import ROOT, LeftOut, PartError, Setting, last_words
from jaxinterp.files import write_arrays

TESTS = (
    "nn/test_platform.py",
    "nn/test_patches.py",
    "nn/test_pooling.py",
    "coda/test_network.py",
    "coda/test_alignment.py",
    "gated/kernels/test_path.py",
    "gated/kernels/test_tangent.py",
    "coded/test_network.py",
    "taylor/test_network.py",
    "explain/test_decompose.py",
    "explain/test_series.py",
    "explain/attribute/test_golden.py",
    "train/test_step.py",
    "contracts/test_models.py",
)
"""Exactness of decompositions and series, contracts, kernels, both sides of platform choices, training steps."""
DRY_TESTS = ("nn/test_patches.py", "nn/test_platform.py")
RUNS = {
    "coda": "coda/cifar10-s-fast",
    "gated": "gated/cifar10-vgg16-dlgn-x",
    "coded": "coded/cifar10",
    "taylor": "taylor/cifar10-mini",
    "glassbox": "glassbox/cifar10-alexnet",
}
"""Of each family, a named run on CIFAR-10."""
DRY_MODELS: dict[str, dict[str, Any]] = {
    "coda": {"features": (4, 10), "ranks": (2, 2), "kernel_sizes": (3, 1), "strides": (2, 1)},
    "gated": {"architecture": "c4gap", "depth": 2, "width": 4},
    "glassbox": {"network": "z2", "features": (4, 10), "sides": (5, 5), "pools": (0,)},
}
"""Of a dry run, beside what the family itself makes smaller: few layers, which compile soon."""
RATES = 1000
"""Learning rates of a short training: those of the whole run, at so many shares of it."""
TIMED_SECONDS = 2.0
"""Of the steps that tell how many fit into a short training."""


def succeed(command: Sequence[str], log: Path, further: Mapping[str, str]) -> None:
    """Run a command of this part, with further environment; it ends with the part. Raise PartError if it fails."""
    with log.open("w") as out:
        ended = subprocess.run(command, stdout=out, stderr=out, cwd=ROOT, env={**os.environ, **further}, check=False)
    if ended.returncode:
        raise PartError(last_words(ended.returncode, log))


# Tests


def tests(setting: Setting) -> dict[str, Any]:
    """Run the core's tests on the default platform."""
    files = [f"tests/{name}" for name in (DRY_TESTS if setting.dry else TESTS)]
    report = setting.folder / ".tests.xml"
    command = [sys.executable, "-m", "pytest", "-o", "addopts=", "--import-mode=importlib", "-p", "no:cacheprovider"]
    command += ["-q", "-m", "not slow", "-W", "default", f"--junitxml={report}", *files]
    if importlib.util.find_spec("beartype") and importlib.util.find_spec("jaxtyping"):
        command.append("--jaxtyping-packages=jaxinterp,beartype.beartype")
    if setting.platform == "gpu" and importlib.util.find_spec("xdist"):  # a TPU serves one process
        command += ["-n", str(min(8, len(os.sched_getaffinity(0)))), "--dist", "worksteal"]
    env = {"JAXINTERP_TEST_PLATFORM": "default", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    report.unlink(missing_ok=True)
    failed: PartError | None = None
    try:
        succeed(command, setting.folder / "tests.pytest.log", env)
    except PartError as error:
        failed = error
    if not report.exists():
        raise failed or PartError("pytest left no report")
    suites = list(ElementTree.parse(report).getroot().iter("testsuite"))
    report.unlink()
    totals = {
        name: sum(int(suite.get(name, 0)) for suite in suites) for name in ("tests", "failures", "errors", "skipped")
    }
    bad = [
        {
            "test": f"{case.get('classname')}::{case.get('name')}",
            "error": str(fault.get("message")).split("\n")[0][:300],
        }
        for suite in suites
        for case in suite.iter("testcase")
        for fault in (*case.iter("failure"), *case.iter("error"))
    ]
    passed = totals["tests"] - totals["failures"] - totals["errors"] - totals["skipped"]
    counts = {"passed": passed, "failed": totals["failures"], "errors": totals["errors"], "skipped": totals["skipped"]}
    return {"matmul_precision": "highest", "files": files, **counts, "failures": bad}


# Short trainings


@dataclass(frozen=True)
class Prepared:
    """A run with its images: whether they are real, training and test parts."""

    run: Any
    family: Any
    real: bool
    train: Any
    test: Any


def synthetic(path: Path, dry: bool) -> None:
    """Write ten classes of noisy patterns, in the shape of CIFAR-10."""
    rng = np.random.default_rng(0)
    patterns = np.kron(rng.uniform(40, 215, (10, 8, 8, 3)), np.ones((1, 4, 4, 1)))
    arrays = {}
    for name, size in (("train", 256 if dry else 10_000), ("test", 128 if dry else 2000)):
        labels = np.arange(size) % 10
        noisy = patterns[labels] + rng.normal(0, 40, (size, 32, 32, 3)).astype(np.float32)
        arrays |= {f"{name}_images": noisy.clip(0, 255).astype(np.uint8), f"{name}_labels": labels}
    write_arrays(path, arrays)


def prepared(name: str, setting: Setting) -> Prepared:
    """Return a family's run and its images; nothing is held out."""
    from jaxinterp.app.registry import family_of
    from jaxinterp.app.training import run_of
    from jaxinterp.recipe.data import resolved, split, training_data, with_outputs

    run = run_of(RUNS[name])
    data = setting.data
    if data == "synthetic":
        path = setting.folder / "synthetic.npz"
        if not path.exists():
            synthetic(path, setting.dry)
        data = f"npz:{path}"
    if data != run.data.name:
        run = run.replace(data={"name": data, "image_size": 32})
    family = family_of(run)
    if setting.dry:
        run = family.smoke(run).replace(model=DRY_MODELS.get(name, {}))
    run = resolved(run.replace(train={"val_fraction": 0.0}), setting.data_dir)
    train, test = training_data(run, setting.data_dir)[0], split(run, "test", setting.data_dir)
    classes = run.model.classes
    return Prepared(run, family, setting.data != "synthetic", with_outputs(train, classes), with_outputs(test, classes))


def paced(run: Any, frozen: Any) -> optax.GradientTransformation:
    """Return a run's optimizer whose learning rates, and number of steps, are part of its state.

    So the step is compiled before it is known how many of them there will be.
    """
    from jaxinterp.train.optimizer import make_optimizer

    fields = ("epsilon", "momentum", "nesterov", "weight_decay", "decay_all", "clip")
    make = partial(make_optimizer, run.optim.optimizer, frozen=frozen, **{k: getattr(run.optim, k) for k in fields})

    def init(params: Any) -> Any:
        return {"inner": make(lambda _: jnp.float32(0)).init(params), "rates": jnp.zeros(RATES), "total": jnp.int32(1)}

    def update(gradients: Any, state: Any, params: Any = None) -> Any:
        def rate(step: Any) -> Any:
            share = jnp.asarray(step, jnp.float32) / state["total"].astype(jnp.float32)
            return jnp.take(state["rates"], (share * RATES).astype(jnp.int32), mode="clip")

        updates, inner = make(rate).update(gradients, state["inner"], params)
        return updates, {**state, "inner": inner}

    return optax.GradientTransformation(init, update)


def rates_of(run: Any, steps_per_epoch: int) -> jax.Array:
    """Return the learning rates of a run at equal shares of it."""
    from jaxinterp.train.optimizer import make_schedule

    optim, epochs = run.optim, run.train.epochs
    options = {"end_lr": optim.end_lr, "warmup_epochs": optim.warmup_epochs, "steps_per_epoch": steps_per_epoch}
    schedule = make_schedule(optim.schedule, learning_rate=optim.learning_rate, epochs=epochs, **options)
    steps = jnp.asarray(np.arange(RATES) * epochs * steps_per_epoch // RATES, jnp.int32)
    return jax.vmap(schedule)(steps)


def train(name: str, setting: Setting) -> dict[str, Any]:
    """Train a family's run for a fixed time, its schedule shortened to the steps that fit, and test it."""
    from jaxinterp.recipe.data import augmentation, targeted
    from jaxinterp.train import Evaluation, compile_step, device_mesh, init_state
    from jaxinterp.train.config import check_batches
    from jaxinterp.train.loader import InMemoryLoader

    ready = prepared(name, setting)
    run, family, data = ready.run, ready.family, ready.train
    size, seconds = run.train.batch_size, 0.4 if setting.dry else setting.train_seconds
    mesh = device_mesh()
    check_batches(run.train, mesh.size, len(data) // size)
    everywhere = jax.NamedSharding(mesh, jax.P())
    key = jax.jit(lambda: jax.random.key(run.train.seed), out_shardings=everywhere)()
    network = family.network(run, run.train.dtype)
    loss, optimizer = targeted(family.loss(run, network), run), paced(run, family.frozen_params(run))
    loader = InMemoryLoader(data, augmentation(run.augment), size, key, mesh, "jit")
    number, image = (
        jax.ShapeDtypeStruct((size,), jnp.int32),
        jax.ShapeDtypeStruct((size, *data.images.shape[1:]), jnp.float32),
    )
    batch = {"image": image, "label": number, "index": number}
    init = jax.jit(lambda key: init_state(network, loss, optimizer, key, batch), out_shardings=everywhere)
    state: Any = init(jax.random.fold_in(key, 2))
    begin = family.init_from(run, network, state.variables, None, data)
    state = state.replace(
        **jax.tree.map(lambda new, old: jnp.copy(jax.device_put(new, old.sharding)), begin, state.variables)
    )

    step = compile_step(
        loss, optimizer, mesh=mesh, grad_accum_steps=run.train.grad_accum_steps, sample_batch=loader.sample_batch
    )
    first = next(iter(loader.epoch(0, 0)))
    begun = time.perf_counter()
    compiled = step.lower(state, first, key).compile()
    compile_seconds = time.perf_counter() - begun

    def run_steps(state: Any, steps: int) -> tuple[Any, float]:
        begun = time.perf_counter()
        for inputs in islice(chain.from_iterable(loader.epoch(epoch, 0) for epoch in count()), steps):
            state = compiled(state, inputs, key)
        jax.block_until_ready(state)
        return state, time.perf_counter() - begun

    trial, _ = run_steps(jax.tree.map(jnp.copy, state), 2)  # at a rate of 0, and thrown away
    steps, spent = 1, 0.0
    while spent < min(TIMED_SECONDS, seconds / 4):
        steps *= 2
        trial, spent = run_steps(trial, steps)
    total = max(1, int(seconds * steps / spent))
    pace = {"rates": rates_of(run, loader.steps), "total": np.int32(total)}
    state = state.replace(opt_state={**state.opt_state, **jax.device_put(pace, everywhere)})
    state, spent = run_steps(state, total)
    bad, sums = jax.device_get((state.bad_step, state.sums))
    if bad >= 0:
        raise PartError(f"loss, gradient norm or parameter norm is not finite at step {bad} of {total}")
    result = {
        "run": run_name(name),
        "data": data.name
        if ready.real
        else "synthetic: ten classes of noisy patterns, no accuracy is published of them",
        "images": len(data),
        "batch_size": size,
        "dtype": run.train.dtype,
        "matmul_precision": jax.config.jax_default_matmul_precision or "default of the device",
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "compile_seconds": compile_seconds,
        "steps": total,
        "seconds": spent,
        "images_per_second": total * size / spent,
        "epochs": total / loader.steps,
        "train_means": {
            k: float(sums[k] / sums["count"]) for k in sums if k != "count" and (ready.real or k != "accuracy")
        },
        "peak_bytes": peak_bytes(),
    }
    if name == "coda":
        write_arrays(weights(setting), jax.device_get(flatten_dict(state.variables, sep="/")))
    if ready.real:
        tested = Evaluation(family.network(run), None, ready.test, run.train.eval_batch, mesh)(state.variables)
        result |= {
            "test_accuracy": tested["accuracy"],
            "test_data": {k: v for k, v in ready.test.provenance.items() if k != "path"},
        }
    return result


def run_name(name: str) -> str:
    """Return the named run of a family, and that its time was cut."""
    return f"{RUNS[name]}, its schedule shortened to these steps"


def weights(setting: Setting) -> Path:
    """Return the file of the CoDA net that was trained last."""
    return setting.folder / "train-coda.npz"


def peak_bytes() -> int | None:
    """Return the most bytes of the first device that were in use so far, None where it does not tell."""
    stats = jax.devices()[0].memory_stats()
    return None if stats is None else stats.get("peak_bytes_in_use")


def localization(setting: Setting) -> dict[str, Any]:
    """Play the grid pointing game with the CoDA net of `train-coda`."""
    from jaxinterp.explain.explainable import explainable
    from jaxinterp.explain.methods import OURS, compared
    from jaxinterp.explain.metrics import grid_pointing_game, sample_grids
    from jaxinterp.train import predict

    path = weights(setting)
    if not path.exists():
        raise PartError(f"weights: got no {path.name} beside the results, expected that of the part train-coda")
    ready = prepared("coda", setting)
    network = ready.family.network(ready.run)
    with np.load(path) as file:
        variables = unflatten_dict(dict(file), sep="/")
    net = explainable(network, variables)
    images, labels = ready.test.floats(), ready.test.labels
    logits = predict(network.apply, variables, images, ready.run.train.eval_batch)
    odds = 10 * np.eye(logits.shape[1])[labels] if setting.dry else net.log_odds(logits)
    grids = sample_grids(odds, labels, n=3, count=2 if setting.dry else 100, key=jax.random.key(0))
    methods = {k: m for k, m in compared(net, (), 1).items() if k in (OURS, "gradient", "input_x_gradient")}
    scores, seconds = {}, {}
    for name, method in methods.items():
        begun = time.perf_counter()
        played = grid_pointing_game(net, method, images, grids=grids)
        seconds[name] = time.perf_counter() - begun
        scores[name] = float(played.quartiles[1])
    return {
        "run": run_name("coda"),
        "data": ready.test.name if ready.real else "synthetic",
        "grids": len(grids.images),
        "eligible_images": grids.eligible,
        "chance": 1 / 9,
        "seconds": seconds,
        **({"localization_3x3_median": scores} if ready.real else {}),
    }


# Neural path kernels


def kernel(setting: Setting, conv: bool) -> dict[str, Any]:
    """Compute the NPK of n examples with random gates, and compare a block of it with float64."""
    from jaxinterp.gated.architecture import c4gap, fc, gate_shapes
    from jaxinterp.gated.kernels import PathKernel

    n = (16 if conv else 256) if setting.dry else 10_000
    width = (8 if conv else 64) if setting.dry else (128 if conv else 512)
    layers, shape = (c4gap(width), (8, 8, 3)) if conv else (fc(width, 4), (48 if setting.dry else 3072,))
    x = jax.random.normal(jax.random.key(0), (n, *shape))
    keys = jax.random.split(jax.random.key(1), 8)
    gates = tuple(
        jax.random.bernoulli(k, 0.5, (n, *one)) for k, one in zip(keys, gate_shapes(layers, shape), strict=False)
    )
    path_kernel = PathKernel(layers, normalize="width")

    def compute() -> tuple[jax.Array, float]:
        begun = time.perf_counter()
        k = jax.block_until_ready(path_kernel(x, gates))
        return k, time.perf_counter() - begun

    k, first = compute()
    times = [compute()[1] for _ in range(1 if conv else 3)]
    some = np.sort(np.random.default_rng(0).choice(n, 4 if conv else 64, replace=False))
    got = np.asarray(k[some][:, some], np.float64)
    rows, open_gates = np.asarray(x[some], np.float64), [np.asarray(gate[some]) for gate in gates]
    if conv:
        with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
            want = np.asarray(path_kernel(rows, tuple(open_gates)))
    else:  # <x, x'> ∏_l <G_l, G'_l> / width
        want = rows @ rows.T
        for gate in open_gates:
            want = want * (gate.astype(float) @ gate.T.astype(float)) / gate.shape[1]
    difference = float(np.abs(got - want).max() / np.abs(want).max())
    if not difference <= 1e-4:
        raise PartError(f"kernel: got entries {difference:.1e} of the largest off float64's, expected at most 1e-04")
    seconds = statistics.median(times)
    return {
        "architecture": f"four {'convolutions, global average' if conv else 'hidden layers'}, width {width}",
        "n": n,
        "input": list(shape),
        "dtype": "float32, gates counted in integers on an accelerator",
        "first_call_seconds": first,
        "seconds": seconds,
        "pairs_per_second": n**2 / seconds,
        "kernel_bytes": k.nbytes,
        "peak_bytes": peak_bytes(),
        "relative_difference": difference,
        "compared": f"{len(some)}×{len(some)} entries in float64 on the CPU",
    }


# PyTorch


def against_torch(benchmark: str, full: str, small: str, setting: Setting) -> dict[str, Any]:
    """Run one of the benchmarks against PyTorch, both on this device, and return its record."""
    needed = ("torch", "torchvision", "captum", "zennit") if benchmark == "attribution" else ("torch",)
    if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
        raise LeftOut(f"not installed: {', '.join(missing)}")
    if setting.platform == "tpu":
        raise LeftOut("PyTorch does not run on this device")
    if setting.platform == "gpu":
        import torch

        if not torch.cuda.is_available():
            raise LeftOut("PyTorch sees no GPU")
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", f"benchmarks.{benchmark}", *(small if setting.dry else full).split()]
        env = {"BENCHMARK_RESULTS": folder, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        succeed(command, setting.folder / f"torch-{benchmark}.benchmark.log", env)
        (file,) = Path(folder).glob("*.json")
        return {"record": json.loads(file.read_text(encoding="utf-8"))}


CODA_SMALL = "--batch 2 --rounds 1 --small --no-compiled --no-memory"
CODED_SMALL = "--batch 2 --rounds 1 --side 4 --features 16 --paths 2 --width 2 --no-network --no-memory"
TAYLOR_SMALL = "--batch 2 --step 4 --rounds 1"
NPK_SMALL = "--n 64 --width 16 --hidden 2 --inputs 8 --rounds 1 --batch 2 --channels 4 --conv-channels 4"
ATTRIBUTION_SMALL = "--networks cnn --methods gradient --images 2 --rounds 1 --write"
PARTS: Mapping[str, Callable[[Setting], dict[str, Any]]] = {
    "tests": tests,
    "train-coda": partial(train, "coda"),
    "localization": localization,
    **{f"train-{name}": partial(train, name) for name in RUNS if name != "coda"},
    "npk-dense": partial(kernel, conv=False),
    "npk-conv": partial(kernel, conv=True),
    "torch-coda": partial(against_torch, "coda", "--no-memory", CODA_SMALL),
    "torch-coda-bfloat16": partial(
        against_torch, "coda", "--no-memory --dtype bfloat16", f"{CODA_SMALL} --dtype bfloat16"
    ),
    "torch-coded": partial(against_torch, "coded", "--no-memory --compiled", CODED_SMALL),
    "torch-taylor": partial(against_torch, "taylor", "--compiled", TAYLOR_SMALL),
    "torch-npk": partial(against_torch, "npk", "--compiled", NPK_SMALL),
    "torch-attribution": partial(against_torch, "attribution", "--rounds 3", ATTRIBUTION_SMALL),
}
"""As accelerator.py lists them."""


def run_part(name: str, setting: Setting) -> dict[str, Any]:
    """Run a part."""
    return PARTS[name](setting)
