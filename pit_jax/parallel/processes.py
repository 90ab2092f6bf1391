"""Starting JAX on one process or on many.

Many processes find each other by three variables, JAX_COORDINATOR_ADDRESS,
JAX_NUM_PROCESSES and JAX_PROCESS_ID, or by themselves on Cloud TPU, Slurm and Open MPI.
"""

import glob
import logging
import math
import os
import sys
from collections.abc import Mapping, Sequence

from pit_jax.errors import ConfigError

_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")

# Every device holds its own copy of the parameters, so a large machine does not get more.
_MOST_CPU_DEVICES = 8


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


def huge_pages() -> dict[str, str]:
    """Environment that makes glibc ask for huge pages, {} where that is of no use.

    A step allocates its temporaries anew each time, and on a CPU the kernel's work on
    small pages was 30 % of a training step of a small model. glibc reads the variable when
    a process starts; accelerators have allocators of their own.
    """
    try:
        with open("/sys/kernel/mm/transparent_hugepage/enabled") as setting:
            on_request = "[madvise]" in setting.read()
    except OSError:  # not Linux
        on_request = False
    if not on_request or has_tpu() or has_gpu():
        return {}
    return {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


def restart_with_huge_pages() -> None:
    """Starts this very command once more with `huge_pages()`, unless its variable is set.

    The process keeps its number, and nothing is lost as long as nothing was done.
    """
    environment = huge_pages()
    if environment and not any(os.environ.get(name) for name in environment):
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | environment)


def cpu_devices(mesh: Mapping[str, int], batches: Sequence[int]) -> int:
    """The most devices, up to one a core and `_MOST_CPU_DEVICES`, that a mesh can use.

    Args:
      mesh: the four axes' sizes, -1 for what is left.
      batches: sizes that must divide over data × fsdp.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    given = math.prod(n for n in mesh.values() if n != -1)
    if -1 not in mesh.values():
        return given if given <= cores else 1  # too many: left to be refused
    for count in range(min(cores, _MOST_CPU_DEVICES), 1, -1):
        left = count // given
        ways = math.prod(left if mesh[axis] == -1 else mesh[axis] for axis in ("data", "fsdp"))
        if count % given == 0 and not any(batch % ways for batch in batches):
            return count
    return 1


def start(
    heartbeat_s: int, deterministic: bool = False, cpu_devices: int = 1, patience_s: int = 0
) -> None:
    """Sets JAX up for this run and joins the other processes, if there are any.

    Args:
      heartbeat_s: after so long without a sign of life a process counts as dead.
      deterministic: asks GPUs for the same bits every time.
      cpu_devices: devices that the cores serve as where there is no accelerator and
        XLA_FLAGS does not say; each runs its products on one thread.
      patience_s: how long the others may need to come, such as for data that is copied to
        their disks; 0 for the 300 of JAX.

    Raises:
      ConfigError: if the three variables are incomplete.
    """
    choose_platform()
    if deterministic and has_gpu():
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_deterministic_ops=true"

    _silence_orbax()
    flags = os.environ.get("XLA_FLAGS", "")
    alone = os.environ.get("JAX_PLATFORMS") == "cpu" and not _given()
    if alone and cpu_devices > 1 and "xla_force_host_platform_device_count" not in flags:
        # Read when JAX first starts a device, not when it is imported.
        count = f"--xla_force_host_platform_device_count={cpu_devices}"
        os.environ["XLA_FLAGS"] = f"{flags} {count} --xla_cpu_multi_thread_eigen=false"

    import jax

    cache = os.path.join(os.path.expanduser("~"), ".cache", "pit_jax", "compiled")
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", cache)
    given = _given()
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
        if patience_s:
            options["initialization_timeout"] = patience_s
        jax.distributed.initialize(heartbeat_timeout_seconds=heartbeat_s, **options)


def leave_alone(code: int, last_words: str = "") -> None:
    """Ends this process at once if it is one of several; returns if it is the only one.

    Otherwise jax.distributed waits minutes for the others, which wait for this one in a step.
    """
    jax = sys.modules.get("jax")
    if jax is None or not jax.distributed.is_initialized():
        return
    print(last_words, end="", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def lost_another(error: Exception) -> str:
    """In one line, if an error of JAX means that another process of this run is gone.

    On CPUs it is the one that Gloo raises; accelerators leave the matter to jax.distributed.
    """
    jax = sys.modules.get("jax")
    if jax is None or not isinstance(error, jax.errors.JaxRuntimeError):
        return ""
    line = str(error).partition("\n")[0]
    gone = f"another process of this run is gone: {line.rpartition(': ')[2]}"
    return gone if "Gloo" in line else ""


def _given() -> list[str]:
    return [name for name in _VARIABLES if os.environ.get(name)]


def _silence_orbax() -> None:
    """Every error of a save is raised to us: what is logged beside it is left out."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
