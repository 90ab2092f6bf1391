"""Our ViT and PiT parameters as Hugging Face's `ViTForImageClassification`, both ways.

The two compute the same function: pre-norm blocks, exact GELU, [CLS] read after a final
norm. They differ in names and layout (huggingface_parts.py). Hugging Face's default norm
epsilon is 1e-12: the field travels along.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from pit_jax.models.vit import has_cls
from pit_jax.weights import huggingface_parts as parts


def to_huggingface(params: Mapping, model: Any, data: Any) -> dict[str, np.ndarray]:
    """Our parameters under Hugging Face's names and in its layout.

    Args:
      params: the tree of a ViT with [CLS] pooling.
      model, data: the config groups it was made with.

    Raises:
      ConfigError: if Hugging Face's ViT cannot express the model.
    """
    check_expressible(model)
    return (
        parts.embed_tensors(params["embed"], model, data)
        | parts.trunk_tensors(params["trunk"], model.depth, parts.ENCODER)
        | parts.norm_tensors(params["norm"], "vit.layernorm")
        | parts.dense_tensors(params["head"], "classifier")
    )


def from_huggingface(
    found: Mapping[str, np.ndarray], model: Any, data: Any, interpolate: bool = False
) -> dict[str, Any]:
    """The reverse: a parameter tree of ours, without a head where they have none.

    Args:
      found: Hugging Face's tensors by name.
      model, data: the config groups of the model to make.
      interpolate: resample learned positions to another number of tokens, bicubically
        over the grid. Off by default: the positions of a PiT were learned without any
        notion of a grid, so nothing says that a point between two of them means anything.

    Raises:
      ConfigError: if a tensor is missing, left over, or does not fit the config. Only the
        number of classes may differ: whether a head may be new is for `load.merge` to say.
    """
    check_expressible(model)
    taken = parts.Taken(found)
    tree = {
        "embed": taken.embed(model, data, interpolate),
        "trunk": taken.trunk(parts.ENCODER, model.depth, model.width, model.mlp),
        "norm": taken.norm("vit.layernorm", model.width),
    }
    if any(name.startswith("classifier.") for name in found):  # ViTModel has none
        tree["head"] = taken.dense("classifier", None, model.width)
    taken.finish()
    return tree


def with_cls(model: Any) -> Any:
    """The `model` group whose weights these can be: the same encoder, read by its [CLS].

    What is pooled over the patches has a [CLS] among its tokens, too, so that fine-tuning may
    start from here. Without one (pool "mean") the group comes back as it is.
    """
    return ConfigDict(model.to_dict() | {"pool": "cls"}) if has_cls(model.pool) else model


def config(model: Any, data: Any, classes: Sequence[str] = ()) -> dict[str, Any]:
    """The config.json that Hugging Face reads beside the weights.

    Args:
      model, data: the config groups.
      classes: names of the classes by number; () calls them by their numbers.
    """
    names = classes or [str(label) for label in range(data.num_classes)]
    return encoder_config(model, data) | {
        "architectures": ["ViTForImageClassification"],
        "model_type": "vit",
        "id2label": {str(label): name for label, name in enumerate(names)},
        "label2id": {name: label for label, name in enumerate(names)},
    }


def encoder_config(model: Any, data: Any) -> dict[str, Any]:
    """What config.json says of the encoder, for ViT and ViTMAE alike."""
    return {
        "hidden_size": model.width,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.heads,
        "intermediate_size": model.mlp,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": model.norm_eps,
        "image_size": data.image_size,
        "patch_size": model.patch,
        "num_channels": data.channels,
        "qkv_bias": True,
    }


def check_expressible(model: Any, name: str = "ViT") -> None:
    """Refuses a model that Hugging Face's ViT has no field for.

    Raises:
      ConfigError: naming the field.
    """
    parts.check_expressible(
        name,
        {
            "model.name": (model.name, ("vit",)),
            "model.pool": (model.pool, ("cls",)),
            "model.embed": (model.embed, ("linear",)),
            "model.position": (model.position, ("learned", "sincos2d")),
            "model.layer_scale": (model.layer_scale, (0,)),
            "model.window": (model.window, ((),)),
            "model.order": (model.order, ("raster",)),
        },
    )
