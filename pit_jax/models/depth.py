"""An encoder that says a number of every pixel: the logarithm of its depth."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from pit_jax.models.embed import unpatchify
from pit_jax.models.initialisation import SCHEMES
from pit_jax.models.pointwise import LayerNorm
from pit_jax.models.transformer import compute_dtype
from pit_jax.models.vit import Encoder, fields, has_cls


class DepthViT(Encoder, kw_only=True):
    """Images (B, S, S, C) to log depths (B, S, S) float32, of metres.

    One linear layer turns each patch's token into the p · p depths of its pixels, so that with
    `patch=1` a token says its own pixel's and nothing mixes neighbours but attention. A [CLS]
    token, where `pool` asks for one, only takes part. With `head=False` it returns what
    represents a whole image, (B, d): the mean of the normed tokens.
    """

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False, head: bool = True) -> jax.Array:
        x = self.encode(images, train=train)[:, has_cls(self.pool) :]  # (B, N, d)
        x = LayerNorm(self.norm_eps, compute_dtype(self.dtype), name="norm")(x)
        if not head:
            return x.mean(axis=1, dtype=jnp.float32)
        # Not "head", or a classifier's of as many outputs would be taken for it.
        init = SCHEMES[self.initial].head(0.02)
        dense = nn.Dense(self.patch**2, dtype=jnp.float32, kernel_init=init, name="depth_head")
        return unpatchify(dense(x), images.shape[1], self.patch)[..., 0]


def build(model) -> DepthViT:
    """The module that the `model` group of a resolved config describes."""
    return DepthViT(**fields(model))
