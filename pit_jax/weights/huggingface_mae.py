"""Our masked autoencoder's parameters as Hugging Face's `ViTMAEForPreTraining`, both ways.

Its positions are fixed sine-cosine tables that lie among the weights; learned ones take
their place in an export, and are read back from there.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from pit_jax.errors import ConfigError
from pit_jax.weights import huggingface
from pit_jax.weights import huggingface_parts as parts

# The public checkpoints' name, and what transformers 5 writes for it.
_LAYERS, _WRITTEN = "decoder.decoder_layers", "decoder.decoder_encoder.layer"


def to_huggingface(params: Mapping, model: Any, data: Any, mae: Any) -> dict[str, np.ndarray]:
    """Our parameters under Hugging Face's names and in its layout.

    Args:
      params: the tree of an MAE with [CLS].
      model, data, mae: the config groups it was made with.

    Raises:
      ConfigError: if Hugging Face's ViTMAE cannot express the model.
    """
    check_expressible(model, mae)
    decoder = params["decoder"]
    side = data.image_size // model.patch
    positions = parts.positions(decoder, mae.decoder_position, side, mae.decoder_width)
    return (
        parts.embed_tensors(params["embed"], model, data)
        | parts.trunk_tensors(params["trunk"], model.depth, parts.ENCODER)
        | parts.norm_tensors(params["norm"], "vit.layernorm")
        | parts.dense_tensors(decoder["embed"], "decoder.decoder_embed")
        | {
            "decoder.mask_token": np.asarray(decoder["mask"])[None],
            "decoder.decoder_pos_embed": positions[None],
        }
        | parts.trunk_tensors(decoder["trunk"], mae.decoder_depth, _LAYERS)
        | parts.norm_tensors(decoder["norm"], "decoder.decoder_norm")
        | parts.dense_tensors(decoder["head"], "decoder.decoder_pred")
    )


def from_huggingface(
    found: Mapping[str, np.ndarray], model: Any, data: Any, mae: Any
) -> dict[str, Any]:
    """The reverse: a parameter tree of ours.

    Args:
      found: Hugging Face's tensors by name.
      model, data, mae: the config groups of the model to make.

    Raises:
      ConfigError: if a tensor is missing, left over, or does not fit the config.
    """
    check_expressible(model, mae)
    taken = parts.Taken({name.replace(_WRITTEN, _LAYERS): x for name, x in found.items()})
    tree: dict[str, Any] = {
        "embed": taken.embed(model, data, interpolate=False),
        "trunk": taken.trunk(parts.ENCODER, model.depth, model.width, model.mlp),
        "norm": taken.norm("vit.layernorm", model.width),
    }
    width, patches = mae.decoder_width, (data.image_size // model.patch) ** 2
    decoder = {
        "embed": taken.dense("decoder.decoder_embed", width, model.width),
        "mask": taken.take("decoder.mask_token", 1, 1, width)[0],
        "trunk": taken.trunk(_LAYERS, mae.decoder_depth, width, 4 * width),
        "norm": taken.norm("decoder.decoder_norm", width),
        "head": taken.dense("decoder.decoder_pred", model.patch**2 * data.channels, width),
    }
    positions = taken.take("decoder.decoder_pos_embed", 1, patches + 1, width)[0]
    if mae.decoder_position == "learned":
        decoder["position"] = positions
    else:
        parts.check_sincos(positions, "mae.decoder_position")
    taken.finish()
    return tree | {"decoder": decoder}


def positions(found: Mapping[str, np.ndarray]) -> tuple[str, str]:
    """ "sincos2d" or "learned", for encoder and decoder: which of the two their tensors are."""

    def kind(name: str) -> str:
        try:
            parts.check_sincos(np.asarray(found[name][0]), "")
        except (ConfigError, KeyError):
            return "learned"
        return "sincos2d"

    return kind("vit.embeddings.position_embeddings"), kind("decoder.decoder_pos_embed")


def config(model: Any, data: Any, mae: Any) -> dict[str, Any]:
    """The config.json that Hugging Face reads beside the weights."""
    return huggingface.encoder_config(model, data) | {
        "architectures": ["ViTMAEForPreTraining"],
        "model_type": "vit_mae",
        "decoder_hidden_size": mae.decoder_width,
        "decoder_num_hidden_layers": mae.decoder_depth,
        "decoder_num_attention_heads": mae.decoder_heads,
        "decoder_intermediate_size": 4 * mae.decoder_width,
        "mask_ratio": mae.mask_ratio,
        "norm_pix_loss": mae.normalise_target,
    }


def check_expressible(model: Any, mae: Any) -> None:
    """Refuses a model that Hugging Face's ViTMAE has no field for.

    Raises:
      ConfigError: naming the field.
    """
    huggingface.check_expressible(model, "ViTMAE")
    position = (mae.decoder_position, ("learned", "sincos2d"))
    parts.check_expressible("ViTMAE", {"mae.decoder_position": position})
