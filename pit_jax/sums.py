"""The checksum of every file of a folder, and what has changed since they were taken.

A sum is {"bytes": size, KIND: text}. On a disk the kind is "sha256". Google Cloud Storage makes
sums of its own when the bytes arrive ("md5", of composed objects only "crc32c", in base64), and
tells them for the asking: what was written there is not fetched again to be summed. A file can be
checked against any kind, wherever it lies now.
"""

import base64
import concurrent.futures
import hashlib
import os
from collections.abc import Mapping
from typing import Any

from etils import epath
from etils.epath.backend import fsspec_backend

from pit_jax import files, installation
from pit_jax.errors import StorageError

_PIECE = 1 << 20
_AT_ONCE = 16  # files that are read to be summed: a bucket takes its time to answer
_TOLD = {"md5": "md5Hash", "crc32c": "crc32c"}  # what Google's listings call them; best first
_KINDS = ("sha256", *_TOLD)


def of_folder(
    folder: epath.Path, known: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, dict[str, Any]]:
    """Sizes and sums of all files below a folder, by their relative paths; {} if there is none.

    Args:
      folder: where they lie.
      known: sums of some of them, which are not read again.

    Raises:
      StorageError: if a file cannot be read.
    """
    found = _listed(folder)
    for name, says in (known or {}).items():
        if name in found and found[name]["bytes"] == says["bytes"]:
            found[name] |= says
    untold = [name for name, says in found.items() if not _kind_of(says)]
    read = _read(folder, dict.fromkeys(untold, "sha256"))
    return {name: says | read.get(name, {}) for name, says in found.items()}


def problems(folder: epath.Path, expected: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What is wrong with a folder that should hold files of these sums; [] if it is intact.

    Raises:
      StorageError: if a file cannot be read.
    """
    found = _listed(folder)
    wrong = [f"{name} is missing" for name in expected if name not in found]
    kinds = {name: _kind_of(says) for name, says in expected.items() if name in found}
    sized = {name for name in kinds if found[name]["bytes"] == expected[name]["bytes"]}
    read = _read(folder, {n: kinds[n] for n in sized if kinds[n] and kinds[n] not in found[n]})
    for name, says in found.items():
        if name not in expected:
            wrong.append(f"{name} does not belong to it")
        elif name not in sized:
            wrong.append(f"{name} has {says['bytes']} bytes, not {expected[name]['bytes']}")
        elif not kinds[name]:
            wrong.append(f"{name} has no sum in the manifest")
        elif (says | read.get(name, {}))[kinds[name]] != expected[name][kinds[name]]:
            label = {"sha256": "SHA-256", "md5": "MD5", "crc32c": "CRC32C"}[kinds[name]]
            wrong.append(f"{name} has changed ({label} differs)")
    return wrong


def _kind_of(says: Mapping[str, Any]) -> str:
    return next((kind for kind in _KINDS if says.get(kind)), "")


def _listed(folder: epath.Path) -> dict[str, dict[str, Any]]:
    """Every file's size, and the sum where the place tells it; by one request in a bucket."""
    if not files.in_bucket(folder):
        paths = {}
        for where, _, names in os.walk(folder):
            paths |= {os.path.join(where, name): name for name in names}
        return {
            os.path.relpath(path, folder).replace(os.sep, "/"): {"bytes": os.stat(path).st_size}
            for path in sorted(paths)
        }
    with files.told(folder, "read"):
        found = fsspec_backend.fs(folder).find(os.fspath(folder), detail=True)
    base = os.fspath(folder).partition("://")[2].rstrip("/") + "/"
    listed = {}
    for path, info in sorted(found.items()):
        told = {kind: info[name] for kind, name in _TOLD.items() if info.get(name)}
        listed[path.partition("://")[2].removeprefix(base) or path.removeprefix(base)] = {
            "bytes": int(info["size"]),
            **dict([*told.items()][:1]),
        }
    return listed


def _read(folder: epath.Path, kinds: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Sums that need the bytes: {name: {kind: sum}}."""

    def one(name: str) -> dict[str, str]:
        path, kind = folder / name, kinds[name]
        if kind == "sha256":
            return {kind: files.sha256(path)}
        digest = hashlib.md5(usedforsecurity=False) if kind == "md5" else _crc32c()
        with files.told(path, "read"), path.open("rb") as file:
            while piece := file.read(_PIECE):
                digest.update(piece)
        return {kind: base64.b64encode(digest.digest()).decode()}

    with concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as pool:
        return dict(zip(kinds, pool.map(one, kinds), strict=True))


def _crc32c() -> Any:
    try:
        import google_crc32c
    except ImportError:
        raise StorageError(
            "a checkpoint that was copied from a bucket has CRC32C sums:"
            f" {installation.install('google-crc32c')} checks them"
        ) from None
    return google_crc32c.Checksum()
