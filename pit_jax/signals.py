"""SIGTERM and Ctrl-C: finish the step, save, leave. All processes stop at the same step."""

import ctypes
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pit_jax.errors import EXIT_INTERRUPTED, EXIT_PREEMPTED, Stopped

_PR_SET_PDEATHSIG = 1
_TOGETHER_S, _CTRL_C_TOGETHER_S = 1.0, 0.2
_EXIT_CODES = {signal.SIGTERM: EXIT_PREEMPTED, signal.SIGINT: EXIT_INTERRUPTED}


class StopRequest:
    """A context in which the first signal is noted and the second one ends the process.

    Signals within a second are one: where all processes of a job are told to stop, a sweep's
    runs are told by the sweep again, and by the system once more if the sweep then dies. A
    second Ctrl-C is meant so at any pace at which people press it.
    """

    def __init__(self, mesh: Mesh):
        self._received, self._when = 0, 0.0
        self._before: dict[int, Any] = {}
        self._agree = _agreement(mesh) if jax.process_count() > 1 else None

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in _EXIT_CODES:
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
        together_s = _CTRL_C_TOGETHER_S if number == signal.SIGINT else _TOGETHER_S
        if time.monotonic() - self._when > together_s:  # asked twice: do not insist on saving
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    def asked(self) -> int:
        """The signal to stop for, 0 for none; the same answer on all processes.

        Call once a step on every process. With several processes the answer is what was
        known one call ago, so that nobody waits for the others' devices.
        """
        return self._agree(self._received) if self._agree else self._received


def stopped(number: int, step: int) -> Stopped:
    """The exception that ends a run which saved at `step` because of a signal."""
    name = signal.Signals(number).name
    return Stopped(_EXIT_CODES[number], f"{name}: saved at step {step}; start again to go on")


def _agreement(mesh: Mesh) -> Callable[[int], int]:
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
