"""The Diffusion Transformer (DiT, Peebles & Xie 2023) over patches or single pixels.

What it is told, a time and perhaps a class, becomes one vector an image that modulates every
block (adaLN-Zero). Modulations, gates and the head start at zero: the untrained model is the
identity in its blocks and says 0. With patch 1 and learned positions it is the paper's third
case study, a Pixel Transformer: nothing but the positions tells one pixel from another.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from pit_jax.models.embed import Embed, unpatchify
from pit_jax.models.pointwise import modulated_norm
from pit_jax.models.transformer import Trunk, compute_dtype, modulation
from pit_jax.parallel.mesh import constrain

FREQUENCIES = 128  # of the time, each with a cosine and a sine


def encode_time(time: jax.Array, steps: int = FREQUENCIES) -> jax.Array:
    """Cosines, then sines, of the time at frequencies that fall from 1 towards 1/10000.

    Args:
      time: (B,), in steps of a thousand.
      steps: frequency i is 10000^(−i / steps). The 128 of public DiT end just above 1/10000;
        diffusers has 127, which is another function for the same weights.

    Returns:
      (B, 256) float32.
    """
    # Rounded where public DiT rounds: a float32 angle near 1000 shows every last bit.
    exponents = np.float32(-np.log(10000)) * np.arange(FREQUENCIES, dtype=np.float32)
    frequencies = np.exp(np.float64(exponents / np.float32(steps))).astype(np.float32)
    angles = time.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class TimeEmbedding(nn.Module):
    """Times (B,) to vectors (B, width): `encode_time`, dense, SiLU, dense; all in float32."""

    width: int
    frequency_steps: int

    @nn.compact
    def __call__(self, time: jax.Array) -> jax.Array:
        init = nn.initializers.normal(0.02)
        x = encode_time(time, self.frequency_steps)
        x = nn.silu(nn.Dense(self.width, kernel_init=init, name="first")(x))
        return nn.Dense(self.width, kernel_init=init, name="second")(x)


class LabelEmbedding(nn.Module):
    """Labels (B,) int32 to vectors (B, width); the last row stands for "no label"."""

    width: int
    num_classes: int

    @nn.compact
    def __call__(self, labels: jax.Array) -> jax.Array:
        shape = (self.num_classes + 1, self.width)
        return self.param("table", nn.initializers.normal(0.02), shape, jnp.float32)[labels]


class Final(nn.Module):
    """Tokens (B, N, d) and their image's c (B, d) to numbers (B, N, features) in float32."""

    features: int
    norm_eps: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, c: jax.Array) -> jax.Array:
        shift, scale = modulation(c, 2, x.shape[-1])
        x = modulated_norm(x, shift, scale, self.norm_eps, self.dtype)
        return nn.Dense(self.features, kernel_init=nn.initializers.zeros, name="head")(x)


class DiT(nn.Module, kw_only=True):
    """Noisy images, times and labels to what the diffusion asks for at every pixel.

    `outputs` is the number of channels said: as many as the images have, or twice as many
    with learned variances behind. `num_classes` 0 makes an unconditional model, without a
    label table. `frequency_steps` is that of `encode_time`. Fields that are not named here
    are those of `vit.Encoder`; `dropout` acts in the blocks only.
    """

    width: int
    depth: int
    heads: int
    mlp: int
    outputs: int
    patch: int = 1
    position: str = "learned"
    position_std: float = 0.02
    window: tuple[float, ...] = ()
    window_layers: int = 0
    num_classes: int = 0
    frequency_steps: int = FREQUENCIES
    dropout: float = 0.0
    norm_eps: float = 1e-6
    initial: str = "xavier"
    attention: str = "auto"
    exchange: str = "auto"
    remat: str = "none"
    dtype: str = "auto"

    def setup(self) -> None:
        dtype = compute_dtype(self.dtype)
        self.embed = Embed(
            width=self.width,
            patch=self.patch,
            position=self.position,
            position_std=self.position_std,
            cls=False,
            initial=self.initial,
            dtype=dtype,
        )
        self.time = TimeEmbedding(self.width, self.frequency_steps)
        if self.num_classes:
            self.label = LabelEmbedding(self.width, self.num_classes)
        self.trunk = Trunk(
            depth=self.depth,
            heads=self.heads,
            mlp=self.mlp,
            dropout=self.dropout,
            norm_eps=self.norm_eps,
            activation="gelu_tanh",
            conditioned=True,
            initial=self.initial,
            attention=self.attention,
            exchange=self.exchange,
            window=self.window,
            window_layers=self.window_layers,
            remat=self.remat,
            dtype=dtype,
        )
        self.final = Final(self.patch**2 * self.outputs, self.norm_eps, dtype)

    def __call__(
        self,
        x: jax.Array,
        time: jax.Array,
        labels: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """What is said of every pixel, (B, H, H, outputs) float32.

        Args:
          x: noisy images or latents, (B, H, H, C) float32; H a multiple of the patch.
          time: (B,) float32 in [0, 1000].
          labels: (B,) int32; `num_classes` means "no label", as None does for all.
          train: with dropout.
        """
        tokens, c = self._encode(x, time, labels, train)
        return unpatchify(self.final(tokens, c), x.shape[1], self.patch)

    def represent(
        self, x: jax.Array, time: jax.Array, labels: jax.Array | None = None
    ) -> jax.Array:
        """The mean of the last block's tokens, (B, width) float32: what a probe reads."""
        return self.tokens(x, time, labels).mean(axis=1, dtype=jnp.float32)

    def tokens(self, x: jax.Array, time: jax.Array, labels: jax.Array | None = None) -> jax.Array:
        """Every patch's token after the last block, (B, N, width), not normed."""
        return self._encode(x, time, labels, train=False)[0]

    def _encode(
        self, x: jax.Array, time: jax.Array, labels: jax.Array | None, train: bool
    ) -> tuple[jax.Array, jax.Array]:
        """Tokens (B, N, d) after the last block and the vector c (B, d) that modulates them."""
        c = self.time(time)
        if self.num_classes:
            none = jnp.full(time.shape, self.num_classes, jnp.int32)
            c = c + self.label(none if labels is None else labels)
        c = constrain(c, "batch", None)
        tokens = self.embed(x.astype(compute_dtype(self.dtype)))
        tokens = constrain(tokens, "batch", "seq", None)
        return self.trunk(tokens, train=train, c=c), c


def drop_labels(labels: jax.Array, keys: jax.Array, rate: float, num_classes: int) -> jax.Array:
    """Replaces labels by "no label" with probability `rate` (classifier-free guidance).

    Args:
      labels: (B,) int32.
      keys: (B,) PRNG keys, one an example: what happens to it depends on no other.
      rate: 0.1 in the paper.
      num_classes: the number that means "no label".
    """
    dropped = jax.vmap(lambda key: jax.random.bernoulli(key, rate))(keys)
    return jnp.where(dropped, num_classes, labels)


def build(model, diffusion_outputs: int, num_classes: int) -> DiT:
    """The module that the `model` group of a resolved config describes."""
    fields = {k: v for k, v in model.items() if k in DiT.__dataclass_fields__ and k != "name"}
    return DiT(**fields | {"outputs": diffusion_outputs, "num_classes": num_classes})


def num_tokens(model, image_size: int) -> int:
    """Tokens an image: there is no [CLS] among them."""
    return (image_size // model.patch) ** 2
