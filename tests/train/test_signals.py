import signal
import time

import pytest

from jaxinterp.train.signals import Interruption, never_lost


def test_a_signal_is_noted_and_a_second_one_interrupts() -> None:
    with Interruption() as interruption:
        signal.raise_signal(signal.SIGINT)
        assert interruption.requested == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        interruption.handled = True
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_signal_that_nobody_acted_on_is_raised_on_leaving() -> None:
    with pytest.raises(KeyboardInterrupt), Interruption():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_nothing_is_installed_where_it_is_not_enabled() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Interruption(enabled=False):
        assert signal.getsignal(signal.SIGTERM) is before


def test_an_interruption_that_python_ignores_is_sent_again() -> None:
    class Finalized:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    def work() -> None:
        Finalized()
        time.sleep(5)

    with never_lost(), pytest.raises(KeyboardInterrupt):
        work()
