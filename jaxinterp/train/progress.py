"""Progress of a run: rate and remaining time, as a bar on a terminal and as plain lines without one."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

LOOK = 0.5
"""Seconds between two looks at the devices; the steps in between are dispatched without waiting."""
DECAY = 0.95
"""Weight of what came before, at each look, in the rate and the remaining time."""
QUIET = 30.0
"""Seconds between two lines within an epoch, without a terminal."""


def duration(seconds: float) -> str:
    """Hours, minutes and seconds.

    >>> duration(59.6), duration(3723.0)
    ('1:00', '1:02:03')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class ProgressMeter:
    """Counts steps and seconds of training, and shows them; evaluation, saving and compilation are left out."""

    def __init__(
        self, steps_per_epoch: int, epochs: int, batch_size: int, console: Console | None = None, show: bool = True
    ) -> None:
        """Prepare the display.

        Args:
            steps_per_epoch: Steps per epoch.
            epochs: Epochs of the run.
            batch_size: Images per step.
            console: Where to write; default standard output.
            show: False keeps silent, for all processes but the first.
        """
        self._steps, self._epochs, self._batch = steps_per_epoch, epochs, batch_size
        self._console = Console() if console is None else console
        self._show, self._task = show, TaskID(0)
        self._bar: Progress | None = None
        self._interval, self._since, self._step = 1, 0, 0
        self._begun = self._said = time.perf_counter()
        self._spent, self._done = 0.0, 0.0
        self.seconds = 0.0
        """Seconds of training in this epoch."""

    def __enter__(self) -> "ProgressMeter":
        if self._show and self._console.is_terminal:
            text = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[rate]}")
            self._bar = Progress(*text, console=self._console)
            self._task = self._bar.add_task("", total=self._steps * self._epochs, rate="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def log(self, text: str) -> None:
        """Write a line."""
        if self._show:
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def compiling(self, what: str) -> Iterator[None]:
        """Say how long something took to compile."""
        begun = time.perf_counter()
        yield
        self.log(f"compiled {what} in {time.perf_counter() - begun:.1f} s")

    def start(self, step: int, seconds: float = 0.0) -> None:
        """Begin to count at a step, with seconds already spent in this epoch."""
        self._step, self._since, self.seconds, self._begun = step, 0, seconds, time.perf_counter()

    def due(self) -> bool:
        """Count a dispatched step; whether it is time to look at the devices, and to call `tick`."""
        self._since += 1
        return self._since >= self._interval

    def tick(self, metrics: Mapping[str, float]) -> None:
        """Take the time: all steps counted so far are done.

        Args:
            metrics: Means over the epoch so far, shown.
        """
        now = time.perf_counter()
        elapsed, self._begun = now - self._begun, now
        self.seconds += elapsed
        if self._since == 0:
            return
        each = elapsed / self._since
        self._spent, self._done = DECAY * self._spent + elapsed, DECAY * self._done + self._since
        self._step, self._since = self._step + self._since, 0
        self._interval = max(1, min(2 * self._interval, round(LOOK / max(each, 1e-9))))
        self._display(now, metrics)

    @property
    def rate(self) -> float:
        """Images per second, of late; 0 before the first step is done."""
        return self._batch * self._done / self._spent if self._spent else 0.0

    @property
    def left(self) -> float:
        """Seconds of training left, at the present rate."""
        return (self._steps * self._epochs - self._step) * self._spent / self._done if self._done else 0.0

    def _display(self, now: float, metrics: Mapping[str, float]) -> None:
        rate = f"{self.rate:.0f} images/s, {duration(self.left)} left"
        epoch = f"epoch {min(self._step // self._steps + 1, self._epochs)}/{self._epochs}"
        means = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        if self._bar is not None:
            self._bar.update(self._task, completed=self._step, description=f"{epoch}  {means}", rate=rate)
        elif now - self._said > QUIET:
            self._said = now
            self.log(f"{epoch}, step {self._step}: {means}  ({rate})")

    def epoch(self, record: Mapping[str, Any]) -> None:
        """Write the line of a finished epoch, and begin the next one.

        Args:
            record: The epoch's metrics: `epoch` and `images_per_second`, and any number of floats.
        """
        shown = {name: value for name, value in record.items() if name.startswith(("train_", "val_"))}
        means = "  ".join(f"{name} {value:.4f}" for name, value in shown.items())
        rate = f"{record['images_per_second']:.0f} images/s, {duration(self.left)} left"
        self.log(f"epoch {record['epoch']}/{self._epochs}  {means}  ({rate})")
        self._said = time.perf_counter()
        self.start(self._step)
