"""Our DiT's parameters as the public DiT checkpoints name them (Peebles & Xie 2023).

The public files are PyTorch pickles; what is read and written here are their tensors by name.
Query, key and value are one dense layer there, one after another.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from pit_jax.errors import ConfigError
from pit_jax.models.dit import FREQUENCIES, DiT
from pit_jax.weights import dit_parts as parts

_JOINED = ("query", "key", "value")
NAMES = parts.Names(
    implementation="the public DiT",
    patch="x_embedder.proj",
    position="pos_embed",
    time=("t_embedder.mlp.0", "t_embedder.mlp.2"),
    label="y_embedder.embedding_table",
    blocks="blocks",
    dense={part: f"attn.qkv.{part}" for part in _JOINED}
    | {
        "out": "attn.proj",
        "up": "mlp.fc1",
        "down": "mlp.fc2",
        "modulation": "adaLN_modulation.1",
    },
    final_modulation="final_layer.adaLN_modulation.1",
    head="final_layer.linear",
)


def to_public(params: Mapping, model: DiT, image_size: int) -> dict[str, np.ndarray]:
    """Our parameters under the public names; `pos_embed` is learned or the fixed table.

    Args:
      params: the tree of a DiT.
      model: the module it belongs to.
      image_size: side of what the model sees (32 for latents of 256² images).

    Raises:
      ConfigError: if the public DiT cannot express the model.
    """
    check_expressible(model)
    tensors = parts.to_tensors(params, model, NAMES, image_size)
    for layer in range(model.depth):
        for kind in ("weight", "bias"):
            joined = f"{NAMES.blocks}.{layer}.attn.qkv"
            three = [tensors.pop(f"{joined}.{part}.{kind}") for part in _JOINED]
            tensors[f"{joined}.{kind}"] = np.concatenate(three)
    return tensors


def from_public(
    found: Mapping[str, np.ndarray], model: DiT, image_size: int, channels: int
) -> dict[str, Any]:
    """The reverse: a parameter tree of ours.

    Args:
      found: the public tensors by name.
      model: the module to fill.
      image_size, channels: of what the model sees (32 and 4 for latents of 256² images).

    Raises:
      ConfigError: if a tensor is missing, left over, or does not fit the module.
    """
    check_expressible(model)
    split: dict[str, np.ndarray] = {}
    for name, tensor in found.items():
        if ".attn.qkv." not in name:
            split[name] = tensor
            continue
        if len(tensor) != 3 * model.width:
            raise ConfigError(
                f"the weights have {name} of {len(tensor)} rows, the config makes it"
                f" {3 * model.width}"
            )
        prefix, kind = name.rsplit(".", 1)
        for part, third in zip(_JOINED, np.split(np.asarray(tensor), 3), strict=True):
            split[f"{prefix}.{part}.{kind}"] = third
    return parts.from_tensors(split, model, NAMES, image_size, channels)


def check_expressible(model: DiT) -> None:
    """Refuses a model that the public DiT has no field for.

    Raises:
      ConfigError: naming the field.
    """
    parts.check_expressible(model, NAMES.implementation, {"frequency_steps": (FREQUENCIES,)})
