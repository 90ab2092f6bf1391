"""Standard output and error that never end a run: what cannot be written there is left out.

A terminal may not know a character or may be gone, the reader of a pipe may have seen enough, a
disk behind `> log` may be full, and a stream may never have been open.
"""

import contextlib
import errno
import io
import os
import select
import sys
from typing import Any, TextIO

from pit_jax.errors import StorageError

_NOBODY_READS = (errno.EPIPE, errno.EIO)  # a pipe and a terminal that were closed


def prepare() -> None:
    """Puts such streams in the place of this process's. Call before files are opened."""
    _open_all()
    sys.stdout = _stream(1, sys.stdout)
    sys.stderr = _stream(2, sys.stderr)


def check() -> None:
    """Raises if something that was printed is lost though somebody would have read it.

    Raises:
      StorageError: with the reason.
    """
    with contextlib.suppress(AttributeError):  # streams of somebody else
        sys.stdout.flush()
        error = sys.stdout.buffer.raw.lost
        if error is not None and error.errno not in _NOBODY_READS:
            raise StorageError(f"what was printed is not complete: {error.strerror}")


def line(text: str, stream: TextIO | None) -> None:
    """Prints a line at once and as one, as lines come from several threads.

    Nothing is raised to those either that call from Python, with streams of their own.
    """
    if stream is None:
        return
    with contextlib.suppress(OSError, ValueError):  # closed
        try:
            stream.write(f"{text}\n")
        except UnicodeEncodeError as error:
            known = text.encode(error.encoding, "replace").decode(error.encoding)
            stream.write(f"{known}\n")
        stream.flush()


def _open_all() -> None:
    """Where a stream is closed, the next file that is opened would get its number, and the text."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free: this one
            os.set_inheritable(number, True)


def _stream(number: int, before: Any) -> io.TextIOWrapper:
    return io.TextIOWrapper(
        io.BufferedWriter(_Raw(number)),
        encoding=getattr(before, "encoding", None) or "utf-8",
        errors="backslashreplace" if number == 2 else "replace",
        line_buffering=number == 2 or getattr(before, "line_buffering", False),
        write_through=getattr(before, "write_through", False),
    )


class _Raw(io.RawIOBase):
    """Takes every byte, and keeps the first error."""

    def __init__(self, number: int):
        self._number = number
        self.lost: OSError | None = None

    def write(self, data: Any) -> int:
        while True:
            try:
                return os.write(self._number, data)
            except BlockingIOError:  # a terminal that others set so
                select.select([], [self._number], [])
            except OSError as error:
                self.lost = self.lost or error
                return len(memoryview(data).cast("B"))

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._number

    def isatty(self) -> bool:
        return os.isatty(self._number)
