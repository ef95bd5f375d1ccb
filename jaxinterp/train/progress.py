"""Progress of a run: rate and remaining time, as a bar on a terminal and as plain lines without one."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

SYNC_SECONDS = 0.5
"""Seconds between two waits for the devices; the steps in between are dispatched without waiting."""
TIMED = 5
"""Steps that are timed, after the first, before it is said how long training will take."""
LINE_SECONDS = 30.0
"""Seconds between two lines within an epoch, without a terminal."""


class ProgressMeter:
    """Counts steps and seconds of training, and shows them; evaluation, saving and compilation are left out."""

    def __init__(
        self, steps_per_epoch: int, epochs: int, batch_size: int, console: Console | None = None, show: bool = True
    ) -> None:
        """Prepare the display on a console (default standard output); `show=False` keeps silent."""
        self._steps, self._epochs, self._batch, self._show = steps_per_epoch, epochs, batch_size, show
        self._console = Console() if console is None else console
        self._trained, self._interval, self._pending = 0.0, 1, 0
        self._begun = self._written = time.perf_counter()
        self._timed: list[tuple[int, float]] = []  # steps and seconds between the first waits
        self.seconds = 0.0
        """Seconds of training in this epoch."""
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not (show and self._console.is_terminal),
            speed_estimate_period=300.0,
            get_time=lambda: self._trained,  # seconds of training alone, for the rate and the remaining time
        )
        self._bar.add_task("", total=steps_per_epoch * epochs, rate="")
        (self._task,) = self._bar.tasks

    def __enter__(self) -> "ProgressMeter":
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def log(self, text: str) -> None:
        """Write a line."""
        if self._show:
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def compiling(self, what: str) -> Iterator[None]:
        """Write how long something took to compile."""
        begun = time.perf_counter()
        yield
        self.log(f"compiled {what} in {time.perf_counter() - begun:.1f} s")

    def start(self, step: int, seconds: float = 0.0) -> None:
        """Begin to count at a step, with seconds already spent in this epoch."""
        self._pending, self.seconds, self._begun = 0, seconds, time.perf_counter()
        self._bar.update(self._task.id, completed=step)
        self._bar.advance(self._task.id, 0)  # the first sample of the rate

    def should_report(self) -> bool:
        """Count a dispatched step; whether it is time to wait for the devices and to call `update`."""
        self._pending += 1
        return self._pending >= self._interval

    def update(self, metrics: Mapping[str, float]) -> None:
        """Take the time, as all steps counted so far are done, and show means over the epoch so far."""
        now = time.perf_counter()
        elapsed, self._begun = now - self._begun, now
        self.seconds += elapsed
        self._trained += elapsed
        if self._pending == 0:
            return
        each, done, self._pending = elapsed / self._pending, self._pending, 0
        self._interval = max(1, min(2 * self._interval, round(SYNC_SECONDS / max(each, 1e-9))))
        self._bar.advance(self._task.id, done)
        step = int(self._task.completed)
        self._estimate(done, elapsed, self._steps * self._epochs - step)
        epoch = f"epoch {min(step // self._steps + 1, self._epochs)}/{self._epochs}"
        means = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        rate = f"{self._batch * (self._task.speed or 0):.0f} images/s"
        self._bar.update(self._task.id, description=f"{epoch}  {means}", rate=rate)
        if self._bar.disable and now - self._written > LINE_SECONDS:
            self._written = now
            self.log(f"{epoch}, step {step}: {means}  ({rate}, {self._left()})")

    def _estimate(self, steps: int, seconds: float, left: int) -> None:
        """Say once how long training will take, by the steps after the first, which allocates."""
        if sum(count for count, _ in self._timed[1:]) >= TIMED:
            return
        self._timed.append((steps, seconds))
        count, total = (sum(part) for part in zip(*self._timed[1:], strict=True)) if self._timed[1:] else (0, 0.0)
        if count >= TIMED and left > 0:
            each = total / count
            self.log(
                f"training will take about {in_words(each * left)}, estimated from {count} steps of {1e3 * each:.3g} "
                "ms; compiling, evaluating and saving come on top"
            )

    def _left(self) -> str:
        return f"{TimeRemainingColumn().render(self._task)} left"

    def epoch(self, record: Mapping[str, Any]) -> None:
        """Write the line of a finished epoch from its record in metrics.jsonl."""
        shown = {name: value for name, value in record.items() if name.startswith(("train_", "val_"))}
        means = "  ".join(f"{name} {value:.4f}" for name, value in shown.items())
        rate = f"{record['images_per_second']:.0f} images/s, {self._left()}"
        self.log(f"epoch {record['epoch']}/{self._epochs}  {means}  ({rate})")
        self._written = time.perf_counter()


def in_words(seconds: float) -> str:
    """Write a length of time in two units.

    Example:
        >>> in_words(7.3), in_words(130.0), in_words(7300.0)
        ('7 s', '2 min 10 s', '2 h 1 min')
    """
    whole = max(1, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
