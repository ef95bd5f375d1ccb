"""Saving beside training: checkpoints are written, and read back, by a thread of their own."""

import threading
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp.train.checkpoint import Checkpoints
from jaxinterp.train.result import best_record

Waiting = tuple[int, Any, Mapping[str, Any]]  # step, state and meta


class Saver:
    """Writes the checkpoints of a run while it trains.

    Where epochs are shorter than a save, states wait for it, copied to the host: only those that would stay in the end,
    the last few and the best one, so that what lies in the folder after `wait` is the same as if each had been saved.
    Processes of a run that has several meet as they save, so there each save is begun by `save` itself.

    Use as a context manager: leaving waits for what is being written.
    """

    def __init__(self, checkpoints: Checkpoints, keep: int) -> None:
        """Save to the checkpoints of a run, of which the last `keep` stay."""
        self._checkpoints, self._keep = checkpoints, keep
        self._waiting: list[Waiting] = []
        self._last = 0
        self._busy = self._closed = False
        self._error: Exception | None = None
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: object) -> None:
        try:
            self._drain()
            late = self._taken()
            if late is not None and error is None:
                raise late
            if late is not None and error is not None:
                error.add_note(f"beside it, a checkpoint could not be saved: {late}")
        finally:
            with self._changed:
                self._closed = True
                self._changed.notify_all()
            if self._thread is not None:
                self._thread.join()

    def save(self, state: Any, step: int, meta: Mapping[str, Any]) -> None:
        """Save a state, whose buffers may be donated when this returns, unless it is there already.

        Raises:
            CheckpointError: An earlier one could not be written, or reads back as something else.
        """
        self._raise()
        if step == self._last or step in self._checkpoints.steps():
            return
        self._last = step
        if jax.process_count() > 1:
            self._checkpoints.save(state, meta)
            return
        copied = jax.tree.map(_copied, state)
        with self._changed:
            self._waiting = kept([*self._waiting, (step, copied, meta)], self._keep)
            self._changed.notify_all()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="saver", daemon=True)
            self._thread.start()

    def wait(self) -> None:
        """Wait until all is written and read back.

        Raises:
            CheckpointError: It could not be written, or reads back as something else.
        """
        self._drain()
        self._raise()
        self._checkpoints.wait()

    def _drain(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not (self._waiting or self._busy))

    def _taken(self) -> Exception | None:
        with self._changed:
            error, self._error = self._error, None
        return error

    def _raise(self) -> None:
        error = self._taken()
        if error is not None:
            raise error

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return
                (_, state, meta), *self._waiting = self._waiting
                self._busy = True
            try:
                self._checkpoints.save(state, meta)
                self._checkpoints.wait()
            except Exception as error:  # raised by the next call of `save` or `wait`
                with self._changed:
                    self._error, self._waiting = error, []
            finally:
                del state
                with self._changed:
                    self._busy = False
                    self._changed.notify_all()


def kept(waiting: list[Waiting], keep: int) -> list[Waiting]:
    """Return the states that stay if all are saved: the last few, and the best ones in their histories.

    Example:
        >>> first, second, third = ({"step": step, "val_accuracy": 1 / step} for step in (1, 2, 3))
        >>> histories = [first], [first, second], [first, second, third]
        >>> waiting = [(step, None, {"history": history}) for step, history in enumerate(histories, 1)]
        >>> [step for step, *_ in kept(waiting, keep=1)]
        [1, 3]
    """
    last = waiting[-keep:]
    best = [best_record(meta["history"]) for _, _, meta in last]
    steps = {step for step, *_ in last} | {record["step"] for record in best if record is not None}
    return [one for one in waiting if one[0] in steps]


def _copied(leaf: Any) -> Any:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jnp.copy(leaf)
    return np.array(leaf)
