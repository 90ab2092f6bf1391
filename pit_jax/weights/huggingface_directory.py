"""A Hugging Face directory: config.json and model.safetensors, read and written."""

import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from pit_jax.errors import ConfigError
from pit_jax.weights import huggingface, tensors

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


def fields(directory: epath.PathLike) -> dict[str, Any]:
    """Our config fields from a Hugging Face directory's config.json.

    A key that it leaves out has the default of transformers' ViTConfig, not ours.

    Raises:
      ConfigError: if it is missing or describes another kind of model.
    """
    path = epath.Path(directory) / "config.json"
    try:
        theirs = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    if not isinstance(theirs, dict):
        raise ConfigError(f"{path} cannot be read: it holds no JSON object")
    if theirs.get("model_type") != "vit":
        raise ConfigError(f"{path} describes a {theirs.get('model_type')!r}, not a 'vit'")
    if theirs.get("hidden_act", "gelu") != "gelu" or not theirs.get("qkv_bias", True):
        raise ConfigError(f"{path}: only hidden_act 'gelu' and qkv_bias true are supported")
    found = {ours: theirs.get(name, default) for ours, (name, default) in _FIELDS.items()}
    for ours in ("model.patch", "data.image_size"):  # a side, or two of them
        sides = found[ours] if isinstance(found[ours], list) else [found[ours]]
        if len(set(sides)) != 1:
            raise ConfigError(f"{path}: {_FIELDS[ours][0]} {sides} is no square")
        found[ours] = sides[0]
    labels = theirs.get("id2label") or {}
    found["data.num_classes"] = len(labels) or theirs.get("num_labels", 2)
    return found


def write(directory: epath.PathLike, params: Mapping, model: Any, data: Any) -> None:
    """Writes a directory that `ViTForImageClassification.from_pretrained` loads.

    Raises:
      ConfigError: if Hugging Face's ViT cannot express the model.
      StorageError: if a file cannot be written.
    """
    root = epath.Path(directory)
    tensors.write(root / "model.safetensors", huggingface.to_huggingface(params, model, data))
    text = json.dumps(huggingface.config(model, data), indent=2) + "\n"
    tensors.write_whole(root / "config.json", text.encode())
