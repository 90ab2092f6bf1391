"""The autoencoder of latent diffusion (Rombach et al. 2022), as Stable Diffusion has it.

Images are encoded to the mean and deviation of a normal distribution on a grid that is
2^(levels − 1) times smaller, and decoded from a sample of it. Everything is convolutional
but one attention layer in the middle of each half. Arrays are (B, H, W, C) throughout.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from pit_jax.errors import ConfigError
from pit_jax.models.attention import attention
from pit_jax.models.transformer import compute_dtype
from pit_jax.parallel.mesh import constrain

_NORM_EPS = 1e-6
_LOG_VARIANCE = (-30.0, 20.0)  # public code's bounds

# PyTorch's default for convolutions, which the public models were trained from.
_INIT = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class ResnetBlock(nn.Module):
    """x + two rounds of norm, SiLU and 3×3 convolution: (B, H, W, c) → (B, H, W, features).

    Where the number of channels changes, x goes through a 1×1 convolution.
    """

    features: int
    groups: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = nn.silu(_norm(self.groups, self.dtype, "norm1")(x))
        y = _convolution(self.features, self.dtype, "conv1")(y)
        y = nn.silu(_norm(self.groups, self.dtype, "norm2")(y))
        y = _convolution(self.features, self.dtype, "conv2")(y)
        if x.shape[-1] != self.features:
            x = _convolution(self.features, self.dtype, "shortcut", size=1)(x)
        return x + y


class SpatialAttention(nn.Module):
    """x + attention of one head over all places: (B, H, W, C) → the same."""

    groups: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        b, h, w, c = x.shape

        def dense(name: str) -> nn.Dense:
            return nn.Dense(c, dtype=self.dtype, kernel_init=_INIT, name=name)

        y = _norm(self.groups, self.dtype, "norm")(x).reshape(b, h * w, c)
        q, k, v = (dense(name)(y)[:, :, None] for name in ("query", "key", "value"))
        y = attention(q, k, v)[:, :, 0]  # (B, H·W, C)
        return x + dense("out")(y).reshape(x.shape)


class Middle(nn.Module):
    """Block, attention, block at the lowest resolution."""

    groups: int
    attends: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = ResnetBlock(x.shape[-1], self.groups, self.dtype, name="block_0")(x)
        if self.attends:
            x = SpatialAttention(self.groups, self.dtype, name="attention")(x)
        return ResnetBlock(x.shape[-1], self.groups, self.dtype, name="block_1")(x)


class Down(nn.Module):
    """`layers` blocks, and unless it is the last level, half the resolution."""

    features: int
    layers: int
    groups: int
    halves: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in range(self.layers):
            x = ResnetBlock(self.features, self.groups, self.dtype, name=f"block_{layer}")(x)
        if not self.halves:
            return x
        # One row below and one column to the right, none at the other sides: public code's.
        x = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
        return _convolution(self.features, self.dtype, "downsample", strides=2)(x)


class Up(nn.Module):
    """`layers` blocks, and unless it is the last level, twice the resolution."""

    features: int
    layers: int
    groups: int
    doubles: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in range(self.layers):
            x = ResnetBlock(self.features, self.groups, self.dtype, name=f"block_{layer}")(x)
        if not self.doubles:
            return x
        return _convolution(self.features, self.dtype, "upsample")(_nearest(x))


class Encoder(nn.Module):
    """Images (B, H, W, c) to mean and log variance (B, H/f, W/f, 2 · latent), float32."""

    channels: tuple[int, ...]
    layers: int
    latent: int
    groups: int
    attends: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = _convolution(self.channels[0], self.dtype, "conv_in")(x)
        for level, features in enumerate(self.channels):
            halves = level < len(self.channels) - 1
            sizes = (features, self.layers, self.groups, halves)
            x = Down(*sizes, self.dtype, name=f"down_{level}")(x)
        x = Middle(self.groups, self.attends, self.dtype, name="mid")(x)
        x = nn.silu(_norm(self.groups, self.dtype, "norm_out")(x))
        return _convolution(2 * self.latent, jnp.float32, "conv_out")(x)


class Decoder(nn.Module):
    """Latents (B, h, w, latent) to images (B, h · f, w · f, image_channels), float32."""

    channels: tuple[int, ...]
    layers: int
    image_channels: int
    groups: int
    attends: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = _convolution(self.channels[-1], self.dtype, "conv_in")(x)
        x = Middle(self.groups, self.attends, self.dtype, name="mid")(x)
        for level, features in enumerate(reversed(self.channels)):
            doubles = level < len(self.channels) - 1
            sizes = (features, self.layers + 1, self.groups, doubles)
            x = Up(*sizes, self.dtype, name=f"up_{level}")(x)
        x = nn.silu(_norm(self.groups, self.dtype, "norm_out")(x))
        return _convolution(self.image_channels, jnp.float32, "conv_out")(x)


class AutoencoderKL(nn.Module):
    """Images in [−1, 1] to a normal distribution over latents and back.

    The defaults are Stable Diffusion's: 83,653,863 parameters, 256×256×3 → 32×32×4.

    Attributes:
      channels: of each level; between two of them the resolution is halved.
      layers: blocks of a level of the encoder; the decoder's levels have one more.
      latent: channels of the latents.
      groups: of every group norm.
      image_channels: 3, or 1 for grey images.
      attends: whether there is attention in the middle.
      quant_convs: whether a 1×1 convolution follows the encoder and another precedes the
        decoder (Stable Diffusion 1 and 2 have them, 3 has not).
      dtype: of activations and products; "auto" is bfloat16 on TPU and GPU. Parameters,
        statistics of norms, softmax and what comes out are float32.

    Raises:
      ConfigError: if the groups do not divide the channels, or the image does not halve.
    """

    channels: tuple[int, ...] = (128, 256, 512, 512)
    layers: int = 2
    latent: int = 4
    groups: int = 32
    image_channels: int = 3
    attends: bool = True
    quant_convs: bool = True
    dtype: str = "auto"

    @property
    def factor(self) -> int:
        """How many times smaller the latents' sides are than the image's."""
        return 2 ** (len(self.channels) - 1)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Of one image's latents: (height / factor, width / factor, latent)."""
        if height % self.factor or width % self.factor:
            raise ConfigError(
                f"images of {height}×{width} cannot be halved {len(self.channels) - 1} times by"
                f" the autoencoder: use a size that is a multiple of {self.factor}"
            )
        return height // self.factor, width // self.factor, self.latent

    def setup(self) -> None:
        for features in self.channels:
            if features % self.groups:
                raise ConfigError(
                    f"the autoencoder's groups={self.groups} do not divide its channels"
                    f" {features}: name a number of groups that divides {self.channels}"
                )
        shared = {
            "channels": self.channels,
            "layers": self.layers,
            "groups": self.groups,
            "attends": self.attends,
            "dtype": compute_dtype(self.dtype),
        }
        self.encoder = Encoder(latent=self.latent, **shared)
        self.decoder = Decoder(image_channels=self.image_channels, **shared)
        if self.quant_convs:
            self.quant_conv = _convolution(2 * self.latent, jnp.float32, None, size=1)
            self.post_quant_conv = _convolution(self.latent, jnp.float32, None, size=1)

    def encode(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The distribution of an image's latents.

        Args:
          images: (B, H, W, image_channels) in [−1, 1].

        Returns:
          mean and standard deviation, both (B, H/factor, W/factor, latent) float32, not
          normalised (`Normalisation.apply` is the caller's).
        """
        self.latent_shape(*images.shape[1:3])
        x = self.encoder(constrain(images, "batch", None, None, None))
        if self.quant_convs:
            x = self.quant_conv(x)
        mean, log_variance = jnp.split(x, 2, axis=-1)
        return mean, jnp.exp(0.5 * jnp.clip(log_variance, *_LOG_VARIANCE))

    def decode(self, latents: jax.Array) -> jax.Array:
        """Images (B, h · factor, w · factor, image_channels) float32, about in [−1, 1].

        Args:
          latents: (B, h, w, latent), not normalised.
        """
        x = constrain(latents, "batch", None, None, None)
        if self.quant_convs:
            x = self.post_quant_conv(x)
        return self.decoder(x)

    def __call__(
        self, images: jax.Array, noise: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """For training: reconstruction, mean and standard deviation.

        Args:
          images: (B, H, W, image_channels) in [−1, 1].
          noise: standard normal, of the latents' shape; None decodes the mean itself.
        """
        mean, std = self.encode(images)
        latents = mean if noise is None else mean + std * noise
        return self.decode(latents), mean, std


def kl(mean: jax.Array, std: jax.Array) -> jax.Array:
    """Divergence of N(mean, std²) from N(0, 1), summed over an image's latents: (B,) nats.

    Args:
      mean, std: (B, ...), std positive.
    """
    each = 0.5 * (mean * mean + std * std - 1) - jnp.log(std)
    return each.sum(tuple(range(1, each.ndim)))


def _norm(groups: int, dtype: jnp.dtype, name: str) -> nn.GroupNorm:
    return nn.GroupNorm(groups, epsilon=_NORM_EPS, dtype=dtype, name=name)


def _convolution(
    features: int, dtype: jnp.dtype, name: str | None, size: int = 3, strides: int = 1
) -> nn.Conv:
    """A convolution that keeps the resolution, or halves it without padding of its own."""
    padding = "VALID" if strides > 1 else size // 2
    return nn.Conv(
        features,
        (size, size),
        strides,
        padding=padding,
        dtype=dtype,
        kernel_init=_INIT,
        name=name,
    )


def _nearest(x: jax.Array) -> jax.Array:
    """(B, H, W, C) → (B, 2H, 2W, C), every pixel four times."""
    b, h, w, c = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c))
    return x.reshape(b, 2 * h, 2 * w, c)
