"""Sets that TensorFlow Datasets has prepared as ArrayRecord, read without TensorFlow."""

import difflib
import logging
from pathlib import Path
from typing import Any

import numpy as np

from pit_jax import installation
from pit_jax.data.decode import Undecodable
from pit_jax.data.known import KNOWN
from pit_jax.data.sources import Encoded, data_dir
from pit_jax.errors import ConfigError, StorageError


class NotPrepared(ConfigError):
    """A set of TensorFlow Datasets is not where it is looked for."""


class TensorFlowDataset(Encoded):
    """A set of TensorFlow Datasets in ArrayRecord files, through tfds.data_source."""

    def __init__(self, data: Any, split: str):
        super().__init__(data)
        self.name = f"{data.name}/{split}"
        builder = _builder(data)
        self.version = str(builder.version)
        import tensorflow_datasets as tfds

        keys = builder.info.supervised_keys or ()
        features = builder.info.features
        kinds = [features[key] for key in keys]
        if len(keys) != 2 or type(kinds[0]) is not tfds.features.Image:
            raise ConfigError(f"{data.name} is no set of images and labels")
        if kinds[0].np_dtype == np.float32:  # kept as the four bytes of each, in a PNG's colours
            raise ConfigError(
                f"images of {data.name} are of float32 levels, whose range is not known: prepare"
                " them with levels of 8 or 16 bits"
            )
        self._image, self._label = keys
        self.has_depth = type(kinds[1]) is tfds.features.Tensor and len(kinds[1].shape) == 2
        if isinstance(kinds[1], tfds.features.ClassLabel):
            self.num_classes, self.classes = kinds[1].num_classes, tuple(kinds[1].names)
        elif not self.has_depth:
            raise ConfigError(f"{data.name} is no set of images and labels")
        height, width, self.channels = features[self._image].shape
        self.native_shape = (height, width) if height and width else None
        # Its own decoder would make whole images of them.
        decoders = {self._image: tfds.decode.SkipDecoding()}
        try:
            self._rows = builder.as_data_source(split=split, decoders=decoders)
        except (ValueError, KeyError, AssertionError):
            splits = ", ".join(sorted(builder.info.splits))
            raise ConfigError(f"{data.name} has the splits {splits}, not {split!r}") from None
        # A record that is not there would else count as a corrupt image.
        files = [Path(path) for path in builder.info.splits[split].filepaths]
        if missing := [path for path in files if not path.exists()]:
            raise StorageError(
                f"{self.name} lacks {len(missing)} of its {len(files)} files, {missing[0]} first:"
                " it was prepared or copied in part"
            )

    def __len__(self) -> int:
        return len(self._rows)

    def labels(self) -> np.ndarray:
        """Of a record that cannot be read and is to be skipped −1, which is no class's."""
        if self.has_depth:
            return np.zeros(len(self), np.int64)

        def label(index: int) -> int:
            try:
                return self._read(index)[1]
            except Undecodable as error:
                self._leave_out(index, error)
                return -1

        return np.array([label(index) for index in range(len(self))])

    def _read(self, index: int) -> tuple:
        try:
            row = self._rows[index]
        except RuntimeError as error:  # ArrayRecord's, of a checksum for instance
            raise Undecodable(str(error).partition(" (")[0]) from None
        if self.has_depth:
            return row[self._image], 0, np.asarray(row[self._label], np.float32)
        return row[self._image], int(row[self._label])


def splits(data: Any) -> list[str]:
    """Names of the splits of a prepared set."""
    return sorted(_builder(data).info.splits)


def _builder(data: Any) -> Any:
    """The builder of the newest prepared version of a set."""
    name, _, version = data.name.partition(":")
    root = data_dir(data.dir)
    found = sorted(
        (
            p.parent
            for p in (root / name).glob("**/dataset_info.json")
            if ".incomplete" not in p.parent.name  # while it is prepared
        ),
        key=lambda p: [int(n) if n.isdigit() else -1 for n in p.name.split(".")],
    )
    found = [p for p in found if not version or p.name == version]
    if not found:
        raise NotPrepared(_how_to_prepare(name, root))
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
        f" `pit-jax data prepare {name} --data-dir {root}` (needs {installation.extra('prepare')})"
    )
