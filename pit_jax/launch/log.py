"""What a worker's processes print: passed on, and its end kept in logs/<worker>.log."""

import collections
import contextlib
import threading
import time
from collections.abc import Callable
from typing import BinaryIO

from pit_jax import files
from pit_jax.errors import PitError
from pit_jax.rundir import RunDir

KEEP = 10_000  # lines
_ERROR = "pit-jax: "  # how the command begins its last line
_REASON, _LAST_LINE = 500, 120  # characters
_LONGEST = 1 << 16  # of a line, in bytes; a longer one is cut in pieces
EVERY_S, EVERY_S_IN_A_BUCKET = 2.0, 60.0


class Log:
    """The last lines of one worker; those of an earlier start are kept in front.

    Args:
      run: whose directory it is written to, at most once in a while and at the end.
      worker: "process-0", "slice-0-worker-3".
      out: takes every line, without its end.
    """

    def __init__(self, run: RunDir, worker: str, out: Callable[[str], None], keep: int = KEEP):
        self._run, self._name, self._out = run, f"logs/{worker}.log", out
        self._lines: collections.deque[str] = collections.deque(maxlen=keep)
        self._every_s = EVERY_S_IN_A_BUCKET if files.in_bucket(run.path) else EVERY_S
        self._busy = threading.Lock()
        self._changed, self._written = False, time.monotonic()
        path = run.path / self._name
        with contextlib.suppress(PitError), files.told(path, "read"):
            before = path.read_bytes().decode(errors="replace")
            self._lines.extend(files.printable(before).splitlines())

    def say(self, text: str) -> None:
        """A line of the supervisor's own."""
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        self.add(f"supervisor: {text}", f"{stamp} supervisor: {text}")

    def follow(self, stream: BinaryIO, prefix: str = "", told: set[str] | None = None) -> "Output":
        """Takes all that comes out of a pipe, in a thread that ends with it.

        An error in `told` was told by another process of the run, and is not told again.
        """
        return Output(self, stream, prefix, set() if told is None else told)

    def add(self, shown: str, kept: str | None = None) -> None:
        with self._busy:
            self._lines.append(shown if kept is None else kept)
            self._changed = True
        self._out(shown)

    def flush(self, now: bool = False) -> None:
        """Writes the file if it is time to; what cannot be written is tried again later."""
        if not self._changed or not (now or time.monotonic() - self._written >= self._every_s):
            return
        with self._busy:
            content, self._changed = "".join(f"{line}\n" for line in self._lines), False
            self._written = time.monotonic()
        try:
            self._run.write(self._name, content)
        except PitError:
            self._changed = True


class Output:
    """What one process prints, line by line into the log.

    Attributes:
      last: its last line that says something; the error that `pit-jax` ended with, if it did.
      explained: whether that is such an error.
    """

    def __init__(self, log: Log, stream: BinaryIO, prefix: str, told: set[str]):
        self._log, self._stream, self._prefix, self._told = log, stream, prefix, told
        self.last, self.explained = "", False
        self._thread = threading.Thread(target=self._read, name="log", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with self._stream:
            for raw in iter(lambda: self._stream.readline(_LONGEST), b""):
                line = files.printable(raw.decode(errors="replace").rstrip("\r\n"))
                if line.startswith("[Gloo] Rank"):  # a greeting that cannot be turned off
                    continue
                said = line.strip()
                if said.startswith(_ERROR):
                    self.last, self.explained = said.removeprefix(_ERROR), True
                    if said in self._told:
                        continue
                    self._told.add(said)
                elif said and not self.explained:
                    self.last = said
                self._log.add(self._prefix + line)

    def join(self, timeout: float) -> None:
        self._thread.join(timeout)

    def reason(self) -> str:
        """What to add to "it ended with exit code 5", as far as it fits on a line."""
        if not self.last:
            return ""
        most, start = (_REASON, ": ") if self.explained else (_LAST_LINE, "; its last line: ")
        return start + (self.last if len(self.last) <= most else self.last[: most - 3] + "...")
