"""A sign of life: at which step a trainer is, for the supervisor that watches it.

The supervisor names a local file in $PIT_JAX_BEAT. The trainer writes its step there after each
step and each batch of an evaluation, and prints the stacks of all its threads when it is sent
SIGUSR1.
"""

import contextlib
import faulthandler
import os
import signal
from pathlib import Path

VARIABLE = "PIT_JAX_BEAT"
STACKS = getattr(signal, "SIGUSR1", None)  # None on Windows


def is_watched() -> bool:
    """Whether a supervisor may ask this process where it is."""
    return bool(STACKS and os.environ.get(VARIABLE))


def print_stacks_when_asked() -> None:
    """From now on SIGUSR1 prints where every thread is, if there is a supervisor to send it.

    Called before anything can hang: without a handler the signal ends the process.
    """
    if is_watched():
        faulthandler.register(STACKS, all_threads=True)


class Beat:
    """Writes beats where $PIT_JAX_BEAT says; does nothing where it is not set."""

    def __init__(self) -> None:
        path, self._file = os.environ.get(VARIABLE), None
        if path:
            with contextlib.suppress(OSError):  # then it looks hung, and is restarted
                self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)

    def __call__(self, step: int) -> None:
        if self._file is not None:
            try:
                os.pwrite(self._file, b"%-15d\n" % step, 0)
            except OSError:  # a full disk: alive all the same
                with contextlib.suppress(OSError):
                    os.utime(self._file)

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def read(path: Path) -> tuple[int | None, int] | None:
    """The step that was reported last, and when that was written; None before there is a file.

    The step is None as long as none could be written. The time is good for being compared with
    the one before: it has changed if there was a beat.
    """
    try:
        step = path.read_bytes().strip()
        return int(step) if step else None, path.stat().st_mtime_ns
    except (OSError, ValueError):
        return None
