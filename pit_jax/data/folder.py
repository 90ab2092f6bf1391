"""A folder of image files as a source: data.dir/<split>/<class>/<image file>.

Where nobody reads labels, images may lie in data.dir/<split> itself: all are of one class then.
What lies there and is not read is counted, see `Source.passed_over`.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np

from pit_jax.data.sources import Encoded
from pit_jax.errors import ConfigError, PitError, StorageError

_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp")
_LAYOUT = "config.data.dir should hold <split>/<class>/<image file>"
_BY_PROGRAMS = ("__macosx", "thumbs.db", "desktop.ini")


class Folder(Encoded):
    """data.dir/<split>/<class>/<file>; classes are the folders of the training split."""

    labels_at_hand = True

    def __init__(self, data: Any, split: str):
        super().__init__(data)
        root = Path(data.dir)
        self._root, self.name = root / split, f"{root / split}"
        self.classes = classes = _class_folders(root, data.split)
        self.num_classes = len(classes)
        passed = _PassedOver(self.name)
        names: list[bytes] = []
        counts = [0] * len(classes)
        for folder in _class_folders(root, split, passed):
            if folder not in classes:
                what = f"a class folder {folder!r}" if folder else "images outside of class folders"
                raise ConfigError(f"{root / split} has {what}, which {root / data.split} lacks")
            images = _images(root / split, folder, passed)
            counts[classes.index(folder)] = len(images)
            names += map(os.fsencode, images)
        # Not a list of paths: every worker process gets its own copy of this.
        self._names = b"".join(names)
        self._ends = np.cumsum([0, *map(len, names)])
        self._labels = np.repeat(np.arange(len(classes), dtype=np.int32), counts)
        self.passed_over = passed.lines()
        if not names:
            line = f"{root / split} holds no images ({', '.join(_SUFFIXES)})"
            if _NESTED in passed.found and len(classes) == 1:
                line += (
                    f": the class folders seem to lie in {split}/{classes[0]}, name that as split"
                )
            raise ConfigError("; ".join([line, *self.passed_over]))
        if empty := [name for name, count in zip(classes, counts, strict=True) if not count]:
            of = f"{len(empty)} of its {len(classes)} classes"
            self.passed_over.append(f"{self.name} has no image of {of}, such as {empty[0]}")

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
    """Splits of a folder: those of its folders that hold folders, or images.

    Raises:
      ConfigError: if there are none.
      StorageError: if one may not be read.
    """
    folders = [name for name in _listed(root)[0] if "@" not in name and not _is_hidden(name)]
    found = [name for name in folders if _holds_any(root / name)]
    if not found:
        raise ConfigError(f"folder {root} holds no <split>/<class>/<image file>")
    return found


# What lies there ------------------------------------------------------------------------

_HIDDEN_FOLDERS, _HIDDEN, _OTHER = "hidden folders", "hidden images", "files of other suffixes"
_NESTED, _OUTSIDE = "images in folders of class folders", "images outside of class folders"


class _PassedOver:
    """What lies in a split and is not read: how much of each kind, and the first of it."""

    def __init__(self, name: str):
        self._name = name
        self.found: dict[str, tuple[int, str]] = {}

    def add(self, kind: str, *names: str) -> None:
        if names:
            count, first = self.found.get(kind, (0, names[0]))
            self.found[kind] = count + len(names), first

    def lines(self) -> list[str]:
        return [
            f"{self._name}: {kind} passed over: {count:,}, such as {first}"
            for kind, (count, first) in self.found.items()
        ]


def _class_folders(root: Path, split: str, passed: _PassedOver | None = None) -> list[str]:
    """Names of the class folders of a split, sorted; [""] if there are images instead."""
    passed = passed or _PassedOver("")
    try:
        folders, files = _listed(root / split)
    except ConfigError as error:
        raise ConfigError(f"{error}; {_LAYOUT}{_instead(root)}") from None
    hidden = [name for name in folders if _is_hidden(name)]
    passed.add(_HIDDEN_FOLDERS, *hidden)
    loose = [name for name in files if _is_image(name)]
    if found := [name for name in folders if not _is_hidden(name)]:
        passed.add(_OUTSIDE, *loose)
        return found
    if loose:
        return [""]
    raise ConfigError(f"folder {root / split} holds no class folders")


def _images(split: Path, folder: str, passed: _PassedOver) -> list[str]:
    """Names of the images of a class folder, sorted."""
    folders, files = _listed(split / folder)
    hidden = [name for name in files if _is_hidden(name) and _has_suffix(name)]
    other = [name for name in files if not _has_suffix(name) and not _is_hidden(name)]
    passed.add(_HIDDEN, *(os.path.join(folder, name) for name in hidden))
    passed.add(_OTHER, *(os.path.join(folder, name) for name in other))
    for inner in folders if folder else ():
        if not _is_hidden(inner):
            nested = [name for name in _listed(split / folder / inner)[1] if _is_image(name)]
            passed.add(_NESTED, *(os.path.join(folder, inner, name) for name in nested))
    return [name for name in files if _is_image(name)]


def _instead(root: Path) -> str:
    """What a folder holds where a split is not there."""
    try:
        folders, files = _listed(root)
    except PitError:
        return ""
    if folders := [name for name in folders if not _is_hidden(name)]:
        return f". {root} holds {', '.join(folders[:4])}{', ...' if folders[4:] else ''}"
    if any(map(_is_image, files)):
        return f". {root} itself holds images: to read those write '.' as the split"
    return ""


def _listed(folder: Path) -> tuple[list[str], list[str]]:
    """Names of the folders and of the files in a folder, sorted.

    Raises:
      ConfigError, StorageError: if it is not there, or may not be read.
    """
    found: tuple[list[str], list[str]] = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                # What has an image's suffix is a file: to ask costs a turn each on some disks.
                found[_has_suffix(entry.name) or not entry.is_dir()].append(entry.name)
    except PermissionError as error:
        raise StorageError(f"folder {folder} cannot be read: {error.strerror}") from None
    except OSError as error:
        raise ConfigError(f"folder {folder}: {error.strerror or error}") from None
    return sorted(found[0]), sorted(found[1])


def _holds_any(split: Path) -> bool:
    folders, files = _listed(split)
    return any(not _is_hidden(name) for name in folders) or any(map(_is_image, files))


def _is_image(name: str) -> bool:
    return _has_suffix(name) and not _is_hidden(name)


def _has_suffix(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in _SUFFIXES


def _is_hidden(name: str) -> bool:
    """Left by programs beside what people put there: .ipynb_checkpoints, ._x.png, __MACOSX."""
    return name.startswith(".") or name.lower() in _BY_PROGRAMS
