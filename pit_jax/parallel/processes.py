"""Starting JAX on one process or on many.

Many processes find each other by three variables, JAX_COORDINATOR_ADDRESS,
JAX_NUM_PROCESSES and JAX_PROCESS_ID, or by themselves on Cloud TPU, Slurm and Open MPI.
"""

import glob
import logging
import os

from pit_jax.errors import ConfigError

_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def has_tpu() -> bool:
    """Whether this machine has a TPU; asks the file system, not JAX."""
    return bool(glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*"))


def has_gpu() -> bool:
    """Whether this machine has an NVIDIA device."""
    return bool(glob.glob("/dev/nvidia[0-9]*"))


def choose_platform() -> None:
    """Without an accelerator sets JAX to the CPU, before jax is imported.

    Otherwise an installed libtpu prints half a dozen error lines on every command.
    """
    if not has_tpu() and not has_gpu():
        os.environ.setdefault("JAX_PLATFORMS", "cpu")


def start(heartbeat_s: int, deterministic: bool = False) -> None:
    """Sets JAX up for this run and joins the other processes, if there are any.

    Args:
      heartbeat_s: after so long without a sign of life a process counts as dead.
      deterministic: asks GPUs for the same bits every time.

    Raises:
      ConfigError: if the three variables are incomplete.
    """
    choose_platform()
    if deterministic and has_gpu():
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_deterministic_ops=true"

    _silence_orbax()

    import jax

    cache = os.path.join(os.path.expanduser("~"), ".cache", "pit_jax", "compiled")
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", cache)
    given = [name for name in _VARIABLES if os.environ.get(name)]
    if given and len(given) < len(_VARIABLES) and given != ["JAX_COORDINATOR_ADDRESS"]:
        missing = ", ".join(name for name in _VARIABLES if name not in given)
        raise ConfigError(f"{given[0]} is set, but not {missing}")
    several = len(given) == len(_VARIABLES)
    options = {}
    if several:
        try:
            options = {
                "coordinator_address": os.environ["JAX_COORDINATOR_ADDRESS"],
                "num_processes": int(os.environ["JAX_NUM_PROCESSES"]),
                "process_id": int(os.environ["JAX_PROCESS_ID"]),
            }
        except ValueError:
            raise ConfigError("JAX_NUM_PROCESSES and JAX_PROCESS_ID must be numbers") from None
    managed = (
        has_tpu()
        or int(os.environ.get("SLURM_NTASKS", "1")) > 1
        or "OMPI_COMM_WORLD_SIZE" in os.environ
    )
    if several or managed:
        # The loop agrees on stopping by itself and wants SIGTERM for it.
        jax.config.update("jax_enable_preemption_service", False)
        if os.environ.get("JAX_PLATFORMS") == "cpu":
            jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(heartbeat_timeout_seconds=heartbeat_s, **options)


def _silence_orbax() -> None:
    """Every error of a save is raised to us: what is logged beside it is left out."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
