"""A Hugging Face directory: config.json and model.safetensors, read and written."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from pit_jax import files
from pit_jax.errors import ConfigError
from pit_jax.weights import (
    counterpart,
    huggingface,
    huggingface_mae,
    preprocessor,
    public_vit,
    tensors,
)

# Our config field → theirs in config.json, and the default of transformers' ViTConfig.
_FIELDS = {
    "model.width": ("hidden_size", 768),
    "model.depth": ("num_hidden_layers", 12),
    "model.heads": ("num_attention_heads", 12),
    "model.mlp": ("intermediate_size", 3072),
    "model.norm_eps": ("layer_norm_eps", 1e-12),
    "model.patch": ("patch_size", 16),
    "data.image_size": ("image_size", 224),
    "data.channels": ("num_channels", 3),
}


# The same for what only ViTMAEConfig has.
_MAE_FIELDS = {
    "mae.mask_ratio": ("mask_ratio", 0.75),
    "mae.normalise_target": ("norm_pix_loss", False),
    "mae.decoder_width": ("decoder_hidden_size", 512),
    "mae.decoder_depth": ("decoder_num_hidden_layers", 8),
    "mae.decoder_heads": ("decoder_num_attention_heads", 16),
}


_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def is_one(directory: epath.PathLike) -> bool:
    """Whether the config.json there is one of Hugging Face's."""
    try:
        return "model_type" in read_config(epath.Path(directory) / "config.json")
    except ConfigError:
        return False


def fields(directory: epath.PathLike) -> dict[str, Any]:
    """Our config fields from a Hugging Face directory's config.json, `task` among them, and from
    its preprocessor_config.json, if there is one.

    A key that it leaves out has the default of transformers' ViTConfig, not ours. "classes" are
    the names of its labels.

    Raises:
      ConfigError: if it is missing or describes another kind of model.
    """
    path = epath.Path(directory) / "config.json"
    theirs = read_config(path)
    kind = theirs.get("model_type") or theirs.get("_class_name")  # diffusers' models say this
    if kind not in ("vit", "vit_mae"):
        raise ConfigError(f"{path} describes a {kind!r}, not a 'vit' or 'vit_mae'")
    if theirs.get("hidden_act", "gelu") != "gelu" or not theirs.get("qkv_bias", True):
        raise ConfigError(f"{path}: only hidden_act 'gelu' and qkv_bias true are supported")
    wanted = _FIELDS | (_MAE_FIELDS if kind == "vit_mae" else {})
    found = {ours: theirs.get(name, default) for ours, (name, default) in wanted.items()}
    found |= preprocessor.fields(directory)
    for ours in ("model.patch", "data.image_size"):  # a side, or two of them
        sides = found[ours] if isinstance(found[ours], list) else [found[ours]]
        if len(set(sides)) != 1:
            raise ConfigError(f"{path}: {_FIELDS[ours][0]} {sides} is no square")
        found[ours] = sides[0]
    if kind == "vit_mae":
        hidden, mlp = found["mae.decoder_width"], theirs.get("decoder_intermediate_size", 2048)
        if mlp != 4 * hidden:
            raise ConfigError(
                f"{path}: decoder_intermediate_size {mlp} is not 4 × decoder_hidden_size {hidden}"
            )
        return found | {"task": "mae"}
    labels = theirs.get("id2label") or {}
    found["data.num_classes"] = len(labels) or theirs.get("num_labels", 2)
    return found | {"task": "classification", "classes": _names(labels)}


def read(directory: epath.PathLike, fields: dict[str, Any], config: Any) -> dict[str, Any]:
    """The parameters in a Hugging Face directory, in our layout.

    Args:
      directory: where config.json and model.safetensors lie.
      fields: what `fields` said of it.
      config: the config that they are for; of a masked autoencoder only its encoder is.

    Raises:
      ConfigError: if there is no model.safetensors, or it does not fit the config.
    """
    found = public_vit.read(weights(directory)).tensors
    model = huggingface.with_cls(config.model)
    if fields["task"] == "classification" or not any(x.startswith("decoder.") for x in found):
        return huggingface.from_huggingface(found, model, config.data)
    decoder = ConfigDict(config.mae.to_dict())
    for name in _MAE_FIELDS:
        decoder[name.removeprefix("mae.")] = fields[name]
    if config.task != "mae":  # nobody reads its positions: any will do
        decoder.decoder_position = "learned"
    return huggingface_mae.from_huggingface(found, model, config.data, decoder)


def weights(directory: epath.PathLike) -> epath.Path:
    """The file of weights in a Hugging Face directory, model.safetensors or of old.

    Raises:
      ConfigError: if there is none, or they are in several.
    """
    for name in _WEIGHTS:
        if (path := epath.Path(directory) / name).exists():
            return path
    raise ConfigError(
        f"{directory} has a config.json of Hugging Face's and no model.safetensors: load it"
        " with transformers and write it by save_pretrained(), in one file"
    )


def write(
    directory: epath.PathLike, params: Mapping, config: Any, classes: Sequence[str] = ()
) -> None:
    """Writes a directory that `ViTForImageClassification` or `ViTMAEForPreTraining` loads, and
    AutoImageProcessor what images go into it.

    Args:
      directory: made if it is not there.
      params: of the model.
      config: the run's.
      classes: names of those that it tells apart, by number; () if they are not known.

    Raises:
      ConfigError: if Hugging Face's model cannot express ours.
      StorageError: if a file cannot be written.
    """
    root, found = epath.Path(directory), counterpart.tensors(params, config)
    said = {
        preprocessor.FILE: preprocessor.describe(config.data),
        "config.json": counterpart.description(config, classes),
    }
    tensors.write(root / _WEIGHTS[0], found)
    for name, content in said.items():
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        files.write(root / name, text.encode())


def _names(labels: Mapping[str, str]) -> tuple[str, ...]:
    """Names of labels by number, () where they are but their numbers or "LABEL_3"."""
    try:
        names = tuple(str(labels[str(number)]) for number in range(len(labels)))
    except KeyError:
        return ()
    told = any(name not in (str(n), f"LABEL_{n}") for n, name in enumerate(names))
    return names if told else ()


def read_config(path: epath.Path) -> dict[str, Any]:
    """The object in a config.json, of transformers' or diffusers'.

    Raises:
      ConfigError: if it cannot be read, or holds something else.
    """
    try:
        theirs = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    if not isinstance(theirs, dict):
        raise ConfigError(f"{path} cannot be read: it holds no JSON object")
    return theirs
