"""Folders that libraries write by themselves, of a run directory that lies in a bucket."""

import os
import pathlib
import shutil
import tempfile
import weakref

from etils import epath

from pit_jax import files


class Mirror:
    """Temporary folders of this machine that stand for folders of `root`."""

    def __init__(self, root: epath.Path):
        self._root = root
        self._folders: dict[str, pathlib.Path] = {}
        self._copied: dict[str, tuple[int, int]] = {}  # size and time of what is there

    def folder(self, name: str) -> str:
        """The folder for <root>/<name>; it lives as long as this object."""
        if name not in self._folders:
            made = tempfile.mkdtemp(prefix="pit_jax_")
            weakref.finalize(self, shutil.rmtree, made, ignore_errors=True)
            self._folders[name] = pathlib.Path(made)
        return str(self._folders[name])

    def flush(self) -> None:
        """Copies what has changed.

        Raises:
          StorageError: if it cannot be written.
        """
        for name, folder in self._folders.items():
            for path in sorted(p for p in folder.rglob("*") if p.is_file()):
                place = f"{name}/{path.relative_to(folder).as_posix()}"
                found = os.stat(path)
                now = found.st_size, found.st_mtime_ns
                if self._copied.get(place) != now:
                    with files.whole(self._root / place) as target:
                        shutil.copyfile(path, target)
                    self._copied[place] = now
