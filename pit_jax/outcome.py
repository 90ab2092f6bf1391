"""What status.json says of one start of a run, from its first write to its last."""

import contextlib
from typing import Any

from pit_jax.errors import EXIT_BUG, EXIT_DONE, EXIT_INTERRUPTED, PitError, Stopped
from pit_jax.rundir import RunDir


class Outcome:
    """A context that, whatever ends it, leaves in status.json how it ended.

    Everything that can fail and belongs to the run has to happen inside: what closes files is
    entered after it. Only processes that are killed at once leave "running" behind, and of those
    the lease says that they are gone.

    Args:
      run: its directory.
      step: the last that is done; to be set as they are.
      writes: whether this process is the one that writes there.
    """

    def __init__(self, run: RunDir, step: int, writes: bool):
        self.step = step
        self._run, self._writes = run, writes
        self._result: dict[str, float] | None = None

    def __enter__(self) -> "Outcome":
        return self

    def running(self, **fields: Any) -> None:
        """Says that the run goes on, at `step`; fields are added."""
        self._write(state="running", exit_code=None, **fields)

    def done(self, result: dict[str, float]) -> None:
        """What to say at the end, with the last evaluation, if nothing goes wrong by then."""
        self._result = result

    def killed(self, number: int) -> None:
        """Says that a signal ends the process before it could save."""
        self._write_failed(128 + number)

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Stopped):
            with contextlib.suppress(PitError):
                self._write(state="preempted", exit_code=error.exit_code)
        elif error is not None:
            own = EXIT_INTERRUPTED if isinstance(error, KeyboardInterrupt) else EXIT_BUG
            self._write_failed(getattr(error, "exit_code", own))
        elif self._result is not None:
            self._write(state="done", exit_code=EXIT_DONE, result=self._result)

    def _write_failed(self, code: int) -> None:
        with contextlib.suppress(PitError):  # the first error is the one to tell
            self._write(state="failed", exit_code=code)

    def _write(self, **fields: Any) -> None:
        if self._writes:
            self._run.write_status(step=self.step, **fields)
