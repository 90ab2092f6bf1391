"""A sweep's directory: the one writer and reader of what lies beside its runs.

<label>-<hash>/     a run directory, see rundir.py
sweep.json          file, argument, docstring, command, published numbers, and the points
configs/            the resolved config that each run was started with
logs/               what each run printed
locks/              held while a run is running

Locks and logs need a local disk: of a sweep on gs:// they lie in ~/.cache/pit_jax/sweeps.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shlex
import sys
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pit_jax import configfile, files, runvalues
from pit_jax.config import plain
from pit_jax.errors import ConfigError
from pit_jax.rundir import RunDir
from pit_jax.study import sweepfile
from pit_jax.study.points import Point

_TAKEN = (errno.EAGAIN, errno.EACCES)
_TAIL = 1 << 13  # bytes


class SweepDir:
    """The directory of one sweep, local or gs://. Reading never creates anything."""

    def __init__(self, path: str | os.PathLike):
        self.given, self.path = os.fspath(path), RunDir(path).path
        self._local = Path(self.path)
        if "://" in str(self.path):
            name = hashlib.sha256(str(self.path).encode()).hexdigest()[:16]
            self._local = Path.home() / ".cache" / "pit_jax" / "sweeps" / name

    def run(self, point: Point) -> RunDir:
        """The directory of the point's run."""
        return RunDir(self.path / point.directory)

    def config_path(self, point: Point) -> str:
        return str(self.path / "configs" / f"{point.directory}.json")

    def log_path(self, point: Point) -> Path:
        return self.logs / f"{point.directory}.log"

    def last_line(self, point: Point) -> str:
        """What its process printed last, empty if there is nothing."""
        with contextlib.suppress(OSError), open(self.log_path(point), "rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _TAIL))
            lines = log.read().decode(errors="replace").splitlines()
            said = [line.strip() for line in lines if line.strip() and not line.startswith("---")]
            return said[-1] if said else ""
        return ""

    @property
    def logs(self) -> Path:
        return self._local / "logs"

    def others(self, directories: Iterable[str]) -> list[str]:
        """Names of the run directories here that are none of these."""
        if not self.path.exists():
            return []
        known = {*directories, "configs", "logs", "locks"}
        return sorted(
            p.name for p in self.path.iterdir() if p.name not in known and RunDir(p).exists()
        )

    def is_done(self, point: Point) -> bool:
        """Whether the point's run ended well, and is this point's."""
        run = self.run(point)
        with contextlib.suppress(ConfigError):
            return run.status().get("state") == "done" and point.is_of(run)
        return False

    # Starting -------------------------------------------------------------------------

    def check(self, file: configfile.PythonFile, search: bool = False) -> None:
        """Refuses a directory that holds something else than this sweep, or search.

        Raises:
          ConfigError: saying what it holds, or that it can be none.
        """
        files.check_name(self.path, "--workdir")
        if "://" not in str(self.path):
            try:
                os.lstat(self.path)
            except (FileNotFoundError, NotADirectoryError):
                pass
            except OSError as error:
                reason = error.strerror
                raise ConfigError(f"--workdir {self.path} cannot be written: {reason}") from None
            first = next(p for p in (self._local, *self._local.parents) if os.path.lexists(p))
            if not first.is_dir():
                raise ConfigError(f"--workdir {self.path}: {first} is a file and no directory")
            if not os.access(first, os.W_OK | os.X_OK):
                raise ConfigError(f"--workdir {self.path} cannot be written: {first} is closed")
        if RunDir(self.path).exists():
            raise ConfigError(f"--workdir {self.path} holds a single run: name another directory")
        record = self.read()
        if record and [record["file"], record["argument"]] != _name(file):
            held = ":".join(filter(None, (record["file"], record["argument"]))) or "no known file"
            raise ConfigError(
                f"--workdir {self.path} holds the sweep of {held}: name another directory"
            )
        if record and record["search"] != search:
            held = "a sweep and no search" if search else "a search and no sweep"
            raise ConfigError(f"--workdir {self.path} holds {held}: name another directory")

    def write(
        self, file: configfile.PythonFile, points: Sequence[Point], adds: bool = False
    ) -> dict[str, Any]:
        """Writes sweep.json, and makes the folders; returns what it holds now.

        Args:
          file: the sweep's.
          points: all of them, or with `adds` some beside those that are there.
          adds: whether points that were written before stay, as the trials of a search do.

        Raises:
          ConfigError: if the directory cannot be made.
          StorageError: if the file cannot be written.
        """
        try:
            for folder in (self.path, self._local / "logs", self._local / "locks"):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = error.strerror or error
            raise ConfigError(f"--workdir {self.path} cannot be written: {reason}") from None
        name, argument = _name(file)
        with self._lock("sweep.json"):
            before = self.read()
            kept = [p for p in before.get("points", []) if type(p.get("index")) is int]
            records = {p["index"]: p for p in kept} if adds else {}
            records |= {point.index: point.record() for point in points}
            record = {
                "id": before.get("id") or uuid.uuid4().hex,  # of the disk that it lies on, too
                "file": name,
                "argument": argument,
                "search": adds,
                "docstring": file.module.__doc__ or "",
                "command": _command(),
                "published": published(file),
                "points": [records[index] for index in sorted(records)],
            }
            files.write(self.path / "sweep.json", json.dumps(record, indent=1) + "\n")
        return record

    def read(self) -> dict[str, Any]:
        """What sweep.json says, {} where there is none or something else.

        Raises:
          StorageError: if it cannot be read.
        """
        try:
            return sweepfile.read(self.path)
        except ValueError:
            return {}

    def write_config(self, point: Point) -> str:
        """Writes the config that the point's run is started with; returns its path."""
        path = self.config_path(point)
        files.write(path, configfile.to_json(point.config))
        return path

    # Locks ----------------------------------------------------------------------------

    def claim(self, point: Point) -> int | None:
        """Takes the point's run for this process: a descriptor to close, None if it is taken.

        A process that inherits the descriptor keeps the run taken for as long as it lives.
        A disk that knows no locks cannot tell: there every run is free.
        """
        return self._claim(point.directory)

    def is_taken(self, point: Point) -> bool:
        """Whether a process is running the point; touches nothing."""
        path = self._local / "locks" / f"{point.directory}.lock"
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno in _TAKEN
        finally:
            os.close(descriptor)
        return False

    def _claim(self, name: str, wait: bool = False) -> int | None:
        path = self._local / "locks" / f"{name}.lock"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise files.storage_error(path, error) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            if error.errno in _TAKEN:
                os.close(descriptor)
                return None
        return descriptor

    @contextlib.contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        descriptor = self._claim(name, wait=True)
        try:
            yield
        finally:
            os.close(descriptor)


def published(file: configfile.PythonFile) -> list[dict[str, Any]]:
    """The file's PUBLISHED numbers, checked.

    Raises:
      ConfigError: if an entry is not {"label", "metric", "value"} with perhaps a "note".
    """
    entries = plain(getattr(file.module, "PUBLISHED", ()))
    example = '{"label": ..., "metric": "eval/accuracy", "value": 0.851}'
    if not isinstance(entries, list | tuple):
        raise ConfigError(f"{file.path}: PUBLISHED={entries!r} should be a list of {example}")
    for number, entry in enumerate(entries):
        fits = isinstance(entry, dict) and runvalues.finite(entry.get("value")) is not None
        texts = [entry.get("label"), entry.get("metric"), entry.get("note") or ""] if fits else []
        if not fits or not all(isinstance(text, str) for text in texts):
            raise ConfigError(f"{file.path}: PUBLISHED[{number}] should be {example}")
    keys = ("label", "metric", "value", "note")
    return [{key: entry[key] for key in keys if key in entry} for entry in entries]


def _name(file: configfile.PythonFile) -> list[str]:
    """File and argument, so that it is the same from every working directory."""
    return [os.path.basename(file.path), file.argument]


def _command() -> str:
    """The command line, without the password of a database."""
    words = shlex.join(["pit-jax", *sys.argv[1:]])
    return re.sub(r"(://[^:/@\s]+):[^@\s]+@", r"\1:***@", words)
