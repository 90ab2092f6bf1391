"""Files that are there as a whole or not at all, their checksums, and JSON as it is found.

Places are local or in a bucket, gs:// and the like.
"""

import contextlib
import hashlib
import importlib.util
import json
import logging
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from typing import Any

from etils import epath
from etils.epath.backend import fsspec_backend

from pit_jax import installation, waiting
from pit_jax.errors import ConfigError, PitError, StorageError

_PIECE = 1 << 20
_DRIVERS = {"gs": "gcsfs", "s3": "s3fs"}  # packages that read buckets
for _driver in _DRIVERS.values():
    # They print a traceback of whatever they raise; here it is told in one line.
    logging.getLogger(_driver).setLevel(logging.CRITICAL)
_OF_DRIVERS = (*_DRIVERS.values(), "fsspec", "aiohttp", "botocore", "aiobotocore")
_OF_DRIVERS += ("google.api_core", "google.auth", "google.cloud", "google.resumable_media")
_DIGITS = 18  # of a whole number; a longer one is read as a real number, perhaps infinite
_URL = re.compile(r"(?:\b[A-Z]+ )?\bhttps?://\S+")  # of a bucket's server; after GET, POST
# Control characters and lone surrogates, which neither terminals, HTML nor UTF-8 take.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def sha256(path: epath.PathLike) -> str:
    """Of a file's bytes, as sha256sum prints it; read in pieces."""
    digest = hashlib.sha256()
    with epath.Path(path).open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


# Places -------------------------------------------------------------------------------


def check_place(path: str | os.PathLike, called: str = "the path") -> None:
    """Refuses what can be no file or directory: nothing, and buckets that cannot be reached.

    Args:
      called: what errors call it, such as a flag.

    Raises:
      ConfigError: saying what to write or to install.
    """
    path = os.fspath(path)
    if not path or "\0" in path:
        raise ConfigError(f"{called} {path!r} names no file or directory")
    scheme, separator, rest = path.partition("://")
    if not separator:
        return
    if scheme not in _DRIVERS:
        known = ", ".join(f"{name}://" for name in _DRIVERS)
        raise ConfigError(f"{called} {path}: write a local path or one of {known}")
    if not rest.strip("/"):
        raise ConfigError(f"{called} {path} names no bucket: write {scheme}://BUCKET/...")
    if importlib.util.find_spec("tensorflow") is None:  # epath takes it where it is installed
        try:
            _list_anew(scheme)
            # Credentials may be had of a server only.
            with waiting.announced(_bucket(path), answers=False):
                fsspec_backend.fs(path)
        except ImportError:
            raise ConfigError(
                f"{called} {path}: {scheme}:// is read by a package that is missing here:"
                f" {installation.install(_DRIVERS[scheme])}"
            ) from None


def check_name(path: str | os.PathLike, called: str = "the path") -> None:
    """Refuses names under which checkpoints would not be found again.

    Orbax looks for what it has written by a glob pattern, which [1e-3] in a name makes another
    one; TensorStore takes \\ for a separator, and no name that is not UTF-8.

    Raises:
      ConfigError: naming the characters.
    """
    text = os.fspath(path)
    if wrong := sorted({c for c in text if c in "*?[\\"}):
        raise ConfigError(
            f"{called} {printable(text)}: no checkpoint can be written under a name with"
            f" {' '.join(wrong)}: name another directory"
        )
    check_text(path, called)


def check_text(path: str | os.PathLike, called: str = "the path") -> None:
    """Refuses names that libraries which are not Python's cannot be given.

    Raises:
      ConfigError: if it is not UTF-8.
    """
    text = os.fspath(path)
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise ConfigError(
            f"{called} {printable(text)}: nothing can be written under a name that is not UTF-8:"
            " name another directory"
        )


def in_bucket(path: epath.PathLike) -> bool:
    """Whether a place is no local one: there objects appear whole, and there are no folders."""
    return "://" in os.fspath(path)


def _list_anew(scheme: str) -> None:
    """Has bucket drivers ask every time: other processes write there too."""
    from fsspec.config import conf

    for name in (scheme, "gcs") if scheme == "gs" else (scheme,):
        conf.setdefault(name, {})["use_listings_cache"] = False


def replaceable(path: epath.PathLike) -> epath.Path:
    """The file that writing to `path` replaces: a link's target and not the link.

    Raises:
      StorageError: for a device, a directory and the like, and for a file that is read-only.
    """
    if in_bucket(path):
        return epath.Path(path)
    target = epath.Path(os.path.realpath(path))
    try:
        mode = os.stat(target).st_mode
    except OSError:  # there is none; what else is wrong, writing will say
        return target
    if not stat.S_ISREG(mode):
        kind = "a directory" if stat.S_ISDIR(mode) else "a device or the like"
        raise StorageError(f"{path} could not be written: it is {kind} and no file")
    if not mode & 0o222:  # the superuser could
        raise StorageError(f"{path} could not be written: it is read-only")
    return target


# Writing ------------------------------------------------------------------------------


@contextlib.contextmanager
def whole(path: epath.PathLike) -> Iterator[epath.Path]:
    """Where to write what becomes the file at `path` once the block ends well.

    A reader finds the old bytes or the new ones, and no half of them; of a block that fails
    nothing stays. Folders are made.

    Raises:
      StorageError: if the file cannot be written.
    """
    target = replaceable(path)
    if in_bucket(target):
        with tempfile.TemporaryDirectory() as folder:
            temporary = epath.Path(folder) / target.name
            try:
                yield temporary
            except OSError as error:
                raise storage_error(target, error) from None
            with told(target), temporary.open("rb") as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink, _PIECE)
        return
    temporary = target.parent / f".{target.name}.tmp"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(target)
    except BaseException as error:
        with contextlib.suppress(OSError):  # the first error is the one to tell
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise storage_error(target, error) from None
        raise


def write(path: epath.PathLike, content: str | bytes) -> None:
    """Replaces a file as a whole, see `whole`."""
    content = content.encode() if isinstance(content, str) else content
    if in_bucket(path):
        with told(path):
            epath.Path(path).write_bytes(content)
        return
    with whole(path) as temporary:
        temporary.write_bytes(content)


def move(source: epath.PathLike, target: epath.PathLike) -> None:
    """Moves a folder and all that is in it; folders are made.

    Raises:
      StorageError: if it cannot be moved.
    """
    with told(target):
        if in_bucket(source):  # epath would miss the folder above, which no bucket has
            fsspec_backend.fs(source).mv(os.fspath(source), os.fspath(target), recursive=True)
        else:
            epath.Path(target).parent.mkdir(parents=True, exist_ok=True)
            epath.Path(source).rename(target)


def absent(path: epath.PathLike) -> list[str]:
    """The folders that have to be made for a local path, the deepest first."""
    found, folder = [], os.path.abspath(path)
    while not os.path.lexists(folder):
        found.append(folder)
        folder = os.path.dirname(folder)
    return found


@contextlib.contextmanager
def told(path: epath.PathLike, what: str = "written") -> Iterator[None]:
    """Turns what file systems raise, and the many types of bucket drivers, into one line.

    Raises:
      StorageError: if the block fails because of the place.
    """
    try:
        with waiting.announced(_bucket(path)):
            yield
    except PitError:
        raise
    except OSError as error:
        raise storage_error(path, error, what) from None
    except Exception as error:
        if not in_bucket(path):
            raise
        raise storage_error(path, error, what) from None


def of_driver(error: BaseException | None) -> bool:
    """Whether an error comes out of what speaks with buckets, rather than of a mistake here."""
    while error is not None:
        if type(error).__module__.startswith(_OF_DRIVERS):
            return True
        error = error.__cause__ or error.__context__
    return False


def _bucket(path: epath.PathLike) -> str:
    """The bucket of a path, "gs://name"; "" of one on a disk."""
    return "/".join(os.fspath(path).split("/")[:3]) if in_bucket(path) else ""


def storage_error(path: epath.PathLike, error: Exception, what: str = "written") -> StorageError:
    """The one line for a file that could not be written, or read."""
    text = _URL.sub("", str(error)) if in_bucket(path) else str(error)
    reason = getattr(error, "strerror", None) or " ".join(text.split())[:300]
    if in_bucket(path) and isinstance(error, FileNotFoundError):  # its text is what was called
        bucket = os.fspath(path).partition("://")[2].partition("/")[0]
        reason = "it is not there" if what == "read" else f"is there a bucket {bucket}?"
    return StorageError(f"{path} could not be {what}: {reason or type(error).__name__}")


# Reading ------------------------------------------------------------------------------


def read_json(path: epath.PathLike) -> Any:
    """What a JSON file holds, see `parse_json`.

    Raises:
      StorageError: if it cannot be read.
      ValueError: if it is no JSON.
    """
    with told(path, "read"):
        content = epath.Path(path).read_bytes()
    return parse_json(content)


def parse_json(text: str | bytes) -> Any:
    """The value that a JSON text holds, whoever wrote it.

    Whole numbers of more than 18 digits become real ones, which every computation takes.

    Raises:
      ValueError: if it is no JSON, or nested deeper than anything that was meant.
    """
    try:
        return json.loads(text, parse_int=_whole_number)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def printable(text: str) -> str:
    """The text with U+FFFD for every character that cannot be shown or written."""
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def _whole_number(digits: str) -> int | float:
    return int(digits) if len(digits.lstrip("-")) <= _DIGITS else float(digits)
