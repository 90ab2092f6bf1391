"""metrics.jsonl: rows that are added one by one, and survive a kill at any moment."""

import json
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from etils import epath

from pit_jax import files, runvalues

FLUSH_S = 60.0  # between two rewritings of the object in a bucket


class Rows:
    """The file at `path`, which one process writes.

    In a bucket nothing can be added to an object. There the rows are kept, and the whole is
    written anew by `flush`, which `append` calls when a minute has passed since.

    Args:
      path: of the file; it need not be there.
      write: replaces it as a whole: (content) → None.
      guard: called before anything else is written; raises if it may not be.

    Raises:
      StorageError: from every method, if the file cannot be read or written.
    """

    def __init__(self, path: epath.Path, write: Callable[[bytes], None], guard: Callable[[], None]):
        self._path, self._write, self._guard = path, write, guard
        self._kept: list[bytes] | None = None  # in a bucket: all lines, once one was added
        self._flushed, self._when = 0, time.monotonic()
        self._flushing = threading.Lock()

    def append(self, row: dict[str, Any]) -> bool:
        """Adds a row; whether a flush is due."""
        line = _line(row)
        if files.in_bucket(self._path):
            if self._kept is None:
                self._keep(self.read()[0])
            self._kept.append(line)
            return time.monotonic() - self._when >= FLUSH_S
        self._guard()
        with files.told(self._path), self._path.open("ab") as file:
            file.write(line)
        return False

    def flush(self) -> None:
        """Writes what is not in the object yet; from any thread. What fails is kept."""
        with self._flushing:  # or an older state could be written over a newer one
            self._when = time.monotonic()
            lines = list(self._kept or ())
            if len(lines) > self._flushed:
                self._write(b"".join(lines))
                self._flushed = len(lines)

    def read(self) -> tuple[list[dict[str, Any]], int | None]:
        """The rows as they are; and the number of the first line that is none."""
        if self._kept is not None:
            content = b"".join(self._kept)
        else:
            with files.told(self._path, "read"):
                content = self._path.read_bytes() if self._path.exists() else b""
        rows = []
        for number, line in enumerate(content.splitlines(), 1):
            try:
                row = files.parse_json(line)
            except ValueError:  # UnicodeDecodeError too
                return rows, number
            if not runvalues.is_row(row):
                return rows, number
            rows.append(row)
        return rows, None

    def replace(self, rows: Sequence[dict[str, Any]]) -> None:
        """Writes these rows and no others."""
        self._write(b"".join(map(_line, rows)))
        if files.in_bucket(self._path):
            self._keep(rows)

    def _keep(self, rows: Sequence[dict[str, Any]]) -> None:
        with self._flushing:
            self._kept = list(map(_line, rows))
            self._flushed, self._when = len(self._kept), time.monotonic()


def _line(row: dict[str, Any]) -> bytes:
    return json.dumps(row).encode() + b"\n"
