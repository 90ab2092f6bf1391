"""A store of latents: what an autoencoder made of a set of images, once, for all epochs.

    latents.json                          the manifest: what was encoded, how, and checksums
    train-00000-of-00016.array_record     one record an image: its label, then its latents
    train-labels.npy                      all labels, so that they are read without latents
    train-00003-of-00016.json             of a shard finished while others are not yet

A record is the label (int32), then float16 numbers of shape (flips, 2, h, w, c): for the
image and, if flips is 2, its mirror image, the mean and the standard deviation of the
latents, not normalised. Both are kept so that every epoch can draw another sample.

`latent_writer.Writer` writes it. Neither knows a model: whoever encodes hands over arrays,
whoever trains normalises them.
"""

import dataclasses
import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pit_jax.data.sources import Source
from pit_jax.errors import ConfigError, StorageError
from pit_jax.files import sha256
from pit_jax.models.normalisation import Normalisation

MANIFEST = "latents.json"
_SCHEMA = 1
DTYPE = np.dtype("<f2")
LABEL = np.dtype("<i4")


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What the latents of a directory are, the same for all its splits.

    Attributes:
      image_set: the data set's name.
      image_size: side of the square images that were encoded, in pixels.
      num_classes: that its labels count.
      shape: (h, w, c) of one image's latents.
      flips: 1, or 2 if the mirror image was encoded, too.
      autoencoder: its name.
      autoencoder_sha256: of its file of weights, as sha256sum prints it.
      normalisation: what a diffusion model should see is `normalisation.apply(latents)`.
      encoder_dtype: of the encoder's products; "" where a store of old does not say it.
      source: the directory that the images were read from, "" if the set needs none.
      resize: how images came to their size.
      versions: of the packages that began the store, recorded but never compared.
      weights_sha256: of the autoencoder's weights, whatever file holds them; "" where a store
        of old does not say it.
    """

    image_set: str
    image_size: int
    num_classes: int
    shape: tuple[int, int, int]
    flips: int
    autoencoder: str
    autoencoder_sha256: str
    normalisation: Normalisation
    encoder_dtype: str = ""
    source: str = ""
    resize: str = ""
    versions: Mapping[str, str | None] = dataclasses.field(default_factory=dict, compare=False)
    weights_sha256: str = ""

    def record_shape(self) -> tuple[int, ...]:
        """(flips, 2, h, w, c) of one record's numbers."""
        return (self.flips, 2, *self.shape)

    def as_json(self) -> dict[str, Any]:
        """What latents.json says of it."""
        fixed = {"schema": _SCHEMA, "dtype": DTYPE.name}
        return json.loads(json.dumps(fixed | dataclasses.asdict(self)))


class LatentSource(Source):
    """The latents of a finished split: source[i] is (array, label).

    The array is (flips, 2, h, w, c) float16: mean and standard deviation, not normalised.

    Args:
      directory: what `Writer` wrote.
      split: of it.
      autoencoder_sha256: of what decodes samples later, its file's or its weights'; None does
        not compare.

    Attributes:
      manifest: what the latents are.
      normalisation: what a diffusion model should see them through.

    Raises:
      ConfigError: if there is no such split, it is not finished, or was made by another
        autoencoder, or the manifest lacks a field.
      StorageError: if a file is missing or not as long as it was, or the labels are others.
    """

    def __init__(self, directory: str | Path, split: str, autoencoder_sha256: str | None = None):
        super().__init__()
        root = local(directory)
        whole = read_manifest(root)
        self.manifest = _manifest(root, whole)
        self.normalisation = self.manifest.normalisation
        self.num_classes = self.manifest.num_classes
        self.native_shape, self.record_shape = self.manifest.shape[:2], self.manifest.record_shape()
        self.name = f"{self.manifest.image_set}/{split} in {root}"
        theirs = self.manifest.autoencoder_sha256
        if autoencoder_sha256 not in (None, theirs, self.manifest.weights_sha256):
            raise ConfigError(
                f"{root} was encoded by {self.manifest.autoencoder} ({theirs[:12]}…), not by the"
                f" autoencoder named ({autoencoder_sha256[:12]}…): encode again, or name that one"
            )
        splits = whole["splits"]
        if split not in splits:
            listed = ", ".join(sorted(splits)) or "none"
            raise ConfigError(f"{root} has no split {split!r} of latents, but: {listed}")
        if not splits[split]["files"]:
            raise ConfigError(f"{root}: split {split!r} is not finished, encode it to the end")
        self._root, self._split, self._files = root, split, splits[split]["files"]
        for name, facts in self._files.items():
            try:
                size = (root / name).stat().st_size
            except OSError as error:
                raise StorageError(
                    f"{root / name} cannot be read: {error.strerror or error}"
                ) from None
            if size != facts["bytes"]:
                raise StorageError(f"{root / name} has {size} bytes, not {facts['bytes']}")
        self.labels()  # small, and what a class is told by: damage should not be trained on
        self._count, shards = splits[split]["count"], splits[split]["shards"]
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        paths = []
        for shard in range(shards):
            first, last = shard * self._count // shards, (shard + 1) * self._count // shards
            # With the counts in the name no file is opened before it is read.
            paths.append(f"{root / shard_name(split, shard, shards)}[0:{last - first}]")
        self._records = ArrayRecordDataSource(paths)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        if not 0 <= index < self._count:
            raise IndexError(f"{index} is none of {self._count} latents")
        try:
            record = self._records[index]
        except (OSError, RuntimeError, ValueError) as error:
            text = " ".join(str(error).split())[:200]
            raise StorageError(f"{self.name}: latents {index} cannot be read: {text}") from None
        shape = self.manifest.record_shape()
        if len(record) != LABEL.itemsize + int(np.prod(shape)) * DTYPE.itemsize:
            raise StorageError(f"{self.name}: latents {index} are {len(record)} bytes long")
        label = int(np.frombuffer(record, LABEL, 1)[0])
        return np.frombuffer(record, DTYPE, offset=LABEL.itemsize).reshape(shape), label

    def labels(self) -> np.ndarray:
        path = self._root / f"{self._split}-labels.npy"
        try:
            content = path.read_bytes()
        except OSError as error:
            raise StorageError(f"{path} cannot be read: {error.strerror or error}") from None
        written = self._files.get(path.name, {}).get("sha256")
        if hashlib.sha256(content).hexdigest() != written:
            raise StorageError(
                f"{path} is not what was written: encode that split again, which reads the"
                " labels off its other files"
            )
        return np.load(io.BytesIO(content), allow_pickle=False)

    def verify(self) -> None:
        """Reads every file and compares its checksum.

        Raises:
          StorageError: naming the first that differs, and how many do.
        """
        wrong = [
            name for name, facts in self._files.items() if facts_of(self._root / name) != facts
        ]
        if wrong:
            raise StorageError(
                f"{self._root}: {len(wrong)} of {len(self._files)} files are not what was"
                f" written, {wrong[0]} first: encode that split again"
            )


def shard_name(split: str, shard: int, shards: int) -> str:
    """As TensorFlow Datasets names them."""
    return f"{split}-{shard:05d}-of-{shards:05d}.array_record"


def local(directory: str | Path) -> Path:
    """The directory of a store.

    Raises:
      ConfigError: for a URL, of which a path would be a folder beside the program.
    """
    if "://" in str(directory):
        raise ConfigError(
            f"{directory} is no local directory, and latents are read and written in one only:"
            " mount the bucket, or copy the store, and name its path"
        )
    return Path(directory)


def manifest(directory: str | Path) -> Manifest | None:
    """What the latents of a directory are; None if there are none."""
    root = local(directory)
    there = directory and (root / MANIFEST).exists()
    return read(root) if there else None


def read(directory: str | Path) -> Manifest:
    """What the latents of a directory are.

    Raises:
      ConfigError: if there are none, or the manifest lacks a field.
      StorageError: if it is damaged.
    """
    root = local(directory)
    return _manifest(root, read_manifest(root))


def count(directory: str | Path, split: str) -> int | None:
    """Examples of a split, be it finished or not; None if there is no such split."""
    found = read_manifest(local(directory))["splits"].get(split)
    return found["count"] if found else None


def read_manifest(root: Path) -> dict[str, Any]:
    """What latents.json says.

    Raises:
      ConfigError: if there is none, or of another schema.
      StorageError: if it is damaged.
    """
    path = root / MANIFEST
    try:
        whole = json.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"{root} holds no latents: it has no {MANIFEST}") from None
    except (OSError, ValueError) as error:
        raise StorageError(f"{path} cannot be read: {error}") from None
    if not isinstance(whole, dict) or whole.get("schema") != _SCHEMA:
        raise ConfigError(f"{path} is not of schema {_SCHEMA}, the one that is read here")
    return {"splits": {}} | whole


def _manifest(root: Path, whole: dict[str, Any]) -> Manifest:
    """The manifest that latents.json holds."""
    names = [field.name for field in dataclasses.fields(Manifest)]
    needed = names[: names.index("encoder_dtype")]  # stores of old say no more
    lacking = [name for name in needed if name not in whole]
    parts = whole.get("normalisation")
    if not lacking and (not isinstance(parts, dict) or set(parts) != {"shift", "scale"}):
        lacking = ["normalisation"]
    if lacking:
        raise ConfigError(
            f"{root / MANIFEST} does not say its {', '.join(lacking)}: encode the images again"
        )
    if whole.get("dtype") != DTYPE.name:
        raise ConfigError(f"{root / MANIFEST}: dtype {whole.get('dtype')!r} is not {DTYPE.name!r}")
    values = {name: whole[name] for name in names if name in whole}
    values |= {"shape": tuple(whole["shape"]), "normalisation": Normalisation(**parts)}
    return Manifest(**values)


def facts_of(path: Path) -> dict[str, Any]:
    """What the manifest keeps of a file: its SHA-256 sum and size."""
    return {"sha256": sha256(path), "bytes": path.stat().st_size}
