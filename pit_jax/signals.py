"""Signals that ask for an end: finish the step, save, leave. All processes stop at the same step.

SIGTERM and Ctrl-C; SIGHUP, when the terminal or the SSH session is gone, unless it is ignored as
nohup asks; what batch systems send before they kill: SIGXCPU when the time is used up, SIGUSR1 and
SIGUSR2 as `sbatch --signal` asks. SIGQUIT (Ctrl-\\) stays what ends a process at once.
"""

import ctypes
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from pit_jax import beat
from pit_jax.errors import EXIT_INTERRUPTED, EXIT_PREEMPTED, Stopped

_PR_SET_PDEATHSIG = 1
_LAST_WORDS_S = 2.0
_NAMES = ("SIGTERM", "SIGINT", "SIGHUP", "SIGXCPU", "SIGUSR1", "SIGUSR2")


def that_stop() -> list[int]:
    """The signals that ask for an end: those not ignored, and not taken for something else.

    Whoever runs others and passes a stop on listens to the same ones.
    """
    known = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
    if beat.is_watched():  # the supervisor asks for stacks by it
        known.remove(beat.STACKS)
    free = (signal.SIG_DFL, signal.default_int_handler)
    # Ctrl-C and SIGTERM are for us even where a shell script ignores them for its background.
    always = (signal.SIGTERM, signal.SIGINT)
    return [n for n in known if n in always or signal.getsignal(n) in free]


def together_s(number: int) -> float:
    """Seconds in which signals are one, see `StopRequest`."""
    return 0.2 if number == signal.SIGINT else 1.0


def exit_code(number: int) -> int:
    """What a process ends with that has saved because of a signal."""
    return EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_PREEMPTED


class StopRequest:
    """A context in which the first signal is noted and the second one ends the process.

    Signals within a second are one: where all processes of a job are told to stop, a sweep's
    runs are told by the sweep again, and by the system once more if the sweep then dies. A
    second Ctrl-C is meant so at any pace at which people press it.

    Attributes:
      last_words: called with the signal before the second one ends the process.
    """

    def __init__(self, mesh: Any):
        import jax  # what runs no steps uses the rest of this file without it

        self._received, self._when = 0, 0.0
        self._before: dict[int, Any] = {}
        self.last_words: Callable[[int], None] = lambda number: None
        self._agree = _agreement(mesh) if jax.process_count() > 1 else None

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in that_stop():
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: Any) -> None:
        if not self._received:
            self._received, self._when = number, time.monotonic()
            if sys.platform == "linux":  # whoever inherits an orphan may end, too
                ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, 0)
            return
        if time.monotonic() - self._when > together_s(number):  # asked twice: do not insist
            words = threading.Thread(target=self.last_words, args=(number,), daemon=True)
            words.start()
            words.join(_LAST_WORDS_S)  # a disk may hang, and the end must not
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    def asked(self) -> int:
        """The signal to stop for, 0 for none; the same answer on all processes.

        Call once a step on every process. With several processes the answer is what was
        known one call ago, so that nobody waits for the others' devices.
        """
        return self._agree(self._received) if self._agree else self._received


def stopped(number: int, what: str) -> Stopped:
    """The exception that ends a run because of a signal, with what it left."""
    name = signal.Signals(number).name
    return Stopped(exit_code(number), f"{name}: {what}; start again to go on")


def _agreement(mesh: Any) -> Callable[[int], int]:
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import NamedSharding, PartitionSpec

    split = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    largest = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))
    previous = None

    def agree(mine: int) -> int:
        nonlocal previous
        flags = jax.make_array_from_callback(
            (mesh.size,), split, lambda index: np.full(1, mine, np.int32)
        )
        before, previous = previous, largest(flags)
        return 0 if before is None else int(before)

    return agree
