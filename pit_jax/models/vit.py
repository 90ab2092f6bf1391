"""The Vision Transformer and the Pixel Transformer: one encoder, its embedding swapped."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from pit_jax.models.embed import Embed, draw
from pit_jax.models.initialisation import SCHEMES
from pit_jax.models.pointwise import LayerNorm
from pit_jax.models.sizes import num_kept
from pit_jax.models.transformer import Trunk, compute_dtype
from pit_jax.parallel.mesh import constrain


class Encoder(nn.Module, kw_only=True):
    """What ViT, PiT and the masked autoencoder have in common: embedding, trunk and norm.

    A base class and not a part, so that `embed`, `trunk` and `norm` have the same paths in
    all of them and weights pass from one to the other as they are.

    `mlp` is the number of hidden units of the MLPs, 0 for 4 × width.

    `pool` says what stands for the whole image: "cls" the [CLS] token; "mean" the mean of all
    tokens, without a [CLS] among them; "patches" the mean of all tokens but [CLS], normed
    after it instead of before (MAE's fine-tuning, He et al. 2021).

    `order` says how patches stand in the sequence (models/order.py), `window` and
    `window_layers` how far they see (models/mask.py). In training a share `token_drop` of each
    image's patches is left out, other ones each time (PatchDropout, Liu et al. 2022).
    """

    width: int
    depth: int
    heads: int
    mlp: int
    patch: int = 1
    position: str = "learned"
    position_std: float = 0.02
    order: str = "raster"
    order_seed: int = 0
    window: tuple[float, ...] = ()
    window_layers: int = 0
    token_drop: float = 0.0
    pool: str = "cls"
    embed: str = "linear"
    dictionary_bits: int = 8
    drop_path: float = 0.0
    dropout: float = 0.0
    layer_scale: float = 0.0
    norm_eps: float = 1e-6
    initial: str = "xavier"
    attention: str = "auto"
    exchange: str = "auto"
    remat: str = "none"
    dtype: str = "auto"

    def encode(
        self,
        images: jax.Array,
        keep: jax.Array | None = None,
        rows: int | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Tokens (B, [1 +] N, d) after the last block, not normed.

        Args:
          images: normalised, (B, H, W, C); in [0, 1] for the colour dictionary.
          keep: (B, K) int32, the only places to encode, all of which see each other; None
            encodes all.
          rows: return only the first so many tokens.
          train: with dropout, drop path and token dropping.
        """
        dtype = compute_dtype(self.dtype)
        cls, side = has_cls(self.pool), images.shape[1] // self.patch
        if train and self.token_drop and keep is None:
            kept = num_kept(side**2, self.token_drop)
            key = self.make_rng("dropout")
            keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(len(images)))
            keep = jax.vmap(lambda key: draw(key, side**2, kept))(keys)  # (B, kept)
        x = Embed(
            width=self.width,
            patch=self.patch,
            position=self.position,
            position_std=self.position_std,
            order=self.order,
            order_seed=self.order_seed,
            cls=cls,
            embed=self.embed,
            dictionary_bits=self.dictionary_bits,
            initial=self.initial,
            dtype=dtype,
            name="embed",
        )(images.astype(dtype) if self.embed == "linear" else images, keep)
        x = constrain(x, "batch", "seq", None)  # (B, L, d)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return Trunk(
            depth=self.depth,
            heads=self.heads,
            mlp=self.mlp,
            drop_path=self.drop_path,
            dropout=self.dropout,
            layer_scale=self.layer_scale,
            norm_eps=self.norm_eps,
            initial=self.initial,
            attention=self.attention,
            exchange=self.exchange,
            window=self.window,
            window_layers=self.window_layers,
            prefix=int(cls),
            remat=self.remat,
            dtype=dtype,
            name="trunk",
        )(x, rows, train)

    def represent(self, images: jax.Array, train: bool = False) -> jax.Array:
        """One vector an image, (B, d) float32: what a head or a probe reads."""
        dtype = compute_dtype(self.dtype)
        x = self.encode(images, rows=1 if self.pool == "cls" else None, train=train)
        if self.pool == "patches":
            x = x[:, 1:].mean(axis=1, keepdims=True, dtype=jnp.float32).astype(dtype)
        # Averaged tokens have other statistics than tokens: their norm is one of its own.
        name = "pool_norm" if self.pool == "patches" else "norm"
        x = LayerNorm(self.norm_eps, dtype, name=name)(x)
        return x.mean(axis=1, dtype=jnp.float32)  # (B, d); one row is its own mean


class ViT(Encoder, kw_only=True):
    """A classifier over patches or, with `patch=1`, over pixels (PiT).

    Input: images (B, H, W, C) as `Encoder.encode` takes them. Output: logits
    (B, num_classes) in float32, or with `head=False` what the head would read, (B, d).
    """

    num_classes: int
    head_std: float = 0.02

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False, head: bool = True) -> jax.Array:
        x = self.represent(images, train)
        if not head:
            return x
        init = SCHEMES[self.initial].head(self.head_std)
        return nn.Dense(self.num_classes, dtype=jnp.float32, kernel_init=init, name="head")(x)


class Tokens(Encoder, kw_only=True):
    """What an encoder makes of every patch: (B, N, d) after the last block, not normed.

    Whatever a head would read, no row is left out but [CLS]. Takes the parameters of any
    `Encoder`.
    """

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        return self.encode(images)[:, has_cls(self.pool) :]


def has_cls(pool: str) -> bool:
    """Whether a model that pools in this way has a [CLS] token."""
    return pool != "mean"


def build(model, num_classes: int) -> ViT:
    """The module that the `model` group of a resolved config describes."""
    return ViT(num_classes=num_classes, head_std=model.head_std, **fields(model))


def fields(model) -> dict:
    """Of a config's `model` group, what an `Encoder` is made with."""
    return {k: v for k, v in model.items() if k in Encoder.__dataclass_fields__ and k != "name"}


def num_tokens(model, image_size: int) -> int:
    """Tokens an image, [CLS] included."""
    return (image_size // model.patch) ** 2 + has_cls(model.pool)
