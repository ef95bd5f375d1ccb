"""Training on many hosts: the same command on each of them."""

import jax

from jaxinterp.errors import ConfigError


def initialize(coordinator: str | None = None, processes: int | None = None, process_id: int | None = None) -> None:
    """Join the processes of a run, before JAX is used; afterwards `jax.devices()` are those of all of them.

    Each process runs the same command; `fit` then splits every batch over all devices, and process 0 alone writes
    logs. All of them need the same run folder (a shared file system). Processes on CPU talk through gloo.

    Args:
        coordinator: "host:port" of process 0; on clusters that JAX knows (SLURM, TPU pods ...) all three may be None.
        processes: Number of processes.
        process_id: Number of this process, from 0.

    Raises:
        ConfigError: Some of the three are missing, or the process cannot join.
    """
    given = (coordinator, processes, process_id)
    if None in given and given != (None, None, None):
        raise ConfigError(f"coordinator, processes and process_id go together, got {given}")
    if processes is not None and process_id is not None and not 0 <= process_id < processes:
        raise ConfigError(f"process_id must be in [0, {processes}), got {process_id}")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(coordinator, processes, process_id)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"cannot join the run at {coordinator}: {str(error).splitlines()[0]}") from error
