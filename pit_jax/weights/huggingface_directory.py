"""A Hugging Face directory: config.json and model.safetensors, read and written."""

import json
from collections.abc import Mapping
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from pit_jax import files
from pit_jax.errors import ConfigError
from pit_jax.weights import counterpart, huggingface, huggingface_mae, tensors

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


def is_one(directory: epath.PathLike) -> bool:
    """Whether the config.json there is one of Hugging Face's."""
    try:
        return "model_type" in read_config(epath.Path(directory) / "config.json")
    except ConfigError:
        return False


def fields(directory: epath.PathLike) -> dict[str, Any]:
    """Our config fields from a Hugging Face directory's config.json, `task` among them.

    A key that it leaves out has the default of transformers' ViTConfig, not ours.

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
    return found | {"task": "classification"}


def read(directory: epath.PathLike, fields: dict[str, Any], config: Any) -> dict[str, Any]:
    """The parameters in a Hugging Face directory, in our layout.

    Args:
      directory: where config.json and model.safetensors lie.
      fields: what `fields` said of it.
      config: the config that they are for; of a masked autoencoder only its encoder is.

    Raises:
      ConfigError: if there is no model.safetensors, or it does not fit the config.
    """
    path = epath.Path(directory) / "model.safetensors"
    if not path.exists():
        raise ConfigError(
            f"{directory} has a config.json of Hugging Face's and no model.safetensors: load it"
            " with transformers and write it by save_pretrained(), in one file"
        )
    found, _ = tensors.read(path)
    model = huggingface.with_cls(config.model)
    if fields["task"] == "classification":
        return huggingface.from_huggingface(found, model, config.data)
    decoder = ConfigDict(config.mae.to_dict())
    for name in _MAE_FIELDS:
        decoder[name.removeprefix("mae.")] = fields[name]
    if config.task != "mae":  # nobody reads its positions: any will do
        decoder.decoder_position = "learned"
    return huggingface_mae.from_huggingface(found, model, config.data, decoder)


def write(directory: epath.PathLike, params: Mapping, config: Any) -> None:
    """Writes a directory that `ViTForImageClassification` or `ViTMAEForPreTraining` loads.

    Raises:
      ConfigError: if Hugging Face's model cannot express ours.
      StorageError: if a file cannot be written.
    """
    root = epath.Path(directory)
    tensors.write(root / "model.safetensors", counterpart.tensors(params, config))
    text = json.dumps(counterpart.description(config), indent=2) + "\n"
    files.write(root / "config.json", text.encode())


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
