"""The Perceiver (Jaegle et al. 2021): a few latent vectors read all pixels, round by round.

Each round is a cross-attention, in which the latents ask and the pixels answer, and a trunk
of self-attention among the latents alone. It costs time linear in the number of pixels, and
like PiT it knows of their places nothing but what their position embeddings learn.

As in the paper the rounds after the first share their weights. Since the pixels stay what
they are from round to round, so do their keys and values: they are made once for the first
round and once for all others. Differences: positions are learned or sincos2d instead of
Fourier features beside the colours, and cross-attention has as many heads as the trunk
instead of one.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from pit_jax.models.attention import attention
from pit_jax.models.embed import Embed
from pit_jax.models.initialisation import SCHEMES
from pit_jax.models.pointwise import LayerNorm, gelu
from pit_jax.models.transformer import Trunk, compute_dtype
from pit_jax.parallel.mesh import constrain


def _dense(features: int, dtype: jnp.dtype, name: str, initial: str) -> nn.Dense:
    scheme = SCHEMES[initial]
    init = scheme.attention if name in ("query", "key", "value") else scheme.dense
    return nn.Dense(features, dtype=dtype, kernel_init=init, name=name)


def _split_heads(x: jax.Array, heads: int) -> jax.Array:
    x = x.reshape(*x.shape[:2], heads, x.shape[-1] // heads)
    return constrain(x, "batch", "seq", "model", None)  # (B, L, H, D)


class KeysValues(nn.Module):
    """What the pixels answer with: tokens (B, N, d) to keys and values (B, N, H, D)."""

    heads: int
    norm_eps: float
    initial: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        y = LayerNorm(self.norm_eps, self.dtype, name="norm")(tokens)
        key, value = (
            _dense(y.shape[-1], self.dtype, name, self.initial)(y) for name in ("key", "value")
        )
        return _split_heads(key, self.heads), _split_heads(value, self.heads)


class Round(nn.Module):
    """Latents z (B, M, d) read the pixels, then talk among themselves: → (B, M, d).

    z + attention(norm(z), keys, values), then z + MLP(norm(z)), then `depth` blocks of
    self-attention.
    """

    depth: int
    heads: int
    mlp: int
    norm_eps: float
    dropout: float
    attention: str
    exchange: str
    remat: str
    initial: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, z: jax.Array, keys: jax.Array, values: jax.Array, train: bool) -> jax.Array:
        width = z.shape[-1]

        def drop(y: jax.Array) -> jax.Array:
            return nn.Dropout(self.dropout, deterministic=not train)(y)

        y = LayerNorm(self.norm_eps, self.dtype, name="norm1")(z)
        q = _split_heads(_dense(width, self.dtype, "query", self.initial)(y), self.heads)
        y = attention(q, keys, values, self.attention, exchange=self.exchange).reshape(z.shape)
        z = z + drop(_dense(width, self.dtype, "out", self.initial)(y))
        y = LayerNorm(self.norm_eps, self.dtype, name="norm2")(z)
        y = drop(gelu(_dense(self.mlp or 4 * width, self.dtype, "up", self.initial)(y)))
        y = constrain(y, "batch", "seq", "model")  # (B, M, mlp)
        z = z + drop(_dense(width, self.dtype, "down", self.initial)(y))
        return Trunk(
            depth=self.depth,
            heads=self.heads,
            mlp=self.mlp,
            dropout=self.dropout,
            norm_eps=self.norm_eps,
            initial=self.initial,
            attention=self.attention,
            exchange=self.exchange,
            remat=self.remat,
            dtype=self.dtype,
            name="trunk",
        )(z, None, train)


class Perceiver(nn.Module, kw_only=True):
    """Images (B, H, W, C), as `Encoder.encode` takes them, to logits (B, num_classes).

    With `head=False` it returns what the head would read, (B, d): the mean of the latents.

    Attributes:
      latents: M, how many there are.
      rounds: how often they read the pixels.
      depth: blocks of self-attention in each round.
    """

    num_classes: int
    latents: int
    rounds: int
    width: int
    depth: int
    heads: int
    mlp: int
    patch: int = 1
    position: str = "learned"
    position_std: float = 0.02
    embed: str = "linear"
    dictionary_bits: int = 8
    dropout: float = 0.0
    norm_eps: float = 1e-6
    initial: str = "xavier"
    attention: str = "auto"
    exchange: str = "auto"
    remat: str = "none"
    dtype: str = "auto"

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False, head: bool = True) -> jax.Array:
        dtype = compute_dtype(self.dtype)
        tokens = Embed(
            width=self.width,
            patch=self.patch,
            position=self.position,
            position_std=self.position_std,
            cls=False,
            embed=self.embed,
            dictionary_bits=self.dictionary_bits,
            initial=self.initial,
            dtype=dtype,
            name="embed",
        )(images.astype(dtype) if self.embed == "linear" else images)
        tokens = constrain(tokens, "batch", "seq", None)  # (B, N, d)
        init = SCHEMES[self.initial].head(0.02)
        z = self.param("latents", init, (self.latents, self.width), jnp.float32)
        z = jnp.broadcast_to(z.astype(dtype), (len(images), *z.shape))
        z = constrain(z, "batch", "seq", None)  # (B, M, d)

        def part(name: str) -> tuple[jax.Array, jax.Array, Round]:
            keys_values = KeysValues(
                self.heads, self.norm_eps, self.initial, dtype, name=f"{name}_pixels"
            )
            a_round = Round(
                depth=self.depth,
                heads=self.heads,
                mlp=self.mlp,
                norm_eps=self.norm_eps,
                dropout=self.dropout,
                attention=self.attention,
                exchange=self.exchange,
                remat=self.remat,
                initial=self.initial,
                dtype=dtype,
                name=name,
            )
            return *keys_values(tokens), a_round

        keys, values, first = part("first")
        z = first(z, keys, values, train)
        if self.rounds > 1:
            keys, values, again = part("again")
            scan = nn.scan(
                lambda module, z, _: (module(z, keys, values, train), None),
                variable_broadcast="params",
                split_rngs={"params": False, "dropout": True},
                length=self.rounds - 1,
            )
            z, _ = scan(again, z, None)
        z = LayerNorm(self.norm_eps, dtype, name="norm")(z).mean(1, dtype=jnp.float32)  # (B, d)
        if not head:
            return z
        return nn.Dense(self.num_classes, dtype=jnp.float32, kernel_init=init, name="head")(z)


def build(model, sizes, num_classes: int) -> Perceiver:
    """The module that the `model` and `perceiver` groups of a resolved config describe."""
    shared = {k: v for k, v in model.items() if k in Perceiver.__dataclass_fields__ and k != "name"}
    return Perceiver(num_classes=num_classes, latents=sizes.latents, rounds=sizes.rounds, **shared)
