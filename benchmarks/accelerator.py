"""What only a GPU or a TPU can show, part by part: tests, trainings, a large kernel, and PyTorch on the same device.

    make accelerator                                      # this machine's GPU or TPU, at most 12 minutes
    make accelerator ARGS="--data-dir DIR --budget 8"     # CIFAR-10 in DIR, as prepared by tensorflow-datasets
    python -m benchmarks.accelerator --parts train-coda,localization
    python -m benchmarks.accelerator --dry-run            # every part with small sizes on a CPU: proves that it runs

Each part runs in a process of its own and has a file in results/accelerator-<device>/, written as it ends: what was
measured, or why not in a line, with the machine, versions, commit and precision. The next call goes on with the parts
that have no result, those that failed last. A part that is not expected to end in the time that is left is left to the
next call. Beside the files lie logs, which git ignores. Nothing but JAX and this checkout is needed: a part that
lacks a package says so.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.measuring import RESULTS, slug
from jaxinterp.files import write_text

ROOT = Path(__file__).parents[1]
BUDGET = 12.0
"""Minutes of a call."""


@dataclass(frozen=True)
class Part:
    """A part: its name, and the seconds it is expected to take on an accelerator (a guess: none was there)."""

    name: str
    seconds: float


PARTS = (
    Part("tests", 90),
    Part("train-coda", 75),
    Part("localization", 25),
    Part("train-gated", 60),
    Part("train-coded", 70),
    Part("train-taylor", 60),
    Part("train-glassbox", 50),
    Part("npk-dense", 15),
    Part("npk-conv", 40),
    Part("torch-coda", 65),
    Part("torch-coda-bfloat16", 45),
    Part("torch-coded", 40),
    Part("torch-taylor", 30),
    Part("torch-npk", 15),
    Part("torch-attribution", 40),
)
DRY_SECONDS = 60.0
"""Of every part, in a dry run: some take 15 on two idle cores, others more on busy ones."""
PATIENCE = 4.0
"""Times the expected seconds after which a part is ended, so that one that hangs does not take the others' time."""


@dataclass(frozen=True)
class Setting:
    """What the parts are told.

    Attributes:
        folder: of the results, absolute.
        platform: gpu, tpu or cpu.
        data: cifar10, synthetic, or npz:FILE.
        data_dir: the folder of CIFAR-10; default $TFDS_DATA_DIR, then ~/tensorflow_datasets.
        train_seconds: of each training, compilation apart.
        dry: small sizes.
    """

    folder: Path
    platform: str
    data: str = "cifar10"
    data_dir: Path | None = None
    train_seconds: float = 30.0
    dry: bool = False


class PartError(Exception):
    """A part failed; the message is its one line."""


class LeftOut(Exception):  # noqa: N818
    """A part has nothing to measure here; the message says why."""


Execute = Callable[[Part, float], Mapping[str, Any]]
"""(part, the most seconds it may take) ↦ what was measured; raises `PartError` or `LeftOut`."""


def state_of(folder: Path, part: Part) -> str:
    """Return what became of a part: done, left out, failed, or nothing yet."""
    path = folder / f"{part.name}.json"
    return str(json.loads(path.read_text(encoding="utf-8"))["status"]) if path.exists() else ""


def advance(
    parts: Sequence[Part],
    folder: Path,
    budget: float,
    execute: Execute,
    facts: Mapping[str, Any],
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, str]:
    """Run the parts that have no result yet, as far as the time reaches.

    Args:
        parts: in the order of their importance.
        folder: of the results.
        budget: seconds of this call.
        execute: runs one part.
        facts: written with every result.
        clock: seconds.

    Returns:
        Of each part: done, failed, left out, or left, if the next call has to run it.
    """
    start, states = clock(), {part.name: state_of(folder, part) for part in parts}
    unfinished = [part for part in parts if states[part.name] in ("", "failed")]
    for part in sorted(unfinished, key=lambda part: states[part.name] == "failed"):
        begun = clock()
        left = budget - (begun - start)
        if part.seconds > left:
            states[part.name] = states[part.name] or "left"
            continue
        result: dict[str, Any]
        try:
            result = {"status": "done", **execute(part, min(left, PATIENCE * part.seconds))}
        except LeftOut as reason:
            result = {"status": "left out", "reason": str(reason)}
        except PartError as error:
            result = {"status": "failed", "error": str(error)}
        result = {"part": part.name, **result, "wall_seconds": round(clock() - begun, 1), **facts}
        write_text(folder / f"{part.name}.json", json.dumps(result, indent=2) + "\n")
        states[part.name] = result["status"]
        said = result.get("reason") or result.get("error") or ""
        print(f"{part.name}: {result['status']}, {result['wall_seconds']} s{said and ': '}{said}", flush=True)
    return states


def one_line(error: BaseException) -> str:
    """Return an error's type and the first line of its message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}"[:300] if lines else type(error).__name__


def run_command(command: Sequence[str], log: Path, seconds: float, env: Mapping[str, str]) -> None:
    """Run a command with its output in a file; what it started ends with it.

    Raises:
        PartError: it did not end in time, or did not succeed.
    """
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, cwd=ROOT, env=env, start_new_session=True)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise PartError(f"got no end after {seconds:.0f} s") from None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if code:
        raise PartError(last_words(code, log))


def last_words(code: int, log: Path) -> str:
    """Return how a command ended, and the last line that it wrote."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return f"exit status {code}: {lines[-1] if lines else 'no output'}"[:300]


def environment(dry: bool) -> dict[str, str]:
    """Return the environment of the parts: this checkout first, and a CPU beside an accelerator, to compare with."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}
    named = "cpu" if dry else env.get("JAX_PLATFORMS", "")
    if named:
        env["JAX_PLATFORMS"] = named if "cpu" in named else f"{named},cpu"
    return env


def in_a_process(setting: Setting) -> Execute:
    """Return how a part is run: in a process of its own, since only one at a time can have a TPU."""

    def execute(part: Part, seconds: float) -> Mapping[str, Any]:
        answer = setting.folder / f".{part.name}.answer"
        answer.unlink(missing_ok=True)
        told = json.dumps({**asdict(setting), "folder": str(setting.folder), "data_dir": _text(setting.data_dir)})
        command = [sys.executable, "-m", "benchmarks.accelerator", "--part", part.name, "--told", told]
        log = setting.folder / f"{part.name}.log"
        try:
            run_command(command, log, seconds, environment(setting.dry))
            result: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
        finally:
            answer.unlink(missing_ok=True)
        if "error" in result:
            raise PartError(result["error"])
        if "reason" in result:
            raise LeftOut(result["reason"])
        return result

    return execute


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def answer_for(name: str, setting: Setting) -> None:
    """Run a part in this process, and leave its answer."""
    result: dict[str, Any]
    try:
        from benchmarks.accelerator_parts import run_part

        result = run_part(name, setting)
    except LeftOut as reason:
        result = {"reason": str(reason)}
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        result = {"error": str(error) if isinstance(error, PartError) else one_line(error)}
    write_text(setting.folder / f".{name}.answer", json.dumps(result))


def probe(dry: bool) -> dict[str, Any]:
    """Return what every result says of the device, asked in a process that lets go of it."""
    code = (
        "import json, jax\n"
        "from benchmarks.measuring import provenance\n"
        "d = jax.devices()\n"
        "print(json.dumps({'platform': d[0].platform, 'devices': len(d), **provenance('accelerator')}))"
    )
    asked = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment(dry), check=False
    )
    if asked.returncode:
        raise SystemExit(f"device: got {asked.stderr.strip().splitlines()[-1]}, expected JAX to start")
    facts: dict[str, Any] = json.loads(asked.stdout.splitlines()[-1])
    return facts


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 1 if a part failed, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=BUDGET, metavar="MINUTES", help=f"of this call ({BUDGET:g})")
    names = [part.name for part in PARTS]
    parser.add_argument("--parts", default=",".join(names), help="names, separated by commas; all by default")
    parser.add_argument("--again", action="store_true", help="run parts that have a result, too")
    parser.add_argument("--data", default="cifar10", metavar="NAME", help="cifar10, synthetic, or npz:FILE of its kind")
    parser.add_argument("--data-dir", type=Path, help="folder of CIFAR-10; default $TFDS_DATA_DIR")
    parser.add_argument("--out", type=Path, help=f"folder of the results' folder; default {RESULTS}, of a dry run runs")
    parser.add_argument("--train-seconds", type=float, default=30.0, metavar="S", help="of each training (30)")
    parser.add_argument("--dry-run", action="store_true", help="small sizes, on a CPU")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--told", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.part:
        told = json.loads(given.told)
        data_dir = None if told["data_dir"] is None else Path(told["data_dir"])
        answer_for(given.part, Setting(**{**told, "folder": Path(told["folder"]), "data_dir": data_dir}))
        return 0
    wanted = given.parts.split(",")
    if unknown := [name for name in wanted if name not in names]:
        raise SystemExit(f"--parts: got {', '.join(unknown)}, expected some of {', '.join(names)}")
    start = time.monotonic()
    facts = probe(given.dry_run)
    if facts["platform"] == "cpu" and not given.dry_run:
        raise SystemExit("device: got a CPU alone, expected a GPU or a TPU; --dry-run runs small sizes on a CPU")
    facts["command"] = " ".join(
        ["python -m benchmarks.accelerator", *(sys.argv[1:] if arguments is None else arguments)]
    )
    out = given.out or (ROOT / "runs" if given.dry_run else RESULTS)
    device = "dry-run" if given.dry_run else slug(f"{facts['devices']} x {facts['device']}")
    folder = out.absolute() / f"accelerator-{device}"
    folder.mkdir(parents=True, exist_ok=True)
    parts = [Part(part.name, DRY_SECONDS) if given.dry_run else part for part in PARTS if part.name in wanted]
    if given.again:
        for part in parts:
            (folder / f"{part.name}.json").unlink(missing_ok=True)
    data = given.data
    if data.startswith("npz:"):
        data = f"npz:{Path(data.removeprefix('npz:')).absolute()}"
    elif given.dry_run:
        data = "synthetic"
    data_dir = given.data_dir and given.data_dir.absolute()
    setting = Setting(folder, facts["platform"], data, data_dir, given.train_seconds, given.dry_run)
    states = advance(parts, folder, 60 * given.budget - (time.monotonic() - start), in_a_process(setting), facts)
    for state in ("failed", "left"):
        if some := [name for name, one in states.items() if one == state]:
            print(f"{state if state == 'failed' else 'left to the next call'}: {', '.join(some)}")
    print(f"results: {folder}")
    return int("failed" in states.values())


if __name__ == "__main__":
    from benchmarks.accelerator import main as run  # whose exceptions are those that the parts raise

    raise SystemExit(run())
