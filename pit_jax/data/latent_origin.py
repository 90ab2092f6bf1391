"""Whose latents a run learns: what identity.py keeps of the store, and what must agree.

A diffusion model knows latents only as one autoencoder made them and one normalisation
scaled them. Where the store lies and where the autoencoder's file lies may change between
starts; what they hold may not, or the model goes on learning something else.
"""

import dataclasses
from typing import Any

from pit_jax.data import latents
from pit_jax.errors import ConfigError
from pit_jax.models.normalisation import Normalisation
from pit_jax.weights import autoencoder


@dataclasses.dataclass(frozen=True)
class Origin:
    """Attributes:
    autoencoder, autoencoder_sha256: its name, and of its file of weights.
    normalisation: what the model sees the latents through.
    image_set, image_size: of the images, in pixels; kept for people.
    weights_sha256: of the autoencoder's weights, whatever file holds them; "" where a store or
      a run of old does not say it.
    """

    autoencoder: str
    autoencoder_sha256: str
    normalisation: Normalisation
    image_set: str
    image_size: int
    weights_sha256: str = ""

    def is_of(self, sha256: str, weights_sha256: str) -> bool:
        """Whether that autoencoder made them: by its weights where both are known, else by the
        file that they came from."""
        if self.weights_sha256 and weights_sha256:
            return self.weights_sha256 == weights_sha256
        return self.autoencoder_sha256 == sha256

    def check_same(self, other: "Origin", here: str, there: str) -> None:
        """Refuses latents that a model which learnt `other`'s does not know.

        Args:
          here, there: where the two lie.

        Raises:
          ConfigError: if they are of another autoencoder, or normalised otherwise.
        """
        if not self.is_of(other.autoencoder_sha256, other.weights_sha256):
            raise ConfigError(
                f"config.data.dir={here} was encoded by {self._named()}, but {there} was trained"
                f" on latents of {other._named()}: name a store of that one"
            )
        if self.normalisation != other.normalisation:
            raise ConfigError(
                f"config.data.dir={here} has {self.normalisation}, but {there} was trained with"
                f" {other.normalisation}: name the store that it was trained on"
            )

    def __str__(self) -> str:
        return f"{self._named()} with {self.normalisation}"

    def _named(self) -> str:
        return f"{self.autoencoder} ({self.autoencoder_sha256[:12]})"


def of_manifest(manifest: latents.Manifest) -> Origin:
    """Of the store whose manifest it is."""
    names = [field.name for field in dataclasses.fields(Origin)]
    return Origin(**{name: getattr(manifest, name) for name in names})


def of_store(data: Any) -> Origin | None:
    """Of the store that a config's `data` group names; None if there is none."""
    found = latents.manifest(data.dir)
    return of_manifest(found) if found else None


def of_json(values: dict[str, Any]) -> Origin:
    """What a run's directory says of its latents.

    Raises:
      TypeError, KeyError, ConfigError: if it says something else.
    """
    return Origin(**values | {"normalisation": Normalisation(**values["normalisation"])})


def load_autoencoder(config: Any, origin: Origin | None) -> autoencoder.Loaded:
    """The autoencoder that `config.autoencoder.weights` names, if it is that of the latents.

    Args:
      origin: of the latents; None compares only what the config says.

    Raises:
      ConfigError: if it is another one, has another normalisation or number of channels.
      StorageError: if the file is damaged.
    """
    path = config.autoencoder.weights
    found = autoencoder.find(path)
    if origin and not origin.is_of(found.sha256, found.weights_sha256):
        raise ConfigError(
            f"config.autoencoder.weights={path} is not {origin._named()}, which made the latents"
            f" of {origin.image_set} that the model knows: name that one"
        )
    # They were normalised as their store says, wherever the weights came from.
    loaded = found.loaded(origin.normalisation if origin else None)
    if loaded.model.latent != config.data.channels:
        raise ConfigError(
            f"config.autoencoder.weights={path} has latents of {loaded.model.latent} channels,"
            f" but config.data.channels={config.data.channels}"
        )
    return loaded
