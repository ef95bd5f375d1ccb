"""Process-wide JAX settings of all tests (CPU, 8 simulated devices, strict promotion, one cache), and fixtures.

With JAXINTERP_TEST_PLATFORM=default in the environment tests run on JAX's default platform, a GPU or TPU if there is
one, with float32 products that are not rounded to less; those marked `simulated` need the CPU or its 8 devices.
"""

import hashlib
import os
import platform
from importlib.metadata import version
from pathlib import Path

_build = f"{version('jaxlib')}-{platform.machine()}-{platform.processor()}-{platform.python_version()}"
_cache = Path(__file__).parent.parent / ".jax_cache" / hashlib.sha256(_build.encode()).hexdigest()[:12]
DEFAULT = os.environ.get("JAXINTERP_TEST_PLATFORM", "cpu") == "default"
if not DEFAULT:
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["JAX_NUM_CPU_DEVICES"] = "8"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_cache))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

from contextlib import contextmanager  # noqa: E402

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
if DEFAULT:  # where a product of float32 may be one of TF32 or bfloat16
    jax.config.update("jax_default_matmul_precision", "highest")


def pytest_collection_modifyitems(items):
    """Skip, on another platform, what was written for simulated devices."""
    if DEFAULT:
        for item in items:
            if item.get_closest_marker("simulated"):
                item.add_marker(pytest.mark.skip(reason="needs 8 simulated CPU devices"))


_seen = []
jax.monitoring.register_event_duration_secs_listener(lambda event, *args, **rest: _seen.append(event))


MANY = 1500
"""Programs after which what is compiled is let go: each holds some memory maps, of which a process has 65,530."""
_kept = [0]


@pytest.fixture(scope="module", autouse=True)
def _few_programs():
    yield
    if len(_compiled()) - _kept[0] > MANY:
        jax.clear_caches()
        _kept[0] = len(_compiled())


def _compiled(since=0):
    return [event for event in _seen[since:] if event == "/jax/core/compile/backend_compile_duration"]


@pytest.fixture
def compilations():
    """A context that lists what was compiled in it."""

    @contextmanager
    def watch():
        found = []
        start = len(_seen)
        yield found
        found += _compiled(start)

    return watch
