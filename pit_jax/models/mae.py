"""The masked autoencoder (He et al. 2021) over patches of any size, single pixels included.

The encoder sees only the patches that are kept; a light decoder fills its output up with
one learned mask token and predicts every patch. With learned positions in both, nothing
here knows which pixel lies next to which: permute pixels and positions together and the
loss stays what it was.

Patches stay in their natural order throughout. Only the kept ones are ever moved: their
pixels and positions on the way in, and K rows on their way into the decoder's sequence.
The public code shuffles, and so gathers the whole sequence twice.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from pit_jax.models.embed import IN_BOUNDS, patchify, sincos2d_with_cls
from pit_jax.models.initialisation import SCHEMES
from pit_jax.models.pointwise import LayerNorm
from pit_jax.models.transformer import Trunk, compute_dtype
from pit_jax.models.vit import Encoder, fields, has_cls
from pit_jax.parallel.mesh import constrain

_TARGET_EPS = 1e-6  # public MAE's, inside the root of a patch's variance


class Decoder(nn.Module):
    """Encoded tokens (B, [1 +] K, d) and where they lie to every patch's pixels (B, N, p·p·C).

    `position`, `norm_eps` and what follows are those of `Encoder`.
    """

    width: int
    depth: int
    heads: int
    mlp: int
    patches: tuple[int, int]  # rows and columns
    outputs: int  # p·p·C
    cls: bool = True
    position: str = "learned"
    position_std: float = 0.02
    norm_eps: float = 1e-6
    initial: str = "xavier"
    attention: str = "auto"
    exchange: str = "auto"
    remat: str = "none"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, keep: jax.Array, train: bool = False) -> jax.Array:
        count = self.patches[0] * self.patches[1]

        def dense(features: int, name: str, dtype: jnp.dtype) -> nn.Dense:
            init = SCHEMES[self.initial].dense
            return nn.Dense(features, dtype=dtype, kernel_init=init, name=name)

        x = dense(self.width, "embed", self.dtype)(x)  # (B, [1 +] K, width)
        mask = self.param("mask", nn.initializers.normal(0.02), (1, self.width), jnp.float32)
        tokens = fill(x[:, self.cls :], keep, mask.astype(self.dtype), count)  # (B, N, width)
        positions = jnp.zeros((count + self.cls, 1))
        if self.position == "learned":
            init = nn.initializers.normal(self.position_std)
            positions = self.param("position", init, (count + self.cls, self.width), jnp.float32)
        elif self.position == "sincos2d":
            positions = jnp.asarray(sincos2d_with_cls(self.patches, self.width, self.cls))
        positions = positions.astype(self.dtype)
        tokens = tokens + positions[self.cls :]
        if self.cls:  # behind the patches, which then are the first rows: [CLS] is not read
            tokens = jnp.concatenate([tokens, x[:, :1] + positions[:1]], axis=1)
        tokens = constrain(tokens, "batch", "seq", None)  # (B, N [+ 1], width)
        tokens = Trunk(
            depth=self.depth,
            heads=self.heads,
            mlp=self.mlp,
            norm_eps=self.norm_eps,
            initial=self.initial,
            attention=self.attention,
            exchange=self.exchange,
            remat=self.remat,
            dtype=self.dtype,
            name="trunk",
        )(tokens, count, train)
        tokens = LayerNorm(self.norm_eps, self.dtype, name="norm")(tokens)
        return dense(self.outputs, "head", jnp.float32)(tokens)  # (B, N, p·p·C)


class MAE(Encoder, kw_only=True):
    """Images (B, H, W, C) and kept patches (B, K) to all patches' pixels (B, N, p·p·C).

    Without `keep` it returns what represents a whole image, (B, d): the encoder alone.
    """

    decoder_width: int
    decoder_depth: int
    decoder_heads: int
    decoder_mlp: int
    decoder_position: str = "learned"

    @nn.compact
    def __call__(
        self, images: jax.Array, keep: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        if keep is None:
            return self.represent(images, train)
        dtype = compute_dtype(self.dtype)
        x = self.encode(images, keep, train=train)  # (B, [1 +] K, d)
        x = LayerNorm(self.norm_eps, dtype, name="norm")(x)
        self.sow("intermediates", "latent", x)
        height, width, channels = images.shape[1:]
        return Decoder(
            width=self.decoder_width,
            depth=self.decoder_depth,
            heads=self.decoder_heads,
            mlp=self.decoder_mlp,
            patches=(height // self.patch, width // self.patch),
            outputs=self.patch**2 * channels,
            cls=has_cls(self.pool),
            position=self.decoder_position,
            position_std=self.position_std,
            norm_eps=self.norm_eps,
            initial=self.initial,
            attention=self.attention,
            exchange=self.exchange,
            remat=self.remat,
            dtype=dtype,
            name="decoder",
        )(x, keep, train)


def build(model, mae) -> MAE:
    """The module that the `model` and `mae` groups of a resolved config describe."""
    return MAE(
        decoder_width=mae.decoder_width,
        decoder_depth=mae.decoder_depth,
        decoder_heads=mae.decoder_heads,
        decoder_mlp=4 * mae.decoder_width,
        decoder_position=mae.decoder_position,
        **fields(model),
    )


def fill(x: jax.Array, keep: jax.Array, mask: jax.Array, count: int) -> jax.Array:
    """Puts kept tokens where they belong among `count`, and the mask token everywhere else.

    Args:
      x: (B, K, d).
      keep: (B, K) int32, no number twice.
      mask: (1, d).

    Returns:
      (B, count, d).
    """

    def one(x: jax.Array, keep: jax.Array) -> jax.Array:
        filled = jnp.broadcast_to(mask, (count, x.shape[-1]))
        return filled.at[keep].set(x, mode=IN_BOUNDS, unique_indices=True)

    return jax.vmap(one)(x, keep)


def masked(keep: jax.Array, count: int) -> jax.Array:
    """(B, count) float32: 1 where a patch is hidden from the encoder, 0 where it is kept."""
    return 1 - fill(jnp.ones((*keep.shape, 1)), keep, jnp.zeros((1, 1)), count)[..., 0]


def target(images: jax.Array, patch: int, normalise: bool) -> jax.Array:
    """What the decoder should say: (B, N, p·p·C) float32.

    Args:
      images: as the model sees them.
      patch: side of a patch.
      normalise: give every patch mean 0 and (unbiased) variance 1 over its numbers, as
        public MAE's `norm_pix_loss`. A pixel token has no more than its channels to do so
        with, which leaves little of it: raw pixels are the sane target there.
    """
    patches = patchify(images.astype(jnp.float32), patch)
    return normalise_patches(patches)[0] if normalise else patches


def normalise_patches(patches: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Patches (B, N, n) of mean 0 and variance 1, and the means and deviations they had."""
    mean = patches.mean(-1, keepdims=True)
    deviation = jnp.sqrt(patches.var(-1, keepdims=True, ddof=1) + _TARGET_EPS)
    return (patches - mean) / deviation, mean, deviation


def losses(predicted: jax.Array, wanted: jax.Array, hidden: jax.Array) -> jax.Array:
    """Mean squared error over an image's hidden patches, (B,) (He et al. 2021, section 3).

    Args:
      predicted, wanted: (B, N, n).
      hidden: (B, N), 1 where a patch counts.
    """
    errors = jnp.square(predicted - wanted).mean(-1)
    return (errors * hidden).sum(-1) / hidden.sum(-1)
