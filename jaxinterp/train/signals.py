"""A request to stop, noticed at the next step instead of in the middle of one."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class Interruption:
    """While entered, SIGTERM and SIGINT only set `requested`; a second SIGINT raises KeyboardInterrupt.

    The handlers found are put back on leaving. Outside the main thread, where Python allows no handlers, and where
    `enabled` is false, nothing is installed.
    """

    def __init__(self, enabled: bool = True) -> None:
        """Prepare; handlers are installed on entering."""
        self.requested: str | None = None
        self._enabled = enabled
        self._previous: dict[int, Any] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = signal.Signals(number).name

    def __enter__(self) -> "Interruption":
        if self._enabled and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous.clear()
