"""Whose latents a run learns: what its directory keeps of the store, and what must agree.

A diffusion model knows latents only as one autoencoder made them and one normalisation
scaled them. Where the store lies and where the autoencoder's file lies may change between
starts; what they hold may not, or the model goes on learning something else.
"""

import dataclasses
import json
from typing import Any

from pit_jax.data import latents
from pit_jax.errors import ConfigError, StorageError
from pit_jax.models.normalisation import Normalisation
from pit_jax.rundir import RunDir
from pit_jax.weights import autoencoder

FILE = "latents.json"  # in a run's directory


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


def of_run(run: RunDir) -> Origin | None:
    """What a run's directory keeps; None if it keeps nothing.

    Raises:
      StorageError: if the file is damaged.
    """
    path = run.path / FILE
    if not path.exists():
        return None
    try:
        values = json.loads(path.read_text())
        return Origin(**values | {"normalisation": Normalisation(**values["normalisation"])})
    except (OSError, ValueError, TypeError, KeyError, ConfigError) as error:
        text = " ".join(str(error).split())
        raise StorageError(f"{path} cannot be read: {text}") from None


def keep(run: RunDir, origin: Origin | None) -> None:
    """Writes it into the run's directory, unless it lies there already.

    Raises:
      StorageError: if it cannot be written.
    """
    if origin and not (run.path / FILE).exists():
        run.write(FILE, json.dumps(dataclasses.asdict(origin), indent=2) + "\n")


def check_start(config: Any, run: RunDir) -> Origin | None:
    """Refuses a training that cannot be, before anything of it is written.

    Reads the autoencoder's whole file where the config names one.

    Args:
      config: resolved; on anything but latents there is nothing to check.
      run: where it shall be trained, new or begun.

    Returns:
      What `keep` keeps.

    Raises:
      ConfigError: if there is no store, or it is not what the run, or that of
        `config.resume`, was trained on, or not of `config.autoencoder.weights`.
      StorageError: if a file is damaged.
    """
    if config.data.name != "latents":
        return None
    origin = of_manifest(latents.read(config.data.dir))
    for other in (run, *((RunDir(config.resume),) if config.resume else ())):
        if known := of_run(other):
            origin.check_same(known, config.data.dir, str(other.path))
    if config.autoencoder.weights:
        load_autoencoder(config, origin)
    return origin


def difference(config: Any) -> str | None:
    """A warning where a run starts from the weights of one on latents of another kind.

    Fine-tuning may mean to do that, so it is no refusal. Of a file of weights nothing is known.
    """
    if config.data.name != "latents" or not config.init_from:
        return None
    ours, theirs = of_store(config.data), of_run(RunDir(config.init_from))
    if ours is None or theirs is None:
        return None
    same = ours.is_of(theirs.autoencoder_sha256, theirs.weights_sha256)
    if same and ours.normalisation == theirs.normalisation:
        return None
    return (
        f"config.init_from={config.init_from} learnt latents of {theirs}; config.data.dir="
        f"{config.data.dir} holds those of {ours}: what it knows may help little"
    )


def check_restored(config: Any, run: RunDir) -> Origin | None:
    """What a trained run knows of its latents, whether or not the store is there still.

    Raises:
      ConfigError: if there is a store, and of other latents.
      StorageError: if a file is damaged.
    """
    if config.data.name != "latents":
        return None
    stored, known = of_store(config.data), of_run(run)
    if stored and known:
        stored.check_same(known, config.data.dir, str(run.path))
    return known or stored


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
