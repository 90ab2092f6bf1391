"""Vision Transformers under the names that public files give them, all as Hugging Face's.

ViTForImageClassification   vit.encoder.layer.0..., classifier: what the rest of the code reads
ViTModel                    the same without `vit.`, with a pooler or not, and without a head
timm, DeiT, public MAE      blocks.0.attn.qkv..., head; query, key and value are one dense layer
"""

from collections.abc import Mapping

import numpy as np
from etils import epath

from pit_jax.errors import ConfigError
from pit_jax.weights import public_file

_BARE = ("embeddings.", "encoder.", "layernorm.", "pooler.")  # ViTModel's, at the root
# Of ViTModel, and of ViTForMaskedImageModeling: they see nothing of an image that is whole.
_UNUSED = ("vit.pooler.", "vit.embeddings.mask_token", "decoder.0.")

# timm's, DeiT's and MAE's → Hugging Face's; those of the decoder are public MAE's.
_WHOLE = {
    "cls_token": "vit.embeddings.cls_token",
    "pos_embed": "vit.embeddings.position_embeddings",
    "mask_token": "decoder.mask_token",
    "decoder_pos_embed": "decoder.decoder_pos_embed",
}
_LAYERS = {
    "patch_embed.proj": "vit.embeddings.patch_embeddings.projection",
    "norm": "vit.layernorm",
    "head": "classifier",
    "decoder_embed": "decoder.decoder_embed",
    "decoder_norm": "decoder.decoder_norm",
    "decoder_pred": "decoder.decoder_pred",
}
_BLOCKS = {"blocks": "vit.encoder.layer", "decoder_blocks": "decoder.decoder_layers"}
_IN_BLOCK = {
    "norm1": "layernorm_before",
    "attn.proj": "attention.output.dense",
    "norm2": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
_JOINED = ("query", "key", "value")


def read(path: epath.PathLike) -> public_file.File:
    """A file of weights, those of a Vision Transformer under Hugging Face's names.

    Raises:
      ConfigError, StorageError: as `public_file.read`.
    """
    found = public_file.read(path)
    return found if found.fields is not None else found._replace(tensors=named(found.tensors))


def named(found: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Tensors of whatever layout under Hugging Face's names, without what nothing reads.

    What is no Vision Transformer's keeps its name.

    Raises:
      ConfigError: if query, key and value are one layer that has not three equal parts.
    """
    if "patch_embed.proj.weight" in found and "cls_token" in found:
        return _of_timm(found)
    if "embeddings.cls_token" in found:
        found = {f"vit.{n}" if n.startswith(_BARE) else n: x for n, x in found.items()}
    return {name: x for name, x in found.items() if not name.startswith(_UNUSED)}


def _of_timm(found: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    out: dict[str, np.ndarray] = {}
    for name, tensor in found.items():
        layer, _, kind = name.rpartition(".")
        blocks, _, inside = layer.partition(".")
        number, _, part = inside.partition(".")
        if blocks in _BLOCKS and part == "attn.qkv":
            if len(tensor) % len(_JOINED):
                raise ConfigError(f"the weights have {name} of {len(tensor)} rows, no three parts")
            thirds = np.split(np.asarray(tensor), len(_JOINED))
            for which, third in zip(_JOINED, thirds, strict=True):
                out[f"{_BLOCKS[blocks]}.{number}.attention.attention.{which}.{kind}"] = third
        elif blocks in _BLOCKS and part in _IN_BLOCK:
            out[f"{_BLOCKS[blocks]}.{number}.{_IN_BLOCK[part]}.{kind}"] = tensor
        elif layer in _LAYERS:
            out[f"{_LAYERS[layer]}.{kind}"] = tensor
        else:
            out[_WHOLE.get(name, name)] = tensor
    return out
