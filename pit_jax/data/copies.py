"""Resized copies: all images of a set at one size, as pixels, read without decoding anything.

`pit-jax data prepare SET --resize N` writes one to <data dir>/SET@N (see copier.py), and a
config names it so: data.name=imagenet2012@64. It is a store (store.py) with the manifest
copy.json. A record is the label (int32), then size · size · channels bytes, rows first; of an
image that was left out, because it could not be decoded, it is the label −1 and nothing.

In memory a copy is read file by file, each compared with its checksum; as a stream record by
record, of which ArrayRecord keeps checksums.
"""

import concurrent.futures
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pit_jax.data import store, store_writer
from pit_jax.data.known import Copy, copy_of, wrong_size
from pit_jax.data.sources import Source, data_dir
from pit_jax.errors import ConfigError, StorageError

KIND = store.Kind("copy.json", noun="resized images", one="image", verb="copy")
CROPPED = "shorter side antialiased bicubic, centre"  # as resize.center_view does it
SQUASHED = "whole image antialiased bicubic"  # as resize.whole_view
LEFT_OUT = -1  # label of an image that could not be decoded
_THREADS = 8
_AT_ONCE = 256  # records


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a directory holds a copy of, the same for all its splits.

    Attributes:
      image_set: the set, and its version where it has one.
      size: side of the square images, pixels.
      channels: of them.
      num_classes: that the labels count.
      resize: how images came to their size, CROPPED or SQUASHED.
      source: the directory that they were read from, "" if the set needs none.
      versions: of the packages that began the copy, recorded but never compared.
      classes: names of them by number; () where the set or a copy of old does not say them.
    """

    image_set: str
    size: int
    channels: int
    num_classes: int
    resize: str
    source: str = ""
    versions: Mapping[str, str | None] = dataclasses.field(default_factory=dict, compare=False)
    classes: Sequence[str] = ()

    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of an image."""
        return self.size, self.size, self.channels

    def as_json(self) -> dict[str, Any]:
        """What copy.json says of it."""
        fixed = {"schema": store.SCHEMA, "dtype": "uint8"}
        return json.loads(json.dumps(fixed | dataclasses.asdict(self)))


class Writer(store_writer.Writer):
    """Writes one split of a copy. Takes None as an image that is left out, with the label
    LEFT_OUT.

    Args:
      root: directory of the copy, made if it is not there.
      manifest: what is written.
      split, count, shards: its name, examples and files.
    """

    def __init__(self, root: Path, manifest: Manifest, split: str, count: int, shards: int):
        self.manifest = manifest
        super().__init__(root, KIND, manifest.as_json(), split, count, shards)

    def record(self, array: np.ndarray | None, label: int, name: str) -> bytes:
        number = np.asarray(label, store.LABEL).tobytes()
        if array is None and label == LEFT_OUT:
            return number
        if array is None or array.shape != self.manifest.shape() or array.dtype != np.uint8:
            found = "nothing" if array is None else f"{array.shape} {array.dtype}"
            raise ConfigError(f"{name}: an image is {found}, not {self.manifest.shape()} uint8")
        if not 0 <= label < self.manifest.num_classes:
            raise ConfigError(
                f"{name}: label {label} is not in 0 … {self.manifest.num_classes - 1}"
            )
        return number + array.tobytes()


class CopySource(Source):
    """A finished split of a copy: source[i] is ((size, size, C) uint8, label).

    Images that were left out are not counted.

    Args:
      data: a config's `data` group, whose name says which copy and whose dir where.
      split: of the copy.

    Attributes:
      manifest: what the copy is.

    Raises:
      ConfigError: if there is no such copy or split, it is not finished, or not of the size and
        the channels that the config is for.
      StorageError: if a file is damaged.
    """

    def __init__(self, data: Any, split: str):
        super().__init__()
        name = copy_of(data.name)
        if wrong := wrong_size(data.name, data.image_size):
            raise ConfigError(wrong)
        root = directory(data)
        if not (root / KIND.manifest).exists():
            raise ConfigError(
                f"there is no copy {name} in {root.parent}: make it with {command(name, data.dir)}"
            )
        self.manifest = read(root)
        self._check_is(name, root, data)
        source = self.manifest.source
        again = command(name, source, str(root.parent) if str(root.parent) != source else "")
        self._split = store.Split(root, KIND, split, f"{root}/{split}", f"run {again} again")
        labels = self._split.labels()
        self._numbers = np.flatnonzero(labels != LEFT_OUT)
        self._labels = labels[self._numbers].astype(np.int64)
        self.name, self.num_classes = f"{name}/{split}", self.manifest.num_classes
        self.classes = self.manifest.classes
        self.native_shape, self.channels = (name.size, name.size), self.manifest.channels
        counts = np.bincount(self._labels, minlength=self.num_classes)
        if len(empty := np.flatnonzero(counts == 0)):
            of = f"{len(empty)} of its {self.num_classes} classes"
            self.passed_over.append(f"{self.name} has no image of {of}, such as {empty[0]}")
        left_out = len(labels) - len(self)
        self.copy = f"{name} in {root} ({self.digest()[:12]}"
        if left_out:
            self.copy += f", {left_out} image{'s' if left_out > 1 else ''} left out"
        self.copy += ")"

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"there is no image {index} of {len(self)}")
        label, content = self._split.record(int(self._numbers[index]))
        shape = self.manifest.shape()
        if len(content) != np.prod(shape):
            raise StorageError(f"{self.name}: image {index} is {len(content)} bytes long")
        return np.frombuffer(content, np.uint8).reshape(shape), label

    def labels(self) -> np.ndarray:
        return self._labels

    def in_memory(self) -> tuple[np.ndarray, np.ndarray]:
        """Read file by file, from the first to the last byte.

        Raises:
          StorageError: if a file is not what was written.
        """
        images = np.empty((len(self), *self.manifest.shape()), np.uint8)
        with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
            shards = range(self._split.shards)
            list(pool.map(lambda shard: self._read(shard, images), shards))
        return images, self._labels

    def digest(self) -> str:
        """`store.Split.digest`."""
        return self._split.digest()

    def verify(self) -> None:
        """Reads every file and compares its checksum; `store.Split.verify`."""
        self._split.verify()

    def _read(self, shard: int, images: np.ndarray) -> None:
        """Puts the images of a shard where they belong."""
        from array_record.python import array_record_module

        path, part = (
            self._split.path(shard),
            store.span(self._split.count, self._split.shards, shard),
        )
        if store.facts_of(path) != self._split.files[path.name]:
            raise StorageError(f"{path} is not what was written: {self._split.again}")
        row = int(np.searchsorted(self._numbers, part.start))
        reader = array_record_module.ArrayRecordReader(str(path))
        for first in range(0, len(part), _AT_ONCE):
            for record in reader.read(first, min(first + _AT_ONCE, len(part))):
                if len(record) > store.LABEL.itemsize:
                    content = np.frombuffer(record, np.uint8, offset=store.LABEL.itemsize)
                    images[row] = content.reshape(images.shape[1:])
                    row += 1
        reader.close()

    def _check_is(self, name: Copy, root: Path, data: Any) -> None:
        """Refuses what lies there under another name, or is not what the config wants."""
        manifest = self.manifest
        how = SQUASHED if name.squashed else CROPPED
        if (manifest.size, manifest.resize) != (name.size, how):
            raise ConfigError(
                f"{root} does not hold what its name says, but images of {manifest.size} ×"
                f" {manifest.size} pixels ({manifest.resize}): give the directory its name back"
            )
        if manifest.channels != data.channels:
            raise ConfigError(
                f"config.data.channels={data.channels}, but images of {name} have"
                f" {manifest.channels}: write config.data.channels={manifest.channels}"
            )


def directory(data: Any) -> Path:
    """Where the copy lies that a config's `data` group names.

    Raises:
      ConfigError: if that is no local directory.
    """
    store.local(data.dir, KIND)
    return data_dir(data.dir) / data.name


def read(root: Path) -> Manifest:
    """What a directory holds a copy of.

    Raises:
      ConfigError: if there is none, or the manifest lacks a field.
      StorageError: if it is damaged.
    """
    whole = store.read_manifest(root, KIND)
    names = [field.name for field in dataclasses.fields(Manifest)]
    store.check_says(root, KIND, whole, names[: names.index("classes")])  # old say no more
    values = {name: whole[name] for name in names if name in whole}
    return Manifest(**values | {"classes": tuple(values.get("classes", ()))})


def count(data: Any, split: str) -> int | None:
    """Images of a split, be it finished or not; None if the copy or the split is not there."""
    root = directory(data)
    if not (root / KIND.manifest).exists():
        return None
    found = store.read_manifest(root, KIND)["splits"].get(split)
    return found["count"] if found else None


def command(name: Copy, source: str, out: str = "") -> str:
    """What makes a copy of the set that lies in `source`, for messages."""
    where = f" --data-dir {source}" if source else ""
    where += f" --out {out}" if out else ""
    squash = " --squash" if name.squashed else ""
    return f"`pit-jax data prepare {name.image_set} --resize {name.size}{squash}{where}`"
