"""Where images come from: random access by number, one image in its own size at a time.

digits      scikit-learn's handwritten digits, always at hand
folder      data.dir/<split>/<class>/<image file>
latents     what `pit-jax data latents` made of a set, in data.dir; see latents.py
NAME        any TensorFlow Datasets set, prepared as ArrayRecord, read without TensorFlow
"""

import difflib
import functools
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pit_jax.data.known import KNOWN
from pit_jax.errors import ConfigError, StorageError

_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp")
_HELD_OUT = 360  # of the 1797 digits


class Source:
    """len(source) examples; source[i] is ((H, W, C) uint8, label), or None if corrupt.

    source.labels() are all labels, (len,), read without decoding an image.

    Attributes:
      name: for messages.
      num_classes: as the set itself says.
      native_shape: (H, W) if every image is known to have it, else None.
      record_shape: of float16 numbers that are stored instead of an image, else None.
      corrupt: files found undecodable so far, where the config says to skip them.
    """

    name = ""
    num_classes = 0
    native_shape: tuple[int, int] | None = None
    record_shape: tuple[int, ...] | None = None

    def __init__(self) -> None:
        self.corrupt: list[str] = []


def load(data: Any, split: str) -> Source:
    """The source that a config's `data` group names.

    Raises:
      ConfigError: if the set, the split or the class count is not there, saying what is.
    """
    if data.name == "digits":
        source: Source = Digits(split)
    elif data.name == "folder":
        source = Folder(data, split)
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
        source = TensorFlowDataset(data, split)
    if source.num_classes != data.num_classes:
        raise ConfigError(
            f"config.data.num_classes={data.num_classes}, but {source.name} has"
            f" {source.num_classes} classes"
        )
    return source


def training(data: Any) -> Source:
    """The source that a config trains on: its training split, or `data.per_class` of it.

    Raises:
      ConfigError: as `load`, and if a class has fewer examples.
    """
    source = load(data, data.split)
    return few(source, data.per_class, data.per_class_seed) if data.per_class else source


def num_examples(data: Any, split: str) -> int | None:
    """Size of a split if it is known without the data, else None."""
    if data.per_class and split == data.split:
        return data.per_class * data.num_classes
    known = KNOWN.get(data.name.partition(":")[0])
    return known.splits.get(split) if known else None


def native_shape(data: Any) -> tuple[int, int] | None:
    """(H, W) of every image, if that is known without the data, else None."""
    known = KNOWN.get(data.name.partition(":")[0])
    return (known.side, known.side) if known and known.side else None


class Digits(Source):
    """1797 scans of handwritten digits, 8×8, 16 grey levels; a fixed 360 are the test set."""

    native_shape = (8, 8)
    num_classes = 10

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
        self.native_shape, self.record_shape = whole.native_shape, whole.record_shape
        self.corrupt = whole.corrupt

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int] | None:
        return self.whole[int(self._numbers[index])]

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
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    return images, digits.target


class Folder(Source):
    """data.dir/<split>/<class>/<file>; classes are the folders of the training split."""

    def __init__(self, data: Any, split: str):
        super().__init__()
        root = Path(data.dir)
        self.name = f"{root / split}"
        self._channels, self._skip = data.channels, data.corrupt == "skip"
        classes = _class_folders(root / data.split)
        self.num_classes = len(classes)
        self._files: list[tuple[Path, int]] = []
        for folder in _class_folders(root / split):
            if folder not in classes:
                raise ConfigError(
                    f"{root / split} has a class folder {folder!r} that {root / data.split} has not"
                )
            files = sorted((root / split / folder).iterdir())
            label = classes.index(folder)
            self._files += [(f, label) for f in files if f.suffix.lower() in _SUFFIXES]
        if not self._files:
            raise ConfigError(f"{root / split} holds no images ({', '.join(_SUFFIXES)})")

    def __len__(self) -> int:
        return len(self._files)

    def labels(self) -> np.ndarray:
        return np.array([label for _, label in self._files])

    def __getitem__(self, index: int) -> tuple[np.ndarray, int] | None:
        from PIL import Image

        path, label = self._files[index]
        try:
            with Image.open(path) as image:
                return _as_channels(image, self._channels), label
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            reason = str(error).partition(": <")[0].partition(" '")[0]
            if not self._skip:
                raise StorageError(
                    f"{path} cannot be decoded ({reason}); config.data.corrupt=skip leaves such"
                    " images out"
                ) from None
            # Named where it is found: a worker process's list stays in that process.
            if str(path) not in self.corrupt:
                self.corrupt.append(str(path))
                print(f"skipped a corrupt image: {path} ({reason})", file=sys.stderr, flush=True)
            return None


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


def _as_channels(image: Any, channels: int) -> np.ndarray:
    """A PIL image of any mode as (H, W, channels) uint8; transparency becomes white."""
    from PIL import Image

    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    array = np.asarray(image.convert("RGB" if channels == 3 else "L"))
    return array.reshape(*array.shape[:2], channels)


class TensorFlowDataset(Source):
    """A set of TensorFlow Datasets in ArrayRecord files, through tfds.data_source."""

    def __init__(self, data: Any, split: str):
        super().__init__()
        self.name = f"{data.name}/{split}"
        builder = _builder(data)
        keys = builder.info.supervised_keys
        if not keys or len(keys) != 2:
            raise ConfigError(f"{data.name} is no set of images and labels")
        self._image, self._label = keys
        features = builder.info.features
        self.num_classes = features[self._label].num_classes
        height, width = features[self._image].shape[:2]
        self.native_shape = (height, width) if height and width else None
        self._channels = data.channels
        self._builder, self._split = builder, split
        try:
            self._rows = builder.as_data_source(split=split)
        except (ValueError, KeyError, AssertionError):
            splits = ", ".join(sorted(builder.info.splits))
            raise ConfigError(f"{data.name} has the splits {splits}, not {split!r}") from None

    def __len__(self) -> int:
        return len(self._rows)

    def labels(self) -> np.ndarray:
        import tensorflow_datasets as tfds

        decoders = {self._image: tfds.decode.SkipDecoding()}
        rows = self._builder.as_data_source(split=self._split, decoders=decoders)
        return np.array([int(rows[i][self._label]) for i in range(len(rows))])

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        row = self._rows[index]
        image = np.asarray(row[self._image])
        if image.shape[-1] != self._channels:
            from PIL import Image

            image = _as_channels(Image.fromarray(image.squeeze()), self._channels)
        return image, int(row[self._label])


def data_dir(path: str) -> Path:
    """Where prepared sets lie: the given path, $TFDS_DATA_DIR, or TFDS's own default."""
    default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return Path(path or default).expanduser()


def _builder(data: Any) -> Any:
    """The builder of the newest prepared version of a set."""
    name, _, version = data.name.partition(":")
    root = data_dir(data.dir)
    found = sorted(
        (p.parent for p in (root / name).glob("**/dataset_info.json")),
        key=lambda p: [int(n) if n.isdigit() else -1 for n in p.name.split(".")],
    )
    found = [p for p in found if not version or p.name == version]
    if not found:
        raise ConfigError(_how_to_prepare(name, root))
    logging.getLogger("absl").setLevel(logging.ERROR)
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(found[-1])
    except Exception as error:  # its readers raise many kinds for a half-written set
        text = " ".join(str(error).split())[:200]
        raise ConfigError(f"data set {found[-1]} cannot be read: {text}") from None
    if builder.info.file_format is not tfds.core.FileFormat.ARRAY_RECORD:
        raise ConfigError(
            f"{found[-1]} is in {builder.info.file_format.value} format, which needs TensorFlow:"
            f" prepare it as ArrayRecord with `pit-jax data prepare {name} --data-dir DIR`"
        )
    return builder


def _how_to_prepare(name: str, root: Path) -> str:
    known = KNOWN.get(name)
    size = f" ({known.gigabytes:g} GB)" if known else ""
    near = difflib.get_close_matches(name, [*KNOWN, "folder"], n=1, cutoff=0.7)
    hint = f" (did you mean {near[0]}?)" if near and not known else ""
    return (
        f"data set {name} is not in {root}{hint}. Prepare it{size} with"
        f" `pit-jax data prepare {name} --data-dir {root}` (needs pip install 'pit_jax[prepare]')"
    )
