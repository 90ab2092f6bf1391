"""The process of one point: its share of the machine, and its end if the sweep is killed.

A sweep starts `python -m pit_jax.study.child PARENT CORES COMMAND...`, which becomes the
command: it keeps its process number, and nothing of this stays in memory.
"""

import ctypes
import dataclasses
import itertools
import os
import signal
import sys
from collections.abc import Sequence

from pit_jax.errors import ConfigError
from pit_jax.parallel import processes

_PR_SET_PDEATHSIG = 1


@dataclasses.dataclass(frozen=True)
class Share:
    """What one of several runs on this machine may use; no cores: all of them."""

    cores: tuple[int, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()


def shares(jobs: int, flag: str = "--jobs") -> list[Share]:
    """This machine in `jobs` parts: cores without accelerators, else GPUs.

    Args:
      flag: what errors call the number.

    Raises:
      ConfigError: if a TPU, which one process owns, or too few GPUs are to be shared.
    """
    if jobs == 1:
        return [Share()]
    if processes.has_tpu():
        raise ConfigError(f"{flag} {jobs}: one process at a time can use a TPU; write {flag} 1")
    if processes.has_gpu():
        cards = processes.cards()
        if len(cards) < jobs:
            raise ConfigError(
                f"{flag} {jobs}: there are {len(cards)} GPUs here, one a job at least"
            )
        return [Share((), (("CUDA_VISIBLE_DEVICES", ",".join(p)),)) for p in _parts(cards, jobs)]
    if not hasattr(os, "sched_getaffinity"):  # macOS
        return [Share()] * jobs
    cores = sorted(os.sched_getaffinity(0))
    if jobs > len(cores):
        return [Share((cores[i % len(cores)],)) for i in range(jobs)]
    return [Share(tuple(part)) for part in _parts(cores, jobs)]


def command(share: Share, words: Sequence[str]) -> list[str]:
    """The command line that runs `words` on a share."""
    cores = ",".join(map(str, share.cores))
    return [sys.executable, "-m", "pit_jax.study.child", str(os.getpid()), cores, *words]


def main(parent: int, cores: str, words: Sequence[str]) -> None:
    """Becomes the command `words`."""
    if sys.platform == "linux":  # a run whose sweep was killed saves and ends
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # killed before that
        sys.exit(128 + signal.SIGTERM)
    if cores:
        os.sched_setaffinity(0, [int(core) for core in cores.split(",")])
    os.execv(words[0], words)


def _parts(items: Sequence, number: int) -> list[Sequence]:
    ends = [len(items) * i // number for i in range(number + 1)]
    return [items[begin:end] for begin, end in itertools.pairwise(ends)]


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
