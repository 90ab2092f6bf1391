"""The processes of one attempt at a run, on this machine: they start and end together."""

import collections
import contextlib
import dataclasses
import fcntl
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from pit_jax import beat
from pit_jax.errors import (
    ASKED,
    EXIT_DONE,
    EXIT_INTERRUPTED,
    FINAL,
    NonFiniteLoss,
    PeerLost,
    StorageError,
)
from pit_jax.launch.log import Log, Output
from pit_jax.study import child

# Exit codes that say what was wrong; a process that only noticed that another is gone aborts.
_TELLING = (*FINAL, StorageError.exit_code, *ASKED)
_ABORTED = PeerLost.exit_code
# Of these process 0 has to end by itself: it writes what the run leaves behind.
_OF_THE_FIRST = (EXIT_DONE, *ASKED)
# After one of these the others are about to end alike, and may still be saving.
_TOGETHER = (EXIT_DONE, NonFiniteLoss.exit_code, *ASKED)
_PIPE = 1 << 20  # bytes


@dataclasses.dataclass(frozen=True)
class Process:
    """One process to be: its command, what is added to its environment, and its cores."""

    words: Sequence[str]
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    share: child.Share = dataclasses.field(default_factory=child.Share)

    def shown(self) -> str:
        """As one would type it."""
        pairs = self.environment | dict(self.share.environment)
        words = [f"{name}={shlex.quote(value)}" for name, value in pairs.items()]
        return " ".join([*words, shlex.join(self.words)])


# The processes of an attempt, by its number from 1 on: a new one may need a new port.
Plan = Callable[[int], Sequence[Process]]


class Group:
    """Running processes. They end together: whoever watches kills those that one has left.

    Args:
      processes: to start.
      log: takes what they print.
      folder: a local one, where each leaves its beats.
      environment: for all of them.
    """

    def __init__(
        self,
        processes: Sequence[Process],
        log: Log,
        folder: Path,
        environment: Mapping[str, str],
    ):
        self._running: list[subprocess.Popen] = []
        self._outputs: list[Output] = []
        self._told: set[str] = set()  # errors, of which several processes may have the same
        self._beats = [folder / f"beat-{number}" for number in range(len(processes))]
        self._seen: list[tuple[int, int] | None] = [None] * len(processes)
        self._killed: set[int] = set()
        self._first_end: float | None = None
        self.last_beat = time.monotonic()
        try:
            for number, process in enumerate(processes):
                self._beats[number].unlink(missing_ok=True)
                added = {beat.VARIABLE: str(self._beats[number]), "PYTHONUNBUFFERED": "1"}
                self._start(process, added | dict(environment), log)
        except BaseException:
            self.kill()
            raise

    def _start(self, process: Process, environment: Mapping[str, str], log: Log) -> None:
        reads, writes = os.pipe()
        with contextlib.suppress(AttributeError, OSError):  # not Linux, or not allowed
            fcntl.fcntl(writes, fcntl.F_SETPIPE_SZ, _PIPE)
        try:
            started = subprocess.Popen(
                # Saves and ends if this process is killed, see child.py.
                child.command(process.share, process.words),
                env=os.environ
                | environment
                | process.environment
                | dict(process.share.environment),
                stdin=subprocess.DEVNULL,
                stdout=writes,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for us, who pass it on
                # It holds the reading end as well, so that printing still works, for as long
                # as it takes to save, when we are gone.
                pass_fds=(reads,),
            )
        except BaseException:
            os.close(reads)
            raise
        finally:
            os.close(writes)
        prefix = f"[{len(self._running)}] " if self._running else ""
        self._running.append(started)
        self._outputs.append(log.follow(os.fdopen(reads, "rb"), prefix, self._told))

    # Looking --------------------------------------------------------------------------

    @property
    def ended(self) -> bool:
        return all(process.poll() is not None for process in self._running)

    def step(self) -> int | None:
        """That the first process is at, None before its first beat."""
        found = beat.read(self._beats[0])
        return found[0] if found else None

    def look(self) -> None:
        """Takes note of beats, and of the first process that ends."""
        seen = [beat.read(path) for path in self._beats]
        if seen != self._seen:
            self._seen, self.last_beat = seen, time.monotonic()
        if self._first_end is None and any(p.poll() is not None for p in self._running):
            self._first_end = time.monotonic()

    def alone_s(self) -> float:
        """Seconds since the first of several processes ended; 0 before."""
        return 0.0 if self._first_end is None else time.monotonic() - self._first_end

    def ends_together(self, told: bool = False) -> bool:
        """Whether those that live can be expected to end as those did that have ended.

        Once `told` to stop one that has nothing to save ends with SIGTERM.
        """
        well = (None, *_TOGETHER, *([-signal.SIGTERM] if told else []))
        return all(process.poll() in well for process in self._running)

    # Ending ---------------------------------------------------------------------------

    def send(self, number: int) -> None:
        """A signal to every process that lives."""
        for process in self._running:
            process.send_signal(number)  # not to one that was reaped

    def kill(self) -> None:
        """Ends at once what lives, and what it has started."""
        living = {n: p.pid for n, p in enumerate(self._running) if p.poll() is None}
        self._killed |= set(living)
        started = _descendants(living.values())  # some in sessions of their own, as a sweep's runs
        self._sweep_up()
        for pid in started:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        for process in self._running:
            process.wait()

    def close(self) -> tuple[int, str]:
        """How the whole has ended, once all have: the exit code, and in one line why.

        What the processes left behind is killed.
        """
        codes = [shells(process.wait()) for process in self._running]
        self._sweep_up()
        for output in self._outputs:
            output.join(5)
        themselves = [n for n in range(len(codes)) if n not in self._killed]
        if 0 in self._killed:
            themselves = [n for n in themselves if codes[n] not in _OF_THE_FIRST]
        told = min(
            themselves or self._killed or range(len(codes)), key=lambda number: _rank(codes[number])
        )
        which = f"process {told}: " if len(codes) > 1 and not self._outputs[told].explained else ""
        # What is killed has said nothing of it.
        killed = codes[told] == 128 + signal.SIGKILL
        last = "" if killed else self._outputs[told].reason()
        return codes[told], which + named(codes[told]) + last

    def _sweep_up(self) -> None:
        for process in self._running:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)


def _descendants(parents: Iterable[int]) -> set[int]:
    """What these processes have started, and so on; on Linux only."""
    children = collections.defaultdict(list)
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            after_name = path.read_text(errors="replace").rpartition(")")[2].split()
            children[int(after_name[1])].append(int(path.parent.name))
    found: set[int] = set()
    left = list(parents)
    while left:
        more = [pid for pid in children[left.pop()] if pid not in found]
        found.update(more)
        left += more
    return found


def _rank(code: int) -> int:
    """Which of several exit codes is that of the whole: the lowest."""
    last = len(_TELLING)
    if code in _TELLING:
        return _TELLING.index(code)
    return {EXIT_DONE: last + 2, _ABORTED: last + 1}.get(code, last)


def shells(code: int) -> int:
    """An exit code as a shell has it: of a signal 128 and its number."""
    return 128 - code if code < 0 else code


def named(code: int) -> str:
    """ "exit code 5", "killed by SIGKILL"."""
    if code > 128 and code != EXIT_INTERRUPTED:
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(code - 128).name}"
    return f"exit code {code}"
