"""Our ViT and PiT parameters as Hugging Face's `ViTForImageClassification`, both ways.

The two compute the same function: pre-norm blocks, exact GELU, [CLS] read after a final
norm. They differ in names, in the order of axes (PyTorch's kernels are (out, in)) and in
our stacked layers. Hugging Face's default norm epsilon is 1e-12: the field travels along.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pit_jax.errors import ConfigError
from pit_jax.models.embed import sincos2d

# Ours → theirs, inside one block.
_DENSE = {
    "query": "attention.attention.query",
    "key": "attention.attention.key",
    "value": "attention.attention.value",
    "out": "attention.output.dense",
    "up": "intermediate.dense",
    "down": "output.dense",
}
_NORMS = {"norm1": "layernorm_before", "norm2": "layernorm_after"}
_PATCH = "vit.embeddings.patch_embeddings.projection"
_POSITION = "vit.embeddings.position_embeddings"
_CLS = "vit.embeddings.cls_token"


def to_huggingface(params: Mapping, model: Any, data: Any) -> dict[str, np.ndarray]:
    """Our parameters under Hugging Face's names and in its layout.

    Args:
      params: the tree of a ViT with [CLS] pooling.
      model, data: the config groups it was made with.

    Raises:
      ConfigError: if Hugging Face's ViT cannot express the model.
    """
    check_expressible(model)
    p, c = model.patch, data.channels
    embed = params["embed"]
    kernel = np.asarray(embed["patch"]["kernel"])  # (p·p·C, d)
    out = {
        f"{_PATCH}.weight": kernel.reshape(p, p, c, -1).transpose(3, 2, 0, 1),  # (d, C, p, p)
        f"{_PATCH}.bias": np.asarray(embed["patch"]["bias"]),
        _CLS: np.asarray(embed["cls"])[None],
        _POSITION: _positions(embed, model, data)[None],
    }
    for layer in range(model.depth):
        block = _layer(params["trunk"], layer, model.depth)
        prefix = f"vit.encoder.layer.{layer}"
        for ours, theirs in _DENSE.items():
            out[f"{prefix}.{theirs}.weight"] = np.asarray(block[ours]["kernel"]).T
            out[f"{prefix}.{theirs}.bias"] = np.asarray(block[ours]["bias"])
        for ours, theirs in _NORMS.items():
            out[f"{prefix}.{theirs}.weight"] = np.asarray(block[ours]["scale"])
            out[f"{prefix}.{theirs}.bias"] = np.asarray(block[ours]["bias"])
    out["vit.layernorm.weight"] = np.asarray(params["norm"]["scale"])
    out["vit.layernorm.bias"] = np.asarray(params["norm"]["bias"])
    out["classifier.weight"] = np.asarray(params["head"]["kernel"]).T
    out["classifier.bias"] = np.asarray(params["head"]["bias"])
    return out


def from_huggingface(
    found: Mapping[str, np.ndarray], model: Any, data: Any, interpolate: bool = False
) -> dict[str, Any]:
    """The reverse: a parameter tree of ours.

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
    taken = dict(found)

    def take(name: str, *shape: int | None) -> np.ndarray:
        """The tensor; None in `shape` is any size."""
        if name not in taken:
            raise ConfigError(f"the weights have no tensor {name}")
        array = np.asarray(taken.pop(name), np.float32)
        fits = len(array.shape) == len(shape)
        if not fits or any(s not in (None, a) for a, s in zip(array.shape, shape, strict=True)):
            wanted = str(shape).replace("None", "any")
            raise ConfigError(
                f"the weights have {name} of shape {array.shape}, the config makes it {wanted}"
            )
        return array

    kernel = take(f"{_PATCH}.weight", None, None, None, None)  # (d, C, p, p)
    width, channels, rows, columns = kernel.shape
    for field, theirs, ours in (
        ("model.width", width, model.width),
        ("data.channels", channels, data.channels),
        ("model.patch", rows, model.patch),
        ("model.patch", columns, model.patch),
        ("model.depth", _depth(found), model.depth),
        ("model.mlp", _rows(found, "vit.encoder.layer.0.intermediate.dense.bias"), model.mlp),
    ):
        if theirs != ours:
            raise ConfigError(f"the weights have {field} {theirs}, the config has {ours}")
    embed = {
        "patch": {
            "kernel": kernel.transpose(2, 3, 1, 0).reshape(-1, width),
            "bias": take(f"{_PATCH}.bias", width),
        },
        "cls": take(_CLS, 1, 1, width)[0],
    }
    positions = take(_POSITION, 1, None, width)[0]
    if model.position == "learned":
        embed["position"] = _resampled(positions, model, data, interpolate)
    else:
        _check_sincos(positions)

    def dense(name: str, features: int | None, inputs: int) -> dict[str, np.ndarray]:
        weight, bias = take(f"{name}.weight", features, inputs), take(f"{name}.bias", features)
        return {"kernel": weight.T, "bias": bias}

    def norm(name: str) -> dict[str, np.ndarray]:
        return {"scale": take(f"{name}.weight", width), "bias": take(f"{name}.bias", width)}

    layers = []
    for layer in range(model.depth):
        prefix, block = f"vit.encoder.layer.{layer}", {}
        for ours, theirs in _DENSE.items():
            features = model.mlp if ours == "up" else width
            inputs = model.mlp if ours == "down" else width
            block[ours] = dense(f"{prefix}.{theirs}", features, inputs)
        for ours, theirs in _NORMS.items():
            block[ours] = norm(f"{prefix}.{theirs}")
        layers.append(block)
    trunk = {"last": layers[-1]}
    if len(layers) > 1:
        trunk["blocks"] = jax.tree.map(lambda *x: np.stack(x), *layers[:-1])
    tree = {
        "embed": embed,
        "trunk": trunk,
        "norm": norm("vit.layernorm"),
        "head": dense("classifier", None, width),
    }
    if taken:
        raise ConfigError(f"the weights have {len(taken)} tensor(s) too many: {min(taken)}, ...")
    return tree


def config(model: Any, data: Any) -> dict[str, Any]:
    """The config.json that Hugging Face reads beside the weights."""
    return {
        "architectures": ["ViTForImageClassification"],
        "model_type": "vit",
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
        "id2label": {str(label): str(label) for label in range(data.num_classes)},
        "label2id": {str(label): label for label in range(data.num_classes)},
    }


def check_expressible(model: Any) -> None:
    """Refuses a model that Hugging Face's ViT has no field for.

    Raises:
      ConfigError: naming the field.
    """
    for field, value, needed in (
        ("pool", model.pool, ("cls",)),
        ("embed", model.embed, ("linear",)),
        ("position", model.position, ("learned", "sincos2d")),
        ("layer_scale", model.layer_scale, (0,)),
    ):
        if value not in needed:
            raise ConfigError(
                f"Hugging Face's ViT has no config.model.{field}={value!r}, only"
                f" {' or '.join(map(repr, needed))}"
            )


def _positions(embed: Mapping, model: Any, data: Any) -> np.ndarray:
    if model.position == "learned":
        return np.asarray(embed["position"])
    side = data.image_size // model.patch
    table = sincos2d((side, side), model.width)
    return np.concatenate([np.zeros_like(table[:1]), table])  # [CLS] has no place


def _check_sincos(positions: np.ndarray) -> None:
    """Refuses to lose learned positions to a model that computes its own."""
    side = _side(positions)
    table = sincos2d((side, side), positions.shape[1])
    expected = np.concatenate([np.zeros_like(table[:1]), table])
    if not np.allclose(positions, expected, rtol=0, atol=1e-2):  # weights may be float16
        raise ConfigError(
            "the weights have learned positions, config.model.position='sincos2d' would drop them"
        )


def _side(positions: np.ndarray) -> int:
    """The side of the square grid that positions (1 + side², d) lie on."""
    side = math.isqrt(len(positions) - 1)
    if side**2 != len(positions) - 1:
        raise ConfigError(
            f"the weights have {len(positions)} positions: no [CLS] and a square grid"
        )
    return side


def _resampled(positions: np.ndarray, model: Any, data: Any, interpolate: bool) -> np.ndarray:
    """Positions (1 + old², d) as (1 + new², d): [CLS] kept, the grid by jax.image's "cubic"."""
    side = data.image_size // model.patch
    wanted, given = side**2 + 1, len(positions)
    if given == wanted:
        return positions
    if not interpolate:
        why = (
            "a PiT's positions were learned without any notion of a grid, so there is nothing"
            " to interpolate between"
            if model.patch == 1
            else "learned positions belong to one image size"
        )
        raise ConfigError(
            f"the weights have {given} positions, the config needs {wanted}: {why}"
            " (--interpolate resamples them all the same)"
        )
    old = _side(positions)
    grid = jnp.asarray(positions[1:]).reshape(old, old, -1)
    grid = jax.image.resize(grid, (side, side, grid.shape[-1]), "cubic")
    return np.concatenate([positions[:1], np.asarray(grid).reshape(side * side, -1)])


def _layer(trunk: Mapping, layer: int, depth: int) -> Any:
    if layer == depth - 1:
        return trunk["last"]
    return jax.tree.map(lambda x: x[layer], trunk["blocks"])


def _depth(found: Mapping) -> int:
    prefix = "vit.encoder.layer."
    return len({name.split(".")[3] for name in found if name.startswith(prefix)})


def _rows(found: Mapping, name: str) -> int:
    return found[name].shape[0] if name in found else 0
