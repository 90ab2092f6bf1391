"""The Vision Transformer and the Pixel Transformer: one encoder, its embedding swapped."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from pit_jax.models.embed import Embed
from pit_jax.models.pointwise import LayerNorm
from pit_jax.models.transformer import Trunk, compute_dtype
from pit_jax.parallel.mesh import constrain


class ViT(nn.Module):
    """A classifier over patches or, with `patch=1`, over pixels (PiT).

    `pool` "cls" reads the [CLS] token; "mean" has no such token and averages all of them
    after the final norm. Input: normalised images (B, H, W, C), or images in [0, 1] for
    the colour dictionary. Output: logits (B, num_classes) in float32.
    """

    num_classes: int
    width: int
    depth: int
    heads: int
    mlp: int
    patch: int = 1
    position: str = "learned"
    position_std: float = 0.02
    pool: str = "cls"
    embed: str = "linear"
    dictionary_bits: int = 8
    drop_path: float = 0.0
    dropout: float = 0.0
    layer_scale: float = 0.0
    norm_eps: float = 1e-6
    attention: str = "auto"
    exchange: str = "auto"
    remat: str = "none"
    dtype: str = "auto"

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        dtype = compute_dtype(self.dtype)
        x = Embed(
            width=self.width,
            patch=self.patch,
            position=self.position,
            position_std=self.position_std,
            cls=self.pool == "cls",
            embed=self.embed,
            dictionary_bits=self.dictionary_bits,
            dtype=dtype,
            name="embed",
        )(images.astype(dtype) if self.embed == "linear" else images)
        x = constrain(x, "batch", "seq", None)  # (B, L, d)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        x = Trunk(
            depth=self.depth,
            heads=self.heads,
            mlp=self.mlp,
            drop_path=self.drop_path,
            dropout=self.dropout,
            layer_scale=self.layer_scale,
            norm_eps=self.norm_eps,
            attention=self.attention,
            exchange=self.exchange,
            remat=self.remat,
            dtype=dtype,
            name="trunk",
        )(x, 1 if self.pool == "cls" else None, train)
        x = LayerNorm(self.norm_eps, dtype, name="norm")(x)
        x = x.mean(axis=1, dtype=jnp.float32)  # (B, d); [CLS] pooling has one row
        init = nn.initializers.truncated_normal(0.02)
        head = nn.Dense(self.num_classes, dtype=jnp.float32, kernel_init=init, name="head")
        return head(x)


def build(model, num_classes: int) -> ViT:
    """The module that the `model` group of a resolved config describes."""
    fields = {k: v for k, v in model.items() if k in ViT.__dataclass_fields__ and k != "name"}
    return ViT(num_classes=num_classes, **fields)


def num_tokens(model, image_size: int) -> int:
    """Tokens an image, [CLS] included."""
    return (image_size // model.patch) ** 2 + (model.pool == "cls")
