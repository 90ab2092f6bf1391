"""Starting JAX on one process or on many.

Many processes find each other by three variables, JAX_COORDINATOR_ADDRESS,
JAX_NUM_PROCESSES and JAX_PROCESS_ID, or by themselves on Cloud TPU, Slurm and Open MPI;
peers.py has the rule.
"""

import glob
import importlib.util
import itertools
import logging
import math
import os
import re
import sys
from collections.abc import Mapping, Sequence

from pit_jax import installation
from pit_jax.errors import ConfigError
from pit_jax.parallel import peers

# Every device holds its own copy of the parameters, so a large machine does not get more.
_MOST_CPU_DEVICES = 8
_UNSET = "leave it unset, and what is here is used"
_CPU_COUNT = "--xla_force_host_platform_device_count"


def has_tpu() -> bool:
    """Whether this machine has a TPU; asks the file system, not JAX.

    The devices' names alone do not tell: an Intel laptop's own accelerator is /dev/accel, and
    a graphics card that is lent to a virtual machine /dev/vfio/14. Google makes TPUs.
    """
    vendors = glob.glob("/sys/bus/pci/devices/*/vendor") if _tpu_nodes() else []
    return any(_read(path).strip() == "0x1ae0" for path in vendors)


def cards() -> list[str]:
    """The NVIDIA GPUs that this process may see, as CUDA_VISIBLE_DEVICES names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:  # empty, -1 and Slurm's NoDevFiles hide all, as CUDA reads it
        names = (name.strip() for name in visible.split(","))
        return list(itertools.takewhile(re.compile(r"\d+|(GPU|MIG)-.+").fullmatch, names))
    return [str(i) for i in range(len(_nodes()))]


def has_gpu() -> bool:
    """Whether this machine has an NVIDIA GPU that JAX can use: one that is not hidden, and
    with JAX's CUDA wheels installed."""
    return bool(_nodes() and cards() and _has_cuda_wheels())


def choose_platform() -> None:
    """Without an accelerator sets JAX to the CPU, before jax is imported.

    Otherwise an installed libtpu prints half a dozen error lines on every command.

    Raises:
      ConfigError: if JAX_PLATFORMS asks for a TPU or GPU, and none can be here.
    """
    if asked := os.environ.get("JAX_PLATFORMS"):
        # JAX would say so in a traceback, and libtpu in ten lines before that.
        missing = "JAX's CUDA wheels are not installed" if _nodes() else "there is no NVIDIA GPU"
        gone = {"tpu": "" if _tpu_nodes() else "there is no TPU"}
        gone |= dict.fromkeys(("cuda", "gpu"), "" if _nodes() and _has_cuda_wheels() else missing)
        if why := gone.get(asked.strip()):
            raise ConfigError(f"JAX_PLATFORMS={asked}, but {why} here: {_UNSET}")
        return
    if has_tpu() or has_gpu():
        return
    os.environ["JAX_PLATFORMS"] = "cpu"
    if _nodes() and cards():
        print(
            "pit-jax: the NVIDIA GPU is not used, since JAX's CUDA wheels are not installed:"
            f" {installation.extra('cuda')}",
            file=sys.stderr,
        )


def _tpu_nodes() -> list[str]:
    """Device files that may be those of TPUs."""
    return glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")


def _nodes() -> list[str]:
    """The device files of NVIDIA GPUs; WSL2 has one for all of them."""
    found = glob.glob("/dev/nvidia[0-9]*")
    return found or (glob.glob("/dev/dxg") if glob.glob("/usr/lib/wsl/lib/libcuda.so*") else [])


def _has_cuda_wheels() -> bool:
    return any(importlib.util.find_spec(f"jax_cuda{n}_plugin") for n in (13, 12))


def _allows(*platforms: str) -> bool:
    """Whether JAX_PLATFORMS, which may name several, leaves one of these in."""
    asked = os.environ.get("JAX_PLATFORMS", "")
    return not asked or bool({*platforms} & {*asked.split(",")})


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""


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
      ConfigError: if the variables that name the other processes are incomplete or make no
        sense, or JAX_PLATFORMS names a platform that is not here.
    """
    choose_platform()
    on_gpu = has_gpu() and _allows("cuda", "gpu")
    found = peers.find(os.environ, len(cards()) if on_gpu else 0)
    on_tpu = has_tpu() and _allows("tpu")
    if found is None and not on_tpu and os.environ.get("JAX_COORDINATOR_ADDRESS"):
        missing = ", ".join(name for name in peers.VARIABLES[1:])
        raise ConfigError(f"JAX_COORDINATOR_ADDRESS is set, but not {missing}")
    on_cpu = os.environ.get("JAX_PLATFORMS") == "cpu"

    # Read when JAX first starts a device, not when it is imported.
    if deterministic and on_gpu:
        _flag("--xla_gpu_deterministic_ops=true")
    flags = os.environ.get("XLA_FLAGS", "")
    if on_cpu and found is None and cpu_devices > 1 and _CPU_COUNT not in flags:
        _flag(f"{_CPU_COUNT}={cpu_devices} --xla_cpu_multi_thread_eigen=false")

    _silence_orbax()
    import jax

    cache = os.path.join(os.path.expanduser("~"), ".cache", "pit_jax", "compiled")
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", cache)
    if found is not None or on_tpu:
        # The loop agrees on stopping by itself and wants SIGTERM for it.
        jax.config.update("jax_enable_preemption_service", False)
        if on_cpu:
            jax.config.update("jax_cpu_collectives_implementation", "gloo")
        options = {} if found is None else found.options()
        if patience_s:
            options["initialization_timeout"] = patience_s
        jax.distributed.initialize(heartbeat_timeout_seconds=heartbeat_s, **options)
    open_devices()


def open_devices() -> None:
    """Lets JAX find its devices.

    Raises:
      ConfigError: if there are none of the platform that JAX_PLATFORMS asks for.
    """
    import jax

    asked = os.environ.get("JAX_PLATFORMS")
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter where JAX knows it by no name
        if not asked:
            raise
        why = re.sub(r"\s+", " ", str(error)).partition(" (set JAX_PLATFORMS")[0].strip()
        line = f"JAX_PLATFORMS={asked[:40]}, but JAX finds no such device here"
        raise ConfigError(": ".join(filter(None, (line, why[:300].rstrip("."), _UNSET)))) from None


def _flag(text: str) -> None:
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {text}".strip()


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


def _silence_orbax() -> None:
    """Every error of a save is raised to us: what is logged beside it is left out."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
