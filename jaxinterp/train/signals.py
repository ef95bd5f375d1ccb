"""A request to stop, noticed at the next step instead of in the middle of one."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

AGAIN = 0.05
"""Seconds after which a lost interruption is sent again."""


@contextlib.contextmanager
def never_lost() -> Iterator[None]:
    """Send a SIGINT again whose KeyboardInterrupt Python had to ignore, as in a finalizer or a callback."""
    before = sys.unraisablehook

    def hook(fault: Any) -> None:
        if fault.exc_type is KeyboardInterrupt:
            threading.Timer(AGAIN, os.kill, (os.getpid(), signal.SIGINT)).start()
        else:
            before(fault)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


class Interruption:
    """While entered, SIGTERM and SIGINT only set `requested`; a second SIGINT raises KeyboardInterrupt.

    A signal that came too late to be acted on (`handled` is still false on leaving) is raised again, not lost.
    Outside the main thread, where Python allows no handlers, and if `enabled` is false, nothing is installed.
    """

    def __init__(self, enabled: bool = True) -> None:
        """Prepare; handlers are installed on entering, and the previous ones put back on leaving."""
        self.requested: str | None = None
        self.handled = False
        self._enabled = enabled and threading.current_thread() is threading.main_thread()
        self._previous: dict[int, Any] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = signal.Signals(number).name

    def __enter__(self) -> "Interruption":
        if self._enabled:
            self._previous = {n: signal.signal(n, self._handle) for n in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if self.requested and not self.handled and error[0] is None:
            signal.raise_signal(signal.Signals[self.requested])
