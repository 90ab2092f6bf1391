"""Where images come from: random access by number, one image in its own size at a time.

digits      scikit-learn's handwritten digits, always at hand
folder      data.dir/<split>/<class>/<image file>, or without classes; see folder.py
latents     what `pit-jax data latents` made of a set, in data.dir; see latents.py
scenes      rendered here, with exact depth; see scenes.py
NAME        any TensorFlow Datasets set, prepared as ArrayRecord; see prepared.py
SET@SIZE    what `pit-jax data prepare SET --resize SIZE` made of a set; see copies.py
"""

import collections
import functools
import gzip
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pit_jax.data import known
from pit_jax.data.decode import Undecodable, decode, kind
from pit_jax.data.known import KNOWN
from pit_jax.data.resize import View
from pit_jax.errors import ConfigError, StorageError

_HELD_OUT = 360  # of the 1797 digits


class Source:
    """len(source) examples; source[i] is ((H, W, C) uint8, label), or None if corrupt.

    Where `has_depth` it is (image, label, depth), depth (H, W) float32 in metres, 0 where there
    is none; such sets have no classes, and their labels are 0.

    source.view(i, choose) is the same with a view of the image, which costs less than the whole
    where it is kept as a file; choose((H, W)) says which. source.labels() are all labels,
    (len,), read without decoding an image.

    Attributes:
      name: for messages.
      num_classes: as the set itself says.
      classes: their names by number; () if the set does not say them.
      channels: of its images, if the set itself says that, else None.
      version: of the set, "" if it has none.
      copy: for a run's log: which resized copy this is, "" if it is the set itself.
      native_shape: (H, W) if every image is known to have it, else None.
      record_shape: of float16 numbers that are stored instead of an image, else None.
      has_depth: whether every image comes with its depth.
      labelled: whether anybody will read its labels.
      labels_at_hand: whether labels() costs nothing.
      passed_over: lines for people about what lies in the set's place and is not read, and
        about classes that have nothing.
      corrupt: names of those found undecodable so far, where the config says to skip them.
    """

    name = ""
    num_classes = 0
    classes: Sequence[str] = ()
    channels: int | None = None
    version = ""
    copy = ""
    native_shape: tuple[int, int] | None = None
    record_shape: tuple[int, ...] | None = None
    has_depth = False
    labelled = True
    labels_at_hand = False

    def __init__(self) -> None:
        self.passed_over: list[str] = []
        self.corrupt: list[str] = []

    def view(self, index: int, choose: Callable[[tuple[int, int]], View]) -> tuple | None:
        example = self[index]
        if example is None:
            return None
        image, label, *depth = example
        view = choose(image.shape[:2])
        return view.of(image), label, *map(view.nearest, depth)

    def readable(self, index: int, choose: Callable[[tuple[int, int]], View]) -> bool:
        """Whether a view of the image can be had; nothing is said or counted."""
        return True

    def needs_all(self) -> None:
        """Says that no image can be left out: no error is to advise it."""

    def in_memory(self) -> tuple[np.ndarray, np.ndarray] | None:
        """All images (len, H, W, C) uint8 and labels (len,), where they are read at once much
        faster than one by one; else None."""
        return None

    def example_name(self, index: int) -> str:
        """What to call an example in a message."""
        return f"example {index} of {self.name}"

    def note_corrupt(self, name: str) -> bool:
        """Counts an undecodable example once; returns whether it is new."""
        if name in self.corrupt:
            return False
        self.corrupt.append(name)
        return True


def load(data: Any, split: str, labelled: bool | None = True) -> Source:
    """The source that a config's `data` group names.

    Args:
      labelled: whether labels will be read; else the set may have any number of classes. None:
        if it has more classes than one.

    Raises:
      ConfigError: if the set, the split or the class count is not there, saying what is.
    """
    source = open_split(data, split)
    labelled = source.num_classes > 1 if labelled is None else labelled
    if labelled and source.num_classes != data.num_classes and not source.has_depth:
        found = f"{source.num_classes} class{'es' if source.num_classes > 1 else ''}"
        raise ConfigError(
            "; ".join(
                [
                    f"config.data.num_classes={data.num_classes}, but {source.name} has {found}",
                    *source.passed_over,
                ]
            )
        )
    source.labelled = labelled
    return source


def open_split(data: Any, split: str) -> Source:
    """The same whatever number of classes the config expects."""
    if "://" in str(data.dir):  # of which a path would be a folder beside the program
        raise ConfigError(
            f"config.data.dir={data.dir}: data is read from a disk. Mount the bucket, or copy the"
            " data, and name its path"
        )
    if known.copy_of(data.name):
        from pit_jax.data.copies import CopySource

        source: Source = CopySource(data, split)
    elif data.name == "digits":
        source = Digits(split)
    elif data.name == "folder":
        from pit_jax.data.folder import Folder

        source = Folder(data, split)
    elif data.name == "scenes":
        from pit_jax.data.scenes import Scenes

        source = Scenes(data, split)
    elif data.name == "latents":
        from pit_jax.data.latents import LatentSource

        source = LatentSource(data.dir, split)
        found, wanted = source.manifest.shape, (data.image_size, data.image_size, data.channels)
        if found != wanted:
            raise ConfigError(
                f"{source.name} is of {' × '.join(map(str, found))} latents, but"
                f" config.data.image_size={data.image_size} and .channels={data.channels}"
            )
    else:
        from pit_jax.data.prepared import TensorFlowDataset

        source = TensorFlowDataset(data, split)
    return source


def training(data: Any, labelled: bool | None = True) -> Source:
    """The source that a config trains on: its training split, or `data.per_class` of it.

    Raises:
      ConfigError: as `load`, and if a class has fewer examples.
    """
    source = load(data, data.split, True if data.per_class else labelled)
    return few(source, data.per_class, data.per_class_seed) if data.per_class else source


def num_examples(data: Any, split: str) -> int | None:
    """Size of a split if it is known without the data, else None.

    Of a copy and of latents it is what their store says; where there is none what is known of
    the set that the copy is of, or that `data.latents_of` names.
    """
    if data.per_class and split == data.split:
        return data.per_class * data.num_classes
    name = data.name
    if known.copy_of(name):
        from pit_jax.data import copies

        if (found := copies.count(data, split)) is not None:
            return found
    if name == "latents":
        from pit_jax.data import latents

        if latents.manifest(data.dir):
            return latents.count(data.dir, split)
        name = data.latents_of
    found = known.facts(name)
    return found.splits.get(split) if found else None


def native_shape(data: Any) -> tuple[int, int] | None:
    """(H, W) of every image, if that is known without the data, else None."""
    if data.name == "scenes":  # whatever size is asked for
        return data.image_size, data.image_size
    side = copy.size if (copy := known.copy_of(data.name)) else None
    if side is None and (found := known.facts(data.name)):
        side = found.side
    return (side, side) if side else None


class Digits(Source):
    """1797 scans of handwritten digits, 8×8, 16 grey levels; a fixed 360 are the test set."""

    native_shape, channels = (8, 8), 1
    num_classes, classes = 10, tuple("0123456789")

    def __init__(self, split: str):
        super().__init__()
        if split not in KNOWN["digits"].splits:
            raise ConfigError(f"digits has the splits train and test, not {split!r}")
        self.name = f"digits/{split}"
        images, labels = _digits()
        order = np.random.default_rng(0).permutation(len(images))
        chosen = order[:_HELD_OUT] if split == "test" else order[_HELD_OUT:]
        self._images, self._labels = images[chosen], labels[chosen]

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self._images[index], int(self._labels[index])

    def labels(self) -> np.ndarray:
        return self._labels


class Part(Source):
    """Examples `numbers` of another source, `whole`, in that order."""

    def __init__(self, whole: Source, numbers: Sequence[int], name: str | None = None):
        self.whole, self._numbers = whole, numbers
        self.name, self.num_classes = name or whole.name, whole.num_classes
        self.classes = whole.classes
        self.native_shape, self.record_shape = whole.native_shape, whole.record_shape
        self.has_depth, self.copy = whole.has_depth, whole.copy
        self.labelled, self.labels_at_hand = whole.labelled, whole.labels_at_hand
        self.passed_over, self.corrupt = whole.passed_over, whole.corrupt

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int] | None:
        return self.whole[int(self._numbers[index])]

    def view(self, index: int, choose: Callable[[tuple[int, int]], View]) -> tuple | None:
        return self.whole.view(int(self._numbers[index]), choose)

    def readable(self, index: int, choose: Callable[[tuple[int, int]], View]) -> bool:
        return self.whole.readable(int(self._numbers[index]), choose)

    def needs_all(self) -> None:
        self.whole.needs_all()

    def example_name(self, index: int) -> str:
        return self.whole.example_name(int(self._numbers[index]))

    def labels(self) -> np.ndarray:
        return self.whole.labels()[np.asarray(self._numbers)]


def few(source: Source, count: int, seed: int) -> Part:
    """`count` examples of each class of a source, drawn by `seed`, in its order.

    Raises:
      ConfigError: if a class has fewer.
    """
    labels = source.labels()
    order = np.random.default_rng(seed).permutation(len(labels))
    chosen = [order[labels[order] == label][:count] for label in range(source.num_classes)]
    if short := [str(c) for c, found in enumerate(chosen) if len(found) < count]:
        raise ConfigError(
            f"config.data.per_class={count}, but {source.name} has fewer of"
            f" class{'es' if len(short) > 1 else ''} {', '.join(short[:5])}"
            f"{', ...' if len(short) > 5 else ''}"
        )
    return Part(source, np.sort(np.concatenate(chosen)), f"{count} a class of {source.name}")


@functools.cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    # scikit-learn's own file: to import it takes a second, in every process of a run.
    folder = Path(importlib.util.find_spec("sklearn").submodule_search_locations[0])
    with gzip.open(folder / "datasets" / "data" / "digits.csv.gz", "rt") as file:
        rows = np.loadtxt(file, delimiter=",")  # (1797, 64 grey levels up to 16, label)
    images = np.round(rows[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    return images, rows[:, -1].astype(np.int64)


class Encoded(Source):
    """A source whose images are kept as files of some format: `_read(i)` is (bytes, label), and
    the depth where there is one."""

    # What a person writes to do without corrupt images; empty where nobody can do without.
    skip_with = "config.data.corrupt=skip"

    @staticmethod
    def say(text: str) -> None:
        """Tells a person about an image that was left out."""
        print(text, file=sys.stderr, flush=True)

    def __init__(self, data: Any):
        super().__init__()
        self._channels, self._skip = data.channels, data.corrupt == "skip"
        self.kinds: collections.Counter[str] | None = None  # what was decoded, if it is counted

    def needs_all(self) -> None:
        self.skip_with = ""

    def _read(self, index: int) -> tuple:
        raise NotImplementedError

    def encoded(self, index: int) -> bytes:
        """The bytes of an image's file."""
        return self._read(index)[0]

    def __getitem__(self, index: int) -> tuple | None:
        return self.view(index, None)

    def view(self, index: int, choose: Callable[[tuple[int, int]], View] | None) -> tuple | None:
        try:
            return self._decoded(index, choose)
        except Undecodable as error:
            self._leave_out(index, error)
            return None

    def readable(self, index: int, choose: Callable[[tuple[int, int]], View]) -> bool:
        try:
            self._decoded(index, choose)
        except Undecodable:
            return False
        return True

    def _decoded(self, index: int, choose: Callable[[tuple[int, int]], View] | None) -> tuple:
        try:
            data, label, *depth = self._read(index)
            image = decode(data, self._channels, choose)
            if self.kinds is not None:
                self.kinds[kind(data)] += 1
            if choose:
                depth = [choose(x.shape).nearest(x) for x in depth]
            return image, label, *depth
        except OSError as error:  # what the disk does not give is not corrupt: it may come back
            name, reason = self.example_name(index), error.strerror or error
            raise StorageError(f"{name} cannot be read: {reason}") from None

    def _leave_out(self, index: int, error: Exception) -> None:
        """Refuses a corrupt example, or counts it, as the config says."""
        name = self.example_name(index)
        reason = str(error).partition(": '")[0]
        if not self._skip:
            advice = f"{self.skip_with} leaves such images out" if self.skip_with else ""
            raise StorageError(
                f"{name} cannot be decoded ({reason}); {advice or 'mend it, or remove it'}"
            ) from None
        if self.note_corrupt(name):
            self.say(f"skipped a corrupt image: {name} ({reason})")


def data_dir(path: str) -> Path:
    """Where prepared sets lie: the given path, $TFDS_DATA_DIR, or TFDS's own default."""
    default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return Path(path or default).expanduser()
