"""Files of autoencoders: what public ones hold, and our own .safetensors form.

load(path)              diffusers' directory or file, latent diffusion's file, or our own
find(path)              the same, before its normalisation is settled
write(path, ...)        our own form: architecture and normalisation in the metadata
write_diffusers(...)    a directory that diffusers' AutoencoderKL loads
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from pit_jax import files
from pit_jax.errors import ConfigError
from pit_jax.models.autoencoder import AutoencoderKL
from pit_jax.models.normalisation import Normalisation
from pit_jax.weights import autoencoder_names as names
from pit_jax.weights import tensors

_FILE = "diffusion_pytorch_model.safetensors"
_CLASS = "AutoencoderKL"
_FIELDS = ("channels", "layers", "latent", "groups", "image_channels", "attends", "quant_convs")

# What the public autoencoders of 4 latent channels say, or mean where they say nothing. Later
# ones (of SDXL, with 0.13025) have it in their config.json.
_STABLE_DIFFUSION = 0.18215

# config.json → our field, where the tensors must agree with what it says.
_SAID = {
    "block_out_channels": "channels",
    "layers_per_block": "layers",
    "latent_channels": "latent",
    "in_channels": "image_channels",
    "out_channels": "image_channels",
    "mid_block_add_attention": "attends",
    "use_quant_conv": "quant_convs",
    "use_post_quant_conv": "quant_convs",
}


@dataclasses.dataclass(frozen=True)
class Loaded:
    """An autoencoder from a file.

    Attributes:
      model: with dtype "auto".
      params: a nested dict of float32 NumPy arrays.
      normalisation: of its latents.
      sha256: of the file of weights, as sha256sum prints it.
      weights_sha256: of the weights, whatever file holds them, see `weights_sha256`.
      name: of the directory or file it lay in, or was written under.
    """

    model: AutoencoderKL
    params: Any
    normalisation: Normalisation
    sha256: str
    weights_sha256: str
    name: str


@dataclasses.dataclass(frozen=True)
class Found:
    """What a file holds; the fields of `Loaded`, but the normalisation as far as it says one."""

    model: AutoencoderKL
    params: Any
    said: Normalisation | None
    sha256: str
    weights_sha256: str
    name: str
    source: str

    def loaded(self, normalisation: Normalisation | None = None) -> Loaded:
        """With this normalisation, else the one that the file says, else Stable Diffusion's.

        Raises:
          ConfigError: if nothing says it, or file and argument say different ones.
        """
        if self.said and normalisation and not _same(self.said, normalisation):
            raise ConfigError(
                f"{self.source} has {self.said}, another was asked for: {normalisation}"
            )
        chosen = normalisation or self.said
        if chosen is None and self.model.latent == 4:
            chosen = Normalisation(scale=_STABLE_DIFFUSION)
        if chosen is None:
            raise ConfigError(
                f"{self.source} does not say how its {self.model.latent}-channel latents are"
                " scaled: put the config.json with its scaling_factor beside it, or give the"
                " factor"
            )
        chosen.check_channels(self.model.latent)
        same = (self.sha256, self.weights_sha256, self.name)
        return Loaded(self.model, self.params, chosen, *same)


def load(path: epath.PathLike, normalisation: Normalisation | None = None) -> Loaded:
    """An autoencoder from our own file, a diffusers directory or file, or latent diffusion's.

    Sizes are read off the tensors; a config.json beside them tells the groups (else 32) and
    the normalisation (else `normalisation`, else Stable Diffusion's for 4 latent channels).

    Args:
      path: a .safetensors file or a diffusers directory, local or gs://.
      normalisation: for files that do not say theirs.

    Raises:
      ConfigError: if it is no autoencoder that ours can express, a parameter is not finite,
        nothing says the normalisation, or file and argument say different ones.
      StorageError: if a file is damaged.
    """
    return find(path).loaded(normalisation)


def find(path: epath.PathLike) -> Found:
    """What `load` loads, before its normalisation is settled.

    Raises:
      ConfigError: if it is no autoencoder that ours can express, or a parameter is not finite.
      StorageError: if a file is damaged.
    """
    given, source = epath.Path(path), _file(path)
    found, fields = tensors.read(source)
    if fields is not None:
        model, params, said, name = _own(found, fields, str(source))
    else:
        config = _config(source.parent / "config.json", must_fit=given.is_dir())
        groups = config.get("norm_num_groups", 32)
        model, params = names.from_diffusers(found, groups, str(source))
        _check_config(config, model, str(source))
        said, name = _said(config, source), given.name if given.is_dir() else given.stem
    for parameter, value in sorted(tensors.flatten(params).items()):
        if not np.isfinite(value).all():
            raise ConfigError(
                f"{source}: {parameter} is not finite: name another file, the training that left"
                " this one diverged or the file is damaged"
            )
    identity = weights_sha256(model, params)
    return Found(model, params, said, sha256(path), identity, name, str(source))


def weights_sha256(model: AutoencoderKL, params: Mapping) -> str:
    """SHA-256 of what an autoencoder computes with: the same from any file that holds it.

    Over the number of groups, which no weight shows, and of each parameter, sorted by its
    path: path, shape and float32 numbers.
    """
    digest = hashlib.sha256(f"groups {model.groups}\n".encode())
    for path, value in sorted(tensors.flatten(params).items()):
        digest.update(f"{path} {list(value.shape)}\n".encode())
        digest.update(np.ascontiguousarray(value, "<f4").data)
    return digest.hexdigest()


def sha256(path: epath.PathLike) -> str:
    """Of the file of weights that `load` reads, as sha256sum prints it."""
    source = _file(path)
    try:
        return files.sha256(source)
    except OSError as error:
        raise ConfigError(f"{source} cannot be read: {error.strerror or error}") from None


def _file(path: epath.PathLike) -> epath.Path:
    given = epath.Path(path)
    if not given.is_dir():
        return given
    if not (given / _FILE).exists():
        raise ConfigError(
            f"{given} holds no {_FILE}: name the directory (of a pipeline its vae/) or the"
            " .safetensors file"
        )
    return given / _FILE


def write(
    path: epath.PathLike,
    model: AutoencoderKL,
    params: Mapping,
    normalisation: Normalisation,
    name: str,
) -> None:
    """Writes our own .safetensors form, which `load` reads without anything beside it.

    Args:
      path: local or gs://.
      model, params: the autoencoder.
      normalisation: of its latents.
      name: what people call it; kept in the file.

    Raises:
      ConfigError: if parameters or normalisation do not belong to the model.
      StorageError: if the file cannot be written.
    """
    flat = tensors.flatten(params)
    names.check(flat, names.shapes(model), "the autoencoder to write")
    normalisation.check_channels(model.latent)
    fields = {"task": "autoencoder", "name": name}
    fields |= {f"autoencoder.{field}": getattr(model, field) for field in _FIELDS}
    fields |= {f"normalisation.{k}": v for k, v in dataclasses.asdict(normalisation).items()}
    tensors.write(path, flat, fields)


def write_diffusers(
    directory: epath.PathLike, model: AutoencoderKL, params: Mapping, normalisation: Normalisation
) -> None:
    """Writes a directory that diffusers' `AutoencoderKL.from_pretrained` loads.

    Raises:
      ConfigError: if parameters or normalisation do not belong to the model.
      StorageError: if a file cannot be written.
    """
    names.check(tensors.flatten(params), names.shapes(model), "the autoencoder to write")
    normalisation.check_channels(model.latent)
    root = epath.Path(directory)
    tensors.write(root / _FILE, names.to_diffusers(params))
    text = json.dumps(diffusers_config(model, normalisation), indent=2) + "\n"
    files.write(root / "config.json", text.encode())


def diffusers_config(model: AutoencoderKL, normalisation: Normalisation) -> dict[str, Any]:
    """The config.json of diffusers' AutoencoderKL.

    One factor for all channels is its `scaling_factor` and `shift_factor`, which all its
    pipelines know; one a channel becomes `latents_mean` and `latents_std`, as SDXL's reads.
    """
    config = {
        "_class_name": _CLASS,
        "act_fn": "silu",
        "down_block_types": ["DownEncoderBlock2D"] * len(model.channels),
        "up_block_types": ["UpDecoderBlock2D"] * len(model.channels),
        "norm_num_groups": model.groups,
    }
    for key, field in _SAID.items():
        value = getattr(model, field)
        config[key] = list(value) if isinstance(value, tuple) else value
    shift, scale = normalisation.shift, normalisation.scale
    if not isinstance(shift, tuple) and not isinstance(scale, tuple):
        return config | {"scaling_factor": scale, "shift_factor": shift or None}
    shift = shift if isinstance(shift, tuple) else (shift,) * model.latent
    scale = scale if isinstance(scale, tuple) else (scale,) * model.latent
    return config | {
        "scaling_factor": 1.0,
        "latents_mean": list(shift),
        "latents_std": [1 / x for x in scale],
    }


def _own(found: Mapping, fields: dict, where: str) -> tuple[Any, Any, Normalisation, str]:
    """Model, parameters, normalisation and name of a file in our own form."""
    if (task := fields.get("task", "classification")) != "autoencoder":
        raise ConfigError(f"{where} was trained by task {task!r}, it is no autoencoder")
    try:
        values = {field: fields[f"autoencoder.{field}"] for field in _FIELDS}
        normalisation = Normalisation(
            **{k: fields[f"normalisation.{k}"] for k in ("shift", "scale")}
        )
        name = fields["name"]
    except KeyError as error:
        raise ConfigError(f"{where} does not say its {error.args[0]}: write it again") from None
    model = AutoencoderKL(**values | {"channels": tuple(values["channels"])})
    names.check(found, names.shapes(model), where)
    return model, tensors.unflatten(found), normalisation, name


def _config(path: epath.Path, must_fit: bool) -> dict[str, Any]:
    """The config.json there, {} if there is none, or one about something else by chance."""
    if not path.exists():
        return {}
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    kind = config.get("_class_name") if isinstance(config, dict) else None
    if kind == _CLASS:
        return config
    if must_fit:
        raise ConfigError(f"{path} describes a {kind!r}, not an {_CLASS!r}")
    return {}


def _check_config(config: Mapping[str, Any], model: AutoencoderKL, where: str) -> None:
    if (activation := config.get("act_fn", "silu")) not in ("silu", "swish"):
        raise ConfigError(f"{where} has act_fn {activation!r}, only 'silu' is supported")
    for key, field in _SAID.items():
        ours = getattr(model, field)
        said = config.get(key, ours)
        if (tuple(said) if isinstance(said, list) else said) != ours:
            raise ConfigError(f"{where}: config.json has {key} {said}, the tensors have {ours}")


def _said(config: Mapping[str, Any], source: epath.Path) -> Normalisation | None:
    """The normalisation that a diffusers config states."""
    factor, shift = config.get("scaling_factor"), config.get("shift_factor")
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is None and std is None:
        return None if factor is None else Normalisation(shift or 0.0, factor)
    if mean is None or std is None or shift:
        raise ConfigError(
            f"{source}: config.json needs latents_mean and latents_std together, without"
            " shift_factor"
        )
    factor = 1.0 if factor is None else factor
    return Normalisation(tuple(mean), tuple(_quotient(factor, x) for x in std))


def _quotient(factor: float, std: float) -> float:
    """factor / std; of several numbers that std may have been made of, the one of 15 digits.

    49.0 is stored as 1 / 49, whose own inverse is 49.00000000000001.
    """
    if not std:
        return math.inf
    quotient = factor / std
    short = float(f"{quotient:.15g}")
    return short if factor / short == std else quotient


def _same(one: Normalisation, other: Normalisation) -> bool:
    """Whether latents are normalised alike, which is done in float32."""

    def close(a: Any, b: Any) -> bool:
        a, b = np.broadcast_arrays(a, b)
        return np.allclose(a, b, rtol=np.finfo(np.float32).eps, atol=0)

    try:
        return close(one.shift, other.shift) and close(one.scale, other.scale)
    except ValueError:  # of other numbers of channels
        return False
