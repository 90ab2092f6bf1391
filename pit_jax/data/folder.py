"""A folder of image files as a source: data.dir/<split>/<class>/<image file>."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from pit_jax.data.sources import Encoded
from pit_jax.errors import ConfigError

_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp")


class Folder(Encoded):
    """data.dir/<split>/<class>/<file>; classes are the folders of the training split."""

    def __init__(self, data: Any, split: str):
        super().__init__(data)
        root = Path(data.dir)
        self.name = f"{root / split}"
        classes = _class_folders(root / data.split)
        self.num_classes = len(classes)
        self.classes, self._root = classes, root / split
        names: list[bytes] = []
        counts = [0] * len(classes)
        for folder in _class_folders(root / split):
            if folder not in classes:
                raise ConfigError(
                    f"{root / split} has a class folder {folder!r} that {root / data.split} has not"
                )
            files = sorted(os.listdir(root / split / folder))
            files = [os.fsencode(f) for f in files if Path(f).suffix.lower() in _SUFFIXES]
            counts[classes.index(folder)] = len(files)
            names += files
        # Not a list of paths: every worker process gets its own copy of this.
        self._names = b"".join(names)
        self._ends = np.cumsum([0, *map(len, names)])
        self._labels = np.repeat(np.arange(len(classes), dtype=np.int32), counts)
        if not names:
            raise ConfigError(f"{root / split} holds no images ({', '.join(_SUFFIXES)})")

    def __len__(self) -> int:
        return len(self._labels)

    def labels(self) -> np.ndarray:
        return self._labels

    def example_name(self, index: int) -> str:
        name = os.fsdecode(self._names[self._ends[index] : self._ends[index + 1]])
        return str(self._root / self.classes[self._labels[index]] / name)

    def _read(self, index: int) -> tuple[bytes, int]:
        return Path(self.example_name(index)).read_bytes(), int(self._labels[index])


def splits(root: Path) -> list[str]:
    """Splits of a folder: those of its folders that hold folders.

    Raises:
      ConfigError: if there are none.
    """
    try:
        folders = sorted(path for path in root.iterdir() if path.is_dir() and "@" not in path.name)
        found = [path.name for path in folders if any(x.is_dir() for x in path.iterdir())]
    except OSError as error:
        raise ConfigError(f"folder {root}: {error.strerror or error}") from None
    if not found:
        raise ConfigError(f"folder {root} holds no <split>/<class>/<image file>")
    return found


def _class_folders(split: Path) -> list[str]:
    try:
        found = sorted(p.name for p in split.iterdir() if p.is_dir())
    except OSError as error:
        raise ConfigError(
            f"folder {split}: {error.strerror}; config.data.dir should hold"
            " <split>/<class>/<image file>"
        ) from None
    if not found:
        raise ConfigError(f"folder {split} holds no class folders")
    return found
