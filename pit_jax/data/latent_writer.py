"""Writes a store of latents (see latents.py), shard by shard, and goes on where it stopped."""

from pathlib import Path
from typing import Any

import numpy as np

from pit_jax.data import store_writer
from pit_jax.data.latents import DTYPE, KIND, Manifest, local
from pit_jax.data.store import LABEL
from pit_jax.errors import ConfigError


class Writer(store_writer.Writer):
    """Writes one split of a store of latents.

    Args:
      directory: made if it is not there.
      manifest: what is written.
      split: its name.
      count: examples of the split.
      shards: files that they are shared out to.

    Raises:
      ConfigError: if the directory is a URL or holds other latents than the manifest says,
        naming the field, or more shards are asked for than there are examples.
      StorageError: if it cannot be written.
    """

    def __init__(
        self, directory: str | Path, manifest: Manifest, split: str, count: int, shards: int
    ):
        manifest.normalisation.check_channels(manifest.shape[-1])
        self.manifest = manifest
        super().__init__(local(directory), KIND, manifest.as_json(), split, count, shards)

    def compared(self, wanted: dict[str, Any], there: dict[str, Any]) -> dict[str, Any]:
        # Equal weights make equal latents, whichever file they came from; a store of old does not
        # say its weights, and is known by the file.
        said = there.get("weights_sha256") or ""
        free = {"versions"} if "classes" in there else {"versions", "classes"}
        if not said:
            free |= {"weights_sha256"}
        elif said == wanted["weights_sha256"]:
            free |= {"autoencoder", "autoencoder_sha256"}
        return {name: value for name, value in wanted.items() if name not in free}

    def record(self, array: np.ndarray, label: int, name: str) -> bytes:
        if array.shape != self.manifest.record_shape():
            raise ConfigError(
                f"{name}: latents of shape {array.shape}, the manifest says"
                f" {self.manifest.record_shape()}"
            )
        if not 0 <= label < self.manifest.num_classes:
            raise ConfigError(
                f"{name}: label {label} is not in 0 … {self.manifest.num_classes - 1}"
            )
        with np.errstate(over="ignore"):
            half = np.asarray(array).astype(DTYPE)
        if not np.isfinite(half).all():
            raise ConfigError(
                f"{name}: latents up to {np.abs(array).max():g} are not finite in float16"
            )
        return np.asarray(label, LABEL).tobytes() + half.tobytes()
