"""A store of latents: what an autoencoder made of a set of images, once, for all epochs.

Files are as store.py says, the manifest is latents.json. A record is the label (int32), then
float16 numbers of shape (flips, 2, h, w, c): for the image and, if flips is 2, its mirror
image, the mean and the standard deviation of the latents, not normalised. Both are kept so
that every epoch can draw another sample.

`latent_writer.Writer` writes it. Neither knows a model: whoever encodes hands over arrays,
whoever trains normalises them.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pit_jax.data import store
from pit_jax.data.sources import Source
from pit_jax.errors import ConfigError, StorageError
from pit_jax.models.normalisation import Normalisation

MANIFEST = "latents.json"
KIND = store.Kind(MANIFEST, noun="latents", one="latents", verb="encode")
DTYPE = np.dtype("<f2")


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
      classes: names of them by number; () where the set or a store of old does not say them.
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
    classes: Sequence[str] = ()

    def record_shape(self) -> tuple[int, ...]:
        """(flips, 2, h, w, c) of one record's numbers."""
        return (self.flips, 2, *self.shape)

    def as_json(self) -> dict[str, Any]:
        """What latents.json says of it."""
        fixed = {"schema": store.SCHEMA, "dtype": DTYPE.name}
        return json.loads(json.dumps(fixed | dataclasses.asdict(self)))


class LatentSource(Source):
    """The latents of a finished split: source[i] is (array, label).

    The array is (flips, 2, h, w, c) float16: mean and standard deviation, not normalised.

    Args:
      directory: what `Writer` wrote.
      split: of it.

    Attributes:
      manifest: what the latents are.
      normalisation: what a diffusion model should see them through.

    Raises:
      ConfigError: if there is no such split, it is not finished, or the manifest lacks a field.
      StorageError: if a file is missing or not as long as it was, or the labels are others.
    """

    def __init__(self, directory: str | Path, split: str):
        super().__init__()
        root = local(directory)
        whole = read_manifest(root)
        self.manifest = _manifest(root, whole)
        self.normalisation = self.manifest.normalisation
        self.num_classes, self.classes = self.manifest.num_classes, self.manifest.classes
        self.native_shape, self.record_shape = self.manifest.shape[:2], self.manifest.record_shape()
        self.name = f"{self.manifest.image_set}/{split} in {root}"
        self._split = store.Split(root, KIND, split, self.name, "encode that split again")

    def __len__(self) -> int:
        return self._split.count

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"there are no latents {index} of {len(self)}")
        label, content = self._split.record(index)
        shape = self.manifest.record_shape()
        if len(content) != int(np.prod(shape)) * DTYPE.itemsize:
            raise StorageError(f"{self.name}: latents {index} are {len(content)} bytes long")
        return np.frombuffer(content, DTYPE).reshape(shape), label

    def labels(self) -> np.ndarray:
        return self._split.labels()

    def verify(self) -> None:
        """Reads every file and compares its checksum.

        Raises:
          StorageError: naming the first that differs, and how many do.
        """
        self._split.verify()


def local(directory: str | Path) -> Path:
    """`store.local` of latents."""
    return store.local(directory, KIND)


def manifest(directory: str | Path) -> Manifest | None:
    """What the latents of a directory are; None if there are none."""
    root = local(directory)
    there = directory and (root / KIND.manifest).exists()
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
    """`store.read_manifest` of latents."""
    return store.read_manifest(root, KIND)


def _manifest(root: Path, whole: dict[str, Any]) -> Manifest:
    """The manifest that latents.json holds."""
    names = [field.name for field in dataclasses.fields(Manifest)]
    store.check_says(root, KIND, whole, names[: names.index("encoder_dtype")])  # old say no more
    parts = whole["normalisation"]
    if not isinstance(parts, dict) or set(parts) != {"shift", "scale"}:
        store.check_says(root, KIND, {}, ["normalisation"])
    if whole.get("dtype") != DTYPE.name:
        raise ConfigError(
            f"{root / KIND.manifest}: dtype {whole.get('dtype')!r} is not {DTYPE.name!r}"
        )
    values = {name: whole[name] for name in names if name in whole}
    values |= {"shape": tuple(whole["shape"]), "normalisation": Normalisation(**parts)}
    values["classes"] = tuple(values.get("classes", ()))
    return Manifest(**values)
