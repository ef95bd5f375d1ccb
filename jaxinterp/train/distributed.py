"""Training on many hosts: the same command on each of them."""

import jax

from jaxinterp.checks import require
from jaxinterp.errors import ConfigError


def initialize(coordinator: str | None = None, processes: int | None = None, process_id: int | None = None) -> None:
    """Join the processes of a run, before JAX is used; afterwards `jax.devices()` are those of all of them.

    Each process runs the same command in the same run folder (a shared file system); `fit` splits every batch over all
    devices, and process 0 alone writes logs. Processes on CPU talk through gloo.

    Args:
        coordinator: "host:port" of process 0; on clusters that JAX knows (SLURM, TPU pods ...) all three may be None.
        processes: Number of processes.
        process_id: Number of this process, from 0.

    Raises:
        ConfigError: The process cannot join.
    """
    given = (coordinator, processes, process_id)
    together = None not in given or given == (None, None, None)
    require(together, "coordinator, processes, process_id", given, "all three or none")
    if processes is not None and process_id is not None:
        require(0 <= process_id < processes, "process_id", process_id, f"a number in [0, {processes})")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(coordinator, processes, process_id)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"cannot join the run at {coordinator}: {str(error).splitlines()[0]}") from error
