"""`pit-jax launch --target local`: real processes on this machine, under the supervisor.

The same way as on a TPU worker: the resolved config lies in the work directory, every process
trains from it, and they find each other through jax.distributed, here over loopback.
"""

import os
import re
import secrets
import socket
import sys
from collections.abc import Sequence
from typing import Any

from pit_jax import configfile
from pit_jax.errors import EXIT_DONE, ConfigError, Stopped
from pit_jax.launch import request as requests
from pit_jax.launch.group import Process
from pit_jax.launch.limits import Limits
from pit_jax.launch.supervisor import supervise
from pit_jax.parallel import processes
from pit_jax.rundir import RunDir
from pit_jax.study import child

CONFIG = "launch/config.json"
_COUNT = re.compile(r"--xla_force_host_platform_device_count=\S+")


def launch(args: Any, overrides: Sequence[str]) -> None:
    """Starts and supervises the processes, or prints them with --dry-run.

    Raises:
      ConfigError: for what cannot be.
      Stopped: with the run's exit code, if that is not 0.
    """
    config = configfile.load(args.config, overrides)
    devices = args.devices_per_process
    shares = shares_of(args.processes or 1, devices)
    if args.dry_run and args.workdir.startswith("gs://"):  # no network is asked
        place = requests.check("workdir", args.workdir)
    else:
        run = RunDir(args.workdir)
        if run.exists():
            run.check_same(config)
        place = str(run.path)
    if args.dry_run:
        words = _words(place, args.config, overrides)
        for process in attempt(words, shares, devices, "PORT"):
            print(process.shown())
        return
    if not run.exists():
        run.create()

    def plan(number: int) -> list[Process]:
        if number == 1:  # not before the directory is ours
            run.write(CONFIG, configfile.to_json(config))
        return attempt(_words(place, run.path / CONFIG), shares, devices, str(free_port()))

    limits = Limits.of(config, run)
    code = supervise(plan, run, limits, "process-0", secrets.token_hex(6), leads=True)
    if code != EXIT_DONE:
        raise Stopped(code, f"{run.path}: {run.status().get('reason') or f'exit code {code}'}")


def shares_of(count: int, devices: int | None) -> list[child.Share]:
    """This machine in as many parts as there are processes.

    Raises:
      ConfigError: if an accelerator cannot be shared so.
    """
    if devices and (processes.has_tpu() or processes.has_gpu()):
        raise ConfigError("--devices-per-process is for CPUs: those of an accelerator are detected")
    return child.shares(count, "--processes")


def attempt(
    words: Sequence[str], shares: Sequence[child.Share], devices: int | None, port: str
) -> list[Process]:
    """The processes of one attempt, which all run `words`."""
    made = []
    for number, share in enumerate(shares):
        environment = {}
        if len(shares) > 1:
            environment["JAX_COORDINATOR_ADDRESS"] = f"127.0.0.1:{port}"
            environment["JAX_NUM_PROCESSES"] = str(len(shares))
            environment["JAX_PROCESS_ID"] = str(number)
        if devices:
            flags = _COUNT.sub("", os.environ.get("XLA_FLAGS", "")).split()
            flags.append(f"--xla_force_host_platform_device_count={devices}")
            if devices > 1:  # as `pit-jax train` has it
                flags.append("--xla_cpu_multi_thread_eigen=false")
            environment["XLA_FLAGS"] = " ".join(flags)
        made.append(Process(words, environment, share))
    return made


def _words(place: str, config: str | os.PathLike, overrides: Sequence[str] = ()) -> list[str]:
    words = [sys.executable, "-m", "pit_jax.cli", "train", "--config", str(config)]
    return [*words, "--workdir", place, *overrides]


def free_port() -> int:
    """On loopback; free at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
