"""Run one command of jaxinterp, count what it compiles, and split the seconds of its training.

    python benchmarks/counted.py RESULT.json train coda/digits ...

It imports nothing of this package, so that it runs an older checkout on PYTHONPATH as well.
"""

import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Any

STARTED = time.perf_counter()
TRACED, LOWERED, COMPILED = (
    f"/jax/core/compile/{name}_duration" for name in ("jaxpr_trace", "jaxpr_to_mlir_module", "backend_compile")
)
EVENTS = {TRACED: "traced", LOWERED: "lowered", COMPILED: "compiled"}

programs: Counter[str] = Counter()
by_name: Counter[str] = Counter()
seconds: Counter[str] = Counter()
hits: Counter[str] = Counter()
spent: Counter[str] = Counter()
_open: list[list[float]] = []  # of each part that the main thread is in: the seconds of parts within it


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def listen() -> None:
    """Count programs and their seconds, by name."""
    import jax

    def duration(event: str, elapsed: float, **found: Any) -> None:
        if event not in EVENTS:
            return
        name = str(found.get("fun_name", "")).removeprefix("jit_").removeprefix("jit(").removesuffix(")")
        seconds[EVENTS[event]] += elapsed
        by_name[name] += elapsed  # type: ignore[assignment]
        programs[name] += event == COMPILED
        if _open and _in_main_thread():
            _open[-1][0] += elapsed
            spent["compilation"] += elapsed  # type: ignore[assignment]

    def happened(event: str, **found: Any) -> None:
        hits["from_cache"] += event == "/jax/compilation_cache/cache_hits"

    jax.monitoring.register_event_duration_secs_listener(duration)
    jax.monitoring.register_event_listener(happened)


def split(owner: Any, method: str, part: str) -> None:
    """Add the main thread's seconds in a method, without those of parts within it, to a part of training."""
    inner: Callable[..., Any] = getattr(owner, method)

    @wraps(inner)
    def timed(*args: Any, **kwargs: Any) -> Any:
        if not _in_main_thread():
            return inner(*args, **kwargs)
        start, within = time.perf_counter(), [0.0]
        _open.append(within)
        try:
            return inner(*args, **kwargs)
        finally:
            _open.pop()
            elapsed = time.perf_counter() - start
            spent[part] += elapsed - within[0]  # type: ignore[assignment]
            if _open:
                _open[-1][0] += elapsed

    setattr(owner, method, timed)


def main(result: Path, arguments: list[str]) -> None:
    """Run the command, and write the counts."""
    listen()
    from jaxinterp.app import cli

    imported = time.perf_counter() - STARTED
    if arguments[0] in ("train", "demo"):
        from jaxinterp.train import checkpoint, evaluate, log, loop

        split(loop._Run, "train", "steps")
        split(loop._Run, "save", "saves")
        split(checkpoint.Checkpoints, "save", "saves")
        split(checkpoint.Checkpoints, "wait", "waits for saves")
        split(checkpoint.Checkpoints, "restore", "restores")
        split(evaluate.Evaluation, "__call__", "evaluation")
        split(log.RunLog, "epoch", "log")
        with suppress(ImportError):  # older checkouts save as they train
            from jaxinterp.train.saver import Saver

            split(Saver, "save", "saves")
            split(Saver, "wait", "waits for saves")
    with suppress(SystemExit):
        cli.main(arguments)
    names = sorted(by_name, key=lambda name: -by_name[name])
    found = {
        "programs": sum(programs.values()),
        "from_cache": hits["from_cache"],
        "seconds": sum(seconds.values()),
        "wall_seconds": time.perf_counter() - STARTED,
        "import_seconds": imported,
        **{f"{name}_seconds": seconds[name] for name in EVENTS.values()},
        "training": dict(spent),
        "names": {name: [programs[name], round(by_name[name], 4)] for name in names},
    }
    result.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
