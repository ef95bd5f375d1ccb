"""States that wait for a save: which are kept, and errors that come late."""

import threading

import numpy as np
import pytest

from jaxinterp.errors import CheckpointError
from jaxinterp.train.checkpoint import Checkpoints
from jaxinterp.train.saver import Saver, kept


class Slow(Checkpoints):
    """Checkpoints that wait for a signal, and note what is saved."""

    def __init__(self, fail: bool = False) -> None:
        self.free, self.begun, self.saved, self.fail = threading.Event(), threading.Event(), list[int](), fail

    def steps(self) -> list[int]:
        return self.saved[::-1]

    def save(self, state, meta) -> None:
        self.begun.set()
        self.free.wait()
        if self.fail:
            raise CheckpointError("full")
        self.saved.append(int(state["step"]))

    def wait(self) -> None: ...


def history(accuracies):
    return {"history": [{"step": step, "val_accuracy": value} for step, value in enumerate(accuracies, 1)]}


def test_training_goes_on_while_a_state_is_written_and_the_last_and_best_are_kept():
    slow, accuracies = Slow(), [0.1, 0.9, 0.2, 0.3, 0.4, 0.5]
    with Saver(slow, keep=2) as saver:
        for step in range(1, 7):
            state = {"step": np.int32(step)}
            saver.save(state, step, history(accuracies[:step]))
            slow.begun.wait()  # the first is being written
            saver.save(state, step, history(accuracies[:step]))  # of the same step: nothing
        assert slow.saved == []
        slow.free.set()
        saver.wait()
        assert slow.saved == [1, 2, 5, 6]


def test_an_earlier_best_stays_while_a_state_whose_best_it_is_does():
    states = [(step, None, history([0.5, 0.1, 0.1, 0.9][:step])) for step in (1, 2, 3, 4)]
    assert [step for step, *_ in kept(states, 2)] == [1, 3, 4]
    assert [step for step, *_ in kept(states, 1)] == [4]


def test_what_could_not_be_written_is_said_by_the_next_call():
    slow = Slow(fail=True)
    with Saver(slow, keep=1) as saver:
        saver.save({"step": np.int32(1)}, 1, history([0.1]))
        slow.free.set()
        with pytest.raises(CheckpointError, match="full"):
            saver.wait()
        saver.wait()  # it is said once


def test_leaving_waits_and_raises():
    slow = Slow(fail=True)
    slow.free.set()
    with pytest.raises(CheckpointError, match="full"), Saver(slow, keep=1) as saver:
        saver.save({"step": np.int32(1)}, 1, history([0.1]))


def test_an_error_on_its_way_takes_the_one_of_a_save_along():
    slow = Slow(fail=True)
    slow.free.set()

    def fail() -> None:
        with Saver(slow, keep=1) as saver:
            saver.save({"step": np.int32(1)}, 1, history([0.1]))
            raise KeyError("step")

    with pytest.raises(KeyError, match="step") as caught:
        fail()
    assert caught.value.__notes__ == ["beside it, a checkpoint could not be saved: full"]


def test_a_copy_is_saved():
    slow, array = Slow(), np.arange(2)
    with Saver(slow, keep=1) as saver:
        saver.save({"step": array[0:1].reshape(())}, 7, history([0.1]))
        array[:] = 5  # as if its buffer were donated
        slow.free.set()
        saver.wait()
    assert slow.saved == [0]
