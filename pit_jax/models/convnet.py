"""A small ConvNet, and the same one with 1×1 filters, which has no neighbourhood at all.

Stages of pre-activation residual blocks (He et al. 2016b), with the layer norm over the
channels of a place that ConvNeXt has (Liu et al. 2022) where they have batch norm: nothing
but the filters mixes two places, and no statistics of a batch have to be kept. With
`kernel=1` each place therefore sees its own pixel until all are averaged at the end: the
network is a function of the set of pixels, like a Deep Set (Zaheer et al. 2017).
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from pit_jax.models.pointwise import LayerNorm, gelu
from pit_jax.models.transformer import compute_dtype
from pit_jax.parallel.mesh import constrain

_INIT = nn.initializers.he_normal()


def _convolution(features: int, size: int, dtype: jnp.dtype, name: str) -> nn.Conv:
    return nn.Conv(features, (size, size), dtype=dtype, kernel_init=_INIT, name=name)


class ResidualBlock(nn.Module):
    """x + twice norm, GELU and convolution: (B, H, W, c) → (B, H, W, features).

    Where the number of channels changes, x goes through a 1×1 convolution. The border is
    filled up with zeros.
    """

    features: int
    kernel: int
    norm_eps: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = x
        for part in ("1", "2"):
            y = gelu(LayerNorm(self.norm_eps, self.dtype, name=f"norm{part}")(y))
            y = _convolution(self.features, self.kernel, self.dtype, f"conv{part}")(y)
        if x.shape[-1] != self.features:
            x = _convolution(self.features, 1, self.dtype, "shortcut")(x)
        return constrain(x + y, "batch", None, None, None)


class ConvNet(nn.Module):
    """Images (B, H, W, C), normalised, to logits (B, num_classes) in float32.

    With `head=False` it returns what the head would read, (B, channels[-1]): the mean over
    all places of what the last block says.

    Attributes:
      channels: of each stage.
      layers: residual blocks of each stage, two convolutions each.
      kernel: side of all filters but the shortcuts' in pixels, odd; 1 = no neighbourhood.
      downsample: halve the side between stages by averaging 2×2 places.
    """

    num_classes: int
    channels: tuple[int, ...]
    layers: tuple[int, ...]
    kernel: int = 3
    downsample: bool = False
    norm_eps: float = 1e-6
    dtype: str = "auto"

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False, head: bool = True) -> jax.Array:
        del train  # it does the same in training
        dtype = compute_dtype(self.dtype)
        x = _convolution(self.channels[0], self.kernel, dtype, "conv_in")(images.astype(dtype))
        x = constrain(x, "batch", None, None, None)  # (B, H, W, c)
        for stage, (features, count) in enumerate(zip(self.channels, self.layers, strict=True)):
            if stage and self.downsample:
                x = nn.avg_pool(x, (2, 2), (2, 2))
            for layer in range(count):
                name = f"stage_{stage}_block_{layer}"
                x = ResidualBlock(features, self.kernel, self.norm_eps, dtype, name=name)(x)
        x = gelu(LayerNorm(self.norm_eps, dtype, name="norm")(x))
        x = x.mean((1, 2), dtype=jnp.float32)  # (B, c)
        if not head:
            return x
        init = nn.initializers.truncated_normal(0.02)
        return nn.Dense(self.num_classes, dtype=jnp.float32, kernel_init=init, name="head")(x)


def places(model: ConvNet, params: Any, images: jax.Array) -> jax.Array:
    """What the head of a ConvNet averages, before the last GELU: (B, H · W, channels[-1])."""
    _, kept = model.apply(
        {"params": params},
        images,
        head=False,
        capture_intermediates=lambda module, _: module.name == "norm",
        mutable=["intermediates"],
    )
    x = kept["intermediates"]["norm"]["__call__"][0]
    return x.reshape(len(x), -1, x.shape[-1])


def build(model, sizes, num_classes: int) -> ConvNet:
    """The module that the `model` and `convnet` groups of a resolved config describe."""
    return ConvNet(
        num_classes=num_classes,
        channels=tuple(sizes.channels),
        layers=tuple(sizes.layers),
        kernel=sizes.kernel,
        downsample=sizes.downsample,
        norm_eps=model.norm_eps,
        dtype=model.dtype,
    )
