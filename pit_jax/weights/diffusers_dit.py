"""Our DiT's parameters as diffusers' `DiTTransformer2DModel`, both ways.

Every block there embeds time and label anew; the public conversion writes the same weights
into all of them. Two things are not among its tensors but fixed in its code:

    positions    the sine-cosine table; learned ones are exported as `pos_embed.pos_embed`
    frequencies  of the time, which fall over 127 steps where public DiT, whose weights it
                 carries, has 128 (`encode_time`): public weights want 128 here, too

`put_into` sets both in a module of theirs, which then computes what ours does.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from pit_jax.errors import ConfigError
from pit_jax.models.dit import FREQUENCIES, DiT
from pit_jax.weights import dit_parts as parts
from pit_jax.weights.huggingface_parts import depth

_EMBEDDERS = "norm1.emb."
_BLOCKS = "transformer_blocks"
_FIRST = f"{_BLOCKS}.0.{_EMBEDDERS}"
NAMES = parts.Names(
    implementation="diffusers' DiTTransformer2DModel",
    patch="pos_embed.proj",
    position="pos_embed.pos_embed",
    time=tuple(f"{_FIRST}timestep_embedder.linear_{n}" for n in (1, 2)),
    label=f"{_FIRST}class_embedder.embedding_table",
    blocks=_BLOCKS,
    dense={
        "query": "attn1.to_q",
        "key": "attn1.to_k",
        "value": "attn1.to_v",
        "out": "attn1.to_out.0",
        "up": "ff.net.0.proj",
        "down": "ff.net.2",
        "modulation": "norm1.linear",
    },
    final_modulation="proj_out_1",
    head="proj_out_2",
)


def to_diffusers(params: Mapping, model: DiT, image_size: int) -> dict[str, np.ndarray]:
    """Our parameters under diffusers' names and in its layout.

    Args:
      params: the tree of a DiT.
      model: the module it belongs to.
      image_size: side of what the model sees (32 for latents of 256² images).

    Raises:
      ConfigError: if diffusers' DiT cannot express the model.
    """
    check_expressible(model)
    tensors = parts.to_tensors(params, model, NAMES, image_size)
    if model.position == "sincos2d":
        del tensors[NAMES.position]  # computed there, and unknown to its state
    for name in [name for name in tensors if name.startswith(_FIRST)]:
        for layer in range(1, model.depth):
            tensors[_in_layer(name, layer)] = tensors[name]
    return tensors


def from_diffusers(
    found: Mapping[str, np.ndarray], model: DiT, image_size: int, channels: int
) -> dict[str, Any]:
    """The reverse: a parameter tree of ours.

    Args:
      found: diffusers' tensors by name.
      model: the module to fill.
      image_size, channels: of what the model sees (32 and 4 for latents of 256² images).

    Raises:
      ConfigError: if a tensor is missing, left over, or does not fit the module, or if two
        blocks embed time or label differently.
    """
    check_expressible(model)
    left = dict(found)
    for name in [name for name in found if name.startswith(_FIRST)]:
        for layer in range(1, depth(found, _BLOCKS)):
            other = left.pop(_in_layer(name, layer), None)
            if other is None or not np.array_equal(other, found[name]):
                raise ConfigError(
                    f"{_in_layer(name, layer)} is not {name}: a DiT that embeds time and"
                    " labels otherwise in every block cannot be imported"
                )
    return parts.from_tensors(left, model, NAMES, image_size, channels)


def config(model: DiT, image_size: int, channels: int) -> dict[str, Any]:
    """The arguments of a DiTTransformer2DModel, which are its config.json, too."""
    check_expressible(model)
    return {
        "num_attention_heads": model.heads,
        "attention_head_dim": model.width // model.heads,
        "in_channels": channels,
        "out_channels": model.outputs,
        "num_layers": model.depth,
        "dropout": model.dropout,
        "attention_bias": True,
        "sample_size": image_size,
        "patch_size": model.patch,
        "activation_fn": "gelu-approximate",
        "num_embeds_ada_norm": model.num_classes,
        "norm_type": "ada_norm_zero",
        "norm_elementwise_affine": False,
        "norm_eps": model.norm_eps,
    }


def put_into(
    net: Any, tensors: Mapping[str, np.ndarray], frequency_steps: int = FREQUENCIES
) -> None:
    """Loads exported tensors into diffusers' module, positions and frequencies included.

    Args:
      net: a DiTTransformer2DModel made with `config`, changed in place.
      tensors: what `to_diffusers` returned.
      frequency_steps: the module's that they come from.
    """
    import torch

    state = {name: torch.tensor(np.asarray(x)) for name, x in tensors.items()}
    positions = state.pop(NAMES.position, None)
    net.load_state_dict(state)
    if positions is not None:
        net.pos_embed.pos_embed.copy_(positions)
    for block in net.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = FREQUENCIES - frequency_steps


def check_expressible(model: DiT, plain: bool = False) -> None:
    """Refuses a model that diffusers' DiT has no field for.

    Args:
      model: ours.
      plain: refuse what needs `put_into`, too: a module that only loads the tensors, as
        `from_pretrained` does, would compute something else.

    Raises:
      ConfigError: naming the field.
    """
    possible: dict[str, tuple] = {
        "mlp": (4 * model.width,),
        "frequency_steps": (FREQUENCIES, FREQUENCIES - 1),
    }
    if plain:
        possible |= {"position": ("sincos2d",), "frequency_steps": (FREQUENCIES - 1,)}
    parts.check_expressible(model, NAMES.implementation, possible)


def _in_layer(name: str, layer: int) -> str:
    """The name, in another block, of one of the first block's embedders' tensors."""
    return f"{_BLOCKS}.{layer}.{_EMBEDDERS}{name.removeprefix(_FIRST)}"
