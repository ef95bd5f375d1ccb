"""Fixtures of the tests of explanations."""

from contextlib import contextmanager

import jax
import pytest

_seen = []
jax.monitoring.register_event_duration_secs_listener(lambda event, *args, **rest: _seen.append(event))


@pytest.fixture
def compilations():
    """A context that lists what was compiled in it."""

    @contextmanager
    def watch():
        found = []
        start = len(_seen)
        yield found
        found += [event for event in _seen[start:] if event == "/jax/core/compile/backend_compile_duration"]

    return watch
