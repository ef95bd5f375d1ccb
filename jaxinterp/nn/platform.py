"""Code that is fast on one kind of platform, chosen by what a program is compiled for.

A program may be compiled for another machine than the one that traces it, so that `jax.default_backend()` cannot tell.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, TypeVar, get_args

import jax
from jax import lax
from jax.sharding import Mesh

from jaxinterp.checks import require_one_of

Target = Literal["cpu", "gpu", "tpu", "accelerator"]
R = TypeVar("R")

_target = jax.make_user_context(None)  # part of the key by which JAX caches traces and compiled programs


@contextmanager
def target(kind: Target) -> Iterator[None]:
    """Trace for one kind of platform alone, within this context.

    Args:
        kind: "cpu", "gpu" or "tpu", or "accelerator" for one of the last two, not known which.

    Raises:
        ConfigError: `kind` is none of these.

    Example:
        >>> with target("accelerator"):
        ...     by_platform(lambda x: x + 1, lambda x: x - 1, 2)
        1
    """
    require_one_of("target", kind, get_args(Target))
    with _target(kind):
        yield


def target_of(arrays: Any) -> Target:
    """Return the target that is set, or else the kind of platform that holds a pytree's first known array.

    Where all are traced it is the kind of JAX's default platform.
    """
    known = (a for a in jax.tree.leaves(arrays) if isinstance(a, jax.Array) and not isinstance(a, jax.core.Tracer))
    held = next((next(iter(array.devices())).platform for array in known), None)
    platform = held or jax.default_backend()
    found: Target = platform if platform in ("cpu", "tpu") else "gpu"  # type: ignore[assignment]
    return _target.value or found


def jit_once(function: Callable[..., R], held: Any, level: Literal[0, 1] = 1, **options: Any) -> Callable[..., R]:
    """Compile a function that runs once, such as random initialization: on a CPU with little optimization.

    There LLVM takes longer over a program than the program over its values.

    Args:
        function: as of `jax.jit`.
        held: arrays of the platform that the function runs on, or a mesh of its devices.
        level: of LLVM's optimization on a CPU: 1, which was not seen to change a bit; 0, with roundings of its own.
        **options: of `jax.jit`.

    Example:
        >>> jit_once(lambda x: x + 1, jax.numpy.ones(2))(jax.numpy.ones(2)).tolist()
        [2.0, 2.0]
    """
    known = held.devices.flat[0].platform == "cpu" if isinstance(held, Mesh) else target_of(held) == "cpu"
    quickly = {"xla_backend_optimization_level": level} if known else None
    return jax.jit(function, compiler_options=quickly, **options)  # type: ignore[no-any-return]


def by_platform(
    cpu: Callable[..., R], accelerator: Callable[..., R], *args: Any, tpu: Callable[..., R] | None = None
) -> R:
    """Run one of two or three functions that compute the same: the one for the platform that a program is compiled for.

    Under `jit` all are traced, and only one is compiled; without it, JAX's default device decides. A derivative is
    best taken within `jit`: outside of it, what a jitted function keeps for the backward pass has zeros for the other.

    Args:
        cpu: (*args) ↦ a pytree of arrays.
        accelerator: the same for GPUs and TPUs, with equal shapes and types.
        *args: pytrees of arrays.
        tpu: the same for TPUs, where they have a function of their own.

    Example:
        >>> by_platform(lambda x: x + x, lambda x: 2 * x, jax.numpy.ones(2)).tolist()
        [2.0, 2.0]
    """
    known: Target | None = _target.value
    branches: dict[Target, Callable[..., R]] = {"cpu": cpu, "gpu": accelerator, "tpu": tpu or accelerator}
    if known in branches:
        return branches[known](*args)
    if known is not None and tpu is None:
        return accelerator(*args)

    def within(kind: Target, side: Callable[..., R], *args: Any) -> R:  # what a branch calls takes the same side
        with _target(kind):
            return side(*args)

    own = {} if known else {"cpu": partial(within, "cpu", cpu)}
    own |= {} if tpu is None else {"tpu": partial(within, "tpu", tpu)}
    rest = partial(within, "accelerator" if tpu is None else "gpu", accelerator)
    return lax.platform_dependent(*args, **own, default=rest)
