"""Where `pit-jax compare` writes: refused before anything is read, and nothing is lost by it."""

import os
import stat
from collections.abc import Mapping, Sequence

from pit_jax import files
from pit_jax.errors import ConfigError
from pit_jax.rundir import RunDir
from pit_jax.study import handmade, sweepfile

_ENDINGS = {"out": (".html", ".htm"), "plot": (".svg",)}
_WHAT = {"out": "a report is an HTML file, e.g. report.html"}
_WHAT |= {"plot": "a plot is an SVG file, e.g. plot.svg"}
# What a sweep's directory holds beside its runs.
_FILES = (sweepfile.FILE, handmade.FILE, "search.db")
_FOLDERS = ("configs", "logs", "locks")


def check(paths: Mapping[str, str | None], directories: Sequence[str]) -> None:
    """Refuses files that cannot be written, that are each other, or that a run is made of.

    Args:
      paths: flag, without dashes → the file it names, None where it was not given.
      directories: those that are compared.

    Raises:
      ConfigError: naming the flag.
    """
    used: dict[str, str] = {}
    compared = [RunDir(directory) for directory in directories]
    kept = [(run, _real(str(run.path))) for run in compared]
    for flag, path in paths.items():
        if path is None:
            continue
        called = f"--{flag}"
        files.check_place(path, called)
        if not path.lower().endswith(_ENDINGS.get(flag, "")):
            raise ConfigError(f"{called} {path}: {_WHAT[flag]}")
        real = _real(path)
        if real in used:
            raise ConfigError(f"--{used[real]} and {called} are both {path}: one would be lost")
        used[real] = flag
        for run, folder in kept:
            if holder := _holder(run, folder, real):
                raise ConfigError(
                    f"{called} {path} is a file of {holder}, which is compared: name another"
                )
        if "://" not in path:
            _check_writable(called, path, real)


def _holder(run: RunDir, folder: str, path: str) -> str:
    """The run or sweep that writing to `path` would damage, "" where none would be."""
    if not path.startswith(folder.rstrip("/") + "/"):
        return ""
    if run.exists():
        return folder
    first, _, rest = path[len(folder.rstrip("/")) + 1 :].partition("/")
    if not rest:
        return folder if first in _FILES else ""
    below = f"{folder.rstrip('/')}/{first}"
    return below if first in _FOLDERS or RunDir(below).exists() else ""


def _check_writable(called: str, path: str, real: str) -> None:
    folder = os.path.dirname(real)
    if not os.path.isdir(folder):
        raise ConfigError(f"{called} {path} cannot be written: there is no directory {folder}")
    try:
        mode = os.stat(real).st_mode
    except FileNotFoundError:
        mode = None
    except OSError as error:
        raise ConfigError(f"{called} {path} cannot be written: {error.strerror}") from None
    if mode is not None and not stat.S_ISREG(mode):
        raise ConfigError(f"{called} {path} cannot be written: it is no regular file")
    if mode is not None and not (mode & 0o222 and os.access(real, os.W_OK)):
        raise ConfigError(f"{called} {path} cannot be written: it is read-only")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"{called} {path} cannot be written: {folder} is closed to this user")


def _real(path: str) -> str:
    """One spelling of a path: absolute, without links."""
    return path if "://" in path else os.path.realpath(path)
